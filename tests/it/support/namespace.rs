//! A network of a test's own, where an address beyond loopback can be used and nobody else can reach it.

use std::process::{Command, Stdio};

/// What the network has beside loopback (RFC 5737).
pub(crate) const ADDRESS: &str = "192.0.2.1";

const INSIDE: &str = "FOREGATE_TEST_IN_OWN_NETWORK";

/// Whether the caller is to run its body: it is in a network of its own. Otherwise the test of this name is run in one, to
/// its end. Where the system makes no network for us it fails, rather than pass unproven; `make test` leaves it out there,
/// which is why such a test stands in a module named `own_network`.
pub(crate) fn is_here_or_runs(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let made = entering().arg("true").output();
    let is_made = made.as_ref().is_ok_and(|made| made.status.success());
    assert!(
        is_made,
        "no network can be made here: `--skip own_network::` ({made:?})"
    );
    let program = std::env::current_exe().expect("this program has a path");
    let again = entering()
        .env(INSIDE, "1")
        .arg(program)
        .args([test, "--exact", "--nocapture"])
        .output()
        .expect("unshare runs");
    let said = [again.stdout, again.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(again.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// A command that makes the network and becomes the program that its arguments will name.
fn entering() -> Command {
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command
        .args(["--net", "sh", "-ec"])
        .arg(format!(
            "ip link set lo up; ip address add {ADDRESS}/32 dev lo; exec \"$@\""
        ))
        .arg("sh")
        .stdin(Stdio::null());
    command
}
