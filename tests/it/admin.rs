//! The admin listener: who may, and refusals as problem documents.

use crate::support::client;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};

#[tokio::test]
async fn api_needs_a_token_and_quotes_what_is_no_address() {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let stats = "/api/infrastructure/ddos/stats";
    let refused = client::get(gate.admin, stats, "").await;
    assert_eq!(refused.status, 401);
    refused.problem();
    assert_eq!(gate.admin("GET", stats, "").await.status, 200);
    let unreadable = gate.admin("POST", "/api/infrastructure/ddos/block/nonsense", "").await;
    assert_eq!(unreadable.status, 422);
    assert!(unreadable.problem().to_string().contains("nonsense"));
    assert_eq!(client::get(gate.admin, "/health", "").await.status, 200);
}
