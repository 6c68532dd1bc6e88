//! `poweroff`, `reboot`, `panic`, `idle`, `hang`: the ways a guest can end, or not.

use std::fs;

use serde_json::json;

use super::After;
use crate::report;

/// Powers off at once.
pub(super) fn power_off(_: Option<&str>) -> Result<After, String> {
    Ok(After::PowerOff)
}

/// Resets at once.
pub(super) fn reboot(_: Option<&str>) -> Result<After, String> {
    Ok(After::Reboot)
}

/// Makes the kernel panic.
///
/// # Errors
/// When the kernel does not.
pub(super) fn panic(_: Option<&str>) -> Result<After, String> {
    report::send("panic", "now", json!({}));
    fs::write("/proc/sysrq-trigger", "c")
        .map_err(|error| format!("/proc/sysrq-trigger: {error}"))?;
    Err("the kernel survived its crash".to_owned())
}

/// Does nothing until the power key.
pub(super) fn idle(_: Option<&str>) -> Result<After, String> {
    report::send("idle", "ready", json!({}));
    Ok(After::Stay)
}

/// Keeps one processor busy and ignores keys.
pub(super) fn hang(_: Option<&str>) -> Result<After, String> {
    report::send("hang", "ready", json!({}));
    loop {
        std::hint::spin_loop();
    }
}
