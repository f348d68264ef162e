//! Without the server: straight to the repository. For `get` a helper process fetches ahead, since each `get` is a
//! process of its own and can keep nothing.

use std::fs::File as OpenFile;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use sha2::{Digest as _, Sha256};
use tokio::signal::unix::SignalKind;

use super::place::Unfinished;
use crate::config::{self, Wanted};
use crate::pitr::Archive;
use crate::pitr::archive::Found;
use crate::pitr::feed::Feed;
use crate::pitr::socket::client::{Asked, ask};
use crate::pitr::socket::server::{self, Listener};
use crate::pitr::socket::{Act, Answer, Request};
use crate::repository::layout::Cluster;
use crate::repository::{Config, Keys, Repository};
use crate::telemetry::cause::chain;

/// A recovery that asked for nothing for so long has ended.
const FEED_IDLE: Duration = Duration::from_secs(30);

/// The repository, named on the command line.
#[derive(Debug, Args)]
pub(super) struct Alone {
    /// Without the server: file:///directory or s3://bucket/prefix.
    #[arg(long, global = true, value_name = "URL")]
    repository: Option<String>,
    /// Without the server: the configuration file that names repository and keys.
    #[arg(long, global = true, value_name = "FILE", conflicts_with_all = ["repository", "recipients", "identity"])]
    config: Option<PathBuf>,
    /// An age public key that can open what is archived; may be repeated.
    #[arg(long = "recipient", global = true, value_name = "AGE1...")]
    recipients: Vec<String>,
    /// The age identity file that opens what is archived.
    #[arg(long, global = true, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Whose log, as 7566000000000000000-15, where the file does not lie in a data directory.
    #[arg(long = "of", global = true, value_name = "CLUSTER")]
    pub(super) cluster: Option<String>,
    /// Do not fetch ahead.
    #[arg(long, global = true)]
    no_prefetch: bool,
}

impl Alone {
    pub(super) fn is_given(&self) -> bool {
        self.repository.is_some() || self.config.is_some()
    }

    /// To read from. What is read proves itself, wherever it lies.
    fn archive(&self, cluster: Cluster) -> anyhow::Result<Archive> {
        let (config, _) = self.config()?;
        archive(&config, Repository::open(&config.url)?, cluster)
    }

    /// To write to: a directory whose disk is not mounted must not take what is acknowledged.
    fn archive_to(&self, request: &Request) -> anyhow::Result<Archive> {
        let (config, state_dir) = self.config()?;
        let repository = match state_dir {
            Some(state_dir) => Repository::open_expected(&config.url, &state_dir)?,
            None => Repository::open(&config.url)?,
        };
        archive(&config, repository, request.cluster.clone())
    }

    /// And where the configuration has the state that knows the repository.
    fn config(&self) -> anyhow::Result<(Config, Option<PathBuf>)> {
        if let Some(path) = &self.config {
            // PostgreSQL starts us in its own environment, where only what opens the repository is to be expected.
            let wanted = Wanted {
                database: false,
                identity: true,
                pitr: false,
            };
            let loaded = config::Config::load_vault(Some(path), wanted);
            let report = |errors| config::report(&errors, config::Style::Plain);
            let vault = loaded.map_err(|errors| anyhow::anyhow!(report(errors)))?;
            return Ok((vault.backup.repository, Some(vault.backup.state_dir)));
        }
        let config = Config {
            url: self.repository.clone().context("--repository is missing")?,
            recipients: self.recipients.clone(),
            identity: self.identity.as_deref().map(crate::cli::vault::secret).transpose()?,
        };
        Ok((config, None))
    }
}

fn archive(config: &Config, repository: Repository, cluster: Cluster) -> anyhow::Result<Archive> {
    let keys = Keys::new(&config.recipients, config.identity.as_ref())?;
    Ok(Archive::open(repository, Arc::new(keys), cluster))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")
}

pub(super) fn push(options: &Alone, request: &Request, source: OpenFile) -> anyhow::Result<()> {
    let archive = options.archive_to(request)?;
    runtime()?.block_on(async {
        // A file beyond the limit of file sizes would end us by a signal, and PostgreSQL's archiver with us (its shell
        // makes a code above 125 of it); with someone to hear the signal the write just fails.
        let too_long = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
        let _heard = tokio::signal::unix::signal(too_long).context("preparing for signals")?;
        Box::pin(archive.push_file(request.file, source)).await?;
        Ok(())
    })
}

/// Whether the repository can be listed.
pub(super) fn check(options: &Alone, request: &Request) -> anyhow::Result<()> {
    let archive = options.archive_to(request)?;
    runtime()?.block_on(archive.beats(jiff::Timestamp::MAX))?;
    Ok(())
}

pub(super) fn get(options: &Alone, request: &Request, sink: &Unfinished) -> anyhow::Result<Found> {
    let archive = options.archive(request.cluster.clone())?;
    let is_worth_it = request.file.is_log() && !options.no_prefetch;
    let helper = is_worth_it.then(|| helper_socket(options, request)).flatten();
    if let Some(socket) = &helper {
        // Whatever it says but "done" is asked again here, so that a fault has one cause to tell.
        if let Asked::Answered(Answer::Done) = ask(socket, request, sink.file()) {
            return Ok(Found::Yes);
        }
        sink.file().set_len(0)?;
        io::Seek::rewind(&mut sink.file())?;
    }
    let copy = sink.file().try_clone()?;
    let found = runtime()?.block_on(async {
        let Some(archived) = archive.locate(request.file).await? else {
            return Ok(Found::No);
        };
        archive.fetch(&archived, copy).await?;
        anyhow::Ok(Found::Yes)
    })?;
    if let (Found::Yes, Some(socket)) = (found, &helper) {
        start_helper(options, request, socket);
    }
    Ok(found)
}

/// In a directory that only we may enter; `None`: there is none to be had, and fetching ahead is left.
fn helper_socket(options: &Alone, request: &Request) -> Option<PathBuf> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    let own = rustix::process::getuid().as_raw();
    let directory = std::env::temp_dir().join(format!("foregate-feed-{own}"));
    drop(std::fs::DirBuilder::new().mode(0o700).create(&directory));
    let metadata = std::fs::symlink_metadata(&directory).ok()?;
    if !metadata.is_dir() || metadata.uid() != own || metadata.mode() & 0o077 != 0 {
        return None;
    }
    let mut hash = Sha256::new();
    hash.update(format!(
        "{:?}{:?}{:?}",
        options.repository, options.identity, options.config
    ));
    hash.update(request.cluster.prefix());
    let name = hex::encode(hash.finalize().get(..8)?);
    Some(directory.join(name))
}

/// Starts the helper, which must outlive this process. PostgreSQL kills it with its own process group when it is
/// stopped; otherwise it ends by itself. That it fails to start costs speed only.
#[expect(
    clippy::disallowed_methods,
    reason = "it must outlive this process, unlike the children of backups"
)]
fn start_helper(options: &Alone, request: &Request, socket: &Path) {
    let Ok(program) = std::env::current_exe() else { return };
    let mut command = std::process::Command::new(program);
    // Not in the data directory, which may be removed or unmounted while it idles.
    command.current_dir("/");
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    command.args(["wal", "feed", "--of"]).arg(request.cluster.prefix());
    command.arg("--socket").arg(socket);
    if let Some(url) = &options.repository {
        command.arg("--repository").arg(url);
    }
    if let Some(config) = &options.config {
        command.arg("--config").arg(absolute(config));
    }
    if let Some(identity) = &options.identity {
        command.arg("--identity").arg(absolute(identity));
    }
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(quiet.spawn());
}

/// The helper: feeds one recovery, and ends when nobody has asked for a while.
pub(super) fn feed(socket: Option<&Path>, options: &Alone) -> anyhow::Result<()> {
    let (socket, cluster) = socket
        .zip(options.cluster.as_deref())
        .context("--socket or --of is missing")?;
    let feed = Arc::new(Feed::new(options.archive(super::named_cluster(cluster)?)?));
    runtime()?.block_on(async {
        let config = server::Config {
            path: socket.to_owned(),
            user: None,
        };
        let listener = Listener::bind(&config)?;
        let (asked, mut asking) = tokio::sync::watch::channel(());
        let serving = listener.serve(move |request: Request, file| {
            asked.send_replace(());
            let feed = Arc::clone(&feed);
            async move { answer(&feed, &request, file).await }
        });
        let idle = async { while let Ok(Ok(())) = tokio::time::timeout(FEED_IDLE, asking.changed()).await {} };
        tokio::select! {
            () = serving => {}
            () = idle => {}
        }
        drop(std::fs::remove_file(socket));
        Ok(())
    })
}

async fn answer(feed: &Feed, request: &Request, file: OpenFile) -> Answer {
    if request.act != Act::Get {
        return Answer::Failed("this helper only feeds a recovery".to_owned());
    }
    match feed.get(request.file, file).await {
        Ok(Found::Yes) => Answer::Done,
        Ok(Found::No) => Answer::Absent,
        Err(error) => Answer::Failed(chain(&error)),
    }
}
