//! From samples to the table: medians, spread, ratios.

use std::fmt;

use super::row::{Line, Row};
use super::subject::Subject;
use super::trial::Sample;

#[derive(Debug, Default)]
pub(super) struct Results {
    samples: Vec<Entry>,
    void: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    row: Row,
    round: usize,
    subject: Subject,
    sample: Sample,
}

impl Results {
    pub(super) fn add(&mut self, row: Row, round: usize, subject: Subject, outcome: anyhow::Result<Sample>) {
        match outcome {
            Ok(sample) => self.samples.push(Entry {
                row,
                round,
                subject,
                sample,
            }),
            Err(error) => self
                .void
                .push(format!("{} round {}, {subject}: {error:#}", row.key(), round + 1)),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.void.is_empty()
    }

    fn of(&self, row: Row, subject: Subject) -> impl Iterator<Item = &Entry> {
        self.samples
            .iter()
            .filter(move |entry| entry.row == row && entry.subject == subject)
    }

    fn values(&self, row: Row, subject: Subject, line: usize) -> Spread {
        Spread::of(
            self.of(row, subject)
                .filter_map(|entry| entry.sample.values.get(line).copied()),
        )
    }

    /// To nginx in the same round, so that what disturbs a round as a whole disturbs no ratio.
    fn ratios(&self, row: Row, subject: Subject, line: usize) -> Spread {
        Spread::of(self.of(row, subject).filter_map(|entry| {
            let peer = self.of(row, Subject::Nginx).find(|peer| peer.round == entry.round)?;
            Some(entry.sample.values.get(line)? / peer.sample.values.get(line)?)
        }))
    }

    fn costs(&self, formatter: &mut fmt::Formatter<'_>, row: Row) -> fmt::Result {
        for (index, Line { title, unit }) in row.lines().iter().enumerate() {
            write!(formatter, "| {title} | {unit} ")?;
            for subject in Subject::ALL {
                write!(formatter, "| {} ", self.values(row, subject, index))?;
            }
            for subject in [Subject::Haproxy, Subject::Foregate] {
                write!(formatter, "| {} ", self.ratios(row, subject, index))?;
            }
            writeln!(formatter, "|")?;
        }
        Ok(())
    }

    fn loads(&self, formatter: &mut fmt::Formatter<'_>, row: Row) -> fmt::Result {
        if !self
            .samples
            .iter()
            .any(|entry| entry.row == row && entry.sample.busy.is_some())
        {
            return Ok(());
        }
        write!(formatter, "| {} ", row.key())?;
        for subject in Subject::ALL {
            let per_second = Spread::of(self.of(row, subject).filter_map(|entry| entry.sample.per_second));
            let busy = Spread::of(self.of(row, subject).filter_map(|entry| entry.sample.busy));
            match (per_second.median(), busy.median()) {
                (Some(per_second), Some(busy)) => write!(formatter, "| {per_second:.0}/s, {:.0} % ", busy * 100.0)?,
                _ => write!(formatter, "| void ")?,
            }
        }
        writeln!(formatter, "|")
    }
}

impl fmt::Display for Results {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = || {
            Row::ALL
                .into_iter()
                .filter(|row| self.samples.iter().any(|entry| entry.row == *row))
        };
        writeln!(
            formatter,
            "Median (smallest–largest); ratios are to nginx in the same round, less is better.\n\n\
             | what | unit | nginx | HAProxy | Foregate | HAProxy : nginx | Foregate : nginx |\n\
             |---|---|--:|--:|--:|--:|--:|"
        )?;
        for row in measured() {
            self.costs(formatter, row)?;
        }
        writeln!(
            formatter,
            "\nThe load under which that was so: answers per second, and how much of its core the subject used.\n\n\
             | row | nginx | HAProxy | Foregate |\n|---|--:|--:|--:|"
        )?;
        for row in measured() {
            self.loads(formatter, row)?;
        }
        for void in &self.void {
            writeln!(formatter, "\n**Void:** {void}")?;
        }
        Ok(())
    }
}

/// Values in order.
#[derive(Debug)]
struct Spread(Vec<f64>);

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<_> = values.collect();
        sorted.sort_by(f64::total_cmp);
        Self(sorted)
    }

    /// Of an even number of values: the mean of the two in the middle.
    fn median(&self) -> Option<f64> {
        let (low, high) = (
            self.0.get(self.0.len().checked_sub(1)? / 2)?,
            self.0.get(self.0.len() / 2)?,
        );
        Some(f64::midpoint(*low, *high))
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(median), Some(first), Some(last)) = (self.median(), self.0.first(), self.0.last()) else {
            return formatter.write_str("void");
        };
        // Three digits are what such a measurement can bear.
        let digits = if median < 10.0 { 2 } else { usize::from(median < 100.0) };
        write!(formatter, "{median:.digits$} ({first:.digits$}–{last:.digits$})")
    }
}
