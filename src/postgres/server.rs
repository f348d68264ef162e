//! A PostgreSQL server of our own on a directory that we made: on a private socket, under an account that may run one,
//! ended with us unless it is let go.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::child::{Child, Command, User};
use super::program::Programs;
use super::{Error, Target};

/// Names the socket only; nothing listens on an address.
const PORT: u16 = 5432;
/// The end of its log that an error shows.
const LOG_BYTES_MAX: u64 = 16 * 1024;
const STOP_LIMIT: Duration = Duration::from_secs(60);
const START_LIMIT: Duration = Duration::from_secs(600);

/// How and where one is started.
#[derive(Debug, Clone)]
pub struct Layout {
    pub data: PathBuf,
    /// Holds its socket, access rules and log; private to the account.
    pub runtime: PathBuf,
    pub user: Option<User>,
}

impl Layout {
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.runtime.join("log")
    }

    /// The options that it was started with, as a shell reads them.
    #[must_use]
    pub fn options(&self) -> PathBuf {
        self.runtime.join("options")
    }

    /// The server's address for `database`.
    ///
    /// # Errors
    /// A directory whose name cannot stand in an address.
    pub fn target(&self, role: &str, database: &str) -> Result<Target, Error> {
        Target::local(&self.runtime, PORT, role, database)
    }
}

/// A running one.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    layout: Layout,
}

impl Server {
    /// Starts it with `settings`, which outweigh every file. It is running, not yet ready, when this returns.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(programs: &Programs, layout: Layout, settings: &[(&str, String)]) -> Result<Self, Error> {
        let rules = layout.runtime.join("hba");
        let prepared = || -> io::Result<File> {
            // The directory is private: whoever reaches the socket may come in.
            std::fs::write(&rules, "local all all trust\n")?;
            hand_over(&rules, layout.user)?;
            let log = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(layout.log())?;
            hand_over(&layout.log(), layout.user)?;
            Ok(log)
        };
        let log = prepared().map_err(Error::Private)?;
        let mut command = Command::new(programs.path("postgres"))
            .arg("-D")
            .arg(layout.data.as_os_str())
            .user(layout.user)
            .at_full_speed()
            .environment("LC_ALL", "C".to_owned())
            .environment("PGTZ", "UTC".to_owned())
            .log_to(log);
        let fixed = [
            ("listen_addresses", String::new()),
            ("port", PORT.to_string()),
            ("unix_socket_directories", layout.runtime.display().to_string()),
            ("unix_socket_permissions", "0700".to_owned()),
            ("hba_file", rules.display().to_string()),
            ("external_pid_file", String::new()),
            ("ssl", "off".to_owned()),
            ("logging_collector", "off".to_owned()),
            ("log_destination", "stderr".to_owned()),
            ("log_min_messages", "log".to_owned()),
            ("lc_messages", "C".to_owned()),
            ("log_timezone", "UTC".to_owned()),
            ("log_line_prefix", String::new()),
            ("cluster_name", "foregate".to_owned()),
        ];
        let mut options = String::new();
        for (name, value) in fixed.iter().chain(settings) {
            command = command.arg("-c").arg(format!("{name}={value}"));
            options.push_str(&format!("-c {} ", quoted(&format!("{name}={value}"))));
        }
        let path = layout.options();
        let written = std::fs::write(&path, options).and_then(|()| hand_over(&path, layout.user));
        written.map_err(Error::Private)?;
        Ok(Self {
            child: Some(command.start()?),
            layout,
        })
    }

    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Fails once the server has ended, with what it said last.
    ///
    /// # Errors
    /// It has ended.
    pub fn alive(&mut self) -> Result<(), Error> {
        let ended = self.child.as_mut().and_then(Child::ended);
        match ended {
            None => Ok(()),
            Some(status) => Err(Error::Failed {
                program: "postgres".to_owned(),
                status,
                stderr: complaint(&self.log_tail()),
            }),
        }
    }

    /// Lets it live on: it is started once more, by `pg_ctl`, as one that does not end with us.
    ///
    /// # Errors
    /// When it does not start again.
    pub async fn let_go(self, programs: &Programs) -> Result<(), Error> {
        let layout = self.layout.clone();
        self.stop().await;
        start_detached(programs, &layout).await
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.layout.log()).unwrap_or_default()
    }

    /// Ends it in an orderly way, or by force when that takes too long. It is gone afterwards.
    pub async fn stop(mut self) {
        if let Some(mut child) = self.child.take() {
            child.signal(Signal::INT);
            if !child.wait(STOP_LIMIT).await {
                child.signal(Signal::QUIT);
                child.wait(STOP_LIMIT).await;
            }
        }
    }
}

/// Starts a server as it was started last, so that it outlives us.
///
/// # Errors
/// When it does not come up.
pub async fn start_detached(programs: &Programs, layout: &Layout) -> Result<(), Error> {
    let options = std::fs::read_to_string(layout.options()).map_err(Error::Private)?;
    let command = control(programs, layout)
        .arg("-l")
        .arg(layout.log().as_os_str())
        .arg("-o")
        .arg(options)
        .arg("-w")
        .arg("-t")
        .arg(START_LIMIT.as_secs().to_string())
        .arg("start");
    let log = OpenOptions::new()
        .append(true)
        .open(layout.log())
        .map_err(Error::Private)?;
    // Its outputs would be held open by the server that it leaves behind.
    command.log_to(log).start()?.finish(START_LIMIT.saturating_mul(2)).await
}

/// Ends a server that was let go.
///
/// # Errors
/// It did not end, or there is none.
pub async fn stop_detached(programs: &Programs, layout: &Layout) -> Result<(), Error> {
    let command = control(programs, layout).arg("-m").arg("fast").arg("-w").arg("stop");
    command.start()?.finish(STOP_LIMIT.saturating_mul(2)).await
}

fn control(programs: &Programs, layout: &Layout) -> Command {
    Command::new(programs.path("pg_ctl"))
        .arg("-D")
        .arg(layout.data.as_os_str())
        .user(layout.user)
        .at_full_speed()
        .environment("LC_ALL", "C".to_owned())
        .environment("PGTZ", "UTC".to_owned())
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The lines that say why a server went, without the rest of its log.
fn complaint(log: &str) -> String {
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| {
            ["FATAL:", "PANIC:", "ERROR:", "HINT:", "DETAIL:"]
                .iter()
                .any(|mark| line.contains(mark))
        })
        .collect();
    match lines.len() {
        0 => log.lines().rev().take(3).collect::<Vec<_>>().join(" | "),
        count => lines.get(count.saturating_sub(4)..).unwrap_or_default().join(" | "),
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.size();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Gives `path` to `user`.
///
/// # Errors
/// Of the system.
pub fn hand_over(path: &Path, user: Option<User>) -> io::Result<()> {
    match user {
        Some(user) => std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

/// When we are root: whose the nearest directory at or above `path` is, unless that is root as well.
#[must_use]
pub fn owner(path: &Path) -> Option<User> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let metadata = path.ancestors().find_map(|path| std::fs::metadata(path).ok())?;
    (metadata.uid() != 0).then(|| User {
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// The account under which a server of ours runs: our own, or, when we are root, `name`.
///
/// # Errors
/// We are root, and there is no such account.
pub fn account(name: &str) -> Result<Option<User>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let missing = || Error::Account { name: name.to_owned() };
    let accounts = std::fs::read_to_string("/etc/passwd").map_err(|_| missing())?;
    let found = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (login, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (login == name).then_some(User {
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
        })
    });
    found.filter(|user| user.uid != 0).map(Some).ok_or_else(missing)
}
