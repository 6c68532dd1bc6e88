//! One boot from the request to the report: artifacts, image, host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::artifacts::{self, Kernel, Stamp, Store};
use crate::host::{self, Machine, Output, Report};
use crate::images::{self, Extra};
use crate::interrupt::Interrupt;
use crate::places::{self, Places};
use crate::progress::Progress;

/// Programs of the project that every nested host has, where they are built, and the folders they are in there.
const PROGRAMS: [(&str, &str); 3] =
    [("tessera", "/bin"), ("tesseractl", "/bin"), ("hold-vm", "/lab")];

/// Why a session cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The artifacts cannot be had.
    #[error(transparent)]
    Artifacts(#[from] artifacts::Error),
    /// An image cannot be made.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// The host cannot be booted.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// A folder or lock.
    #[error(transparent)]
    Places(#[from] places::Error),
    /// The script or program.
    #[error("cannot read {path}: give a file that exists and may be read")]
    Payload {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program for another machine.
    #[error("{path} is no arm64 program: build it for aarch64-unknown-linux-musl")]
    NotArm64 {
        /// The file.
        path: PathBuf,
    },
    /// A `--file` that cannot be understood.
    #[error("'{0}' names no file: write FILE or FILE:/path/in/the/host")]
    File(String),
    /// An `--env` that cannot be understood.
    #[error("'{0}' sets no variable: write NAME=value")]
    Variable(String),
    /// A request to a shared host is one line.
    #[error("a variable or argument has more than one line, which a shared host does not take")]
    Lines,
    /// The boot's temporary folder.
    #[error("cannot make a temporary folder: check the space left and the permissions")]
    Temporary(#[source] io::Error),
}

/// Everything a command of the lab works with.
#[derive(Debug)]
pub(crate) struct Lab {
    /// The folders.
    pub(crate) places: Places,
    /// Ctrl-C.
    pub(crate) interrupt: Interrupt,
    /// Messages.
    pub(crate) progress: Progress,
}

/// What runs in the nested host.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    /// The text of a shell script.
    pub(crate) script: String,
    /// Files of this machine and where they go.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Needs the guest's initramfs: without the guest's init it cannot run.
    pub(crate) needs_guest: bool,
    /// The token of the boot, where the caller has to know it.
    pub(crate) token: Option<String>,
}

impl Lab {
    /// Makes sure of the artifacts, and of the guest's initramfs where its init is built.
    ///
    /// # Errors
    /// When something cannot be fetched or made.
    pub(crate) fn fetch(&self, refresh: bool, programs: &Path) -> Result<Stamp, Error> {
        let lock = self.places.lock(&self.interrupt, self.progress)?;
        let stamp =
            Store::new(&self.places, &lock, &self.interrupt, self.progress).ensure(refresh)?;
        match images::guest(&self.places, &stamp, programs, self.progress) {
            Ok(_) => {}
            Err(images::Error::NoGuestInit { path }) => self
                .progress
                .say(&format!("no guest initramfs yet: {} is not built", path.display())),
            Err(error) => return Err(error.into()),
        }
        images::agent(&self.places, &stamp, programs)?;
        images::host_base(&self.places, &stamp)?;
        Ok(stamp)
    }

    /// Brings another kernel, see [`Store::kernel`].
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub(crate) fn fetch_kernel(
        &self,
        kernel: &Kernel,
        name: &str,
        refresh: bool,
    ) -> Result<PathBuf, Error> {
        let lock = self.places.lock(&self.interrupt, self.progress)?;
        let store = Store::new(&self.places, &lock, &self.interrupt, self.progress);
        Ok(store.kernel(kernel, name, refresh)?)
    }

    /// The guest's kernel and initramfs on this machine.
    ///
    /// # Errors
    /// When something cannot be fetched or made.
    pub(crate) fn guest(&self, programs: &Path) -> Result<(PathBuf, PathBuf), Error> {
        let lock = self.places.lock(&self.interrupt, self.progress)?;
        let stamp =
            Store::new(&self.places, &lock, &self.interrupt, self.progress).ensure(false)?;
        let initrd = images::guest(&self.places, &stamp, programs, self.progress)?;
        Ok((self.places.artifacts().join("Image"), initrd))
    }

    /// Boots the nested host with `payload` and waits for its end.
    ///
    /// # Errors
    /// When something cannot be fetched, made or started, and on Ctrl-C.
    pub(crate) fn run(
        &self,
        machine: &Machine,
        kernel: Option<&Path>,
        programs: &Path,
        payload: Payload,
        output: Output<'_>,
    ) -> Result<Report, Error> {
        let folder = host::temporary(&self.places.temporary()).map_err(Error::Temporary)?;
        let initrd = folder.path().join("host.cpio");
        let token = payload.token.map_or_else(host::token, Ok).map_err(Error::Temporary)?;
        let lock = self.places.lock(&self.interrupt, self.progress)?;
        let stamp =
            Store::new(&self.places, &lock, &self.interrupt, self.progress).ensure(false)?;
        let base = images::host_base(&self.places, &stamp)?;
        let image = self.places.artifacts().join("Image");
        let kernel = kernel.unwrap_or(&image);
        let modules = match machine.has_disks() {
            true => images::disk_modules(kernel)?,
            false => Vec::new(),
        };
        let extra = Extra {
            payload: payload.script,
            settings: settings(&token, &output, machine.root_device().as_deref()),
            files: self.files(payload.files, payload.needs_guest, &stamp, programs)?,
            modules,
        };
        images::host(&base, &extra, &initrd)?;
        drop(lock);
        self.progress.say("booting the nested host ...");
        let report =
            host::boot(machine, kernel, &initrd, &token, output, &self.interrupt, self.progress)?;
        Ok(report)
    }

    /// What hosts differ in that are made from other files: their paths, sizes and times.
    ///
    /// # Errors
    /// When this program has no path.
    pub(crate) fn fingerprint(
        &self,
        programs: &Path,
        more: &[Option<&Path>],
    ) -> Result<String, Error> {
        let artifacts = self.places.artifacts();
        let own = std::env::current_exe().map_err(Error::Temporary)?;
        let archives = ["initrd.cpio", "agent.cpio"].map(|name| artifacts.join(name));
        let [initrd, agent] = archives;
        let known = [artifacts.join("stamp.json"), initrd, agent, own];
        let built = PROGRAMS.map(|(name, _)| programs.join(name));
        let mut text = String::new();
        for path in
            known.iter().chain(&built).map(PathBuf::as_path).chain(more.iter().flatten().copied())
        {
            // What has not been made or built has no file; the host says so itself.
            let data = fs::metadata(path).ok();
            let state = data.map(|data| (data.len(), data.modified().ok()));
            text.push_str(&format!("{} {state:?}\n", path.display()));
        }
        Ok(text)
    }

    /// The payload's files, and what every host has.
    fn files(
        &self,
        files: Vec<(PathBuf, String)>,
        needs_guest: bool,
        stamp: &Stamp,
        programs: &Path,
    ) -> Result<Vec<(PathBuf, String)>, Error> {
        let place = |(name, folder)| (programs.join(name), format!("{folder}/{name}"));
        let built = PROGRAMS.into_iter().map(place);
        let mut all: Vec<_> = built.filter(|(path, _)| path.is_file()).collect();
        match images::guest(&self.places, stamp, programs, self.progress) {
            Ok(initrd) => all.push((initrd, "/artifacts/initrd.cpio".to_owned())),
            Err(images::Error::NoGuestInit { .. }) if !needs_guest => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(archive) = images::agent(&self.places, stamp, programs)? {
            all.push((archive, "/artifacts/agent.cpio".to_owned()));
        }
        // Later entries count: a user's file may take the place of ours.
        all.extend(files);
        Ok(all)
    }
}

/// Shell assignments for the host's init.
fn settings(token: &str, output: &Output<'_>, root: Option<&str>) -> String {
    let root = root.unwrap_or_default();
    let size = rustix::termios::tcgetwinsize(std::io::stdin()).ok();
    // A line of unknown size counts as the classic terminal.
    let (rows, columns) = size
        .filter(|size| size.ws_row > 0 && size.ws_col > 0)
        .map_or((24, 80), |size| (size.ws_row, size.ws_col));
    let mode = match output {
        Output::To(_) => "run",
        Output::Between { .. } => "serve",
        Output::Terminal => "shell",
    };
    format!("token={token}\nmode={mode}\nrows={rows}\ncolumns={columns}\nroot={root}\n")
}

/// `FILE:/path` or `FILE`, which goes to /bin.
///
/// # Errors
/// [`Error::File`].
pub(crate) fn placed(text: &str) -> Result<(PathBuf, String), Error> {
    let refuse = || Error::File(text.to_owned());
    if let Some((file, path)) = text.rsplit_once(":/")
        && !file.is_empty()
    {
        return Ok((PathBuf::from(file), format!("/{path}")));
    }
    let path = PathBuf::from(text);
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(refuse)?;
    let inside = format!("/bin/{name}");
    Ok((path, inside))
}

/// A shell script that sets `variables` and then is `script`.
///
/// # Errors
/// [`Error::Variable`].
pub(crate) fn with_variables(variables: &[String], script: &str) -> Result<String, Error> {
    let mut text = String::new();
    for variable in variables {
        let (name, value) = variable
            .split_once('=')
            .filter(|(name, _)| is_name(name))
            .ok_or_else(|| Error::Variable(variable.clone()))?;
        text.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    text.push_str(script);
    Ok(text)
}

/// The script as one line.
///
/// # Errors
/// [`Error::Lines`] where a command continues in the next line.
pub(crate) fn one_line(script: &str) -> Result<String, Error> {
    // A quoted quote is no quote.
    let whole = |line: &str| line.replace("\\'", "").matches('\'').count().is_multiple_of(2);
    match script.lines().all(whole) {
        true => Ok(script.lines().collect::<Vec<_>>().join("; ")),
        false => Err(Error::Lines),
    }
}

/// A script that runs the program at `path` with `arguments`.
pub(crate) fn command_line(path: &str, arguments: &[String]) -> String {
    let words: Vec<String> =
        std::iter::once(path).chain(arguments.iter().map(String::as_str)).map(quoted).collect();
    format!("exec {}\n", words.join(" "))
}

/// Whether the file at `path` is an ELF program for arm64.
///
/// # Errors
/// When it cannot be read, or is something else.
pub(crate) fn check_program(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Payload { path: path.to_owned(), source };
    let mut head = [0; 20];
    let mut file = fs::File::open(path).map_err(failed)?;
    match io::Read::read_exact(&mut file, &mut head) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(failed(error)),
        _ => {}
    }
    // e_machine of 183 is EM_AARCH64 (ELF for the Arm 64-bit Architecture).
    if head.starts_with(b"\x7fELF\x02\x01") && head.ends_with(&[183, 0]) {
        return Ok(());
    }
    Err(Error::NotArm64 { path: path.to_owned() })
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// One word for the shell, whatever it holds.
pub(crate) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_go_to_bin_or_where_they_are_sent() {
        assert_eq!(placed("a/b:/c/d").unwrap(), ("a/b".into(), "/c/d".into()));
        assert_eq!(placed("a/b").unwrap(), ("a/b".into(), "/bin/b".into()));
        assert_eq!(placed("odd:name").unwrap(), ("odd:name".into(), "/bin/odd:name".into()));
        assert!(placed("..").is_err());
        assert!(placed("").is_err());
    }

    #[test]
    fn variables_come_before_the_script() {
        let text = with_variables(&["A=it's".into()], "echo $A\n").unwrap();

        assert_eq!(text, "export A='it'\\''s'\necho $A\n");
        assert!(with_variables(&["1A=x".into()], "").is_err());
        assert!(with_variables(&["A B=x".into()], "").is_err());
        assert!(with_variables(&["A".into()], "").is_err());
    }

    #[test]
    fn a_script_of_whole_lines_can_be_one_line() {
        let script =
            with_variables(&["A=it's".into()], &command_line("x", &["y z".into()])).unwrap();

        assert_eq!(one_line(&script).unwrap(), "export A='it'\\''s'; exec 'x' 'y z'");
        assert!(one_line(&command_line("x", &["y\nz".into()])).is_err());
    }

    #[test]
    fn programs_of_other_machines_and_short_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(18, 0);
        for (machine, good) in [(183u8, true), (62, false)] {
            fs::write(&path, [&elf[..], &[machine, 0]].concat()).unwrap();
            assert_eq!(check_program(&path).is_ok(), good);
        }
        fs::write(&path, "#!").unwrap();
        assert!(matches!(check_program(&path), Err(Error::NotArm64 { .. })));
        assert!(matches!(check_program(Path::new("/nonexistent")), Err(Error::Payload { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn the_shell_gives_every_argument_back(words in prop::collection::vec("[^\0]{0,20}", 1..4)) {
            let line = command_line("printf", &[vec!["%s\\0".to_owned()], words.clone()].concat());

            let output = Command::new("sh").args(["-c", &line]).output().unwrap();

            let expected: String = words.iter().map(|word| format!("{word}\0")).collect();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        }
    }
}
