//! What happens to a VM.

use serde_json::Value;
use vmm::error::printable;

use crate::cli::OfVm;
use crate::client::{Error, Event};
use crate::failure::Failure;
use crate::output::{Form, harmless, say, write};
use crate::target::Target;

/// Shows events, each on a line, until the VM has ended.
///
/// # Errors
/// When the VM cannot be reached, refuses, or ends without a last event.
pub fn follow(of: &OfVm, form: Form) -> Result<(), Failure> {
    let target = Target::find(&of.vm)?;
    let mut events = target.client()?.events()?;
    let mut expected = 1;
    loop {
        let event = match events.next(None) {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(()),
            Err(Error::Closed) => {
                return Err(Failure::unreachable(format!(
                    "{} has ended without a last event: was it killed?",
                    target.name()
                )));
            }
            Err(error) => return Err(error.into()),
        };
        let lost = event.seq.saturating_sub(expected);
        expected = event.seq.saturating_add(1);
        let is_read = match form {
            Form::Text => write(&text(&event, lost)),
            Form::Json => {
                if lost > 0 {
                    say(&loss(lost));
                }
                let line = serde_json::to_string(&event).unwrap_or_default();
                write(&(harmless(&line) + "\n"))
            }
        };
        match is_read {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return Err(Failure::refused(format!("cannot print events: {error}"))),
        }
    }
}

/// An event as a line, after another one where some before it were lost.
fn text(event: &Event, lost: u64) -> String {
    let mut text = String::new();
    if lost > 0 {
        text.push_str(&format!("({})\n", loss(lost)));
    }
    text.push_str(&format!("{}  {}", printable(&event.time), printable(&event.event)));
    for (name, value) in &event.fields {
        let value = match value {
            Value::String(word) if !word.contains([' ', '"']) => printable(word),
            other => printable(&other.to_string()),
        };
        text.push_str(&format!("  {}={value}", printable(name)));
    }
    text + "\n"
}

fn loss(count: u64) -> String {
    let events = if count == 1 { "event is" } else { "events are" };
    format!("{count} {events} lost: more have happened than the VM keeps")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line_and_a_loss_another() {
        let json = r#"{"seq":5,"time":"2026-11-26T15:50:00.123Z","event":"paused","reason":"tag_storage",
                       "detail":"give a larger --tag-max\u001b","n":3}"#;
        let Ok(event) = serde_json::from_str::<Event>(json) else { panic!("{json}") };

        let line = "2026-11-26T15:50:00.123Z  paused  detail=\"give a larger --tag-max\\u001b\"  n=3  \
                    reason=tag_storage\n";
        assert_eq!(text(&event, 0), line);
        let lost = "(2 events are lost: more have happened than the VM keeps)\n";
        assert_eq!(text(&event, 2), lost.to_owned() + line);
    }
}
