//! Hostile and odd requests: for each, what the client gets and what, if anything, the app sees. Whatever a request pretends
//! to be, the app never sees a second one.

mod framing;
mod h2;
mod headers;
mod target;

use crate::support::client::Raw;
use crate::support::origin::Origin;
use crate::support::process::{Config, Gate};

/// What must become of a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Want {
    /// This status, then the end of the connection; the app sees nothing.
    Refused(u16),
    /// This status, then the end of the connection; the app may see the head of a body that never becomes whole, which its
    /// own answer of 200 would betray.
    RefusedInBody(u16),
    /// This status; the connection may go on, the app sees nothing.
    Answered(u16),
    /// 200, and the app sees one request whose head, in lower case, contains the first and lacks the second.
    Passes(&'static [&'static str], &'static [&'static str]),
    /// The same, and the connection ends behind it: nothing that follows is read.
    PassesAndCloses(&'static [&'static str], &'static [&'static str]),
}

pub(super) type Case = (&'static str, &'static str, Want);

/// Runs a table against one gate. Each case is followed by an honest request on the same connection, which must be answered as
/// the second one or find the connection closed: a smuggled request would take its answer.
pub(super) async fn run(cases: &[Case]) {
    let origin = Origin::answering("x").await;
    let gate = Gate::start(&Config::before(&origin)).await;
    let mut wrong = Vec::new();
    for (name, request, want) in cases {
        let before = origin.heads().len();
        let mut raw = Raw::plain(gate.address).await;
        raw.send(request).await;
        let answer = crate::support::wait::within(name, raw.try_answer()).await;
        let status = answer.as_ref().map(|answer| answer.status);
        // The connection may be closed already, and the write fail: both mean that there is no second answer.
        let sent = raw.try_send("GET /after HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let after = match sent {
            Ok(()) => crate::support::wait::within(name, raw.try_answer()).await,
            Err(_) => None,
        };
        let seen = origin.heads().split_off(before);
        let (honest, own): (Vec<_>, Vec<_>) = seen.into_iter().partition(|head| head.starts_with("GET /after "));
        let own: Vec<String> = own.iter().map(|head| head.to_ascii_lowercase()).collect();
        if honest.len() != usize::from(after.is_some()) || own.len() > 1 {
            wrong.push(format!("{name}: the app saw a request of nobody: {own:?} {honest:?}"));
        }
        let right = match want {
            Want::Refused(wanted) => status == Some(*wanted) && own.is_empty() && after.is_none(),
            Want::RefusedInBody(wanted) => status == Some(*wanted) && after.is_none(),
            Want::Answered(wanted) => status == Some(*wanted) && own.is_empty(),
            Want::Passes(has, lacks) | Want::PassesAndCloses(has, lacks) => {
                status == Some(200)
                    && !(after.is_some() && matches!(want, Want::PassesAndCloses(..)))
                    && own.len() == 1
                    && has.iter().all(|text| own[0].contains(text))
                    && !lacks.iter().any(|text| own[0].contains(text))
            }
        };
        if !right {
            wrong.push(format!(
                "{name}: wanted {want:?}, got {status:?}, next {:?}, the app saw {own:?}",
                after.map(|answer| answer.status)
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}
