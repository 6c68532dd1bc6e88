//! With real taps, where the user may make some.

use std::process::Command;

use super::*;
use crate::sys::tap::{self, Tap};
use crate::testing::{Means, skip};

fn ip(words: &str) -> bool {
    Command::new("ip").args(words.split(' ')).status().is_ok_and(|status| status.success())
}

/// A name for a tap of this test's own, if taps can be made here.
fn name(test: &str) -> Option<String> {
    let name = format!("tt{}{test}", std::process::id() % 100_000);
    let can =
        rustix::process::geteuid().is_root() && ip("link show lo") && Tap::open(&name).is_ok();
    if !can {
        skip(Means::Taps, "no tap can be made");
    }
    can.then_some(name)
}

/// What asks for the address of 198.51.100.1 on behalf of 198.51.100.2.
fn arp_request() -> Vec<u8> {
    let ethernet = [&[0xff; 6][..], &MAC, &[8, 6]].concat();
    let kinds = [0, 1, 8, 0, 6, 4, 0, 1];
    [&ethernet[..], &kinds, &MAC, &[198, 51, 100, 2], &[0; 6], &[198, 51, 100, 1]].concat()
}

#[test]
fn the_host_answers_a_guest_on_a_tap_until_it_is_removed() {
    let Some(name) = name("a") else { return };
    let spec = spec(NetBackendSpec::Tap(name.clone()));
    let offloads = Port::open(&spec).unwrap();
    use devices::ports::NetPort;
    let offered = offloads.offloads();
    assert!(offered.contains(features::CSUM.with(features::HOST_TSO4)), "{offered:?}");
    drop(offloads);
    let mut bench = Bench::new(&spec, offered.with(features::MRG_RXBUF)).unwrap();
    assert!(
        ip(&format!("addr add 198.51.100.1/24 dev {name}")) && ip(&format!("link set {name} up"))
    );
    (0..SIZE).for_each(|_| bench.offer(RECEIVE, None));
    bench.send(&arp_request());

    let answer = bench.until("answer", |bench| {
        bench.take_frame().filter(|frame| frame.get(12..14) == Some(&[8, 6]))
    });

    assert_eq!(answer[20..22], [0, 2]);
    assert_eq!(answer[28..32], [198, 51, 100, 1]);
    assert!(ip(&format!("link del {name}")));
    bench.until("link that is down", |bench| (!bench.link_up()).then_some(()));
    bench.send(&arp_request());
    bench.until("dropped frame", |bench| (bench.metric("tx_unlinked_total") > 0).then_some(()));
    bench.settle();
    // None is made: it may be gone for good.
    std::thread::sleep(Duration::from_millis(300));
    bench.settle();
    assert!(!bench.link_up() && !tap::exists(&name));

    assert!(ip(&format!("tuntap add mode tap vnet_hdr {name}")));
    bench.until("link that is up", |bench| bench.link_up().then_some(()));
    assert!(
        ip(&format!("addr add 198.51.100.1/24 dev {name}")) && ip(&format!("link set {name} up"))
    );
    bench.send(&arp_request());
    bench.until("answer", |bench| {
        bench.take_frame().filter(|frame| frame.get(12..14) == Some(&[8, 6]))
    });
    assert!(ip(&format!("link del {name}")));
}

#[test]
fn a_tap_that_is_down_drops_frames_until_it_is_up() {
    let Some(name) = name("d") else { return };
    let spec = spec(NetBackendSpec::Tap(name.clone()));
    let mut bench = Bench::new(&spec, features::MRG_RXBUF).unwrap();
    (0..SIZE).for_each(|_| bench.offer(RECEIVE, None));
    assert!(ip(&format!("addr add 198.51.100.1/24 dev {name}")));
    for round in 1..3 {
        bench.send(&arp_request());
        bench.until("refused frame", |bench| bench.take_used(TRANSMIT));
        assert_eq!(bench.metric("tx_failures_total"), round);
        assert!(bench.link_up());

        assert!(ip(&format!("link set {name} up")));
        bench.send(&arp_request());
        bench.until("answer", |bench| {
            bench.take_frame().filter(|frame| frame.get(12..14) == Some(&[8, 6]))
        });
        bench.take_used(TRANSMIT);
        assert!(ip(&format!("link set {name} down")));
    }
}

#[test]
fn a_tap_has_one_user() {
    let Some(name) = name("b") else { return };
    let spec = spec(NetBackendSpec::Tap(name));
    let _first = Port::open(&spec).unwrap();

    assert!(matches!(Port::open(&spec), Err(OpenError::TapBusy { .. })));
}

#[test]
fn an_interface_that_is_no_tap_is_refused() {
    let Some(_) = name("c") else { return };
    let error = Port::open(&spec(NetBackendSpec::Tap("lo".into()))).unwrap_err();
    assert!(matches!(error, OpenError::NoTap { .. }), "{error:?}");
}

#[test]
fn a_tap_may_be_passed_as_a_descriptor() {
    use std::os::fd::{AsFd, AsRawFd};
    let Some(name) = name("e") else { return };
    let tap = Tap::open(&name).unwrap();
    let number = tap.as_fd().as_raw_fd();

    let bench = Bench::new(&spec(NetBackendSpec::Descriptor(number)), features::MRG_RXBUF);

    assert!(bench.unwrap().link_up());
    let file = tempfile::tempfile().unwrap();
    let other = spec(NetBackendSpec::Descriptor(file.as_raw_fd()));
    assert!(matches!(Port::open(&other), Err(OpenError::Descriptor { .. })));
}
