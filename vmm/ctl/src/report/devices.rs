//! Disks, networks and sockets as lines of `status`.

use serde_json::Value;
use vmm::error::printable;

/// A line for each device that a configuration names: what it is called, and what it is made of.
pub(super) fn rows(config: &Value) -> Vec<(String, String)> {
    let list = |name: &str| config.get(name).and_then(Value::as_array).into_iter().flatten();
    let disks = list("drives").map(|drive| (named("Disk", drive, "drive_id"), disk(drive)));
    let networks = list("network-interfaces")
        .map(|interface| (named("Network", interface, "iface_id"), network(interface)));
    let sockets = config.get("vsock").map(|vsock| ("Sockets".to_owned(), socket(vsock)));
    disks.chain(networks).chain(sockets).collect()
}

fn named(kind: &str, device: &Value, id: &str) -> String {
    format!("{kind} {}", text(device, id).unwrap_or_default())
}

fn disk(drive: &Value) -> String {
    let is = |field: &str, word: &str| {
        (drive.get(field) == Some(&Value::Bool(true))).then(|| word.to_owned())
    };
    joined([
        text(drive, "path_on_host"),
        is("is_root_device", "root device"),
        is("is_read_only", "read-only"),
        is("direct", "direct"),
        limited(drive, &["rate_limiter"]),
    ])
}

fn network(interface: &Value) -> String {
    let peer = ["host_dev_name", "fd", "socket"].into_iter().find_map(|at| text(interface, at));
    let backend = [text(interface, "backend"), peer].into_iter().flatten().collect::<Vec<_>>();
    joined([
        Some(backend.join(" ")),
        text(interface, "guest_mac"),
        text(interface, "mtu").map(|mtu| format!("MTU {mtu}")),
        limited(interface, &["rx_rate_limiter", "tx_rate_limiter"]),
    ])
}

fn socket(vsock: &Value) -> String {
    let cid = text(vsock, "guest_cid").map(|cid| format!("CID {cid}"));
    joined([text(vsock, "uds_path"), cid])
}

fn limited(device: &Value, limiters: &[&str]) -> Option<String> {
    let limits = limiters.iter().any(|limiter| device.get(*limiter).is_some());
    limits.then(|| "limited".to_owned())
}

/// A text or a number, as it may be shown on a terminal.
fn text(device: &Value, field: &str) -> Option<String> {
    match device.get(field)? {
        Value::String(text) => Some(printable(text)),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn joined<const N: usize>(parts: [Option<String>; N]) -> String {
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_device_has_a_line() {
        let config = json!({
            "drives": [
                { "drive_id": "root", "path_on_host": "a.ext4", "is_root_device": true, "is_read_only": false },
                { "drive_id": "b", "path_on_host": "/dev/sdb", "is_read_only": true, "direct": true,
                  "rate_limiter": {} },
            ],
            "network-interfaces": [
                { "iface_id": "eth0", "backend": "tap", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:01" },
                { "iface_id": "eth1", "backend": "user", "mtu": 1400 },
            ],
            "vsock": { "guest_cid": 3, "uds_path": "v\u{1b}.sock" },
        });

        let rows = rows(&config);

        let expected = [
            ("Disk root", "a.ext4, root device"),
            ("Disk b", "/dev/sdb, read-only, direct, limited"),
            ("Network eth0", "tap tap0, 02:00:00:00:00:01"),
            ("Network eth1", "user, MTU 1400"),
            ("Sockets", "v\u{fffd}.sock, CID 3"),
        ];
        let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(rows, expected);
    }

    #[test]
    fn what_no_server_should_say_is_no_line_or_an_empty_one() {
        for config in [json!(null), json!([]), json!({ "drives": {}, "network-interfaces": null })]
        {
            assert!(rows(&config).is_empty());
        }
        assert_eq!(rows(&json!({ "drives": [7] })), [("Disk ".to_owned(), String::new())]);
    }
}
