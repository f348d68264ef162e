//! Reading an instant that a person wrote. Pure.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// An instant and how it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Understood {
    pub at: Timestamp,
    /// Said to whoever wrote it, where it did not say its time zone.
    pub note: Option<String>,
}

/// Reads `2024-01-15T14:30:00Z`, `2024-01-15 14:30:00+01`, or, in `zone`, `2024-01-15 14:30:00`.
///
/// # Errors
/// What is wrong with it, as a sentence: a wall time that the zone never showed, or showed twice, is refused, since an
/// hour more or less is what a recovery is about.
pub fn read(text: &str, zone: &TimeZone) -> Result<Understood, String> {
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        // PostgreSQL counts in microseconds, and rounds what is finer.
        let at = Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at);
        return Ok(Understood { at, note: None });
    }
    let civil: DateTime = text.parse().map_err(|_| {
        format!("{text:?} is not an instant as 2024-01-15T14:30:00Z, 2024-01-15 14:30:00+01 or 2024-01-15 14:30:00")
    })?;
    let name = zone.iana_name().unwrap_or("the configured time zone");
    let at = zone.to_ambiguous_zoned(civil);
    if at.is_ambiguous() {
        return Err(format!(
            "{civil} does not name one instant in {name}: the clocks were changed; add an offset, as +00"
        ));
    }
    let at = at.unambiguous().map_err(|error| error.to_string())?.timestamp();
    Ok(Understood {
        at,
        note: Some(format!("{text} has no time zone and was read in {name}: {at}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_without_a_zone_is_read_in_the_configured_one_and_said_so() {
        let zone = TimeZone::get("Europe/Berlin").expect("a zone");
        let read = |text| read(text, &zone);
        assert_eq!(
            read("2024-01-15 14:30:00").expect("read").at.to_string(),
            "2024-01-15T13:30:00Z"
        );
        assert!(
            read("2024-01-15 14:30:00")
                .expect("read")
                .note
                .expect("a note")
                .contains("Europe/Berlin")
        );
        for text in [
            "2024-01-15 14:30:00+01",
            "2024-01-15T13:30:00Z",
            "2024-01-15 13:30:00.000000+00",
        ] {
            let read = read(text).expect("read");
            assert_eq!(
                (read.at.to_string(), read.note),
                ("2024-01-15T13:30:00Z".to_owned(), None)
            );
        }
        assert!(read("2024-03-31 02:30:00").is_err(), "never shown");
        assert!(read("2024-10-27 02:30:00").is_err(), "shown twice");
        assert!(read("yesterday").is_err());
    }
}
