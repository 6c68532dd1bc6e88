//! Where a test's body runs: on this machine, or in the lab.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::calls::{RECORD, Recorder};
use crate::figures;
use crate::scratch::Scratch;

/// Where files that were prepared for a test are in the nested host.
const PREPARED: &str = "/prepared";

/// Set in the nested host, so that a test knows that it has arrived.
const ARRIVED: &str = "TESSERA_NESTED";

/// The host that a test wants. By default: 2 processors, 4 GiB, MTE.
///
/// Tests that want the same host share it, one after the other: a test leaves it as it found it, or fails. See
/// "Add a nested test" in CONTRIBUTING.md.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Lab {
    options: Vec<String>,
    kernel_package: Option<&'static str>,
    prepare: Option<fn(&Path)>,
    emulated: bool,
    alone: bool,
}

impl Lab {
    /// The usual host.
    pub fn new() -> Self {
        Self::default()
    }

    fn option(mut self, name: &str, value: &str) -> Self {
        self.options.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// A fresh host of its own, even where this machine would do: for tests that need most of its memory. It
    /// takes a boot.
    pub fn alone(mut self) -> Self {
        self.emulated = true;
        self.alone = true;
        self
    }

    /// One of the lab's hosts even where this machine would do: for tests that look at all processes of a host.
    pub fn emulated(mut self) -> Self {
        self.emulated = true;
        self
    }

    /// A host on which the test is root: one of the lab's, unless the user is root here.
    pub fn as_root(mut self) -> Self {
        self.emulated |= !rustix::process::geteuid().is_root();
        self
    }

    fn runs_here(&self) -> bool {
        self.options.is_empty() && !self.emulated && this_machine_will_do()
    }

    /// A host with this much memory, for instance "8G".
    pub fn memory(self, size: &str) -> Self {
        self.option("--memory", size)
    }

    /// A host with so many processors.
    pub fn cpus(self, count: u32) -> Self {
        self.option("--cpus", &count.to_string())
    }

    /// A host with a second NUMA node of this much of its memory, for instance "128M", and no processor.
    pub fn second_node(self, size: &str) -> Self {
        self.option("--node1", size)
    }

    /// More words of the host's kernel command line.
    pub fn append(self, words: &str) -> Self {
        self.option("--append", words)
    }

    /// A host with a disk more, /dev/vda and on, that holds what this file of this machine's does. Tests of hosts with
    /// the same disks share a host, and what they write to a disk is there for the tests after them.
    pub fn disk(self, file: &Path) -> Self {
        self.option("--disk", &file.to_string_lossy())
    }

    /// A host that runs the Debian image, with Python and curl, instead of busybox alone. `make image` makes it.
    pub fn debian(mut self) -> Self {
        self.options.push("--image".to_owned());
        self
    }

    /// A host with another kernel.
    pub fn kernel(self, file: &Path) -> Self {
        self.option("--kernel", &file.to_string_lossy())
    }

    /// A host with the kernel of another package of the lab's Debian, fetched where it is not there yet.
    pub fn kernel_package(mut self, name: &'static str) -> Self {
        self.kernel_package = Some(name);
        self.emulated = true;
        self
    }

    /// A host of its own with one processor whose clock counts instructions.
    pub fn counting_instructions(mut self) -> Self {
        self.options.push("--icount".to_owned());
        self.alone()
    }

    /// The kernel of another package of the lab's Debian for guests, at a path of the host's.
    pub fn guest_kernel_package(self, name: &str, to: &str) -> Self {
        if in_nested_host() {
            return self;
        }
        self.file(&fetch_kernel(name), to)
    }

    /// The test may take this long.
    pub fn timeout(self, limit: Duration) -> Self {
        self.option("--timeout", &limit.as_secs().to_string())
    }

    /// A file of this machine's at a path of the host's, which is the test's own.
    pub fn file(mut self, from: &Path, to: &str) -> Self {
        self.alone = true;
        self.option("--file", &format!("{}:{to}", from.display()))
    }

    /// Has files made on this machine, in a folder that the body of [`Lab::run_with`] finds on its host, which is
    /// the test's own: what takes long under emulation is better done here.
    pub fn prepare(mut self, files: fn(&Path)) -> Self {
        self.prepare = Some(files);
        self
    }

    /// A variable of this process's environment, if it is set, for the test on its host.
    pub fn with_variable(self, name: &str) -> Self {
        match env::var(name) {
            Ok(value) => self.option("--env", &format!("{name}={value}")),
            Err(_) => self,
        }
    }

    /// One more argument for QEMU.
    pub fn qemu(self, argument: &str) -> Self {
        self.option("--qemu", argument)
    }

    /// Runs the body on the host: here if this machine will do, else in the lab.
    ///
    /// # Panics
    /// When the body fails, wherever it runs, or when there is no lab.
    pub fn run<F: FnOnce()>(self, body: F) {
        if in_nested_host() || self.runs_here() {
            let _recorder = Recorder::start();
            return body();
        }
        self.send(name_of::<F>());
    }

    /// Runs the body on the host with the folder of the files that were prepared for it.
    ///
    /// # Panics
    /// As [`Lab::run`].
    pub fn run_with<F: FnOnce(&Path)>(mut self, body: F) {
        if in_nested_host() {
            let _recorder = Recorder::start();
            return body(Path::new(PREPARED));
        }
        let scratch = Scratch::new();
        if let Some(prepare) = self.prepare {
            prepare(scratch.path());
        }
        if self.runs_here() {
            return body(scratch.path());
        }
        self = self.file(scratch.path(), PREPARED);
        self.send(name_of::<F>());
    }

    fn send(mut self, (program, test): (String, String)) {
        self = self.with_variable(RECORD).with_variable(figures::FILE);
        if let Some(package) = self.kernel_package {
            self = self.kernel(&fetch_kernel(package));
        }
        let mut command = Command::new(lab_program());
        command.arg("exec").arg(products().join("tests").join(program));
        if !self.alone {
            // The host is there for the tests of one run, and ends with the process that runs them.
            let runner = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
            command.args(["--shared-by", &runner.to_string()]);
        }
        command
            .args(["--env", &format!("{ARRIVED}=1")])
            .args(self.options)
            .args(["--", "--exact", &test, "--include-ignored", "--nocapture"])
            .stdin(Stdio::null());
        let status = match env::var_os(figures::FILE) {
            Some(file) => run_and_keep(&mut command, Path::new(&file)),
            None => command.status(),
        }
        .expect("the lab program: `make test` builds it");
        assert!(status.success(), "{test} failed in the nested host ({status})");
    }
}

/// Runs a program that prints among other lines records, which are added to a file.
fn run_and_keep(command: &mut Command, file: &Path) -> io::Result<ExitStatus> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        match figures::record_in(&line) {
            Some((text, record)) => {
                file.write_all(record)?;
                if !text.is_empty() {
                    io::stdout().write_all(&[text, b"\n"].concat())?;
                }
            }
            None => io::stdout().write_all(&line)?,
        }
        line.clear();
    }
    child.wait()
}

/// The image of a kernel package, which the lab fetches once and keeps.
fn fetch_kernel(package: &str) -> PathBuf {
    let output = Command::new(lab_program())
        .args(["--quiet", "fetch", "--package", package])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .expect("the lab program: `make test` builds it");
    assert!(output.status.success(), "no kernel {package} ({}): see above", output.status);
    let folder = String::from_utf8(output.stdout).unwrap();
    Path::new(folder.trim_end()).join("Image")
}

/// The test program and the test that runs a closure of it, `nested::boot::one_cpu::{{closure}}`: a thread
/// for a test has the test's name. Where there is none the closure must be the test's own, for no test has
/// a helper's name, and a run of no tests passes.
fn name_of<F>() -> (String, String) {
    let path = std::any::type_name::<F>();
    let path = path.strip_suffix("::{{closure}}").unwrap_or(path);
    let (program, test) = path.split_once("::").unwrap();
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or(test);
    (program.to_owned(), test.to_owned())
}

fn this_machine_will_do() -> bool {
    #[cfg(target_arch = "aarch64")]
    return vmm::kvm::Host::open().is_ok_and(|host| host.mte().is_ok());
    #[cfg(not(target_arch = "aarch64"))]
    false
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The lab program stands beside the folder of this test program.
pub fn lab_program() -> PathBuf {
    let own = env::current_exe().unwrap();
    own.ancestors()
        .skip(1)
        .map(|folder| folder.join("lab"))
        .find(|path| path.is_file())
        .expect("the lab program: `make test` builds it")
}

/// What `make` has built and fetched for the lab.
fn products() -> PathBuf {
    env::var_os("TESSERA_LAB").map_or_else(|| workspace().join("target/lab"), PathBuf::from)
}

/// Whether this process runs in the nested host.
pub fn in_nested_host() -> bool {
    env::var_os(ARRIVED).is_some()
}

/// A kernel, initrd or module folder: `Image`, `initrd.cpio`, `modules`.
pub fn artifact(name: &str) -> PathBuf {
    match in_nested_host() {
        true => Path::new("/artifacts").join(name),
        false => products().join("artifacts").join(name),
    }
}

/// A folder of programs of Debian's that `make` has fetched, on this machine.
pub fn programs(name: &str) -> PathBuf {
    products().join("programs").join(name)
}

/// A file of the Debian image: `Image`, `initrd`, `debian.ext4`. A test gives its host what it takes of them in /image.
pub fn image(name: &str) -> PathBuf {
    match in_nested_host() {
        true => Path::new("/image").join(name),
        false => products().join("image").join(name),
    }
}

/// A program of the project's: `tessera`, `tesseractl`.
pub fn program(name: &str) -> PathBuf {
    match in_nested_host() {
        true => Path::new("/bin").join(name),
        false => products().join("bin").join(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_added_to_a_file_and_no_other_line_is() {
        let scratch = Scratch::new();
        let file = scratch.join("figures");
        let print = || {
            let mut command = Command::new("sh");
            command.args(["-c", "echo FIGURE 1; echo text; echo FIGURE 2"]);
            run_and_keep(&mut command, &file).unwrap()
        };

        assert!(print().success() && print().success());

        assert_eq!(std::fs::read_to_string(file).unwrap(), "1\n2\n1\n2\n");
    }
}
