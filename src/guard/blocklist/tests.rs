//! The same promises against both stores, the shared one on a private PostgreSQL.

use std::sync::atomic::Ordering;

use super::table::Table;
use super::waiting::{MAX_WAITING, Waiting};
use super::*;
use crate::clock::Clock;
use crate::store::Config;
use crate::store::testing::{Cluster, Secret};
use crate::telemetry::health::Board;

async fn open_counted(postgres: Option<Secret>, state: &Path) -> (Blocklist, Keeper, Registry) {
    let config = Config {
        postgres,
        pool_size: 4,
        state_dir: state.to_owned(),
    };
    let (store, registry) = (Store::open(&config, Board::default()), Registry::new());
    let opened = Blocklist::open(store.expect("a store"), state, &registry).await;
    let (list, keeper) = opened.expect("metrics register");
    (list, keeper, registry)
}

async fn open(postgres: Option<Secret>, state: &Path) -> (Blocklist, Keeper) {
    let (list, keeper, _) = open_counted(postgres, state).await;
    (list, keeper)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    crate::store::testing::until(what, async || condition()).await;
}

/// The value of a metric; of all its series together.
fn value(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    let family = family.unwrap_or_else(|| panic!("no metric {name}"));
    let values = family.get_metric().iter().map(|metric| {
        let (gauge, counter) = (metric.get_gauge().get_value(), metric.get_counter().get_value());
        gauge + counter
    });
    values.sum()
}

async fn asked(cluster: &Cluster, sql: &str) -> Vec<String> {
    cluster.ask(sql).await.expect("answered")
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

async fn until_nothing_waits(list: &Blocklist) {
    until("nothing waits for the store", || list.shared.lock().len() == 0).await;
}

/// Makes a block, again where the machine was too slow to say at once that it is stored.
async fn block_stored(list: &Blocklist, order: Order) -> Block {
    loop {
        let (block, durability) = list.block(order.clone()).await.expect("blocked");
        if durability == Durability::Stored {
            return block;
        }
        until_nothing_waits(list).await;
    }
}

async fn blocks_are_kept_lifted_and_not_shortened(postgres: Option<Secret>) {
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper) = open(postgres.clone(), state.path()).await;
    block_stored(&list, order("192.0.2.0/24", Source::Manual, None)).await;
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
    loop {
        let lifted = list.unblock("192.0.2.0/24".parse().expect("a network"), "ops").await;
        if lifted.expect("lifted").expect("there was one").1 == Durability::Stored {
            break;
        }
        block_stored(&list, order("192.0.2.0/24", Source::Manual, None)).await;
    }
    assert!(!finds(&list, "192.0.2.7") && finds(&list, "2001:db8::1"));
    assert!(keeper.shutdown(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_blocks() {
    blocks_are_kept_lifted_and_not_shortened(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_blocks_shares_them_and_may_die() {
    let mut cluster = Cluster::start().await;
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
    cluster.up().await;
    until("the queued change arrives", || finds(&second, "198.51.100.2")).await;
    assert!(keeper.shutdown(Duration::from_secs(10)).await && other.shutdown(Duration::from_secs(10)).await);
}

/// What a process that is killed leaves: no task gets to say good-bye. The directory of the answer holds what its journal and
/// snapshot were at that moment: a runtime that ends may still wake a task which tidies them up.
fn crash(postgres: Option<Secret>, state: &Path, wanted: Durability) -> tempfile::TempDir {
    let left = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (list, keeper) = open(postgres, state).await;
        let block = order("192.0.2.9/32", Source::Manual, None);
        let journal = state.join("blocks-journal-0.jsonl");
        let marked = || std::fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"done\""));
        if wanted == Durability::Stored {
            block_stored(&list, block).await;
            // So that only what the journal recalls can bring the block back, not what waits in it.
            until("the change is marked as stored", marked).await;
        } else {
            assert_eq!(list.block(block).await.expect("blocked").1, wanted);
        }
        for file in std::fs::read_dir(state).expect("a directory").flatten() {
            if file.file_name().to_string_lossy().ends_with(".jsonl") {
                std::fs::copy(file.path(), left.path().join(file.file_name())).expect("copied");
            }
        }
        drop((list, keeper));
    });
    runtime.shutdown_background();
    left
}

async fn crashed(postgres: Option<Secret>, state: &Path, wanted: Durability) -> tempfile::TempDir {
    let state = state.to_owned();
    let crashing = tokio::task::spawn_blocking(move || crash(postgres, &state, wanted));
    crashing.await.expect("it ran")
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_block_outlives_a_crash() {
    let state = tempfile::tempdir().expect("a directory");
    drop(crashed(None, state.path(), Durability::Stored).await);
    let (list, _keeper) = open(None, state.path()).await;
    assert!(finds(&list, "192.0.2.9"));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_block_outlives_a_crash_though_the_store_is_away_after_it() {
    let state = tempfile::tempdir().expect("a directory");
    let mut cluster = Cluster::start().await;
    let left = crashed(cluster.address(), state.path(), Durability::Stored).await;
    // Even without any snapshot.
    drop(std::fs::remove_file(left.path().join("blocks-snapshot.jsonl")));
    cluster.down();
    let (list, _keeper) = open(cluster.address(), left.path()).await;
    assert!(finds(&list, "192.0.2.9"));
    let queued = tempfile::tempdir().expect("a directory");
    let left = crashed(cluster.address(), queued.path(), Durability::Queued).await;
    let (list, _keeper) = open(cluster.address(), left.path()).await;
    assert!(finds(&list, "192.0.2.9"), "from the journal");
    cluster.up().await;
    until("the journal reaches the store", || list.shared.lock().len() == 0).await;
    let networks = asked(&cluster, "SELECT network FROM foregate.blocks").await;
    assert_eq!(networks, ["192.0.2.9/32"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn change_after_the_end_is_answered_and_not_kept() {
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper) = open(None, state.path()).await;
    let made = list.block(order("192.0.2.1/32", Source::Manual, None)).await;
    drop(made.expect("blocked"));
    assert!(keeper.shutdown(Duration::from_secs(5)).await);
    let late = list.block(order("192.0.2.2/32", Source::Manual, None)).await;
    assert!(matches!(late, Err(Error::NotKept)), "{late:?}");
    let late = list.unblock("192.0.2.1/32".parse().expect("a network"), "ops").await;
    assert!(matches!(late, Err(Error::NotKept)), "{late:?}");
    assert!(finds(&list, "192.0.2.1") && !finds(&list, "192.0.2.2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_change_is_told_and_holds_no_other_up() {
    let cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper, registry) = open_counted(cluster.address(), state.path()).await;
    let sql = "ALTER TABLE foregate.blocks ADD CHECK (network <> '192.0.2.13/32')";
    drop(asked(&cluster, sql).await);
    let one = |network: &'static str| list.block(order(network, Source::Manual, None));
    let (before, mut refused, after) = tokio::join!(one("192.0.2.12/32"), one("192.0.2.13/32"), one("192.0.2.14/32"));
    assert!(before.is_ok() && after.is_ok(), "{before:?} {after:?}");
    let mut refusals = 1.0;
    while matches!(refused, Ok((_, Durability::Queued))) {
        // The machine is slow: who asks again learns of it.
        until_nothing_waits(&list).await;
        refused = one("192.0.2.13/32").await;
        refusals += 1.0;
    }
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    until("the refused block is out of force", || !finds(&list, "192.0.2.13")).await;
    until("nothing waits", || {
        value(&registry, "foregate_store_queue_changes") == 0.0
    })
    .await;
    let stored = asked(&cluster, "SELECT network FROM foregate.blocks ORDER BY network").await;
    assert_eq!(stored, ["192.0.2.12/32", "192.0.2.14/32"]);
    assert_eq!(value(&registry, "foregate_store_refused_changes_total"), refusals);
    assert_eq!(value(&registry, "foregate_blocklist_changes_total"), 2.0 + refusals);
    assert_eq!(value(&registry, "foregate_blocklist_entries"), 2.0);
    assert_eq!(value(&registry, "foregate_store_write_failures_total"), 0.0);
    assert!(keeper.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn automatic_block_after_a_lift_that_waited_takes_the_place_of_the_manual_one() {
    let mut cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper, registry) = open_counted(cluster.address(), state.path()).await;
    block_stored(&list, order("192.0.2.0/24", Source::Manual, None)).await;
    cluster.down();
    let lifted = list.unblock("192.0.2.0/24".parse().expect("a network"), "ops").await;
    assert_eq!(lifted.expect("lifted").expect("there was one").1, Durability::Queued);
    let made = list.block(order("192.0.2.0/24", Source::Automatic, Some(600))).await;
    assert_eq!(made.expect("blocked").1, Durability::Queued);
    assert_eq!(value(&registry, "foregate_store_queue_changes"), 1.0);
    until("the lag grows", || {
        value(&registry, "foregate_store_sync_lag_seconds") > 0.0
    })
    .await;
    assert_eq!(value(&registry, "foregate_store_up"), 0.0);
    cluster.up().await;
    until("the change arrives", || list.shared.lock().len() == 0).await;
    let stored = asked(&cluster, "SELECT source FROM foregate.blocks").await;
    assert_eq!(stored, ["automatic"]);
    until("no lag is left", || {
        value(&registry, "foregate_store_sync_lag_seconds") == 0.0
    })
    .await;
    assert!(keeper.shutdown(Duration::from_secs(10)).await);
}

const FUTURE: &str = "INSERT INTO foregate.blocks VALUES
    ('192.0.2.0/24', '00000000000000000000000000', 'from a fast clock', 'manual', 'x', now() + '1 hour', NULL)";

#[tokio::test(flavor = "multi_thread")]
async fn manual_block_wins_over_one_from_a_faster_clock_or_its_caller_learns_which_stays() {
    let cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper) = open(cluster.address(), state.path()).await;
    drop(asked(&cluster, FUTURE).await);
    let unaware = list.block(order("192.0.2.0/24", Source::Manual, Some(600))).await;
    let (block, durability) = unaware.expect("answered");
    assert_eq!(
        (block.reason.as_str(), durability),
        ("from a fast clock", Durability::Stored)
    );
    let entry = list.find("192.0.2.1".parse().expect("an address"), Clock::system().wall());
    assert_eq!(entry.expect("blocked").block, block);
    let aware = list.block(order("192.0.2.0/24", Source::Manual, Some(600))).await;
    assert_eq!(aware.expect("blocked").0.reason, "test");
    let stored = asked(&cluster, "SELECT reason FROM foregate.blocks").await;
    assert_eq!(stored, ["test"]);
    assert!(keeper.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_store_delays_no_answer_for_long_and_gets_the_change_later() {
    let cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper) = open(cluster.address(), state.path()).await;
    let (client, connection) = tokio_postgres::connect(&cluster.text(), tokio_postgres::NoTls)
        .await
        .expect("connected");
    let driver = TaskTracker::new();
    driver.spawn(connection);
    let lock = "BEGIN; LOCK TABLE foregate.blocks IN ACCESS EXCLUSIVE MODE";
    client.batch_execute(lock).await.expect("locked");
    let clock = Clock::system();
    let made = list.block(order("192.0.2.1/32", Source::Manual, None)).await;
    assert_eq!(made.expect("blocked").1, Durability::Queued);
    // Twice what the bounds allow: a busy machine takes its time besides.
    let bound = (ACKNOWLEDGE_WITHIN + RECORD_WITHIN) * 2;
    assert!(clock.tick() < bound, "{:?}", clock.tick());
    assert!(list.block_soon(order("192.0.2.2/32", Source::Automatic, Some(600))));
    until("an automatic block is in force", || finds(&list, "192.0.2.2")).await;
    client.batch_execute("ROLLBACK").await.expect("unlocked");
    until("both changes arrive", || list.shared.lock().len() == 0).await;
    let stored = asked(&cluster, "SELECT count(*) FROM foregate.blocks").await;
    assert_eq!(stored, ["2"]);
    assert!(keeper.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_queue_drains_in_batches() {
    let mut cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper) = open(cluster.address(), state.path()).await;
    cluster.down();
    for number in 0..3_000 {
        let network = format!("10.0.{}.{}/32", number / 250, number % 250);
        assert!(list.block_soon(order(&network, Source::Automatic, Some(600))));
    }
    until("all are in force", || list.page(0, 0).total == 3_000).await;
    cluster.up().await;
    until("all are stored", || list.shared.lock().len() == 0).await;
    let stored = asked(&cluster, "SELECT count(*) FROM foregate.blocks").await;
    assert_eq!(stored, ["3000"]);
    assert!(keeper.shutdown(Duration::from_secs(10)).await);
    let journal = std::fs::read_to_string(state.path().join("blocks-journal-0.jsonl")).expect("a journal");
    assert_eq!(journal, "", "what the snapshot holds is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn notification_is_read_by_network_and_a_lost_listener_reads_everything() {
    let cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper) = open(cluster.address(), state.path()).await;
    let listeners = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' OR query = 'SELECT 1'
                     AND application_name = 'foregate'";
    crate::store::testing::until("somebody listens", async || {
        !asked(&cluster, listeners).await.is_empty()
    })
    .await;
    let made = list.block(order("198.51.100.1/32", Source::Manual, None)).await;
    drop(made.expect("blocked"));
    let insert = |network: &str| FUTURE.replace("192.0.2.0/24", network);
    // A fresh listener reads everything once; that is over when a named network has been read after it.
    drop(asked(&cluster, &insert("192.0.2.3/32")).await);
    drop(asked(&cluster, "NOTIFY foregate_blocks, '192.0.2.3/32'").await);
    until("the first named network is read", || finds(&list, "192.0.2.3")).await;
    drop(asked(&cluster, &insert("192.0.2.4/32")).await);
    drop(asked(&cluster, "NOTIFY foregate_blocks, '192.0.2.4/32'").await);
    until("the second named network is read", || finds(&list, "192.0.2.4")).await;
    drop(asked(&cluster, &insert("192.0.2.1/32")).await);
    drop(asked(&cluster, &insert("192.0.2.2/32")).await);
    drop(asked(&cluster, "NOTIFY foregate_blocks, '192.0.2.2/32'").await);
    until("the named network is read", || finds(&list, "192.0.2.2")).await;
    assert!(!finds(&list, "192.0.2.1"), "the other one is not");
    drop(asked(&cluster, "DELETE FROM foregate.blocks WHERE network = '192.0.2.2/32'").await);
    drop(asked(&cluster, "NOTIFY foregate_blocks, '192.0.2.2/32'").await);
    until("a lift is read as well", || !finds(&list, "192.0.2.2")).await;
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                     WHERE application_name = 'foregate'";
    drop(asked(&cluster, terminate).await);
    until("everything is read again", || finds(&list, "192.0.2.1")).await;
    assert!(finds(&list, "198.51.100.1"));
    assert!(keeper.shutdown(Duration::from_secs(10)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn block_ends_with_its_time_and_is_counted() {
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper, registry) = open_counted(None, state.path()).await;
    let made = list.block(order("192.0.2.1/32", Source::Manual, Some(3))).await;
    drop(made.expect("blocked"));
    assert!(finds(&list, "192.0.2.1"));
    until("the block is over", || !finds(&list, "192.0.2.1")).await;
    assert_eq!(list.page(0, 1).total, 0);
    until("it is forgotten", || {
        value(&registry, "foregate_blocklist_entries") == 0.0
    })
    .await;
    assert_eq!(
        value(&registry, "foregate_blocklist_changes_total"),
        2.0,
        "made and expired"
    );
    assert!(keeper.shutdown(Duration::from_secs(5)).await);
}

#[test]
fn order_that_finds_no_place_is_counted() {
    let (sender, _orders) = mpsc::channel(1);
    let list = Blocklist {
        shared: Arc::default(),
        orders: Some(sender),
    };
    assert!(list.block_soon(order("192.0.2.1/32", Source::Automatic, Some(60))));
    assert!(!list.block_soon(order("192.0.2.2/32", Source::Automatic, Some(60))));
    assert_eq!(list.shared.metrics.dropped.get(), 1);
}

#[test]
fn full_queue_takes_changes_of_networks_that_wait_already_and_no_others() {
    let mut waiting = Waiting::default();
    let lift = |number: usize| Change::Unblock {
        network: format!("10.{}.{}.0/24", number / 250, number % 250)
            .parse()
            .expect("a network"),
        at: Timestamp::UNIX_EPOCH,
    };
    for number in 0..MAX_WAITING {
        waiting.room_for(lift(number).network()).expect("there is room");
        drop(waiting.push(lift(number), Timestamp::UNIX_EPOCH));
    }
    let (_, through) = waiting.unrecorded();
    waiting.recorded(through);
    let full = waiting.room_for(lift(MAX_WAITING).network());
    assert!(
        matches!(full, Err(Error::QueueFull { waiting: MAX_WAITING })),
        "{full:?}"
    );
    waiting.room_for(lift(0).network()).expect("it has a place");
}

#[test]
fn automatic_block_that_cannot_wait_for_the_store_is_in_force_nevertheless() {
    let shared = Shared::default();
    let of = |number: usize| format!("10.{}.{}.0/24", number / 250, number % 250);
    let many = (0..MAX_WAITING).map(|number| order(&of(number), Source::Manual, Some(60)));
    assert!(shared.order(many.collect()).iter().all(Result::is_ok));
    let refused = shared.order(vec![order("192.0.2.1/32", Source::Manual, Some(60))]);
    assert!(
        matches!(refused[..], [Err(Error::QueueFull { .. })]),
        "who asks is told"
    );
    shared.take_orders(vec![order("192.0.2.2/32", Source::Automatic, Some(60))]);
    let network = |text: &str| text.parse::<IpNet>().expect("a network");
    let table = shared.table.load();
    assert!(table.get(network("192.0.2.1/32")).is_none() && table.get(network("192.0.2.2/32")).is_some());
    assert_eq!(shared.metrics.dropped.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn network_inside_a_protected_one_is_refused_and_a_wider_one_is_not() {
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper) = open(None, state.path()).await;
    list.set_protected(vec![("10.0.0.0/8".parse().expect("a network"), "private")]);
    for inside in ["10.0.0.0/8", "10.1.0.0/16", "::ffff:10.1.2.3/128"] {
        let refused = list.block(order(inside, Source::Manual, None)).await;
        let Err(error @ Error::Protected { .. }) = refused else {
            panic!("{inside}: {refused:?}")
        };
        assert!(
            error.to_string().ends_with("it lies in 10.0.0.0/8, which is private"),
            "{error}"
        );
    }
    assert!(list.block(order("8.0.0.0/6", Source::Manual, None)).await.is_ok());
    assert!(list.block(order("11.0.0.0/8", Source::Manual, None)).await.is_ok());
    assert!(keeper.shutdown(Duration::from_secs(5)).await);
}

#[test]
fn those_told_stay_told_while_other_blocks_change() {
    let list = Blocklist::default();
    let now = Clock::system().wall();
    let address = "192.0.2.1".parse().expect("an address");
    list.shared
        .take_orders(vec![order("192.0.2.1/32", Source::Manual, None)]);
    let entry = list.find(address, now).expect("blocked");
    entry.told.store(7, Ordering::Relaxed);
    list.shared
        .take_orders(vec![order("192.0.2.2/32", Source::Manual, None)]);
    list.shared.replace(vec![entry.block.clone()], &[]);
    list.shared
        .patch(&[entry.block.network].into(), vec![entry.block.clone()]);
    list.shared.expire();
    let after = list.find(address, now).expect("blocked");
    assert_eq!(after.told.load(Ordering::Relaxed), 7);
}

#[test]
fn expired_longer_prefix_hides_no_shorter_one() {
    let mut table = Table::default();
    let now = Timestamp::constant(1_800_000_000, 0);
    for (network, expires_at) in [("10.0.0.0/8", None), ("10.1.0.0/16", Some(now))] {
        let block = Block {
            reference: ulid::Ulid::nil(),
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

/// What the table must answer, slowly.
fn longest(model: &std::collections::BTreeMap<IpNet, Block>, address: IpAddr) -> Option<&Block> {
    let matching = model.values().filter(|block| block.network.contains(&address));
    matching.max_by_key(|block| block.network.prefix_len())
}

/// Neighbours of both families.
fn neighbour(low: u32) -> IpAddr {
    if low.is_multiple_of(2) {
        std::net::Ipv4Addr::from(0x0a00_0000 | (low << 3)).into()
    } else {
        std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(low) << 66)).into()
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn table_answers_like_a_plain_map_however_its_changes_were_laid_out(
        changes in proptest::collection::vec((proptest::bool::ANY, 0_u32..2_000, 8_u8..=32), 0..4_000),
        share_every in 1_usize..1_500,
    ) {
        let now = Timestamp::constant(1_800_000_000, 0);
        let (mut table, mut model) = (Table::default(), std::collections::BTreeMap::new());
        let mut shared = table.clone();
        for (number, (adds, low, length)) in changes.into_iter().enumerate() {
            let address = neighbour(low);
            // Twice the length of IPv4: around /48, where many IPv6 networks end.
            let length = if address.is_ipv6() { 2 * length } else { length };
            let network = normal(IpNet::new(address, length).expect("a length"));
            if adds {
                let block = Block {
                    reference: ulid::Ulid::nil(),
                    network,
                    reason: number.to_string(),
                    source: Source::Manual,
                    created_by: String::new(),
                    created_at: now,
                    expires_at: None,
                };
                model.insert(network, block.clone());
                table.insert(block, &shared);
            } else {
                let removed = table.remove(network);
                proptest::prop_assert_eq!(removed.is_some(), model.remove(&network).is_some());
            }
            if number % share_every == 0 {
                shared = table.clone();
            }
        }
        proptest::prop_assert_eq!(table.len(), model.len());
        proptest::prop_assert_eq!(table.entries().count(), model.len());
        for low in 0..2_000 {
            let address = neighbour(low);
            let found = table.find(address, now).map(|entry| &entry.block);
            proptest::prop_assert_eq!(found, longest(&model, address));
        }
    }
}

#[test]
fn pauses_between_tries_grow_to_a_bound_and_differ() {
    let mut backoff = sync::Backoff::default();
    let pauses: Vec<Duration> = (0..40).map(|_| backoff.pause()).collect();
    assert!(pauses[0] <= Duration::from_millis(250));
    let late = &pauses[10..];
    assert!(late.iter().all(|pause| (5..=10).contains(&pause.as_secs())), "{late:?}");
    assert!(late.iter().any(|pause| *pause != late[0]), "jitter");
}

#[tokio::test(flavor = "multi_thread")]
async fn change_is_stored_at_once_when_postgres_is_back() {
    let mut cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let (list, keeper) = open(cluster.address(), state.path()).await;
    // What is in the way of it is so each time; a busy machine is not.
    let mut made = Vec::new();
    while made.len() < 3 && made.last() != Some(&Durability::Stored) {
        cluster.down();
        let queued = list.block(order("192.0.2.1/32", Source::Manual, None)).await;
        assert_eq!(queued.expect("blocked").1, Durability::Queued);
        cluster.up().await;
        until_nothing_waits(&list).await;
        let next = list.block(order("192.0.2.2/32", Source::Manual, None)).await;
        made.push(next.expect("blocked").1);
    }
    assert_eq!(made.last(), Some(&Durability::Stored), "{made:?}");
    assert!(keeper.shutdown(Duration::from_secs(10)).await);
}
