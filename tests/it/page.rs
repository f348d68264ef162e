//! The web page, as a person sees it in a browser.

use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};

const API: &str = "/api/infrastructure";

async fn gate() -> (Origin, Gate) {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    (origin, gate)
}

fn get(path: &str) -> String {
    format!("GET {API}/{path}")
}

fn well(body: &Value) -> Value {
    json!({"status": 200, "body": body})
}

fn ago(hours: i64) -> String {
    (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours)).to_string()
}

#[tokio::test]
async fn what_became_of_a_block_stays_on_the_page_while_the_audit_trail_cannot_be_read() {
    let (_origin, gate) = gate().await;
    let trail = get("audit?limit=50");
    let away = json!({"detail": "the store cannot be reached; the log says why"});
    let answers = json!({&trail: {"status": 503, "body": away}});
    let Some(mut page) = Browser::open(gate.admin, "gate", &answers).await else {
        return;
    };
    page.reads("audit-note", "cannot be reached").await;
    assert_eq!(
        page.text("message").await,
        "",
        "signing in went well, and the rest of the page works"
    );
    page.value("document.getElementById('block-address').value = '198.51.100.7'")
        .await;
    page.click("#add-block button").await;
    page.reads("message", "198.51.100.7 is blocked.").await;
    page.reads("audit-note", "cannot be reached").await;
    page.reads("blocks", "198.51.100.7").await;
    page.picture("block-with-the-store-away").await;
    page.answer(&trail, None).await;
    page.reads("audit", "198.51.100.7").await;
    assert_eq!(page.text("audit-note").await, "", "it is there again by itself");
    assert!(page.text("message").await.contains("is blocked"));
}

fn backups() -> Value {
    let proven = |at: String| json!({"id": "x", "at": at, "ageSeconds": 1, "durationSeconds": 2.0, "storedBytes": 5000, "level": 2});
    let kind = |kind: &str, is_overdue: bool, last: Value| {
        json!({"kind": kind, "count": 3, "good": 3, "incomplete": 0, "storedBytes": 5000, "overdue": is_overdue,
            "nextRun": null, "lastGood": last})
    };
    let kinds = json!([
        kind("daily", true, proven(ago(24 * 9))),
        kind("weekly", false, Value::Null),
        kind("files:app", false, proven(ago(8))),
    ]);
    json!({"repository": "file:///srv/backups", "timeZone": "UTC", "total": 6, "good": 6, "storedBytes": 10000,
        "kinds": kinds, "nextRun": null, "cluster": "7301", "fileSets": ["app"],
        "warnings": ["The repository is a directory."]})
}

/// A proven backup of the database.
fn dump(number: u8, cluster: &str) -> Value {
    json!({"id": format!("01K9ZZ000000000000000000{number:02}"), "content": "database", "name": "app", "labels": ["daily"],
        "startedAt": "2026-11-20T03:00:05.5Z", "durationSeconds": 2.0, "storedBytes": 5 << 20, "plainBytes": 20 << 20,
        "level": "L2", "good": true, "state": "good", "problem": null, "encrypted": true, "serverVersion": "15.18",
        "cluster": cluster, "rows": 1_234_567})
}

fn but(mut value: Value, changes: &Value) -> Value {
    for (name, change) in changes.as_object().expect("an object") {
        value[name] = change.clone();
    }
    value
}

fn with_backups() -> Value {
    json!({
        get("backups/stats"): well(&backups()),
        get("backups?limit=200"): well(&json!({"backups": [], "running": null})),
        get("backups/runs?limit=20"): well(&json!({"runs": [], "total": 0})),
    })
}

fn listing(backups: &[Value]) -> (u16, Value) {
    (200, json!({"backups": backups, "running": null}))
}

#[tokio::test]
async fn whoever_is_asked_to_restore_or_delete_a_backup_is_told_which_it_is() {
    let (_origin, gate) = gate().await;
    let Some(mut page) = Browser::open(gate.admin, "backups", &with_backups()).await else {
        return;
    };
    let list = get("backups?limit=200");
    page.reads("backups", "There is no backup yet").await;
    page.answer(&list, Some(listing(&[dump(1, "7301")]))).await;
    let row = page.reads("backups", "01K9ZZ00000000000000000001").await;
    assert!(row.contains("2026-11-20 03:00:05 UTC"), "{row}");
    assert!(!row.contains("7301"), "all are of one cluster: {row}");
    let preview = json!({"database": "app", "notes": ["slot \"feed\" stays behind"]});
    let (restore, delete) = (
        format!("POST {API}/backups/restore"),
        format!("DELETE {API}/backups/01K9ZZ00000000000000000001"),
    );
    page.answer(&restore, Some((200, preview))).await;
    page.answer(&delete, Some((200, json!({})))).await;
    for (label, say) in [
        ("Restore", "slot \"feed\" stays behind"),
        ("Delete", "erased by the first clean-up"),
    ] {
        page.click(&format!("#backups [aria-label^={label}]")).await;
        let asked = page.reads("confirm", say).await;
        for fact in [
            "01K9ZZ00000000000000000001",
            "2026-11-20 03:00:05 UTC",
            "database app",
            "1,234,567 rows, 20 MiB",
            "5 MiB",
        ] {
            assert!(asked.contains(fact), "{label} does not say {fact}: {asked}");
        }
        page.picture(&format!("asked-{label}")).await;
        let same = "getComputedStyle(document.getElementById('confirm-yes')).backgroundColor \
            === getComputedStyle(document.getElementById('backup-now')).backgroundColor";
        assert_eq!(page.value(same).await, false, "it looks like what is harmless");
        assert_eq!(page.value("document.activeElement.id").await, "confirm-no");
        page.click("#confirm-no").await;
        page.next_refresh().await;
    }
    assert_eq!(page.value(&format!("asked[{restore:?}]")).await, 1, "it only looked");
    assert_eq!(page.value(&format!("asked[{delete:?}]")).await, Value::Null);
    page.click("#backups [aria-label^=Delete]").await;
    page.click("#confirm-yes").await;
    page.reads("message", "01K9ZZ00000000000000000001 is marked").await;
    let marked = but(dump(1, "7301"), &json!({"good": false, "state": "to be deleted"}));
    page.answer(&list, Some(listing(&[marked]))).await;
    page.reads("backups", "to be deleted").await;
    let undelete = format!("POST {API}/backups/01K9ZZ00000000000000000001/undelete");
    page.answer(&undelete, Some((200, json!({})))).await;
    page.click("#backups [aria-label^='Take the mark off']").await;
    page.reads("message", "The backup stays.").await;
}

#[tokio::test]
async fn list_of_backups_tells_clusters_apart_what_is_wrong_and_how_files_come_back() {
    let (_origin, gate) = gate().await;
    let Some(mut page) = Browser::open(gate.admin, "backups", &with_backups()).await else {
        return;
    };
    let wrong = json!({"good": false, "state": "damaged", "problem": "dump.zst.age hashes otherwise"});
    let files = json!({"content": "files", "name": "<b>x</b>", "cluster": null, "rows": null, "serverVersion": null, "labels": ["files"]});
    let all = [
        dump(1, "7301"),
        but(dump(2, "7302"), &wrong),
        but(dump(3, "7301"), &files),
    ];
    page.answer(&get("backups?limit=200"), Some(listing(&all))).await;
    let shown = page.reads("backups", "cluster 7302, another one").await;
    for part in [
        "cluster 7301, this one",
        "damaged",
        "dump.zst.age hashes otherwise",
        "files <b>x</b>",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    page.picture("clusters-and-damage").await;
    page.click("#backups [aria-label^='How to restore']").await;
    page.reads("words", "foregate backup restore 01K9ZZ00000000000000000003 --into DIR")
        .await;
    assert_eq!(page.text("confirm-yes").await, "", "there is nothing to say yes to");
    page.click("#confirm-no").await;
    let create = format!("POST {API}/backups/create");
    page.answer(&create, Some((202, json!({"id": "x"})))).await;
    page.click("#backup-sets button").await;
    page.reads("message", "The backup of the files app has begun.").await;
}

#[tokio::test]
async fn change_that_is_not_answered_is_said_to_go_on_perhaps_until_the_next_act() {
    let (_origin, gate) = gate().await;
    let Some(mut page) = Browser::open(gate.admin, "backups", &with_backups()).await else {
        return;
    };
    page.reads("n-proven-unit", "of 6 backups").await;
    let create = format!("POST {API}/backups/create");
    page.answer(&create, Some((0, Value::Null))).await;
    page.click("#backup-now").await;
    page.reads("message", "It may be done all the same").await;
    page.next_refresh().await;
    page.picture("unanswered-change").await;
    let told = page.text("message").await;
    assert!(told.contains("look at the runs"), "a refresh wiped it away: {told:?}");
    // The server answers a change within thirty seconds, whatever becomes of it.
    let waits = page.value(&format!("patience[{create:?}]")).await;
    assert!(waits.as_u64() > Some(30_000), "{waits}");
}

#[tokio::test]
async fn what_hinders_a_refresh_is_gone_with_the_next_good_one() {
    let (_origin, gate) = gate().await;
    let Some(mut page) = Browser::open(gate.admin, "gate", &json!({})).await else {
        return;
    };
    page.reads("blocks-note", "Nobody is blocked").await;
    let stats = get("ddos/stats");
    page.answer(&stats, Some((0, Value::Null))).await;
    page.reads("trouble", "does not answer").await;
    page.reads("status", "unreachable").await;
    page.picture("unreachable").await;
    page.answer(&stats, None).await;
    page.reads("status", "healthy").await;
    page.next_refresh().await;
    assert_eq!(page.text("trouble").await, "");
}

#[tokio::test]
async fn newest_proven_backup_is_the_databases_whatever_files_were_backed_up_since() {
    let (_origin, gate) = gate().await;
    let Some(mut page) = Browser::open(gate.admin, "backups", &with_backups()).await else {
        return;
    };
    page.reads("n-newest", "9 days ago").await;
    page.reads("n-newest-unit", "database").await;
    page.picture("newest-proven").await;
    let mut files_alone = backups();
    files_alone["kinds"] = json!([files_alone["kinds"][2]]);
    page.answer(&get("backups/stats"), Some((200, files_alone))).await;
    page.reads("n-newest", "8 hours ago").await;
    page.reads("n-newest-unit", "files").await;
}

fn base(hours: i64, incomplete: Option<&str>, deleted_at: Option<&str>) -> Value {
    json!({"id": hours.to_string(), "stoppedAt": ago(hours), "labels": ["scheduled"], "timeline": 1, "unpackedBytes": 50_000_000,
        "storedBytes": 5_000_000, "incomplete": incomplete, "deletedAt": deleted_at})
}

/// What the four calls of the tab get.
fn recovery([stats, window, bases, drills]: &[Value; 4]) -> Value {
    json!({
        get("pitr/stats"): well(stats),
        get("pitr/window"): well(window),
        get("pitr/base-backups"): well(bases),
        get("pitr/drills?limit=20"): well(drills),
    })
}

fn known() -> Value {
    let (whole, broken, marked) = (
        base(200, None, None),
        base(9, Some("base.tar.zst.age is missing"), None),
        base(300, None, Some(&ago(1))),
    );
    let window = json!({"earliest": ago(200), "latest": ago(1), "recoveryPointSeconds": 3600.0, "gaps": [],
        "stretches": [{"from": ago(200), "to": ago(1)}], "islands": [{"base": "01K9ZZZZZZZZZZZZZZZZZZZZZZ", "from": ago(300), "to": ago(299)}],
        "endsBecause": null});
    let run = json!({"now": null, "last": null});
    let looked_at = ago(0);
    let mut looked = window.clone();
    looked["lookedAt"] = json!(looked_at);
    recovery(&[
        json!({"archive": {"storedBytes": 7_000_000}, "window": window, "lastArchived": {"at": ago(1)},
            "baseBackups": {"count": 1, "storedBytes": 5_000_000, "newest": whole}}),
        looked,
        json!({"baseBackups": [broken, whole, marked], "running": false, "run": run, "lookedAt": looked_at}),
        json!({"drills": [], "running": false, "run": run, "lookedAt": looked_at}),
    ])
}

#[tokio::test]
async fn broken_and_condemned_base_backups_are_not_called_proven() {
    let (_origin, gate) = gate().await;
    let Some(mut page) = Browser::open(gate.admin, "recovery", &known()).await else {
        return;
    };
    let table = page.reads("bases", "cannot be used: base.tar.zst.age is missing").await;
    assert!(table.contains("to be deleted"), "{table}");
    assert_eq!(table.matches("proven").count(), 1, "{table}");
    assert_eq!(page.text("n-bases").await, "1");
    let unit = page.text("n-bases-unit").await;
    assert!(unit.contains("8 days ago; 1 cannot be used"), "{unit}");
    let shown = page.value("document.querySelectorAll('#timeline .base').length").await;
    assert_eq!(
        shown, 2,
        "a recovery may begin at one that is only marked, not at a broken one"
    );
    page.picture("broken-base-backup").await;
}

#[tokio::test]
async fn without_the_log_what_would_be_lost_is_all_since_the_last_proven_dump() {
    let (_origin, gate) = gate().await;
    let mut answers = known();
    for call in [get("pitr/stats"), get("pitr/window")] {
        let nothing = json!({"earliest": null, "latest": null, "recoveryPointSeconds": null, "stretches": []});
        let body = answers[&call]["body"].take();
        answers[&call]["body"] = match body.get("window") {
            Some(window) => but(body.clone(), &json!({"window": but(window.clone(), &nothing)})),
            None => but(body, &nothing),
        };
    }
    answers[get("backups/stats")] = well(&backups());
    let Some(mut page) = Browser::open(gate.admin, "recovery", &answers).await else {
        return;
    };
    page.reads("n-rpo", "9.0 days").await;
    page.reads("n-rpo-unit", "since the last proven dump, of ").await;
    page.picture("no-log-but-a-dump").await;
    let none = but(backups(), &json!({"kinds": []}));
    page.answer(&get("backups/stats"), Some((200, none))).await;
    page.reads("n-rpo", "all").await;
    page.reads("n-rpo-unit", "no dump is proven").await;
    page.answer(&get("backups/stats"), Some((503, json!({"detail": "away"}))))
        .await;
    page.reads("n-rpo-unit", "cannot be read").await;
}

#[tokio::test]
async fn before_the_repository_was_read_nobody_says_that_nothing_can_be_recovered() {
    let (_origin, gate) = gate().await;
    let run = json!({"now": null, "last": null});
    let unread = recovery(&[
        json!({"archive": null, "window": null, "lastArchived": null, "baseBackups": null, "lastDrill": null}),
        json!({"earliest": null, "latest": null, "recoveryPointSeconds": null, "stretches": [], "gaps": [], "islands": [],
            "endsBecause": null, "lookedAt": null}),
        json!({"baseBackups": [], "running": false, "run": run, "lookedAt": null}),
        json!({"drills": [], "running": false, "run": run, "lookedAt": null}),
    ]);
    let Some(mut page) = Browser::open(gate.admin, "recovery", &unread).await else {
        return;
    };
    page.reads("window-text", "has not been read yet").await;
    for id in ["n-rpo", "n-rto", "n-bases", "n-log"] {
        assert_eq!(page.text(id).await, "–", "{id}");
        assert_eq!(page.text(&format!("{id}-unit")).await, "not read yet", "{id}");
    }
    page.picture("recovery-unread").await;
    // Once it was read, it says of when that is.
    for (call, answer) in known().as_object().expect("calls") {
        page.answer(call, Some((200, answer["body"].clone()))).await;
    }
    page.reads("window-text", "Read from the repository").await;
    page.picture("recovery-read").await;
    // What fails later takes nothing away that is known, and is no word about the configuration.
    let away = json!({"detail": "this took too long"});
    page.answer(&get("pitr/window"), Some((503, away))).await;
    page.reads("trouble", "this took too long").await;
    assert!(page.text("window-text").await.contains("Every instant from"));
    assert_eq!(page.text("recovery-off").await, "");
    page.picture("recovery-trouble").await;
}

#[tokio::test]
async fn recovery_that_is_off_says_how_to_have_it() {
    let (_origin, gate) = gate().await;
    let off = gate.admin("GET", &format!("{API}/pitr/stats"), "").await;
    assert_eq!(off.status, 422, "{off:?}");
    assert!(off.problem()["detail"].to_string().contains("is off"), "{off:?}");
    let Some(mut page) = Browser::open(gate.admin, "recovery", &json!({})).await else {
        return;
    };
    page.reads("recovery-off", "enabled = true").await;
    assert_eq!(page.text("trouble").await, "");
    page.picture("recovery-off").await;
}
