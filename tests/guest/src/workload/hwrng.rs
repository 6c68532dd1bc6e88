//! `hwrng`: reads the host's random numbers from /dev/hwrng.

use std::fs::File;
use std::io::Read;

use serde_json::json;

use super::After;
use crate::{machine, report};

pub(super) const NAME: &str = "hwrng";
/// Bytes of each of the two reads.
const BYTES: usize = 4096;

pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    let source = machine::text("/sys/class/misc/hw_random/rng_current");
    let (first, second) = (read()?, read()?);
    report::send(
        NAME,
        "random",
        json!({
            "source": source,
            "bytes": first.len().saturating_add(second.len()),
            "distinct": distinct(&first),
            "repeats": first == second,
        }),
    );
    Ok(After::PowerOff)
}

fn read() -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; BYTES];
    File::open("/dev/hwrng")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| format!("/dev/hwrng: {error}"))?;
    Ok(bytes)
}

/// How many of the 256 values of a byte occur: nearly all of them in some thousand random bytes.
fn distinct(bytes: &[u8]) -> usize {
    let mut seen = [false; 256];
    for byte in bytes {
        if let Some(seen) = seen.get_mut(usize::from(*byte)) {
            *seen = true;
        }
    }
    seen.iter().filter(|seen| **seen).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_once() {
        assert_eq!(distinct(&[]), 0);
        assert_eq!(distinct(&[7, 7, 0, 255]), 3);
    }
}
