//! Child processes, all started here: cleared environment, own process group, lower priority, killed with us, bounded
//! and redacted stderr, a time-out.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;

use super::secrets::PrivateDirectory;
use super::{Error, Target};
use crate::priority;

/// More of a program's complaint than a person reads.
const STDERR_BYTES_MAX: usize = 16 * 1024;
const STDERR_HEAD_BYTES: usize = 4 * 1024;
/// As much as an unprivileged process may ask for (`fs.pipe-max-size`).
const PIPE_BYTES: usize = 1024 * 1024;
/// What begins that the server adds to an error.
const ADDED: [&str; 3] = ["DETAIL:", "CONTEXT:", "Command was:"];

/// What to run.
#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    environment: Vec<(&'static str, String)>,
    stdin: Stdio,
    stdout: Stdio,
    /// Takes both outputs; else standard error is kept for the complaint.
    log: Option<std::fs::File>,
    user: Option<User>,
    pace: Pace,
    password: Option<String>,
    private: Option<PrivateDirectory>,
}

/// How much of the machine a program may have while others want it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Lowered,
    Full,
}

/// An account of the system, which a program runs as instead of ours: PostgreSQL's server refuses to run as root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl Command {
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            args: Vec::new(),
            environment: Vec::new(),
            stdin: Stdio::null(),
            stdout: Stdio::null(),
            log: None,
            user: None,
            pace: Pace::Lowered,
            password: None,
            private: None,
        }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn stdin_piped(mut self) -> Self {
        self.stdin = Stdio::piped();
        self
    }

    #[must_use]
    pub fn stdout_piped(mut self) -> Self {
        self.stdout = Stdio::piped();
        self
    }

    /// Both outputs go to `file`.
    #[must_use]
    pub fn log_to(mut self, file: std::fs::File) -> Self {
        self.log = Some(file);
        self
    }

    /// Runs as `user`; needs to be root.
    #[must_use]
    pub fn user(mut self, user: Option<User>) -> Self {
        self.user = user;
        self
    }

    /// Not behind others: somebody waits for a recovery.
    #[must_use]
    pub fn at_full_speed(mut self) -> Self {
        self.pace = Pace::Full;
        self
    }

    /// Sets a variable of the otherwise empty environment.
    #[must_use]
    pub fn environment(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Talks to `target` as `application`, the name by which a later start finds its backends.
    ///
    /// # Errors
    /// When no private directory for the password can be made.
    pub fn target(mut self, target: &Target, application: &str) -> Result<Self, Error> {
        self.environment.extend(target.environment(application));
        if let Some(password) = target.password() {
            let private = PrivateDirectory::new(&std::env::temp_dir(), "pass").map_err(Error::Private)?;
            let file = private.write_passfile(&password).map_err(Error::Private)?;
            self.environment
                .push(("PGPASSFILE", file.to_string_lossy().into_owned()));
            self.password = Some(password);
            self.private = Some(private);
        }
        Ok(self)
    }

    /// # Errors
    /// When the program cannot be started.
    pub fn start(self) -> Result<Child, Error> {
        let name = self
            .program
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let start = |source| Error::Start {
            program: name.clone(),
            source,
        };
        let mut command = wrapped(&self.program, self.user, self.pace);
        let (stdout, stderr) = match self.log {
            None => (self.stdout, Stdio::piped()),
            Some(file) => (Stdio::from(file.try_clone().map_err(start)?), Stdio::from(file)),
        };
        command
            .args(&self.args)
            .env_clear()
            .envs(self.environment)
            .stdin(self.stdin)
            .stdout(stdout)
            .stderr(stderr)
            .current_dir("/")
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(start)?;
        let mut stderr = JoinSet::new();
        if let Some(pipe) = child.stderr.take() {
            stderr.spawn(read_tail(pipe));
        }
        Ok(Child {
            program: name,
            group: child
                .id()
                .and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)),
            child,
            stderr,
            password: self.password,
            _private: self.private,
        })
    }
}

/// `program` behind the system's own `setpriv` and, unless it is urgent, `nice` and `ionice`, where they are: each replaces itself by the next.
/// (Between fork and exec the same calls would need `unsafe`.)
#[expect(clippy::disallowed_methods, reason = "the one place where children are started")]
fn wrapped(program: &Path, user: Option<User>, pace: Pace) -> tokio::process::Command {
    static FOUND: OnceLock<[Option<PathBuf>; 3]> = OnceLock::new();
    let [setpriv, nice, ionice] = FOUND.get_or_init(|| ["setpriv", "nice", "ionice"].map(found));
    let mut chain: Vec<OsString> = Vec::new();
    let mut add = |tool: &Option<PathBuf>, args: &[&str]| {
        if let Some(path) = tool {
            chain.push(path.into());
            chain.extend(args.iter().map(OsString::from));
        }
    };
    add(setpriv, &["--pdeathsig", "KILL"]);
    if pace == Pace::Lowered {
        // `nice` adds to what the thread hands down.
        add(nice, &["-n", &priority::further(priority::BEHIND).to_string()]);
        add(ionice, &["-c", "2", "-n", "7"]);
    }
    if let Some(User { uid, gid }) = user {
        // Behind the others, since a change of user clears the death signal: hence a second one.
        let (uid, gid) = (uid.to_string(), gid.to_string());
        let change = [
            "--pdeathsig",
            "KILL",
            "--clear-groups",
            "--reuid",
            &uid,
            "--regid",
            &gid,
        ];
        add(setpriv, &change);
    }
    match chain.split_first() {
        None => tokio::process::Command::new(program),
        Some((first, rest)) => {
            let mut command = tokio::process::Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

fn found(name: &str) -> Option<PathBuf> {
    let directories = ["/usr/bin", "/bin", "/usr/sbin"];
    directories
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

/// The major version that `program --version` tells.
#[expect(clippy::disallowed_methods, reason = "the one place where children are started")]
pub(super) fn version_of(program: &Path) -> Option<u32> {
    let output = std::process::Command::new(program)
        .arg("--version")
        .env_clear()
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split('.').next()?.parse().ok()
}

/// A running program; its whole process group is killed when dropped.
#[derive(Debug)]
pub struct Child {
    program: String,
    group: Option<rustix::process::Pid>,
    child: tokio::process::Child,
    stderr: JoinSet<String>,
    password: Option<String>,
    _private: Option<PrivateDirectory>,
}

impl Child {
    /// The program's output, for a blocking reader.
    ///
    /// # Errors
    /// It was not piped, or was taken already.
    pub fn take_stdout(&mut self) -> Result<std::fs::File, Error> {
        let pipe = self.child.stdout.take().map(tokio::process::ChildStdout::into_owned_fd);
        let file = self.file(pipe)?;
        // Where there is a limit in the way, more switches between the two and the same bytes.
        let _ = rustix::pipe::fcntl_setpipe_size(&file, PIPE_BYTES);
        Ok(file)
    }

    /// The program's input, for a blocking writer.
    ///
    /// # Errors
    /// It was not piped, or was taken already.
    pub fn take_stdin(&mut self) -> Result<std::fs::File, Error> {
        let pipe = self.child.stdin.take().map(tokio::process::ChildStdin::into_owned_fd);
        self.file(pipe)
    }

    fn file(&self, pipe: Option<std::io::Result<OwnedFd>>) -> Result<std::fs::File, Error> {
        let pipe = pipe.unwrap_or_else(|| Err(std::io::ErrorKind::NotConnected.into()));
        pipe.map(std::fs::File::from).map_err(|source| Error::Start {
            program: self.program.clone(),
            source,
        })
    }

    /// Whether the program has ended, and how.
    pub fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Asks the program itself, not its group, to end.
    pub fn signal(&self, signal: rustix::process::Signal) {
        if let Some(process) = self.group {
            // It may be gone; then it has ended, which the next look at it tells.
            rustix::process::kill_process(process, signal).ok();
        }
    }

    /// Waits for the end, whatever it is, at most for `limit`. `false`: it still runs.
    pub async fn wait(&mut self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.child.wait()).await.is_ok()
    }

    /// Waits for exit status 0, at most for `limit`.
    ///
    /// # Errors
    /// Any other end, with what the program complained about.
    pub async fn finish(mut self, limit: Duration) -> Result<(), Error> {
        let Ok(status) = tokio::time::timeout(limit, self.child.wait()).await else {
            return Err(Error::Slow {
                act: self.program.clone(),
                seconds: limit.as_secs(),
            });
        };
        let status = status.map_err(|source| Error::Start {
            program: self.program.clone(),
            source,
        })?;
        // Its own children may still hold the pipe; they get no more time.
        self.kill_group();
        self.group = None;
        if status.success() {
            return Ok(());
        }
        let stderr = match self.stderr.join_next().await {
            Some(Ok(text)) => text,
            _ => String::new(),
        };
        Err(Error::Failed {
            program: self.program.clone(),
            status: status.to_string(),
            stderr: self.redacted(&stderr),
        })
    }

    fn redacted(&self, text: &str) -> String {
        let text = without_rows(&self.program, text);
        match self.password.as_deref().filter(|password| !password.is_empty()) {
            Some(password) => text.replace(password, "[secret]"),
            None => text,
        }
    }

    fn kill_group(&self) {
        if let Some(group) = self.group {
            // It may be gone; that is what is wanted.
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill_group();
    }
}

/// What a program complains of, without what the server adds: the row that it refused, the statement with the value in it.
fn without_rows(program: &str, text: &str) -> String {
    let begins = format!("{program}: ");
    let mut is_kept = true;
    let lines = text.lines().filter(|line| {
        is_kept = match is_kept {
            true => !ADDED.iter().any(|words| line.starts_with(words)),
            // Values may have several lines.
            false => line.starts_with(&begins),
        };
        is_kept
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Reads to the end and keeps the first part, where an error begins, and the last: a program that floods stderr must neither
/// block nor fill memory.
async fn read_tail(mut pipe: tokio::process::ChildStderr) -> String {
    let (mut head, mut kept): (Vec<u8>, Vec<u8>) = Default::default();
    let mut is_cut = false;
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = pipe.read(&mut buffer).await {
        let read = buffer.get(..read).unwrap_or_default();
        let (first, rest) = read.split_at(read.len().min(STDERR_HEAD_BYTES - head.len()));
        head.extend_from_slice(first);
        kept.extend_from_slice(rest);
        let surplus = kept.len().saturating_sub(STDERR_BYTES_MAX);
        kept.drain(..surplus);
        is_cut |= surplus > 0;
    }
    let (head, kept) = (String::from_utf8_lossy(&head), String::from_utf8_lossy(&kept));
    // What the last part begins in may be a row.
    let seam = if is_cut {
        format!("\n{}", ADDED[0])
    } else {
        String::new()
    };
    format!("{head}{seam}{kept}").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaint_of_a_program_is_told_without_the_rows_in_it() {
        let text = "pg_restore: error: COPY failed for table \"t\": ERROR:  it violates check constraint \"c\"\n\
                    DETAIL:  Failing row contains (a secret\nof two lines).\nCONTEXT:  COPY t, line 1: \"a secret\"\n\
                    pg_restore: error: could not execute query: ERROR:  no such type\nCommand was: CREATE a secret\n\nof two lines\n\
                    pg_restore: warning: errors ignored: 2";
        let told = "pg_restore: error: COPY failed for table \"t\": ERROR:  it violates check constraint \"c\"\n\
                    pg_restore: error: could not execute query: ERROR:  no such type\n\
                    pg_restore: warning: errors ignored: 2";
        assert_eq!(without_rows("pg_restore", text), told);
        let other = "pg_dump: error: connection failed: No such file\n\tIs the server running?";
        assert_eq!(without_rows("pg_dump", other), other);
    }

    #[tokio::test]
    async fn error_stays_readable_however_long_the_statement_behind_it_is() {
        let script = "echo 'sh: error: no such type' >&2; echo 'Command was: CREATE' >&2; yes secret | head -c 100000 >&2; exit 1";
        let command = Command::new("/bin/sh".into()).arg("-c").arg(script);
        let ended = command.start().expect("it starts").finish(Duration::from_mins(1)).await;
        let told = ended.expect_err("it failed").to_string();
        assert!(told.contains("no such type") && !told.contains("secret"), "{told}");
    }
}
