//! What the lab is doing, on standard error.

use std::io::{IsTerminal, Write, stderr};
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Writes a line to standard error; without a reader it is lost.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(stderr(), "{line}");
}

/// Says what happens: bars on a terminal, plain lines elsewhere, nothing when quiet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    quiet: bool,
}

impl Progress {
    /// Progress for a run; `quiet` leaves only errors.
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// One line: what starts or is done now.
    pub(crate) fn say(self, text: &str) {
        if !self.quiet {
            tell(&format!("lab: {text}"));
        }
    }

    /// A long step of `total` units (bytes, or thousandths where the amount is unknown).
    pub(crate) fn bar(self, text: &str, total: u64) -> Bar {
        let terminal = !self.quiet && stderr().is_terminal();
        let target =
            if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template("lab: {msg} [{bar:30}] {percent:>3}%") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(text.to_owned());
        Bar {
            bar,
            text: text.to_owned(),
            total: total.max(1),
            plain: !self.quiet && !terminal,
            told: AtomicU64::new(0),
        }
    }
}

/// A long step under way.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    text: String,
    total: u64,
    /// Print lines instead of drawing.
    plain: bool,
    /// Quarters printed so far.
    told: AtomicU64,
}

impl Bar {
    /// The step has come to `position` of its total; going back is ignored.
    pub(crate) fn set(&self, position: u64) {
        let position = position.min(self.total);
        if position > self.bar.position() {
            self.bar.set_position(position);
        }
        let quarters = quarters(position, self.total);
        if self.plain && self.told.fetch_max(quarters, Ordering::Relaxed) < quarters {
            tell(&format!("lab: {} {}%", self.text, quarters * 25));
        }
    }

    /// The step is complete.
    pub(crate) fn done(&self) {
        self.set(self.total);
        self.bar.finish();
    }
}

/// How many quarters of `total` lie below `position`.
fn quarters(position: u64, total: u64) -> u64 {
    // In 128 bits no product of two sizes overflows; the result is at most 4.
    u64::try_from(u128::from(position) * 4 / u128::from(total.max(1))).unwrap_or(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_are_whole_and_bounded() {
        assert_eq!(quarters(0, 100), 0);
        assert_eq!(quarters(24, 100), 0);
        assert_eq!(quarters(25, 100), 1);
        assert_eq!(quarters(100, 100), 4);
        assert_eq!(quarters(u64::MAX, u64::MAX), 4);
        assert_eq!(quarters(0, 0), 0);
    }
}
