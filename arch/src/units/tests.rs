#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

#[test]
fn display_uses_the_largest_exact_unit() {
    let cases = [
        (Bytes::ZERO, "0 B"),
        (Bytes::new(17), "17 B"),
        (Bytes::kib(4), "4 KiB"),
        (Bytes::new(1025), "1025 B"),
        (Bytes::mib(512), "512 MiB"),
        (Bytes::mib(1536), "1536 MiB"),
        (Bytes::gib(2048), "2 TiB"),
        (Bytes::new(1 << 60), "1 EiB"),
        (Bytes::MAX, "18446744073709551615 B"),
    ];
    for (bytes, text) in cases {
        assert_eq!(bytes.to_string(), text);
    }
}

#[test]
fn from_str_reads_what_people_write() {
    let cases = [
        ("512M", Bytes::mib(512)),
        ("512MiB", Bytes::mib(512)),
        ("512 mib", Bytes::mib(512)),
        (" 2G ", Bytes::gib(2)),
        ("64K", Bytes::kib(64)),
        ("1T", Bytes::gib(1024)),
        ("4096", Bytes::kib(4)),
        ("17 B", Bytes::new(17)),
        ("0", Bytes::ZERO),
        ("0E", Bytes::ZERO),
    ];
    for (text, bytes) in cases {
        assert_eq!(text.parse(), Ok(bytes), "{text:?}");
    }
}

#[test]
fn from_str_refuses_an_empty_text() {
    assert_eq!("".parse::<Bytes>(), Err(ParseBytesError::Empty));
    assert_eq!(" ".parse::<Bytes>(), Err(ParseBytesError::Empty));
}

#[test]
fn from_str_refuses_a_text_without_a_number() {
    for text in ["M", "-1", "+1", "x12", "٣"] {
        assert_eq!(
            text.parse::<Bytes>(),
            Err(ParseBytesError::NotANumber { text: text.to_owned() })
        );
    }
}

#[test]
fn from_str_refuses_unknown_and_ambiguous_units() {
    for unit in ["MB", "Q", "Mi", "MiBs", "M 1", ".5G", "µ"] {
        let text = format!("1{unit}");
        assert_eq!(
            text.parse::<Bytes>(),
            Err(ParseBytesError::UnknownUnit { unit: unit.to_owned() })
        );
    }
}

#[test]
fn from_str_refuses_what_64_bits_cannot_count() {
    for text in ["18446744073709551616", "16E", "99999999999999999999G"] {
        assert_eq!(text.parse::<Bytes>(), Err(ParseBytesError::TooLarge { text: text.to_owned() }));
    }
}

#[test]
fn every_parse_error_says_what_to_write() {
    let errors = ["", "x", "1MB", "16E"].map(|text| text.parse::<Bytes>().unwrap_err().to_string());
    for message in errors {
        assert!(
            message.contains("write")
                || message.contains("start")
                || message.contains("use")
                || message.contains("give")
        );
    }
}

#[test]
fn constructors_saturate() {
    assert_eq!(Bytes::kib(u64::MAX), Bytes::MAX);
    assert_eq!(Bytes::mib(u64::MAX), Bytes::MAX);
    assert_eq!(Bytes::gib(u64::MAX), Bytes::MAX);
}

#[test]
fn zero_alignment_changes_nothing() {
    let odd = Bytes::new(12345);
    assert_eq!(odd.align_up(Bytes::ZERO), Some(odd));
    assert_eq!(odd.align_down(Bytes::ZERO), odd);
    assert!(!odd.is_multiple_of(Bytes::ZERO));
    assert!(Bytes::ZERO.is_multiple_of(Bytes::ZERO));
}

#[test]
fn align_up_beyond_the_maximum_is_none() {
    assert_eq!(Bytes::MAX.align_up(Bytes::mib(2)), None);
}

proptest! {
    #[test]
    fn display_and_from_str_are_inverse(count: u64, shift in 0u32..64) {
        let bytes = Bytes::new((count >> shift) << shift);
        prop_assert_eq!(bytes.to_string().parse(), Ok(bytes));
    }

    #[test]
    fn from_str_never_panics(text in ".{0,40}") {
        let _ = text.parse::<Bytes>();
    }

    #[test]
    fn alignment_is_the_nearest_multiple(count: u64, shift in 0u32..64) {
        let (bytes, unit) = (Bytes::new(count), Bytes::new(1 << shift));
        let down = bytes.align_down(unit);
        prop_assert!(down <= bytes && down.is_multiple_of(unit));
        prop_assert!(bytes.get() - down.get() < unit.get());
        match bytes.align_up(unit) {
            Some(up) => {
                prop_assert!(up >= bytes && up.is_multiple_of(unit));
                prop_assert!(up.get() - bytes.get() < unit.get());
            }
            None => {
                let up = u128::from(count).next_multiple_of(1 << shift);
                prop_assert!(up > u128::from(u64::MAX));
            }
        }
    }

    #[test]
    fn sums_and_differences_agree_with_wide_arithmetic(a: u64, b: u64) {
        let (x, y) = (Bytes::new(a), Bytes::new(b));
        let sum = u64::try_from(u128::from(a) + u128::from(b)).ok();
        prop_assert_eq!(x.checked_add(y).map(Bytes::get), sum);
        prop_assert_eq!(x.checked_sub(y).is_some(), a >= b);
        prop_assert_eq!(x.saturating_sub(y).get(), a.saturating_sub(b));
    }
}

#[test]
fn a_count_of_mib_is_checked() {
    assert_eq!(Bytes::checked_mib(3), Some(Bytes::mib(3)));
    assert_eq!(Bytes::checked_mib((1 << 44) - 1), Some(Bytes::mib((1 << 44) - 1)));
    assert_eq!(Bytes::checked_mib(1 << 44), None);
}

#[test]
fn mib_are_whole() {
    let sizes = [Bytes::ZERO, Bytes::kib(1023), Bytes::mib(1), Bytes::kib(2047), Bytes::gib(3)];

    assert_eq!(sizes.map(Bytes::as_mib), [0, 0, 1, 1, 3072]);
}
