//! Reports: `REPORT {"workload":"mte","event":"tags",...}`, one line each.

use std::io::Write;

use serde_json::{Value, json};

/// Writes one report to the console. `fields` is an object whose fields follow workload and event.
pub(crate) fn send(workload: &str, event: &str, fields: Value) {
    let line = line(workload, event, fields);
    let mut out = std::io::stdout().lock();
    // A guest without a console cannot report.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// Workload and event come first, for people; the order of the rest is the alphabet's.
fn line(workload: &str, event: &str, fields: Value) -> String {
    let head = format!("\"workload\":{},\"event\":{}", json!(workload), json!(event));
    let fields = fields.to_string();
    let rest = fields.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
    let comma = if rest.is_empty() { "" } else { "," };
    format!("REPORT {{{head}{comma}{rest}}}\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_report_is_one_line_of_json_whatever_it_holds() {
        let line = line("echo", "line", json!({ "text": "a\nb\u{1}\"" }));

        assert_eq!(line.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(line.strip_prefix("REPORT ").unwrap()).unwrap();
        assert_eq!(value["workload"], "echo");
        assert_eq!(value["event"], "line");
        assert_eq!(value["text"], "a\nb\u{1}\"");
    }

    #[test]
    fn a_report_may_have_no_fields() {
        assert_eq!(
            line("idle", "ready", json!({})),
            "REPORT {\"workload\":\"idle\",\"event\":\"ready\"}\n"
        );
    }
}
