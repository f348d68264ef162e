//! Changes on their way to the journal and the store, and those who wait for the answer. Pure but for the answers.

use std::collections::HashMap;

use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{Block, Durability, Error};
use crate::store::Change;
use crate::store::journal::{Entry, Lines};

/// Changes that may wait for the store; one network waits once.
pub(super) const MAX_WAITING: usize = 10_000;

/// How a change ended, and the block that stays where the store had a newer or a longer one.
pub(super) type Outcome = Result<(Option<Block>, Durability), Error>;

/// A change that was taken, under its number.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) number: u64,
    pub(super) answer: oneshot::Receiver<Outcome>,
}

#[derive(Debug)]
struct Held {
    /// Of the last change that went into this one.
    number: u64,
    since: Timestamp,
    change: Change,
}

#[derive(Debug)]
struct Answer {
    number: u64,
    network: IpNet,
    sender: oneshot::Sender<Outcome>,
    /// Whether the store has it, and what stays there instead.
    stored: Option<Option<Block>>,
}

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// For the store, merged by network.
    held: HashMap<IpNet, Held>,
    /// For the journal.
    lines: Lines,
    answers: Vec<Answer>,
    last: u64,
    /// The journal holds all changes up to this number.
    recorded: u64,
    /// The last try of the journal failed.
    journal_fails: bool,
    /// The last try of the store failed.
    store_fails: bool,
    /// Nobody works on this any more.
    closed: bool,
}

impl Waiting {
    /// What the journal held at the last end: numbers continue after it.
    pub(super) fn recall(&mut self, entries: &[Entry], now: Timestamp) {
        for entry in entries {
            self.last = self.last.max(entry.number);
            if !entry.done {
                self.hold(entry.number, entry.change.clone(), now);
            }
        }
        self.recorded = self.last;
    }

    pub(super) fn room_for(&self, network: IpNet) -> Result<(), Error> {
        if self.closed {
            return Err(Error::NotKept);
        }
        let full = self.held.len() >= MAX_WAITING && !self.held.contains_key(&network);
        if full || self.lines.changes.len() >= MAX_WAITING {
            return Err(Error::QueueFull {
                waiting: self.held.len().max(self.lines.changes.len()),
            });
        }
        Ok(())
    }

    pub(super) fn push(&mut self, change: Change, now: Timestamp) -> Taken {
        self.last += 1;
        let (number, network) = (self.last, change.network());
        let (sender, answer) = oneshot::channel();
        self.answers.retain(|answer| !answer.sender.is_closed());
        self.answers.push(Answer {
            number,
            network,
            sender,
            stored: None,
        });
        self.lines.changes.push((number, change.clone()));
        self.hold(number, change, now);
        Taken { number, answer }
    }

    fn hold(&mut self, number: u64, change: Change, now: Timestamp) {
        let network = change.network();
        let held = match self.held.remove(&network) {
            Some(earlier) => Held {
                number,
                since: earlier.since,
                change: earlier.change.then(change),
            },
            None => Held {
                number,
                since: now,
                change,
            },
        };
        self.held.insert(network, held);
    }

    /// The oldest changes that wait for the store.
    pub(super) fn batch(&self, limit: usize) -> Vec<(u64, Change)> {
        let mut all: Vec<&Held> = self.held.values().collect();
        all.sort_unstable_by_key(|held| held.number);
        all.truncate(limit);
        all.into_iter().map(|held| (held.number, held.change.clone())).collect()
    }

    pub(super) fn changes(&self) -> impl Iterator<Item = &Change> {
        self.held.values().map(|held| &held.change)
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.held.values().map(|held| held.since).min()
    }

    /// The store has `batch`, with `stay` in the place of some; what came later for the same networks waits still.
    /// Nobody is answered before [`Self::release`].
    pub(super) fn stored(&mut self, batch: &[(u64, Change)], stay: &[Block]) {
        self.store_fails = false;
        let stay: HashMap<IpNet, &Block> = stay.iter().map(|block| (block.network, block)).collect();
        let through = self.settle(batch);
        for answer in &mut self.answers {
            if through
                .get(&answer.network)
                .is_some_and(|through| answer.number <= *through)
            {
                answer.stored = Some(stay.get(&answer.network).map(|block| Block::clone(block)));
            }
        }
    }

    /// The database wants this change never.
    pub(super) fn refused(&mut self, change: &(u64, Change), why: &str) {
        let network = change.1.network();
        self.store_fails = false;
        self.settle(std::slice::from_ref(change));
        for answer in std::mem::take(&mut self.answers) {
            if answer.network == network && answer.number <= change.0 {
                let why = why.to_owned();
                answer.sender.send(Err(Error::Refused { network, why })).ok();
            } else {
                self.answers.push(answer);
            }
        }
    }

    fn settle(&mut self, batch: &[(u64, Change)]) -> HashMap<IpNet, u64> {
        let mut through = HashMap::new();
        for (number, change) in batch {
            let network = change.network();
            through.insert(network, *number);
            self.lines.done.push((*number, network));
            if self.held.get(&network).is_some_and(|held| held.number == *number) {
                self.held.remove(&network);
            }
        }
        through
    }

    pub(super) fn store_works(&mut self) {
        self.store_fails = false;
    }

    /// Until it works again, a change is acknowledged as queued as soon as the journal has it.
    pub(super) fn store_failed(&mut self) {
        self.store_fails = true;
        self.release();
    }

    /// What the journal lacks, and the number that it holds everything up to once it has that.
    pub(super) fn unrecorded(&mut self) -> (Lines, u64) {
        (std::mem::take(&mut self.lines), self.last)
    }

    pub(super) fn recorded(&mut self, through: u64) {
        (self.recorded, self.journal_fails) = (through, false);
        self.release();
    }

    /// `lines` must be tried again.
    pub(super) fn not_recorded(&mut self, mut lines: Lines) {
        self.journal_fails = true;
        // Marks are a saving only; without a journal they must not pile up.
        lines.done.clear();
        let newer = std::mem::replace(&mut self.lines, lines);
        self.lines.changes.extend(newer.changes);
        self.release();
    }

    /// All that the journal must hold where a snapshot or the store holds the rest; `None`: not now, since a change
    /// that the journal lacks may have been merged with one that it holds.
    pub(super) fn to_keep(&self) -> Option<Vec<Entry>> {
        if !self.lines.changes.is_empty() {
            return None;
        }
        let entry = |(number, change)| Entry {
            number,
            change,
            done: false,
        };
        Some(self.batch(usize::MAX).into_iter().map(entry).collect())
    }

    pub(super) fn holds(&self, network: IpNet) -> bool {
        self.held.contains_key(&network)
    }

    /// Answers for a caller that waits no longer; `None`: the journal has not got to its change yet.
    pub(super) fn give_up(&self, number: u64) -> Option<Outcome> {
        (self.recorded >= number).then_some(Ok((None, Durability::Queued)))
    }

    /// Refuses all changes from now on, and answers those who wait.
    pub(super) fn close(&mut self) {
        self.closed = true;
        for answer in std::mem::take(&mut self.answers) {
            let outcome = match answer.stored {
                Some(stays) => Ok((stays, Durability::Stored)),
                None if self.recorded >= answer.number => Ok((None, Durability::Queued)),
                None => Err(Error::NotKept),
            };
            answer.sender.send(outcome).ok();
        }
    }

    /// Answers those whose change is where it can be kept.
    pub(super) fn release(&mut self) {
        for mut answer in std::mem::take(&mut self.answers) {
            let recorded = self.recorded >= answer.number;
            let outcome = if (recorded || self.journal_fails) && answer.stored.is_some() {
                Ok((answer.stored.take().flatten(), Durability::Stored))
            } else if recorded && self.store_fails {
                Ok((None, Durability::Queued))
            } else if self.journal_fails && self.store_fails {
                Err(Error::NotKept)
            } else {
                self.answers.push(answer);
                continue;
            };
            // Nobody waits for the answer of an automatic block.
            answer.sender.send(outcome).ok();
        }
    }
}
