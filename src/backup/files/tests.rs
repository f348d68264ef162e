//! What an archive may not do, whoever made it, and what is noted of files that move.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use super::names::Names;
use super::stream::{Kind, Member, Mtime, Owner, finish, pad, write_member};
use super::{FileSet, archive, extract, roots};

fn member(path: &str, kind: Kind) -> Member {
    Member {
        path: path.as_bytes().to_vec(),
        kind,
        mode: 0o644,
        user: Owner::default(),
        group: Owner::default(),
        mtime: Mtime::default(),
        xattrs: Vec::new(),
    }
}

fn tar(members: &[(Member, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (member, data) in members {
        write_member(&mut bytes, member).expect("memory takes it");
        bytes.extend_from_slice(data);
        pad(&mut bytes, data.len() as u64).expect("memory takes it");
    }
    finish(&mut bytes).expect("memory takes it");
    bytes
}

fn unpack(bytes: &[u8], into: &Path) -> std::io::Result<u64> {
    let root = extract::open_directory(into).expect("a directory");
    extract::extract(bytes, root, &Names::default()).map(|extracted| extracted.entries)
}

#[test]
fn no_path_leads_out_of_the_directory() {
    let outside = tempfile::tempdir().expect("a directory");
    let inside = outside.path().join("inside");
    std::fs::create_dir(&inside).expect("a directory");
    let file = Kind::File { bytes: 1 };
    for path in ["../out", "a/../../out", "/out", "a//b", "./a", ""] {
        let bytes = tar(&[(member(path, file.clone()), b"x")]);
        assert!(unpack(&bytes, &inside).is_err(), "{path:?}");
        assert!(extract::walk(bytes.as_slice()).is_err(), "{path:?}");
    }
    let escape = outside.path().as_os_str().as_encoded_bytes().to_vec();
    for (turn, second) in ["link/out", "link/deeper/out"].iter().enumerate() {
        let target = inside.join(turn.to_string());
        std::fs::create_dir(&target).expect("a directory");
        let bytes = tar(&[
            (member("link", Kind::Symlink(escape.clone())), b""),
            (member(second, file.clone()), b"x"),
        ]);
        assert!(unpack(&bytes, &target).is_err(), "{second}");
    }
    let through = tar(&[
        (member("link", Kind::Symlink(escape.clone())), b""),
        (member("hard", Kind::HardLink(b"link/secret".to_vec())), b""),
    ]);
    std::fs::write(outside.path().join("secret"), b"s").expect("a file");
    assert!(unpack(&through, &inside).is_err());
    let twice = tar(&[
        (member("link2", Kind::Symlink(escape)), b""),
        (member("link2", file), b"x"),
    ]);
    assert!(unpack(&twice, &inside).is_err(), "nothing that exists is opened");
    assert!(!outside.path().join("out").exists());
    assert!(std::fs::metadata(outside.path()).expect("it is there").is_dir());
}

#[test]
fn a_cut_archive_is_an_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let bytes = tar(&[(member("a", Kind::File { bytes: 2000 }), &[7; 2000])]);
    for length in [600, 1500, 2511] {
        assert!(extract::walk(&bytes[..length]).is_err(), "{length}");
    }
    assert_eq!(unpack(&bytes, directory.path()).expect("whole"), 1);
}

#[test]
fn modes_times_links_and_holes_come_back() {
    let source = tempfile::tempdir().expect("a directory");
    let root = source.path().join("app");
    let long = "n".repeat(200);
    std::fs::create_dir_all(root.join("d").join(&long)).expect("directories");
    std::fs::write(root.join("d").join(&long).join("f"), b"deep").expect("a file");
    std::fs::write(root.join("a"), b"one").expect("a file");
    std::fs::hard_link(root.join("a"), root.join("b")).expect("a link");
    symlink("/nowhere/at all", root.join("s")).expect("a link");
    let holes = std::fs::File::create(root.join("holes")).expect("a file");
    holes.set_len(3 << 20).expect("a hole");
    let set_id = std::fs::Permissions::from_mode(0o4751);
    std::fs::set_permissions(root.join("a"), set_id).expect("a mode");
    std::fs::set_permissions(root.join("d"), std::fs::Permissions::from_mode(0o555)).expect("a mode");
    let before_1970 = std::time::UNIX_EPOCH - std::time::Duration::from_millis(1_500);
    holes.set_modified(before_1970).expect("a time");

    let mut bytes = Vec::new();
    let report = archive::write(&[&root], &mut bytes, &Names::default(), None).expect("it is read");
    assert_eq!((report.entries, report.notes.len()), (8, 0), "{report:?}");
    assert!(bytes.len() < 1 << 20, "holes take no room");
    let target = tempfile::tempdir().expect("a directory");
    assert_eq!(unpack(&bytes, target.path()).expect("it is written"), 8);

    let back = target.path().join(root.strip_prefix("/").expect("absolute"));
    let meta = |name: &str| std::fs::symlink_metadata(back.join(name)).expect("it is back");
    assert_eq!(meta("a").ino(), meta("b").ino());
    assert_eq!(meta("a").mode() & 0o7777, 0o4751);
    assert_eq!(meta("d").mode() & 0o7777, 0o555);
    assert_eq!(
        meta("d").modified().expect("a time"),
        std::fs::metadata(root.join("d"))
            .expect("it is there")
            .modified()
            .expect("a time")
    );
    assert_eq!(meta("holes").modified().expect("a time"), before_1970);
    assert_eq!(meta("holes").len(), 3 << 20);
    assert!(meta("holes").blocks() < 64, "holes are holes again");
    assert_eq!(
        std::fs::read_link(back.join("s")).expect("a link"),
        Path::new("/nowhere/at all")
    );
    let deep = std::fs::read(back.join("d").join(&long).join("f")).expect("a file");
    assert_eq!(deep, b"deep");
}

#[test]
fn sockets_are_left_out_and_the_repository_does_not_swallow_itself() {
    let source = tempfile::tempdir().expect("a directory");
    let _socket = std::os::unix::net::UnixListener::bind(source.path().join("socket")).expect("a socket");
    let repository = source.path().join("repository");
    std::fs::create_dir(&repository).expect("a directory");
    std::fs::write(repository.join("object"), b"x").expect("a file");
    let mut bytes = Vec::new();
    let excluded = archive::place(&repository);
    let report = archive::write(&[source.path()], &mut bytes, &Names::default(), excluded).expect("it is read");
    assert_eq!((report.entries, report.notes.len()), (1, 2), "{report:?}");
}

/// Does something as soon as it is written to.
struct Meanwhile<F: FnMut()> {
    taken: Vec<u8>,
    act: Option<F>,
}

impl<F: FnMut()> std::io::Write for Meanwhile<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(mut act) = self.act.take() {
            act();
        }
        self.taken.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Most file systems give the number of a deleted file to the next one.
#[test]
fn file_that_got_the_number_of_a_deleted_one_is_no_further_name_of_it() {
    let source = tempfile::tempdir().expect("a directory");
    let [first, twin, filler, last] = ["first", "twin", "filler", "last"].map(|name| source.path().join(name));
    std::fs::write(&first, b"one").expect("a file");
    std::fs::hard_link(&first, &twin).expect("a link");
    std::fs::write(&filler, vec![7; 1 << 20]).expect("a file");
    let born = |path: &Path| std::fs::metadata(path).expect("it is there").created().ok();
    let before = born(&first);
    // The first file has been read and closed by the time at which the buffer is full.
    let replace = || {
        std::fs::remove_file(&first).expect("removable");
        std::fs::remove_file(&twin).expect("removable");
        std::fs::write(&last, b"other").expect("a file");
        // The clock of a file system ticks in milliseconds, if it has one for this.
        while before.is_some() && born(&last) == before {
            std::fs::remove_file(&last).expect("removable");
            std::fs::write(&last, b"other").expect("a file");
        }
        std::fs::hard_link(&last, &twin).expect("a link");
    };
    let mut sink = Meanwhile {
        taken: Vec::new(),
        act: Some(replace),
    };
    archive::write(&[&first, &filler, &last], &mut sink, &Names::default(), None).expect("it is read");
    let target = tempfile::tempdir().expect("a directory");
    assert_eq!(unpack(&sink.taken, target.path()).expect("it is written"), 3);
    let back = |path: &Path| std::fs::read(target.path().join(path.strip_prefix("/").expect("absolute")));
    assert_eq!(back(&first).expect("it is back"), b"one");
    assert_eq!(back(&last).expect("it is back"), b"other");
}

/// Twice as large as any disk.
#[test]
fn sparse_file_is_neither_read_nor_stored_where_it_is_empty() {
    use std::os::unix::fs::FileExt as _;
    let source = tempfile::tempdir().expect("a directory");
    let path = source.path().join("disk.img");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(1 << 42).expect("a hole");
    for at in [0, 1 << 30, (1 << 41) + 5] {
        file.write_all_at(b"data", at).expect("written");
    }
    let mut bytes = Vec::new();
    let report = archive::write(&[source.path()], &mut bytes, &Names::default(), None).expect("it is read");
    assert_eq!((report.entries, report.notes.len()), (2, 0), "{report:?}");
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    assert_eq!(extract::walk(bytes.as_slice()).expect("it is whole"), 2);
    let target = tempfile::tempdir().expect("a directory");
    unpack(&bytes, target.path()).expect("it is written");
    let back = target.path().join(path.strip_prefix("/").expect("absolute"));
    let meta = std::fs::metadata(&back).expect("it is back");
    assert!(meta.len() == 1 << 42 && meta.blocks() < 2048, "{meta:?}");
    let back = std::fs::File::open(&back).expect("readable");
    for at in [0, 1 << 30, (1 << 41) + 5] {
        let mut read = [0; 6];
        back.read_exact_at(&mut read, at).expect("read");
        assert_eq!(&read, b"data\0\0");
    }
}

/// The archive stays whole whatever the writer beside it does.
#[test]
fn files_that_change_while_they_are_read_never_make_a_corrupt_archive() {
    let source = tempfile::tempdir().expect("a directory");
    let path = |turn: usize| source.path().join(format!("f{}", turn % 8));
    (0..8).for_each(|turn| std::fs::write(path(turn), vec![1; 300_000]).expect("a file"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let noted = std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                match turn % 3 {
                    0 => drop(std::fs::remove_file(path(turn))),
                    1 => drop(std::fs::write(path(turn), vec![2; 1 + turn % 500_000])),
                    _ => drop(std::fs::write(path(turn), b"")),
                }
            }
        });
        let mut noted = 0;
        // Until the writer was met, which on a busy machine takes a while.
        for round in 0..10_000 {
            if round >= 40 && noted > 0 {
                break;
            }
            let mut bytes = Vec::new();
            let report = archive::write(&[source.path()], &mut bytes, &Names::default(), None).expect("it is read");
            assert_eq!(extract::walk(bytes.as_slice()).expect("it is whole"), report.entries);
            noted += report.notes.len();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        noted
    });
    assert!(noted > 0, "the writer was never met");
}

#[test]
fn a_set_without_its_files_is_refused() {
    let source = tempfile::tempdir().expect("a directory");
    let there = source.path().join("there");
    std::fs::create_dir_all(there.join("below")).expect("directories");
    symlink(&there, source.path().join("link")).expect("a link");
    let set = |paths: &[&Path]| FileSet {
        name: "app".to_owned(),
        paths: paths.iter().map(|path| path.to_path_buf()).collect(),
        keep_days: 30,
    };
    for bad in [
        &source.path().join("gone"),
        &source.path().join("link"),
        Path::new("relative"),
        Path::new("/"),
    ] {
        assert!(roots(&set(&[&there, bad])).is_err(), "{}", bad.display());
    }
    assert!(roots(&set(&[])).is_err());
    let found = roots(&set(&[&there.join("below"), &there, &there])).expect("usable");
    assert_eq!(found, [there]);
}
