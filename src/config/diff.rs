//! old configuration, new configuration → what a reload changes.
