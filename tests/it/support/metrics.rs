//! Reading Prometheus text.

use std::net::SocketAddr;

use super::client;

/// The sample whose name and labels are exactly these, e.g. `foregate_x_total{kind="a"}`.
pub(crate) fn sample(text: &str, name: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

pub(crate) async fn scrape(admin: SocketAddr) -> String {
    let answer = client::get(admin, "/metrics", "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    String::from_utf8_lossy(&answer.body).into_owned()
}
