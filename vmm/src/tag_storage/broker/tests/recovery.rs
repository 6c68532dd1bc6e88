//! A broker that takes another's place, and clients that come back while it still serves them.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};

use arch::mte::geometry::BlockIndex;

use super::super::server::GraceTimes;
use super::*;
use crate::tag_storage::supply::{Supply, TakeError};

/// Longer than any test.
const HOUR: Duration = Duration::from_secs(3600);
const LASTING: GraceTimes = GraceTimes { quiet: HOUR, after: HOUR, most: HOUR };

fn start(path: &Path, times: GraceTimes) -> Broker {
    Broker::serve(Server::with(path, server_resources(16), 64, times).unwrap(), path)
}

#[test]
fn a_broker_that_takes_anothers_place_serves_those_that_come_back_first() {
    let (_directory, path) = place();
    let broker = start(&path, LASTING);
    let client = connect(&path, "vm");
    client.reserve(10).unwrap();
    drop(broker);

    let broker = start(&path, LASTING);
    let new = connect(&path, "new");
    let refused = new.reserve(1).unwrap_err();

    assert!(refused.to_string().contains("started again"), "{refused}");
    // It looks for the next broker when it notices that this one is gone.
    wait_for_event(&client, |heard| heard == BrokerEvent::Attached { owed: 0 });
    broker.wait_reserved(10);
    // It waits like all others for what it does not have.
    let refused = client.reserve(1).unwrap_err();
    assert!(refused.to_string().contains("started again"), "{refused}");
    assert_eq!(broker.report().traffic.give_backs, 0);
}

#[test]
fn a_minimum_of_a_new_vm_is_not_set_aside_before_others_have_come_back() {
    let (_directory, path) = place();
    let broker = start(&path, LASTING);
    let with_min = |name| LeaseTerms { min: Bytes::kib(64 * 10), ..terms(name) };
    let client = Vm::of(Client::connect(&path, with_min("vm")).unwrap());
    client.reserve(12).unwrap();
    drop(broker);

    let _broker = start(&path, LASTING);
    let refused = Client::connect(&path, with_min("new")).unwrap_err();

    assert!(refused.to_string().contains("started again"), "{refused}");
    wait_for_event(&client, |event| event == BrokerEvent::Attached { owed: 0 });
}

#[test]
fn what_has_to_wait_for_others_to_come_back_is_served_after_that() {
    let (_directory, path) = place();
    let broker = start(&path, LASTING);
    let client = connect(&path, "vm");
    client.reserve(10).unwrap();
    drop(broker);
    // So that nothing comes back.
    drop(client);

    let _broker = start(&path, GraceTimes { quiet: Duration::from_millis(1), ..LASTING });

    let new = connect(&path, "new");
    until("the slot", || new.reserve(1).is_ok());
}

#[test]
fn a_broker_without_one_before_it_serves_at_once() {
    let (_directory, path) = place();
    let broker = start(&path, LASTING);
    let client = connect(&path, "first");
    client.reserve(1).unwrap();
    drop(client);
    broker.wait("the end of all leases", |report| report.pool.leases.is_empty());
    drop(broker);

    // The one before it ended with no lease.
    let _broker = start(&path, LASTING);

    connect(&path, "second").reserve(1).unwrap();
}

#[test]
fn a_broker_that_was_killed_is_known_by_its_socket() {
    let (_directory, path) = place();
    let kind = rustix::net::SocketType::SEQPACKET;
    let dead = rustix::net::socket(rustix::net::AddressFamily::UNIX, kind, None).unwrap();
    rustix::net::bind(&dead, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    drop(dead);

    let _broker = start(&path, LASTING);

    let refused = connect(&path, "vm").reserve(1).unwrap_err();
    assert!(refused.to_string().contains("started again"), "{refused}");
}

/// A supply of which one call lasts until the test ends it.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    calls: u32,
    /// The call that lasts.
    held: u32,
    open: bool,
}

impl Gate {
    fn wait(&self, is_so: impl Fn(&GateState) -> bool) {
        let state = self.state.lock().unwrap();
        let waited = self.changed.wait_timeout_while(state, LONG, |state| !is_so(state)).unwrap();
        assert!(!waited.1.timed_out());
    }

    fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.changed.notify_all();
    }
}

struct Gated(Arc<Gate>);

impl Supply for Gated {
    fn name(&self) -> SupplyName {
        SupplyName::Ledger
    }

    fn take(&self, _: Range<BlockIndex>) -> Result<(), TakeError> {
        let call = {
            let mut state = self.0.state.lock().unwrap();
            state.calls += 1;
            self.0.changed.notify_all();
            state.calls
        };
        self.0.wait(|state| state.open || call != state.held);
        Ok(())
    }

    fn release(&self, _: Range<BlockIndex>) {}

    fn evict(&self, _: Range<BlockIndex>) -> Result<(), TakeError> {
        Ok(())
    }

    fn is_instant(&self) -> bool {
        false
    }
}

#[test]
fn a_client_that_hung_up_finds_what_it_holds_free_when_it_comes_back() {
    let (_directory, path) = place();
    let gate = Arc::new(Gate::default());
    gate.state.lock().unwrap().held = 3;
    let mut resources = server_resources(8);
    let geometry = Geometry::new(Bytes::kib(4), Bytes::kib(4)).unwrap();
    let supply = Box::new(Gated(Arc::clone(&gate)));
    resources.pool = Pool::new(geometry, Bytes::kib(64 * 8), supply).unwrap();
    let broker = Broker::serve(Server::with_places(&path, resources, 64).unwrap(), &path);
    // Its minimum is more than half of the pool: the second lease needs that of the first.
    let terms = LeaseTerms { min: Bytes::kib(64 * 6), ..terms("vm") };
    let open = || {
        let raw = Raw::connect(&path);
        raw.say(&Request::Open(Open {
            version: VERSION,
            role: Role::Holder,
            returning: true,
            terms: terms.clone(),
        }));
        assert!(matches!(raw.receive(), Some(Reply::Opened(_))));
        raw
    };
    let held: Vec<SlotIndex> = (0..4).map(SlotIndex).collect();

    let first = open();
    first.say(&Request::Adopt(held.clone()));
    gate.wait(|state| state.calls == 3);
    drop(first);
    let second = open();
    second.say(&Request::Adopt(held[..2].to_vec()));

    let Some(Reply::Adopted(adopted)) = second.receive() else { panic!("refused") };
    assert_eq!(adopted, [Some(SlotIndex(0)), Some(SlotIndex(1))]);
    gate.open();
    broker.wait_reserved(2);
}
