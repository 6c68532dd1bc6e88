//! What libFuzzer prints, and the table of all targets.

use std::fmt::Write;

/// How far a target is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Figures {
    /// Executions so far.
    pub(crate) executions: u64,
    /// Edges of the program that they met.
    pub(crate) edges: u64,
    /// Inputs that met what no other did.
    pub(crate) corpus: u64,
    /// The file with an input that fails.
    pub(crate) finding: Option<String>,
}

impl Figures {
    /// Takes a line that libFuzzer has printed. Whether it has news.
    pub(crate) fn read(&mut self, line: &str) -> bool {
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.finding = Some(path.trim().to_owned());
            return true;
        }
        if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
            self.executions = number.trim().parse().unwrap_or(self.executions);
            return true;
        }
        // "#1024 NEW    cov: 12 ft: 13 corp: 2/5b lim: 4 exec/s: 512 rss: 30Mb ..."
        let Some((number, rest)) =
            line.strip_prefix('#').and_then(|line| line.split_once(char::is_whitespace))
        else {
            return false;
        };
        let Ok(executions) = number.parse() else { return false };
        self.executions = executions;
        let field = |name: &str| {
            let value = rest.split_once(name)?.1.trim_start();
            let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
            value[..end].parse().ok()
        };
        self.edges = field("cov:").unwrap_or(self.edges);
        self.corpus = field("corp:").unwrap_or(self.corpus);
        true
    }
}

/// What came of one target.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) target: String,
    pub(crate) figures: Figures,
    /// Executions of all runs with this folder.
    pub(crate) total: u64,
    /// How long it ran.
    pub(crate) seconds: f64,
    /// It ended as it should.
    pub(crate) passed: bool,
}

/// The table of all targets.
pub(crate) fn table(outcomes: &[Outcome]) -> String {
    let mut table = format!(
        "{:<22}{:>12}{:>10}{:>8}{:>8}{:>13}  {}\n",
        "target", "executions", "a second", "edges", "corpus", "in all runs", "findings"
    );
    for Outcome { target, figures, total, seconds, passed } in outcomes {
        let rate = (figures.executions as f64 / seconds.max(0.001)) as u64;
        let finding = match (&figures.finding, passed) {
            (Some(path), _) => path.as_str(),
            (None, true) => "none",
            (None, false) => "it ended early: see its log",
        };
        let Figures { executions, edges, corpus, .. } = figures;
        let _ = writeln!(
            table,
            "{target:<22}{executions:>12}{rate:>10}{edges:>8}{corpus:>8}{total:>13}  {finding}"
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_libfuzzer_are_read() {
        let mut figures = Figures::default();
        for line in [
            "INFO: Seed: 123",
            "#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#65536\tpulse  cov: 120 ft: 300 corp: 34/1500b lim: 652 exec/s: 32768 rss: 50Mb",
            "stat::number_of_executed_units: 70000",
        ] {
            assert_eq!(figures.read(line), !line.starts_with("INFO"), "{line}");
        }
        let expected = Figures { executions: 70000, edges: 120, corpus: 34, finding: None };
        assert_eq!(figures, expected);

        assert!(figures.read("artifact_prefix='/tmp/'; Test unit written to /tmp/crash-12"));
        assert_eq!(figures.finding.as_deref(), Some("/tmp/crash-12"));
    }

    #[test]
    fn the_table_shows_what_failed() {
        let outcome = |passed, finding: Option<&str>| {
            let finding = finding.map(str::to_owned);
            let figures = Figures { executions: 500, edges: 7, corpus: 3, finding };
            Outcome { target: "a".to_owned(), figures, total: 900, seconds: 2.0, passed }
        };
        let table =
            table(&[outcome(true, None), outcome(false, Some("crash-1")), outcome(false, None)]);

        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[1].contains(" 500 ") && lines[1].contains(" 250 ") && lines[1].ends_with("none")
        );
        assert!(lines[2].ends_with("crash-1") && lines[3].ends_with("see its log"));
    }
}
