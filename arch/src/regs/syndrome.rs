//! Exception syndromes (ESR_ELx), in words for the report of a dead vCPU.
//!
//! # References
//! Arm DDI 0487, "ESR_EL1, Exception Syndrome Register (EL1)"

use std::fmt;

/// The value of an exception syndrome register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome(u64);

impl Syndrome {
    /// The register's value.
    pub const fn new(value: u64) -> Syndrome {
        Syndrome(value)
    }

    /// The register's value.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Exception class, EC: 0 to 63.
    pub const fn class(self) -> u8 {
        (self.0 >> 26 & 0x3f) as u8
    }

    /// Instruction-specific syndrome, ISS: 25 bits.
    pub const fn specific(self) -> u32 {
        (self.0 & 0x1ff_ffff) as u32
    }

    /// What the class means, if it is one that a Linux guest meets.
    pub const fn class_name(self) -> Option<&'static str> {
        Some(match self.class() {
            0x00 => "unknown reason",
            0x01 => "WFI or WFE trapped",
            0x07 => "SVE, SIMD or floating point trapped",
            0x09 => "pointer authentication trapped",
            0x0d => "branch target exception",
            0x0e => "illegal execution state",
            0x15 => "SVC",
            0x16 => "HVC",
            0x17 => "SMC",
            0x18 => "system register trapped",
            0x19 => "SVE trapped",
            0x1c => "pointer authentication failure",
            0x20 => "instruction abort from EL0",
            0x21 => "instruction abort",
            0x22 => "PC alignment fault",
            0x24 => "data abort from EL0",
            0x25 => "data abort",
            0x26 => "SP alignment fault",
            0x2c => "floating-point exception",
            0x2f => "SError",
            0x30 | 0x31 => "hardware breakpoint",
            0x32 | 0x33 => "software step",
            0x34 | 0x35 => "watchpoint",
            0x3c => "BRK",
            _ => return None,
        })
    }

    /// Whether this is an instruction or data abort, so that a fault status and a fault address
    /// belong to it.
    pub const fn is_abort(self) -> bool {
        matches!(self.class(), 0x20 | 0x21 | 0x24 | 0x25)
    }

    /// Whether a data abort was caused by a write; `None` for everything else.
    pub const fn is_write(self) -> Option<bool> {
        match self.class() {
            0x24 | 0x25 => Some(self.0 & 1 << 6 != 0),
            _ => None,
        }
    }

    /// What the fault status code of an abort means.
    pub const fn fault_name(self) -> Option<&'static str> {
        if !self.is_abort() {
            return None;
        }
        Some(match self.0 & 0x3f {
            0x00..=0x03 => "address size fault",
            0x04..=0x07 => "translation fault",
            0x08..=0x0b => "access flag fault",
            0x0c..=0x0f => "permission fault",
            0x10 => "synchronous external abort",
            0x11 => "synchronous tag check fault",
            0x14..=0x17 => "external abort on a table walk",
            0x18 => "parity or ECC error",
            0x21 => "alignment fault",
            0x30 => "TLB conflict",
            0x35 => "unsupported exclusive or atomic access",
            _ => return None,
        })
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: {}", self.0, self.class_name().unwrap_or("other"))?;
        if let Some(fault) = self.fault_name() {
            write!(f, ", {fault}")?;
        }
        match self.is_write() {
            Some(true) => f.write_str(", write"),
            Some(false) => f.write_str(", read"),
            None => write!(f, " (class {:#x}, ISS {:#x})", self.class(), self.specific()),
        }
    }
}
