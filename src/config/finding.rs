//! What is wrong with a configuration, or doubtful in it: where, why and what to write instead; shown with a caret.
//!
//! A finding must never print a secret. Two guards: a finding may hide its own value in the excerpt, and whatever
//! looks like `scheme://user:password@host` is hidden in every excerpt, since a syntax error may quote any line.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// More would hide the first, which is most often the cause of the others.
pub(super) const FINDINGS_MAX: usize = 50;
/// How much of a line an excerpt shows: a line of a megabyte must not become a log record of one.
const EXCERPT_CHARS: usize = 200;

/// A mistake or a doubt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// From 1; `None`: it is not about a place in the file.
    pub line: Option<usize>,
    /// From 1, in characters; `None` with `line`.
    pub column: Option<usize>,
    /// Names the key and says what is wrong with it; never holds a secret.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    excerpt: Option<Excerpt>,
}

/// The line that a finding is about, and the part of it that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Excerpt {
    text: String,
    marked: Range<usize>,
}

/// Findings about one source, in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    origin: String,
    list: Vec<Finding>,
}

/// Why a configuration cannot be used: every mistake in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{findings}")]
pub struct Errors {
    pub(super) findings: Findings,
    pub(super) files: Vec<PathBuf>,
}

/// Whether the text goes to a terminal that shows colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Coloured,
}

impl Errors {
    pub(super) fn one(origin: String, finding: Finding) -> Self {
        Self::of(Findings::new(origin, vec![finding], 0))
    }

    pub(super) fn of(findings: Findings) -> Self {
        Self {
            findings,
            files: Vec::new(),
        }
    }

    /// About the source as a whole: what was found by whoever used the configuration.
    #[must_use]
    pub fn about(origin: String, messages: Vec<String>) -> Self {
        Self::of(Findings::about(origin, messages))
    }

    #[must_use]
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// The files it names, a secret for one: when they change, reading it again may succeed.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

impl Finding {
    /// About the source as a whole.
    pub(super) fn whole(message: impl Into<String>) -> Self {
        Self {
            line: None,
            column: None,
            message: message.into(),
            help: None,
            excerpt: None,
        }
    }

    pub(super) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// About `span` (bytes) of `text`. `hidden`: the span holds a secret, so the excerpt shows stars instead.
    pub(super) fn at(text: &str, span: &Range<usize>, hidden: bool, message: String, help: Option<String>) -> Self {
        let start = floor_boundary(text, span.start);
        let end = floor_boundary(text, span.end.max(start));
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.matches('\n').count() + 1;
        let column = text.get(line_start..start).unwrap_or_default().chars().count() + 1;
        Self {
            line: Some(line),
            column: Some(column),
            message,
            help,
            excerpt: Some(Excerpt::cut(text, line_start, start..end, hidden)),
        }
    }
}

impl Excerpt {
    fn cut(text: &str, line_start: usize, span: Range<usize>, hidden: bool) -> Self {
        let rest = text.get(line_start..).unwrap_or_default();
        let line = rest.split('\n').next().unwrap_or_default().trim_end_matches('\r');
        let secrets = credentials(line);
        let marked = span.start - line_start..(span.end - line_start).min(line.len());
        // Character by character: stars and control characters' stand-ins differ from the original in bytes.
        let (mut shown, mut start, mut end) = (String::new(), None, None);
        let skipped = line
            .get(..marked.start)
            .unwrap_or_default()
            .chars()
            .count()
            .saturating_sub(EXCERPT_CHARS / 2);
        for (at, character) in line.char_indices().skip(skipped).take(EXCERPT_CHARS) {
            if at >= marked.start && start.is_none() {
                start = Some(shown.len());
            }
            if at >= marked.end && end.is_none() {
                end = Some(shown.len());
            }
            let secret = hidden && marked.contains(&at) || secrets.iter().any(|secret| secret.contains(&at));
            match character {
                _ if secret => shown.push('*'),
                '\t' => shown.push(' '),
                other if other.is_control() => shown.push('\u{fffd}'),
                other => shown.push(other),
            }
        }
        let start = start.unwrap_or(shown.len());
        let end = end.unwrap_or(shown.len()).max(start);
        Self {
            text: shown,
            marked: start..end,
        }
    }
}

/// What looks like a secret in `line`, whatever key it belongs to: the user information of an address, which stands
/// between `://` and the last `@` of the same word, and what follows `password=`.
fn credentials(line: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut word_start = 0;
    for word in line.split_inclusive(|c: char| c.is_whitespace() || c == '"' || c == '\'') {
        let user = word.find("://").map(|at| at + "://".len());
        if let (Some(from), Some(to)) = (user, word.rfind('@'))
            && from < to
        {
            found.push(word_start + from..word_start + to);
        }
        if let Some(at) = word.find("password=") {
            found.push(word_start + at + "password=".len()..word_start + word.len());
        }
        word_start += word.len();
    }
    found
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}

impl Findings {
    /// About the source as a whole, as in [`Errors::about`].
    #[must_use]
    pub fn about(origin: String, messages: Vec<String>) -> Self {
        Self::new(origin, messages.into_iter().map(Finding::whole).collect(), 0)
    }

    /// `more`: how many were left out of `list`.
    pub(super) fn new(origin: String, mut list: Vec<Finding>, more: usize) -> Self {
        list.sort_by_key(|finding| (finding.line, finding.column));
        list.dedup();
        if more > 0 {
            list.push(Finding::whole(format!("and {more} more like these")));
        }
        Self { origin, list }
    }

    /// The file, or what stands for it.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    #[must_use]
    pub fn as_slice(&self) -> &[Finding] {
        &self.list
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// One line each, `file:line:column: message (help)`, for logs.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.list.iter().map(|finding| {
            let Finding {
                line,
                column,
                message,
                help,
                ..
            } = finding;
            let place = match (line, column) {
                (Some(line), Some(column)) => format!("{}:{line}:{column}", self.origin),
                _ => self.origin.clone(),
            };
            help.as_ref().map_or_else(
                || format!("{place}: {message}"),
                |help| format!("{place}: {message} ({help})"),
            )
        })
    }

    /// With the line it is about, a caret and the suggestion, as a compiler shows it.
    #[must_use]
    pub fn render(&self, level: Severity, style: Style) -> String {
        let renderer = match style {
            Style::Plain => Renderer::plain(),
            Style::Coloured => Renderer::styled(),
        };
        let mut text = String::new();
        for finding in &self.list {
            text.push_str(&renderer.render(&self.groups(finding, level)));
            text.push_str("\n\n");
        }
        text
    }

    fn groups<'a>(&'a self, finding: &'a Finding, level: Severity) -> Vec<Group<'a>> {
        let level = match level {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = match &finding.excerpt {
            Some(excerpt) => level.primary_title(finding.message.as_str()).element(
                Snippet::source(excerpt.text.as_str())
                    .path(self.origin.as_str())
                    .line_start(finding.line.unwrap_or(1))
                    .annotation(AnnotationKind::Primary.span(excerpt.marked.clone())),
            ),
            None => Group::with_title(level.primary_title(format!("{}: {}", self.origin, finding.message))),
        };
        if let Some(help) = &finding.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        vec![group]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            f.write_str(&line)?;
        }
        Ok(())
    }
}
