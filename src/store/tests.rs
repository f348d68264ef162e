//! The same promises against both stores, the shared one on a private PostgreSQL.

use std::path::Path;

use super::testing::Cluster;
use super::*;

fn open(postgres: Option<Secret>, state: &Path) -> Store {
    let config = Config {
        postgres,
        pool_size: 4,
        state_dir: state.to_owned(),
    };
    Store::open(&config, Board::default()).expect("a store")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn block(network: &str, reason: &str, source: Source, created: i64, expires: Option<i64>) -> Block {
    Block {
        reference: Ulid::nil(),
        network: network.parse().expect("a network"),
        reason: reason.into(),
        source,
        created_by: "ops".into(),
        created_at: at(created),
        expires_at: expires.map(at),
    }
}

/// A database that takes no block with this reason.
async fn refuse(postgres: Option<&Cluster>, state: &Path) {
    if let Some(cluster) = postgres {
        let sql = "ALTER TABLE foregate.blocks ADD CHECK (reason <> 'refuse me')";
        drop(cluster.ask(sql).await.expect("altered"));
    } else {
        let sql = "CREATE TRIGGER refusal BEFORE INSERT ON blocks WHEN NEW.reason = 'refuse me'
                   BEGIN SELECT RAISE(ABORT, 'refused'); END";
        let connection = rusqlite::Connection::open(state.join("foregate.db")).expect("the store's file");
        connection.execute_batch(sql).expect("altered");
    }
}

async fn a_refusal_is_told_from_an_outage(cluster: Option<&Cluster>) {
    let state = tempfile::tempdir().expect("a directory");
    let store = open(cluster.and_then(Cluster::address), state.path());
    drop(store.blocks().await.expect("read"));
    refuse(cluster, state.path()).await;
    let change = Change::Block(block("192.0.2.1/32", "refuse me", Source::Manual, 5, None));
    let refused = store.apply(vec![change]).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert!(*store.up().borrow(), "a refusal is an answer");
    assert!(store.health.all_healthy());
}

async fn the_newest_manual_and_the_longest_automatic_block_stay(cluster: Option<&Cluster>) {
    let state = tempfile::tempdir().expect("a directory");
    let store = open(cluster.and_then(Cluster::address), state.path());
    let network = "192.0.2.0/24";
    let manual = block(network, "first", Source::Manual, 100, None);
    assert_eq!(
        store.apply(vec![Change::Block(manual.clone())]).await.expect("stored"),
        []
    );
    let older = block(network, "older", Source::Manual, 99, None);
    let stay = store.apply(vec![Change::Block(older)]).await.expect("answered");
    assert_eq!(stay, std::slice::from_ref(&manual), "the caller learns what stays");
    let short = block(network, "short", Source::Automatic, 101, Some(200));
    let stay = store.apply(vec![Change::Block(short.clone())]).await.expect("answered");
    assert_eq!(stay, [manual]);
    let network = short.network;
    let both = vec![Change::Unblock { network, at: at(100) }, Change::Block(short.clone())];
    assert_eq!(store.apply(both).await.expect("stored"), [], "after a lift it wins");
    let read = store.blocks_of(vec![network]).await.expect("read");
    assert_eq!(read, std::slice::from_ref(&short));
    let early = vec![Change::Unblock { network, at: at(100) }];
    drop(store.apply(early).await.expect("answered"));
    assert_eq!(
        store.blocks().await.expect("read"),
        [short],
        "a newer block is not lifted"
    );
}

async fn audit_is_paged_and_bounded_and_expired_blocks_are_purged(cluster: Option<&Cluster>) {
    let state = tempfile::tempdir().expect("a directory");
    let store = open(cluster.and_then(Cluster::address), state.path());
    let entry = |number: i64| AuditEntry {
        at: at(number),
        actor: "ops".into(),
        from: "2001:db8::1".parse().expect("an address"),
        action: "block".into(),
        subject: number.to_string(),
        result: "ok".into(),
    };
    for number in 0..5 {
        store.append_audit(entry(number)).await.expect("appended");
    }
    assert_eq!(store.audit(1, 2).await.expect("read"), (vec![entry(3), entry(2)], 5));
    assert_eq!(store.audit(5, 2).await.expect("read"), (Vec::new(), 5));
    let skip = AUDIT_KEPT - 2;
    if let Some(cluster) = cluster {
        let sql = format!("SELECT setval('foregate.audit_id_seq', {})", skip + 5);
        drop(cluster.ask(&sql).await.expect("advanced"));
    } else {
        let connection = rusqlite::Connection::open(state.path().join("foregate.db")).expect("the store's file");
        let sql = "UPDATE sqlite_sequence SET seq = ?1 WHERE name = 'audit'";
        connection.execute(sql, [skip + 5]).expect("advanced");
    }
    store.append_audit(entry(5)).await.expect("appended");
    let expired = (0..1_500).map(|number| {
        let network = format!("10.0.{}.{}/32", number / 250, number % 250);
        Change::Block(block(&network, "", Source::Automatic, 1, Some(50)))
    });
    let mut changes: Vec<Change> = expired.collect();
    changes.push(Change::Block(block("192.0.2.0/24", "", Source::Automatic, 1, Some(51))));
    drop(store.apply(changes).await.expect("stored"));
    assert_eq!(store.purge(at(50)).await.expect("purged"), PURGE_BATCH);
    assert_eq!(store.purge(at(50)).await.expect("purged"), 500);
    assert_eq!(store.purge(at(50)).await.expect("purged"), 0);
    assert_eq!(store.blocks().await.expect("read").len(), 1);
    let (kept, _) = store.audit(0, 10).await.expect("read");
    assert_eq!(kept.first(), Some(&entry(5)));
    assert!(kept.len() < 6, "the oldest are forgotten: {kept:?}");
}

#[tokio::test]
async fn sqlite_keeps_its_promises() {
    a_refusal_is_told_from_an_outage(None).await;
    the_newest_manual_and_the_longest_automatic_block_stay(None).await;
    audit_is_paged_and_bounded_and_expired_blocks_are_purged(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_its_promises() {
    let cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let (one, two) = (
        open(cluster.address(), state.path()),
        open(cluster.address(), state.path()),
    );
    let (first, second) = tokio::join!(one.blocks(), two.blocks());
    assert_eq!(
        (first.expect("migrated").len(), second.expect("migrated").len()),
        (0, 0)
    );
    the_newest_manual_and_the_longest_automatic_block_stay(Some(&cluster)).await;
    drop(cluster.ask("TRUNCATE foregate.blocks").await.expect("emptied"));
    audit_is_paged_and_bounded_and_expired_blocks_are_purged(Some(&cluster)).await;
    a_refusal_is_told_from_an_outage(Some(&cluster)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_that_was_made_beforehand_takes_no_right_to_make_one() {
    let cluster = Cluster::start().await;
    for sql in ["CREATE ROLE gate LOGIN", "CREATE SCHEMA foregate AUTHORIZATION gate"] {
        drop(cluster.ask(sql).await.expect("prepared"));
    }
    let state = tempfile::tempdir().expect("a directory");
    let address = cluster.text().replace("user=postgres", "user=gate");
    let store = open(Some(Secret::new(address)), state.path());
    store.blocks().await.expect("migrated");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_with_its_beginning_and_ends_when_postgres_is_back() {
    let mut cluster = Cluster::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let store = open(cluster.address(), state.path());
    store.ping().await.expect("reached");
    cluster.down();
    let down = store.ping().await;
    assert!(matches!(down, Err(Error::Unreachable(_))), "{down:?}");
    let Some(Condition::Degraded(text)) = store.health.read().remove("store") else {
        panic!("the board tells of the outage")
    };
    assert!(text.starts_with("down since 2"), "{text}");
    drop(store.blocks().await);
    let Some(Condition::Degraded(later)) = store.health.read().remove("store") else {
        panic!("the board tells of the outage still")
    };
    assert_eq!(later.get(..31), text.get(..31), "the beginning stays");
    cluster.up().await;
    store.ping().await.expect("reached");
    assert!(store.health.all_healthy() && *store.up().borrow());
}

#[tokio::test(flavor = "multi_thread")]
async fn required_tls_trusts_the_named_authority_and_no_other() {
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut parameters = rcgen::CertificateParams::new(Vec::<String>::new()).expect("no names");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let pem = parameters.self_signed(&key).expect("signed").pem();
        (rcgen::Issuer::new(parameters, key), pem)
    };
    let ((ours, trusted), (_, foreign)) = (authority("ours"), authority("foreign"));
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let leaf = leaf.signed_by(&key, &ours).expect("signed").pem();
    let mut cluster = Cluster::start().await;
    cluster.down();
    cluster.speak_tls(&leaf, &key.serialize_pem());
    cluster.up().await;
    let state = tempfile::tempdir().expect("a directory");
    let reach = async |sslmode: &str, root: &str| {
        let path = state.path().join("root.pem");
        std::fs::write(&path, root).expect("written");
        let address = format!(
            "postgresql://postgres@localhost:{}/postgres?sslmode={sslmode}&sslrootcert={}",
            cluster.port,
            path.display()
        );
        let store = open(Some(Secret::new(address)), state.path());
        store.ping().await
    };
    reach("require", &trusted).await.expect("trusted");
    let refused = reach("verify-full", &foreign).await;
    assert!(matches!(refused, Err(Error::Unreachable(_))), "{refused:?}");
    reach("disable", &foreign).await.expect("in the clear");
    let unknown = Config {
        postgres: Some(Secret::new("postgres://localhost/x?sslmode=perhaps")),
        pool_size: 1,
        state_dir: state.path().to_owned(),
    };
    let unknown = Store::open(&unknown, Board::default());
    assert!(matches!(unknown, Err(Error::Address(_))), "{unknown:?}");
}
