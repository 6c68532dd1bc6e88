//! Boots the nested arm64 host under QEMU and waits for the end of its payload.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::child::{Group, spawn_tied};
use crate::console::{Log, Mark};
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::{Progress, tell};
use crate::size::Mib;

/// The emulator.
const QEMU: &str = "qemu-system-aarch64";
/// The first version whose virt machine has the second serial line that carries the payload's output.
const MIN_QEMU: (u32, u32) = (9, 1);
/// What to install where QEMU is missing or old.
const INSTALL: &str =
    "install the package qemu-system-arm (Debian 13; on Debian 12 from bookworm-backports)";

/// Why the nested host cannot be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// QEMU cannot be started.
    #[error("cannot start {QEMU}: {INSTALL}")]
    NoQemu(#[source] io::Error),
    /// QEMU lacks something.
    #[error("this QEMU ({found}) is older than {}.{}, which the lab needs: {INSTALL}", MIN_QEMU.0, MIN_QEMU.1)]
    OldQemu {
        /// What QEMU says of itself.
        found: String,
    },
    /// The second node would take all memory.
    #[error("a second node of {node1} leaves nothing of {memory}: give more --memory")]
    Node {
        /// The second node's memory.
        node1: Mib,
        /// All memory.
        memory: Mib,
    },
    /// Instruction counting orders the instructions of one processor only.
    #[error(
        "--icount counts the instructions of one processor: leave --cpus out, or give --cpus 1"
    )]
    IcountCpus,
    /// Pipes, threads, waiting.
    #[error("cannot run the nested host")]
    System(#[from] io::Error),
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// The nested host's machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// All memory.
    pub(crate) memory: Mib,
    /// Processors; none given means 2, or 1 with `icount`.
    pub(crate) cpus: Option<u32>,
    /// Let the clock count instructions: the same run gives the same figures on every machine.
    pub(crate) icount: bool,
    /// Memory of a second NUMA node without processors.
    pub(crate) node1: Option<Mib>,
    /// More words of the kernel's command line.
    pub(crate) append: String,
    /// Files that are the host's disks, /dev/vda and on. What it writes to them ends with it.
    pub(crate) disks: Vec<PathBuf>,
    /// A disk more, whose system the host runs instead of its initramfs.
    pub(crate) root: Option<PathBuf>,
    /// More arguments of QEMU.
    pub(crate) qemu: Vec<String>,
    /// When to give up.
    pub(crate) timeout: Duration,
    /// Copy the kernel's log to standard error.
    pub(crate) verbose: bool,
}

impl Machine {
    /// All disks, that of the system last: tests count on the first.
    fn all_disks(&self) -> impl Iterator<Item = &Path> {
        self.disks.iter().chain(&self.root).map(PathBuf::as_path)
    }

    /// Whether the host has a disk.
    pub(crate) fn has_disks(&self) -> bool {
        self.all_disks().next().is_some()
    }

    /// What the host calls the disk with its system. Linux names disks in the order of their PCI slots.
    pub(crate) fn root_device(&self) -> Option<String> {
        let letter =
            u8::try_from(self.disks.len()).ok().and_then(|number| b'a'.checked_add(number));
        self.root.as_ref().and(letter).map(|letter| format!("/dev/vd{}", char::from(letter)))
    }
}

/// Where the payload's output goes.
pub(crate) enum Output<'a> {
    /// Bytes as they come.
    To(&'a mut (dyn Write + Send)),
    /// The same, and the payload has an input.
    Between {
        /// The input's end that QEMU reads.
        input: OwnedFd,
        /// Takes bytes as they come.
        target: &'a mut (dyn Write + Send),
    },
    /// The terminal itself, which is also the payload's input.
    Terminal,
}

/// How a boot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The payload ended.
    Ended {
        /// Its exit status.
        status: u8,
        /// The host's clock when it started and ended, in ns; with icount, instructions.
        clock: (u64, u64),
    },
    /// The deadline passed.
    TimedOut,
    /// The host, or QEMU, ended before the payload.
    Crashed(ExitStatus),
}

/// What is known of a boot.
#[derive(Debug)]
pub(crate) struct Report {
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// From the start of QEMU to its end.
    pub(crate) wall: Duration,
    /// From the start of QEMU to the start of the payload, where it came to that.
    pub(crate) boot: Option<Duration>,
    /// The last lines of the kernel's log and of QEMU.
    pub(crate) tail: Vec<String>,
}

/// Boots `kernel` with `initrd` and waits for the payload. `token` is in the initramfs's settings.
///
/// # Errors
/// When QEMU cannot be started, and on Ctrl-C. A crash or a timeout is a [`Report`].
pub(crate) fn boot(
    machine: &Machine,
    kernel: &Path,
    initrd: &Path,
    token: &str,
    output: Output<'_>,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Report, Error> {
    check_qemu()?;
    let (log, log_end) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    // QEMU inherits this end; ours is closed below, so that the log ends with QEMU.
    rustix::io::fcntl_setfd(&log_end, FdFlags::empty()).map_err(io::Error::from)?;
    let (input, target) = match output {
        Output::To(target) => (Stdio::null(), Some(target)),
        Output::Between { input, target } => (input.into(), Some(target)),
        Output::Terminal => (Stdio::inherit(), None),
    };
    let terminal = target.is_none();
    let mut command = Command::new(QEMU);
    command.args(arguments(machine, kernel, initrd, log_end.as_raw_fd(), terminal)?);
    command.stdin(input).stderr(Stdio::piped());
    if !terminal {
        command.stdout(Stdio::piped());
    }
    let group = if terminal { Group::Shared } else { Group::Own };
    let _settings = terminal.then(TerminalSettings::save);
    interrupt.check()?;
    let started = Instant::now();
    let mut qemu = Qemu(spawn_tied(&mut command, group).map_err(Error::NoQemu)?);
    // Which also closes our copy of the input's end.
    drop(command);
    drop(log_end);
    let watch = interrupt.watch(&qemu.0);
    let mut session = Session {
        machine,
        log: Log::new(token),
        started,
        boot: None,
        end: None,
        errors: Vec::new(),
        progress,
    };
    let (sender, events) = mpsc::channel();
    let timed_out = thread::scope(|scope| {
        if let Some(stderr) = qemu.0.stderr.take() {
            let sender = sender.clone();
            scope.spawn(move || forward(stderr, &sender, Event::Error));
        }
        if let (Some(stdout), Some(target)) = (qemu.0.stdout.take(), target) {
            scope.spawn(move || copy(stdout, target));
        }
        scope.spawn(move || forward(File::from(log), &sender, Event::Log));
        let timed_out = session.follow(&events);
        // The threads end with QEMU's ends of the pipes.
        if timed_out {
            qemu.kill();
        }
        timed_out
    });
    drop(watch);
    let status = qemu.0.wait()?;
    interrupt.check()?;
    let outcome = match session.end {
        Some((status, clock)) => Outcome::Ended { status, clock },
        None if timed_out => Outcome::TimedOut,
        None => Outcome::Crashed(status),
    };
    let mut tail = session.log.tail();
    tail.extend(
        String::from_utf8_lossy(&session.errors).lines().map(|line| format!("qemu: {line}")),
    );
    Ok(Report { outcome, wall: started.elapsed(), boot: session.boot, tail })
}

/// What the pipes bring.
enum Event {
    Log(Vec<u8>),
    Error(Vec<u8>),
}

struct Session<'a> {
    machine: &'a Machine,
    log: Log,
    started: Instant,
    boot: Option<Duration>,
    end: Option<(u8, (u64, u64))>,
    errors: Vec<u8>,
    progress: Progress,
}

impl Session<'_> {
    /// Takes events until all pipes have ended; true when the deadline came first.
    fn follow(&mut self, events: &Receiver<Event>) -> bool {
        loop {
            let left = self.machine.timeout.saturating_sub(self.started.elapsed());
            match events.recv_timeout(left) {
                Ok(Event::Log(bytes)) => self.log_bytes(&bytes),
                // QEMU says little; what it repeats without end is of no use.
                Ok(Event::Error(bytes)) if self.errors.len() < 1 << 16 => self.errors.extend(bytes),
                Ok(Event::Error(_)) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
            }
        }
    }

    fn log_bytes(&mut self, bytes: &[u8]) {
        for (line, mark) in self.log.feed(bytes) {
            match mark {
                Some(Mark::Start(_)) => {
                    let boot = self.started.elapsed();
                    self.boot = Some(boot);
                    self.progress.say(&format!("nested host up after {:.1} s", boot.as_secs_f64()));
                }
                Some(Mark::End { status, clock }) => self.end = Some((status, clock)),
                None if self.machine.verbose => tell(&format!("host: {line}")),
                None => {}
            }
        }
    }
}

/// A QEMU that does not outlive its value.
struct Qemu(Child);

impl Qemu {
    fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
        let _ = self.0.wait();
    }
}

/// The terminal's settings, set again on drop: a QEMU that is killed leaves it raw.
struct TerminalSettings(Option<rustix::termios::Termios>);

impl TerminalSettings {
    fn save() -> Self {
        Self(rustix::termios::tcgetattr(std::io::stdin()).ok())
    }
}

impl Drop for TerminalSettings {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            let now = rustix::termios::OptionalActions::Now;
            let _ = rustix::termios::tcsetattr(std::io::stdin(), now, settings);
        }
    }
}

/// Sends what a pipe brings until it ends.
fn forward(mut pipe: impl Read, sender: &Sender<Event>, event: fn(Vec<u8>) -> Event) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        let bytes = buffer.get(..count).unwrap_or_default().to_vec();
        if sender.send(event(bytes)).is_err() {
            return;
        }
    }
}

/// Copies what a pipe brings, at once. Where the target is gone, the rest is read and dropped: QEMU must
/// not block on it.
fn copy(mut pipe: impl Read, target: &mut (dyn Write + Send)) {
    let mut buffer = [0; 4096];
    let mut open = true;
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        let bytes = buffer.get(..count).unwrap_or_default();
        open = open && target.write_all(bytes).and_then(|()| target.flush()).is_ok();
    }
}

fn arguments(
    machine: &Machine,
    kernel: &Path,
    initrd: &Path,
    log: i32,
    terminal: bool,
) -> Result<Vec<String>, Error> {
    let cpus = machine.cpus.unwrap_or(if machine.icount { 1 } else { 2 });
    if machine.icount && cpus != 1 {
        return Err(Error::IcountCpus);
    }
    let mut board = "virt,virtualization=on,mte=on,gic-version=3".to_owned();
    let mut more = Vec::new();
    if machine.icount {
        // Seeds in the device tree, QEMU's own and the wall clock would each change the count.
        board.push_str(",dtb-randomness=off");
        more.extend(
            ["-icount", "shift=0,sleep=off", "-seed", "1", "-rtc", "base=2026-01-01,clock=vm"]
                .map(str::to_owned),
        );
    }
    if let Some(node1) = machine.node1 {
        let memory = machine.memory;
        let node0 = memory.less(node1).ok_or(Error::Node { node1, memory })?;
        more.extend(nodes(node0, node1, cpus));
    }
    // The kernel's tests of its ciphers are a good part of a boot.
    let append = format!(
        "console=ttyAMA0 quiet panic=-1 oops=panic printk.devkmsg=on cryptomgr.notests {}",
        machine.append
    );
    let signals = if terminal { "stdio,id=payload,signal=off" } else { "stdio,id=payload" };
    let fixed = [
        ("-M", board),
        ("-cpu", "max,pauth-impdef=on".to_owned()),
        ("-smp", cpus.to_string()),
        ("-m", machine.memory.to_string()),
        ("-display", "none".to_owned()),
        ("-monitor", "none".to_owned()),
        ("-nic", "none".to_owned()),
        ("-kernel", kernel.display().to_string()),
        ("-initrd", initrd.display().to_string()),
        ("-append", append),
        ("-add-fd", format!("fd={log},set=1")),
        ("-chardev", "file,id=log,path=/dev/fdset/1,append=on".to_owned()),
        ("-chardev", signals.to_owned()),
        ("-serial", "chardev:log".to_owned()),
        ("-serial", "chardev:payload".to_owned()),
    ];
    let mut arguments = vec!["-nodefaults".to_owned(), "-no-reboot".to_owned()];
    for (name, value) in fixed {
        arguments.extend([name.to_owned(), value]);
    }
    arguments.extend(more);
    for (number, file) in machine.all_disks().enumerate() {
        arguments.extend(disk(number, file));
    }
    arguments.extend(machine.qemu.iter().cloned());
    Ok(arguments)
}

/// A virtio disk with the contents of `file`. QEMU puts writes aside and locks the file only against writers.
fn disk(number: usize, file: &Path) -> [String; 4] {
    // In QEMU's lists of options a comma within a value is written twice.
    let file = file.display().to_string().replace(',', ",,");
    [
        "-drive".to_owned(),
        format!("if=none,id=disk{number},format=raw,snapshot=on,file={file}"),
        "-device".to_owned(),
        format!("virtio-blk-pci,drive=disk{number}"),
    ]
}

/// A second node without processors, twice as far as the first.
fn nodes(node0: Mib, node1: Mib, cpus: u32) -> Vec<String> {
    let last = cpus.saturating_sub(1);
    [
        "-object".to_owned(),
        format!("memory-backend-ram,id=m0,size={node0}"),
        "-object".to_owned(),
        format!("memory-backend-ram,id=m1,size={node1}"),
        "-numa".to_owned(),
        format!("node,nodeid=0,cpus=0-{last},memdev=m0"),
        "-numa".to_owned(),
        "node,nodeid=1,memdev=m1".to_owned(),
        "-numa".to_owned(),
        "dist,src=0,dst=1,val=40".to_owned(),
    ]
    .into()
}

fn check_qemu() -> Result<(), Error> {
    let output =
        Command::new(QEMU).arg("--version").stdin(Stdio::null()).output().map_err(Error::NoQemu)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let first = text.lines().next().unwrap_or_default();
    match version(first) {
        // What cannot be read is not refused: the boot will tell.
        Some(found) if found < MIN_QEMU => Err(Error::OldQemu { found: first.to_owned() }),
        _ => Ok(()),
    }
}

/// `QEMU emulator version 10.0.2 (Debian ...)` → (10, 0).
fn version(line: &str) -> Option<(u32, u32)> {
    let mut parts = line.split("version ").nth(1)?.split(['.', ' ']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A number of 128 random bits, in hexadecimal, for one boot.
///
/// # Errors
/// When the system's source of random numbers cannot be read.
pub(crate) fn token() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(crate::debian::hex(&bytes))
}

/// A folder for one boot's files, removed with the value; leftovers of killed labs go first.
///
/// # Errors
/// When the folder cannot be made.
pub(crate) fn temporary(folder: &Path) -> io::Result<tempfile::TempDir> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let alive =
            name.split('-').nth(1).is_some_and(|pid| PathBuf::from("/proc").join(pid).exists());
        if name.starts_with("boot-") && !alive {
            // Another lab may be at the same.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    tempfile::Builder::new().prefix(&format!("boot-{}-", std::process::id())).tempdir_in(folder)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn machine() -> Machine {
        Machine {
            memory: Mib::new(4096),
            cpus: None,
            icount: false,
            node1: None,
            append: String::new(),
            disks: Vec::new(),
            root: None,
            qemu: Vec::new(),
            timeout: Duration::from_secs(1),
            verbose: false,
        }
    }

    fn line(machine: &Machine) -> String {
        let paths = (Path::new("/k"), Path::new("/i"));
        arguments(machine, paths.0, paths.1, 7, false).unwrap().join(" ")
    }

    #[test]
    fn two_processors_or_one_that_is_counted() {
        assert!(line(&machine()).contains("-smp 2 "));
        let counted = Machine { icount: true, ..machine() };
        assert!(line(&counted).contains("-smp 1 "));
        assert!(line(&counted).contains("-icount shift=0,sleep=off"));
        let two = Machine { cpus: Some(2), ..counted };
        assert!(matches!(
            arguments(&two, Path::new("k"), Path::new("i"), 7, false),
            Err(Error::IcountCpus)
        ));
    }

    #[test]
    fn a_second_node_is_part_of_all_memory() {
        let with = Machine { node1: Some(Mib::new(128)), ..machine() };
        assert!(line(&with).contains("id=m0,size=3968M"));
        let all = Machine { node1: Some(Mib::new(4096)), ..machine() };
        assert!(matches!(
            arguments(&all, Path::new("k"), Path::new("i"), 7, false),
            Err(Error::Node { .. })
        ));
    }

    #[test]
    fn disks_follow_each_other_and_are_never_written() {
        let disks = Machine { disks: vec!["a".into(), "b,c".into()], ..machine() };

        let line = line(&disks);

        assert!(line.contains(
            "-drive if=none,id=disk0,format=raw,snapshot=on,file=a -device virtio-blk-pci,drive=disk0 \
             -drive if=none,id=disk1,format=raw,snapshot=on,file=b,,c -device virtio-blk-pci,drive=disk1"
        ));
    }

    #[test]
    fn the_disk_with_the_system_is_the_last() {
        let root = Machine { root: Some("r".into()), ..machine() };
        assert_eq!(root.root_device().as_deref(), Some("/dev/vda"));

        let both = Machine { disks: vec!["a".into()], ..root };
        assert_eq!(both.root_device().as_deref(), Some("/dev/vdb"));
        assert!(line(&both).contains("snapshot=on,file=r -device virtio-blk-pci,drive=disk1"));
        assert_eq!(machine().root_device(), None);
    }

    #[test]
    fn versions_are_read_and_compared_by_number() {
        let debian = version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)").unwrap();
        assert_eq!(debian, (10, 0));
        assert!(debian > MIN_QEMU);
        assert!(version("QEMU emulator version 7.2.15").unwrap() < MIN_QEMU);
        assert_eq!(version("something else"), None);
    }

    #[test]
    fn leftovers_of_dead_labs_go_and_those_of_live_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        // Beyond the largest process number of Linux, 2^22.
        let (dead, alive) = (folder.path().join("boot-4999999-x"), folder.path().join("boot-1-x"));
        std::fs::create_dir(&dead).unwrap();
        std::fs::create_dir(&alive).unwrap();

        let own = temporary(folder.path()).unwrap();

        assert!(own.path().exists() && alive.exists() && !dead.exists());
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(token().unwrap(), token().unwrap());
    }

    #[test]
    fn output_goes_on_being_read_when_its_target_is_gone() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut pipe = io::Cursor::new(vec![0; 100_000]);

        copy(&mut pipe, &mut Gone);

        assert_eq!(pipe.position(), 100_000);
    }
}
