//! System calls that fail: at the start, in the run, in each request, at the end. A VM, a broker or a holder ends with
//! a named reason or continues; it does not hang, and leaves nothing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use serde_json::{Value, json};
use tesseractl::client::Client;
use testing::bare::{POWERS_OFF, WAITS, image};
use testing::broker::Broker;
use testing::faults::{Calls, Fault, Given, Injected, Injector};
use testing::guest::Plan;
use testing::lab::{Lab, program};
use testing::process::processes;
use testing::scratch::Scratch;
use testing::wait::{PATIENCE, until};

/// So many calls of a phase fail at least, if it makes as many, each in another of the ways that it may.
const FAULTS: usize = 24;
/// With this variable every call fails, in each of its ways; of a series of the same call, the first and the last.
const ALL: &str = "TESSERA_FAULTS_ALL";

/// Statuses with which a process may end for a fault: see docs/exit-codes.md. Not 16: the sandbox must know what is
/// done about a fault. Not a signal, nor 101, which is a panic's.
const NAMED: &[i32] = &[0, 12, 14, 15, 65, 66, 69, 70, 73, 74, 77, 78];

fn lab() -> Lab {
    let lab = Lab::new().as_root().with_variable(ALL);
    if std::env::var_os(ALL).is_some() { lab.timeout(Duration::from_secs(3500)) } else { lab }
}

/// What was found wrong, all of it: one finding does not hide the next.
#[derive(Default)]
struct Findings {
    injected: usize,
    went_on: usize,
    wrong: Vec<String>,
}

impl Findings {
    fn expect(&mut self, right: bool, what: impl FnOnce() -> String) {
        if !right {
            let what = what();
            println!("WRONG: {what}");
            self.wrong.push(what);
        }
    }

    fn done(self, phase: &str) {
        let Self { injected, went_on, wrong } = self;
        println!("{phase}: {injected} faults, {went_on} of them without an effect");
        assert!(injected > 0, "{phase}: nothing was injected");
        assert!(wrong.is_empty(), "{phase}: {} of {injected}: {wrong:#?}", wrong.len());
    }
}

/// The faults to try where these calls are made.
fn faults(calls: &Calls) -> Vec<Fault> {
    match std::env::var_os(ALL) {
        Some(_) => calls.all_faults(),
        None => calls.some_faults(FAULTS),
    }
}

/// A process whose calls may fail, with its messages in a file.
struct Run {
    child: Child,
    injector: Injector,
    messages: PathBuf,
}

/// How it ended.
#[derive(Debug)]
struct Ended {
    /// `None` for a signal, or where it hung.
    code: Option<i32>,
    hung: bool,
    messages: String,
    calls: Calls,
    injected: Option<Injected>,
}

impl Run {
    fn start(mut command: Command, scratch: &Scratch, fault: Option<Fault>) -> Self {
        let messages = scratch.join("messages");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&messages).unwrap());
        let (child, injector) = Injector::spawn(&mut command, fault).unwrap();
        Self { child, injector, messages }
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    fn end(mut self) -> Ended {
        let start = Instant::now();
        while !self.has_ended() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        let hung = !self.has_ended();
        if hung {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        let (calls, injected) = (self.injector.seen(), self.injector.injected());
        self.injector.join();
        let messages = fs::read_to_string(&self.messages).unwrap();
        Ended { code: status.code().filter(|_| !hung), hung, messages, calls, injected }
    }
}

impl Ended {
    /// What cannot be removed stays, and so does a file of which it is not known whose it is, or whose folder is said not to
    /// be there or not to be entered: it is in no rule of the sandbox then.
    fn could_not_remove(&self) -> bool {
        let is_of_the_folder = |given: Given| {
            let errnos = [libc::ENOENT, libc::EACCES];
            matches!(given, Given::Errno(errno) if errnos.contains(&errno))
        };
        let removal = |fault: &Injected| match &*fault.call {
            "unlinkat" | "newfstatat" => true,
            "openat" => is_of_the_folder(fault.given),
            _ => false,
        };
        self.injected.as_ref().is_some_and(removal)
    }

    /// Checks that a process has ended as it may.
    fn check(&self, findings: &mut Findings) {
        findings.expect(!self.hung, || format!("it hung: {self:#?}"));
        let named = self.code.is_some_and(|code| NAMED.contains(&code));
        findings.expect(named || self.hung, || format!("an end without a name: {self:#?}"));
        findings.expect(!self.messages.contains("panicked at"), || format!("a panic: {self:#?}"));
        let is_silent = self.code != Some(0) && self.code != Some(12) && self.messages.is_empty();
        // Where its messages cannot be written, it has none.
        let cannot_speak = self.injected.as_ref().is_some_and(|fault| fault.call == "write");
        findings.expect(!is_silent || cannot_speak, || format!("an end without a word: {self:#?}"));
        findings.injected += usize::from(self.injected.is_some());
        findings.went_on += usize::from(self.injected.is_some() && self.code == Some(0));
    }
}

/// A guest that powers off at once.
fn that_powers_off(scratch: &Scratch) -> PathBuf {
    scratch.file("off", image(&POWERS_OFF))
}

/// A guest that waits for an interrupt, for ever.
fn that_waits(scratch: &Scratch) -> PathBuf {
    scratch.file("waits", image(&WAITS))
}

/// A VM with a device of each kind.
fn with_devices(plan: Plan, scratch: &Scratch) -> Plan {
    let disk = scratch.file("disk", vec![0; 1 << 20]);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    plan.with("--memory", "64M")
        .with("--mte", "require")
        .with("--disk", &format!("{},id=data", text(&disk)))
        .with("--vsock", &text(&scratch.join("vsock")))
        .with("--serial", &format!("file:{}", text(&scratch.join("serial"))))
        .with("--api-sock", &text(&scratch.join("api")))
}

/// Nothing is left of a VM that has ended, for this fault.
fn nothing_is_left(scratch: &Scratch, ended: &Ended, findings: &mut Findings) {
    let could_not = ended.could_not_remove();
    for socket in ["api", "vsock"].map(|name| scratch.join(name)) {
        findings
            .expect(could_not || !socket.exists(), || format!("{socket:?} is left: {ended:#?}"));
        let _ = fs::remove_file(socket);
    }
    findings.expect(processes("tessera").len() <= 1, || format!("a process is left: {ended:#?}"));
}

#[test]
#[ignore = "long"]
fn calls_that_fail_at_the_start_and_at_the_end_of_a_vm() {
    lab().run(|| {
        let (scratch, broker) = (Scratch::new(), Broker::start(&["--capacity", "16M"]));
        let plan = || {
            let plan = Plan::bare(&that_powers_off(&scratch)).with("--broker", broker.socket());
            with_devices(plan, &scratch).with("--tag-storage", "demand")
        };
        let whole = Run::start(plan().command(), &scratch, None).end();
        assert_eq!(whole.code, Some(0), "{whole:#?}");

        let mut findings = Findings::default();
        for fault in faults(&whole.calls) {
            let ended = Run::start(plan().command(), &scratch, Some(fault)).end();
            ended.check(&mut findings);
            nothing_is_left(&scratch, &ended, &mut findings);
            broker.wait("the lease to end", |report| report.pool.leases.is_empty());
        }
        findings.done(&format!("start and end, {:?}", whole.calls));
    });
}

/// A VM that runs, and its client.
struct Machine<'a> {
    run: Run,
    scratch: &'a Scratch,
}

impl<'a> Machine<'a> {
    fn start(scratch: &'a Scratch) -> Self {
        let plan = with_devices(Plan::bare(&that_waits(scratch)), scratch);
        let run = Run::start(plan.command(), scratch, None);
        let machine = Self { run, scratch };
        until("a VM that answers", || machine.state().filter(|state| state == "Running"));
        machine
    }

    /// Asks, with patience for what it does: a request that has no answer for so long hangs.
    fn client(&self) -> Option<Client> {
        Client::connect(&self.scratch.join("api"), PATIENCE).ok()
    }

    fn state(&self) -> Option<String> {
        let answer: Value = self.client()?.get("/").ok()?;
        answer["state"].as_str().map(str::to_owned)
    }

    /// Does something while a call fails; what failed, and what the client was told.
    fn with_fault(
        &self,
        fault: Fault,
        request: &Request,
    ) -> (Option<Injected>, Result<(), String>) {
        self.run.injector.arm(Some(fault));
        let answer = self.ask(request);
        let injected = self.run.injector.injected();
        self.run.injector.arm(None);
        let answer = answer.map_err(|error| format!("{injected:?}: {error}"));
        (injected, answer)
    }

    /// Whether the process ends within a moment: a connection is closed before it has.
    fn ends_soon(&mut self) -> bool {
        let start = Instant::now();
        while !self.run.has_ended() && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.run.has_ended()
    }

    fn ask(&self, (method, path, body): &Request) -> Result<(), String> {
        let mut client = self.client().ok_or("it does not take a connection")?;
        match *method {
            "GET" => client.get::<Value>(path).map(|_| ()).map_err(|error| error.to_string()),
            _ => client.send(method, path, body).map_err(|error| error.to_string()),
        }
    }
}

/// Method, path and body.
type Request = (&'static str, &'static str, Value);

/// The folder that is saved to, empty.
fn nothing_saved(scratch: &Scratch) {
    let _ = fs::remove_dir_all(scratch.join("saved"));
    fs::create_dir_all(scratch.join("saved")).unwrap();
}

/// Tries a request with each fault, in a VM that is brought to `before` by requests that do not fail.
fn requests_that_fail(
    scratch: &Scratch,
    request: &Request,
    before: &Request,
    findings: &mut Findings,
) {
    let mut machine = Machine::start(scratch);
    machine.ask(before).unwrap();
    nothing_saved(scratch);
    machine.run.injector.arm(None);
    machine.ask(request).unwrap();
    let calls = machine.run.injector.seen();
    for fault in faults(&calls) {
        nothing_saved(scratch);
        if machine.run.has_ended() || machine.ask(before).is_err() {
            let ended = machine.run.end();
            ended.check(findings);
            machine = Machine::start(scratch);
            machine.ask(before).unwrap();
        }
        let start = Instant::now();
        let (injected, answer) = machine.with_fault(fault, request);
        println!("{fault:?}: {:.1} s, {injected:?}, {answer:?}", start.elapsed().as_secs_f64());
        findings.injected += usize::from(injected.is_some());
        findings.went_on += usize::from(injected.is_some() && answer.is_ok());
        let answers = machine.state().is_some();
        let ended = machine.run.has_ended() || (!answers && machine.ends_soon());
        findings.expect(ended || answers, || format!("{request:?}: no answer after {answer:?}"));
        let is_removal = answer.as_ref().is_err_and(|error| error.contains("unlinkat"));
        let left =
            || fs::read_dir(scratch.join("saved")).unwrap().flatten().map(|entry| entry.path());
        // What was done has been done, though the answer is lost.
        let is_answer = injected.as_ref().is_some_and(|fault| fault.call == "sendto");
        let may_stay = answer.is_ok() || is_removal || is_answer;
        findings.expect(may_stay || left().count() == 0, || {
            format!("{request:?}: after {answer:?}, {:?}", left().collect::<Vec<_>>())
        });
        // What failed once succeeds without the fault.
        if !ended && answer.is_err() {
            let again = machine.ask(before).and_then(|()| machine.ask(request));
            // It may have been about to end.
            let ends = again.is_err() && machine.ends_soon();
            findings.expect(again.is_ok() || ends, || {
                format!("{request:?}: after {answer:?}, {again:?}")
            });
        }
    }
    machine.ask(&stop()).unwrap();
    let ended = machine.run.end();
    findings.expect(ended.code == Some(12), || format!("{request:?}: {ended:#?}"));
    nothing_is_left(scratch, &ended, findings);
}

fn stop() -> Request {
    ("PUT", "/actions", json!({ "action_type": "Stop" }))
}

fn state(state: &str) -> Request {
    ("PATCH", "/vm", json!({ "state": state }))
}

fn save(scratch: &Scratch) -> Request {
    let [memory, state] = ["memory", "state"].map(|name| scratch.join("saved").join(name));
    ("PUT", "/snapshot/create", json!({ "snapshot_path": state, "mem_file_path": memory }))
}

/// Tries requests, each from a state that another brings the VM to.
fn each_fails(requests: impl FnOnce(&Scratch) -> Vec<(Request, Request)>) {
    let scratch = Scratch::new();
    for (request, before) in requests(&scratch) {
        let mut findings = Findings::default();
        requests_that_fail(&scratch, &request, &before, &mut findings);
        findings.done(&format!("{} {}", request.0, request.1));
    }
}

#[test]
#[ignore = "long"]
fn calls_that_fail_while_a_vm_is_paused_and_resumed() {
    lab().run(|| {
        each_fails(|_| {
            let [paused, resumed] = ["Paused", "Resumed"].map(state);
            vec![(paused.clone(), resumed.clone()), (resumed, paused)]
        });
    });
}

#[test]
#[ignore = "long"]
fn calls_that_fail_while_a_vm_is_saved() {
    lab().run(|| each_fails(|scratch| vec![(save(scratch), state("Paused"))]));
}

#[test]
#[ignore = "long"]
fn calls_that_fail_while_a_vm_is_changed_and_looked_at() {
    lab().run(|| {
        each_fails(|scratch| {
            let disk = json!({ "drive_id": "data", "path_on_host": scratch.join("disk") });
            let requests = [
                ("PATCH", "/balloon", json!({ "amount_mib": 8 })),
                ("PATCH", "/drives/data", disk),
                ("GET", "/metrics", Value::Null),
                ("GET", "/footprint", Value::Null),
            ];
            requests.map(|request| (request, state("Resumed"))).into()
        });
    });
}

/// Restores a VM until it answers, or ends for a fault; has it end, and checks how.
fn restored(
    scratch: &Scratch,
    flags: &[&str],
    fault: Option<Fault>,
    findings: &mut Findings,
) -> Calls {
    let plan = Plan::restore(&scratch.join("saved"));
    let plan = flags.iter().fold(plan, |plan, flag| plan.flag(flag));
    let plan = plan.with("--api-sock", scratch.join("api").to_str().unwrap());
    let run = Run::start(plan.command(), scratch, fault);
    let mut machine = Machine { run, scratch };
    let start = Instant::now();
    while !machine.run.has_ended() && machine.state().as_deref() != Some("Running") {
        if start.elapsed() > PATIENCE {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = machine.ask(&stop());
    let ended = machine.run.end();
    ended.check(findings);
    nothing_is_left(scratch, &ended, findings);
    ended.calls
}

fn restores_that_fail(flags: &'static [&'static str]) {
    lab().run(|| {
        let scratch = Scratch::new();
        nothing_saved(&scratch);
        let machine = Machine::start(&scratch);
        for request in [state("Paused"), save(&scratch)] {
            machine.ask(&request).unwrap();
        }
        machine.ask(&stop()).unwrap();
        assert_eq!(machine.run.end().code, Some(12));

        let mut findings = Findings::default();
        let calls = restored(&scratch, flags, None, &mut findings);
        for fault in faults(&calls) {
            let start = Instant::now();
            restored(&scratch, flags, Some(fault), &mut findings);
            println!("{fault:?}: {:.1} s", start.elapsed().as_secs_f64());
        }
        findings.done(&format!("restore {flags:?}, {calls:?}"));
    });
}

#[test]
#[ignore = "long"]
fn calls_that_fail_while_a_vm_is_restored() {
    restores_that_fail(&[]);
}

#[test]
#[ignore = "long"]
fn calls_that_fail_while_a_vm_is_restored_lazily() {
    restores_that_fail(&["--lazy"]);
}

fn broker(socket: &Path) -> Command {
    let mut command = Command::new(program("tessera"));
    command.arg("broker").arg("--socket").arg(socket).args(["--capacity", "16M"]);
    command
}

/// Waits until a broker serves, or has ended for a fault. One whose message could not be written serves as well.
fn serves(run: &mut Run, socket: &Path) -> bool {
    until("a broker that serves or ends", || {
        (run.has_ended() || connects(socket).is_ok()).then_some(())
    });
    !run.has_ended()
}

fn connects(socket: &Path) -> rustix::io::Result<()> {
    let connection = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    rustix::net::connect(&connection, &SocketAddrUnix::new(socket)?)
}

fn terminate(run: Run) -> Ended {
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&run.child),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    run.end()
}

/// Checks a broker that was told to end.
fn told_to_end(ended: &Ended, socket: &Path, findings: &mut Findings) {
    match ended.code {
        Some(143) => findings.injected += usize::from(ended.injected.is_some()),
        _ => ended.check(findings),
    }
    let could_not = ended.could_not_remove();
    findings.expect(could_not || !socket.exists(), || format!("{socket:?} is left: {ended:#?}"));
    let _ = fs::remove_file(socket);
}

#[test]
#[ignore = "long"]
fn calls_of_a_broker_that_fail() {
    lab().run(|| {
        let (scratch, own) = (Scratch::new(), Scratch::new());
        let socket = own.join("broker");
        let mut findings = Findings::default();
        let mut run = Run::start(broker(&socket), &own, None);
        assert!(serves(&mut run, &socket));
        let calls = terminate(run).calls;
        for fault in faults(&calls) {
            let mut run = Run::start(broker(&socket), &own, Some(fault));
            match serves(&mut run, &socket) {
                true => told_to_end(&terminate(run), &socket, &mut findings),
                false => run.end().check(&mut findings),
            }
            let _ = fs::remove_file(&socket);
        }
        findings.done(&format!("start and end of a broker, {calls:?}"));

        // A VM that comes and goes meanwhile.
        let plan = || {
            let plan = Plan::bare(&that_powers_off(&scratch)).with("--memory", "64M");
            let plan = plan.with("--serial", "none").with("--mte", "require");
            plan.with("--broker", socket.to_str().unwrap()).with("--tag-storage", "demand")
        };
        let vm = |name: &str| {
            let mut command = plan().command();
            command.stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(File::create(scratch.join(name)).unwrap());
            command.spawn().unwrap().wait().unwrap().code()
        };
        let mut findings = Findings::default();
        let mut run = Run::start(broker(&socket), &own, None);
        assert!(serves(&mut run, &socket));
        run.injector.arm(None);
        assert_eq!(vm("vm"), Some(0));
        let calls = run.injector.seen();
        for fault in faults(&calls) {
            run.injector.arm(Some(fault));
            let code = vm("vm");
            let injected = run.injector.injected();
            run.injector.arm(None);
            findings.injected += usize::from(injected.is_some());
            findings.went_on += usize::from(injected.is_some() && code == Some(0));
            let what = |text: &str| format!("{text} after {injected:?}: a VM ended with {code:?}");
            findings.expect(code.is_some_and(|code| NAMED.contains(&code)), || what("broker"));
            if run.has_ended() || vm("next") != Some(0) {
                // It ends for the fault, which a VM may see before it has: else it hangs.
                run.end().check(&mut findings);
                let _ = fs::remove_file(&socket);
                run = Run::start(broker(&socket), &own, None);
                assert!(serves(&mut run, &socket));
                findings.expect(vm("next") == Some(0), || what("the next VM was refused"));
            }
        }
        told_to_end(&terminate(run), &socket, &mut findings);
        findings.done(&format!("a VM that comes and goes, {calls:?} of the broker"));
    });
}
