//! Point-in-time recovery: the write-ahead log in the repository, base backups, the window between them, and recovery
//! that is rehearsed.

pub mod archive;
pub mod archiver;
pub mod beat;
pub mod chain;
pub mod config;
pub mod feed;
pub mod header;
pub mod heartbeat;
pub mod history;
pub mod inventory;
pub mod keeper;
pub mod metrics;
pub mod name;
pub mod setup;
pub mod socket;
pub mod stream;
pub mod version;
pub mod watch;

pub use self::archive::Archive;
pub use self::archiver::Archiver;
pub use self::keeper::Keeper;
