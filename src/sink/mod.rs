//! records → Redis.

pub mod backlog;
pub mod batch;
pub mod claims;
pub mod counts;
pub mod delivery;
pub mod desk;
pub mod id;
pub mod journal;
pub mod ledger;
pub mod link;
pub mod lookup;
pub mod note;
pub mod orders;
pub mod recent;
pub mod redis;
pub mod refusal;
pub mod resp;
pub mod run;
pub mod runs;
pub mod segment;
pub mod session;
pub mod shelf;
pub mod spool;
pub mod stream;
pub mod value_loop;
pub mod values;
