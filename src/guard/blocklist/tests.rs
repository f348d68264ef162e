//! The same promises against both stores, the shared one on a private PostgreSQL.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::secret::Secret;
use crate::store::Config;
use crate::telemetry::health::Board;

#[expect(clippy::disallowed_methods, reason = "a test starts its own server")]
fn command(program: &str) -> std::process::Command {
    std::process::Command::new(program)
}

/// A private cluster, run as `postgres` because the server refuses root.
struct Cluster {
    directory: tempfile::TempDir,
    bin: PathBuf,
}

impl Cluster {
    fn start() -> Self {
        let bin = std::fs::read_dir("/usr/lib/postgresql")
            .expect("PostgreSQL is installed")
            .next();
        let bin = bin.expect("a version").expect("readable").path().join("bin");
        let directory = tempfile::Builder::new()
            .prefix("fg")
            .tempdir_in("/tmp")
            .expect("a directory");
        let owner = command("chown")
            .arg("postgres")
            .arg(directory.path())
            .status()
            .expect("chown runs");
        assert!(owner.success());
        let cluster = Self { directory, bin };
        cluster.run("initdb", &["-A", "trust", "-U", "postgres", "-N"]);
        cluster.up();
        cluster
    }
    fn run(&self, program: &str, arguments: &[&str]) {
        let mut child = command("runuser");
        child
            .args(["-u", "postgres", "--"])
            .arg(self.bin.join(program))
            .arg("-D")
            .arg(self.directory.path().join("data"));
        let status = child
            .args(arguments)
            .stdout(std::process::Stdio::null())
            .status()
            .expect("runs");
        assert!(status.success(), "{program}");
    }
    fn up(&self) {
        let options = format!("-k {} -c listen_addresses=''", self.directory.path().display());
        let log = self.directory.path().join("log").display().to_string();
        self.run("pg_ctl", &["-w", "-l", &log, "-o", &options, "start"]);
    }
    fn down(&self) {
        self.run("pg_ctl", &["-w", "-m", "immediate", "stop"]);
    }
    fn address(&self) -> Option<Secret> {
        Some(Secret::new(format!(
            "host={} user=postgres dbname=postgres",
            self.directory.path().display()
        )))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.down();
    }
}

async fn open(postgres: Option<Secret>, state: &Path) -> (Blocklist, Keeper) {
    let config = Config {
        postgres,
        pool_size: 4,
        state_dir: state.to_owned(),
    };
    let store = Store::open(&config, Board::default()).await.expect("a store");
    Blocklist::open(store, state, &Registry::new())
        .await
        .expect("metrics register")
}

fn order(network: &str, source: Source, duration: Option<u64>) -> Order {
    Order {
        network: network.parse().expect("a network"),
        reason: "test".into(),
        source,
        created_by: "ops".into(),
        duration: duration.map(Duration::from_secs),
    }
}

fn finds(list: &Blocklist, address: &str) -> bool {
    list.find(address.parse().expect("an address"), Clock::system().wall())
        .is_some()
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), waiting)
        .await
        .expect(what);
}

async fn blocks_are_kept_lifted_and_not_shortened(postgres: Option<Secret>) {
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper) = open(postgres.clone(), state.path()).await;
    let (_, durability) = list
        .block(order("192.0.2.0/24", Source::Manual, None))
        .await
        .expect("blocked");
    assert_eq!(durability, Durability::Stored);
    assert!(finds(&list, "::ffff:192.0.2.7"));
    let (kept, _) = list
        .block(order("192.0.2.0/24", Source::Automatic, Some(60)))
        .await
        .expect("answered");
    assert_eq!(kept.source, Source::Manual);
    drop(
        list.block(order("2001:db8::/64", Source::Manual, Some(60)))
            .await
            .expect("blocked"),
    );
    assert!(keeper.shutdown(Duration::from_secs(5)).await);

    let (list, keeper) = open(postgres, state.path()).await;
    assert_eq!(list.page(0, 10).total, 2);
    let lifted = list
        .unblock("192.0.2.0/24".parse().expect("a network"), "ops")
        .await
        .expect("lifted");
    assert_eq!(lifted.expect("there was one").1, Durability::Stored);
    assert!(!finds(&list, "192.0.2.7") && finds(&list, "2001:db8::1"));
    assert!(keeper.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_blocks() {
    blocks_are_kept_lifted_and_not_shortened(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_blocks_shares_them_and_may_die() {
    let cluster = Cluster::start();
    blocks_are_kept_lifted_and_not_shortened(cluster.address()).await;
    let (one, two) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    let ((first, keeper), (second, other)) =
        tokio::join!(open(cluster.address(), one.path()), open(cluster.address(), two.path()));
    drop(
        first
            .block(order("198.51.100.1/32", Source::Manual, None))
            .await
            .expect("blocked"),
    );
    until("the other instance learns of it", || finds(&second, "198.51.100.1")).await;
    cluster.down();
    let (_, durability) = first
        .block(order("198.51.100.2/32", Source::Manual, None))
        .await
        .expect("blocked");
    assert_eq!(durability, Durability::Queued);
    assert!(finds(&first, "198.51.100.1") && finds(&first, "198.51.100.2"));
    assert!(keeper.shutdown(Duration::from_secs(10)).await);
    let (again, keeper) = open(cluster.address(), one.path()).await;
    assert!(finds(&again, "198.51.100.1"), "from the snapshot");
    assert!(finds(&again, "198.51.100.2"), "from the queue");
    cluster.up();
    until("the queued change arrives", || finds(&second, "198.51.100.2")).await;
    assert!(keeper.shutdown(Duration::from_secs(10)).await && other.shutdown(Duration::from_secs(10)).await);
}

#[test]
fn expired_longer_prefix_hides_no_shorter_one() {
    let mut table = Table::default();
    let now = Timestamp::constant(1_800_000_000, 0);
    for (network, expires_at) in [("10.0.0.0/8", None), ("10.1.0.0/16", Some(now))] {
        let block = Block {
            reference: Ulid::nil(),
            network: network.parse().expect("a network"),
            reason: String::new(),
            source: Source::Manual,
            created_by: String::new(),
            created_at: now,
            expires_at,
        };
        table.insert(block, &Table::default());
    }
    let found = table
        .find("10.1.2.3".parse().expect("an address"), now)
        .expect("blocked");
    assert_eq!(found.block.network.prefix_len(), 8);
}

#[test]
fn damaged_file_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("blocks-queue.jsonl");
    let network = "192.0.2.0/24".parse().expect("a network");
    let changes = vec![Change::Unblock {
        network,
        at: Timestamp::UNIX_EPOCH,
    }];
    disk::write(&path, &changes).expect("written");
    assert_eq!(disk::read(&path).expect("read"), changes);
    let text = std::fs::read_to_string(&path).expect("text").replace("192", "193");
    std::fs::write(&path, text).expect("written");
    assert!(disk::read(&path).is_err());
}
