//! records → Redis.

pub mod backlog;
pub mod batch;
pub mod counts;
pub mod delivery;
pub mod id;
pub mod link;
pub mod lookup;
pub mod recent;
pub mod redis;
pub mod refusal;
pub mod resp;
pub mod run;
pub mod session;
pub mod stream;
pub mod values;
