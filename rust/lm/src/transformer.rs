//! A layer of either transformer: attention, perhaps to a source, too, and a gated feed-forward.

use kernels::{Into, Kernels};

use crate::error::{Error, Result};
use crate::linear::{Linear, Products};
use crate::source::{Progress, Source};

/// What RMS norms add to the mean of squares.
pub(crate) const NORM_EPS: f32 = 1e-8;

/// How a row of attention is cut into heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Heads of queries.
    pub count: usize,
    /// Numbers of a head.
    pub dim: usize,
    /// Heads of queries that share one of keys and values.
    pub group: usize,
}

impl Heads {
    /// Heads of keys, and of values.
    pub fn shared(&self) -> usize {
        self.count / self.group
    }

    /// Numbers of all queries.
    pub fn queries(&self) -> usize {
        self.count * self.dim
    }

    /// Numbers of all keys, and of all values.
    pub fn keys(&self) -> usize {
        self.shared() * self.dim
    }

    /// Numbers of a projected row: queries, keys, values.
    pub fn width(&self) -> usize {
        self.queries() + 2 * self.keys()
    }
}

/// Attention to a source.
#[derive(Debug)]
pub(crate) struct CrossAttention {
    pub norm_weight: Vec<f32>,
    pub norm_bias: Vec<f32>,
    pub queries: Linear,
    /// Keys, then values: used once a conversation.
    pub keys_values: Linear,
    pub out: Linear,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub norm1: Vec<f32>,
    pub in_proj: Linear,
    pub out_proj: Linear,
    pub cross: Option<CrossAttention>,
    pub norm2: Vec<f32>,
    pub gate_in: Linear,
    pub gate_out: Linear,
    /// The width of the feed-forward.
    pub hidden: usize,
}

impl Layer {
    pub fn load(
        source: &mut Source,
        name: &str,
        dim: usize,
        heads: Heads,
        cross: bool,
        kernels: &Kernels,
        progress: Progress<'_>,
    ) -> Result<Self> {
        let gate = format!("{name}.gating.linear_in");
        // Only the file knows the width of the feed-forward.
        let Some(rows) = source.rows_of(&gate) else { return Err(Error::weight(&gate, "is missing")) };
        let hidden = rows / 2;
        if rows == 0 || rows % 2 == 1 {
            return Err(Error::weight(&gate, format!("has {rows} rows; an even number is expected")));
        }
        let cross = if cross {
            let part = |what: &str| format!("{name}.{what}");
            let projection = source.take(&part("cross_attention.in_proj"), 3 * dim, dim)?;
            Some(CrossAttention {
                norm_weight: source.vector(&part("norm_cross"), dim, progress)?,
                norm_bias: source.vector(&part("norm_cross.bias"), dim, progress)?,
                queries: Linear::read(source, &projection.part(0, dim), kernels, progress)?,
                keys_values: Linear::read(source, &projection.part(dim, 2 * dim), kernels, progress)?,
                out: Linear::load(source, &part("cross_attention.out_proj"), dim, dim, kernels, progress)?,
            })
        } else {
            None
        };
        let norm1 = source.vector(&format!("{name}.norm1"), dim, progress)?;
        let norm2 = source.vector(&format!("{name}.norm2"), dim, progress)?;
        let mut linear = |part: &str, outputs: usize, inputs: usize| {
            Linear::load(source, &format!("{name}.{part}"), outputs, inputs, kernels, progress)
        };
        Ok(Self {
            in_proj: linear("self_attn.in_proj", heads.width(), dim)?,
            out_proj: linear("self_attn.out_proj", dim, heads.queries())?,
            gate_in: linear("gating.linear_in", 2 * hidden, dim)?,
            gate_out: linear("gating.linear_out", dim, hidden)?,
            norm1,
            norm2,
            cross,
            hidden,
        })
    }

    /// The bytes of its weights.
    pub fn bytes(&self) -> usize {
        self.step_bytes() + self.cross.as_ref().map_or(0, |cross| cross.keys_values.bytes())
    }

    /// The bytes that a step reads.
    pub fn step_bytes(&self) -> usize {
        let cross = self.cross.as_ref().map_or(0, |cross| {
            let norm = size_of_val(&*cross.norm_weight) + size_of_val(&*cross.norm_bias);
            cross.queries.bytes() + cross.out.bytes() + norm
        });
        let norms = size_of_val(&*self.norm1) + size_of_val(&*self.norm2);
        self.in_proj.bytes() + self.out_proj.bytes() + self.gate_in.bytes() + self.gate_out.bytes() + norms + cross
    }
}

/// Room for what a layer computes, for some rows.
#[derive(Debug)]
pub(crate) struct Room {
    pub products: Products,
    pub normed: Vec<f32>,
    pub projected: Vec<f32>,
    pub attended: Vec<f32>,
    wide: Vec<f32>,
    gated: Vec<f32>,
}

impl Room {
    pub fn new(products: Products, rows: usize, dim: usize, heads: Heads, hidden: usize) -> Self {
        let room = |width: usize| vec![0.0; rows * width];
        Self {
            products,
            normed: room(dim),
            projected: room(heads.width()),
            attended: room(heads.queries()),
            wide: room(2 * hidden),
            gated: room(hidden),
        }
    }

    /// `projected = in_proj(norm1(x))`, for rows `[rows, dim]`.
    pub fn project(&mut self, kernels: &Kernels, layer: &Layer, x: &[f32], dim: usize) {
        let rows = x.len() / dim;
        let normed = &mut self.normed[..x.len()];
        kernels.rms_norm(x, &layer.norm1, NORM_EPS, normed);
        let projected = &mut self.projected[..rows * layer.in_proj.outputs()];
        self.products.apply(kernels, &layer.in_proj, normed, Into::Store(projected));
    }

    /// `x += out_proj(attended)`.
    pub fn add_attended(&mut self, kernels: &Kernels, layer: &Layer, x: &mut [f32], dim: usize, heads: Heads) {
        let attended = &self.attended[..x.len() / dim * heads.queries()];
        self.products.apply(kernels, &layer.out_proj, attended, Into::Add(x));
    }

    /// `x += linear_out(silu(a) · b)`, where `a, b` are the halves of `linear_in(norm2(x))`.
    pub fn feed_forward(&mut self, kernels: &Kernels, layer: &Layer, x: &mut [f32], dim: usize) {
        let rows = x.len() / dim;
        let normed = &mut self.normed[..x.len()];
        kernels.rms_norm(x, &layer.norm2, NORM_EPS, normed);
        let (wide, gated) = (&mut self.wide[..rows * 2 * layer.hidden], &mut self.gated[..rows * layer.hidden]);
        self.products.apply(kernels, &layer.gate_in, normed, Into::Store(wide));
        kernels.gate(wide, layer.hidden, gated);
        self.products.apply(kernels, &layer.gate_out, gated, Into::Add(x));
    }
}
