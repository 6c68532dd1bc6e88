//! The registers of SVE: set to a pattern, held while the processor runs, and looked at (Arm ARM, "Scalable Vector
//! Extension").
#![allow(unsafe_code)]

/// Vector registers, Z0 to Z31.
const VECTORS: usize = 32;
/// Predicate registers, P0 to P15.
const PREDICATES: usize = 16;
/// A predicate has a bit for each byte of a vector.
const BITS: usize = 8;

/// What the registers have, or are to have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Vectors {
    z: Vec<u8>,
    p: Vec<u8>,
    ffr: Vec<u8>,
}

impl Vectors {
    /// As many zeros as there are registers with vectors of so many bytes.
    fn zero(length: usize) -> Self {
        let predicate = length / BITS;
        let z = vec![0; length.saturating_mul(VECTORS)];
        let p = vec![0; predicate.saturating_mul(PREDICATES)];
        Self { z, p, ffr: vec![0; predicate] }
    }

    /// A pattern in which no two registers are alike, by a number.
    pub(crate) fn pattern(seed: u64) -> Self {
        let mut vectors = Self::zero(imp::length());
        let mut state = seed | 1;
        for byte in vectors.z.iter_mut().chain(&mut vectors.p) {
            // An xorshift generator.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 32) as u8;
        }
        // The first fault register has ones up to a place and zeros from there (WRFFR).
        if let Some(first) = vectors.ffr.first_mut() {
            *first = 0xff >> (seed % 8);
        }
        vectors
    }

    /// Sets all registers to this, lets the processor count down from `turns`, and returns what the registers have
    /// then.
    pub(crate) fn hold(&self, turns: u64) -> Self {
        let mut found = Self::zero(imp::length());
        if self.z.len() == found.z.len() && !found.z.is_empty() {
            // SAFETY: there is SVE, as the length says, and each buffer is as long as all its registers.
            unsafe { imp::hold(self, &mut found, turns.max(1)) };
        }
        found
    }
}

/// The length of a vector in bytes; 0 without SVE.
pub(crate) fn length() -> usize {
    imp::length()
}

#[cfg(target_arch = "aarch64")]
mod imp {
    use std::arch::asm;

    use super::Vectors;
    use crate::machine;

    pub(super) fn length() -> usize {
        if !machine::features().iter().any(|feature| feature == "sve") {
            return 0;
        }
        let length;
        // SAFETY: there is SVE; the instruction writes a register alone.
        unsafe {
            asm!(".arch_extension sve", "rdvl {}, #1", out(reg) length, options(nomem, nostack));
        }
        length
    }

    /// # Safety
    /// There is SVE, and the buffers of both are as long as all registers.
    pub(super) unsafe fn hold(pattern: &Vectors, found: &mut Vectors, turns: u64) {
        // SAFETY: as the caller warrants; everything that is written is among the outputs.
        unsafe {
            asm!(
                ".arch_extension sve",
                "ldr p0, [{from_ffr}]",
                "wrffr p0.b",
                ".irp k,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "ldr p\\k, [{from_p}, #\\k, mul vl]",
                ".endr",
                ".irp k,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "ldr z\\k, [{from_z}, #\\k, mul vl]",
                ".endr",
                "2:",
                "subs {turns}, {turns}, #1",
                "b.ne 2b",
                ".irp k,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
                "str z\\k, [{to_z}, #\\k, mul vl]",
                ".endr",
                ".irp k,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
                "str p\\k, [{to_p}, #\\k, mul vl]",
                ".endr",
                "rdffr p0.b",
                "str p0, [{to_ffr}]",
                turns = inout(reg) turns => _,
                from_z = in(reg) pattern.z.as_ptr(),
                from_p = in(reg) pattern.p.as_ptr(),
                from_ffr = in(reg) pattern.ffr.as_ptr(),
                to_z = in(reg) found.z.as_mut_ptr(),
                to_p = in(reg) found.p.as_mut_ptr(),
                to_ffr = in(reg) found.ffr.as_mut_ptr(),
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _,
                out("v14") _, out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                out("v21") _, out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _,
                out("v28") _, out("v29") _, out("v30") _, out("v31") _,
                out("p0") _, out("p1") _, out("p2") _, out("p3") _, out("p4") _, out("p5") _, out("p6") _,
                out("p7") _, out("p8") _, out("p9") _, out("p10") _, out("p11") _, out("p12") _, out("p13") _,
                out("p14") _, out("p15") _, out("ffr") _,
                options(nostack),
            );
        }
    }
}

/// Other machines have none of these registers.
#[cfg(not(target_arch = "aarch64"))]
mod imp {
    use super::Vectors;

    pub(super) fn length() -> usize {
        0
    }

    /// # Safety
    /// None is needed: it does nothing.
    pub(super) unsafe fn hold(_pattern: &Vectors, _found: &mut Vectors, _turns: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_found_again() {
        let pattern = Vectors::pattern(3);

        assert_eq!(pattern.hold(1), pattern);
        assert_eq!(pattern == Vectors::pattern(4), length() == 0);
    }
}
