//! What an entry says, as JSON.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::vm_id::is_vm_id;

/// The version of the form below. A reader skips the entries of any other.
const VERSION: u32 = 1;

/// The longest entry. Three paths of PATH_MAX, each letter escaped, have 72 KiB; paths of sockets are 40 times
/// shorter, and an entry that does not fit is not written.
pub(super) const LONGEST: u64 = 16 << 10;

/// One VM. Fields that a reader does not know are ignored, so that later programs may add some.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Record {
    /// The version of this form: 1.
    pub version: u32,
    /// What the VM is called: what its user has chosen, or `pid.` and its process.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// When the process started, in clock ticks since the host's boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
    /// The control socket, an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_sock: Option<PathBuf>,
    /// The Unix socket of its vsock device, an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<PathBuf>,
    /// Where its serial port leads, as `--serial` has it, with an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// What has started it: `tessera` for a user, or what `TESSERA_STARTED_BY` says.
    pub started_by: String,
}

impl Record {
    /// The form of an entry, with an end of line for those who look at the file.
    pub(super) fn to_text(&self) -> Option<String> {
        let text = serde_json::to_string(self).ok()? + "\n";
        (text.len() as u64 <= LONGEST).then_some(text)
    }

    /// Reads an entry whose file has this name.
    pub(super) fn parse(text: &str, name: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if record.version != VERSION {
            return Err(format!("its version is {}, not {VERSION}", record.version));
        }
        if record.name != name {
            return Err("it has the name of another VM".to_owned());
        }
        let paths = [&record.api_sock, &record.vsock];
        if record.pid == 0 || paths.into_iter().flatten().any(|path| !path.is_absolute()) {
            return Err("a process of 0 or a relative path".to_owned());
        }
        Ok(record)
    }

    /// Where the serial port is a Unix socket, its path.
    pub fn serial_socket(&self) -> Option<&Path> {
        self.serial.as_deref()?.strip_prefix("socket:").map(Path::new)
    }
}

/// What a record is made of.
#[derive(Clone, Debug)]
pub(super) struct Draft<'a> {
    pub(super) name: &'a str,
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) api_sock: Option<&'a Path>,
    pub(super) vsock: Option<&'a Path>,
    pub(super) serial: Option<&'a str>,
    pub(super) started_by: String,
}

impl Draft<'_> {
    /// The record, with absolute paths. `None` where there is no working directory.
    pub(super) fn record(self) -> Option<Record> {
        let absolute = |path: Option<&Path>| path.map(std::path::absolute).transpose().ok();
        let serial = match self.serial.and_then(|target| target.split_once(':')) {
            Some((kind, path)) => {
                let path = std::path::absolute(path).ok()?;
                Some(format!("{kind}:{}", path.to_str()?))
            }
            None => self.serial.map(str::to_owned),
        };
        Some(Record {
            version: VERSION,
            name: self.name.to_owned(),
            pid: self.pid,
            start_time: self.start_time,
            api_sock: absolute(self.api_sock)?,
            vsock: absolute(self.vsock)?,
            serial,
            started_by: self.started_by,
        })
    }
}

/// Whether this may be the name of a VM.
pub(super) fn is_name(text: &str) -> bool {
    match text.strip_prefix("pid.") {
        Some(pid) => pid.parse::<u32>().is_ok_and(|number| number.to_string() == pid),
        None => is_vm_id(text),
    }
}
