//! The local journal: every change is appended before it is acknowledged, and marked once the store needs it no more.
//! So a change outlives a killed process while the store is away, and costs one line however many others wait.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::Change;
use super::record::Record;
use super::snapshot::{replace, set_aside};

/// Far more than the changes that may wait; a larger file is not ours.
const MAX_SIZE: u64 = 1 << 28;

/// Processes that live at the same time: one serves, and those before it drain.
const SLOTS: usize = 4;

/// A change as the journal holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) change: Change,
    /// The store has it, or has refused it.
    pub(crate) done: bool,
}

/// What one append writes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines {
    pub(crate) changes: Vec<(u64, Change)>,
    /// The store needs no change of the network up to the number.
    pub(crate) done: Vec<(u64, IpNet)>,
}

impl Lines {
    pub(crate) fn len(&self) -> usize {
        self.changes.len() + self.done.len()
    }
}

#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// The bytes that are whole lines; a failed append may have left more.
    good: u64,
    lines: usize,
}

/// One process's journal: while a successor starts and its predecessor drains, each has its own.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) path: PathBuf,
    /// Held as long as the process lives.
    _lock: File,
}

/// Takes a journal that no living process has, and into it what dead ones have left. Answers with all that is known,
/// in the order of time where several processes wrote.
pub(crate) fn claim(directory: &Path) -> io::Result<(Slot, Journal, Vec<Entry>)> {
    let (mut own, mut foreign, mut left) = (None, Vec::new(), Vec::new());
    for number in 0..SLOTS {
        let path = directory.join(format!("blocks-journal-{number}.jsonl"));
        if own.is_some() && !path.exists() {
            continue;
        }
        let mut options = OpenOptions::new();
        let lock = options
            .create(true)
            .write(true)
            .truncate(false)
            .open(path.with_extension("lock"))?;
        let free = lock.try_lock().is_ok();
        if free && own.is_none() {
            own = Some(Slot { path, _lock: lock });
            continue;
        }
        foreign.extend(Content::read(&path)?.entries);
        if free {
            left.push((path, lock));
        }
    }
    let Some(slot) = own else {
        return Err(io::Error::other("other processes have all journals"));
    };
    let (mut journal, mut entries) = Journal::open(&slot.path)?;
    if !foreign.is_empty() {
        entries.extend(foreign);
        entries.sort_by_key(|entry| match &entry.change {
            Change::Block(block) | Change::Replace { block, .. } => block.created_at,
            Change::Unblock { at, .. } => *at,
        });
        for (number, entry) in (1..).zip(&mut entries) {
            entry.number = number;
        }
        journal.rewrite(&entries)?;
    }
    for (path, lock) in left {
        fs::remove_file(&path)?;
        drop(lock);
    }
    Ok((slot, journal, entries))
}

/// What a journal holds.
struct Content {
    entries: Vec<Entry>,
    /// The bytes up to the last line end; what follows was never acknowledged.
    whole: usize,
    lines: usize,
    damaged: usize,
}

impl Content {
    fn read(path: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => {
                file.take(MAX_SIZE).read_to_end(&mut bytes)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let text = bytes.get(..whole).unwrap_or_default();
        let (mut entries, mut done, mut damaged) = (Vec::<Entry>::new(), HashMap::<IpNet, Vec<usize>>::new(), 0);
        let mut lines = 0;
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            lines += 1;
            match Record::read(line) {
                Some(Record::Done { number, network }) => {
                    let network = network.parse::<IpNet>().ok();
                    for at in network.and_then(|network| done.remove(&network)).unwrap_or_default() {
                        if let Some(entry) = entries.get_mut(at) {
                            entry.done = entry.number <= number;
                            if !entry.done {
                                done.entry(entry.change.network()).or_default().push(at);
                            }
                        }
                    }
                }
                Some(record) => match record.change() {
                    Some((number, change)) => {
                        done.entry(change.network()).or_default().push(entries.len());
                        entries.push(Entry {
                            number,
                            change,
                            done: false,
                        });
                    }
                    None => damaged += 1,
                },
                None => damaged += 1,
            }
        }
        Ok(Self {
            entries,
            whole,
            lines,
            damaged,
        })
    }
}

impl Journal {
    /// Opens or makes the journal, and says what it holds, in the order of writing. Where lines are damaged, the file
    /// is set aside for the operator and a new one holds the others.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Vec<Entry>)> {
        let content = Content::read(path)?;
        let (damaged, kept) = (content.damaged, content.entries.len());
        if damaged > 0 {
            let aside = set_aside(path)?;
            tracing::error!(damaged, kept, aside = %aside.display(), "the journal of blocks is damaged");
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            good: content.whole as u64,
            lines: content.lines,
        };
        if damaged > 0 {
            journal.rewrite(&content.entries)?;
        } else {
            journal.file.set_len(journal.good)?;
        }
        Ok((journal, content.entries))
    }

    /// When this returns, the lines survive a power cut.
    pub(crate) fn append(&mut self, lines: &Lines) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (number, change) in &lines.changes {
            Record::new(*number, change).write(&mut bytes)?;
        }
        for (number, network) in &lines.done {
            done(*number, *network).write(&mut bytes)?;
        }
        if self.file.metadata()?.len() != self.good {
            self.file.set_len(self.good)?;
        }
        self.file.write_all(&bytes)?;
        // Marks too: a block whose mark a power cut takes away is stored again, and by then another instance may have lifted it.
        if !bytes.is_empty() {
            self.file.sync_data()?;
        }
        self.good += bytes.len() as u64;
        self.lines += lines.len();
        Ok(())
    }

    /// Replaces all lines by `entries`, at once or not at all.
    pub(crate) fn rewrite(&mut self, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut lines = 0;
        for entry in entries {
            Record::new(entry.number, &entry.change).write(&mut bytes)?;
            lines += 1;
            if entry.done {
                done(entry.number, entry.change.network()).write(&mut bytes)?;
                lines += 1;
            }
        }
        replace(&self.path, &bytes)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        (self.good, self.lines) = (bytes.len() as u64, lines);
        Ok(())
    }

    pub(crate) fn lines(&self) -> usize {
        self.lines
    }
}

fn done(number: u64, network: IpNet) -> Record {
    Record::Done {
        number,
        network: network.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lift(network: &str) -> Change {
        Change::Unblock {
            network: network.parse().expect("a network"),
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn journal(directory: &Path) -> (Journal, Vec<Entry>) {
        Journal::open(&directory.join("journal")).expect("it opens")
    }

    fn three(directory: &Path) -> PathBuf {
        let (mut journal, _) = journal(directory);
        for (number, network) in [(1, "10.0.0.0/8"), (2, "192.0.2.0/24"), (3, "10.0.0.0/8")] {
            let changes = vec![(number, lift(network))];
            let lines = Lines { changes, done: vec![] };
            journal.append(&lines).expect("written");
        }
        directory.join("journal")
    }

    #[test]
    fn what_was_appended_is_read_back_with_its_marks() {
        let directory = tempfile::tempdir().expect("a directory");
        drop(three(directory.path()));
        let (mut open, entries) = journal(directory.path());
        assert_eq!(entries.iter().map(|entry| entry.number).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(entries.iter().all(|entry| !entry.done));
        let done = vec![(1, "10.0.0.0/8".parse().expect("a network"))];
        let changes = vec![];
        open.append(&Lines { changes, done }).expect("written");
        let (_, entries) = journal(directory.path());
        assert_eq!(
            entries.iter().map(|entry| entry.done).collect::<Vec<_>>(),
            [true, false, false]
        );
    }

    #[test]
    fn torn_last_line_is_cut_off_and_hides_no_later_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = three(directory.path());
        let bytes = fs::read(&path).expect("readable");
        fs::write(&path, &bytes[..bytes.len() - 5]).expect("written");
        let (mut open, entries) = journal(directory.path());
        assert_eq!(entries.len(), 2);
        let changes = vec![(4, lift("198.51.100.0/24"))];
        open.append(&Lines { changes, done: vec![] }).expect("written");
        assert_eq!(journal(directory.path()).1.len(), 3);
    }

    #[test]
    fn damaged_line_is_set_aside_and_takes_no_other_with_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = three(directory.path());
        let text = fs::read_to_string(&path).expect("text").replace("192", "193");
        fs::write(&path, &text).expect("written");
        assert_eq!(journal(directory.path()).1.len(), 2);
        assert_eq!(journal(directory.path()).1.len(), 2, "and again");
        let aside: Vec<_> = fs::read_dir(directory.path())
            .expect("readable")
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().contains("refused"))
            .collect();
        assert_eq!(aside.len(), 1);
        assert_eq!(fs::read_to_string(aside[0].path()).expect("text"), text);
    }

    #[test]
    fn each_living_process_has_its_own_journal_and_the_next_one_inherits_both() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |journal: &mut Journal, second: i64, network: &str| {
            let at = jiff::Timestamp::from_second(second).expect("a time");
            let network = network.parse().expect("a network");
            let changes = vec![(1, Change::Unblock { network, at })];
            journal.append(&Lines { changes, done: vec![] }).expect("written");
        };
        let (old, mut before, _) = claim(directory.path()).expect("claimed");
        write(&mut before, 5, "10.0.0.0/8");
        let (new, mut after, known) = claim(directory.path()).expect("claimed");
        assert_ne!(old.path, new.path);
        assert_eq!(known.len(), 1, "what the living one has is known");
        write(&mut after, 9, "10.0.0.0/8");
        write(&mut before, 7, "192.0.2.0/24");
        drop((old, before));
        drop((new, after));
        let (next, _, entries) = claim(directory.path()).expect("claimed");
        assert_eq!(next.path, directory.path().join("blocks-journal-0.jsonl"));
        assert!(!directory.path().join("blocks-journal-1.jsonl").exists());
        let seconds = entries.iter().map(|entry| match &entry.change {
            Change::Unblock { at, .. } => at.as_second(),
            other => panic!("{other:?}"),
        });
        assert_eq!(seconds.collect::<Vec<_>>(), [5, 5, 7, 9]);
        assert!(entries.iter().map(|entry| entry.number).eq(1..=4));
    }
}
