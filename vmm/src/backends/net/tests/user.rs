//! With the program passt, where there is one.

use std::process::Command;

use super::*;
use crate::testing::{Means, skip};

/// A DHCP client's first message (RFC 2131), with what is around it.
fn discover() -> Vec<u8> {
    let mut dhcp = vec![1, 1, 6, 0, 1, 2, 3, 4, 0, 0, 0x80, 0];
    dhcp.resize(28, 0);
    dhcp.extend(MAC);
    dhcp.resize(236, 0);
    dhcp.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    dhcp.resize(300, 0);
    let udp = [&[0, 68, 0, 67], &(dhcp.len() as u16 + 8).to_be_bytes()[..], &[0, 0]].concat();
    let mut ipv4 = [&[0x45, 0], &(dhcp.len() as u16 + 28).to_be_bytes()[..]].concat();
    ipv4.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let words = ipv4.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ipv4[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[0xff; 6][..], &MAC, &[8, 0], &ipv4, &udp, &dhcp].concat()
}

#[test]
fn passt_gives_the_guest_an_address_and_ends_with_its_interface() {
    if Command::new("passt").arg("--version").output().is_err() {
        return skip(Means::Passt, "there is no program passt");
    }
    let children = || {
        let path =
            format!("/proc/self/task/{}/children", rustix::thread::gettid().as_raw_nonzero());
        std::fs::read_to_string(path).unwrap()
    };
    let mut bench =
        Bench::new(&spec(NetBackendSpec::User(Vec::new())), features::MRG_RXBUF).unwrap();
    assert_ne!(children(), "");
    (0..8).for_each(|_| bench.offer(RECEIVE, None));
    bench.send(&discover());

    bench.until("offer", |bench| {
        bench.take_frame().filter(|frame| frame.len() > 280 && frame[34..38] == [0, 67, 0, 68])
    });

    drop(bench);
    assert_eq!(children(), "", "it has been waited for");
}
