//! A supply that fails when told to, takes its time, and watches what is asked of it.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use arch::mte::geometry::BlockIndex;

use crate::tag_storage::supply::{Supply, SupplyName, TakeError};

/// What is done in the middle of a call.
type Hook = Box<dyn FnOnce() + Send>;

/// Memory behind the blocks of a pool.
#[derive(Default)]
pub(crate) struct Fake {
    books: Mutex<Books>,
    instant: bool,
}

#[derive(Default)]
pub(crate) struct Books {
    /// What the pool has taken and not given back.
    pub taken: BTreeSet<u64>,
    /// What a call is under way for.
    moving: BTreeSet<u64>,
    /// What does not move.
    pub pinned: BTreeSet<u64>,
    /// How many calls will find memory in the way.
    pub busy: u32,
    /// The host refuses everything.
    pub broken: bool,
    /// Every call yields to other threads of shuttle.
    pub yields: bool,
    /// Calls so far.
    pub calls: u32,
    /// Done in the call of this number.
    pub hook: Option<(u32, Hook)>,
}

impl Fake {
    pub(crate) fn new(instant: bool) -> Arc<Self> {
        Arc::new(Self { instant, ..Self::default() })
    }

    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// A call for these blocks: no other may be under way for one of them.
    fn call<R>(&self, blocks: &Range<BlockIndex>, end: impl FnOnce(&mut Books) -> R) -> R {
        assert!(blocks.start < blocks.end);
        let mut books = self.books();
        for block in numbers(blocks) {
            assert!(books.moving.insert(block), "two calls for block {block}");
        }
        books.calls += 1;
        let calls = books.calls;
        let hook = books.hook.take_if(|(call, _)| *call == calls);
        let yields = books.yields;
        drop(books);
        if let Some((_, hook)) = hook {
            hook();
        }
        if yields {
            yield_now();
        }
        let mut books = self.books();
        for block in numbers(blocks) {
            books.moving.remove(&block);
        }
        end(&mut books)
    }
}

impl Books {
    fn fault(&mut self) -> Result<(), TakeError> {
        if self.broken {
            return Err(TakeError::Host(io::Error::other("broken")));
        }
        if self.busy > 0 {
            self.busy -= 1;
            return Err(TakeError::Busy);
        }
        Ok(())
    }
}

/// Has another thread of shuttle's run.
#[cfg(test)]
fn yield_now() {
    shuttle::thread::yield_now();
}

#[cfg(not(test))]
fn yield_now() {}

fn numbers(blocks: &Range<BlockIndex>) -> Range<u64> {
    blocks.start.0..blocks.end.0
}

/// The pool owns its supply, the test looks at it.
pub(crate) struct Shared(pub Arc<Fake>);

impl Supply for Shared {
    fn name(&self) -> SupplyName {
        SupplyName::Node(7)
    }

    fn take(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError> {
        self.0.call(&blocks, |books| {
            books.fault()?;
            for block in numbers(&blocks) {
                assert!(books.taken.insert(block), "block {block} is taken twice");
            }
            Ok(())
        })
    }

    fn release(&self, blocks: Range<BlockIndex>) {
        self.0.call(&blocks, |books| {
            for block in numbers(&blocks) {
                assert!(books.taken.remove(&block), "block {block} is given but was not taken");
            }
        });
    }

    fn evict(&self, blocks: Range<BlockIndex>) -> Result<(), TakeError> {
        self.0.call(&blocks, |books| {
            books.fault()?;
            assert!(numbers(&blocks).all(|block| !books.taken.contains(&block)));
            let pinned = |block: &u64| books.pinned.contains(block);
            let Some(first) = numbers(&blocks).find(pinned) else { return Ok(()) };
            let length = (first..blocks.end.0).take_while(pinned).count() as u64;
            Err(TakeError::Pinned(BlockIndex(first)..BlockIndex(first + length)))
        })
    }

    fn is_instant(&self) -> bool {
        self.0.instant
    }
}
