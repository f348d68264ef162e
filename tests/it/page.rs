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
        "kinds": kinds, "nextRun": null, "warnings": []})
}

fn with_backups() -> Value {
    json!({
        get("backups/stats"): well(&backups()),
        get("backups?limit=200"): well(&json!({"backups": [], "running": null})),
        get("backups/runs"): well(&json!({"runs": []})),
    })
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
        get("pitr/drills"): well(drills),
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
