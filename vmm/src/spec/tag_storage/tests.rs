#![allow(clippy::unwrap_used)]

use super::*;

fn spec(section: TagStorageSection) -> Result<Option<TagStorageSpec>, Error> {
    TagStorageSpec::new(section, MteMode::Auto, false)
}

fn section(mode: TagStorageMode) -> TagStorageSection {
    TagStorageSection { mode: Some(mode), ..TagStorageSection::default() }
}

#[test]
fn nothing_is_reserved_unless_it_is_asked_for() {
    assert_eq!(spec(TagStorageSection::default()), Ok(None));
    assert_eq!(spec(section(TagStorageMode::Off)), Ok(None));
    let broker = Some(PathBuf::from("/run/broker"));
    let with_broker = spec(TagStorageSection { broker, ..TagStorageSection::default() });
    let demand =
        ReservationMode::Demand { on_exhausted: OnExhausted::Wait, deadline_s: DEADLINE_SECONDS };
    assert_eq!(with_broker.unwrap().unwrap().when, demand);
}

#[test]
fn what_has_no_meaning_is_refused() {
    use TagStorageMode::{Demand, Off, Strict};
    let off = Err(Error::TagStorageOff);
    let broker = Some(PathBuf::from("/run/broker"));
    assert_eq!(spec(TagStorageSection { broker, ..section(Off) }), off);
    assert_eq!(spec(TagStorageSection { max_kib: Some(64), ..section(Off) }), off);
    let deadline = TagStorageSection { deadline_s: Some(1), ..TagStorageSection::default() };
    assert_eq!(spec(deadline), off);
    let borrower = TagStorageSection {
        broker: Some(PathBuf::from("/run/broker")),
        min_kib: Some(64),
        ..TagStorageSection::default()
    };
    let borrower = TagStorageSpec::new(borrower, MteMode::Off, false);
    assert_eq!(borrower, Err(Error::TagStorageBorrower));
    let on_exhausted = Some(OnExhausted::Kill);
    let strict = TagStorageSection { on_exhausted, ..section(Strict) };
    assert_eq!(spec(strict), Err(Error::TagStorageStrict));
    let locked = TagStorageSpec::new(section(Demand), MteMode::Require, true);
    assert_eq!(locked, Err(Error::TagStorageLocked));
    assert!(TagStorageSpec::new(section(Strict), MteMode::Require, true).is_ok());
    let without = TagStorageSpec::new(section(Strict), MteMode::Off, false);
    assert_eq!(without, Err(Error::TagStorageWithoutMte(Strict)));
    let min = Some(Bytes::mib(2));
    let limits = TagStorageSection { min, max_kib: Some(1024), ..section(Demand) };
    let (min, max) = (Bytes::mib(2), Bytes::mib(1));
    assert_eq!(spec(limits), Err(Error::TagStorageLimits { min, max }));
    let huge = TagStorageSection { min_kib: Some(u64::MAX), ..section(Demand) };
    assert_eq!(spec(huge), Err(Error::TagStorageOverflow(u64::MAX)));
}

#[test]
fn a_section_comes_back_as_it_was() {
    for on_exhausted in [OnExhausted::Wait, OnExhausted::Pause, OnExhausted::Kill] {
        let section = TagStorageSection {
            broker: Some("/run/broker".into()),
            min_kib: Some(64),
            max_kib: Some(4096),
            on_exhausted: Some(on_exhausted),
            deadline_s: Some(7),
            ..section(TagStorageMode::Demand)
        };

        let spec = spec(section.clone()).unwrap().unwrap();

        assert_eq!(spec.to_section(), section);
        assert_eq!(spec.when.deadline(), Duration::from_secs(7));
    }
    let strict = spec(section(TagStorageMode::Strict)).unwrap().unwrap();
    assert_eq!(spec(strict.to_section()).unwrap(), Some(strict));
}
