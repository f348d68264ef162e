//! Each way in which files are replaced, on a real file system. Nothing sleeps: a change is awaited with a deadline.

use std::future::Future;
use std::os::unix::fs::symlink;

use super::*;

/// Polling this rarely proves that an event was the cause.
const EVENTS_ONLY: Pace = Pace {
    poll: Duration::from_secs(3600),
    settle: Duration::from_millis(20),
    confirm: Duration::from_millis(20),
};

struct Scene {
    directory: tempfile::TempDir,
    handle: Handle,
    changes: mpsc::Receiver<Change>,
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a file");
    }

    /// As careful programs do: a new file in the place of the old.
    fn replace(&self, name: &str, text: &str) {
        self.write("temporary", text);
        std::fs::rename(self.path("temporary"), self.path(name)).expect("a rename");
    }

    fn replace_link(&self, target: &str, name: &str) {
        symlink(target, self.path("temporary")).expect("a link");
        std::fs::rename(self.path("temporary"), self.path(name)).expect("a rename");
    }

    async fn change(&mut self) -> Change {
        let change = tokio::time::timeout(Duration::from_secs(20), self.changes.recv()).await;
        change.expect("a change in time").expect("a running watcher")
    }

    async fn expect(&mut self, name: &str) {
        let change = self.change().await;
        let expected = Change {
            files: vec![self.path(name)],
            poked: false,
        };
        assert_eq!(change, expected);
    }

    /// Proves that nothing is waiting: a poke comes alone.
    async fn expect_nothing(&mut self) {
        self.handle.poke();
        let expected = Change {
            files: Vec::new(),
            poked: true,
        };
        assert_eq!(self.change().await, expected);
    }
}

/// Runs `body` beside a watcher of `name`, after `prepare` has made the files.
async fn watching<F: Future<Output = ()>>(name: &str, prepare: impl FnOnce(&Path), body: impl FnOnce(Scene) -> F) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    prepare(directory.path());
    let (watcher, handle, changes) = Watcher::new(&[directory.path().join(name)], EVENTS_ONLY);
    let scene = Scene {
        directory,
        handle,
        changes,
    };
    tokio::select! {
        () = body(scene) => {}
        () = watcher.run() => panic!("the watcher stopped"),
    }
}

fn one_file(directory: &Path) {
    std::fs::write(directory.join("config.toml"), "one").expect("a file");
}

#[tokio::test]
async fn editor_that_writes_in_place_is_noticed() {
    watching("config.toml", one_file, async |mut scene| {
        scene.write("config.toml", "two");
        scene.expect("config.toml").await;
        scene.write("config.toml", "three");
        scene.expect("config.toml").await;
    })
    .await;
}

#[tokio::test]
async fn rename_over_the_file_is_noticed_each_time() {
    watching("config.toml", one_file, async |mut scene| {
        for text in ["two", "three", "four"] {
            scene.replace("config.toml", text);
            scene.expect("config.toml").await;
        }
    })
    .await;
}

#[tokio::test]
async fn same_content_and_other_files_are_no_change() {
    watching("config.toml", one_file, async |mut scene| {
        scene.replace("config.toml", "one");
        scene.write("neighbour", "noise");
        scene.expect_nothing().await;
        scene.write("config.toml", "two");
        scene.expect("config.toml").await;
    })
    .await;
}

#[tokio::test]
async fn file_that_vanishes_and_comes_back_is_two_changes() {
    watching("config.toml", one_file, async |mut scene| {
        std::fs::remove_file(scene.path("config.toml")).expect("a file to remove");
        scene.expect("config.toml").await;
        scene.write("config.toml", "one");
        scene.expect("config.toml").await;
    })
    .await;
}

#[tokio::test]
async fn directory_that_vanishes_and_comes_back_is_noticed() {
    let prepare = |directory: &Path| {
        std::fs::create_dir(directory.join("etc")).expect("a directory");
        std::fs::write(directory.join("etc/config.toml"), "one").expect("a file");
    };
    watching("etc/config.toml", prepare, async |mut scene| {
        std::fs::remove_dir_all(scene.path("etc")).expect("a directory to remove");
        scene.expect("etc/config.toml").await;
        std::fs::create_dir(scene.path("new")).expect("a directory");
        scene.write("new/config.toml", "two");
        std::fs::rename(scene.path("new"), scene.path("etc")).expect("a rename");
        scene.expect("etc/config.toml").await;
        scene.write("etc/config.toml", "three");
        scene.expect("etc/config.toml").await;
    })
    .await;
}

fn two_versions(directory: &Path) {
    for (version, text) in [("v1", "one"), ("v2", "two")] {
        std::fs::create_dir(directory.join(version)).expect("a directory");
        std::fs::write(directory.join(version).join("config.toml"), text).expect("a file");
    }
}

/// Kubernetes: `config.toml` -> `..data/config.toml`, and `..data` -> the newest version.
#[tokio::test]
async fn swap_of_a_link_behind_the_file_is_noticed() {
    let prepare = |directory: &Path| {
        two_versions(directory);
        symlink("v1", directory.join("..data")).expect("a link");
        symlink("..data/config.toml", directory.join("config.toml")).expect("a link");
    };
    watching("config.toml", prepare, async |mut scene| {
        scene.replace_link("v2", "..data");
        scene.expect("config.toml").await;
        scene.write("v2/config.toml", "three");
        scene.expect("config.toml").await;
        scene.replace_link("v1", "..data");
        scene.expect("config.toml").await;
    })
    .await;
}

#[tokio::test]
async fn swap_of_a_link_in_the_place_of_the_directory_is_noticed() {
    let prepare = |directory: &Path| {
        two_versions(directory);
        symlink("v1", directory.join("current")).expect("a link");
    };
    watching("current/config.toml", prepare, async |mut scene| {
        scene.replace_link("v2", "current");
        scene.expect("current/config.toml").await;
        scene.write("v1/config.toml", "no longer meant");
        scene.expect_nothing().await;
        scene.write("v2/config.toml", "three");
        scene.expect("current/config.toml").await;
    })
    .await;
}

/// What the source of a bind mount looks like from its target: another name of the same inode elsewhere.
#[tokio::test]
async fn write_through_another_name_of_the_same_file_is_noticed() {
    let prepare = |directory: &Path| {
        std::fs::create_dir(directory.join("elsewhere")).expect("a directory");
        one_file(directory);
        std::fs::hard_link(directory.join("config.toml"), directory.join("elsewhere/source")).expect("a link");
    };
    watching("config.toml", prepare, async |mut scene| {
        scene.write("elsewhere/source", "two");
        scene.expect("config.toml").await;
    })
    .await;
}

#[tokio::test]
async fn followed_files_are_watched_and_others_no_longer() {
    watching("config.toml", one_file, async |mut scene| {
        scene.write("certificate.pem", "one");
        scene.handle.follow(&[scene.path("certificate.pem")]);
        scene.replace("certificate.pem", "two");
        scene.expect("certificate.pem").await;
        scene.write("config.toml", "two");
        scene.expect_nothing().await;
    })
    .await;
}

#[tokio::test]
async fn change_between_two_wishes_to_follow_a_file_is_not_lost() {
    watching("config.toml", one_file, async |mut scene| {
        scene.write("clients.pem", "one");
        let both = [scene.path("config.toml"), scene.path("clients.pem")];
        // Nothing looks in between: this test and the watcher share one thread.
        scene.handle.follow(&both);
        scene.write("clients.pem", "two");
        scene.handle.follow(&both);
        scene.expect("clients.pem").await;
    })
    .await;
}

#[tokio::test]
async fn change_is_found_by_polling_where_there_are_no_events() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    one_file(directory.path());
    let pace = Pace {
        poll: Duration::from_millis(20),
        ..EVENTS_ONLY
    };
    let file = directory.path().join("config.toml");
    let (watcher, handle, changes) = Watcher::with_events(&[file], pace, Arc::new(Notify::new()), View::default());
    let mut scene = Scene {
        directory,
        handle,
        changes,
    };
    let body = async {
        scene.write("config.toml", "two");
        scene.expect("config.toml").await;
    };
    tokio::select! {
        () = body => {}
        () = watcher.run() => panic!("the watcher stopped"),
    }
}

#[tokio::test]
async fn who_asks_does_not_wait_for_a_directory_to_come_to_rest() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    one_file(directory.path());
    let never_at_rest = Pace {
        settle: Duration::from_secs(3600),
        ..EVENTS_ONLY
    };
    let (events, file) = (Arc::new(Notify::new()), directory.path().join("config.toml"));
    let files = std::slice::from_ref(&file);
    let (watcher, handle, changes) = Watcher::with_events(files, never_at_rest, Arc::clone(&events), View::default());
    let mut scene = Scene {
        directory,
        handle,
        changes,
    };
    let asking = async {
        scene.write("config.toml", "two");
        events.notify_one();
        // The watcher takes the event, and waits for more of them.
        tokio::task::yield_now().await;
        scene.handle.poke();
        let change = scene.change().await;
        assert_eq!((change.files, change.poked), (vec![file.clone()], true));
    };
    tokio::select! {
        () = asking => {}
        () = watcher.run() => panic!("the watcher stopped"),
    }
}

fn holding(text: &str) -> Contents {
    let content = Content::Hash(Sha256::digest(text).into());
    [(PathBuf::from("config.toml"), content)].into()
}

#[test]
fn change_is_told_once_two_looks_agree() {
    let mut doubt = Doubt::default();
    for part in ["", "half", "half and half"] {
        assert!(!doubt.is_dispelled(&holding(part), false), "still being written");
        assert!(doubt.lasts());
    }
    assert!(
        !doubt.is_dispelled(&holding("half and half"), true),
        "its writer pauses"
    );
    assert!(doubt.is_dispelled(&holding("half and half"), false));
}

#[tokio::test]
async fn file_is_open_from_the_first_write_until_its_writer_closes_it() {
    use std::io::Write as _;
    let directory = tempfile::tempdir().expect("a temporary directory");
    one_file(directory.path());
    let file = directory.path().join("config.toml");
    let (events, mut view) = View::new();
    let files = std::slice::from_ref(&file);
    assert!(!view.look(files).1, "nobody writes");
    let mut writer = std::fs::File::create(&file).expect("writable");
    writer.write_all(b"half = 1\n").expect("written");
    let mut seen = async |expected: bool| {
        let looking = async {
            while view.look(files).1 != expected {
                events.notified().await;
            }
        };
        let looked = tokio::time::timeout(Duration::from_secs(20), looking).await;
        looked.unwrap_or_else(|_| panic!("open: {expected}"));
    };
    seen(true).await;
    drop(writer);
    seen(false).await;
}

#[test]
fn file_that_never_comes_to_rest_is_told_of_all_the_same() {
    let mut doubt = Doubt::default();
    let looks = (1..=LOOKS_MAX).map(|look| doubt.is_dispelled(&holding(&look.to_string()), true));
    assert_eq!(looks.filter(|told| *told).count(), 1);
}

#[tokio::test]
async fn watcher_ends_with_its_receiver() {
    let (watcher, _handle, changes) = Watcher::new(&[PathBuf::from("/nonexistent/config.toml")], EVENTS_ONLY);
    drop(changes);
    tokio::time::timeout(Duration::from_secs(20), watcher.run())
        .await
        .expect("the watcher ends");
}

#[test]
fn link_that_leads_to_itself_ends() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    symlink("loop", directory.path().join("loop")).expect("a link");
    let found = places(&directory.path().join("loop"));
    assert!(found.contains(directory.path()), "{found:?}");
}
