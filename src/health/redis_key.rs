//! A key, a Redis → whether the key is there.
//!
//! On a connection of its own, as short as the check: the sink's is busy with lines. Needs
//! AUTH, SELECT and EXISTS. Redis being away says nothing about a service (nobody is
//! restarted for an outage of another).

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, RedisError,
};

use super::probe::Outcome;
use crate::config::{Endpoint, Redis, Secret};

pub async fn exists(settings: &Redis, key: &str) -> Outcome {
    match ask(settings, key).await {
        Ok(true) => Outcome::Passed,
        Ok(false) => Outcome::Failed(format!("there is no key {key}")),
        Err(_) => Outcome::Unknown,
    }
}

async fn ask(settings: &Redis, key: &str) -> Result<bool, RedisError> {
    let client = Client::open(address(settings)?)?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("EXISTS")
        .arg(format!("{}{key}", settings.key_prefix))
        .query_async(&mut connection)
        .await
}

fn address(settings: &Redis) -> Result<ConnectionInfo, RedisError> {
    let mut info = RedisConnectionInfo::default()
        .set_db(settings.value_db.into())
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    if !settings.username.is_empty() {
        info = info.set_username(&settings.username);
    }
    match &settings.password {
        Some(Secret::Inline(password)) => info = info.set_password(password),
        Some(Secret::File(path)) => {
            let password = std::fs::read_to_string(path)?;
            info = info.set_password(password.trim());
        }
        None => {}
    }
    let address = match &settings.endpoint {
        Endpoint::Tcp { host, port } => ConnectionAddr::Tcp(host.clone(), *port),
        Endpoint::Unix(path) => ConnectionAddr::Unix(path.clone()),
        Endpoint::None => return Err(std::io::Error::other("there is no Redis").into()),
    };
    Ok(address.into_connection_info()?.set_redis_settings(info))
}
