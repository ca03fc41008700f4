//! The streaming transformer, the same before the quantizer and behind it.

use std::ops::Range;

use kernels::{Activation, Aligned, Kernels, Matrix, Sink};

use crate::config::Config;
use crate::error::Result;
use crate::scratch::sized;
use crate::weights::Weights;

#[derive(Debug)]
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    fn load(weights: &mut Weights, name: &str, width: usize) -> Result<Self> {
        Ok(Self {
            weight: weights.take(&format!("{name}.weight"), &[width])?,
            bias: weights.take(&format!("{name}.bias"), &[width])?,
        })
    }
}

#[derive(Debug)]
struct Layer {
    norm1: Norm,
    /// To queries, keys and values.
    in_proj: Matrix,
    /// Its columns are multiplied by `layer_scale_1`.
    out_proj: Matrix,
    norm2: Norm,
    linear1: Matrix,
    /// Its columns are multiplied by `layer_scale_2`.
    linear2: Matrix,
}

impl Layer {
    fn load(weights: &mut Weights, name: &str, config: &Config) -> Result<Self> {
        let (d, wide) = (config.dimension, config.dim_feedforward);
        let scale1 = weights.take(&format!("{name}.layer_scale_1.scale"), &[d])?;
        let scale2 = weights.take(&format!("{name}.layer_scale_2.scale"), &[d])?;
        let mut linear = |part: &str, inputs: usize, outputs: usize, scale: Option<&[f32]>| -> Result<Matrix> {
            weights.matrix(&format!("{name}.{part}"), &[outputs, inputs], None, scale)
        };
        Ok(Self {
            in_proj: linear("self_attn.in_proj_weight", d, 3 * d, None)?,
            out_proj: linear("self_attn.out_proj.weight", d, d, Some(&scale1))?,
            linear1: linear("linear1.weight", d, wide, None)?,
            linear2: linear("linear2.weight", wide, d, Some(&scale2))?,
            norm1: Norm::load(weights, &format!("{name}.norm1"), d)?,
            norm2: Norm::load(weights, &format!("{name}.norm2"), d)?,
        })
    }
}

#[derive(Debug)]
pub(crate) struct Transformer {
    layers: Vec<Layer>,
    width: usize,
    heads: usize,
    /// Keys that a query sees, its own included.
    context: usize,
    /// Of the rotary embedding, radians per step, one per pair of a head.
    frequencies: Vec<f64>,
}

/// A stream through a transformer.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Steps since the stream began, 25 per second: it does not run out.
    position: u64,
    /// Steps since the last reset, as far as the window is concerned: keys before them are not there.
    seen: u64,
    /// Length of the rings in steps.
    ring: usize,
    /// Per layer and head, `[layers, heads, ring, width of a head]`; step i is at `i % ring`.
    keys: Aligned<f32>,
    values: Aligned<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    /// Per head: its output `[steps, width of a head]`, then room for the scores of a query.
    heads: Vec<f32>,
    attended: Vec<f32>,
    hidden: Vec<f32>,
    /// cos and sin of the angles, `[steps, pairs of a head]`.
    rotations: Vec<(f32, f32)>,
}

impl State {
    pub fn reset(&mut self) {
        self.position = 0;
        self.seen = 0;
    }

    /// Acts as if `position` steps had passed of which nothing is remembered.
    pub fn start_at(&mut self, position: u64) {
        self.position = position;
        self.seen = 0;
    }
}

impl Transformer {
    pub fn load(weights: &mut Weights, name: &str, config: &Config) -> Result<Self> {
        let layers = (0..config.num_layers)
            .map(|i| Layer::load(weights, &format!("{name}.transformer.layers.{i}"), config))
            .collect::<Result<_>>()?;
        let head = config.dimension / config.num_heads;
        let frequency = |i: usize| config.max_period.powf(-2.0 * i as f64 / head as f64);
        Ok(Self {
            layers,
            width: config.dimension,
            heads: config.num_heads,
            context: config.context,
            frequencies: (0..head / 2).map(frequency).collect(),
        })
    }

    /// A stream that takes at most `most_steps` steps at a time.
    pub fn state(&self, most_steps: usize) -> State {
        // The first of the new steps still sees its whole window when the last has been written.
        let ring = self.context - 1 + most_steps;
        let size = self.layers.len() * ring * self.width;
        State {
            position: 0,
            seen: 0,
            ring,
            keys: Aligned::zeroed(size),
            values: Aligned::zeroed(size),
            normed: Vec::new(),
            qkv: Vec::new(),
            heads: Vec::new(),
            attended: Vec::new(),
            hidden: Vec::new(),
            rotations: Vec::new(),
        }
    }

    /// Runs over the rows of `x`, `[steps, width]`, in place.
    pub fn run(&self, kernels: &Kernels, state: &mut State, x: &mut [f32]) {
        let d = self.width;
        let steps = x.len() / d;
        self.rotations(state.position, steps, &mut state.rotations);
        for (index, layer) in self.layers.iter().enumerate() {
            let normed = sized(&mut state.normed, steps * d);
            kernels.layer_norm(x, &layer.norm1.weight, &layer.norm1.bias, normed);
            kernels.product(normed, d, steps, &layer.in_proj, Sink::Store(sized(&mut state.qkv, steps * 3 * d)));
            self.attend(kernels, state, index, steps);
            kernels.product(&state.attended, d, steps, &layer.out_proj, Sink::Add(x));

            let normed = sized(&mut state.normed, steps * d);
            kernels.layer_norm(x, &layer.norm2.weight, &layer.norm2.bias, normed);
            let wide = layer.linear1.columns();
            let hidden = sized(&mut state.hidden, steps * wide);
            kernels.product(normed, d, steps, &layer.linear1, Sink::Act(Activation::Gelu, hidden));
            kernels.product(hidden, wide, steps, &layer.linear2, Sink::Add(x));
        }
        state.position = state.position.wrapping_add(steps as u64);
        state.seen = state.seen.wrapping_add(steps as u64);
    }

    /// The rotary angles of `steps` steps. In float64: in float32 they would be off audibly after an hour.
    fn rotations(&self, position: u64, steps: usize, out: &mut Vec<(f32, f32)>) {
        out.clear();
        for step in 0..steps as u64 {
            let position = position.wrapping_add(step) as f64;
            out.extend(self.frequencies.iter().map(|frequency| {
                let (sin, cos) = (position * frequency).sin_cos();
                (cos as f32, sin as f32)
            }));
        }
    }

    /// From `state.qkv` to `state.attended`, by way of the layer's rings.
    fn attend(&self, kernels: &Kernels, state: &mut State, index: usize, steps: usize) {
        let d = self.width;
        let head = d / self.heads;
        let ring = state.ring;
        let layer = index * ring * d..(index + 1) * ring * d;
        let (keys, values) = (&mut state.keys[layer.clone()], &mut state.values[layer]);
        let scale = 1.0 / (head as f32).sqrt();
        for step in 0..steps {
            let (q, kv) = state.qkv[step * 3 * d..(step + 1) * 3 * d].split_at_mut(d);
            let (k, v) = kv.split_at(d);
            let rotations = &state.rotations[step * (head / 2)..(step + 1) * (head / 2)];
            let slot = ((state.seen + step as u64) % ring as u64) as usize;
            for h in 0..self.heads {
                let part = h * head..(h + 1) * head;
                let at = (h * ring + slot) * head;
                values[at..at + head].copy_from_slice(&v[part.clone()]);
                let key = &mut keys[at..at + head];
                let pairs = k[part.clone()].chunks_exact(2).zip(q[part].chunks_exact_mut(2));
                for ((key, (k, q)), (cos, sin)) in key.chunks_exact_mut(2).zip(pairs).zip(rotations) {
                    key[0] = k[0] * cos - k[1] * sin;
                    key[1] = k[0] * sin + k[1] * cos;
                    (q[0], q[1]) = ((q[0] * cos - q[1] * sin) * scale, (q[0] * sin + q[1] * cos) * scale);
                }
            }
        }

        let (keys, values, qkv, seen) = (&*keys, &*values, &*state.qkv, state.seen);
        let piece = steps * head + self.context;
        let outputs = sized(&mut state.heads, self.heads * piece);
        kernels.pool().pieces(outputs, piece, |h, piece| {
            let (out, scores) = piece.split_at_mut(steps * head);
            let part = h * ring * head..(h + 1) * ring * head;
            for (step, out) in out.chunks_exact_mut(head).enumerate() {
                let parts = window(seen + step as u64, self.context, ring);
                let q = &qkv[step * 3 * d + h * head..][..head];
                kernels.attend(q, &keys[part.clone()], &values[part.clone()], &parts, scores, out);
            }
        });
        let attended = sized(&mut state.attended, steps * d);
        for (h, piece) in outputs.chunks_exact(piece).enumerate() {
            for step in 0..steps {
                attended[step * d + h * head..][..head].copy_from_slice(&piece[step * head..][..head]);
            }
        }
    }
}

/// Where in a ring the keys of step `step` are: at most `context`, its own the last, in one or two runs, oldest first.
fn window(step: u64, context: usize, ring: usize) -> [Range<usize>; 2] {
    let keys = (context as u64).min(step.saturating_add(1)) as usize;
    let end = (step % ring as u64) as usize + 1;
    if keys <= end { [end - keys..end, 0..0] } else { [ring - (keys - end)..ring, 0..end] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_is_the_last_steps_in_order() {
        for context in [1, 2, 5, 24] {
            for most_steps in [2, 3, 16] {
                let ring = context - 1 + most_steps;
                for step in 0..4 * ring as u64 {
                    let [a, b] = window(step, context, ring);
                    let slots: Vec<u64> = a.chain(b).map(|slot| slot as u64).collect();
                    let oldest = (step + 1).saturating_sub(context as u64);
                    let want: Vec<u64> = (oldest..=step).map(|i| i % ring as u64).collect();
                    assert_eq!(slots, want, "step {step}, context {context}, ring {ring}");
                }
            }
        }
    }

    #[test]
    fn rotations_keep_their_precision_for_ever() {
        let mut weights = Weights::plan();
        let config = Config { num_layers: 1, ..Config::default() };
        let transformer = Transformer::load(&mut weights, "decoder_transformer", &config).unwrap();
        let mut found = Vec::new();
        // A day, a year, 5,000 years of steps.
        for position in [2_160_000u64, 788_400_000, 4_000_000_000_000] {
            transformer.rotations(position, 1, &mut found);
            assert_eq!(found.len(), 32);
            for (i, (cos, sin)) in found.iter().enumerate() {
                let angle = position as f64 * 10000f64.powf(-2.0 * i as f64 / 64.0);
                assert!((f64::from(*cos) - angle.cos()).abs() < 1e-7, "{position} {i}");
                assert!((f64::from(*sin) - angle.sin()).abs() < 1e-7, "{position} {i}");
            }
        }
    }
}
