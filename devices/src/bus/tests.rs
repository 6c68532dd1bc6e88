#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;

use super::*;

/// Remembers the last access, and answers reads with its own number.
#[derive(Default)]
struct Probe {
    number: u8,
    last: Option<(u64, usize)>,
}

impl MmioDevice for Probe {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.last = Some((offset, data.len()));
        data.fill(self.number);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        assert_ne!(data, b"panic");
        self.last = Some((offset, data.len()));
    }
}

fn probe(number: u8) -> Arc<Mutex<Probe>> {
    Arc::new(Mutex::new(Probe { number, last: None }))
}

fn unclaimed(address: u64, length: usize) -> Result<(), Unclaimed> {
    Err(Unclaimed { address: GuestAddress(address), length })
}

#[test]
fn an_access_reaches_the_device_at_its_offset() {
    let (low, high) = (probe(1), probe(2));
    let mut bus = Bus::new();
    bus.insert(GuestAddress(0x2000), 0x1000, high.clone()).unwrap();
    bus.insert(GuestAddress(0x1000), 0x1000, low.clone()).unwrap();
    let mut data = [0; 4];

    bus.read(GuestAddress(0x2ffc), &mut data).unwrap();
    bus.write(GuestAddress(0x1000), &data[..1]).unwrap();

    assert_eq!(data, [2; 4]);
    assert_eq!(high.lock().unwrap().last, Some((0xffc, 4)));
    assert_eq!(low.lock().unwrap().last, Some((0, 1)));
}

#[test]
fn accesses_outside_and_across_are_unclaimed_and_reach_nobody() {
    let device = probe(7);
    let mut bus = Bus::new();
    bus.insert(GuestAddress(0x1000), 0x10, device.clone()).unwrap();
    bus.insert(GuestAddress(0x1010), 0x10, device.clone()).unwrap();

    for (address, length) in
        [(0xfff, 1), (0xfff, 2), (0x100f, 2), (0x101f, 2), (0x1020, 1), (0x1000, 0), (u64::MAX, 8)]
    {
        let mut data = vec![0x55; length];
        assert_eq!(bus.read(GuestAddress(address), &mut data), unclaimed(address, length));
        assert_eq!(bus.write(GuestAddress(address), &data), unclaimed(address, length));
        assert!(data.iter().all(|byte| *byte == 0x55));
    }
    assert_eq!(device.lock().unwrap().last, None);
}

#[test]
fn an_unclaimed_access_names_its_address() {
    let error = Bus::new().write(GuestAddress(0xdead_0000), &[0; 4]).unwrap_err();

    assert_eq!(error.to_string(), "no device claims the 4 bytes at guest address 0xdead0000");
}

#[test]
fn an_empty_window_is_refused() {
    let base = GuestAddress(0x1000);

    let result = Bus::new().insert(base, 0, probe(0));

    assert_eq!(result, Err(Error::Empty(base)));
}

#[test]
fn a_window_that_wraps_is_refused_and_one_that_ends_at_the_top_is_not() {
    let base = GuestAddress(u64::MAX - 0xf);
    let mut bus = Bus::new();

    assert_eq!(bus.insert(base, 0x11, probe(0)), Err(Error::Wraps { base, size: 0x11 }));
    assert_eq!(bus.insert(base, 0x10, probe(3)), Ok(()));
    assert_eq!(bus.read(GuestAddress(u64::MAX), &mut [0]), Ok(()));
}

#[test]
fn an_overlap_is_refused_and_names_both() {
    let mut bus = Bus::new();
    bus.insert(GuestAddress(0x1000), 0x1000, probe(0)).unwrap();

    let error = bus.insert(GuestAddress(0xfff), 2, probe(1)).unwrap_err();

    assert_eq!(
        error.to_string(),
        "the device at 0xfff overlaps the one at 0x1000: move one of them"
    );
    assert_eq!(format!("{bus:?}"), r#"["0x1000..=0x1fff"]"#);
}

#[test]
fn a_device_that_panicked_once_still_answers() {
    let mut bus = Bus::new();
    bus.insert(GuestAddress(0), 0x10, probe(9)).unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(|| bus.write(GuestAddress(0), b"panic")));
    let mut data = [0];

    let result = bus.read(GuestAddress(0), &mut data);

    assert!(panicked.is_err());
    assert_eq!((result, data), (Ok(()), [9]));
}

#[test]
fn a_bus_can_be_shared_by_vcpus() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Bus>();
}

proptest! {
    #[test]
    fn lookup_agrees_with_brute_force(
        windows in prop::collection::vec((0u64..200, 0u64..20), 0..30),
        accesses in prop::collection::vec((0u64..230, 0usize..10), 0..50),
    ) {
        let mut bus = Bus::new();
        let mut accepted: Vec<(u64, u64, u8)> = Vec::new();
        for (number, (base, size)) in windows.into_iter().enumerate() {
            let clash = accepted.iter().any(|(b, s, _)| base < b + s && *b < base + size);
            let result = bus.insert(GuestAddress(base), size, probe(number as u8));
            prop_assert_eq!(result.is_ok(), size > 0 && !clash);
            if result.is_ok() {
                accepted.push((base, size, number as u8));
            }
        }
        for (address, length) in accesses {
            let end = address + length as u64;
            let claims = |b: u64, s: u64| length > 0 && b <= address && end <= b + s;
            let owner = accepted.iter().find(|(b, s, _)| claims(*b, *s));
            let mut data = vec![0xff; length];
            let result = bus.read(GuestAddress(address), &mut data);
            prop_assert_eq!(result.is_ok(), owner.is_some());
            prop_assert!(data.iter().all(|byte| *byte == owner.map_or(0xff, |o| o.2)));
        }
    }

    #[test]
    fn no_window_and_no_access_panics(base: u64, size: u64, address: u64, length in 0usize..64) {
        let mut bus = Bus::new();
        let _ = bus.insert(GuestAddress(base), size, probe(0));
        let _ = bus.read(GuestAddress(address), &mut vec![0; length]);
    }
}
