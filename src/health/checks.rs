//! Standings, outcomes → checks that run, beats, verdicts.
//!
//! Every check that is under way is a task of its own, so none waits for another; the loop
//! hears of it when it is over. A verdict goes to the supervisor, which decides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::AbortHandle;
use tracing::warn;

use super::check::{Means, perform};
use super::probe::{Input, Out, Outcome, Probe};
use crate::event::Event;
use crate::handoff::{CheckAction, CheckSettings, Standing, State};
use crate::service::{Pid, ServiceId, ServiceName};

/// Until a full inbox is tried again.
const PAUSE: Duration = Duration::from_millis(50);

pub struct Checks {
    means: Means,
    services: BTreeMap<ServiceName, Watched>,
    tell: mpsc::UnboundedSender<Over>,
    over: mpsc::UnboundedReceiver<Over>,
    /// Verdicts that the inbox has not taken yet.
    waiting: VecDeque<Event>,
}

struct Watched {
    id: ServiceId,
    settings: Arc<[CheckSettings]>,
    /// The ready process.
    process: Option<(Pid, u64)>,
    probes: Vec<Probe>,
    under_way: Vec<Option<AbortHandle>>,
}

/// One run is over.
pub struct Over {
    service: ServiceName,
    check: String,
    number: u64,
    outcome: Outcome,
}

/// Something for [`Checks::take`].
pub enum Finding {
    Over(Over),
    /// A deadline has passed.
    Due,
}

/// What the pools are fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fed {
    Beat {
        service: ServiceName,
        check: String,
    },
    /// Whether all checks of a service say that it works.
    Passing {
        service: ServiceName,
        passing: bool,
    },
}

impl Checks {
    pub fn new(means: Means) -> Checks {
        let (tell, over) = mpsc::unbounded_channel();
        Checks {
            means,
            services: BTreeMap::new(),
            tell,
            over,
            waiting: VecDeque::new(),
        }
    }

    /// A service stands somewhere else now; returns whether its checks say that it works.
    pub fn stand(&mut self, now: Instant, standing: &Standing) -> bool {
        if standing.removed || standing.checks.is_empty() {
            self.services.remove(&standing.service);
            return true;
        }
        let process = standing.pid.filter(|_| standing.state == State::Ready);
        let process = process.map(|pid| (pid, standing.restarts));
        let watched = self
            .services
            .entry(standing.service.clone())
            .or_insert_with(|| Watched::new(standing));
        if watched.settings != standing.checks {
            watched.configure(now, standing);
        }
        if watched.process != process {
            watched.process = process;
            watched.begin(now);
        }
        watched.is_passing()
    }

    /// Waits until there is something to do. Nothing is lost when it is cancelled.
    pub async fn find(&mut self) -> Finding {
        let probes = self.services.values().flat_map(|watched| &watched.probes);
        let again = (!self.waiting.is_empty()).then(|| Instant::now() + PAUSE);
        let deadline = probes.filter_map(Probe::deadline).chain(again).min();
        let due = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The sender is ours: it never closes.
            Some(over) = self.over.recv() => Finding::Over(over),
            () = due => Finding::Due,
        }
    }

    pub fn take(&mut self, now: Instant, finding: Finding) -> Vec<Fed> {
        let mut fed = Vec::new();
        match finding {
            Finding::Over(over) => self.hear(now, over, &mut fed),
            Finding::Due => self.due(now),
        }
        self.flush();
        fed
    }

    fn due(&mut self, now: Instant) {
        let mut out = Vec::new();
        for (service, watched) in &mut self.services {
            for (probe, under_way) in watched.probes.iter_mut().zip(&mut watched.under_way) {
                probe.step(now, Input::Time, &mut out);
                for action in out.drain(..) {
                    if let Out::Run { number } = action {
                        let (means, tell) = (self.means.clone(), self.tell.clone());
                        let (id, service) = (watched.id, service.clone());
                        let settings = probe.settings().clone();
                        let task = tokio::spawn(async move {
                            let outcome = perform(&means, id, &settings).await;
                            let over = Over {
                                service,
                                check: settings.name,
                                number,
                                outcome,
                            };
                            // At the very end nobody listens.
                            let _ = tell.send(over);
                        });
                        *under_way = Some(task.abort_handle());
                    }
                }
            }
        }
    }

    fn hear(&mut self, now: Instant, over: Over, fed: &mut Vec<Fed>) {
        let Some(watched) = self.services.get_mut(&over.service) else {
            return;
        };
        let of_name = |probe: &&mut Probe| probe.settings().name == over.check;
        let Some(probe) = watched.probes.iter_mut().find(of_name) else {
            return;
        };
        let mut out = Vec::new();
        let input = Input::Outcome {
            number: over.number,
            outcome: over.outcome,
        };
        probe.step(now, input, &mut out);
        let settings = probe.settings();
        let (feeds, action) = (settings.feeds, settings.action);
        for said in out {
            match said {
                Out::Beat if feeds => fed.push(Fed::Beat {
                    service: over.service.clone(),
                    check: over.check.clone(),
                }),
                Out::Beat | Out::Run { .. } => {}
                Out::Failing(why) => {
                    warn!(service = %over.service, "check {} failed: {why}", over.check);
                }
                Out::Verdict { healthy } => {
                    self.waiting.push_back(Event::Verdict {
                        service: watched.id,
                        check: over.check.clone(),
                        healthy,
                        restart: action == CheckAction::Restart,
                    });
                    fed.push(Fed::Passing {
                        service: over.service.clone(),
                        passing: watched.is_passing(),
                    });
                }
            }
        }
    }

    fn flush(&mut self) {
        while let Some(event) = self.waiting.pop_front() {
            match self.means.inbox.try_send(event) {
                // Without a supervisor verdicts have no meaning.
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(event)) => {
                    self.waiting.push_front(event);
                    return;
                }
            }
        }
    }
}

impl Watched {
    fn new(standing: &Standing) -> Watched {
        let probes: Vec<Probe> = standing.checks.iter().cloned().map(Probe::new).collect();
        Watched {
            id: standing.id,
            settings: standing.checks.clone(),
            process: None,
            under_way: probes.iter().map(|_| None).collect(),
            probes,
        }
    }

    fn is_passing(&self) -> bool {
        self.probes.iter().all(Probe::is_healthy)
    }

    /// All begin anew with the process, or rest without one.
    fn begin(&mut self, now: Instant) {
        for under_way in &mut self.under_way {
            abort(under_way.take());
        }
        let input = match self.process {
            Some(_) => Input::Start,
            None => Input::Stop,
        };
        for probe in &mut self.probes {
            // Neither says anything.
            probe.step(now, input.clone(), &mut Vec::new());
        }
    }

    /// A reload changed some: the others go on as they are.
    fn configure(&mut self, now: Instant, standing: &Standing) {
        let mut before: Vec<_> = self
            .probes
            .drain(..)
            .zip(self.under_way.drain(..))
            .collect();
        self.settings = standing.checks.clone();
        for settings in standing.checks.iter() {
            let known = before
                .iter()
                .position(|(old, _)| old.settings() == settings);
            let (probe, under_way) = match known {
                Some(at) => before.swap_remove(at),
                None => {
                    let mut probe = Probe::new(settings.clone());
                    if self.process.is_some() {
                        probe.step(now, Input::Start, &mut Vec::new());
                    }
                    (probe, None)
                }
            };
            self.probes.push(probe);
            self.under_way.push(under_way);
        }
        for (_, under_way) in before {
            abort(under_way);
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for under_way in &mut self.under_way {
            abort(under_way.take());
        }
    }
}

fn abort(task: Option<AbortHandle>) {
    if let Some(task) = task {
        task.abort();
    }
}
