//! A step allocates nothing once an engine and a conversation are made. Without the test harness, whose messages would
//! count.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Kind, changed, make};
use lm::{Choices, Conversation, Engine, Float, Guidance, Held, Options, Turn, Way};
use serde_json::json;

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
    let traits = json!({"cross_attention": true, "demux_second_stream": true, "depformer_low_rank_embeddings": 32,
                        "depformer_dim": 64, "extra_heads_num_heads": 2, "depformer_norm": "layer_norm"});
    for (kind, way, held) in [
        (Kind::Packed(4, 32, Float::F16), Way::Int8, Held::Bytes),
        (Kind::Packed(8, 32, Float::Bf16), Way::Float32, Held::F16),
        (Kind::Floats(Float::F16), Way::Int16, Held::F32),
    ] {
        let model = make(changed(traits.clone()), kind, 1, false).load();
        let options = Options { threads: 2, way, dot: None, rows: 3 };
        let mut engine = Engine::new(Arc::clone(&model), options);
        let source = Arc::new(engine.source(&[0.1; 3 * 64]).unwrap());
        let guidance = Some(Guidance { coef: 2.0, text: true });
        let choices = Choices { held, ..Choices::default() };
        let mut all: Vec<Conversation> = [choices, Choices { guidance, codebooks: Some(1), ..choices }]
            .into_iter()
            .map(|choices| Conversation::new(&model, choices).unwrap())
            .collect();
        all.iter_mut().for_each(|conversation| conversation.attend_to(Arc::clone(&source)).unwrap());
        let mut codes = [[0; 3]; 2];
        // Past the window of 6 steps, with pauses in which the workers fall asleep.
        for round in 0..33 {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let [first, second] = &mut all[..] else { return };
            let [one, other] = &mut codes;
            let tokens = &[round % 24; 6];
            let mut turns = [
                Turn { conversation: first, tokens, recent: &[1, 2], text: 0, codes: one },
                Turn { conversation: second, tokens: &[0; 12], recent: &[], text: 0, codes: other },
            ];
            engine.hear(&mut turns).unwrap();
            engine.speak(&mut turns).unwrap();
            assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before, "{way:?}, round {round}");
            std::thread::sleep(std::time::Duration::from_millis(round as u64 % 3));
        }
    }
    println!("no step allocated anything");
}
