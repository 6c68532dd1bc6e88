//! Standard output and standard error.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;
use serde_json::{Value, json};
use vmm::error::printable;

use crate::failure::Failure;

/// How an answer is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Form {
    /// Text for people.
    Text,
    /// JSON for programs.
    Json,
}

impl Form {
    /// An answer in this form.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn show<T: Serialize>(
        self,
        answer: &T,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        print(&match self {
            Self::Text => text(answer),
            Self::Json => document(&serde_json::to_value(answer).unwrap_or_default()),
        })
    }

    /// What was done.
    ///
    /// # Errors
    /// As [`show`](Self::show).
    pub fn outcome(self, outcome: &str) -> Result<(), Failure> {
        self.show(&json!({ "outcome": outcome }), |_| format!("{outcome}\n"))
    }
}

/// A JSON document for standard output.
pub fn document(value: &Value) -> String {
    harmless(&format!("{value:#}\n"))
}

/// JSON in which no letter of a text is one that a terminal acts on: serde_json escapes those of ASCII but DEL, and
/// not the second set of controls (U+0080 to U+009F).
pub fn harmless(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        match letter {
            '\n' => text.push(letter),
            letter if letter.is_control() => {
                text.push_str(&format!("\\u{:04x}", u32::from(letter)))
            }
            letter => text.push(letter),
        }
    }
    text
}

/// Lines of text from outside of this process, without what a terminal would act on.
pub fn printable_lines(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => printable(&line.replace('\t', "    ")) + "\n",
            None => printable(&line.replace('\t', "    ")),
        })
        .collect()
}

/// Writes to standard output. A reader that has seen enough, say `head`, is no error.
///
/// # Errors
/// When it cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    write(text)
        .map(drop)
        .map_err(|error| Failure::refused(format!("cannot print the answer: {error}")))
}

/// Writes to standard output; false if its reader has gone.
///
/// # Errors
/// When it cannot be written.
pub fn write(text: &str) -> io::Result<bool> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// A message for the user, on standard error.
pub fn say(message: &str) {
    // Nothing is left to report to if that has gone.
    let _ = writeln!(io::stderr(), "tesseractl: {message}");
}

/// A line for a person who waits; a program that reads standard error does not get it.
pub fn note(message: &str) {
    if io::stderr().is_terminal() {
        say(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_cannot_command_the_terminal_and_is_the_same_json() {
        let value = json!({ "a": "\u{1b}[2J\u{9b}2J\u{7f}\n", "b": "ä" });

        let text = document(&value);

        assert!(!text.chars().any(|letter| letter.is_control() && letter != '\n'), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(value));
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(printable_lines("a\u{1b}b\tc\n\nd"), "a\u{fffd}b    c\n\nd");
    }
}
