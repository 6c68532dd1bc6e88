//! `echo`: gives back each line typed on the console, until a line `poweroff`.

use std::io::BufRead;

use serde_json::json;

use super::After;
use crate::report;

pub(super) const NAME: &str = "echo";

pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    report::send(NAME, "ready", json!({}));
    for line in std::io::stdin().lock().split(b'\n') {
        let line = line.map_err(|error| format!("cannot read the console: {error}"))?;
        let text = String::from_utf8_lossy(&line);
        report::send(NAME, "line", json!({ "text": text, "bytes": line.len() }));
        if text == "poweroff" {
            return Ok(After::PowerOff);
        }
    }
    // A console that hangs up is no wish to end.
    report::send(NAME, "end_of_input", json!({}));
    Ok(After::Stay)
}
