//! connections → requests in the inbox; replies → the connections that asked.
//!
//! Guarantees: requests of one connection are answered in order; nobody but root, the
//! agent's user and the socket's group gets more than a probe; a slow, silent or hostile
//! client costs one of [`MAX_CONNECTIONS`] places for a bounded time and never holds up
//! another. Whoever has no authority gives way first when places are short, so a flood of
//! strangers does not keep the operator out.
//!
//! A request whose client left stays with the supervisor; its reply is dropped here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::frame::{self, Frame, Frames, MAX_REQUEST};
use super::pace::Pace;
pub use super::peer::Access;
use super::peer::{Authority, authority, has_left};
use crate::event::Event;
use crate::request::{Reply, Request, RequestId};

/// Connections of operators, who are few; some follow events or wait for a state for hours.
const OPERATORS: usize = 128;
/// Connections of strangers, who only probe. Neither takes a place of the other.
const STRANGERS: usize = 64;
/// A connection that has completed no request for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// A client that does not read its reply for so long is left.
const WRITE: Duration = Duration::from_secs(10);
/// How often a waiting request looks whether its client is still there.
const LOOK: Duration = Duration::from_secs(1);
/// After an accept that failed (EMFILE): long enough not to spin, short enough to be back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections and requests of strangers that may come at once, and the gap they keep in the
/// long run. Each costs about 40 µs, so all strangers together take a few percent of a core.
const STRANGERS_AT_ONCE: u32 = 200;
const STRANGERS_GAP: Duration = Duration::from_micros(500);
/// For replies still being written when the agent ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What the connections share.
struct Hub {
    inbox: mpsc::Sender<Event>,
    table: Mutex<Table>,
    strangers: Mutex<Pace>,
}

#[derive(Default)]
struct Table {
    last_id: u64,
    waiting: HashMap<RequestId, oneshot::Sender<Reply>>,
    places: HashMap<Id, Place>,
}

struct Place {
    handle: AbortHandle,
    authority: Authority,
    /// `None` while a request is with the supervisor.
    idle_since: Option<Instant>,
}

impl Hub {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, id: RequestId, reply: Reply) {
        if let Some(asker) = self.table().waiting.remove(&id) {
            // An asker that left in this moment needs no reply.
            let _ = asker.send(reply);
        }
    }

    /// When a stranger who comes now may go on.
    fn stranger_may_go_on(&self) -> Instant {
        let mut pace = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        pace.next(Instant::now().into_std()).into()
    }

    fn set_idle(&self, idle_since: Option<Instant>) {
        if let Some(id) = tokio::task::try_id()
            && let Some(place) = self.table().places.get_mut(&id)
        {
            place.idle_since = idle_since;
        }
    }
}

/// Serves until the supervisor is gone: either channel closed.
pub async fn run(
    listener: UnixListener,
    access: Access,
    inbox: mpsc::Sender<Event>,
    mut replies: mpsc::Receiver<(RequestId, Reply)>,
) {
    let hub = Arc::new(Hub {
        inbox: inbox.clone(),
        table: Mutex::default(),
        strangers: Mutex::new(Pace::new(
            Instant::now().into_std(),
            STRANGERS_AT_ONCE,
            STRANGERS_GAP,
        )),
    });
    let mut tasks = JoinSet::new();
    let mut accepting = Accepting::Well;
    loop {
        tokio::select! {
            () = accepting.pause(), if accepting.pauses() => accepting = Accepting::Again,
            accepted = listener.accept(), if !accepting.pauses() => match accepted {
                Ok((stream, _)) => accepting = seat(stream, access, &hub, &mut tasks),
                Err(error) => {
                    if accepting == Accepting::Well {
                        tracing::warn!(%error, "cannot accept on the control socket; trying on");
                    }
                    accepting = Accepting::Paused { until: Instant::now() + ACCEPT_PAUSE };
                }
            },
            answered = replies.recv() => match answered {
                Some((id, reply)) => hub.answer(id, reply),
                None => break,
            },
            () = inbox.closed() => break,
            Some(ended) = tasks.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                };
                hub.table().places.remove(&id);
            }
        }
    }
    // The last answers, and those who still wait learn that nobody answers any more.
    while let Ok((id, reply)) = replies.try_recv() {
        hub.answer(id, reply);
    }
    hub.table().waiting.clear();
    drop(listener);
    let _ = timeout(LAST_WORDS, async {
        while !hub.table().places.values().all(|p| p.idle_since.is_some()) {
            match tasks.join_next_with_id().await {
                Some(Ok((id, ()))) => hub.table().places.remove(&id),
                Some(Err(error)) => hub.table().places.remove(&error.id()),
                None => break,
            };
        }
    })
    .await;
}

/// accept(2) fails while descriptors are short; that is told once per shortage. After too
/// many strangers it waits, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Well,
    Paused { until: Instant },
    Again,
}

impl Accepting {
    fn pauses(self) -> bool {
        match self {
            Accepting::Paused { .. } => true,
            Accepting::Well | Accepting::Again => false,
        }
    }

    fn after_a_stranger(hub: &Hub) -> Accepting {
        let until = hub.stranger_may_go_on();
        match until > Instant::now() {
            true => Accepting::Paused { until },
            false => Accepting::Well,
        }
    }

    async fn pause(self) {
        match self {
            Accepting::Paused { until } => sleep_until(until).await,
            Accepting::Well | Accepting::Again => {}
        }
    }
}

/// Gives a new connection a place; when all of its kind are taken, that of whoever has been idle for longest.
fn seat(stream: UnixStream, access: Access, hub: &Arc<Hub>, tasks: &mut JoinSet<()>) -> Accepting {
    let authority = match authority(&stream, access) {
        Ok(authority) => authority,
        Err(error) => {
            tracing::warn!(%error, "cannot tell who asks on the control socket");
            return Accepting::Well;
        }
    };
    let (next, most) = match authority {
        Authority::Operator => (Accepting::Well, OPERATORS),
        Authority::Stranger { .. } => (Accepting::after_a_stranger(hub), STRANGERS),
    };
    let mut table = hub.table();
    let alike = |place: &Place| {
        std::mem::discriminant(&place.authority) == std::mem::discriminant(&authority)
    };
    if table.places.values().filter(|place| alike(place)).count() >= most {
        let idle = table.places.iter().filter(|(_, place)| alike(place));
        let leaving = idle.filter_map(|(id, place)| Some((place.idle_since?, *id)));
        let leaving = leaving.min().map(|(_, id)| id);
        let Some(place) = leaving.and_then(|id| table.places.remove(&id)) else {
            // All are being answered: the newcomer is closed, and may try again.
            return next;
        };
        place.handle.abort();
    }
    let handle = tasks.spawn(converse(stream, authority, Arc::clone(hub)));
    table.places.insert(
        handle.id(),
        Place {
            handle,
            authority,
            idle_since: Some(Instant::now()),
        },
    );
    next
}

/// One connection, from its first byte to its end.
async fn converse(mut stream: UnixStream, authority: Authority, hub: Arc<Hub>) {
    let mut frames = Frames::new(MAX_REQUEST);
    let mut chunk = [0u8; 4096];
    let mut idle_until = Instant::now() + IDLE;
    loop {
        while let Some(frame) = frames.take() {
            match authority {
                Authority::Stranger { .. } => sleep_until(hub.stranger_may_go_on()).await,
                Authority::Operator => {}
            }
            hub.set_idle(None);
            let Some(reply) = answer(frame, authority, &hub, &stream).await else {
                return;
            };
            hub.set_idle(Some(Instant::now()));
            let line = frame::line(&reply);
            match timeout(WRITE, stream.write_all(&line)).await {
                Ok(Ok(())) => idle_until = Instant::now() + IDLE,
                Ok(Err(_)) | Err(_) => return,
            }
        }
        // Half closed (`nc -N`) is an end too: every request that came before was answered.
        match timeout_at(idle_until, stream.read(&mut chunk)).await {
            Ok(Ok(0)) | Ok(Err(_)) | Err(_) => return,
            Ok(Ok(length)) => frames.push(&chunk[..length]),
        }
    }
}

/// `None` when the client left before the supervisor answered.
async fn answer(
    frame: Frame,
    authority: Authority,
    hub: &Hub,
    stream: &UnixStream,
) -> Option<Reply> {
    let line = match frame {
        Frame::TooLong => return Some(frame::too_long()),
        Frame::Line(line) => line,
    };
    let request = match frame::request(&line) {
        Ok(request) => request,
        Err(error) => return Some(Reply::refused(error)),
    };
    match authority {
        Authority::Stranger { uid } if request.needs_authority() => {
            return Some(Reply::refused(format!(
                "uid {uid} may only probe: everything else needs root, the agent's user or its group"
            )));
        }
        Authority::Stranger { .. } | Authority::Operator => {}
    }
    ask_supervisor(request, hub, stream).await
}

async fn ask_supervisor(request: Request, hub: &Hub, stream: &UnixStream) -> Option<Reply> {
    let (asker, mut answered) = oneshot::channel();
    let id = {
        let mut table = hub.table();
        table.last_id += 1;
        let id = RequestId(table.last_id);
        table.waiting.insert(id, asker);
        id
    };
    let _forget = Forget { hub, id };
    // Whoever asked for the end got it, whether or not there was time to say so.
    let at_the_end = if request == Request::Shutdown {
        Reply::done(serde_json::Value::Null)
    } else {
        Reply::refused("the agent is ending")
    };
    let told = hub.inbox.send(Event::Request { id, request });
    let mut waiting = std::pin::pin!(async {
        match told.await {
            Ok(()) => (&mut answered).await.ok(),
            Err(_) => None,
        }
    });
    loop {
        match timeout(LOOK, &mut waiting).await {
            Ok(reply) => return Some(reply.unwrap_or(at_the_end)),
            Err(_) if has_left(stream) => return None,
            Err(_) => {}
        }
    }
}

/// Takes an abandoned request out of the table, also when its task is aborted.
struct Forget<'a> {
    hub: &'a Hub,
    id: RequestId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.hub.table().waiting.remove(&self.id);
    }
}
