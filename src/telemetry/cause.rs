//! Errors as they are told to people: with all their causes, in one line.

/// `error` and its causes, each said once: object stores and drivers tell theirs in their own text already.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Self>>,
    }

    #[test]
    fn cause_that_was_told_already_is_not_repeated() {
        let layers = [
            "timed out",
            "request: timed out",
            "Generic S3 error: request: timed out",
            "reading a/b",
        ];
        let told = layers.into_iter().fold(None, |source: Option<Box<Layer>>, text| {
            Some(Box::new(Layer { text, source }))
        });
        let told = told.expect("an error");
        assert_eq!(chain(&*told), "reading a/b: Generic S3 error: request: timed out");
    }
}
