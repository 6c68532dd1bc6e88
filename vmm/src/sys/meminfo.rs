//! The host's memory, as the kernel lists it.
//!
//! # References
//! Linux Documentation/filesystems/proc.rst, "meminfo"

use arch::units::Bytes;

/// The field of this name in a text in the form of `/proc/meminfo`, if it has one.
pub(crate) fn field(text: &str, name: &str) -> Option<Bytes> {
    let kib = text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        value.trim().strip_suffix("kB")?.trim().parse().ok()
    });
    kib.map(Bytes::kib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "MemTotal:        8388608 kB\nMemFree:  1 kB\nHugePages_Free:  3\n";

        assert_eq!(field(text, "MemTotal"), Some(Bytes::kib(8_388_608)));
        assert_eq!(field(text, "MemFree"), Some(Bytes::kib(1)));
        for name in ["Mem", "MemAvailable", "HugePages_Free"] {
            assert_eq!(field(text, name), None, "{name}");
        }
    }
}
