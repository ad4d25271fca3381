//! The health loop over its channels, with processes that really run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jettison_agent::config;
use jettison_agent::event::Event;
use jettison_agent::handoff::{
    Beat, BeatKind, HealthGauge, PoolProperty, PoolSettings, Standing, State,
};
use jettison_agent::health;
use jettison_agent::health::check::Means;
use jettison_agent::health::device::Device;
use jettison_agent::health::run::Found;
use jettison_agent::record::{Gauge, Record, Streams, Trim};
use jettison_agent::service::{Pid, ServiceId, ServiceName};
use tokio::sync::{mpsc, watch};

const LIMIT: Duration = Duration::from_secs(20);

struct House {
    standings: mpsc::Sender<Standing>,
    beats: mpsc::Sender<Beat>,
    words: mpsc::Receiver<Record>,
    gauge: watch::Receiver<HealthGauge>,
    /// What Redis would hold: integers, and hashes with their fields joined.
    values: BTreeMap<String, String>,
}

fn house(compute: bool, room: usize) -> House {
    let (standings, standing) = mpsc::channel(256);
    let (beats, beat) = mpsc::channel(256);
    let (to_words, words) = mpsc::channel(room);
    let (to_gauge, gauge) = watch::channel(HealthGauge::default());
    tokio::spawn(async move {
        let settings = config::Health { compute };
        health::run::run(&settings, standing, beat, to_words, to_gauge).await;
    });
    House {
        standings,
        beats,
        words,
        gauge,
        values: BTreeMap::new(),
    }
}

fn standing(name: &str, state: State, pid: Option<Pid>, exit: Option<i32>) -> Standing {
    Standing {
        id: ServiceId(0),
        service: ServiceName::new(name).unwrap(),
        streams: Streams::new(name, Trim { max_len: 0 }),
        state,
        pid,
        restarts: 0,
        exit,
        crash_id: None,
        since_ms: 1,
        pools: Arc::new([]),
        checks: Arc::new([]),
        removed: false,
    }
}

impl House {
    async fn take(&mut self) {
        let record = tokio::time::timeout(LIMIT, self.words.recv());
        match record.await.expect("changes in time") {
            Some(Record::Gauges(gauges)) => {
                for gauge in gauges {
                    match gauge {
                        Gauge::Integer { key, value } => {
                            let before = self.values.insert(key, value.to_string());
                            assert_ne!(before, Some(value.to_string()), "told twice");
                        }
                        Gauge::Hash { key, fields } => {
                            let field = |(name, value)| format!("{name}={value} ");
                            self.values
                                .insert(key, fields.into_iter().map(field).collect());
                        }
                        Gauge::Forget { key } => drop(self.values.remove(&key)),
                    }
                }
            }
            other => panic!("{other:?}"),
        }
    }

    /// Takes changes until it is so.
    async fn until(&mut self, key: &str, holds: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !self.values.get(key).is_some_and(|value| holds(value)) {
            assert!(begun.elapsed() < LIMIT, "{key}: {:?}", self.values.get(key));
            self.take().await;
        }
    }

    fn pool(&self, name: &str) -> Vec<&str> {
        let of_pool = |(key, _): &(&String, &String)| key.starts_with(name);
        self.values
            .iter()
            .filter(of_pool)
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

#[tokio::test]
async fn every_service_has_its_pool_and_its_state_whatever_its_state() {
    let mut house = house(true, 16);
    let mut waiting = standing("lidar", State::Waiting, None, None);
    waiting.pools = Arc::new([PoolSettings {
        category: "api".to_owned(),
        init: Some(1500),
        cap: Some(1000),
        depletion_rate: Some(100),
        replenish_rate: Some(15),
    }]);
    house.standings.send(waiting).await.unwrap();
    house
        .until("agent:service:lidar", |state| {
            state.contains("state=waiting")
        })
        .await;
    // In the order of the alphabet: beats, cap, depletion_rate, exit, health, init, …
    let api = ["0", "1000", "100", "0", "0", "1500", "15", "0"];
    assert_eq!(house.pool("lidar:__healthpool__api_"), api);
    let process = ["0", "100", "10", "0", "0", "100", "20", "0"];
    assert_eq!(house.pool("lidar:__healthpool__process_"), process);
    assert_eq!(house.values.len(), 17);
}

#[tokio::test]
async fn starts_and_ends_are_told_at_once_and_the_process_beats() {
    let mut house = house(true, 16);
    let me = std::process::id() as Pid;
    let begun = Instant::now();
    let up = standing("lidar", State::Ready, Some(me), None);
    house.standings.send(up).await.unwrap();
    house
        .until("lidar:__healthpool__process_running", |value| value == "1")
        .await;
    assert!(
        begun.elapsed() < Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(house.values["lidar:__healthpool__process_health"], "100");
    house
        .until("lidar:__healthpool__process_beats", |beats| beats == "2")
        .await;
    assert!(
        begun.elapsed() >= Duration::from_millis(1900),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(house.values["lidar:__healthpool__process_health"], "100");
    house
        .until("agent:service:lidar", |state| {
            !state.contains("rss_bytes=0 ")
        })
        .await;
    let name = ServiceName::new("lidar").unwrap();
    let mine = house.gauge.borrow().services[&name].clone();
    assert!(
        mine.threads >= 1 && mine.fds > 2 && mine.rss_bytes > 100_000,
        "{mine:?}"
    );
    assert_eq!(mine.health["process"], 100);
    let down = standing("lidar", State::Backoff, None, Some(139));
    house.standings.send(down).await.unwrap();
    house
        .until("lidar:__healthpool__process_exit", |exit| exit == "139")
        .await;
    assert_eq!(house.values["lidar:__healthpool__process_running"], "0");
    assert_eq!(house.values["lidar:__healthpool__process_health"], "0");
    assert!(house.values["agent:service:lidar"].contains("state=backoff pid=0 "));
    let mut removed = standing("lidar", State::Stopped, None, None);
    removed.removed = true;
    house.standings.send(removed).await.unwrap();
    house.take().await;
    assert!(house.values.is_empty(), "{:?}", house.values);
}

#[tokio::test]
async fn markers_declare_a_pool_and_beat_it() {
    let mut house = house(true, 16);
    let me = std::process::id() as Pid;
    let up = standing("lidar", State::Ready, Some(me), None);
    house.standings.send(up).await.unwrap();
    house.take().await;
    for what in [
        BeatKind::Set(PoolProperty::Cap, 1000),
        BeatKind::Set(PoolProperty::DepletionRate, 0),
        BeatKind::Set(PoolProperty::Init, 10),
        BeatKind::Set(PoolProperty::ReplenishRate, 15),
        BeatKind::Beats(3),
    ] {
        let beat = Beat {
            stream_name: "lidar".into(),
            category: "api".to_owned(),
            what,
        };
        house.beats.send(beat).await.unwrap();
    }
    house
        .until("lidar:__healthpool__api_health", |health| health == "55")
        .await;
    let api = ["3", "1000", "0", "0", "55", "10", "15", "1"];
    assert_eq!(house.pool("lidar:__healthpool__api_"), api);
}

#[tokio::test]
async fn health_is_left_to_others_when_they_compute_it() {
    let mut house = house(false, 16);
    let me = std::process::id() as Pid;
    let up = standing("lidar", State::Ready, Some(me), None);
    house.standings.send(up).await.unwrap();
    house
        .until("lidar:__healthpool__process_beats", |beats| beats == "1")
        .await;
    assert_eq!(house.pool("lidar:__healthpool__process_").len(), 7);
}

#[tokio::test]
async fn a_sink_that_takes_nothing_is_told_the_latest_later() {
    let mut house = house(true, 1);
    let me = std::process::id() as Pid;
    for restart in 0..2000 {
        let mut up = standing("lidar", State::Ready, Some(me), None);
        up.restarts = restart;
        house.standings.send(up).await.unwrap();
    }
    house
        .until("agent:service:lidar", |state| {
            state.contains("restarts=1999 ")
        })
        .await;
}

#[tokio::test]
async fn what_the_board_tells_its_stream_is_told_to_who_follows_too() {
    let root = std::env::temp_dir().join(format!("board-run-{}", std::process::id()));
    let cooler = root.join("sys/class/thermal/cooling_device0");
    std::fs::create_dir_all(&cooler).expect("a folder");
    std::fs::write(cooler.join("type"), "gpu-throttle-alert\n").expect("a file");
    std::fs::write(cooler.join("cur_state"), "1\n").expect("a file");
    let (inbox, mut heard) = mpsc::channel(16);
    let (standings, standing) = mpsc::channel(1);
    let (_beats, beat) = mpsc::channel(1);
    let (to_words, mut words) = mpsc::channel(16);
    let means = Means {
        inbox,
        redis: None,
        key_prefix: String::new(),
    };
    let found = Found {
        device: Some(Device::new(&root, "orin-7", Trim { max_len: 0 })),
        keeper: None,
    };
    tokio::spawn(async move {
        let settings = config::Health { compute: true };
        let gauge = watch::channel(HealthGauge::default()).0;
        health::run::run_with(&settings, found, means, standing, beat, to_words, gauge).await;
    });
    let told = tokio::time::timeout(LIMIT, async {
        loop {
            if let Some(Record::Entry(entry)) = words.recv().await {
                return entry;
            }
        }
    });
    let told = told.await.expect("in time");
    let heard = tokio::time::timeout(LIMIT, heard.recv())
        .await
        .expect("in time");
    let Some(Event::Board(entry)) = heard else {
        panic!("{heard:?}");
    };
    assert_eq!(entry.message, "Throttling by gpu-throttle-alert began.");
    assert_eq!(entry.message, told.message);
    drop(standings);
    std::fs::remove_dir_all(&root).expect("ours");
}
