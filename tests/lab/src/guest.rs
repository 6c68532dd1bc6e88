//! A guest with MTE, shown: `lab guest` and `lab shell`, which boots the Debian image as well.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::child::{Group, spawn_tied};
use crate::cli;
use crate::host::{Machine, Outcome, Output};
use crate::image;
use crate::interrupt::Interrupted;
use crate::session::{self, Lab, Payload, quoted};
use crate::size::Mib;
use crate::summary::{Clock, Place, Transcript};

/// The guest's memory; as `tessera run --memory` takes it.
const MEMORY: &str = "512M";
/// The memory of a guest with Debian, which has a compiler.
const IMAGE_MEMORY: &str = "1G";
/// The initramfs and the disk of the image in the nested host.
const NESTED_INITRD: &str = "/image/initrd";
const NESTED_DISK: &str = "/dev/vda";
/// The processors of a guest for a person.
const SHELL_CPUS: u32 = 2;
/// Kernel, initramfs and control socket in the nested host.
const NESTED_FILES: [&str; 3] = ["/artifacts/Image", "/artifacts/initrd.cpio", "/run/api.sock"];
/// How long the demonstration may take.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Runs the VMM in the nested host. Lines that start with `@lab` are for the summary. The VMM's memory is
/// read whenever the guest reports, so that the last figures are those at the end of its work.
const SCRIPT: &str = r#"
now() {
  while read -r first second rest; do
    if [ "$first $second" = "now at" ]; then now=${rest%% *}; break; fi
  done </proc/timer_list
}
mkfifo /run/console
: >/run/smaps
# Once, so that the figure below does not count reading the programs for the first time.
tessera --version >/dev/null
now; echo "@lab launched $now"
tessera @ARGUMENTS@ </dev/null >/run/console 2>&1 &
vmm=$!
while IFS= read -r line; do
  case $line in
    REPORT*) now; cat /proc/$vmm/smaps >/run/smaps.new 2>/dev/null && mv /run/smaps.new /run/smaps; echo "@lab report $now";;
  esac
  printf '%s\n' "$line"
done </run/console
wait $vmm
status=$?
while IFS= read -r line; do echo "@lab smaps $line"; done </run/smaps
exit $status
"#;

/// Why a guest cannot be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The session.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The VMM has not been built.
    #[error("{path} is missing: run make, which builds it")]
    NoVmm {
        /// Where it should be.
        path: PathBuf,
    },
    /// The image cannot be made.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The image cannot be copied.
    #[error("cannot copy {path} for the guest: check the space left")]
    Copy {
        /// The disk.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The VMM cannot be run on this machine.
    #[error("cannot run {path}")]
    Run {
        /// The VMM.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Boots a guest that shows what MTE does, and says in the end what was seen. The exit code is 0 when MTE
/// caught all that it should.
///
/// # Errors
/// When something is missing or cannot be started.
pub(crate) fn show(lab: &Lab, programs: &Path, nested: bool, cpus: u32) -> Result<u8, Error> {
    let vmm = vmm(programs)?;
    let mut transcript = Transcript::new(|line| lab.progress.say(&format!("guest: {line}")));
    let status = if !nested && direct() {
        lab.progress.say("this machine is an arm64 host with KVM and MTE: no emulation");
        show_direct(lab, &vmm, programs, cpus, &mut transcript)?
    } else {
        lab.progress.say("no arm64 KVM with MTE here: emulating such a host");
        // Counting takes one host processor, on which several of a guest wait for each other at length.
        let machine = Machine { icount: cpus == 1, ..machine() };
        let arguments = arguments("mte", cpus, NESTED_FILES);
        let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
        let payload = Payload {
            script: SCRIPT.replace("@ARGUMENTS@", &words.join(" ")),
            needs_guest: true,
            ..Payload::default()
        };
        let report = lab.run(&machine, None, programs, payload, Output::To(&mut transcript))?;
        let code = cli::conclude(lab, &machine, &report);
        if !matches!(report.outcome, Outcome::Ended { .. }) {
            return Ok(code);
        }
        code
    };
    let clock = match (nested || !direct(), cpus) {
        (false, _) => Clock::Real,
        (true, 1) => Clock::Instructions,
        (true, _) => Clock::Emulated,
    };
    let place = Place::here(clock);
    let (text, passed) = transcript.summary(&place, status);
    // The summary is all this command is for; a closed standard output ends it quietly.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(match (status, passed) {
        (0, true) => 0,
        (0, false) => 1,
        (status, _) => status,
    })
}

/// Opens a shell in a guest; the terminal is the guest's console.
///
/// # Errors
/// When something is missing or cannot be started.
pub(crate) fn shell(lab: &Lab, programs: &Path, nested: bool) -> Result<u8, Error> {
    let vmm = vmm(programs)?;
    let size = window().map_or_else(String::new, |(rows, columns)| format!(",{rows}x{columns}"));
    let workload = format!("shell{size}");
    if !nested && direct() {
        let (kernel, initrd) = lab.guest(programs)?;
        let folder =
            crate::host::temporary(&lab.places.temporary()).map_err(session::Error::Temporary)?;
        let socket = folder.path().join("api.sock");
        let mut command = Command::new(&vmm);
        command.args(arguments(
            &workload,
            SHELL_CPUS,
            [&text(&kernel), &text(&initrd), &text(&socket)],
        ));
        lab.progress.say("booting the guest; leave its shell with: exit");
        let mut child = spawn_tied(&mut command, Group::Shared).map_err(cannot_run(&vmm))?;
        let status = child.wait().map_err(cannot_run(&vmm))?;
        return Ok(code(status));
    }
    let arguments = arguments(&workload, SHELL_CPUS, NESTED_FILES);
    let words: Vec<String> = arguments.iter().map(|word| quoted(word)).collect();
    lab.progress.say("leave the guest's shell with: exit");
    let script = format!("exec tessera {}\n", words.join(" "));
    let payload = Payload { script, needs_guest: true, ..Payload::default() };
    terminal(lab, programs, machine(), payload)
}

/// Boots the image; the terminal is its console. What it writes to its disk ends with it.
///
/// # Errors
/// When something is missing or cannot be started.
pub(crate) fn image_shell(lab: &Lab, programs: &Path, nested: bool) -> Result<u8, Error> {
    let vmm = vmm(programs)?;
    let image = image::ensure(lab, programs, None, false)?;
    let command_line = format!("console=ttyS0 quiet root=/dev/vda{}", console_settings());
    lab.progress.say("root is logged in on the guest's console; leave it with: poweroff");
    if !nested && direct() {
        let folder =
            crate::host::temporary(&lab.places.temporary()).map_err(session::Error::Temporary)?;
        let disk = folder.path().join("disk");
        copy_sparse(&image.disk, &disk)?;
        let socket = folder.path().join("api.sock");
        let files = [&text(&image.kernel), &text(&image.initrd), &*text(&socket)];
        let mut command = Command::new(&vmm);
        command.args(words(&command_line, IMAGE_MEMORY, SHELL_CPUS, files)).arg("--rng");
        command.arg("--disk").arg(&disk).arg("--vsock").arg(folder.path().join("vsock"));
        lab.progress.say(&format!("commands from elsewhere: tesseractl exec {}", text(&socket)));
        let mut child = spawn_tied(&mut command, Group::Shared).map_err(cannot_run(&vmm))?;
        let status = child.wait().map_err(cannot_run(&vmm))?;
        return Ok(code(status));
    }
    // The image's kernel is the lab's.
    let files = [NESTED_FILES[0], NESTED_INITRD, NESTED_FILES[2]];
    let mut words = words(&command_line, IMAGE_MEMORY, SHELL_CPUS, files);
    words.extend(["--rng", "--disk", NESTED_DISK].map(str::to_owned));
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let payload = Payload {
        script: format!("exec tessera {}\n", words.join(" ")),
        files: vec![(image.initrd, NESTED_INITRD.to_owned())],
        ..Payload::default()
    };
    let machine = Machine { memory: Mib::new(3072), disks: vec![image.disk], ..machine() };
    terminal(lab, programs, machine, payload)
}

/// Words of the kernel command line by which systemd knows the size and kind of this terminal
/// (systemd(1), "systemd.tty.rows").
fn console_settings() -> String {
    let mut words = String::new();
    if let Some((rows, columns)) = window() {
        words = format!(" systemd.tty.rows.ttyS0={rows} systemd.tty.columns.ttyS0={columns}");
    }
    let known = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
    if let Ok(term) = std::env::var("TERM")
        && !term.is_empty()
        && term.chars().all(known)
    {
        words.push_str(&format!(" systemd.tty.term.ttyS0={term}"));
    }
    words
}

/// The rows and columns of this terminal, where it has a size.
fn window() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdin()).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Copies a file with its holes, and at no cost where the file system can share blocks.
fn copy_sparse(from: &Path, to: &Path) -> Result<(), Error> {
    let failed = |source| Error::Copy { path: from.to_owned(), source };
    let status = Command::new("cp")
        .args(["--sparse=always", "--reflink=auto", "--"])
        .args([from, to])
        .stdin(Stdio::null())
        .status()
        .map_err(failed)?;
    match status.success() {
        true => Ok(()),
        false => Err(failed(io::Error::other(format!("cp: {status}")))),
    }
}

/// Opens a shell in the nested host.
///
/// # Errors
/// When something is missing or cannot be started.
pub(crate) fn host_shell(lab: &Lab, programs: &Path) -> Result<u8, Error> {
    lab.progress.say("leave the host's shell with: exit");
    let payload = Payload { script: "exec sh -i\n".to_owned(), ..Payload::default() };
    terminal(lab, programs, machine(), payload)
}

fn terminal(lab: &Lab, programs: &Path, machine: Machine, payload: Payload) -> Result<u8, Error> {
    // A person works as long as it takes.
    let machine = Machine { timeout: Duration::from_secs(u64::from(u32::MAX)), ..machine };
    let report = lab.run(&machine, None, programs, payload, Output::Terminal)?;
    Ok(cli::conclude(lab, &machine, &report))
}

fn show_direct<F: FnMut(&str)>(
    lab: &Lab,
    vmm: &Path,
    programs: &Path,
    cpus: u32,
    transcript: &mut Transcript<F>,
) -> Result<u8, Error> {
    let (kernel, initrd) = lab.guest(programs)?;
    let folder =
        crate::host::temporary(&lab.places.temporary()).map_err(session::Error::Temporary)?;
    let socket = folder.path().join("api.sock");
    let mut command = Command::new(vmm);
    command
        .args(arguments("mte", cpus, [&text(&kernel), &text(&initrd), &text(&socket)]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    lab.progress.say("booting the guest ...");
    let started = Instant::now();
    let mut child = spawn_tied(&mut command, Group::Own).map_err(cannot_run(vmm))?;
    let watch = lab.interrupt.watch(&child);
    let smaps = format!("/proc/{}/smaps", child.id());
    transcript.line("@lab launched 0");
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).split(b'\n')) {
        let line = String::from_utf8_lossy(&line.map_err(cannot_run(vmm))?).into_owned();
        if line.starts_with("REPORT") {
            transcript.line(&format!("@lab report {}", started.elapsed().as_nanos()));
            // Gone where the guest's last words outran its end: the figures before them stay.
            if let Ok(maps) = fs::read_to_string(&smaps)
                && !maps.is_empty()
            {
                transcript.set_smaps(maps);
            }
        }
        transcript.line(&line);
    }
    drop(watch);
    let status = child.wait().map_err(cannot_run(vmm))?;
    lab.interrupt.check()?;
    Ok(code(status))
}

/// The VMM's command line for a guest that runs `workload`.
fn arguments(workload: &str, cpus: u32, files: [&str; 3]) -> Vec<String> {
    let command_line = format!("console=ttyS0 quiet panic=-1 workload={workload}");
    words(&command_line, MEMORY, cpus, files)
}

fn words(
    command_line: &str,
    memory: &str,
    cpus: u32,
    [kernel, initrd, socket]: [&str; 3],
) -> Vec<String> {
    let cpus = cpus.to_string();
    let words = [
        "run",
        "--kernel",
        kernel,
        "--initrd",
        initrd,
        "--cmdline",
        command_line,
        "--memory",
        memory,
        "--cpus",
        &cpus,
        "--mte",
        "require",
        "--serial",
        "stdio",
        "--api-sock",
        socket,
    ];
    words.map(str::to_owned).into()
}

fn machine() -> Machine {
    Machine {
        memory: Mib::new(2048),
        cpus: None,
        icount: false,
        node1: None,
        append: String::new(),
        disks: Vec::new(),
        root: None,
        qemu: Vec::new(),
        timeout: TIMEOUT,
        verbose: false,
    }
}

/// Whether this machine can run a guest with MTE by itself.
fn direct() -> bool {
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    cfg!(target_arch = "aarch64")
        && kvm
        && fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| has_mte(&text))
}

fn has_mte(cpuinfo: &str) -> bool {
    let mut features = cpuinfo.lines().filter(|line| line.starts_with("Features"));
    features.any(|line| line.split_whitespace().any(|word| word == "mte"))
}

fn vmm(programs: &Path) -> Result<PathBuf, Error> {
    let path = programs.join("tessera");
    if path.is_file() { Ok(path) } else { Err(Error::NoVmm { path }) }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn code(status: std::process::ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(cli::CRASHED)
}

fn cannot_run(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    |source| Error::Run { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mte_is_a_word_of_the_features() {
        assert!(has_mte("processor\t: 0\nFeatures\t: fp asimd mte bti\n"));
        assert!(!has_mte("Features\t: fp asimd mte3\nmodel name\t: mte\n"));
    }

    #[test]
    fn the_command_line_names_the_workload() {
        let words = arguments("mte", 1, ["/k", "/i", "/s"]);

        assert!(words.contains(&"console=ttyS0 quiet panic=-1 workload=mte".to_owned()));
        assert_eq!(words.first().map(String::as_str), Some("run"));
    }
}
