//! The command line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use agent::protocol::limits::PORT;

pub(crate) const HELP: &str = "\
The agent in a guest: runs commands and copies files for the host

Usage: tessera-agent [OPTIONS]

Options:
  --listen vsock:PORT | unix:PATH  where clients connect [default: vsock:1024]
  --any-peer                       serve other peers than the host: each process that can connect may then
                                   run commands as this user
  --no-clock                       leave the system's clock alone
  --no-power-key                   leave the power key to others
  --help                           print this
  --version                        print the version
";

/// Where the agent listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Address {
    Vsock(u32),
    Unix(PathBuf),
}

/// What was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Options {
    pub(crate) listen: Address,
    pub(crate) any_peer: bool,
    pub(crate) clock: bool,
    pub(crate) power_key: bool,
}

/// What to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Task {
    Serve(Options),
    Help,
    Version,
}

/// Reads the arguments behind the program's name.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Task, String> {
    let mut options =
        Options { listen: Address::Vsock(PORT), any_peer: false, clock: true, power_key: true };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        match argument.as_bytes() {
            b"--help" | b"-h" => return Ok(Task::Help),
            b"--version" | b"-V" => return Ok(Task::Version),
            b"--any-peer" => options.any_peer = true,
            b"--no-clock" => options.clock = false,
            b"--no-power-key" => options.power_key = false,
            b"--listen" => {
                let value = arguments.next().ok_or("--listen needs vsock:PORT or unix:PATH")?;
                options.listen = address(&value)?;
            }
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(format!("'{other}' is no option: see tessera-agent --help"));
            }
        }
    }
    Ok(Task::Serve(options))
}

fn address(value: &OsString) -> Result<Address, String> {
    let bytes = value.as_bytes();
    if let Some(path) = bytes.strip_prefix(b"unix:").filter(|path| !path.is_empty()) {
        return Ok(Address::Unix(PathBuf::from(std::ffi::OsStr::from_bytes(path))));
    }
    let port = value.to_str().and_then(|text| text.strip_prefix("vsock:")?.parse().ok());
    match port {
        // The last one stands for any (VMADDR_PORT_ANY).
        Some(port) if port != u32::MAX => Ok(Address::Vsock(port)),
        _ => Err(format!("--listen takes vsock:PORT or unix:PATH, not {}", value.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Result<Options, String> {
        match parse(arguments.iter().map(OsString::from))? {
            Task::Serve(options) => Ok(options),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn an_address_is_a_port_or_a_path() {
        let listen = |value| options(&["--listen", value]).map(|options| options.listen);

        assert_eq!(listen("vsock:7"), Ok(Address::Vsock(7)));
        assert_eq!(listen("unix:/a:b"), Ok(Address::Unix("/a:b".into())));
        for wrong in ["", "vsock:", "vsock:-1", "vsock:4294967295", "unix:", "tcp:1", "1024"] {
            assert!(listen(wrong).is_err(), "{wrong}");
        }
        assert!(options(&["--listen"]).is_err());
    }

    #[test]
    fn what_is_unknown_is_refused() {
        assert_eq!(options(&[]).map(|options| options.listen), Ok(Address::Vsock(1024)));
        assert!(options(&["--clock"]).is_err());
        assert_eq!(parse(["--version".into()]), Ok(Task::Version));
    }
}
