//! targets → their pools, read from Redis in one round trip.
//!
//! Needs no more of Redis than AUTH, SELECT and GET.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use super::answer::{Pool, Pools, Reading};
use super::args::Target;
use crate::config::{Redis, Secret};
use crate::handoff::{Answer, Words};
use crate::record::{POOL_PROPERTIES, pool_key};

/// Why there are no pools, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    Credential(String),
    Connection(String),
}

/// Asks Redis commands and gives its answers in order, within a time, or says in words why there are none.
pub type Ask = dyn Fn(&Redis, &[Words], Duration) -> Result<Vec<Answer>, String>;

pub fn pools(
    redis: &Redis,
    targets: BTreeSet<Target>,
    limit: Duration,
    ask: &Ask,
) -> Result<Pools, Failure> {
    let mut redis = redis.clone();
    if let Some(Secret::File(path)) = &redis.password {
        redis.password = Some(Secret::Inline(read_password(path)?));
    }
    let key = |target: &Target, property| {
        let key = pool_key(&target.service, &target.category, property);
        format!("{}{key}", redis.key_prefix)
    };
    let commands: Vec<Words> = targets
        .iter()
        .flat_map(|target| POOL_PROPERTIES.map(|property| key(target, property)))
        .map(|key| vec!["GET".to_owned(), key])
        .collect();
    let answers = ask(&redis, &commands, limit).map_err(Failure::Connection)?;
    let mut answers = answers.into_iter();
    let mut pools = Pools::new();
    for target in targets {
        let mut pool = Pool([Reading::Missing; POOL_PROPERTIES.len()]);
        for reading in &mut pool.0 {
            *reading = self::reading(answers.next().unwrap_or(Answer::Nothing))?;
        }
        pools.insert(format!("{}:{}", target.service, target.category), pool);
    }
    Ok(pools)
}

fn reading(answer: Answer) -> Result<Reading, Failure> {
    match answer {
        Answer::Nothing => Ok(Reading::Missing),
        Answer::Text(text) => Ok(Reading::of(&text)),
        Answer::Refused(error) if error.starts_with("WRONGTYPE") => Ok(Reading::Invalid),
        // NOPERM, LOADING and their like concern all of them.
        Answer::Refused(error) => Err(Failure::Connection(error)),
        Answer::Integer(_) | Answer::Other => Ok(Reading::Invalid),
    }
}

/// Read at every start: it may rotate. White space around it is not part of it.
fn read_password(path: &Path) -> Result<String, Failure> {
    let wrong = |what: String| Failure::Credential(what);
    let text = fs::read_to_string(path).map_err(|error| {
        wrong(format!(
            "failed to read password file {}: {error}",
            path.display()
        ))
    })?;
    match text.trim() {
        "" => Err(wrong(format!("password file {} is empty", path.display()))),
        password => Ok(password.to_owned()),
    }
}
