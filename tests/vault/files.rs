//! File sets, from the command line and by hand.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::support::{Store, run};

/// A tree with what an app's directory may hold: odd names, links, modes, attributes, another owner.
fn tree(store: &Store) -> PathBuf {
    let root = store.directory().join("srv").join("app");
    let script = format!(
        "set -e; mkdir -p {root}/conf/deep; cd {root}; printf one > 'a name'; ln 'a name' twin; ln -s /etc/passwd out; \
         head -c 3000000 /dev/urandom > blob; printf 'KEY=x' > conf/env; chmod 600 conf/env; chown 1234:4321 conf/env; \
         touch -d '2021-02-03 04:05:06.789012345Z' conf/env; chmod 2750 conf/deep; mkfifo conf/pipe; \
         truncate -s 40M hollow sparse; printf data | dd of=sparse bs=1M seek=20 conv=notrunc status=none; \
         printf n > $'new\\nline'; touch \"$(printf 'latin\\351')\"; \
         setfattr -n user.note -v 0x61000a62 conf/env",
        root = root.display()
    );
    run("bash", &["-c", &script]);
    root
}

/// What `find` and the attributes say of a tree, without its place.
fn picture(root: &Path) -> String {
    let script = format!(
        "cd {root} && find . -printf '%P|%y|%m|%U|%G|%s|%T@|%l|%n\\0' | grep -zv '|d|' | sort -z | tr '\\0' '\\n'; \
         find . -type d -printf '%P|%m|%U|%G|%T@\\n' | sort; find . -type f -print0 | sort -z | xargs -0 sha256sum; \
         getfattr -e hex -n user.note conf/env",
        root = root.display()
    );
    run("bash", &["-c", &script])
}

fn back(into: &Path, root: &Path) -> PathBuf {
    into.join(root.strip_prefix("/").expect("absolute"))
}

#[test]
fn a_file_set_comes_back_with_owner_mode_times_links_and_attributes() {
    let store = Store::new();
    let root = tree(&store);
    let before = picture(&root);
    let path = root.display().to_string();
    let made = store.ok(&["create", "--files", "app", "--path", &path, "--json"]);
    assert!(made.contains("\"verified\": \"L2\""), "{made}");
    std::fs::remove_dir_all(&root).expect("it is lost");
    let into = store.directory().join("into");
    store.ok(&["restore", "latest", "--into", &into.display().to_string()]);
    assert_eq!(picture(&back(&into, &root)), before);
    assert_eq!(on_disk(&back(&into, &root)), 0);
    let env = std::fs::metadata(back(&into, &root).join("conf/env")).expect("it is back");
    assert_eq!(
        (env.uid(), env.gid(), env.permissions().mode() & 0o7777),
        (1234, 4321, 0o600)
    );
    let names: Vec<_> = std::fs::read_dir(&into).expect("readable").flatten().collect();
    assert_eq!(names.len(), 1, "nothing else is left: {names:?}");
}

/// `docs/restore-by-hand.md`, with the real programs.
#[test]
fn age_zstd_and_tar_alone_bring_files_back() {
    let store = Store::new();
    let root = tree(&store);
    let before = picture(&root);
    store.ok(&["create", "--files", "app", "--path", &root.display().to_string()]);
    let into = store.directory().join("by-hand");
    let script = format!(
        "set -o pipefail; mkdir {into}; age -d -i {key} {files} | zstd -d | tar --extract --same-owner --numeric-owner \
         --same-permissions --xattrs --xattrs-include='*' --directory {into}",
        into = into.display(),
        key = store.key().display(),
        files = store.object("files.zst.age").display(),
    );
    run("bash", &["-c", &script]);
    assert_eq!(picture(&back(&into, &root)), before);
    assert_eq!(on_disk(&back(&into, &root)), 0);
}

/// Whole MiB that the files with holes take.
fn on_disk(root: &Path) -> u64 {
    let blocks = |name: &str| std::fs::metadata(root.join(name)).expect("it is back").blocks();
    (blocks("hollow") + blocks("sparse")) * 512 / (1 << 20)
}

/// Whoever reads the one must not search for the other.
#[test]
fn wrong_key_names_the_right_ones_and_damage_names_the_object() {
    let store = Store::new();
    let path = tree(&store).display().to_string();
    let made = store.ok(&["create", "--files", "app", "--path", &path, "--json"]);
    let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
    let into = store.directory().join("into").display().to_string();
    let key = store.directory().join("other-key");
    run("age-keygen", &["-o", &key.display().to_string()]);
    let other = run("age-keygen", &["-y", &key.display().to_string()]);
    let refused = store.fails_with_key(Some(&key), &["restore", "latest", "--into", &into]);
    for part in ["is sealed to", store.recipient(), other.trim()] {
        assert!(refused.contains(part), "{part:?} is not in {refused}");
    }
    let refused = store.fails_with_key(Some(&key), &["verify", made["id"].as_str().expect("an id")]);
    for part in ["files.zst.age", "does not open", other.trim()] {
        assert!(refused.contains(part), "{part:?} is not in {refused}");
    }
    let object = store.object("files.zst.age");
    let whole = std::fs::read(&object).expect("readable");
    let second = 1 + whole.iter().position(|byte| *byte == b'\n').expect("a header");
    // In the header's MAC, which its last line has; in the middle of what is encrypted; at the end.
    let mac = whole.windows(4).position(|four| four == b"--- ").expect("a MAC") + 10;
    for at in [second, mac, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        std::fs::write(&object, damaged).expect("writable");
        // Once it is known as damaged, it is not the latest any more.
        for id in [made["id"].as_str().expect("an id"), "latest"] {
            let refused = store.fails(&["restore", id, "--into", &into]);
            for part in ["files.zst.age is damaged", "from a copy of the repository"] {
                assert!(refused.contains(part), "{at}: {part:?} is not in {refused}");
            }
        }
    }
}

#[test]
fn files_are_never_restored_over_others_and_never_in_part() {
    let store = Store::new();
    let root = tree(&store);
    store.ok(&["create", "--files", "app", "--path", &root.display().to_string()]);
    let into = store.directory().join("into");
    std::fs::create_dir(&into).expect("a directory");
    std::fs::write(into.join("mine"), b"x").expect("a file");
    let shown = into.display().to_string();
    let refused = store.fails(&["restore", "latest", "--into", &shown]);
    assert!(refused.contains("not empty"), "{refused}");
    std::fs::remove_file(into.join("mine")).expect("removable");

    let object = store.object("files.zst.age");
    let whole = std::fs::read(&object).expect("readable");
    for at in [whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        std::fs::write(&object, damaged).expect("writable");
        store.fails(&["restore", "latest", "--into", &shown]);
        assert_eq!(
            std::fs::read_dir(&into).expect("readable").count(),
            0,
            "nothing is left of it"
        );
    }
    std::fs::write(&object, &whole[..whole.len() / 2]).expect("writable");
    let id = store.object("manifest.json");
    let id = id
        .parent()
        .and_then(Path::file_name)
        .expect("a folder")
        .to_string_lossy()
        .into_owned();
    store.fails(&["verify", &id]);
    assert_eq!(store.good(), 0);
    store.fails(&["restore", &id, "--into", &shown]);
    std::fs::write(&object, &whole).expect("writable");
    store.ok(&["verify", &id]);
    std::fs::create_dir(into.join(".foregate-partial-OLD")).expect("what a crash leaves");
    store.ok(&["restore", &id, "--into", &shown]);
    assert!(!into.join(".foregate-partial-OLD").exists());
}

#[test]
fn what_is_not_the_files_own_is_refused_before_anything_is_touched() {
    let store = Store::new();
    let root = tree(&store);
    let path = root.display().to_string();
    store.fails(&["create", "--files", "app", "--path", &path, "--path", "/nowhere/at/all"]);
    assert_eq!(store.objects(), Vec::<PathBuf>::new());
    store.ok(&["create", "--files", "app", "--path", &path]);
    let refused = store.fails(&["restore", "latest"]);
    assert!(
        refused.contains("no backup"),
        "`latest` means the database's: {refused}"
    );
    let into = store.directory().join("into").display().to_string();
    let unknown = store.fails(&["restore", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "--into", &into]);
    assert!(unknown.contains("there is no backup"), "{unknown}");
    let absent = store.fails_with_key(None, &["restore", "latest", "--into", &into]);
    assert!(absent.contains("no age identity"), "{absent}");
    store.ok(&["create", "--files", "other", "--path", &path]);
    let several = store.fails(&["restore", "latest", "--into", &into]);
    assert!(several.contains("several file sets"), "{several}");
    assert!(!Path::new(&into).exists());
}

#[test]
fn the_last_good_file_set_survives_pruning_and_deletion() {
    let store = Store::new();
    let root = tree(&store);
    let path = root.display().to_string();
    for name in ["app", "other"] {
        store.ok(&["create", "--files", name, "--path", &path, "--keep-days", "0"]);
    }
    store.ok(&["prune"]);
    assert_eq!(store.good(), 2);
    store.ok(&["create", "--files", "app", "--path", &path, "--keep-days", "0"]);
    let plan = store.ok(&["prune", "--dry-run"]);
    assert_eq!(plan.matches("goes").count(), 1, "{plan}");
    assert!(plan.contains("older than 0 days"), "{plan}");
    store.ok(&["prune"]);
    assert_eq!(store.good(), 2);
}

/// An older backup would be given back without a word.
#[test]
fn latest_is_refused_while_a_manifest_cannot_be_read_and_an_id_is_not() {
    let store = Store::new();
    let path = tree(&store).display().to_string();
    let create = ["create", "--files", "app", "--path", &path, "--json"];
    let old: serde_json::Value = serde_json::from_str(&store.ok(&create)).expect("JSON");
    let new: serde_json::Value = serde_json::from_str(&store.ok(&create)).expect("JSON");
    let new = new["id"].as_str().expect("an id");
    let manifest = store.repository().join(format!("files/{new}/manifest.json"));
    std::fs::write(&manifest, "{").expect("writable");
    let into = store.directory().join("into").display().to_string();
    let refused = store.fails(&["restore", "latest", "--into", &into]);
    assert!(
        refused.contains(new) && refused.contains("name a backup's id"),
        "{refused}"
    );
    store.ok(&["restore", old["id"].as_str().expect("an id"), "--into", &into]);
}
