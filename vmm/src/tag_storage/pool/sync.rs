//! The locks of the pool. They have a module of their own so that tests can put others in their place,
//! which try one interleaving after the other (`pool/tests/interleavings.rs`).

#[cfg(not(test))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(test)]
pub(crate) use switch::{Condvar, Mutex, MutexGuard, interleaved};

/// Locks of the standard library, or of shuttle where a test asks for them: shuttle's work nowhere else.
#[cfg(test)]
mod switch {
    use std::cell::Cell;
    use std::ops::{Deref, DerefMut};
    use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
    use std::time::Duration;

    thread_local! {
        static INTERLEAVED: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs a test of which shuttle runs one interleaving after the other: locks made in it are
    /// shuttle's. All its threads run on this one.
    pub(crate) fn interleaved(test: impl FnOnce()) {
        INTERLEAVED.set(true);
        test();
        INTERLEAVED.set(false);
    }

    #[derive(Debug)]
    pub(crate) enum Mutex<T> {
        Std(std::sync::Mutex<T>),
        Shuttle(shuttle::sync::Mutex<T>),
    }

    pub(crate) enum MutexGuard<'a, T> {
        Std(std::sync::MutexGuard<'a, T>),
        Shuttle(shuttle::sync::MutexGuard<'a, T>),
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            match INTERLEAVED.get() {
                true => Self::Shuttle(shuttle::sync::Mutex::new(value)),
                false => Self::Std(std::sync::Mutex::new(value)),
            }
        }

        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            match self {
                Self::Std(mutex) => map(mutex.lock(), MutexGuard::Std),
                Self::Shuttle(mutex) => map(mutex.lock(), MutexGuard::Shuttle),
            }
        }

        pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
            match self {
                Self::Std(mutex) => try_map(mutex.try_lock(), MutexGuard::Std),
                Self::Shuttle(mutex) => try_map(mutex.try_lock(), MutexGuard::Shuttle),
            }
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            match self {
                Self::Std(guard) => guard,
                Self::Shuttle(guard) => guard,
            }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match self {
                Self::Std(guard) => guard,
                Self::Shuttle(guard) => guard,
            }
        }
    }

    /// How a wait has ended.
    pub(crate) struct Waited(bool);

    impl Waited {
        pub(crate) fn timed_out(&self) -> bool {
            self.0
        }
    }

    pub(crate) enum Condvar {
        Std(std::sync::Condvar),
        Shuttle(shuttle::sync::Condvar),
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            match INTERLEAVED.get() {
                true => Self::Shuttle(shuttle::sync::Condvar::new()),
                false => Self::Std(std::sync::Condvar::new()),
            }
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            limit: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, Waited)> {
            match (self, guard) {
                (Self::Std(condvar), MutexGuard::Std(guard)) => {
                    let wrap = |(guard, waited): (_, std::sync::WaitTimeoutResult)| {
                        (MutexGuard::Std(guard), Waited(waited.timed_out()))
                    };
                    map(condvar.wait_timeout(guard, limit), wrap)
                }
                // There is no time: a wait that nothing ends is a deadlock, which shuttle finds.
                (Self::Shuttle(condvar), MutexGuard::Shuttle(guard)) => {
                    map(condvar.wait(guard), |guard| (MutexGuard::Shuttle(guard), Waited(false)))
                }
                _ => panic!("a lock and a condition of different kinds"),
            }
        }

        pub(crate) fn notify_all(&self) {
            match self {
                Self::Std(condvar) => condvar.notify_all(),
                Self::Shuttle(condvar) => condvar.notify_all(),
            }
        }
    }

    fn try_map<T, U>(result: TryLockResult<T>, wrap: impl Fn(T) -> U) -> TryLockResult<U> {
        match result {
            Ok(guard) => Ok(wrap(guard)),
            Err(TryLockError::Poisoned(error)) => {
                Err(TryLockError::Poisoned(PoisonError::new(wrap(error.into_inner()))))
            }
            Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
        }
    }

    fn map<T, U>(result: LockResult<T>, wrap: impl Fn(T) -> U) -> LockResult<U> {
        match result {
            Ok(guard) => Ok(wrap(guard)),
            Err(error) => Err(PoisonError::new(wrap(error.into_inner()))),
        }
    }
}
