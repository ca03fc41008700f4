//! The search for the delay allocates nothing. Without the test harness, whose messages would count: all threads do.

mod scenes;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use echo::{DelayFinder, Evidence, FRAME};
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
    let heard = room(&played, 2880, 1.0);
    let mut finder = DelayFinder::new();
    let mut found = false;
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for (heard, played) in heard.chunks_exact(FRAME).zip(played.chunks_exact(FRAME)) {
        found |= matches!(finder.push(heard, played), Evidence::Echo(_));
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before);
    assert!(found);
    println!("no frame allocated anything");
}
