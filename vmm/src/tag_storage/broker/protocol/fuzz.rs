//! Any bytes as a message, in each direction.

use std::fmt::Debug;

use arch::units::Bytes;

use super::limits::VERSION;
use super::refusal::{Reason, Refusal};
use super::wire::{Malformed, Notice, Open, Reply, Request, Role, Terms};
use crate::tag_storage::pool::{LeaseTerms, SlotIndex};
use crate::tag_storage::supply::SupplyName;
use crate::tag_storage::supply::lend_policy::LendPolicy;

/// What is a message is the same one again.
pub(crate) fn messages(data: &[u8]) {
    check(data, Request::decode, Request::encode);
    check(data, Reply::decode, Reply::encode);
    check(data, Notice::decode, Notice::encode);
}

fn check<T: PartialEq + Debug>(
    data: &[u8],
    decode: fn(&[u8]) -> Result<T, Malformed>,
    encode: fn(&T) -> Vec<u8>,
) {
    if let Ok(message) = decode(data) {
        assert_eq!(decode(&encode(&message)), Ok(message));
    }
}

/// The opening of a VM that takes all that it may have.
pub(crate) fn opening(role: Role, returning: bool) -> Request {
    let terms = LeaseTerms { name: "vm".to_owned(), min: Bytes::kib(64), max: Bytes::mib(64) };
    Request::Open(Open { version: VERSION, role, returning, terms })
}

pub(crate) fn message_seeds() -> Vec<Vec<u8>> {
    let slots = vec![SlotIndex(1), SlotIndex(7)];
    let requests = [
        opening(Role::Holder, false),
        opening(Role::Borrower, true),
        Request::Adopt(slots.clone()),
        Request::Reserve { chunks: 3, least: 1 },
        Request::Free(slots.clone()),
        Request::Report { version: VERSION },
    ];
    let terms =
        |supply| Reply::Opened(Terms { supply, lend: LendPolicy::Never, capacity: Bytes::mib(4) });
    let wanted = Bytes::kib(64);
    let full = Reason::Exhausted { wanted, free: Bytes::ZERO, set_aside: wanted };
    let replies = [
        terms(SupplyName::Ledger),
        terms(SupplyName::Node(2)),
        Reply::Reserved { left: 2, slots },
        Reply::Adopted(vec![Some(SlotIndex(4)), None]),
        Reply::Part { last: true, bytes: b"{}".to_vec() },
        Reply::Refused(Refusal::new(full, "none is left")),
        Reply::Refused(Refusal::recovering()),
        Reply::Refused(Refusal::version(3)),
    ];
    let notices = [Notice::RequestReclaim { chunks: 9 }, Notice::Retry, Notice::StopReclaim];
    let requests = requests.iter().map(Request::encode);
    requests
        .chain(replies.iter().map(Reply::encode))
        .chain(notices.iter().map(Notice::encode))
        .collect()
}
