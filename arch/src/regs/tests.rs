use proptest::prelude::*;

use super::*;

#[test]
fn core_registers_have_the_numbers_of_the_kernel_header() {
    assert_eq!(RegId::x(0).map(RegId::get), Some(0x6030_0000_0010_0000));
    assert_eq!(RegId::x(30).map(RegId::get), Some(0x6030_0000_0010_003c));
    assert_eq!(RegId::SP_EL0.get(), 0x6030_0000_0010_003e);
    assert_eq!(RegId::PC.get(), 0x6030_0000_0010_0040);
    assert_eq!(RegId::PSTATE.get(), 0x6030_0000_0010_0042);
    assert_eq!(RegId::SP_EL1.get(), 0x6030_0000_0010_0044);
    assert_eq!(RegId::ELR_EL1.get(), 0x6030_0000_0010_0046);
    assert_eq!(RegId::SPSR_EL1.get(), 0x6030_0000_0010_0048);
}

#[test]
fn system_registers_have_the_numbers_of_the_kernel_header() {
    assert_eq!(RegId::MPIDR_EL1.get(), 0x6030_0000_0013_c005);
    assert_eq!(RegId::ID_AA64PFR1_EL1.get(), 0x6030_0000_0013_c021);
    assert_eq!(RegId::ID_AA64MMFR0_EL1.get(), 0x6030_0000_0013_c038);
    assert_eq!(RegId::SCTLR_EL1.get(), 0x6030_0000_0013_c080);
    assert_eq!(RegId::ESR_EL1.get(), 0x6030_0000_0013_c290);
    assert_eq!(RegId::FAR_EL1.get(), 0x6030_0000_0013_c300);
}

#[test]
fn the_vector_lengths_of_sve_are_512_bits() {
    assert_eq!(RegId::SVE_VLS.get(), 0x6060_0000_0015_ffff);
    assert_eq!(RegId::SVE_VLS.size(), 64);
}

#[test]
fn the_timer_registers_are_swapped_as_the_kernel_swaps_them() {
    assert_eq!(RegId::TIMER_CNT.get(), 0x6030_0000_0013_df1a);
    assert_eq!(RegId::TIMER_CVAL.get(), 0x6030_0000_0013_df02);
    assert_eq!(RegId::TIMER_CTL.get(), 0x6030_0000_0013_df19);
}

#[test]
fn there_is_no_x31() {
    assert_eq!(RegId::x(31), None);
    assert_eq!(RegId::x(u8::MAX), None);
}

#[test]
fn identifiers_print_as_the_kernel_writes_them() {
    assert_eq!(RegId::PC.to_string(), "0x6030000000100040");
    assert_eq!(format!("{:?}", RegId::PC), "RegId(0x6030000000100040)");
}

#[test]
fn affinity_leaves_the_flags_out() {
    let mpidr = Mpidr::new(0xdead_beef_c302_0104);

    assert_eq!(mpidr.affinity(), 0xef_0002_0104);
    assert_eq!(mpidr.to_string(), "239.2.1.4");
    assert_eq!(mpidr.get(), 0xdead_beef_c302_0104);
}

#[test]
fn registers_that_a_reset_leaves_at_zero_are_named_one_by_one() {
    let of_128_bits = RegId::new(ARM64 | 0x40 << 48 | CORE | (84 + 4 * 31));
    let vector = RegId::new(ARM64 | 0x80 << 48 | SVE);
    assert!(vector.is_of_sve() && RegId::SVE_VLS.is_of_sve() && !of_128_bits.is_of_sve());
    let debug = |crm, op2| system(2, 0, 0, crm, op2);
    for zero in [core(0), core(30), of_128_bits, vector, debug(0, 4), debug(15, 7)] {
        assert!(zero.is_zero_at_reset(), "{zero}");
    }
    let (fpsr, firmware) = (ARM64 | 0x20 << 48 | CORE | 212, ARM64 | SIZE_U64 | 0x14 << 16);
    for other in [
        RegId::SP_EL0,
        RegId::PC,
        RegId::PSTATE,
        RegId::SPSR_EL1,
        RegId::SVE_VLS,
        RegId::SCTLR_EL1,
        RegId::TIMER_CTL,
        RegId::new(fpsr),
        RegId::new(firmware),
        // MDSCR_EL1, OSLSR_EL1, and the place of one above in other spaces.
        debug(2, 2),
        system(2, 0, 1, 1, 4),
        system(2, 3, 0, 0, 4),
        system(3, 0, 0, 0, 4),
    ] {
        assert!(!other.is_zero_at_reset(), "{other}");
    }
}

#[test]
fn a_syndrome_reads_as_a_sentence() {
    let cases = [
        (0x9600_0045, "0x96000045: data abort, translation fault, write"),
        (0x9200_0011, "0x92000011: data abort from EL0, synchronous tag check fault, read"),
        (0x8600_0006, "0x86000006: instruction abort, translation fault (class 0x21, ISS 0x6)"),
        (0x5600_0000, "0x56000000: SVC (class 0x15, ISS 0x0)"),
        (0x0000_0000, "0x0: unknown reason (class 0x0, ISS 0x0)"),
        (0xfe00_0001, "0xfe000001: other (class 0x3f, ISS 0x1)"),
    ];
    for (value, text) in cases {
        assert_eq!(Syndrome::new(value).to_string(), text);
    }
}

/// Classes and fault status codes of Arm DDI 0487, ESR_EL1.
#[test]
fn each_class_that_linux_meets_has_a_name() {
    let names = [
        (0x00, "unknown reason"),
        (0x01, "WFI or WFE trapped"),
        (0x07, "SVE, SIMD or floating point trapped"),
        (0x09, "pointer authentication trapped"),
        (0x0d, "branch target exception"),
        (0x0e, "illegal execution state"),
        (0x15, "SVC"),
        (0x16, "HVC"),
        (0x17, "SMC"),
        (0x18, "system register trapped"),
        (0x19, "SVE trapped"),
        (0x1c, "pointer authentication failure"),
        (0x20, "instruction abort from EL0"),
        (0x21, "instruction abort"),
        (0x22, "PC alignment fault"),
        (0x24, "data abort from EL0"),
        (0x25, "data abort"),
        (0x26, "SP alignment fault"),
        (0x2c, "floating-point exception"),
        (0x2f, "SError"),
        (0x30, "hardware breakpoint"),
        (0x31, "hardware breakpoint"),
        (0x32, "software step"),
        (0x33, "software step"),
        (0x34, "watchpoint"),
        (0x35, "watchpoint"),
        (0x3c, "BRK"),
    ];
    for class in 0..64 {
        let name = names.iter().find(|(of, _)| *of == class).map(|(_, name)| *name);
        assert_eq!(Syndrome::new(class << 26).class_name(), name, "{class:#x}");
    }
}

#[test]
fn each_fault_of_an_abort_has_a_name() {
    let names = [
        (0x00..=0x03, "address size fault"),
        (0x04..=0x07, "translation fault"),
        (0x08..=0x0b, "access flag fault"),
        (0x0c..=0x0f, "permission fault"),
        (0x10..=0x10, "synchronous external abort"),
        (0x11..=0x11, "synchronous tag check fault"),
        (0x14..=0x17, "external abort on a table walk"),
        (0x18..=0x18, "parity or ECC error"),
        (0x21..=0x21, "alignment fault"),
        (0x30..=0x30, "TLB conflict"),
        (0x35..=0x35, "unsupported exclusive or atomic access"),
    ];
    for code in 0..64 {
        let name = names.iter().find(|(of, _)| of.contains(&code)).map(|(_, name)| *name);
        for abort in [0x20, 0x21, 0x24, 0x25] {
            assert_eq!(Syndrome::new(abort << 26 | code).fault_name(), name, "{code:#x}");
        }
        assert_eq!(Syndrome::new(0x22 << 26 | code).fault_name(), None);
    }
}

proptest! {
    #[test]
    fn any_syndrome_can_be_printed(value: u64) {
        let syndrome = Syndrome::new(value);
        let _ = syndrome.to_string();
        prop_assert_eq!(syndrome.get(), value);
        prop_assert!(syndrome.class() < 64 && syndrome.specific() < 1 << 25);
        prop_assert_eq!(syndrome.fault_name().is_some() && !syndrome.is_abort(), false);
    }

    #[test]
    fn affinity_is_what_display_shows(value: u64) {
        let mpidr = Mpidr::new(value);
        let a = mpidr.affinity();
        let shown = format!("{}.{}.{}.{}", a >> 32, a >> 16 & 0xff, a >> 8 & 0xff, a & 0xff);
        prop_assert_eq!(mpidr.to_string(), shown);
    }
}
