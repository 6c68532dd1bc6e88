//! A guest's balloon that is given a size.

use serde_json::{Value, json};
use tesseractl::client::Client;

use crate::guest::Guest;
use crate::wait::while_changing;

/// Gives it a target in MiB, and waits until it has that.
///
/// # Panics
/// When the VMM refuses, and as [`reaches`].
pub fn resize(guest: &Guest, target: u64) {
    let mut client = guest.client();
    client.send("PATCH", "/balloon", &json!({ "amount_mib": target })).unwrap();
    reaches(&mut client, target);
}

/// Waits until the driver has come to a target, in MiB.
///
/// # Panics
/// As [`while_changing`].
pub fn reaches(client: &mut Client, target: u64) {
    while_changing(&format!("a balloon of {target} MiB"), || {
        let balloon: Value = client.get("/balloon").unwrap();
        if balloon["actual_mib"] == target { Ok(()) } else { Err(balloon["actual_mib"].clone()) }
    });
}
