//! What the repository holds for one cluster, read anew each time: base backups, the archived log, its timelines. And
//! the two questions that are asked of the log itself: when was its last commit, and where would recovery stop.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use ulid::Ulid;

use super::archive::{self, Archive, Archived};
use super::archiver;
use super::base::{self, Base};
use super::chain::{self, Chain, Gap, Index, Link};
use super::history::{History, Leg};
use super::inventory::{self, Inventory};
use super::name::{File, Lsn, SegmentSize, Timeline};
use super::records::{self, Demands, Record, Scanner};
use super::retention::{self, Hold};
use super::window::{self, Reach, Window};
use super::{Error, Recovery};
use crate::repository;
use crate::repository::layout::Cluster;

/// Segments read at the same time when many are read.
const PARALLEL: usize = 3;
/// A server that is gone may not answer at all.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// A year of a busy server's ends and gaps.
const MARKS_MAX: usize = 100_000;

/// The last commit of a segment, by the segment's key: objects never change.
pub(super) type Marks = Arc<Mutex<HashMap<String, Option<Timestamp>>>>;

/// The repository's holdings of one cluster.
pub(super) struct Survey {
    pub(super) cluster: Cluster,
    pub(super) size: SegmentSize,
    pub(super) bases: Vec<Base>,
    pub(super) objects: Vec<Archived>,
    pub(super) index: Index,
    pub(super) histories: Vec<History>,
    pub(super) archive: Archive,
}

/// How reading the log ended.
pub(super) struct Scanned {
    /// Segments that were read, the last one included.
    pub(super) segments: usize,
    pub(super) last_commit: Option<Timestamp>,
    pub(super) demands: Demands,
    /// Reading was told to stop; else the segments were at an end.
    pub(super) stopped: bool,
    /// The segment that could not be used, and why.
    pub(super) damage: Option<(usize, Fault)>,
}

/// Why a segment could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Archive(#[from] archive::Error),
    #[error("its content is not what its name says: {0}")]
    Content(#[from] records::Error),
}

impl Fault {
    /// Whether the stored bytes are to blame, rather than our keys or the way to the store.
    pub(super) fn is_damage(&self) -> bool {
        use archive::Error as Archive;
        match self {
            Self::Content(_) => true,
            Self::Archive(Archive::Damaged { .. } | Archive::Disputed { .. } | Archive::Header { .. }) => true,
            Self::Archive(Archive::Repository(repository::Error::Damaged { .. })) => true,
            Self::Archive(Archive::Repository(repository::Error::Store { source, .. })) => {
                matches!(source, object_store::Error::NotFound { .. })
            }
            Self::Archive(Archive::Repository(repository::Error::Unseal { source, .. })) => {
                source.raw_os_error().is_none()
            }
            Self::Archive(_) => false,
        }
    }
}

impl Survey {
    pub(super) fn newest_timeline(&self) -> Timeline {
        let of_bases = self.bases.iter().map(|base| base.timeline);
        let of_log = self.objects.iter().map(|object| object.file.timeline());
        of_bases.chain(of_log).max().unwrap_or(Timeline(1))
    }

    /// The history of `timeline`. `None`: the archive does not tell where it came from.
    pub(super) fn history(&self, timeline: Timeline) -> Option<History> {
        if timeline == Timeline(1) {
            return Some(History::first());
        }
        self.histories
            .iter()
            .find(|history| history.timeline == timeline)
            .cloned()
    }

    /// As retention takes them.
    fn histories(&self) -> retention::Histories {
        let timelines = self.objects.iter().map(|object| object.file.timeline());
        timelines.map(|timeline| (timeline, self.history(timeline))).collect()
    }

    /// Whether the log of the base backup behind `hold` is broken just where retention keeps no more of it.
    fn is_island(&self, hold: &Hold, chain: &Chain) -> bool {
        let first = chain.gaps.first().filter(|gap| !gap.is_disputed);
        first.is_some_and(|gap| hold.last(self.size).is_some_and(|last| last < gap.first))
    }

    pub(super) fn follow(&self, legs: &[Leg]) -> Chain {
        chain::follow(&self.index, legs, None)
    }

    pub(super) fn object(&self, link: &Link) -> Option<&Archived> {
        self.objects.get(link.position)
    }

    /// A segment, whole and proven.
    async fn read(&self, link: &Link) -> Result<Vec<u8>, archive::Error> {
        match self.object(link) {
            Some(object) => self.archive.fetch(object, Vec::new()).await,
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn segment_names(&self, gap: &Gap) -> String {
        let name = |number| {
            let segment = super::name::SegmentName {
                timeline: gap.timeline,
                number,
            };
            segment.file(self.size).to_string()
        };
        match (gap.is_disputed, gap.segments()) {
            (true, _) => format!("two different files claim to be segment {}", name(gap.first)),
            (false, 1) => format!("segment {} is missing", name(gap.first)),
            (false, count) => format!(
                "{count} segments from {} to {} are missing",
                name(gap.first),
                name(gap.last)
            ),
        }
    }
}

impl Recovery {
    /// The cluster meant: the one that was named, that of the server, or, where nobody can tell, the one with the newest
    /// base backup.
    ///
    /// # Errors
    /// The repository holds none.
    pub async fn cluster(&self) -> Result<Cluster, Error> {
        if let Some(cluster) = self.config.cluster.clone().or_else(|| self.own_cluster()) {
            return Ok(cluster);
        }
        let known = self.bases.clusters().await?;
        if let [only] = known.as_slice() {
            return Ok(only.clone());
        }
        // Several share the repository: what is done to one of them must not be done to another's.
        if !known.is_empty()
            && let Ok(Ok(cluster)) = tokio::time::timeout(ASK_LIMIT, archiver::identify(self.target())).await
        {
            return Ok(cluster);
        }
        let mut newest = None;
        for cluster in known {
            let at = self.bases.list(&cluster).await?.last().map(|base| base.stopped_at);
            newest = newest.max(at.map(|at| (at, cluster)));
        }
        newest.map(|(_, cluster)| cluster).ok_or(Error::Empty)
    }

    /// Where the cluster meant has no base backup that could be used, and others in the repository have: theirs, and how many.
    ///
    /// # Errors
    /// Of the store.
    pub async fn others_instead(&self) -> Result<Option<(Cluster, Vec<(Cluster, usize)>)>, Error> {
        let (meant, mut others) = (self.cluster().await?, Vec::new());
        if base::counted(&self.bases.list(&meant).await?).0 > 0 {
            return Ok(None);
        }
        for cluster in self.bases.clusters().await? {
            let (count, _) = base::counted(&self.bases.list(&cluster).await?);
            others.extend((count > 0).then_some((cluster, count)));
        }
        Ok((!others.is_empty()).then_some((meant, others)))
    }

    /// As the newest base backup sees it, or the one that is meant.
    pub(super) async fn survey(&self, meant: Option<Ulid>) -> Result<Survey, Error> {
        let cluster = self.cluster().await?;
        let mut bases = self.bases.list(&cluster).await?;
        bases.retain(|base| base.incomplete.is_none());
        let archive = self.bases.archive(&cluster);
        let objects = archive.list().await?;
        let base = bases.iter().find(|base| Some(base.id) == meant).or(bases.last());
        let size = base.map_or(SegmentSize::DEFAULT, |base| base.segment_size);
        // After `pg_resetwal --wal-segsize` the same name means another place: what was before is had by its own base backup only.
        bases.retain(|base| base.segment_size == size);
        let mut histories = Vec::new();
        for object in &objects {
            if let File::History(timeline) = object.file {
                histories.extend(archive.history(timeline).await?);
            }
        }
        Ok(Survey {
            index: Index::new(size, objects.iter().map(|object| object.file)),
            cluster,
            size,
            bases,
            objects,
            histories,
            archive,
        })
    }

    /// Reads `links` in order, each proven by its hash, and hands their events to `visit`, which ends it.
    pub(super) async fn scan(
        &self,
        survey: &Survey,
        links: &[Link],
        mut visit: impl FnMut(&Record) -> ControlFlow<()>,
        mut behind: impl FnMut(Lsn) -> ControlFlow<()>,
    ) -> Scanned {
        let mut scanned = Scanned {
            segments: 0,
            last_commit: None,
            demands: Demands::default(),
            stopped: false,
            damage: None,
        };
        let mut scanner = Scanner::default();
        // Owned, not borrowed, so that this may be awaited on any thread.
        let segments = stream::iter(links.to_vec())
            .map(|link: Link| async move { (link, survey.read(&link).await) })
            .buffered(PARALLEL);
        tokio::pin!(segments);
        while let Some((link, bytes)) = segments.next().await {
            let start = link.name.first(survey.size);
            let fed = bytes.map_err(Fault::from).and_then(|bytes| {
                let mut each = |record: Record| {
                    if !scanned.stopped {
                        scanned.stopped = visit(&record).is_break();
                        if record.is_stop() && !scanned.stopped {
                            scanned.last_commit = scanned.last_commit.max(Some(record.at));
                        }
                    }
                };
                Ok(scanner.feed(&bytes, start, &mut each)?)
            });
            scanned.demands = scanner.demands;
            if let Err(error) = fed {
                scanned.damage = Some((scanned.segments, error));
                return scanned;
            }
            scanned.segments = scanned.segments.saturating_add(1);
            (self.bases.progress)(
                "read the log",
                (scanned.segments as u64).saturating_mul(survey.size.bytes()),
            );
            if scanned.stopped || behind(scanner.last).is_break() {
                scanned.stopped = true;
                break;
            }
        }
        scanned
    }

    /// The archived log, counted.
    ///
    /// # Errors
    /// Of the store.
    pub async fn inventory(&self) -> Result<Inventory, Error> {
        let cluster = self.cluster().await?;
        let bases = self.bases.list(&cluster).await?;
        let size = bases.last().map_or(SegmentSize::DEFAULT, |base| base.segment_size);
        let now = self.bases.clock.wall();
        Ok(inventory::take(&self.bases.archive(&cluster), size, &self.policy, now).await?)
    }

    /// The restorable window along the newest timeline.
    ///
    /// # Errors
    /// Of the store.
    pub async fn window(&self) -> Result<Window, Error> {
        let survey = self.survey(None).await?;
        self.window_of(&survey, survey.newest_timeline()).await
    }

    pub(super) async fn window_of(&self, survey: &Survey, timeline: Timeline) -> Result<Window, Error> {
        let Some(history) = survey.history(timeline) else {
            return Ok(Window {
                ends_because: Some(format!("the history of timeline {timeline} is missing")),
                ..Window::default()
            });
        };
        let now = self.bases.clock.wall();
        let holds = retention::holds(&survey.bases, &survey.histories(), &self.policy, now);
        let mut reaches = Vec::new();
        for (base, hold) in survey.bases.iter().zip(&holds) {
            if let Some(legs) = history.legs_from(base.timeline, base.start) {
                reaches.push(self.reach(survey, base, hold, &legs).await?);
            }
        }
        Ok(window::window(&reaches))
    }

    async fn reach(&self, survey: &Survey, base: &Base, hold: &Hold, legs: &[Leg]) -> Result<Reach, Error> {
        let chain = survey.follow(legs);
        let mut broken_by = chain.gaps.first().map(|gap| survey.segment_names(gap));
        let mut to = None;
        if chain.reach >= base.stop {
            let links = chain.links.get(..chain.contiguous).unwrap_or_default();
            for link in links
                .iter()
                .rev()
                .take_while(|link| link.name.end(survey.size) > base.stop)
            {
                match self.last_commit(survey, link).await {
                    Ok(None) => {}
                    Ok(found) => {
                        to = found;
                        break;
                    }
                    // Damage is a gap; a store that cannot be asked is no answer.
                    Err(error) if error.is_damage() => broken_by = Some(error.to_string()),
                    Err(Fault::Archive(error)) => return Err(error.into()),
                    Err(Fault::Content(_)) => {}
                }
            }
        }
        Ok(Reach {
            base: base.id,
            from: base.stopped_at,
            to,
            broken_by,
            is_island: survey.is_island(hold, &chain),
        })
    }

    async fn last_commit(&self, survey: &Survey, link: &Link) -> Result<Option<Timestamp>, Fault> {
        let Some(object) = survey.object(link) else {
            return Ok(None);
        };
        let known = self
            .marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&object.key)
            .copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let bytes = survey.read(link).await?;
        let mut last = None;
        let mut each = |record: Record| {
            if record.is_stop() {
                last = last.max(Some(record.at));
            }
        };
        Scanner::default().feed(&bytes, link.name.first(survey.size), &mut each)?;
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.len() >= MARKS_MAX {
            marks.clear();
        }
        marks.insert(object.key.clone(), last);
        Ok(last)
    }
}
