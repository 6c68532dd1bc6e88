//! Files of figures: JSON documents one after the other, each one figure or a report.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::figure::{Figure, Invalid, check_text};

/// The version of the files. A change that an older reader would misread gets the next.
pub const SCHEMA: u32 = 1;
/// Bytes of a file, 16 MiB: ten thousand figures with a few samples each are less.
pub const MAX_BYTES: u64 = 16 << 20;
/// Figures of a file: a page of more cannot be read.
pub const MAX_FIGURES: usize = 5_000;
/// Notes of a report, which stand at its top.
pub const MAX_NOTES: usize = 100;

/// Figures, and what holds for all of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The version of the file.
    pub schema: u32,
    /// What is printed at the top, by name: versions, the machine that ran the lab.
    #[serde(default)]
    pub notes: BTreeMap<String, String>,
    /// In the order in which they were found.
    pub figures: Vec<Figure>,
}

/// A line of a bench's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(rename = "schema")]
    _schema: u32,
    figure: Figure,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read {path:?}: is it there, and may this user read it?")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// It is too large.
    #[error("{0:?} has more than 16 MiB: give the files of one run")]
    Large(PathBuf),
    /// It is no JSON, or other JSON.
    #[error(
        "{path:?}, JSON document {number}: this is no report and no figure as docs/benchmarks.md describes them"
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// Which document of it, from 1 on.
        number: usize,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// It has another version.
    #[error(
        "{path:?}, JSON document {number}: its `schema` is {found}, this program reads {SCHEMA}: use the program of the version that wrote it"
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Which document of it, from 1 on.
        number: usize,
        /// What it says.
        found: String,
    },
    /// It says what no figure can.
    #[error("{path:?}, JSON document {number}, figure {at}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Which document of it, from 1 on.
        number: usize,
        /// Which figure of the document, from 1 on.
        at: usize,
        /// The reason.
        #[source]
        source: Invalid,
    },
    /// The notes cannot be printed.
    #[error("{0:?}: a note is too long, or not one line, or there are more than {MAX_NOTES}")]
    Notes(PathBuf),
    /// There are too many.
    #[error("{0:?}: with it there are more than {MAX_FIGURES} figures: give the files of one run")]
    Many(PathBuf),
    /// There are none.
    #[error("{0:?} has no figure: did the benches run to their end?")]
    Empty(PathBuf),
}

/// A figure as a line of a file.
pub fn line(figure: &Figure) -> String {
    serde_json::json!({ "schema": SCHEMA, "figure": figure }).to_string()
}

/// Reads a file of figures, of reports, or of both.
///
/// # Errors
/// When it cannot be read, or is no such file.
pub fn read(path: &Path) -> Result<Report, Error> {
    let unreadable = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::Large(path.to_owned()));
    }
    parse(path, &bytes)
}

/// Reads the bytes of a file; `path` is named in errors.
///
/// # Errors
/// As [`read`].
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Report, Error> {
    let mut whole = Report { schema: SCHEMA, ..Report::default() };
    let documents = serde_json::Deserializer::from_slice(bytes).into_iter::<serde_json::Value>();
    for (number, document) in (1..).zip(documents) {
        let json = |source| Error::Json { path: path.to_owned(), number, source };
        let value = document.map_err(json)?;
        match value.get("schema") {
            Some(found) if found.as_u64() != Some(u64::from(SCHEMA)) => {
                let found = found.to_string().chars().take(40).collect();
                return Err(Error::Schema { path: path.to_owned(), number, found });
            }
            _ => {}
        }
        let part = match value.get("figure").is_some() {
            true => {
                let line: Line = serde_json::from_value(value).map_err(json)?;
                Report { figures: vec![line.figure], ..Report::default() }
            }
            false => serde_json::from_value(value).map_err(json)?,
        };
        for (at, figure) in (1..).zip(&part.figures) {
            figure.check().map_err(|source| Error::Invalid {
                path: path.to_owned(),
                number,
                at,
                source,
            })?;
        }
        whole.notes.extend(part.notes);
        whole.figures.extend(part.figures);
        if whole.figures.len() > MAX_FIGURES {
            return Err(Error::Many(path.to_owned()));
        }
    }
    check_notes(&whole.notes).then_some(()).ok_or_else(|| Error::Notes(path.to_owned()))?;
    match whole.figures.is_empty() {
        true => Err(Error::Empty(path.to_owned())),
        false => Ok(whole),
    }
}

/// Looks at a note: a name, and a line of text.
///
/// # Errors
/// When it has no name, or one of both is no line of a report.
pub fn check_note(name: &str, text: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid::Empty("note"));
    }
    [name, text].into_iter().try_for_each(|part| check_text("note", part))
}

fn check_notes(notes: &BTreeMap<String, String>) -> bool {
    notes.len() <= MAX_NOTES && notes.iter().all(|(name, text)| check_note(name, text).is_ok())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use vmm::error::chain;

    use super::super::figure::MAX_TEXT;
    use super::super::samples::figure;
    use super::*;

    fn parsed(text: &str) -> Result<Report, Error> {
        parse(Path::new("file"), text.as_bytes())
    }

    #[test]
    fn lines_and_reports_are_read_one_after_the_other() {
        let (one, two) = (figure("tessera", 1.0), figure("QEMU", 2.0));
        let notes = BTreeMap::from([("commit".to_owned(), "abc".to_owned())]);
        let report = Report { schema: SCHEMA, notes: notes.clone(), figures: vec![two.clone()] };
        let text = format!("{}\n{}\n", line(&one), serde_json::to_string(&report).unwrap());

        let read = parsed(&text).unwrap();

        assert_eq!(read, Report { schema: SCHEMA, notes, figures: vec![one, two] });
    }

    #[test]
    fn what_is_no_such_file_is_an_error_that_says_where() {
        let good = line(&figure("tessera", 1.0));
        let cases = [
            ("", "has no figure"),
            ("{}", "document 1: this is no report"),
            ("[1]", "document 1: this is no report"),
            ("{\"schema\":1,\"figures\":[{}]}", "missing field `bench`"),
            (&format!("{good}\n{{\"schema\":2,\"figure\":{{}}}}"), "document 2: its `schema` is 2"),
            (&format!("{good}\n{}", &good[..good.len() - 2]), "document 2: this is no report"),
            (&good.replace("\"value\":1.0", "\"value\":1e999"), "number out of range"),
            (&good.replace("\"value\":1.0", "\"value\":null"), "figure 1: it has to have either"),
            (&good.replace("\"less\"", "\"more or less\""), "unknown variant"),
            ("{\"schema\":1,\"notes\":{\"a\":\"b\\nc\"},\"figures\":[]}", "a note is too long"),
        ];
        for (text, expected) in cases {
            let error = chain(&parsed(text).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_example_of_the_documentation_is_a_figure() {
        let page = include_str!("../../../../docs/benchmarks.md");
        let example = page.split("```json").nth(1).and_then(|rest| rest.split("```").next());

        let report = parsed(example.unwrap()).unwrap();

        assert_eq!(report.figures[0].samples.len(), 2);
    }

    #[test]
    fn a_note_has_a_name_and_is_a_line() {
        let long = "x".repeat(MAX_TEXT + 1);
        assert_eq!(check_note("commit", ""), Ok(()));
        assert_eq!(check_note("", "text"), Err(Invalid::Empty("note")));
        assert_eq!(check_note("commit", "a\nb"), Err(Invalid::Controls("note")));
        assert_eq!(check_note(&long, "text"), Err(Invalid::Long("note")));
        assert_eq!(check_note("commit", &long), Err(Invalid::Long("note")));
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nowhere/file")).unwrap_err();
        assert!(chain(&error).contains("/nowhere/file"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Path::new("file"), &bytes);
        }

        #[test]
        fn a_figure_with_a_byte_changed_is_read_or_refused(at in 0usize..400, byte in any::<u8>()) {
            let mut bytes = line(&figure("tessera", 1.0)).into_bytes();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = parse(Path::new("file"), &bytes);
        }
    }
}
