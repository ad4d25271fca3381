//! core file → report of a crash.
//!
//! Pure files think about bytes; `images` finds and maps files, `examine` puts one analysis together.

pub mod abort_message;
pub mod analysis;
pub mod browse;
pub mod capture;
pub mod core;
pub mod core_notes;
pub mod core_write;
pub mod disk;
pub mod elf;
pub mod examine;
pub mod examiner;
pub mod files;
pub mod fingerprint;
pub mod frames;
pub mod images;
pub mod keeper;
pub mod kernel;
pub mod known;
pub mod last_words;
pub mod le;
pub mod machine;
pub mod memory;
pub mod modules;
pub mod report;
pub mod run;
pub mod signals;
pub mod store;
pub mod symbols;
pub mod text;
pub mod unwind;
pub mod values;
