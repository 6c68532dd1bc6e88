//! The real-time clock: a PL031 that shows the host's time.
//!
//! The register model is [`vm_superio::Rtc`]; it has no alarm, so the clock has no interrupt. It
//! counts on a host clock after 1970, which Linux guarantees: `clock_settime` refuses earlier times
//! (`timespec64_valid_settod` in `include/linux/time64.h`).
//!
//! # References
//! Arm DDI 0224, *PrimeCell Real Time Clock (PL031) Technical Reference Manual*

use std::fmt;

use vm_superio::rtc_pl031::NoEvents;

use crate::bus::MmioDevice;

/// Width of every register in bytes.
const WIDTH: usize = 4;

/// A real-time clock.
pub struct Rtc(vm_superio::Rtc<NoEvents>);

impl Rtc {
    /// A clock that shows the host's time.
    pub fn new() -> Rtc {
        Rtc(vm_superio::Rtc::new())
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Rtc::new()
    }
}

impl MmioDevice for Rtc {
    /// Registers are words: a narrower read gets the low bytes, a wider one zeros above; between
    /// registers and beyond them there are zeros.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut word = [0; WIDTH];
        if let Some(register) = register(offset) {
            self.0.read(register, &mut word);
        }
        data.fill(0);
        data.iter_mut().zip(word).for_each(|(to, from)| *to = from);
    }

    /// Registers are words, and only whole words change them.
    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(register), Some(word)) = (register(offset), data.first_chunk()) {
            self.0.write(register, word);
        }
    }
}

/// The offset as the model takes it, if a register can be there.
fn register(offset: u64) -> Option<u16> {
    u16::try_from(offset).ok().filter(|offset| usize::from(*offset) % WIDTH == 0)
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rtc").field(&self.0.state()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    const DR: u64 = 0x0;
    const MR: u64 = 0x4;
    const LR: u64 = 0x8;
    const IMSC: u64 = 0x10;

    fn read(rtc: &mut Rtc, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        rtc.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn now() -> u32 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as u32)
    }

    #[test]
    fn shows_the_time_of_the_host() {
        let mut rtc = Rtc::default();

        let before = now();
        let shown = read(&mut rtc, DR);

        assert!((before..=now()).contains(&shown));
    }

    #[test]
    fn shows_the_time_that_the_guest_has_set() {
        let mut rtc = Rtc::new();

        rtc.write(LR, &1_000_000u32.to_le_bytes());

        assert!((1_000_000..1_000_010).contains(&read(&mut rtc, DR)));
    }

    #[test]
    fn carries_the_identification_that_linux_matches() {
        let mut rtc = Rtc::new();

        let id: Vec<_> = (0..8).map(|index| read(&mut rtc, 0xfe0 + 4 * index)).collect();

        assert_eq!(id, [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn a_narrow_write_changes_nothing() {
        let mut rtc = Rtc::new();

        rtc.write(MR, &[1, 2, 3]);

        assert_eq!(read(&mut rtc, MR), 0);
    }

    #[test]
    fn a_wide_access_reaches_one_register() {
        let mut rtc = Rtc::new();
        let mut data = [0xff; 8];

        rtc.write(MR, &[1, 2, 3, 4, 5, 6, 7, 8]);
        rtc.read(MR, &mut data);

        assert_eq!(data, [1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(read(&mut rtc, LR), 0);
    }

    #[test]
    fn between_and_beyond_registers_there_are_zeros() {
        let mut rtc = Rtc::new();
        rtc.write(MR, &[0xff; 4]);

        assert_eq!(read(&mut rtc, MR + 1), 0);
        assert_eq!(read(&mut rtc, 0x800), 0);
        assert_eq!(read(&mut rtc, 0x1_0004), 0);
        assert_eq!(read(&mut rtc, u64::MAX), 0);
    }

    #[test]
    fn prints_its_registers() {
        let mut rtc = Rtc::new();
        rtc.write(IMSC, &[1, 0, 0, 0]);

        assert!(format!("{rtc:?}").contains("imsc: 1"));
    }

    proptest! {
        #[test]
        fn no_access_panics(accesses: Vec<(u16, Vec<u8>, bool)>) {
            let mut rtc = Rtc::new();
            for (offset, mut data, write) in accesses {
                match write {
                    true => rtc.write(offset.into(), &data),
                    false => rtc.read(offset.into(), &mut data),
                }
            }
        }
    }
}
