//! The data plane: everything between a client and the app. Never waits for disk, database or the control plane.

pub mod config;

pub use config::Config;
