//! Notices that a file's content has changed: the configuration, its secrets, certificates.
//!
//! Events only say when to look; what counts is the hash of the content. So nothing depends on how an editor, a
//! package or Kubernetes replaces a file, and where events are missing (NFS, exhausted inotify) polling finds the
//! change later. Events of a file's own inode are asked for as well as those of its directory, because a write to
//! the source of a bind mount shows in neither directory of the mount.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read as _};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, mpsc, watch};

/// Only the beginning of a larger file is compared; none that we read is larger.
const COMPARED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// As the kernel's own limit for symbolic links in one path (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// A file that never comes to rest, or that nobody closes, is told of all the same: whoever reads it judges what it holds.
const LOOKS_MAX: u32 = 10;

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two looks without any event.
    pub poll: Duration,
    /// After an event, until no further one comes: an editor makes several. At most ten times as long.
    pub settle: Duration,
    /// Between two looks that must agree before a change is told: a file that comes over a slow link, or onto a disk that
    /// is full, may stand there empty or in part meanwhile, and be a whole configuration of another meaning.
    pub confirm: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(30),
            settle: Duration::from_millis(100),
            confirm: Duration::from_millis(300),
        }
    }
}

/// A reason to read the files again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Those with new content, among them files that vanished or came back. May be empty if `poked`.
    pub files: Vec<PathBuf>,
    /// Somebody asked, whether or not anything has changed.
    pub poked: bool,
}

/// Steers a running [`Watcher`]; clones steer the same.
#[derive(Debug, Clone)]
pub struct Handle {
    pokes: Arc<Notify>,
    files: Arc<watch::Sender<Contents>>,
}

impl Handle {
    /// Asks for a [`Change`] now, as SIGHUP does.
    pub fn poke(&self) {
        self.pokes.notify_one();
    }

    /// From now on these files are watched, and no others. Notes what they hold before it returns (a few short
    /// reads), so: follow first, read second, and no change falls between the two. Of a file that was followed before,
    /// what was noted then stands: noted anew, it would hide a change since then that was not looked at yet.
    pub fn follow(&self, files: &[PathBuf]) {
        let noted = self.files.borrow().clone();
        let note = |file: &PathBuf| noted.get(file).cloned().unwrap_or_else(|| read(file));
        let contents = files.iter().map(|file| (file.clone(), note(file))).collect();
        self.files.send_replace(contents);
    }
}

/// Watches until the receiver of its changes is dropped.
#[derive(Debug)]
pub struct Watcher {
    view: View,
    pace: Pace,
    events: Arc<Notify>,
    pokes: Arc<Notify>,
    files: watch::Receiver<Contents>,
    /// Keeps `files` open when every handle is gone.
    _files: Arc<watch::Sender<Contents>>,
    changes: mpsc::Sender<Change>,
}

type Contents = BTreeMap<PathBuf, Content>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Hash([u8; 32]),
    Unreadable(ErrorKind),
}

impl Watcher {
    /// Notes what the files hold now; [`Watcher::run`] tells of every change from here on.
    #[must_use]
    pub fn new(files: &[PathBuf], pace: Pace) -> (Self, Handle, mpsc::Receiver<Change>) {
        let (events, view) = View::new();
        Self::with_events(files, pace, events, view)
    }

    fn with_events(
        files: &[PathBuf],
        pace: Pace,
        events: Arc<Notify>,
        mut view: View,
    ) -> (Self, Handle, mpsc::Receiver<Change>) {
        // Watched before they are read: a change in between makes an event.
        view.watch_places(files);
        view.contents = read_all(files);
        let (sender, receiver) = watch::channel(view.contents.clone());
        let (changes, received) = mpsc::channel(1);
        let (pokes, sender) = (Arc::new(Notify::new()), Arc::new(sender));
        let handle = Handle {
            pokes: Arc::clone(&pokes),
            files: Arc::clone(&sender),
        };
        let watcher = Self {
            view,
            pace,
            events,
            pokes,
            files: receiver,
            _files: sender,
            changes,
        };
        (watcher, handle, received)
    }

    /// Runs on the control plane, whose runtime must have its timer enabled.
    pub async fn run(mut self) {
        let mut doubt = Doubt::default();
        loop {
            let poked = tokio::select! {
                () = self.changes.closed() => return,
                () = self.pokes.notified() => true,
                () = tokio::time::sleep(self.pace.confirm), if doubt.lasts() => false,
                _ = self.files.changed(), if !doubt.lasts() => false,
                () = self.events.notified(), if !doubt.lasts() => self.settle().await,
                () = tokio::time::sleep(self.pace.poll), if !doubt.lasts() => false,
            };
            let followed = self.files.borrow_and_update().clone();
            let files: Vec<PathBuf> = followed.keys().cloned().collect();
            // Reading files blocks, and the disk may be a stuck network share.
            let mut view = self.view;
            let Ok((view, (seen, is_open))) = tokio::task::spawn_blocking(move || {
                let seen = view.look(&files);
                (view, seen)
            })
            .await
            else {
                return;
            };
            self.view = view;
            let files = self.view.changed(&seen, &followed);
            // Who asks knows that the files are as they should be.
            if !files.is_empty() && !poked && !doubt.is_dispelled(&seen, is_open) {
                continue;
            }
            doubt = Doubt::default();
            self.view.contents = seen;
            let nothing = files.is_empty() && !poked;
            // Waits while the last change is being worked on; meanwhile further events fold into one.
            if !nothing && self.changes.send(Change { files, poked }).await.is_err() {
                return;
            }
        }
    }

    /// Waits until an editor is done. Returns whether somebody asked meanwhile, who has an answer at once: the file is
    /// written, and where something else in its directory is written all the time (a log), it would never be quiet.
    async fn settle(&self) -> bool {
        let quiet = async {
            while tokio::time::timeout(self.pace.settle, self.events.notified())
                .await
                .is_ok()
            {}
        };
        // A directory where something always happens must not put off the look for ever.
        tokio::select! {
            () = self.pokes.notified() => true,
            _ = tokio::time::timeout(self.pace.settle.saturating_mul(10), quiet) => false,
        }
    }
}

/// Whether a change is whole: what one look saw, until another one sees the same.
#[derive(Debug, Default)]
struct Doubt {
    seen: Option<Contents>,
    looks: u32,
}

impl Doubt {
    fn lasts(&self) -> bool {
        self.seen.is_some()
    }

    /// Whoever wrote and `is_open` still may go on, however long the pause.
    fn is_dispelled(&mut self, seen: &Contents, is_open: bool) -> bool {
        self.looks += 1;
        let is_at_rest = self.seen.as_ref() == Some(seen) && !is_open;
        self.seen = Some(seen.clone());
        is_at_rest || self.looks >= LOOKS_MAX
    }
}

/// Files, of any name, that somebody has written to and not closed since.
type Open = Arc<Mutex<BTreeSet<PathBuf>>>;

/// What is known of the files, and where events are asked for. All of it blocks.
#[derive(Debug, Default)]
struct View {
    /// `None`: no events on this system; polling alone.
    inotify: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    contents: Contents,
    open: Open,
}

impl View {
    /// Rings when something happens where it watches.
    fn new() -> (Arc<Notify>, Self) {
        let (events, open) = (Arc::new(Notify::new()), Open::default());
        let view = Self {
            inotify: inotify(Arc::clone(&events), Arc::clone(&open)),
            open,
            ..Self::default()
        };
        (events, view)
    }

    /// What the files hold now, and whether somebody is still writing one of them.
    fn look(&mut self, files: &[PathBuf]) -> (Contents, bool) {
        self.watch_places(files);
        let contents = read_all(files);
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let is_open = !open.is_empty()
            && files
                .iter()
                .flat_map(|file| places(file))
                .any(|place| open.contains(&place));
        (contents, is_open)
    }

    /// The files that are not as they were. One that is new among the `followed` is compared with what it held when that
    /// was asked for.
    fn changed(&self, seen: &Contents, followed: &Contents) -> Vec<PathBuf> {
        let before = |file: &PathBuf| self.contents.get(file).or_else(|| followed.get(file));
        let changed = seen.iter().filter(|(file, content)| before(file) != Some(*content));
        changed.map(|(file, _)| file.clone()).collect()
    }

    /// Asks for events wherever something may change what a path leads to. Done anew each time: a directory or file
    /// that was replaced under the same name is another inode, and asking twice for the same one is harmless.
    fn watch_places(&mut self, files: &[PathBuf]) {
        let Some(inotify) = &mut self.inotify else { return };
        let places: BTreeSet<PathBuf> = files.iter().flat_map(|file| places(file)).collect();
        for gone in self.watched.difference(&places) {
            let _already_gone = inotify.unwatch(gone).is_err();
        }
        // A place without events is found by polling.
        let watchable = places
            .into_iter()
            .filter(|place| inotify.watch(place, RecursiveMode::NonRecursive).is_ok());
        self.watched = watchable.collect();
    }
}

fn inotify(events: Arc<Notify>, open: Open) -> Option<RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Ok(event) if !event.need_rescan() => match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) => open.extend(event.paths),
                EventKind::Modify(ModifyKind::Metadata(_)) => {}
                // Our own reading opens files and closes them: taking that for a change would never end.
                EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write) => return,
                // Closed, gone, or another file under this name.
                _ => open.retain(|path| !event.paths.contains(path)),
            },
            // What was missed may have closed any of them.
            _ => open.clear(),
        }
        events.notify_one();
    };
    match notify::recommended_watcher(on_event) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "no file events on this system: changes are found by polling");
            None
        }
    }
}

/// The file itself, its directory, and the directory of every symbolic link on the way to it.
fn places(file: &Path) -> BTreeSet<PathBuf> {
    let mut places = BTreeSet::new();
    let Ok(mut path) = std::path::absolute(file) else {
        return places;
    };
    for _ in 0..LINKS_MAX {
        match first_link(&path) {
            Some((link, target)) => {
                places.extend(link.parent().map(Path::to_owned));
                path = target;
            }
            None => break,
        }
    }
    // Where the directory is missing, the nearest that exists sees it come.
    let directory = path.ancestors().skip(1).find(|ancestor| ancestor.is_dir());
    places.extend(directory.map(Path::to_owned));
    if path.is_file() {
        places.insert(path);
    }
    places
}

/// The first symbolic link in `path`, and where the whole path leads through it.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut prefix = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        if component == Component::ParentDir {
            prefix.pop();
            continue;
        }
        prefix.push(component);
        if let Ok(target) = prefix.read_link() {
            let base = prefix.parent().unwrap_or(Path::new("/"));
            let whole = base.join(target).join(components.as_path());
            return Some((prefix, whole));
        }
    }
    None
}

fn read_all(files: &[PathBuf]) -> Contents {
    files.iter().map(|file| (file.clone(), read(file))).collect()
}

fn read(file: &Path) -> Content {
    hash(file).map_or_else(|error| Content::Unreadable(error.kind()), Content::Hash)
}

fn hash(file: &Path) -> std::io::Result<[u8; 32]> {
    // Asked before opening, which would wait for the other end of a FIFO.
    if !std::fs::metadata(file)?.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    std::fs::File::open(file)?
        .take(COMPARED_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(Sha256::digest(&bytes).into())
}

#[cfg(test)]
mod tests;
