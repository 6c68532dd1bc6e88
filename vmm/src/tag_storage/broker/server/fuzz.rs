//! One connection to a broker, on which a client says anything.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use arch::mte::geometry::Geometry;
use arch::units::Bytes;
use rustix::net::{Shutdown, shutdown};

use super::grace::{Grace, GraceTimes};
use super::session::Session;
use super::state::{ServerResources, ServerState};
use crate::sys::seqpacket;
use crate::tag_storage::broker::protocol::fuzz::opening;
use crate::tag_storage::broker::protocol::limits::{BUFFER, VERSION};
use crate::tag_storage::broker::protocol::wire::{Reply, Request, Role, Terms};
use crate::tag_storage::pool::{Pool, SlotIndex};
use crate::tag_storage::supply::lend_policy::LendPolicy;
use crate::tag_storage::supply::{Ledger, SupplyName};

/// The pool: fewer chunks than a message can name.
const CHUNKS: u64 = 40;
/// Messages of one execution, whose answers find room in a socket that is not read meanwhile.
const MOST_MESSAGES: usize = 16;

fn state(recovering: bool) -> ServerState {
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(4)).unwrap();
    let capacity = Bytes::kib(64 * CHUNKS);
    let pool = Pool::new(geometry, capacity, Box::new(Ledger)).unwrap();
    let terms = Terms { supply: SupplyName::Ledger, lend: LendPolicy::Never, capacity };
    let resources = ServerResources { pool, terms, capacity_source: String::new(), node: None };
    let grace = recovering.then(|| Grace::new(GraceTimes::USUAL, Instant::now()));
    ServerState::new(resources, 4, grace)
}

/// Options, and messages, each behind its length: one byte, or 0xff and two.
pub(crate) fn session(data: &[u8]) {
    let (&options, mut rest) = data.split_first().unwrap_or((&0, data));
    let state = Arc::new(state(options & 1 != 0));
    let (client, server) = seqpacket::pair().unwrap();
    for _ in 0..MOST_MESSAGES {
        let Some(message) = message(&mut rest) else { break };
        if seqpacket::send_now(&client, message).is_err() {
            break;
        }
    }
    shutdown(&client, Shutdown::Write).unwrap();

    Session::new(state.clone(), 1, Arc::new(server), None).run();

    let mut buffer = [0; BUFFER];
    while let Ok(Some(answer)) = seqpacket::receive_now(&client, &mut buffer) {
        Reply::decode(answer).unwrap();
    }
    let report = state.report();
    assert_eq!((report.pool.chunks.reserved, report.pool.chunks.set_aside), (0, 0));
    assert!(report.pool.leases.is_empty() && report.holders.is_empty());
}

fn message<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, after) = match *rest {
        [0xff, a, b, after @ ..] => (u16::from_le_bytes([*a, *b]).into(), after),
        [length, after @ ..] => (usize::from(*length), after),
        [] => return None,
    };
    let (message, after) = after.split_at(length.min(after.len()));
    *rest = after;
    Some(message)
}

pub(crate) fn session_seeds() -> Vec<Vec<u8>> {
    let slots = |range: std::ops::Range<u32>| range.map(SlotIndex).collect::<Vec<_>>();
    let report = Request::Report { version: VERSION };
    let (holder, returning) = (opening(Role::Holder, false), opening(Role::Holder, true));
    let sessions = [
        vec![
            holder.clone(),
            Request::Reserve { chunks: 5, least: 1 },
            Request::Free(slots(0..3)),
            report.clone(),
        ],
        vec![
            holder.clone(),
            Request::Reserve { chunks: 40, least: 1 },
            Request::Reserve { chunks: 1, least: 1 },
            Request::Free(slots(0..40)),
        ],
        vec![
            returning,
            Request::Adopt(slots(3..9)),
            Request::Reserve { chunks: 2, least: 1 },
            report.clone(),
        ],
        vec![opening(Role::Borrower, false), Request::Reserve { chunks: 1, least: 1 }],
        vec![report, holder.clone(), holder],
    ];
    let framed = |request: &Request| {
        let message = request.encode();
        let length = (message.len() as u16).to_le_bytes();
        [&[0xff][..], &length, &message].concat()
    };
    let sessions = sessions.iter().flat_map(|session| {
        let bytes = session.iter().flat_map(framed).collect::<Vec<u8>>();
        [0, 1].map(|options| [&[options], &bytes[..]].concat())
    });
    sessions.collect()
}
