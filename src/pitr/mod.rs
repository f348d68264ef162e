//! Point-in-time recovery: the write-ahead log in the repository, base backups, the window between them, and recovery
//! that is rehearsed.

pub mod chain;
pub mod history;
pub mod name;
