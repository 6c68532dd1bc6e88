//! The power key: the host's request to power off.
//!
//! Kernels with the gpio-keys driver turn the key into an input event. Debian's cloud kernel for arm64 has
//! no such driver (CONFIG_KEYBOARD_GPIO is off) but the PL061 behind the key and the GPIO character device:
//! there this program takes the line itself.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::json;

use crate::{machine, report, system};

/// Code of the power key (include/uapi/linux/input-event-codes.h).
const KEY_POWER: u16 = 116;
/// Event type of keys.
const EV_KEY: u16 = 1;
/// The line of the key where the device tree does not say; the arm64 virtual machines agree on it.
const DEFAULT_LINE: u32 = 3;

/// Starts to listen; a press powers the guest off.
///
/// # Errors
/// Why there is nothing to listen to.
pub(crate) fn listen() -> Result<(), String> {
    let wait: Box<dyn FnOnce() + Send> = match input_device() {
        Some(path) => {
            let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Box::new(move || wait_for_key(file))
        }
        None => {
            let chip = gpio_chip().ok_or("no gpio-keys input device and no PL061 GPIO chip")?;
            let file = File::open(&chip)
                .and_then(|file| system::rising_edges(&file, key_line()))
                .map_err(|error| format!("{}: {error}", chip.display()))?;
            Box::new(move || wait_for_edge(file))
        }
    };
    thread::Builder::new()
        .name("power-key".into())
        .spawn(move || {
            wait();
            report::send("init", "power_key", json!({ "power_key": true }));
            system::end(system::End::PowerOff)
        })
        .map(drop)
        .map_err(|error| format!("no thread for the power key: {error}"))
}

/// The input device of the gpio-keys driver.
fn input_device() -> Option<PathBuf> {
    let events = fs::read_dir("/sys/class/input").ok()?.filter_map(Result::ok);
    let mut names = events.map(|entry| entry.file_name()).filter(|name| {
        name.to_string_lossy().starts_with("event")
            && machine::text(Path::new("/sys/class/input").join(name).join("device/name"))
                == "gpio-keys"
    });
    Some(Path::new("/dev/input").join(names.next()?))
}

/// The character device of the PL061.
fn gpio_chip() -> Option<PathBuf> {
    let chips = fs::read_dir("/sys/bus/gpio/devices").ok()?.filter_map(Result::ok);
    let mut names = chips.map(|entry| entry.file_name()).filter(|name| {
        let node = Path::new("/sys/bus/gpio/devices").join(name).join("of_node/compatible");
        is_pl061(&machine::text(node))
    });
    Some(Path::new("/dev").join(names.next()?))
}

/// `compatible` is a list of strings, each of which ends with NUL.
fn is_pl061(compatible: &str) -> bool {
    compatible.split('\0').any(|name| name == "arm,pl061")
}

/// The line that the device tree gives to the power key.
fn key_line() -> u32 {
    let keys =
        fs::read_dir("/proc/device-tree/gpio-keys").into_iter().flatten().filter_map(Result::ok);
    keys.filter_map(|key| {
        let code = fs::read(key.path().join("linux,code")).ok()?;
        let gpios = fs::read(key.path().join("gpios")).ok()?;
        (cell(&code, 0)? == u32::from(KEY_POWER)).then(|| cell(&gpios, 1)).flatten()
    })
    .next()
    .unwrap_or(DEFAULT_LINE)
}

/// A big-endian cell of a device tree property.
fn cell(property: &[u8], index: usize) -> Option<u32> {
    let bytes = property.chunks_exact(4).nth(index)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

fn wait_for_key(mut file: File) {
    // struct input_event on 64-bit machines: 16 bytes of time, type, code, value.
    let mut event = [0; 24];
    while file.read_exact(&mut event).is_ok() {
        if is_press(&event) {
            return;
        }
    }
    system::sleep_forever()
}

fn wait_for_edge(mut file: File) {
    // struct gpio_v2_line_event; only rising edges were asked for.
    let mut event = [0; 48];
    if file.read_exact(&mut event).is_err() {
        system::sleep_forever()
    }
}

fn is_press(event: &[u8; 24]) -> bool {
    let [.., t0, t1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_le_bytes([t0, t1]) == EV_KEY
        && u16::from_le_bytes([c0, c1]) == KEY_POWER
        && u32::from_le_bytes([v0, v1, v2, v3]) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u16, code: u16, value: u32) -> [u8; 24] {
        let mut event = [0xff; 24];
        event[16..18].copy_from_slice(&kind.to_le_bytes());
        event[18..20].copy_from_slice(&code.to_le_bytes());
        event[20..24].copy_from_slice(&value.to_le_bytes());
        event
    }

    #[test]
    fn only_the_press_of_the_power_key_counts() {
        assert!(is_press(&event(1, 116, 1)));
        assert!(!is_press(&event(1, 116, 0)));
        assert!(!is_press(&event(1, 30, 1)));
        assert!(!is_press(&event(0, 116, 1)));
    }

    #[test]
    fn cells_are_big_endian_and_bounded() {
        let property = [0, 0, 0, 1, 0, 0, 0, 3, 0, 0];

        assert_eq!(cell(&property, 1), Some(3));
        assert_eq!(cell(&property, 2), None);
    }

    #[test]
    fn the_chip_is_known_by_one_of_its_names() {
        assert!(is_pl061("arm,pl061\0arm,primecell"));
        assert!(!is_pl061("arm,pl0611"));
    }
}
