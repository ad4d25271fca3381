//! Standings, beats, samples → what has changed of the published values.
//!
//! One page per service: where it stands, its pools, what its process uses, and what was
//! published of all that. Only changes are told; the sink renews what has not changed. Pools
//! are told as of the last tick or start, never in between: a pool that gets its beat with
//! every tick looks full, as it is.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::kept::{Beats, Kept};
use super::pool::{Input, Pool, Values};
use crate::handoff::{Beat, BeatKind, PoolEdge, PoolSettings, ServiceGauge, Standing};
use crate::record::{Gauge, POOL_PROPERTIES, Streams, pool_key, service_key};
use crate::service::{Pid, ServiceId, ServiceName};

/// Up to so many pools of its own a service may invent one more: each takes about 3 KiB here, and eight keys.
pub const POOLS: usize = 4096;
/// The same for the pools of all services.
pub const ALL_POOLS: usize = 16_384;
/// Bytes of an invented category.
pub const CATEGORY: usize = 256;

/// The pool that every service has: a beat each second while its process lives and
/// its checks pass.
const PROCESS: &str = "process";

/// Where `health` stands in the values.
const HEALTH: usize = 7;

#[derive(Debug)]
pub struct Book {
    /// Whether `health` keys are ours.
    compute: bool,
    pages: BTreeMap<ServiceName, Page>,
    /// Markers name the stream.
    by_stream: HashMap<Arc<str>, ServiceName>,
    /// What removed services leave behind.
    forgotten: Vec<Gauge>,
    /// Beats that the last agent counted.
    kept: Kept,
}

/// What became of a marker.
#[derive(Clone, Debug)]
pub enum Heard {
    Pool,
    /// Nobody knows of whom it is.
    Nobody,
    /// It would be one pool too many; `first` of this service.
    TooMany {
        service: ServiceName,
        streams: Arc<Streams>,
        first: bool,
    },
}

#[derive(Debug)]
struct Page {
    standing: Standing,
    pools: BTreeMap<String, Entry>,
    usage: ServiceGauge,
    /// The state hash as published.
    told: Vec<(Cow<'static, str>, String)>,
    /// Its checks say that it works.
    passing: bool,
    told_too_many: bool,
    pools_due: bool,
    state_due: bool,
}

#[derive(Debug)]
struct Entry {
    pool: Pool,
    told: Option<Values>,
    /// As of the last [`Book::edges`]: its process lives, and it is at 0.
    is_empty: bool,
}

impl Book {
    /// `left` are the beats of the last agent.
    pub fn new(compute: bool, left: Beats) -> Book {
        Book {
            compute,
            pages: BTreeMap::new(),
            by_stream: HashMap::new(),
            forgotten: Vec::new(),
            kept: Kept::new(left),
        }
    }

    /// A service stands somewhere else now, is new, or is gone.
    pub fn stand(&mut self, now: Instant, standing: Standing) {
        if standing.removed {
            return self.remove(&standing.service);
        }
        let known = self.pages.get(&standing.service);
        if known.is_some_and(|page| page.standing.streams.name() != standing.streams.name()) {
            // A reload renamed its stream, and with it all keys of its pools.
            self.remove(&standing.service);
        }
        let stream = Arc::clone(standing.streams.name());
        self.by_stream.insert(stream, standing.service.clone());
        match self.pages.get_mut(&standing.service) {
            Some(page) => page.stand(now, standing, &mut self.kept, &mut self.forgotten),
            None => {
                let page = Page::new(now, standing, &mut self.kept);
                self.pages.insert(page.standing.service.clone(), page);
            }
        }
    }

    /// A marker said something.
    pub fn beat(&mut self, now: Instant, beat: Beat) -> Heard {
        let service = self.by_stream.get(&beat.stream_name);
        let page = |service| self.pages.get(service);
        let Some((service, page)) = service.and_then(|service| Some((service, page(service)?)))
        else {
            return Heard::Nobody;
        };
        // Counted only for a new category, which comes at most so often.
        let is_new = !page.pools.contains_key(&beat.category);
        let too_many = is_new
            && (page.pools.len() >= POOLS
                || beat.category.len() > CATEGORY
                || self
                    .pages
                    .values()
                    .map(|page| page.pools.len())
                    .sum::<usize>()
                    >= ALL_POOLS);
        let Some(page) = self.pages.get_mut(service) else {
            return Heard::Nobody;
        };
        if too_many {
            return Heard::TooMany {
                service: page.standing.service.clone(),
                streams: Arc::clone(&page.standing.streams),
                first: !std::mem::replace(&mut page.told_too_many, true),
            };
        }
        page.mark(now, beat.category, beat.what, &mut self.kept);
        Heard::Pool
    }

    /// Pools that ran empty while their process lived, or rose again, since the last call.
    pub fn edges(&mut self) -> Vec<(ServiceId, Vec<PoolEdge>)> {
        let mut all = Vec::new();
        for page in self.pages.values_mut() {
            let mut edges = Vec::new();
            for (category, entry) in &mut page.pools {
                let health = entry.pool.health();
                let is_empty = entry.pool.is_up() && health == 0;
                // The end of a process is told as such.
                if is_empty != entry.is_empty && entry.pool.is_up() {
                    edges.push(PoolEdge {
                        category: category.clone(),
                        health,
                    });
                }
                entry.is_empty = is_empty;
            }
            if !edges.is_empty() {
                all.push((page.standing.id, edges));
            }
        }
        all
    }

    /// A check passed: a beat of the pool of its name.
    pub fn passed(&mut self, now: Instant, service: &ServiceName, check: &str) {
        if let Some(page) = self.pages.get_mut(service) {
            let beat = BeatKind::Beats(1);
            page.mark(now, check.to_owned(), beat, &mut self.kept);
        }
    }

    /// Whether all checks of a service say that it works.
    pub fn passing(&mut self, service: &ServiceName, passing: bool) {
        if let Some(page) = self.pages.get_mut(service) {
            page.passing = passing;
        }
    }

    /// A second has passed.
    pub fn tick(&mut self, now: Instant) {
        for page in self.pages.values_mut() {
            if page.standing.pid.is_some()
                && page.passing
                && let Some(entry) = page.pools.get_mut(PROCESS)
            {
                entry.pool.step(now, Input::Mark(BeatKind::Beats(1)));
            }
            for entry in page.pools.values_mut() {
                entry.pool.step(now, Input::Pass);
            }
            (page.pools_due, page.state_due) = (true, true);
        }
    }

    /// The processes to be sampled.
    pub fn processes(&self) -> impl Iterator<Item = (&ServiceName, Pid)> {
        let process = |page: &Page| page.standing.pid;
        self.pages
            .iter()
            .filter_map(move |(name, page)| Some((name, process(page)?)))
    }

    /// What a service's process uses; its health is the book's own.
    pub fn uses(&mut self, service: &ServiceName, usage: ServiceGauge) {
        if let Some(page) = self.pages.get_mut(service) {
            page.usage = usage;
        }
    }

    pub fn is_due(&self) -> bool {
        let due = |page: &Page| page.pools_due || page.state_due;
        !self.forgotten.is_empty() || self.pages.values().any(due)
    }

    /// Everything that has changed since it was told; it counts as told from now on.
    pub fn changes(&mut self, out: &mut Vec<Gauge>) {
        out.append(&mut self.forgotten);
        for page in self.pages.values_mut() {
            if std::mem::take(&mut page.pools_due) {
                page.pool_changes(self.compute, out);
            }
            if std::mem::take(&mut page.state_due) {
                page.state_changes(out);
            }
        }
    }

    /// The latest of every service, for `status`. What stands there already is changed in
    /// place: thousands of names need not be written again each second.
    pub fn show(&self, services: &mut HashMap<ServiceName, ServiceGauge>) {
        services.retain(|name, _| self.pages.contains_key(name));
        for (name, page) in &self.pages {
            let shown = match services.get_mut(name) {
                Some(shown) => shown,
                None => services.entry(name.clone()).or_default(),
            };
            let mut health = std::mem::take(&mut shown.health);
            let mut caps = std::mem::take(&mut shown.caps);
            for (values, value) in [
                (&mut health, Pool::health as fn(&Pool) -> i64),
                (&mut caps, Pool::cap),
            ] {
                values.retain(|category, _| page.pools.contains_key(category));
                for (category, entry) in &page.pools {
                    match values.get_mut(category) {
                        Some(shown) => *shown = value(&entry.pool),
                        None => drop(values.insert(category.clone(), value(&entry.pool))),
                    }
                }
            }
            *shown = ServiceGauge {
                health,
                caps,
                ..page.usage.clone()
            };
        }
    }

    /// What the next agent shall count on from.
    pub fn beats(&self) -> Beats {
        let mut beats = Beats::new();
        for page in self.pages.values() {
            let counted = page.pools.iter().filter_map(|(category, entry)| {
                let count = entry.pool.beats();
                (count > 0).then(|| (category.clone(), count))
            });
            let counted: BTreeMap<_, _> = counted.collect();
            if !counted.is_empty() {
                beats.insert(page.standing.streams.name().to_string(), counted);
            }
        }
        self.kept.add_unasked(&mut beats);
        beats
    }

    fn remove(&mut self, service: &ServiceName) {
        let Some(page) = self.pages.remove(service) else {
            return;
        };
        self.by_stream.remove(page.standing.streams.name());
        self.kept.forget(page.standing.streams.name());
        for (category, entry) in &page.pools {
            page.forget_pool(category, entry, &mut self.forgotten);
        }
        let key = service_key(service.as_str());
        self.forgotten.push(Gauge::Forget { key });
    }
}

impl Page {
    fn new(now: Instant, standing: Standing, kept: &mut Kept) -> Page {
        let running = standing.pid.is_some();
        let mut pools = BTreeMap::new();
        let own: Vec<_> = std::iter::once(PROCESS)
            .chain(fed_by_checks(&standing))
            .map(unconfigured)
            .collect();
        for settings in own.iter().chain(standing.pools.iter()) {
            let beats = kept.take(standing.streams.name(), &settings.category);
            let entry = Entry::new(now, settings.clone(), running, beats);
            // Who configures the pool `process` has it twice, and its beats once.
            let before = pools.insert(settings.category.clone(), entry);
            if let (Some(before), Some(entry)) = (before, pools.get_mut(&settings.category)) {
                entry.pool.count_on(before.pool.beats());
            }
        }
        Page {
            standing,
            pools,
            usage: ServiceGauge::default(),
            told: Vec::new(),
            passing: true,
            told_too_many: false,
            pools_due: true,
            state_due: true,
        }
    }

    fn stand(
        &mut self,
        now: Instant,
        standing: Standing,
        kept: &mut Kept,
        forgotten: &mut Vec<Gauge>,
    ) {
        if standing.pools != self.standing.pools || standing.checks != self.standing.checks {
            self.configure(now, &standing, kept, forgotten);
        }
        let (before, after) = (self.standing.pid, standing.pid);
        if before != after || self.standing.exit != standing.exit {
            // A process ended, began, or both.
            let input = match after {
                Some(_) if before != after => Input::Start,
                Some(_) => Input::Pass,
                None => Input::Stop,
            };
            for entry in self.pools.values_mut() {
                entry.pool.step(now, input);
            }
            self.usage = ServiceGauge::default();
            self.pools_due = true;
        }
        self.standing = standing;
        self.state_due = true;
    }

    fn mark(&mut self, now: Instant, category: String, what: BeatKind, kept: &mut Kept) {
        let running = self.standing.pid.is_some();
        let stream = self.standing.streams.name();
        let entry = self.pools.entry(category).or_insert_with_key(|category| {
            let beats = kept.take(stream, category);
            Entry::new(now, unconfigured(category), running, beats)
        });
        entry.pool.step(now, Input::Mark(what));
    }

    /// Takes over what a reload changed of the pools.
    fn configure(
        &mut self,
        now: Instant,
        to: &Standing,
        kept: &mut Kept,
        forgotten: &mut Vec<Gauge>,
    ) {
        let names = |standing: &Standing| -> BTreeSet<String> {
            let pools = standing.pools.iter().map(|pool| pool.category.as_str());
            let names = pools.chain(fed_by_checks(standing));
            names.map(str::to_owned).collect()
        };
        let after = names(to);
        for gone in names(&self.standing).difference(&after) {
            if gone != PROCESS
                && let Some(entry) = self.pools.remove(gone)
            {
                self.forget_pool(gone, &entry, forgotten);
            }
        }
        let own: Vec<_> = fed_by_checks(to)
            .filter(|name| !self.pools.contains_key(*name))
            .map(unconfigured)
            .collect();
        let running = self.standing.pid.is_some();
        for settings in own.iter().chain(to.pools.iter()) {
            match self.pools.get_mut(&settings.category) {
                Some(entry) => entry.pool.configure(now, settings),
                None => {
                    let beats = kept.take(self.standing.streams.name(), &settings.category);
                    let entry = Entry::new(now, settings.clone(), running, beats);
                    self.pools.insert(settings.category.clone(), entry);
                }
            }
        }
        self.pools_due = true;
    }

    fn pool_changes(&mut self, compute: bool, out: &mut Vec<Gauge>) {
        let service = self.standing.streams.name();
        let exit = i64::from(self.standing.exit.unwrap_or(0));
        for (category, entry) in &mut self.pools {
            let values = entry.pool.values(exit);
            let count = if compute { values.len() } else { HEALTH };
            for (place, property) in POOL_PROPERTIES.iter().take(count).enumerate() {
                if entry.told.is_none_or(|told| told[place] != values[place]) {
                    out.push(Gauge::Integer {
                        key: pool_key(service, category, property),
                        value: values[place],
                    });
                }
            }
            entry.told = Some(values);
        }
    }

    fn state_changes(&mut self, out: &mut Vec<Gauge>) {
        let fields = self.fields();
        if fields != self.told {
            out.push(Gauge::Hash {
                key: service_key(self.standing.service.as_str()),
                fields: fields.clone(),
            });
            self.told = fields;
        }
    }

    /// The state hash. Without a process its pid and what it uses are 0.
    fn fields(&self) -> Vec<(Cow<'static, str>, String)> {
        let (standing, usage) = (&self.standing, &self.usage);
        let tally = &standing.streams.tally;
        let all = [
            ("state", standing.state.as_str().to_owned()),
            ("pid", standing.pid.unwrap_or(0).to_string()),
            ("restarts", standing.restarts.to_string()),
            ("exit", standing.exit.unwrap_or(0).to_string()),
            ("crash_id", standing.crash_id.clone().unwrap_or_default()),
            ("since_ms", standing.since_ms.to_string()),
            ("cpu_percent", format!("{:.1}", usage.cpu_percent)),
            ("rss_bytes", usage.rss_bytes.to_string()),
            ("threads", usage.threads.to_string()),
            ("fds", usage.fds.to_string()),
            ("lines", tally.lines().to_string()),
            ("bytes", tally.bytes().to_string()),
            ("dropped", tally.dropped().to_string()),
        ];
        let field = |(name, value)| (Cow::Borrowed(name), value);
        all.into_iter().map(field).collect()
    }

    fn forget_pool(&self, category: &str, entry: &Entry, out: &mut Vec<Gauge>) {
        if entry.told.is_none() {
            return;
        }
        let service = self.standing.streams.name();
        out.extend(POOL_PROPERTIES.iter().map(|property| Gauge::Forget {
            key: pool_key(service, category, property),
        }));
    }
}

impl Entry {
    /// `beats` were counted by the last agent.
    fn new(now: Instant, settings: PoolSettings, running: bool, beats: i64) -> Entry {
        let mut pool = Pool::new(settings);
        pool.count_on(beats);
        if running {
            pool.step(now, Input::Start);
        }
        Entry {
            pool,
            told: None,
            is_empty: false,
        }
    }
}

/// The pools that checks feed: there from the beginning, also while none has succeeded.
fn fed_by_checks(standing: &Standing) -> impl Iterator<Item = &str> {
    let feeding = standing.checks.iter().filter(|check| check.feeds);
    feeding.map(|check| check.name.as_str())
}

/// A pool of which nothing but the category is known.
fn unconfigured(category: &str) -> PoolSettings {
    PoolSettings {
        category: category.to_owned(),
        ..PoolSettings::default()
    }
}
