//! Notices that a configuration file has changed.
