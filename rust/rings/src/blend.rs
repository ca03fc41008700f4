//! Inaudible cuts: crossfades, and the search for the best place for one.

use std::ops::RangeInclusive;

/// `from` at 0, `to` at 1, a straight line between; never beyond both.
fn mix(from: f32, to: f32, at: f32) -> f32 {
    from + (to - from) * at
}

/// A crossfade from sound that is left out to the sound that follows instead.
#[derive(Default)]
pub struct Blend {
    old: Vec<f32>,
    done: usize,
}

impl Blend {
    /// Begins a crossfade from `old`, which would have come next.
    pub fn begin(&mut self, old: Vec<f32>) {
        *self = Self { old, done: 0 };
    }

    /// Blends the samples that come next in place.
    pub fn apply(&self, next: &mut [f32]) {
        let steps = (self.old.len() + 1) as f32;
        for (i, (sample, old)) in next.iter_mut().zip(self.old.iter().skip(self.done)).enumerate() {
            *sample = mix(*old, *sample, (self.done + i + 1) as f32 / steps);
        }
    }

    /// Goes on by `count` samples.
    pub fn advance(&mut self, count: usize) {
        self.done = (self.done + count).min(self.old.len());
    }

    pub fn is_over(&self) -> bool {
        self.done == self.old.len()
    }
}

/// Drops (`shorten`) or repeats some samples of `pcm` by a crossfade of `overlap` samples between the two places that
/// match best and whose distance is in `distances`. Gives that distance, or None where `pcm` is too short.
pub fn splice(pcm: &mut Vec<f32>, shorten: bool, distances: RangeInclusive<usize>, overlap: usize) -> Option<usize> {
    let (early, late) = best_match(pcm, distances, overlap)?;
    let (from, to) = if shorten { (early, late) } else { (late, early) };
    let mut blend = Blend::default();
    blend.begin(pcm[from..from + overlap].to_vec());
    let mut rest = pcm[to..].to_vec();
    blend.apply(&mut rest);
    pcm.truncate(from);
    pcm.extend(rest);
    Some(late - early)
}

/// The two places whose next `overlap` samples differ least, so that quiet places and whole periods win.
fn best_match(pcm: &[f32], distances: RangeInclusive<usize>, overlap: usize) -> Option<(usize, usize)> {
    let mut best = (f32::INFINITY, None);
    for early in (0..pcm.len()).step_by(overlap) {
        for distance in distances.clone().rev() {
            let late = early + distance;
            let (Some(a), Some(b)) = (pcm.get(early..early + overlap), pcm.get(late..late + overlap)) else { continue };
            let difference = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
            if difference < best.0 {
                best = (difference, Some((early, late)));
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_splice_cuts_where_the_sound_matches() {
        // Of all distances from 30 to 80, only 50 is a period.
        let sine: Vec<f32> = (0..1000).map(|i| (std::f32::consts::TAU * i as f32 / 50.0).sin()).collect();
        for (shorten, length) in [(true, 950), (false, 1050)] {
            let mut pcm = sine.clone();
            assert_eq!(splice(&mut pcm, shorten, 30..=80, 40), Some(50));
            assert_eq!(pcm.len(), length);
            for (i, sample) in pcm.iter().enumerate() {
                assert!((sample - sine[i % 50]).abs() < 1e-4, "sample {i}");
            }
        }
    }

    #[test]
    fn a_splice_takes_the_quiet_place() {
        let mut pcm: Vec<f32> =
            (0..1000).map(|i| if (400..600).contains(&i) { 0.0 } else { (i * i % 97) as f32 }).collect();
        let loud: Vec<f32> = pcm.iter().copied().filter(|sample| *sample != 0.0).collect();
        assert_eq!(splice(&mut pcm, true, 30..=80, 40), Some(80));
        assert_eq!(pcm.into_iter().filter(|sample| *sample != 0.0).collect::<Vec<_>>(), loud);
    }

    #[test]
    fn a_splice_needs_room() {
        let mut pcm = vec![0.5; 69];
        assert_eq!(splice(&mut pcm, true, 30..=80, 40), None);
        pcm.push(0.5);
        assert_eq!(splice(&mut pcm, false, 30..=80, 40), Some(30));
        assert_eq!(pcm, [0.5; 100]);
    }
}
