//! The host's wall clock for the guest's real-time clock, and its alarm as an event of the main thread's
//! loop.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use devices::ports::WallClock;
use devices::rtc::Rtc;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use crate::error::say;
use crate::sys::timer::WallTimer;

/// The host's wall clock. Clones have the same alarm.
#[derive(Clone)]
pub(crate) struct HostClock(Arc<WallTimer>);

impl HostClock {
    /// The clock, without an alarm.
    ///
    /// # Errors
    /// When the host gives no timer.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(WallTimer::new()?)))
    }
}

impl WallClock for HostClock {
    fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
    }

    fn set_alarm(&self, at: Option<u64>) {
        // The kernel refuses no time; the guest's next read of a register would show the alarm anyway.
        let _ = self.0.set(at);
    }
}

/// Passes the alarm on to the guest's real-time clock.
pub(crate) struct RtcEvents {
    rtc: Arc<Mutex<Rtc>>,
    clock: HostClock,
}

impl RtcEvents {
    /// The events of `rtc`, whose alarm `clock` has.
    pub(crate) fn new(rtc: Arc<Mutex<Rtc>>, clock: HostClock) -> Self {
        Self { rtc, clock }
    }
}

impl MutEventSubscriber for RtcEvents {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new(&*self.clock.0, EventSet::IN)) {
            say(&format!(
                "the guest's clock has no alarm, as its timer cannot be watched: {error}"
            ));
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if self.clock.0.take() {
            self.rtc.lock().unwrap_or_else(PoisonError::into_inner).on_alarm();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicBool, Ordering};

    use devices::bus::MmioDevice;
    use devices::ports::LevelLine;
    use event_manager::{EventManager, SubscriberOps};

    use super::*;

    /// Registers of the PL031.
    const MATCH: u64 = 0x04;
    const MASK: u64 = 0x10;

    #[derive(Clone, Default)]
    struct Line(Arc<AtomicBool>);

    impl LevelLine for Line {
        fn set(&self, high: bool) -> io::Result<()> {
            self.0.store(high, Ordering::Relaxed);
            Ok(())
        }
    }

    #[test]
    fn an_alarm_comes_from_the_hosts_timer() {
        let (clock, line) = (HostClock::new().unwrap(), Line::default());
        let rtc = Rtc::new(Box::new(clock.clone()), Box::new(line.clone()));
        let rtc = Arc::new(Mutex::new(rtc));
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(RtcEvents::new(Arc::clone(&rtc), clock.clone()));

        let soon = clock.now() as u32 + 1;
        rtc.lock().unwrap().write(MASK, &[1, 0, 0, 0]);
        rtc.lock().unwrap().write(MATCH, &soon.to_le_bytes());

        // The next event is the alarm; without one this waits for ever.
        while !line.0.load(Ordering::Relaxed) {
            events.run().unwrap();
        }
        assert!(clock.now() as u32 >= soon);
    }
}
