//! Health query.
