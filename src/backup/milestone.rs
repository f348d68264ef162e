//! The steps of a restore by name, so that tests can stop a process at each of them. In a release build nothing stops.

/// Between these a restore can be cut short; each leaves something else half done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The note is written; nothing is made.
    Noted,
    /// Missing roles exist.
    Roles,
    /// The new database exists, empty.
    Made,
    Filled,
    Proven,
    /// Settings and privileges are carried over.
    Carried,
    /// The old database lets nobody in any more.
    Closed,
    /// And nobody is in it.
    Emptied,
    /// The names are exchanged; the note is still there.
    Renamed,
}

/// In a debug build: where `FOREGATE_PAUSE_AT` names this step, makes the file `FOREGATE_PAUSE_FILE` and waits until it
/// is gone.
pub(super) async fn reached(step: Step) {
    #[cfg(debug_assertions)]
    pause(step).await;
    #[cfg(not(debug_assertions))]
    let _: Step = step;
}

#[cfg(debug_assertions)]
async fn pause(step: Step) {
    use std::path::PathBuf;
    let at = std::env::var("FOREGATE_PAUSE_AT").unwrap_or_default();
    let Some(file) = std::env::var_os("FOREGATE_PAUSE_FILE").map(PathBuf::from) else {
        return;
    };
    if at == format!("{step:?}") && std::fs::write(&file, "").is_ok() {
        while file.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}
