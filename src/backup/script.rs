//! Reading what `pg_dumpall --globals-only` writes: which statement is about which role or tablespace. Pure.

/// Who a statement changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Role(String),
    Tablespace(String),
    /// Sets up a session, or is about nothing that is made here.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) text: String,
    pub(super) subject: Subject,
    pub(super) creates: bool,
}

impl Statement {
    /// Its first words, for people: the rest may hold the hash of a password.
    pub(super) fn verb(&self) -> String {
        let words: Vec<&str> = self.text.split_whitespace().take(2).collect();
        words.join(" ")
    }
}

/// A word, a quoted name, or a text; signs stand alone.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Name(String),
    Text,
    Sign(char),
}

/// The statements of a script, without comments and without commands to `psql`.
pub(super) fn statements(script: &str) -> Vec<Statement> {
    let mut found = Vec::new();
    let mut rest = script;
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return found;
        }
        if rest.starts_with("--") || rest.starts_with('\\') {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
            continue;
        }
        let (tokens, length) = statement(rest);
        let text = rest.get(..length).unwrap_or(rest);
        rest = rest.get(length..).unwrap_or("").trim_start_matches(';');
        found.push(judge(text, &tokens));
    }
}

/// The tokens up to the semicolon, and where it stands.
fn statement(text: &str) -> (Vec<Token>, usize) {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let Some(first) = rest.chars().next() else { break };
        match first {
            ';' => break,
            '\'' => {
                // `E'...'` escapes with a backslash, the others only double the quote.
                let escapes = matches!(tokens.last(), Some(Token::Word(word)) if word.eq_ignore_ascii_case("e"))
                    && text.get(..at).is_some_and(|before| before.ends_with(['e', 'E']));
                if escapes {
                    tokens.pop();
                }
                at += quoted(rest, '\'', escapes).1;
                tokens.push(Token::Text);
            }
            '"' => {
                let (name, length) = quoted(rest, '"', false);
                at += length;
                tokens.push(Token::Name(name));
            }
            '-' if rest.starts_with("--") => at += rest.find('\n').unwrap_or(rest.len()),
            c if c.is_whitespace() => at += c.len_utf8(),
            c if is_word(c) => {
                let word: String = rest.chars().take_while(|c| is_word(*c)).collect();
                at += word.len();
                tokens.push(Token::Word(word));
            }
            sign => {
                at += sign.len_utf8();
                tokens.push(Token::Sign(sign));
            }
        }
    }
    (tokens, at.min(text.len()))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$')
}

/// What stands between the quotes, and how many bytes it takes with them.
fn quoted(text: &str, quote: char, escapes: bool) -> (String, usize) {
    let mut content = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && escapes {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
                content.push(quote);
            } else {
                return (content, at + c.len_utf8());
            }
        } else {
            content.push(c);
        }
    }
    (content, text.len())
}

fn judge(text: &str, tokens: &[Token]) -> Statement {
    let word = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => word.to_ascii_uppercase(),
        _ => String::new(),
    };
    let name = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => Some(word.to_lowercase()),
        Some(Token::Name(name)) => Some(name.clone()),
        _ => None,
    };
    let position = |wanted: &str| {
        tokens
            .iter()
            .position(|token| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(wanted)))
    };
    let role = |at: usize| name(at).map(Subject::Role);
    let tablespace = |at: usize| name(at).map(Subject::Tablespace);
    let mut text = text.trim().to_owned();
    let subject = match (word(0).as_str(), word(1).as_str()) {
        ("CREATE", "ROLE") => role(2),
        ("CREATE" | "ALTER", "TABLESPACE") => tablespace(2),
        // Settings for one database come with that database.
        ("ALTER", "ROLE") => role(2).filter(|_| (word(3).as_str(), word(4).as_str()) != ("IN", "DATABASE")),
        ("COMMENT", "ON") if word(2) == "ROLE" => role(3),
        ("COMMENT", "ON") if word(2) == "TABLESPACE" => tablespace(3),
        ("GRANT" | "REVOKE", _) if position("TABLESPACE").is_some() => {
            position("TABLESPACE").and_then(|at| tablespace(at + 1))
        }
        ("GRANT", _) if position("PARAMETER").is_some() => position("TO").and_then(|at| role(at + 1)),
        ("GRANT", _) if tokens.get(2) == Some(&Token::Word("TO".to_owned())) => {
            // By whom it was once granted needs rights of its own; now it is by us.
            if let Some(at) = text.rfind(" GRANTED BY ") {
                text.truncate(at);
            }
            role(3)
        }
        _ => None,
    };
    Statement {
        text,
        subject: subject.unwrap_or(Subject::Other),
        creates: word(0) == "CREATE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMPED: &str = r#"--
-- PostgreSQL database cluster dump
--

\restrict abc

SET standard_conforming_strings = on;

CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER LOGIN;
CREATE ROLE "Odd ""name"";";
ALTER ROLE "Odd ""name"";" WITH NOSUPERUSER LOGIN PASSWORD 'SCRAM-SHA-256$4096:a;b''c--d';
COMMENT ON ROLE shop IS 'semicolons; and -- dashes
over lines';
ALTER ROLE shop SET application_name TO E'a\';b';
ALTER ROLE shop IN DATABASE app SET work_mem TO '1MB';
GRANT team TO shop WITH ADMIN OPTION GRANTED BY postgres;
GRANT SET ON PARAMETER log_statement TO shop;
CREATE TABLESPACE fast OWNER shop LOCATION '/srv/fast';
ALTER TABLESPACE fast SET (random_page_cost=1);
GRANT ALL ON TABLESPACE fast TO shop;

\unrestrict abc
"#;

    #[test]
    fn every_statement_of_a_dump_of_globals_is_about_whom_it_changes() {
        let found = statements(DUMPED);
        let role = |name: &str| Subject::Role(name.to_owned());
        let fast = Subject::Tablespace("fast".to_owned());
        let odd = role("Odd \"name\";");
        let subjects: Vec<Subject> = found.iter().map(|one| one.subject.clone()).collect();
        let wanted = [
            Subject::Other,
            role("postgres"),
            role("postgres"),
            odd.clone(),
            odd,
            role("shop"),
            role("shop"),
            Subject::Other,
            role("shop"),
            role("shop"),
            fast.clone(),
            fast.clone(),
            fast,
        ];
        assert_eq!(subjects, wanted);
        assert_eq!(found[8].text, "GRANT team TO shop WITH ADMIN OPTION");
        assert!(found[4].text.ends_with("PASSWORD 'SCRAM-SHA-256$4096:a;b''c--d'"));
        assert_eq!(found[4].verb(), "ALTER ROLE");
        assert_eq!(found.iter().filter(|one| one.creates).count(), 3);
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in ".{0,200}") {
            drop(statements(&text));
        }
    }
}
