//! Errors and other messages, formatted and written for users.

mod voice;

use std::error::Error;
use std::io;

pub(crate) use voice::log_to;
pub use voice::{say, say_last};

/// An error and all its sources on one line, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        line.push_str(": ");
        line.push_str(&source.to_string());
        next = source.source();
    }
    line
}

/// Whether the reason behind an error is that this user may not.
pub fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let this = error.downcast_ref::<io::Error>();
    this.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        || error.source().is_some_and(is_denied)
}

/// Text from outside of this process, without control characters, on which a terminal would act.
pub fn printable(text: &str) -> String {
    let visible = |letter: char| match letter.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => letter,
    };
    text.chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_text_cannot_command_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
