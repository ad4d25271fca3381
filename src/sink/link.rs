//! connecting, again and again: backoff, and what is said about it.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::watch;

use super::redis::{Away, Why, Wire, reach};
use super::sentinel;
use crate::backoff::Backoff;
use crate::config::{Endpoint, Redis};
use crate::event::Event;
use crate::handoff::SinkGauge;

/// An outage: back quickly, but a thousand boards must not storm a server that comes up.
const OUTAGE: Backoff = Backoff {
    initial: Duration::from_millis(50),
    max: Duration::from_secs(2),
};
/// Wrong credentials: some servers lock out those who insist.
const CREDENTIALS: Backoff = Backoff {
    initial: Duration::from_secs(2),
    max: Duration::from_secs(30),
};

/// Whether this link speaks for the sink. The second connection shares the first one's fate
/// nearly always, and nobody wants to hear everything twice.
pub enum Voice {
    Speaks {
        inbox: mpsc::Sender<Event>,
        gauge: watch::Sender<SinkGauge>,
    },
    Silent,
}

pub struct Link {
    settings: Redis,
    db: u32,
    voice: Voice,
    /// Where the last connection led.
    place: Option<Endpoint>,
    failures: u32,
    seed: u64,
    /// What was said last, so that it is said once.
    said: Option<String>,
}

impl Link {
    pub fn new(settings: Redis, db: u32, voice: Voice) -> Link {
        let seed = u64::from(std::process::id()) << 8 | u64::from(db);
        Link {
            settings,
            db,
            voice,
            place: None,
            failures: 0,
            seed,
            said: None,
        }
    }

    /// Tries until there is a connection. Cancelling it is fine: the backoff goes on.
    pub async fn establish(&mut self) -> Box<dyn Wire> {
        if self.settings.endpoint == Endpoint::None {
            if let Voice::Speaks { gauge, .. } = &self.voice {
                gauge.send_modify(|gauge| gauge.state = SinkGauge::NO_REDIS.to_owned());
                tracing::info!("no Redis is configured: lines stay in the journal");
            }
            return std::future::pending().await;
        }
        loop {
            match reach(&self.settings, self.db).await {
                Ok((wire, place)) => {
                    self.place = Some(place);
                    return wire;
                }
                Err(away) => self.wait(away).await,
            }
        }
    }

    /// Ends once another server is the master; never where no sentinel could say so.
    pub fn moved(&self) -> impl Future<Output = ()> + 'static {
        let settings = self.settings.clone();
        let place = self.place.clone();
        async move {
            match (&settings.sentinel, &place) {
                (Some(sentinel), Some(place)) => {
                    sentinel::moved(sentinel, settings.tls.as_ref(), place).await;
                }
                _ => std::future::pending().await,
            }
        }
    }

    /// The connection has proved itself: an answer came.
    pub fn proved(&mut self) {
        self.failures = 0;
    }

    async fn wait(&mut self, away: Away) {
        self.failures = self.failures.saturating_add(1);
        let (backoff, state) = match away.why {
            Why::Outage => (OUTAGE, "away"),
            Why::Credentials => (CREDENTIALS, "credentials refused"),
        };
        self.say(&away.text, state);
        tokio::time::sleep(backoff.delay(self.failures, self.seed)).await;
    }

    fn say(&mut self, text: &str, state: &str) {
        if let Voice::Speaks { gauge, .. } = &self.voice {
            gauge.send_modify(|gauge| gauge.state = state.to_owned());
            if self.said.as_deref() != Some(text) {
                tracing::warn!("{text}; lines wait, and nothing else does");
                self.said = Some(text.to_owned());
            }
        }
    }

    pub async fn up(&mut self) {
        if let Voice::Speaks { inbox, gauge } = &self.voice {
            gauge.send_modify(|gauge| {
                gauge.connected = true;
                gauge.state = "connected".to_owned();
            });
            tracing::info!("connected to Redis at {}", self.settings.endpoint);
            self.said = None;
            let _ = inbox.send(Event::Redis { connected: true }).await;
        }
    }

    /// The connection ended for `reason`. A server that hangs up at once is not stormed.
    pub async fn down(&mut self, reason: &str) {
        if let Voice::Speaks { inbox, gauge } = &self.voice {
            gauge.send_modify(|gauge| {
                gauge.connected = false;
                gauge.state = "away".to_owned();
            });
            tracing::warn!("lost Redis at {}: {reason}", self.settings.endpoint);
            let _ = inbox.send(Event::Redis { connected: false }).await;
        }
        self.failures = self.failures.saturating_add(1);
        tokio::time::sleep(OUTAGE.delay(self.failures, self.seed)).await;
    }
}
