//! Small files of the kernel's, such as those of sysfs.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

/// The longest that is read: no file that is read here is longer. The list of the CPUs that share a cache can
/// be, and serves no purpose then.
pub(crate) const LONGEST: usize = 256;

/// The text of a file, or as much of it as is read here. `None` if it cannot be read, or is no text.
///
/// sysfs gives each file a size of one page, for which `std::fs::read_to_string` allocates: four pages to map, to
/// touch and to unmap for a few characters, at each start of a VM.
pub(crate) fn text(path: &Path) -> Option<String> {
    start::<LONGEST>(path)
}

/// The same, with another length in the place of [`LONGEST`].
pub(crate) fn start<const LENGTH: usize>(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let mut bytes = [0; LENGTH];
    let mut length = 0;
    while length < LENGTH {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    str::from_utf8(&bytes[..length]).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests;
