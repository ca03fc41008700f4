//! The two residual quantizers.
//!
//! Both work on the same latent: the first has one codebook, the rest of the codebooks form a chain of their own. Their
//! projections are kept side by side, so that each direction is one product.

use kernels::{Aligned, Kernels, Matrix, Sink};

use crate::config::Config;
use crate::error::Result;
use crate::scratch::sized;
use crate::weights::Weights;

/// Entries per piece of work when a codebook is searched.
const PIECE: usize = 512;

#[derive(Debug)]
pub(crate) struct Quantizer {
    /// `[dimension]` to the inputs of both chains, `[2 · width]`.
    input_proj: Matrix,
    /// From the sums of both chains, `[2 · width]`, to `[dimension]`.
    output_proj: Matrix,
    /// One `[bins, width]` per codebook that is used.
    books: Vec<Aligned<f32>>,
    bins: usize,
    width: usize,
    dimension: usize,
}

/// Working memory of a stream; nothing in it outlives a call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scratch {
    residuals: Vec<f32>,
    distances: Vec<f32>,
}

impl Quantizer {
    /// Expects all `n_q` codebooks and keeps the first `used`.
    pub fn load(weights: &mut Weights, config: &Config, used: usize) -> Result<Self> {
        let (d, width, bins) = (config.dimension, config.codebook_dim, config.bins);
        let mut inputs = Vec::new();
        let mut outputs = Vec::new();
        for part in ["rvq_first", "rvq_rest"] {
            inputs.push(weights.take(&format!("quantizer.{part}.input_proj.weight"), &[width, d, 1])?);
            outputs.push(weights.take(&format!("quantizer.{part}.output_proj.weight"), &[d, width, 1])?);
        }
        let input_proj = weights.pack(d, 2 * width, |row, column| inputs[column / width][column % width * d + row]);
        let output_proj = weights.pack(2 * width, d, |row, column| outputs[row / width][column * width + row % width]);

        let mut books = Vec::new();
        for k in 0..config.n_q {
            let (part, layer) = if k == 0 { ("rvq_first", 0) } else { ("rvq_rest", k - 1) };
            let name = format!("quantizer.{part}.vq.layers.{layer}._codebook");
            let (sum, usage) = (format!("{name}.embedding_sum"), format!("{name}.cluster_usage"));
            if k >= used {
                weights.expect(&sum, &[bins, width]);
                weights.expect(&usage, &[bins]);
                continue;
            }
            let mut book = weights.take(&sum, &[bins, width])?;
            let usage = weights.take(&usage, &[bins])?;
            for (entry, usage) in book.chunks_exact_mut(width).zip(usage) {
                entry.iter_mut().for_each(|x| *x /= usage.max(1e-5));
            }
            books.push(Aligned::copied(&book));
        }
        Ok(Self { input_proj, output_proj, books, bins, width, dimension: d })
    }

    /// Latents `[frames, dimension]` to codes `[frames, codebooks]`.
    pub fn encode(&self, kernels: &Kernels, scratch: &mut Scratch, latents: &[f32], codes: &mut [u32]) {
        let (width, bins) = (self.width, self.bins);
        let frames = latents.len() / self.dimension;
        let residuals = sized(&mut scratch.residuals, frames * 2 * width);
        kernels.product(latents, self.dimension, frames, &self.input_proj, Sink::Store(residuals));
        // `[bins / PIECE, frames, PIECE]`: a piece of the codebook is read once for all frames.
        let distances = sized(&mut scratch.distances, bins.div_ceil(PIECE) * frames * PIECE);
        for (k, book) in self.books.iter().enumerate() {
            let chain = if k == 0 { 0..width } else { width..2 * width };
            let residuals_now = &*residuals;
            kernels.pool().pieces(distances, frames * PIECE, |i, out| {
                let entries = &book[i * PIECE * width..((i + 1) * PIECE).min(bins) * width];
                for (out, residual) in out.chunks_exact_mut(PIECE).zip(residuals_now.chunks_exact(2 * width)) {
                    kernels.distances(&residual[chain.clone()], entries, out);
                }
            });
            for (frame, residual) in residuals.chunks_exact_mut(2 * width).enumerate() {
                let (mut nearest, mut least) = (0, f32::INFINITY);
                for entry in 0..bins {
                    let distance = distances[(entry / PIECE * frames + frame) * PIECE + entry % PIECE];
                    if distance < least {
                        (nearest, least) = (entry, distance);
                    }
                }
                codes[frame * self.books.len() + k] = nearest as u32;
                let entry = &book[nearest * width..(nearest + 1) * width];
                residual[chain.clone()].iter_mut().zip(entry).for_each(|(x, e)| *x -= e);
            }
        }
    }

    /// Codes `[frames, rows]`, all below `bins`, to latents `[frames, dimension]`.
    pub fn decode(&self, kernels: &Kernels, scratch: &mut Scratch, codes: &[u32], rows: usize, latents: &mut [f32]) {
        let width = self.width;
        let frames = codes.len() / rows;
        let sums = sized(&mut scratch.residuals, frames * 2 * width);
        sums.fill(0.0);
        for (codes, sums) in codes.chunks_exact(rows).zip(sums.chunks_exact_mut(2 * width)) {
            let (first, rest) = sums.split_at_mut(width);
            for (k, (code, book)) in codes.iter().zip(&self.books).enumerate() {
                let entry = &book[*code as usize * width..(*code as usize + 1) * width];
                let sum = if k == 0 { &mut *first } else { &mut *rest };
                sum.iter_mut().zip(entry).for_each(|(x, e)| *x += e);
            }
        }
        kernels.product(sums, 2 * width, frames, &self.output_proj, Sink::Store(latents));
    }
}
