//! A few threads that share the chunks of one job at a time.
//!
//! A step of the codec is some hundred products of 10 to 300 microseconds, so a worker spins for a short while after a
//! job before it sleeps. Chunks are claimed one by one: a worker that wakes late, or never, costs nothing, for the
//! caller goes on with the rest. When the pool is busy with another stream's job the caller does its own alone.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::{hint, ptr};

/// Turns of the waiting loop before a worker sleeps: some 100 microseconds.
const SPINS: u32 = 4000;

/// What 16 bits can count.
const MOST_CHUNKS: u64 = 0xffff;

type Job<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// Job number (high 32 bits), its chunks (16 bits) and the next chunk to claim (low 16 bits).
    claim: AtomicU64,
    /// Points to the caller's `Job` while chunks of it are unclaimed or running.
    job: AtomicPtr<()>,
    done: AtomicUsize,
    failed: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs.
    gate: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

/// Whether a job has chunks that nobody has claimed.
fn is_open(claim: u64) -> bool {
    claim & MOST_CHUNKS < claim >> 16 & MOST_CHUNKS
}

impl Shared {
    /// Claims a chunk of the current job, or of none.
    fn claim(&self) -> Option<(*const Job<'static>, usize)> {
        let mut claim = self.claim.load(Ordering::Acquire);
        loop {
            if !is_open(claim) {
                return None;
            }
            let job = self.job.load(Ordering::Relaxed);
            match self.claim.compare_exchange_weak(claim, claim + 1, Ordering::AcqRel, Ordering::Acquire) {
                // The claim is as it was before `job` was read, so that is this job's: the caller changes it only
                // when all chunks are claimed and done.
                Ok(_) => return Some((job.cast_const().cast(), (claim & MOST_CHUNKS) as usize)),
                Err(now) => claim = now,
            }
        }
    }

    /// Runs chunks of the current job until none is left to claim.
    fn help(&self) -> bool {
        let mut helped = false;
        while let Some((job, chunk)) = self.claim() {
            helped = true;
            // SAFETY: `run` put a pointer to a `Job` on its stack there and returns only when every claimed chunk is
            // counted in `done`, which for this one happens below.
            let job = unsafe { *job };
            if catch_unwind(AssertUnwindSafe(|| job(chunk))).is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
            self.done.fetch_add(1, Ordering::Release);
        }
        helped
    }

    fn work(&self) {
        let mut idle = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.help() {
                idle = 0;
            } else if idle < SPINS {
                idle += 1;
                hint::spin_loop();
            } else {
                let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
                *sleepers += 1;
                while !is_open(self.claim.load(Ordering::Acquire)) && !self.stop.load(Ordering::Relaxed) {
                    sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
                }
                *sleepers -= 1;
                idle = 0;
            }
        }
    }
}

impl Pool {
    /// A pool in which the caller's thread is one of `threads`.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            claim: AtomicU64::new(0),
            job: AtomicPtr::new(ptr::null_mut()),
            done: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..threads)
            .filter_map(|i| {
                let shared = Arc::clone(&shared);
                // Where the system gives no more threads, the caller works with fewer.
                std::thread::Builder::new().name(format!("mimi-{i}")).spawn(move || shared.work()).ok()
            })
            .collect();
        Self { shared, workers, gate: Mutex::new(()) }
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(0)` to `job(chunks - 1)`, in any order and on any threads of the pool, and waits for all.
    pub fn run(&self, chunks: usize, job: Job<'_>) {
        if chunks <= 1 || chunks as u64 > MOST_CHUNKS || self.workers.is_empty() {
            return (0..chunks).for_each(job);
        }
        let Ok(_gate) = self.gate.try_lock() else {
            return (0..chunks).for_each(job);
        };
        let shared = &*self.shared;
        shared.job.store(ptr::from_ref(&job).cast_mut().cast(), Ordering::Relaxed);
        shared.done.store(0, Ordering::Relaxed);
        let number = (shared.claim.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.claim.store(number << 32 | (chunks as u64) << 16, Ordering::Release);
        if *shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            shared.wake.notify_all();
        }
        shared.help();
        let mut turns = 0u32;
        while shared.done.load(Ordering::Acquire) < chunks {
            turns += 1;
            if turns.is_multiple_of(1024) {
                std::thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
        if shared.failed.swap(false, Ordering::Relaxed) {
            drop(_gate);
            resume_unwind(Box::new("a chunk of work in the codec's threads panicked"));
        }
    }

    /// Cuts `data` into pieces of `len` (the last may be shorter) and calls `job(index, piece)` for each.
    pub fn pieces<T: Send>(&self, data: &mut [T], len: usize, job: impl Fn(usize, &mut [T]) + Sync) {
        let (start, total) = (Exclusive(data.as_mut_ptr()), data.len());
        let start = &start;
        self.run(total.div_ceil(len), &move |i| {
            let size = len.min(total - i * len);
            // SAFETY: the pieces do not overlap, each index is run once, and `run` returns after the last.
            job(i, unsafe { std::slice::from_raw_parts_mut(start.0.add(i * len), size) });
        });
    }
}

/// A pointer into memory that the caller of a job has borrowed exclusively.
struct Exclusive<T>(*mut T);
// SAFETY: `pieces` hands out disjoint parts of it only.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        drop(self.shared.sleepers.lock());
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once() {
        let pool = Pool::new(3);
        for round in 0..2000 {
            let mut data = vec![0usize; 1 + round % 37];
            pool.pieces(&mut data, 1 + round % 5, |i, piece| piece.iter_mut().for_each(|x| *x += i + 1));
            for (at, x) in data.iter().enumerate() {
                assert_eq!(*x, at / (1 + round % 5) + 1);
            }
            if round % 500 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(5)); // let the workers fall asleep
            }
        }
    }

    #[test]
    fn two_callers_at_once() {
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let count = AtomicUsize::new(0);
                        pool.run(9, &|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                        assert_eq!(count.into_inner(), 9);
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let pool = Pool::new(2);
        let run = || pool.run(8, &|i| assert_ne!(i, 5));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        pool.run(8, &|_| {});
    }
}
