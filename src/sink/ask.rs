//! settings, commands → their replies: a question beside the outbox.
//!
//! On a connection of its own, as short as the question, by the same way as everything else: TCP, unix socket, TLS,
//! past sentinels. Needs no more of Redis than AUTH, SELECT and the commands themselves.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::redis::connect;
use super::resp::{Reply, command, parse};
use crate::config::Redis;
use crate::handoff::{Answer, AskRedis, Words};

/// One reply for each command, in order.
///
/// # Errors
/// Redis cannot be reached, refuses us, or breaks off: in words.
pub async fn ask(settings: &Redis, commands: &[Words]) -> Result<Vec<Answer>, String> {
    let wire = connect(settings, settings.value_db).await;
    let mut wire = wire.map_err(|away| away.text)?;
    let mut out = Vec::new();
    for words in commands {
        let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
        command(&mut out, &words);
    }
    let broken = |error: std::io::Error| format!("Redis at {}: {error}", settings.endpoint);
    wire.write_all(&out).await.map_err(broken)?;
    let (mut buffer, mut answers) = (Vec::new(), Vec::new());
    while answers.len() < commands.len() {
        match parse(&buffer) {
            Err(malformed) => return Err(malformed.to_string()),
            Ok(Some((reply, used))) => {
                answers.push(answer(&reply));
                buffer.drain(..used);
            }
            Ok(None) => {
                if wire.read_buf(&mut buffer).await.map_err(broken)? == 0 {
                    return Err(broken(std::io::ErrorKind::UnexpectedEof.into()));
                }
            }
        }
    }
    Ok(answers)
}

fn answer(reply: &Reply<'_>) -> Answer {
    match reply {
        Reply::Nil => Answer::Nothing,
        Reply::Text(text) => Answer::Text(text.to_vec()),
        Reply::Integer(number) => Answer::Integer(*number),
        Reply::Error(error) => Answer::Refused(String::from_utf8_lossy(error).into_owned()),
        Reply::Array(_) => Answer::Other,
    }
}

/// For a line that asks and knows of no settings.
pub fn asker(settings: Redis) -> AskRedis {
    let settings = Arc::new(settings);
    Arc::new(move |commands| {
        let settings = Arc::clone(&settings);
        let asked = async move { ask(&settings, &commands).await };
        Box::pin(asked) as Pin<Box<dyn Future<Output = _> + Send>>
    })
}

/// The same for a program that does nothing else meanwhile. A name server knows no deadline: it is left behind in a
/// thread that nobody waits for.
///
/// # Errors
/// As [`ask`], and when there was no answer within `limit`.
pub fn ask_within(
    settings: &Redis,
    commands: &[Words],
    limit: Duration,
) -> Result<Vec<Answer>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let answers = runtime.block_on(async {
        match tokio::time::timeout(limit, ask(settings, commands)).await {
            Ok(answers) => answers,
            Err(_) => Err(format!(
                "{}: no answer within {} s",
                settings.endpoint,
                limit.as_secs_f32()
            )),
        }
    });
    runtime.shutdown_background();
    answers
}
