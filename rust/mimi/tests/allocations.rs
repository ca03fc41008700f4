//! A step allocates nothing once it has been done. Without the test harness, whose messages would count: all threads do.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use mimi::{Mimi, Options};

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

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo/mimi.safetensors");
    for threads in [1, 2] {
        let mimi = Mimi::load(&path, &Options { num_threads: Some(threads), ..Options::default() }).unwrap();
        let (mut encoder, mut decoder) = (mimi.encoder(), mimi.decoder());
        let (mut codes, mut decoded) = (Vec::new(), Vec::new());
        let pcm: Vec<f32> = (0..3 * 1920).map(|i| (i as f32 * 0.05).sin() * 0.3).collect();
        let mut step = |samples: &[f32]| {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            encoder.step_into(samples, &mut codes).unwrap();
            decoder.step_into(&codes, 8, &mut decoded).unwrap();
            assert_eq!(decoded.len() / 1920, codes.len() / 8);
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        assert!(step(&pcm) > 0, "the first step makes the buffers");
        // Past the window of 24 steps, in pieces that fit no frame, and with pauses in which the workers fall asleep.
        for round in 0..40 {
            for size in [1920, 700, 1220, 3 * 1920, 0] {
                assert_eq!(step(&pcm[..size]), 0, "{threads} threads, round {round}, {size} samples");
            }
            std::thread::sleep(std::time::Duration::from_millis(round % 3));
        }
    }
    println!("no step allocated anything");
}
