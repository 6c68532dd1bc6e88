//! Every message arrives as it was sent, and no other bytes are taken for one.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::super::limits::MAX_MESSAGE;
use super::*;

fn slots() -> impl Strategy<Value = Vec<SlotIndex>> {
    prop::collection::vec((0..u32::MAX).prop_map(SlotIndex), 1..=MAX_SLOTS)
}

fn request() -> impl Strategy<Value = Request> {
    let role = prop_oneof![Just(Role::Holder), Just(Role::Borrower)];
    let limits = (any::<u64>(), any::<u64>());
    let open =
        (role, any::<bool>(), ".{0,32}", limits).prop_map(|(role, returning, name, limits)| {
            let terms = LeaseTerms { name, min: Bytes::new(limits.0), max: Bytes::new(limits.1) };
            Request::Open(Open { version: VERSION, role, returning, terms })
        });
    prop_oneof![
        open,
        slots().prop_map(|mut slots| {
            slots.truncate(MAX_ADOPT);
            Request::Adopt(slots)
        }),
        slots().prop_map(Request::Free),
        (any::<u32>(), any::<u32>()).prop_map(|(chunks, least)| Request::Reserve { chunks, least }),
        any::<u32>().prop_map(|version| Request::Report { version }),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    let supply = prop_oneof![Just(SupplyName::Ledger), any::<u32>().prop_map(SupplyName::Node)];
    let opened = (supply, 0..4u32, any::<u64>()).prop_map(|(supply, lend, capacity)| {
        let lend = LendPolicy::of(lend).unwrap();
        Reply::Opened(Terms { supply, lend, capacity: Bytes::new(capacity) })
    });
    let adopted = prop::collection::vec(prop::option::of(0..u32::MAX), 1..=MAX_SLOTS);
    let adopted =
        adopted.prop_map(|slots| slots.into_iter().map(|slot| slot.map(SlotIndex)).collect());
    let refused = (1..9u32, any::<[u32; 3]>(), ".{0,300}").prop_map(|(code, figures, text)| {
        Reply::Refused(Refusal::new(Reason::of(code, figures.map(u64::from)).unwrap(), text))
    });
    prop_oneof![
        opened,
        (any::<u32>(), slots()).prop_map(|(left, slots)| Reply::Reserved { left, slots }),
        adopted.prop_map(Reply::Adopted),
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..=MAX_PART))
            .prop_map(|(last, bytes)| Reply::Part { last, bytes }),
        refused,
    ]
}

proptest! {
    #[test]
    fn a_request_arrives_as_it_was_sent(request in request()) {
        let message = request.encode();

        prop_assert!(message.len() <= MAX_MESSAGE);
        prop_assert_eq!(Request::decode(&message), Ok(request));
    }

    #[test]
    fn a_reply_arrives_as_it_was_sent(reply in reply()) {
        let message = reply.encode();

        prop_assert!(message.len() <= MAX_MESSAGE);
        prop_assert_eq!(Reply::decode(&message), Ok(reply));
    }

    #[test]
    fn a_part_of_a_message_is_none(request in request(), cut in any::<prop::sample::Index>()) {
        let message = request.encode();
        let cut = cut.index(message.len());

        prop_assert!(Request::decode(&message[..cut]).is_err());
    }

    #[test]
    fn a_message_with_something_behind_it_is_none(request in request(), more in 1..9usize) {
        prop_assume!(!matches!(request, Request::Report { version } if version != VERSION));
        let mut message = request.encode();
        message.resize(message.len() + more, 0);

        prop_assert!(Request::decode(&message).is_err());
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(
        kind in prop_oneof![0..7u32, 100..107u32, 200..205u32],
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let message = [&kind.to_le_bytes()[..], &rest].concat();

        let _ = (Request::decode(&message), Reply::decode(&message), Notice::decode(&message));
    }
}

#[test]
fn a_notice_arrives_as_it_was_sent() {
    for notice in [Notice::RequestReclaim { chunks: 7 }, Notice::Retry, Notice::StopReclaim] {
        assert_eq!(Notice::decode(&notice.encode()), Ok(notice));
    }
}

#[test]
fn a_list_longer_than_a_message_is_refused_before_it_is_read() {
    let mut message = FREE.to_le_bytes().to_vec();
    message.extend((MAX_SLOTS as u32 + 1).to_le_bytes());

    assert_eq!(Request::decode(&message), Err(Malformed::Field(FREE)));
}

#[test]
fn an_opening_of_another_version_is_known_by_its_version_alone() {
    let mut message = OPEN.to_le_bytes().to_vec();
    message.extend(77u32.to_le_bytes());
    message.extend(b"whatever comes then");

    let Ok(Request::Open(open)) = Request::decode(&message) else { panic!("not an opening") };
    assert_eq!(open.version, 77);
}
