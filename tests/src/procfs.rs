//! Files of procfs in which numbers have names.

use std::fs;

/// The first number after these words in a file.
///
/// # Panics
/// When there is none, or no such file.
pub fn first_number(path: &str, after: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap();
    let rest = text.split_once(after).unwrap().1;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty());
    digits.unwrap().parse().unwrap()
}
