//! How far a copy is, on a terminal.

use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// A line that is renewed; without a terminal on standard error there is none.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// For so many bytes, if it is known how many there will be.
    pub(super) fn new(length: Option<u64>) -> Self {
        let (bar, template) = match length {
            Some(length) => (
                ProgressBar::new(length),
                "{bytes} of {total_bytes} [{bar:30}] {bytes_per_sec}, {eta} left",
            ),
            None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec}"),
        };
        // The template is a constant; without it the line has another form.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    pub(super) fn moved(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// A message that stays.
    pub(super) fn say(&self, message: &str) {
        self.0.suspend(|| {
            let _ = writeln!(io::stderr(), "tesseractl: {message}");
        });
    }

    pub(super) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
