//! A setting of a host's kernel that a test needs.

use std::fs;
use std::path::PathBuf;

/// A file of procfs or sysfs with a value of the test's, set back when dropped: the host has other tests.
#[derive(Debug)]
#[must_use]
pub struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Writes the value.
    ///
    /// # Panics
    /// When the file cannot be read or written: the test needs another host, or to be root.
    pub fn new(path: &str, value: &str) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let setting = Self { path: path.into(), before: chosen(&text).to_owned() };
        setting.change(value);
        setting
    }

    /// Writes another value.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn change(&self, value: &str) {
        fs::write(&self.path, value).unwrap();
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // What is not as before, the lab says after the test.
        let _ = fs::write(&self.path, &self.before);
    }
}

/// Of a file with one word of several in brackets that word, else all of it.
fn chosen(text: &str) -> &str {
    let bracketed = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    bracketed.map_or(text.trim_end(), |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_its_text_or_the_word_that_is_chosen() {
        assert_eq!(chosen("1 2\n"), "1 2");
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
    }

    #[test]
    fn a_setting_is_as_before_once_it_goes() {
        let scratch = crate::scratch::Scratch::new();
        let file = scratch.file("setting", "[always] never");

        let setting = Setting::new(file.to_str().unwrap(), "never");
        assert_eq!(fs::read_to_string(&file).unwrap(), "never");
        drop(setting);

        assert_eq!(fs::read_to_string(&file).unwrap(), "always");
    }
}
