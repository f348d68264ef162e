//! What is kept, and why. Pure: the clock's reading is an argument, and every decision carries its reasons.

use jiff::Timestamp;
use ulid::Ulid;

/// How many good backups each label keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub daily: usize,
    pub weekly: usize,
    pub monthly: usize,
    /// While the newest good backup is older than this, nothing is deleted: something is wrong.
    pub stale_after: std::time::Duration,
    /// From tombstone to deletion.
    pub grace: std::time::Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let day = std::time::Duration::from_hours(24);
        Self {
            daily: 7,
            weekly: 4,
            monthly: 12,
            stale_after: day * 2,
            grace: day,
        }
    }
}

/// What retention needs to know of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub id: Ulid,
    pub at: Timestamp,
    pub labels: Vec<String>,
    /// Verified to level 2 or more, whether it is marked for deletion or not.
    pub good: bool,
    /// Somebody does not want it any more: it stands in for no other.
    pub dismissed: bool,
    /// Why it stays for now, whatever becomes of it.
    pub held: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub id: Ulid,
    pub keep: bool,
    /// Held by what it is, rather than only until something passes: a mark on it is an error by now.
    pub needed: bool,
    /// Sentences for the operator.
    pub reasons: Vec<String>,
}

/// Decides for every backup of one database. The result is in the order of `backups`.
#[must_use]
pub fn plan(backups: &[Backup], policy: &Policy, now: Timestamp) -> Vec<Decision> {
    let mut newest_first: Vec<&Backup> = backups.iter().collect();
    newest_first.sort_by_key(|backup| std::cmp::Reverse((backup.at, backup.id)));
    let newest_good = newest_first.iter().find(|backup| backup.stands()).copied();
    let frozen = frozen(newest_good, policy, now);
    backups
        .iter()
        .map(|backup| {
            let mut reasons = if backup.dismissed {
                last_one(backup, newest_good)
            } else {
                needs(backup, &newest_first, newest_good, policy)
            };
            let needed = !reasons.is_empty();
            reasons.extend(backup.held.map(str::to_owned));
            reasons.extend(frozen.map(str::to_owned));
            let keep = !reasons.is_empty();
            if !keep {
                reasons.push(backup.why_not().to_owned());
            }
            Decision {
                id: backup.id,
                keep,
                needed,
                reasons,
            }
        })
        .collect()
}

/// Why nothing is to be deleted at all, if so, with this as the newest good backup.
fn frozen(newest_good: Option<&Backup>, policy: &Policy, now: Timestamp) -> Option<&'static str> {
    match newest_good {
        None => Some("there is no good backup, so nothing is deleted"),
        // A backup from the future means that the clock jumped; ages mean nothing then.
        Some(newest) if newest.at > now => Some("the newest backup lies in the future, so nothing is deleted"),
        Some(newest) if now.duration_since(newest.at).unsigned_abs() > policy.stale_after => {
            Some("the newest good backup is overdue, so nothing is deleted")
        }
        Some(_) => None,
    }
}

/// The same of all backups of one database.
#[must_use]
pub fn freeze(backups: &[Backup], policy: &Policy, now: Timestamp) -> Option<&'static str> {
    let standing = backups.iter().filter(|backup| backup.stands());
    frozen(standing.max_by_key(|backup| (backup.at, backup.id)), policy, now)
}

impl Backup {
    /// Whether it makes others dispensable.
    fn stands(&self) -> bool {
        self.good && !self.dismissed
    }

    fn why_not(&self) -> &'static str {
        match (self.dismissed, self.good) {
            (true, _) => "it was deleted by hand",
            (false, true) => "no label holds it",
            (false, false) => "it is not proven",
        }
    }
}

/// What holds a backup that nobody has dismissed.
fn needs(backup: &Backup, newest_first: &[&Backup], newest_good: Option<&Backup>, policy: &Policy) -> Vec<String> {
    let mut reasons = holds(backup, newest_first, policy);
    if newest_good.is_some_and(|newest| newest.id == backup.id) {
        reasons.push("it is the newest good backup".to_owned());
    }
    if !backup.good && newest_good.is_none_or(|newest| backup.at >= newest.at) {
        reasons.push("no good backup is newer".to_owned());
    }
    reasons
}

/// What holds one that was dismissed when another stood in for it: that no other does any more.
fn last_one(backup: &Backup, newest_good: Option<&Backup>) -> Vec<String> {
    match backup.good && newest_good.is_none() {
        true => vec!["no other good backup is left".to_owned()],
        false => Vec::new(),
    }
}

/// Decides for every backup of one file set, which is kept for a time rather than in a number.
#[must_use]
pub fn plan_files(backups: &[Backup], keep_days: u32, now: Timestamp) -> Vec<Decision> {
    let keep = std::time::Duration::from_hours(24).saturating_mul(keep_days);
    let policy = Policy {
        daily: 0,
        weekly: 0,
        monthly: 0,
        // One that is kept for no time is not thereby overdue.
        stale_after: keep.max(Policy::default().stale_after),
        grace: std::time::Duration::ZERO,
    };
    let unlabelled: Vec<Backup> = backups
        .iter()
        .map(|backup| Backup {
            labels: Vec::new(),
            ..backup.clone()
        })
        .collect();
    let mut decisions = plan(&unlabelled, &policy, now);
    for (decision, backup) in decisions.iter_mut().zip(backups) {
        let age = now.duration_since(backup.at);
        if backup.stands() && age.unsigned_abs() < keep {
            if !decision.keep {
                decision.reasons.clear();
            }
            (decision.keep, decision.needed) = (true, true);
            decision.reasons.push(format!("younger than {keep_days} days"));
        } else if !decision.keep && backup.stands() {
            decision.reasons = vec![format!("older than {keep_days} days")];
        }
    }
    decisions
}

/// The labels by which `backup` is held: it is among the newest good ones of each.
fn holds(backup: &Backup, newest_first: &[&Backup], policy: &Policy) -> Vec<String> {
    let mut reasons = Vec::new();
    if !backup.good {
        return reasons;
    }
    for label in &backup.labels {
        let limit = match label.as_str() {
            "daily" => policy.daily,
            "weekly" => policy.weekly,
            "monthly" => policy.monthly,
            // Made by hand, or by a version that knows more labels than we do.
            _ => {
                reasons.push(format!("{label}: kept until it is deleted by hand"));
                continue;
            }
        };
        let place = newest_first
            .iter()
            .filter(|other| other.stands() && other.labels.contains(label))
            .position(|other| other.id == backup.id);
        if let Some(place) = place.filter(|place| *place < limit.max(1)) {
            reasons.push(format!("{label} {} of {}", place + 1, limit.max(1)));
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn backup(day: i64, label: &str, good: bool) -> Backup {
        Backup {
            id: Ulid::from_parts(u64::try_from(day).expect("positive"), 1),
            at: Timestamp::from_second(day * DAY).expect("in range"),
            labels: vec![label.to_owned()],
            good,
            dismissed: false,
            held: None,
        }
    }

    fn kept(backups: &[Backup], day: i64) -> Vec<u64> {
        let now = Timestamp::from_second(day * DAY + 3600).expect("in range");
        let decisions = plan(backups, &Policy::default(), now);
        decisions
            .iter()
            .filter(|decision| decision.keep)
            .map(|decision| decision.id.timestamp_ms())
            .collect()
    }

    #[test]
    fn the_newest_seven_good_daily_backups_stay() {
        let backups: Vec<_> = (1..=10).map(|day| backup(day, "daily", day != 9)).collect();
        assert_eq!(kept(&backups, 10), [3, 4, 5, 6, 7, 8, 10]);
    }

    #[test]
    fn nothing_goes_while_the_newest_good_one_is_overdue() {
        let backups: Vec<_> = (1..=20).map(|day| backup(day, "daily", day <= 10)).collect();
        assert_eq!(kept(&backups, 20).len(), 20);
    }

    #[test]
    fn nothing_goes_when_none_is_good_or_the_clock_jumped_back() {
        let bad: Vec<_> = (1..=20).map(|day| backup(day, "daily", false)).collect();
        assert_eq!(kept(&bad, 20).len(), 20);
        let good: Vec<_> = (1..=20).map(|day| backup(day, "daily", true)).collect();
        assert_eq!(kept(&good, 5).len(), 20);
    }

    #[test]
    fn file_sets_stay_for_their_days_and_the_newest_good_one_for_ever() {
        let mut sets: Vec<_> = (1..=10).map(|week| backup(week * 7, "files", true)).collect();
        let kept = |sets: &[Backup], day: i64| {
            let now = Timestamp::from_second(day * DAY + 3600).expect("in range");
            let decisions = plan_files(sets, 30, now);
            assert!(decisions.iter().all(|decision| !decision.reasons.is_empty()));
            let kept = decisions.iter().filter(|decision| decision.keep);
            kept.map(|decision| decision.id.timestamp_ms()).collect::<Vec<_>>()
        };
        assert_eq!(kept(&sets, 70), [42, 49, 56, 63, 70]);
        assert_eq!(kept(&sets, 5).len(), 10, "the clock jumped back");
        assert_eq!(kept(&sets, 101).len(), 10, "the newest is overdue");
        sets[9].good = false;
        assert_eq!(
            kept(&sets, 70),
            [42, 49, 56, 63, 70],
            "no good one is newer than the bad one"
        );
        sets.iter_mut().for_each(|set| set.good = false);
        assert_eq!(kept(&sets, 70).len(), 10);
    }

    #[test]
    fn manual_and_leased_backups_stay() {
        let mut backups: Vec<_> = (1..=20).map(|day| backup(day, "daily", true)).collect();
        backups[0].labels = vec!["manual".to_owned()];
        backups[1].held = Some("it is in use");
        assert_eq!(kept(&backups, 20), [1, 2, 14, 15, 16, 17, 18, 19, 20]);
    }

    #[test]
    fn dismissed_backup_goes_unless_no_other_good_one_is_left() {
        let mut backups: Vec<_> = (1..=3).map(|day| backup(day, "manual", true)).collect();
        backups[0].dismissed = true;
        let decide = |backups: &[Backup], day: i64| {
            let now = Timestamp::from_second(day * DAY + 3600).expect("in range");
            plan(backups, &Policy::default(), now)
        };
        let first = decide(&backups, 3).remove(0);
        assert_eq!((first.keep, first.needed), (false, false), "{first:?}");
        let overdue = decide(&backups, 30).remove(0);
        assert_eq!((overdue.keep, overdue.needed), (true, false), "{overdue:?}");
        backups[1].good = false;
        backups[2].good = false;
        let last = decide(&backups, 3).remove(0);
        assert_eq!((last.keep, last.needed), (true, true), "{last:?}");
    }
}
