//! A few threads that share the chunks of one job at a time.
//!
//! A step of a model is some hundred products of 10 to 300 microseconds, so a worker spins for a short while after a
//! job before it sleeps. Chunks are claimed one by one: a worker that wakes late, or never, costs nothing, for the
//! caller goes on with the rest. When the pool is busy with another stream's job the caller does its own alone.
//!
//! No lock is involved: claiming is a compare-and-swap, a sleeper is woken by `unpark`, and to find the pool busy takes
//! one swap. All that a caller can wait for is a chunk that a worker has claimed and not finished yet. Nothing is
//! allocated either. Where other programs want the cores, the system stops a worker in the middle of a chunk for
//! milliseconds, more than a whole step takes; so a caller that had to wait that long shares nothing for a while, the
//! longer the more often it happens.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{hint, ptr};

/// Turns of the waiting loop before a worker sleeps: some 100 microseconds.
const SPINS: u32 = 4000;

/// What a caller waits for a worker beyond the time that it worked itself, before the worker counts as late.
const GRACE: Duration = Duration::from_micros(50);

/// Jobs that are not shared after a worker was late; a step has some 60. Doubled up to the most each time.
const SHORT_BREAK: u32 = 32;
const LONG_BREAK: u32 = 1024;

/// What 16 bits can count.
const MOST_CHUNKS: u64 = 0xffff;

/// As many workers as `Shared::asleep` has bits.
const MOST_WORKERS: usize = 64;

type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// Keeps what one side polls off the cache lines that the other writes; two lines, for they are fetched in pairs.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    /// Job number (high 32 bits), its chunks (16 bits) and the next chunk to claim (low 16 bits).
    claim: Apart<AtomicU64>,
    /// Chunks of the current job that are finished.
    done: Apart<AtomicUsize>,
    /// Points to the caller's `Job` while chunks of it are unclaimed or running.
    job: AtomicPtr<()>,
    /// Worker i has set bit i and sleeps, or is about to. A thread that clears it must wake the worker.
    asleep: AtomicU64,
    /// How many workers have begun.
    begun: AtomicUsize,
    failed: AtomicBool,
    stop: AtomicBool,
}

/// The threads that share work: the caller's and those that wait for a job.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// While a job runs; it guards the two below.
    busy: AtomicBool,
    /// Jobs that the caller does alone yet.
    alone: AtomicU32,
    /// How many it will be when a worker is late the next time.
    next_break: AtomicU32,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

/// Whether a job has chunks that no thread has claimed.
fn is_open(claim: u64) -> bool {
    claim & MOST_CHUNKS < claim >> 16 & MOST_CHUNKS
}

impl Shared {
    /// Claims a chunk of the current job, or of none.
    fn claim(&self) -> Option<(*const Job<'static>, usize)> {
        let mut claim = self.claim.0.load(Ordering::Acquire);
        loop {
            if !is_open(claim) {
                return None;
            }
            let job = self.job.load(Ordering::Relaxed);
            match self.claim.0.compare_exchange_weak(claim, claim + 1, Ordering::AcqRel, Ordering::Acquire) {
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
            self.done.0.fetch_add(1, Ordering::Release);
        }
        helped
    }

    fn work(&self, index: usize) {
        self.begun.fetch_add(1, Ordering::Release);
        let mut idle = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.help() {
                idle = 0;
            } else if idle < SPINS {
                idle += 1;
                hint::spin_loop();
            } else {
                self.sleep(1 << index);
                idle = 0;
            }
        }
    }

    /// Returns when there is something to do, or somebody thought so.
    fn sleep(&self, bit: u64) {
        self.asleep.fetch_or(bit, Ordering::SeqCst);
        // Sequentially consistent, as in `publish`: either this sees the job or the caller sees the bit.
        while !is_open(self.claim.0.load(Ordering::SeqCst))
            && !self.stop.load(Ordering::SeqCst)
            && self.asleep.load(Ordering::SeqCst) & bit != 0
        {
            thread::park();
        }
        self.asleep.fetch_and(!bit, Ordering::SeqCst);
    }

    fn publish(&self, job: *mut (), chunks: usize, workers: &[JoinHandle<()>]) {
        self.job.store(job, Ordering::Relaxed);
        self.done.0.store(0, Ordering::Relaxed);
        let number = (self.claim.0.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        self.claim.0.store(number << 32 | (chunks as u64) << 16, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) != 0 {
            let asleep = self.asleep.swap(0, Ordering::SeqCst);
            for (index, worker) in workers.iter().enumerate() {
                if asleep & 1 << index != 0 {
                    worker.thread().unpark();
                }
            }
        }
    }
}

impl Pool {
    /// A pool in which the caller's thread is one of `threads`.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            claim: Apart(AtomicU64::new(0)),
            done: Apart(AtomicUsize::new(0)),
            job: AtomicPtr::new(ptr::null_mut()),
            asleep: AtomicU64::new(0),
            begun: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers: Vec<_> = (1..threads.min(MOST_WORKERS + 1))
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                // Where the system gives no more threads, the caller works with fewer.
                thread::Builder::new().name(format!("kernels-{i}")).spawn(move || shared.work(i - 1)).ok()
            })
            .collect();
        // A thread that begins allocates, which is not to happen in a step.
        while shared.begun.load(Ordering::Acquire) < workers.len() {
            thread::yield_now();
        }
        Self {
            shared,
            workers,
            busy: AtomicBool::new(false),
            alone: AtomicU32::new(0),
            next_break: AtomicU32::new(SHORT_BREAK),
        }
    }

    /// How many there are, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `job(0)` to `job(chunks - 1)`, in any order and on any threads of the pool, and waits for all.
    ///
    /// # Panics
    /// If a call of `job` panics, after the others.
    pub fn run(&self, chunks: usize, job: Job<'_>) {
        if chunks <= 1 || chunks as u64 > MOST_CHUNKS || self.workers.is_empty() {
            return (0..chunks).for_each(job);
        }
        if self.busy.swap(true, Ordering::Acquire) {
            return (0..chunks).for_each(job);
        }
        let alone = self.alone.load(Ordering::Relaxed);
        if alone > 0 {
            self.alone.store(alone - 1, Ordering::Relaxed);
            self.busy.store(false, Ordering::Release);
            return (0..chunks).for_each(job);
        }
        let shared = &*self.shared;
        let begin = Instant::now();
        shared.publish(ptr::from_ref(&job).cast_mut().cast(), chunks, &self.workers);
        shared.help();
        self.wait(chunks, begin);
        let failed = shared.failed.swap(false, Ordering::Relaxed);
        self.busy.store(false, Ordering::Release);
        if failed {
            resume_unwind(Box::new("a chunk of work that threads share panicked"));
        }
    }

    /// Waits for the chunks of others in a job that began at `begin`.
    fn wait(&self, chunks: usize, begin: Instant) {
        let done = || self.shared.done.0.load(Ordering::Acquire) == chunks;
        let next_break = self.next_break.load(Ordering::Relaxed);
        if !done() {
            let worked = Instant::now();
            let mut turns = 0u32;
            while !done() {
                turns = turns.wrapping_add(1);
                if turns.is_multiple_of(1024) {
                    thread::yield_now();
                } else {
                    hint::spin_loop();
                }
            }
            if worked.elapsed() > worked - begin + GRACE {
                self.alone.store(next_break, Ordering::Relaxed);
                self.next_break.store(LONG_BREAK.min(2 * next_break), Ordering::Relaxed);
                return;
            }
        }
        self.next_break.store(SHORT_BREAK.max(next_break - 1), Ordering::Relaxed);
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
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
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
    fn a_late_worker_is_left_alone_for_a_while() {
        let pool = Pool::new(2);
        let caller = thread::current().id();
        let others_chunks = |own: u64, others: u64| {
            let count = AtomicUsize::new(0);
            pool.run(4, &|_| {
                let other = thread::current().id() != caller;
                thread::sleep(Duration::from_millis(if other { others } else { own }));
                count.fetch_add(usize::from(other), Ordering::Relaxed);
            });
            count.into_inner()
        };
        let mut late = |_| others_chunks(1, 40) > 0 && pool.alone.load(Ordering::Relaxed) > 0;
        assert!((0..100).any(&mut late), "the worker never woke");
        for _ in 0..SHORT_BREAK {
            assert_eq!(others_chunks(0, 0), 0);
        }
        assert!((0..100).any(|_| others_chunks(1, 0) > 0), "the break never ended");
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let pool = Pool::new(2);
        let run = || pool.run(8, &|i| assert_ne!(i, 5));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
        pool.run(8, &|_| {});
    }
}
