//! A queue of samples from one thread to another.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A preallocated queue with one producer and one consumer, neither of which ever waits.
///
/// `head` counts all samples ever written, `tail` all that were taken. A sample's number says where it lies. The slots are
/// atomic: a second producer or consumer could spoil the sound, but nothing else.
pub struct Ring {
    slots: Box<[AtomicU32]>,
    capacity: usize,
    head: AtomicU64,
    tail: AtomicU64,
}

impl Ring {
    /// Holds `capacity` samples; the last `history` samples that were taken stay readable.
    pub fn new(capacity: usize, history: usize) -> Self {
        let slots = (0..(capacity + history).next_power_of_two()).map(|_| AtomicU32::new(0)).collect();
        Self { slots, capacity, head: AtomicU64::new(0), tail: AtomicU64::new(0) }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    pub fn tail(&self) -> u64 {
        self.tail.load(Ordering::Acquire)
    }

    /// Samples that wait; exact for the producer and the consumer, a bound that was true lately for others.
    pub fn len(&self) -> usize {
        let tail = self.tail();
        (self.head().saturating_sub(tail) as usize).min(self.capacity)
    }

    /// Writes as many of the samples as fit, and returns how many. Only the producer calls this.
    pub fn push(&self, mut samples: impl ExactSizeIterator<Item = f32>) -> usize {
        let head = self.head.load(Ordering::Relaxed);
        let free = self.capacity.saturating_sub(head.saturating_sub(self.tail()) as usize);
        let count = samples.len().min(free);
        let (first, second) = self.slots(head, count);
        for part in [first, second] {
            for (slot, sample) in part.iter().zip(samples.by_ref()) {
                slot.store(sample.to_bits(), Ordering::Relaxed);
            }
        }
        self.head.store(head.wrapping_add(count as u64), Ordering::Release);
        count
    }

    /// Writes the samples over the oldest, even if those were not taken. Only the producer calls this.
    pub fn overwrite(&self, mut samples: impl ExactSizeIterator<Item = f32>) {
        let head = self.head.load(Ordering::Relaxed);
        let skipped = samples.len().saturating_sub(self.slots.len());
        let count = samples.len() - skipped;
        let (first, second) = self.slots(head.wrapping_add(skipped as u64), count);
        let mut samples = samples.by_ref().skip(skipped);
        for part in [first, second] {
            for (slot, sample) in part.iter().zip(&mut samples) {
                slot.store(sample.to_bits(), Ordering::Relaxed);
            }
        }
        self.head.store(head.wrapping_add((skipped + count) as u64), Ordering::Release);
    }

    /// The sample of a number, 0 where it was overwritten or does not exist yet; for any thread.
    pub fn get(&self, number: i64) -> f32 {
        let head = self.head() as i64;
        // Leave out the oldest quarter of the ring, which may be overwritten meanwhile.
        let oldest = head - self.slots.len() as i64 * 3 / 4;
        if number < 0 || number < oldest || number >= head {
            return 0.0;
        }
        let slot = self.slots.get(number as usize & self.slots.len().wrapping_sub(1));
        slot.map_or(0.0, |slot| f32::from_bits(slot.load(Ordering::Relaxed)))
    }

    /// The `count` samples from number `from`, oldest first; for the consumer, which must know that they are there.
    pub fn samples(&self, from: u64, count: usize) -> impl DoubleEndedIterator<Item = f32> {
        let (first, second) = self.slots(from, count);
        first.iter().chain(second).map(|slot| f32::from_bits(slot.load(Ordering::Relaxed)))
    }

    /// Frees the room of all samples before number `tail`. Only the consumer calls this.
    pub fn advance_to(&self, tail: u64) {
        self.tail.store(tail, Ordering::Release);
    }

    /// The slots of `count` samples from number `from`, in two parts where they go around the end.
    fn slots(&self, from: u64, count: usize) -> (&[AtomicU32], &[AtomicU32]) {
        let length = self.slots.len();
        let start = from as usize & length.wrapping_sub(1);
        let end = start.saturating_add(count.min(length));
        let (first, second) = if end <= length { (start..end, 0..0) } else { (start..length, 0..end - length) };
        (self.slots.get(first).unwrap_or_default(), self.slots.get(second).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_lately_can_be_looked_up() {
        let ring = Ring::new(0, 100); // 128 slots, of which a quarter may be written to meanwhile
        let mut next = 0;
        // Around the end, and more than fits at once.
        for count in [50, 70, 300, 1] {
            ring.overwrite((next..next + count).map(|number| number as f32));
            next += count;
            let oldest = (next - 96).max(0);
            for number in -5..next + 5 {
                let there = (oldest..next).contains(&number);
                assert_eq!(ring.get(number.into()), if there { number as f32 } else { 0.0 }, "{number} of {next}");
            }
        }
    }
}
