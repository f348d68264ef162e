//! `config.toml` as written: tables, keys and values with the places where they stand.
//!
//! Not serde structs: serde stops at the first mistake, and an operator wants to know all of them. So the spanned
//! document is walked; each key is asked for by the code that gives it its meaning, which makes the set of
//! known keys what has been asked for, and lets one pass report every wrong value and every unknown key.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::finding::{FINDINGS_MAX, Finding, Findings};

/// Collects what is found while the document is read.
#[derive(Debug)]
pub(super) struct Sink<'d> {
    text: &'d str,
    errors: RefCell<Pile>,
    warnings: RefCell<Pile>,
    /// Every key that has been asked for, as a path: what a test compares with the example.
    #[cfg(test)]
    known: RefCell<Vec<String>>,
}

/// The first findings, and how many came after: finding a place costs a walk through the text, and a hostile file
/// may hold a mistake every few bytes.
#[derive(Debug, Default)]
struct Pile {
    list: Vec<Finding>,
    more: usize,
}

impl Pile {
    fn push(&mut self, finding: impl FnOnce() -> Finding) {
        if self.list.len() < FINDINGS_MAX {
            self.list.push(finding());
        } else {
            self.more += 1;
        }
    }
}

/// A value with its place and its full name.
#[derive(Debug, Clone)]
pub(super) struct Node<'d> {
    pub(super) value: &'d DeValue<'d>,
    pub(super) span: Range<usize>,
    pub(super) path: String,
    sink: &'d Sink<'d>,
}

/// A setting: its meaning, and where it was written (`None`: it was not, or could not be read; this is the default).
#[derive(Debug, Clone)]
pub(super) struct Setting<'d, T> {
    pub(super) value: T,
    pub(super) node: Option<Node<'d>>,
}

/// One table. Keys that nobody has asked for by [`Section::finish`] are unknown.
#[derive(Debug)]
pub(super) struct Section<'d> {
    path: String,
    table: Option<&'d DeTable<'d>>,
    node: Option<Node<'d>>,
    asked: Vec<&'static str>,
    sink: &'d Sink<'d>,
}

impl<'d> Sink<'d> {
    pub(super) fn new(text: &'d str) -> Self {
        Self {
            text,
            errors: RefCell::default(),
            warnings: RefCell::default(),
            #[cfg(test)]
            known: RefCell::default(),
        }
    }

    pub(super) fn push_error(&self, finding: impl FnOnce() -> Finding) {
        self.errors.borrow_mut().push(finding);
    }

    pub(super) fn push_warning(&self, finding: impl FnOnce() -> Finding) {
        self.warnings.borrow_mut().push(finding);
    }

    /// Every key that has been asked for, as a path.
    #[cfg(test)]
    pub(super) fn known(&self) -> Vec<String> {
        self.known.borrow().clone()
    }

    /// Errors and warnings.
    pub(super) fn into_findings(self, origin: &str) -> (Findings, Findings) {
        let findings = |pile: Pile| Findings::new(origin.to_owned(), pile.list, pile.more);
        (findings(self.errors.into_inner()), findings(self.warnings.into_inner()))
    }
}

impl<'d> Node<'d> {
    pub(super) fn error(&self, what: impl std::fmt::Display, help: impl Into<Option<String>>) {
        self.sink.push_error(|| self.finding(what, help.into(), false));
    }

    /// As [`Node::error`], but the value is not shown.
    pub(super) fn error_hidden(&self, what: impl std::fmt::Display, help: impl Into<Option<String>>) {
        self.sink.push_error(|| self.finding(what, help.into(), true));
    }

    pub(super) fn warn(&self, what: impl std::fmt::Display, help: impl Into<Option<String>>) {
        self.sink.push_warning(|| self.finding(what, help.into(), false));
    }

    fn finding(&self, what: impl std::fmt::Display, help: Option<String>, hidden: bool) -> Finding {
        Finding::at(
            self.sink.text,
            &self.span,
            hidden,
            format!("`{}` {what}", self.path),
            help,
        )
    }

    /// "a string", "an integer": as a message continues "must be …, not".
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        }
    }

    pub(super) fn is_empty_string(&self) -> bool {
        self.value.as_str() == Some("")
    }

    /// The elements, if this is an array.
    pub(super) fn elements(&self) -> Option<Vec<Self>> {
        let array = self.value.as_array()?;
        Some(
            array
                .iter()
                .enumerate()
                .map(|(index, element)| self.below(format!("{}[{index}]", self.path), element))
                .collect(),
        )
    }

    /// This value as a table of its own; `None`, and reported, if it is none.
    pub(super) fn section(&self) -> Option<Section<'d>> {
        let Some(table) = self.value.as_table() else {
            self.error(format_args!("must be a table, not {}", self.kind()), None);
            return None;
        };
        Some(Section {
            path: self.path.clone(),
            table: Some(table),
            node: Some(self.clone()),
            asked: Vec::new(),
            sink: self.sink,
        })
    }

    fn below(&self, path: String, value: &'d Spanned<DeValue<'d>>) -> Self {
        Self {
            value: value.get_ref(),
            span: value.span(),
            path,
            sink: self.sink,
        }
    }
}

impl<T> Setting<'_, T> {
    pub(super) fn is_written(&self) -> bool {
        self.node.is_some()
    }

    /// Reports a mistake where the setting was written. A default needs no report: it is consistent with defaults.
    pub(super) fn error(&self, what: impl std::fmt::Display, help: impl Into<Option<String>>) {
        if let Some(node) = &self.node {
            node.error(what, help);
        }
    }

    pub(super) fn warn(&self, what: impl std::fmt::Display, help: impl Into<Option<String>>) {
        if let Some(node) = &self.node {
            node.warn(what, help);
        }
    }
}

impl<'d> Section<'d> {
    pub(super) fn root(table: &'d DeTable<'d>, sink: &'d Sink<'d>) -> Self {
        Self {
            path: String::new(),
            table: Some(table),
            node: None,
            asked: Vec::new(),
            sink,
        }
    }

    pub(super) fn sink(&self) -> &'d Sink<'d> {
        self.sink
    }

    /// Whether no key stands in it.
    pub(super) fn is_blank(&self) -> bool {
        self.table.is_none_or(DeTable::is_empty)
    }

    /// Where the table itself stands, for what is missing in it.
    pub(super) fn node(&self) -> Option<&Node<'d>> {
        self.node.as_ref()
    }

    /// Whether `key` stands in the file, well or badly written.
    pub(super) fn was_written(&self, key: &str) -> bool {
        self.table
            .is_some_and(|table| table.keys().any(|name| name.get_ref() == key))
    }

    /// The value of `key`, if it is written.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Node<'d>> {
        let path = self.path_of(key);
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        #[cfg(test)]
        self.sink.known.borrow_mut().push(path.clone());
        let (_, value) = self.table?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some(Node {
            value: value.get_ref(),
            span: value.span(),
            path,
            sink: self.sink,
        })
    }

    /// The meaning of `key`: `read` reports what is wrong with a value and then says `None`.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Node<'d>) -> Option<T>,
    ) -> Setting<'d, T> {
        let Some(node) = self.get(key) else {
            return Setting {
                value: default,
                node: None,
            };
        };
        match read(&node) {
            Some(value) => Setting {
                value,
                node: Some(node),
            },
            None => Setting {
                value: default,
                node: None,
            },
        }
    }

    /// The table `key`; where it is not written, an empty one, so that its keys are known all the same.
    pub(super) fn section(&mut self, key: &'static str) -> Self {
        let path = self.path_of(key);
        self.get(key).and_then(|node| node.section()).unwrap_or(Section {
            path,
            table: None,
            node: None,
            asked: Vec::new(),
            sink: self.sink,
        })
    }

    /// Reports each key that nobody has asked for, with the nearest that somebody has.
    pub(super) fn finish(self) {
        let Some(table) = self.table else { return };
        for name in table.keys() {
            let key = name.get_ref().as_ref();
            if self.asked.contains(&key) {
                continue;
            }
            self.sink.push_error(|| {
                let place = if self.path.is_empty() {
                    "at the top".to_owned()
                } else {
                    format!("in `{}`", self.path)
                };
                let shown: String = key.chars().take(60).collect();
                let message = format!("unknown key `{}` {place}", shown.escape_debug());
                Finding::at(
                    self.sink.text,
                    &name.span(),
                    false,
                    message,
                    Some(nearest(key, &self.asked)),
                )
            });
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}

/// "did you mean …", or the list of what is possible where nothing is near.
pub(super) fn nearest(written: &str, known: &[&str]) -> String {
    // Comparing costs the product of both lengths: no known key is that long.
    let near = known
        .iter()
        .filter(|_| written.len() <= 64)
        .map(|key| (strsim::damerau_levenshtein(written, key), key))
        .filter(|(distance, key)| *distance <= 1 + key.len() / 4 || written.starts_with(**key))
        .min();
    match near {
        Some((_, key)) => format!("did you mean `{key}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}
