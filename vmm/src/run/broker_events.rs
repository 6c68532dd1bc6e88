//! What the main thread does about the broker of tag storage.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fd::AsRawFd;

use super::shutdown::ShutdownRequest;
use super::watch::watch;
use crate::error::{chain, say};
use crate::events::Event;
use crate::machine::Machine;
use crate::sys::timer::Timer;
use crate::tag_storage::broker::{BrokerEvent, Client};
use crate::tag_storage::{BorrowerLease, tags_of};

/// How often a borrower under the balanced policy looks where the host's free memory is.
const REBALANCE_EVERY: Duration = Duration::from_millis(250);

/// Handles the broker's events, and gives memory back when others need its tag storage.
pub(super) struct BrokerEvents {
    machine: Rc<RefCell<Machine>>,
    broker: Arc<Client>,
    shutdown: ShutdownRequest,
    balance: Option<Timer>,
    /// It has been reported that memory stays where it was.
    complained: bool,
}

impl BrokerEvents {
    /// The events of a machine's broker, if it has one.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub(super) fn of(
        machine: &Rc<RefCell<Machine>>,
        shutdown: ShutdownRequest,
    ) -> std::io::Result<Option<Self>> {
        let (broker, balanced) = {
            let machine = machine.borrow();
            let Some(broker) = machine.broker() else { return Ok(None) };
            (broker.clone(), machine.placement().is_some_and(BorrowerLease::is_balanced))
        };
        let balance = balanced.then(Timer::new).transpose()?;
        balance.iter().try_for_each(|timer| timer.every(REBALANCE_EVERY))?;
        let machine = Rc::clone(machine);
        Ok(Some(Self { machine, broker, shutdown, balance, complained: false }))
    }

    fn handle(&self, event: BrokerEvent) {
        let machine = self.machine.borrow();
        let retry = || machine.tag_storage().into_iter().for_each(|tags| tags.retry());
        match event {
            BrokerEvent::RequestReclaim { chunks } => {
                machine.tag_storage().into_iter().for_each(|tags| tags.yield_ahead());
                machine.request_reclaim(chunks.into());
            }
            BrokerEvent::Retry => retry(),
            BrokerEvent::StopReclaim => machine.cancel_reclaim(),
            BrokerEvent::Detached => {
                machine.log().publish(&Event::BrokerLost);
                machine.cancel_reclaim();
                say("the broker is gone: the guest runs on with the tag storage that it has");
            }
            BrokerEvent::Attached { owed: 0 } => {
                machine.log().publish(&Event::BrokerBack);
                say("the broker is back");
                retry();
            }
            BrokerEvent::Attached { owed } => {
                machine.log().publish(&Event::BrokerBack);
                say(&format!(
                    "the broker is back, and has no tag storage for {} that the guest has: nothing new is \
                     reserved until it has",
                    tags_of(owed)
                ));
            }
        }
    }

    fn rebalance(&mut self) {
        let machine = self.machine.borrow();
        let Some(placement) = machine.placement() else { return };
        if let (Err(error), false) = (placement.rebalance(), self.complained) {
            self.complained = true;
            say(&format!("guest memory is not balanced any more: {}", chain(&error)));
        }
    }
}

impl MutEventSubscriber for BrokerEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(self.broker.as_raw_fd(), ops, &self.shutdown);
        if let Some(timer) = &self.balance {
            // Without its event memory is placed as at the start.
            let _ = ops.add(Events::new_raw(timer.as_raw_fd(), EventSet::IN));
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match &self.balance {
            Some(timer) if events.fd() == timer.as_raw_fd() => {
                if timer.take() {
                    self.rebalance();
                }
            }
            _ => self.broker.handle_events(|event| self.handle(event)),
        }
    }
}
