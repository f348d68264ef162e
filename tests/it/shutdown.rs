//! SIGTERM drains.

use std::sync::Arc;

use rustix::process::Signal;
use tokio::sync::Notify;

use crate::support::client::Raw;
use crate::support::origin::{Origin, Script, ok};
use crate::support::process::{Config, Gate};

#[tokio::test]
async fn request_in_flight_is_answered_after_sigterm() {
    let open = Arc::new(Notify::new());
    let gate_of_origin = Arc::clone(&open);
    let origin = Origin::start(move |_| Script::After(Arc::clone(&gate_of_origin), ok("late"))).await;
    let mut gate = Gate::start(&Config::before(&origin)).await;
    let mut raw = Raw::plain(gate.address).await;
    raw.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    origin.wait_for("/slow").await;
    gate.signal(Signal::TERM);
    open.notify_one();
    assert_eq!(raw.answer().await.body.as_ref(), b"late");
    assert!(gate.exited().await.success(), "{}", gate.log());
}
