//! Chooses a token from logits.

use crate::error::{Error, Result};

/// Independent draws from the standard Gumbel distribution, the same for the same seed and position.
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// `seed` belongs to a conversation, `position` to a step of it.
    pub fn new(seed: u64, position: u64) -> Self {
        // Two rounds of mixing, so that neighbouring seeds and positions have unrelated streams.
        Self(mixed(mixed(seed) ^ position.wrapping_mul(0xd1b5_4a32_d192_ed03)))
    }

    /// The next draw.
    pub fn draw(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // 53 bits above 0 and below 1.
        let uniform = ((mixed(self.0) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -(-uniform.ln()).ln() as f32
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a bijection whose results look random.
pub(crate) fn mixed(x: u64) -> u64 {
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// Softmax sampling with a temperature, among the tokens that pass every filter, in this order: the `top_k` likeliest;
/// the likeliest that together reach the probability `top_p`; those with at least the share `min_p` of the likeliest's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// 0 takes the likeliest token, without random numbers.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
}

/// Room to choose from a vocabulary.
#[derive(Debug, Default)]
pub struct Room(Vec<(f32, u32)>);

impl Room {
    /// Room for a vocabulary of this size, so that no more is taken later.
    pub fn new(vocabulary: usize) -> Self {
        Self(Vec::with_capacity(vocabulary))
    }
}

impl Sampler {
    /// Refuses what no sampler can do.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::Input(what));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong(format!("the temperature {} is not a number from 0 on", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong(format!("the top-p {} is not a number above 0 and up to 1", self.top_p));
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return wrong(format!("the min-p {} is not a number from 0 to 1", self.min_p));
        }
        Ok(())
    }

    /// Chooses a token.
    pub fn choose(&self, logits: &[f32], noise: &mut Noise, room: &mut Room) -> u32 {
        if self.temperature == 0.0 {
            return likeliest(logits);
        }
        let by = 1.0 / self.temperature.max(1e-6);
        let tokens = &mut room.0;
        tokens.clear();
        tokens.extend(logits.iter().zip(0..).map(|(logit, token)| (logit * by, token)));
        // The likeliest first; of equal ones the first.
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let some = self.top_k > 0 && self.top_k < tokens.len();
        if some {
            tokens.select_nth_unstable_by(self.top_k - 1, order);
            tokens.truncate(self.top_k);
        }
        if some || self.top_p < 1.0 {
            // Also so that the draws do not depend on how the selection has left them.
            tokens.sort_unstable_by(order);
        }
        let most = tokens.iter().fold(f32::NEG_INFINITY, |most, (logit, _)| most.max(*logit));
        if self.top_p < 1.0 {
            let total: f64 = tokens.iter().map(|(logit, _)| f64::from(logit - most).exp()).sum();
            let mut likelier = 0.0;
            let share = f64::from(self.top_p.max(1e-30));
            let kept = tokens.iter().take_while(|(logit, _)| {
                let kept = likelier < share;
                likelier += f64::from(logit - most).exp() / total;
                kept
            });
            let kept = kept.count().max(1);
            tokens.truncate(kept);
        }
        if self.min_p > 0.0 {
            let least = most + self.min_p.ln();
            tokens.retain(|(logit, _)| *logit >= least);
        }
        let mut best = (f32::NEG_INFINITY, tokens.first().map_or(0, |first| first.1));
        for (logit, token) in tokens.iter() {
            let sum = logit + noise.draw();
            if sum > best.0 {
                best = (sum, *token);
            }
        }
        best.1
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (logit, token) in logits.iter().zip(0..) {
        if *logit > best.0 {
            best = (*logit, token);
        }
    }
    best.1
}

/// A sampler for the text, which may also make the model repeat words less, or say less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextSampler {
    #[allow(missing_docs)]
    pub sampler: Sampler,
    /// Logits of recent tokens are divided by it if they are positive, else multiplied; 1 changes nothing.
    pub repetition_penalty: f32,
    /// It is added to the logit of the padding token.
    pub padding_bonus: f32,
}

impl TextSampler {
    /// Refuses what no sampler can do.
    pub(crate) fn check(&self) -> Result<()> {
        self.sampler.check()?;
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite() && self.padding_bonus.is_finite()) {
            return Err(Error::Input("the repetition penalty or the padding bonus is out of range".into()));
        }
        Ok(())
    }

    /// Changes logits in place. `recent` may hold numbers that are no tokens; those count for nothing.
    pub fn adjust(&self, logits: &mut [f32], recent: &[i32], padding: Option<usize>) {
        if self.repetition_penalty != 1.0 {
            for (i, token) in recent.iter().enumerate() {
                let at = usize::try_from(*token).ok().filter(|at| *at < logits.len() && !recent[..i].contains(token));
                if let Some(at) = at {
                    let logit = &mut logits[at];
                    *logit =
                        if *logit > 0.0 { *logit / self.repetition_penalty } else { *logit * self.repetition_penalty };
                }
            }
        }
        if let Some(logit) = padding.and_then(|token| logits.get_mut(token)) {
            *logit += self.padding_bonus;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Sampler = Sampler { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    fn counts(sampler: Sampler, logits: &[f32], draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let mut room = Room::default();
        for position in 0..draws {
            counts[sampler.choose(logits, &mut Noise::new(7, position), &mut room) as usize] += 1.0;
        }
        counts
    }

    /// χ² of draws against the softmax of what passes the filters; 99.9 % of seeds stay below 3√(2 · df) + df + 6.
    #[test]
    fn draws_follow_the_softmax() {
        let logits: Vec<f32> = (0..12).map(|i| ((i * 7) % 12) as f32 * 0.4).collect();
        for (sampler, kept) in [
            (ALL, 12),
            (Sampler { temperature: 0.5, ..ALL }, 12),
            (Sampler { top_k: 4, ..ALL }, 4),
            (Sampler { top_k: 5, temperature: 2.0, ..ALL }, 5),
            (Sampler { top_p: 0.6, ..ALL }, 3),
            (Sampler { min_p: 0.3, ..ALL }, 4),
        ] {
            let mut order: Vec<usize> = (0..12).collect();
            order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
            let weight = |i: usize| f64::from(logits[i] / sampler.temperature).exp();
            let total: f64 = order[..kept].iter().map(|i| weight(*i)).sum();
            let draws = 20_000;
            let counts = counts(sampler, &logits, draws);
            let mut chi = 0.0;
            for (rank, i) in order.iter().enumerate() {
                if rank >= kept {
                    assert_eq!(counts[*i], 0.0, "{sampler:?} drew {i}");
                    continue;
                }
                let want = draws as f64 * weight(*i) / total;
                chi += (counts[*i] - want).powi(2) / want;
            }
            let df = (kept - 1) as f64;
            assert!(chi < 3.0 * (2.0 * df).sqrt() + df + 6.0, "{sampler:?}: {chi}");
        }
    }

    #[test]
    fn temperature_0_takes_the_first_of_the_likeliest() {
        let mut room = Room::default();
        let greedy = Sampler { temperature: 0.0, ..ALL };
        assert_eq!(greedy.choose(&[1.0, 3.0, 3.0, 2.0], &mut Noise::new(1, 1), &mut room), 1);
        // The smallest temperature does not overflow.
        let cold = Sampler { temperature: 1e-9, ..ALL };
        assert_eq!(cold.choose(&[1.0, 3.0, 2.9, 2.0], &mut Noise::new(1, 1), &mut room), 1);
    }

    #[test]
    fn seeds_and_positions_have_streams_of_their_own() {
        let streams: Vec<Vec<f32>> = (0..8)
            .flat_map(|seed| (0..8).map(move |position| (seed, position)))
            .map(|(seed, position)| {
                let mut noise = Noise::new(seed, position);
                (0..4).map(|_| noise.draw()).collect()
            })
            .collect();
        for (i, a) in streams.iter().enumerate() {
            assert!(streams[..i].iter().all(|b| a.iter().zip(b).all(|(a, b)| a != b)), "{i}");
        }
        assert_eq!(Noise::new(3, 4).draw(), Noise::new(3, 4).draw());
    }

    #[test]
    fn penalty_and_bonus_change_the_logits() {
        let sampler = TextSampler { sampler: ALL, repetition_penalty: 2.0, padding_bonus: 0.5 };
        let mut logits = [1.0, -1.0, 4.0, 0.0];
        sampler.adjust(&mut logits, &[2, 1, 2, 4, -1], Some(3));
        assert_eq!(logits, [1.0, -2.0, 2.0, 0.5]);
    }
}
