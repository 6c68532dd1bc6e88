//! What a user with a terminal sees: the console, the table of `top`, and the terminal as it was afterwards.

use rustix::process::{Pid, Signal, kill_process};

use super::common::terminal::{OnTerminal, size};
use super::harness::{Place, said};

/// `tesseractl` in this place, on a terminal of its own.
fn start(place: &Place, words: &[&str]) -> OnTerminal {
    let path = place.path("");
    OnTerminal::start(words, ("TESSERA_RUNTIME_DIR", path.to_str().unwrap()), size(12, 70))
}

fn place() -> Place {
    let place = Place::new();
    said(&place.run(&["--kernel", "Image", "--id", "web"]));
    place
}

#[test]
fn a_console_is_detached_from_with_its_key() {
    let place = place();
    let mut console = start(&place, &["console", "web"]);
    console.shows("Ctrl-] detaches");
    console.shows("login: ");
    assert!(console.is_raw());

    // Ctrl-C is the guest's.
    console.keys(b"root\x03\r");
    console.shows("root\u{3}\r");
    console.keys(b"x\x1dy");

    assert_eq!(console.end(), Some(0));
    console.shows("detached from web");
    assert!(said(&place.tesseractl(&["status", "web"])).contains("Running"));
}

#[test]
fn a_console_ends_with_its_vm() {
    let place = place();
    let mut console = start(&place, &["console", "web"]);
    console.shows("login: ");

    place.tesseractl(&["stop", "web", "--force"]);

    assert_eq!(console.end(), Some(0));
    console.shows("web has closed its console");
}

#[test]
fn the_table_is_renewed_until_it_is_ended() {
    let place = place();
    let mut top = start(&place, &["top", "--interval", "0.1"]);
    top.shows("web  Running");
    assert!(top.is_raw());

    place.tesseractl(&["pause", "web"]);
    top.shows("web  Paused");
    said(&place.run(&["--kernel", "Image", "--id", "db"]));
    top.shows("db   Running");
    place.tesseractl(&["kill", "db"]);
    top.shows("\u{1b}[H1 VM,");
    top.keys(b"q");

    assert_eq!(top.end(), Some(0));
    top.shows("\u{1b}[?25h\u{1b}[?1049l");
    let text = top.text();
    // No line is longer than the terminal is wide.
    let lines = text.split("\r\n").map(|line| line.replace("\u{1b}[H", "").replace("\u{1b}[K", ""));
    assert!(lines.filter(|line| !line.contains('\u{1b}')).all(|line| line.chars().count() <= 70));
}

#[test]
fn more_vms_than_lines_are_counted() {
    let place = Place::new();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| place.run(&["--kernel", "Image"]));
        }
    });

    let mut top = start(&place, &["top"]);

    // Of 15 lines, 9 fit 12 rows beside the count and the help.
    top.shows("(6 more lines)");
    top.keys(&[3]);
    assert_eq!(top.end(), Some(0));
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let place = place();
    for (words, sign) in [(&["top"][..], "web  Running"), (&["console", "web"], "login: ")] {
        let mut session = start(&place, words);
        session.shows(sign);

        let client = session.client().try_into().unwrap();
        kill_process(Pid::from_raw(client).unwrap(), Signal::TERM).unwrap();

        assert_eq!(session.end(), Some(143), "{words:?}");
    }
}
