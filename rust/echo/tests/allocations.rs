//! No block allocates anything. Without the test harness, whose messages would count: all threads do.

mod scenes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use echo::{Canceller, FRAME, Mode};
use scenes::{room, syllables};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let played = syllables(1, 20);
    let (early, late) = (room(&played, 2880, 1.0), room(&played, 3840, 1.0));
    let jumping = [&early[..early.len() / 2], &late[early.len() / 2..]].concat();
    for mode in [Mode::Auto, Mode::On, Mode::Off] {
        let mut canceller = Canceller::new(mode);
        let mut heard = jumping.clone();
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for (heard, played) in heard.chunks_exact_mut(FRAME).zip(played.chunks_exact(FRAME)) {
            canceller.process(heard, played);
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before, "{mode:?}");
        assert!(mode == Mode::Off || canceller.remote().stats().echo);
    }
    println!("no block allocated anything");
}
