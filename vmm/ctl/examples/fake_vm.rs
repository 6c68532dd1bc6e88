//! A process that looks like `tessera run` to `tesseractl` and has no guest: for the tests of what is done with many
//! processes. It publishes itself, and serves some of the control API, a console that echoes, and an agent that only
//! says what it is. Words of `--cmdline` change it:
//!
//! - `fail=N`: it says why and ends with status N
//! - `dies`: it kills itself before there is a socket
//! - `mute`: it accepts connections and answers none
//! - `loads`: its guest never starts
//! - `memory`: it has a balloon and tag storage
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use agent::protocol::frame::{self, Kind};
use clap::Parser;
use serde_json::{Value, json};
use vmm::config::RunArgs;
use vmm::error::chain;
use vmm::registry::{Entry, Publication};
use vmm::template::{self, TemplateArgs};

#[derive(Parser)]
enum Command {
    Run(Box<RunArgs>),
    Template(TemplateArgs),
}

struct Vm {
    id: String,
    state: Mutex<&'static str>,
    events: Mutex<Vec<Value>>,
    changed: Condvar,
    /// Clients of events that have not had the last one.
    followers: Mutex<u32>,
    served: Condvar,
    entry: Mutex<Option<Entry>>,
    is_mute: bool,
    has_memory: bool,
}

fn main() {
    let args = match Command::parse() {
        Command::Run(args) => args,
        // It needs no guest.
        Command::Template(args) => {
            let ended = template::run(&args).map_err(|error| {
                eprintln!("tessera: {}", chain(&error));
                error.status()
            });
            std::process::exit(ended.unwrap_or_else(|status| status) as i32);
        }
    };
    let words = args.cmdline.clone().unwrap_or_default();
    let has = |word: &str| words.split(' ').any(|other| other == word);
    if let Some(status) = words.strip_prefix("fail=") {
        eprintln!("tessera: it cannot be started\u{1b}[2J: try another");
        std::process::exit(status.parse().unwrap());
    }
    if has("dies") {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    let config = args.merge().unwrap();
    let vsock = config.vsock.map(|vsock| vsock.uds_path);
    let kernel = config.boot_source.and_then(|boot| boot.kernel_image_path);
    let publication = Publication {
        id: args.id.as_deref(),
        api_sock: args.api_sock.as_deref(),
        vsock: vsock.as_deref(),
        serial: args.serial.as_deref(),
    };
    let entry = Entry::publish(&publication).unwrap_or_else(|error| {
        eprintln!("tessera: {error}");
        std::process::exit(73);
    });
    eprintln!("tessera: fake {}", args.id.as_deref().unwrap_or("tessera"));
    let runs = (kernel.is_some() || args.restore.is_some()) && !has("loads");
    let vm = Arc::new(Vm {
        id: args.id.clone().unwrap_or_else(|| "tessera".to_owned()),
        state: Mutex::new(match runs {
            true if args.paused => "Paused",
            true => "Running",
            false => "Not started",
        }),
        events: Mutex::default(),
        changed: Condvar::new(),
        followers: Mutex::new(0),
        served: Condvar::new(),
        entry: Mutex::new(Some(entry)),
        is_mute: has("mute"),
        has_memory: has("memory"),
    });
    if runs {
        vm.tell(json!({ "event": "started" }));
    }
    let serial = args.serial.as_deref().and_then(|serial| serial.strip_prefix("socket:"));
    serve(vsock.as_deref(), |_, stream| agent(stream), &vm);
    serve(serial.map(Path::new), |_, stream| echo(stream), &vm);
    serve(args.api_sock.as_deref(), |vm, stream| vm.answer(stream), &vm);
    loop {
        thread::park();
    }
}

fn serve(path: Option<&Path>, handle: fn(&Vm, UnixStream), vm: &Arc<Vm>) {
    let Some(path) = path else { return };
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    let vm = Arc::clone(vm);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let vm = Arc::clone(&vm);
            thread::spawn(move || handle(&vm, stream.unwrap()));
        }
    });
}

impl Vm {
    fn tell(&self, mut event: Value) {
        let mut events = self.events.lock().unwrap();
        event["seq"] = json!(events.len() + 1);
        event["time"] = json!("2026-01-01T00:00:00.000Z");
        events.push(event);
        self.changed.notify_all();
    }

    fn answer(&self, stream: UnixStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some((what, body)) = request(&mut reader) {
            if self.is_mute {
                continue;
            }
            let done = |body: Value| (200, body);
            let refused = |why: &str| (400, json!({ "fault_message": why }));
            let state = *self.state.lock().unwrap();
            let (status, answer) = match &*what {
                "GET /" => done(json!({
                    "app_name": "Tessera", "id": self.id, "state": state, "vmm_version": "0",
                })),
                "GET /machine-config" => done(json!({ "vcpu_count": 1, "mem_size_mib": 512 })),
                "GET /version" => {
                    done(json!({ "firecracker_version": "0", "tessera_version": "0" }))
                }
                "GET /vm/config" => done(json!({})),
                "GET /metrics" => done(json!({ "vcpu": { "exits_total": 7 } })),
                "GET /events" => return self.events(stream),
                "GET /balloon" if self.has_memory => done(json!({
                    "amount_mib": 128, "actual_mib": 96, "deflate_on_oom": true,
                    "stats_polling_interval_s": 0, "free_page_hinting": false,
                    "free_page_reporting": true, "driver": "active", "reporting": { "state": "on" },
                })),
                "GET /tag-storage" if self.has_memory => done(json!({
                    "mode": "demand", "supply": "ledger", "capacity_bytes": 32 << 20,
                    "reserved_bytes": 10 << 20, "min_bytes": 0, "chunks": { "total": 256, "waiting": 0 },
                    "exhausted": false, "expired": false, "counters": {},
                })),
                "PATCH /vm" if body.contains("Paused") => {
                    *self.state.lock().unwrap() = "Paused";
                    self.tell(json!({ "event": "paused", "reason": "request" }));
                    (204, Value::Null)
                }
                "PATCH /vm" => {
                    *self.state.lock().unwrap() = "Running";
                    self.tell(json!({ "event": "resumed" }));
                    (204, Value::Null)
                }
                "PUT /actions" => {
                    self.tell(json!({ "event": "ended", "status": 12, "reason": "stopped" }));
                    (204, Value::Null)
                }
                _ => refused("it is a fake"),
            };
            let body = if answer.is_null() { String::new() } else { answer.to_string() };
            let length = body.len();
            let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n");
            let _ = (&stream).write_all((head + &body).as_bytes());
            if what == "PUT /actions" {
                drop(self.entry.lock().unwrap().take());
                let followers = self.followers.lock().unwrap();
                drop(self.served.wait_while(followers, |count| *count > 0).unwrap());
                std::process::exit(12);
            }
        }
    }

    fn events(&self, mut stream: UnixStream) {
        *self.followers.lock().unwrap() += 1;
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut sent = 0;
        loop {
            let events = self.events.lock().unwrap();
            let events = self.changed.wait_while(events, |events| events.len() == sent).unwrap();
            for event in &events[sent..] {
                let line = format!("{event}\n");
                let _ = write!(stream, "{:x}\r\n{line}\r\n", line.len());
                if event["event"] == "ended" {
                    let _ = write!(stream, "0\r\n\r\n");
                    *self.followers.lock().unwrap() -= 1;
                    self.served.notify_all();
                    return;
                }
            }
            sent = events.len();
        }
    }
}

/// The first line of a request without its version, and the body.
fn request(reader: &mut BufReader<UnixStream>) -> Option<(String, String)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let what = line.rsplit_once(' ')?.0.to_owned();
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((what, String::from_utf8(body).ok()?))
}

fn echo(mut stream: UnixStream) {
    let mut to = stream.try_clone().unwrap();
    let _ = to.write_all(b"login: ");
    let _ = std::io::copy(&mut stream, &mut to);
}

fn agent(stream: UnixStream) {
    let mut reader = BufReader::new(&stream);
    let _ = reader.read_line(&mut String::new());
    let _ = (&stream).write_all(b"OK 1\n");
    let _ = frame::read(&mut reader);
    let _ = frame::write(&mut &stream, Kind::Accepted, b"{\"agent\":\"fake\"}");
}
