//! The power key, where no driver of the kernel takes it.
//!
//! Kernels with the gpio-keys driver turn the key into an input event, which systemd-logind or acpid obey.
//! Debian's cloud kernel for arm64 has no such driver, but the PL061 behind the key and the GPIO character
//! device: there the agent watches the line itself.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::sys::gpio::{EVENT, rising_edges};

/// Code of the power key (include/uapi/linux/input-event-codes.h).
const KEY_POWER: u32 = 116;
/// The node of the keys in the device tree of the machine (`power_key` in arch/src/fdt.rs).
const KEYS: &str = "/proc/device-tree/gpio-keys";
/// Where the kernel shows its GPIO chips.
const CHIPS: &str = "/sys/bus/gpio/devices";

/// Waits for the key, and then powers the system off.
///
/// # Errors
/// Why the key is not watched although it should be.
pub(crate) fn watch() -> Result<(), String> {
    let Some(line) = key_line(Path::new(KEYS)) else { return Ok(()) };
    // A line that is taken here is lost to the driver.
    if has_driver() {
        return Ok(());
    }
    let chip = chip(Path::new(CHIPS)).ok_or("there is no PL061 among the guest's GPIO chips")?;
    let mut events = File::open(&chip)
        .and_then(|chip| rising_edges(&chip, line))
        .map_err(|error| format!("cannot watch line {line} of {}: {error}", chip.display()))?;
    let mut event = [0; EVENT];
    loop {
        events.read_exact(&mut event).map_err(|error| format!("the line is lost: {error}"))?;
        crate::say("the power key was pressed: powering off");
        if let Err(message) = power_off() {
            crate::say(&message);
        }
    }
}

/// The line that the device tree gives to the power key; `None` where there is no such key.
fn key_line(keys: &Path) -> Option<u32> {
    let keys = fs::read_dir(keys).ok()?.filter_map(Result::ok);
    let mut lines = keys.filter_map(|key| {
        let code = fs::read(key.path().join("linux,code")).ok()?;
        let gpios = fs::read(key.path().join("gpios")).ok()?;
        (cell(&code, 0)? == KEY_POWER).then(|| cell(&gpios, 1)).flatten()
    });
    lines.next()
}

/// A big-endian cell of a device tree property.
fn cell(property: &[u8], index: usize) -> Option<u32> {
    let bytes = property.chunks_exact(4).nth(index)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Whether the kernel has the driver, as a module or built in.
fn has_driver() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim());
    let names = |file: &str| fs::read_to_string(modules.join(file)).unwrap_or_default();
    Path::new("/sys/bus/platform/drivers/gpio-keys").exists()
        || lists_driver(&names("modules.dep"))
        || lists_driver(&names("modules.builtin"))
}

/// Whether a list of modules, a path a line, has gpio-keys.
fn lists_driver(list: &str) -> bool {
    list.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        ["gpio_keys.ko", "gpio-keys.ko"].iter().any(|driver| name.starts_with(driver))
    })
}

/// The character device of the PL061.
fn chip(chips: &Path) -> Option<PathBuf> {
    let chips = fs::read_dir(chips).ok()?.filter_map(Result::ok);
    let mut found = chips.filter(|chip| {
        let compatible = fs::read(chip.path().join("of_node/compatible")).unwrap_or_default();
        compatible.split(|byte| *byte == 0).any(|name| name == b"arm,pl061")
    });
    Some(Path::new("/dev").join(found.next()?.file_name()))
}

/// Asks the init to power off in its order.
fn power_off() -> Result<(), String> {
    let commands: &[&[&str]] = match Path::new("/run/systemd/system").is_dir() {
        true => &[&["systemctl", "poweroff"]],
        false => &[&["poweroff"], &["/sbin/poweroff"]],
    };
    for command in commands {
        let Some((program, arguments)) = command.split_first() else { continue };
        if Command::new(program).args(arguments).status().is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    // The init of busybox powers off at SIGUSR2. One that has no handler for it, as PID 1, is not ended.
    kill_process(Pid::INIT, Signal::USR2).map_err(|error| {
        format!("cannot power off: neither systemctl nor poweroff worked, and the init refuses SIGUSR2: {error}")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_line_is_that_of_the_power_key() {
        let keys = tempfile::tempdir().unwrap();
        for (name, code, line) in [("a", 30_u32, 1_u32), ("b", 116, 3)] {
            let key = keys.path().join(name);
            fs::create_dir(&key).unwrap();
            fs::write(key.join("linux,code"), code.to_be_bytes()).unwrap();
            let gpios: Vec<u8> =
                [7, line, 0].iter().flat_map(|cell: &u32| cell.to_be_bytes()).collect();
            fs::write(key.join("gpios"), gpios).unwrap();
        }

        assert_eq!(key_line(keys.path()), Some(3));
        assert_eq!(key_line(Path::new("/nonexistent")), None);
    }

    #[test]
    fn a_property_that_is_cut_short_has_no_line() {
        assert_eq!(cell(&[0, 0, 0, 1, 0, 0], 0), Some(1));
        assert_eq!(cell(&[0, 0, 0, 1, 0, 0], 1), None);
    }

    #[test]
    fn the_driver_is_found_in_lists_of_modules() {
        let module = "kernel/drivers/input/keyboard/gpio_keys.ko.xz: kernel/x.ko\n";
        assert!(lists_driver(module));
        assert!(lists_driver("kernel/drivers/input/keyboard/gpio_keys.ko\n"));
        assert!(!lists_driver("kernel/drivers/input/keyboard/gpio_keys_polled.ko\n"));
        assert!(!lists_driver("kernel/x.ko: kernel/gpio_keys.ko\n"));
    }

    #[test]
    fn the_chip_is_known_by_one_of_its_names() {
        let chips = tempfile::tempdir().unwrap();
        for (name, compatible) in
            [("gpiochip0", "arm,pl0611\0"), ("gpiochip1", "arm,pl061\0arm,primecell\0")]
        {
            let node = chips.path().join(name).join("of_node");
            fs::create_dir_all(&node).unwrap();
            fs::write(node.join("compatible"), compatible).unwrap();
        }

        assert_eq!(chip(chips.path()), Some("/dev/gpiochip1".into()));
    }
}
