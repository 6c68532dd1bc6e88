#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;
use crate::config::RateLimiterSection;
use crate::config::VsockSection;
use crate::hypervisor::fake::FakeHypervisor;
use crate::machine::testing::{self, machine};
use crate::snapshot::DeviceState;
use crate::spec::{RateLimiterChange, RateLimiterSpec};

fn new() -> crate::machine::Machine {
    machine(&FakeHypervisor::new([vec![]]), 1)
}

#[test]
fn every_device_is_in_the_list_under_a_name_of_its_own() {
    let machine = new();

    let names: Vec<_> = machine.devices().iter().map(Attached::name).collect();

    assert_eq!(names, ["serial", "rtc", "gpio", "balloon", "entropy"]);
}

#[test]
fn a_socket_device_has_its_socket_for_as_long_as_its_machine() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v");
    let kernel = crate::machine::testing::kernel();
    let mut config = crate::machine::testing::config(kernel.path(), 1);
    config.vsock =
        Some(VsockSection { guest_cid: 3, uds_path: path.clone(), vsock_id: Some("v".into()) });
    let spec = crate::machine::testing::spec(config);
    let hypervisor = FakeHypervisor::new([vec![]]);
    let board = crate::machine::Board::new(&spec, &hypervisor).unwrap();
    let machine = crate::machine::Machine::new(
        board,
        &spec,
        Output::nowhere(),
        Default::default(),
        Default::default(),
    )
    .unwrap();

    let metrics: serde_json::Map<String, Value> =
        machine.devices().metrics().map(|(name, value)| (name.to_owned(), value)).collect();
    assert_eq!(metrics["vsock"]["connections"], 0);
    assert!(machine.devices().save().unwrap().contains_key("vsock"));
    std::os::unix::net::UnixStream::connect(&path).unwrap();
    drop(machine);
    assert!(!path.exists());
}

#[test]
fn states_are_saved_by_name_and_restored_in_another_machine() {
    let (first, second) = (new(), new());
    first.set_power_key(true);
    assert!(first.devices().quiesce());

    let states = first.devices().save().unwrap();

    assert_ne!(second.devices().save().unwrap(), states);
    second.devices().restore(&states).unwrap();
    assert_eq!(second.devices().save().unwrap(), states);
}

#[test]
fn what_others_needed_of_a_guest_when_it_was_saved_is_not_asked_of_it_where_it_is_restored() {
    let (first, second) = (new(), new());
    let asked = |machine: &crate::machine::Machine| {
        machine.balloon().unwrap().metrics()["target_bytes"].as_u64().unwrap()
    };
    first.balloon().unwrap().request_reclaim(Bytes::mib(16));
    assert_eq!(asked(&first), 32 << 20);
    assert!(first.devices().quiesce());

    second.devices().restore(&first.devices().save().unwrap()).unwrap();

    assert_eq!((asked(&second), second.balloon().unwrap().status().needed), (0, Bytes::ZERO));
}

#[test]
fn states_that_do_not_fit_are_refused_by_name() {
    let machine = new();
    let states = machine.devices().save().unwrap();
    let with = |name: &str, state: Option<DeviceState>| {
        let mut states = states.clone();
        match state {
            Some(state) => states.insert(name.to_owned(), state),
            None => states.remove(name),
        };
        machine.devices().restore(&states).unwrap_err().to_string()
    };

    assert!(with("gpio", None).contains("gpio"));
    for device in ["balloon", "serial"] {
        assert!(with(device, Some(DeviceState::encode(&()).unwrap())).contains(device));
        assert!(with(device, Some(states["gpio"].clone())).contains(device));
    }
}

#[test]
fn network_interfaces_are_in_the_list_and_have_their_limits_replaced() {
    let folder = tempfile::TempDir::new().unwrap();
    let socket = folder.path().join("peer");
    let _peer = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let net = json!([{ "iface_id": "lan", "socket": socket }]);
    let config = |kernel: &std::path::Path| {
        let mut config = testing::config(kernel, 1);
        config.network_interfaces =
            serde_json::from_value::<crate::config::Config>(json!({ "network-interfaces": net }))
                .unwrap()
                .network_interfaces;
        config
    };
    let kernel = testing::kernel();
    let spec = testing::spec(config(kernel.path()));
    let machine = || {
        let board = crate::machine::Board::new(&spec, &FakeHypervisor::new([vec![]])).unwrap();
        let (output, quiesce) = (Output::nowhere(), crate::console::Quiesce::default());
        crate::machine::Machine::new(board, &spec, output, quiesce, Default::default()).unwrap()
    };
    let mut first = machine();

    assert!(first.devices().iter().any(|device| device.name() == "net_lan"));
    assert_eq!(first.metrics()["net_lan"]["link_up"], true);
    let states = first.devices().save().unwrap();
    machine().devices().restore(&states).unwrap();
    let ops = json!({ "ops": { "size": 5, "refill_time": 100 } });
    let ops: RateLimiterSection = serde_json::from_value(ops).unwrap();
    let change = RateLimiterChange::new(ops).unwrap();
    first.network_interface_mut("lan").unwrap().limit(change, RateLimiterChange::default());
    let shown: Vec<_> = first.network_interfaces().map(|net| net.rx_limits).collect();
    assert_eq!(shown, [RateLimiterSpec::new(ops).unwrap()]);
    assert!(first.network_interface_mut("eth0").is_none());
}
