//! requests of operators → events for the supervisor; replies → answers on the socket.
//!
//! `bind` makes the socket, `server` serves it, `client` asks it, `frame` is the form in
//! which both speak, `peer` tells who asks, `pace` holds strangers back (CONTRACTS section 8).

pub mod bind;
pub mod client;
pub mod frame;
pub mod pace;
pub mod peer;
pub mod server;
