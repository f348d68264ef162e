//! Point-in-time recovery: the write-ahead log in the repository, base backups, the window between them, and recovery
//! that is rehearsed.

pub mod archive;
pub mod archiver;
pub mod base;
pub mod beat;
pub mod chain;
pub mod config;
pub mod drill;
pub mod feed;
mod handles;
pub mod header;
pub mod heartbeat;
pub mod history;
pub mod instant;
pub mod inventory;
pub mod keeper;
pub mod metrics;
pub mod name;
pub mod plan;
pub mod records;
pub mod recover;
pub mod recovery;
pub mod retention;
pub mod routine;
pub mod script;
pub mod setup;
pub mod socket;
mod solve;
pub mod stream;
mod survey;
pub mod tar;
pub mod version;
pub mod watch;
pub mod window;

pub use self::archive::Archive;
pub use self::archiver::Archiver;
pub use self::base::Bases;
pub use self::handles::Handles;
pub use self::keeper::Keeper;
pub(crate) use self::recovery::local;
pub use self::recovery::{Error, Recovery};
pub use self::routine::Routine;
