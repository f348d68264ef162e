//! Between `foregate wal push|get`, which PostgreSQL starts, and the server: one request and one answer over a Unix
//! socket. The client opens the file and passes it along (SCM_RIGHTS), so that the server needs no right to PostgreSQL's
//! data directory, nor the client one to the repository.

pub mod client;
pub mod server;

use std::fmt;
use std::str::FromStr;

use super::name::File;
use crate::repository::layout::Cluster;

/// Longer requests and answers are not ours.
const LINE_BYTES_MAX: usize = 4096;
/// Said first, so that a later version can tell an earlier one.
const GREETING: &str = "foregate-wal-1";

/// What a client asks for; the open file travels with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub act: Act,
    pub file: File,
    pub cluster: Cluster,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Push,
    Get,
    /// Would a push of this cluster's log be taken? The file is not looked at.
    Check,
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is durable, or it has been written into the file.
    Done,
    /// The archive has no such file. Nothing else is said so.
    Absent,
    /// Why not, for the log of PostgreSQL.
    Failed(String),
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let act = match self.act {
            Act::Push => "push",
            Act::Get => "get",
            Act::Check => "check",
        };
        writeln!(f, "{GREETING} {act} {} {}", self.file, self.cluster.prefix())
    }
}

impl FromStr for Request {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.strip_suffix('\n').unwrap_or(text).split(' ').collect();
        let [GREETING, act, file, cluster] = words.as_slice() else {
            return Err(format!("a request of {GREETING} was expected"));
        };
        let act = match *act {
            "push" => Act::Push,
            "get" => Act::Get,
            "check" => Act::Check,
            other => return Err(format!("{other:?} is no request")),
        };
        let file = file.parse().map_err(|error: super::name::Error| error.to_string())?;
        let cluster = parse_cluster(cluster).ok_or_else(|| format!("{cluster:?} is no cluster"))?;
        Ok(Self { act, file, cluster })
    }
}

/// A cluster as `7566000000000000000-15`.
#[must_use]
pub fn parse_cluster(text: &str) -> Option<Cluster> {
    let (identifier, major) = text.split_once('-')?;
    let identifier: u64 = identifier.parse().ok()?;
    Some(Cluster {
        system_identifier: identifier.to_string(),
        major: major.parse().ok()?,
    })
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => writeln!(f, "done"),
            Self::Absent => writeln!(f, "absent"),
            Self::Failed(why) => {
                let mut line = format!("failed {}", why.replace('\n', " "));
                while line.len() >= LINE_BYTES_MAX {
                    line.pop();
                }
                writeln!(f, "{line}")
            }
        }
    }
}

impl Answer {
    /// `None`: it was cut short, or is no answer. Only a whole line is one.
    fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('\n')? {
            "done" => Some(Self::Done),
            "absent" => Some(Self::Absent),
            line => line.strip_prefix("failed ").map(|why| Self::Failed(why.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_and_answers_survive_the_wire() {
        for act in [Act::Push, Act::Get, Act::Check] {
            let request = Request {
                act,
                file: "000000010000000000000001.partial".parse().expect("a name"),
                cluster: parse_cluster("7566-15").expect("a cluster"),
            };
            assert_eq!(request.to_string().parse(), Ok(request));
        }
        for answer in [Answer::Done, Answer::Absent, Answer::Failed("disk full".to_owned())] {
            assert_eq!(Answer::parse(&answer.to_string()), Some(answer));
        }
    }

    #[test]
    fn an_answer_that_was_cut_short_is_none() {
        let whole = Answer::Failed("x".repeat(9000)).to_string();
        assert!(whole.len() <= LINE_BYTES_MAX);
        for text in ["", "don", "done", "absent", "abs\n", &whole[..whole.len() - 1]] {
            assert_eq!(Answer::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_cluster_is_two_numbers() {
        for text in ["", "1", "a-15", "1-", "../7-15", "1-15/..", "-1-15"] {
            assert_eq!(parse_cluster(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(?s).{0,200}") {
            drop(text.parse::<Request>());
            drop(Answer::parse(&text));
        }
    }
}
