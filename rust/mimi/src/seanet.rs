//! The convolutional encoder and decoder.

use kernels::{Activation, Kernels, Sink};

use crate::config::Config;
use crate::conv::{Conv, History};
use crate::error::Result;
use crate::scratch::sized;
use crate::weights::Weights;

/// `x + conv1(ELU(conv3(ELU(x))))`; its caller applies the first ELU, and gets the ELU of the result.
#[derive(Debug)]
struct Residual {
    narrow: Conv,
    widen: Conv,
}

impl Residual {
    fn load(weights: &mut Weights, name: &str, channels: usize, config: &Config) -> Result<Self> {
        let inner = channels / config.compress;
        let narrow = [channels, inner, config.residual_kernel_size, 1];
        Ok(Self {
            narrow: Conv::load(weights, &format!("{name}.block.1.conv.conv"), narrow, true)?,
            widen: Conv::load(weights, &format!("{name}.block.3.conv.conv"), [inner, channels, 1, 1], true)?,
        })
    }

    /// `raw` holds `steps` steps before the ELU, `input` the same after it.
    fn run(
        &self,
        kernels: &Kernels,
        input: &mut History,
        raw: &[f32],
        inner: &mut Vec<f32>,
        steps: usize,
        out: &mut [f32],
    ) {
        let inner = sized(inner, self.narrow.output_len(steps));
        self.narrow.run(kernels, input, steps, Sink::Act(Activation::Elu, inner));
        self.widen.run_pointwise(kernels, inner, steps, Sink::AddAct(raw, Activation::Elu, out));
    }
}

/// Audio `[samples]` to rows `[samples / (frame size / 2), dimension]`.
#[derive(Debug)]
pub(crate) struct Encoder {
    first: Conv,
    /// A residual block and the strided convolution behind it.
    stages: Vec<(Residual, Conv)>,
    last: Conv,
}

/// A stream through a stack: the inputs of its convolutions and working memory.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// Of the first convolution; its fresh steps are where the caller puts the input.
    pub input: History,
    /// Per stage: of the residual block and of the resampling convolution.
    stages: Vec<(History, History)>,
    /// Of the last convolution.
    last: History,
    raw: Vec<f32>,
    inner: Vec<f32>,
}

impl State {
    pub fn reset(&mut self) {
        self.input.reset();
        self.last.reset();
        for (block, resample) in &mut self.stages {
            block.reset();
            resample.reset();
        }
    }
}

impl Encoder {
    pub fn load(weights: &mut Weights, config: &Config) -> Result<Self> {
        let conv = |weights: &mut Weights, index: usize, shape: [usize; 4]| {
            Conv::load(weights, &format!("encoder.model.{index}.conv.conv"), shape, true)
        };
        let mut channels = config.n_filters;
        let first = conv(weights, 0, [config.channels, channels, config.kernel_size, 1])?;
        let mut stages = Vec::new();
        let mut index = 1;
        for &stride in config.ratios.iter().rev() {
            let block = Residual::load(weights, &format!("encoder.model.{index}"), channels, config)?;
            let down = conv(weights, index + 2, [channels, 2 * channels, 2 * stride, stride])?;
            stages.push((block, down));
            index += 3;
            channels *= 2;
        }
        let last = conv(weights, index + 1, [channels, config.dimension, config.last_kernel_size, 1])?;
        Ok(Self { first, stages, last })
    }

    pub fn state(&self) -> State {
        State {
            input: self.first.history(),
            stages: self.stages.iter().map(|(block, down)| (block.narrow.history(), down.history())).collect(),
            last: self.last.history(),
            raw: Vec::new(),
            inner: Vec::new(),
        }
    }

    /// Encodes the fresh samples of `state.input` into `out`, row by row.
    pub fn run(&self, kernels: &Kernels, state: &mut State, samples: usize, out: &mut [f32]) {
        let State { input, stages, last, raw, inner } = state;
        let mut conv = &self.first;
        let mut from = input;
        let mut steps = samples;
        for ((block, down), (block_input, down_input)) in self.stages.iter().zip(stages) {
            // The convolution before the block writes its result as it is and after the block's first ELU.
            let taken = steps;
            steps /= conv.stride();
            let raw = sized(raw, steps * block.narrow.inputs());
            conv.run(kernels, from, taken, Sink::StoreAct(raw, Activation::Elu, block_input.fresh(steps)));
            block.run(kernels, block_input, raw, inner, steps, down_input.fresh(steps));
            conv = down;
            from = down_input;
        }
        let taken = steps;
        steps /= conv.stride();
        conv.run(kernels, from, taken, Sink::Act(Activation::Elu, last.fresh(steps)));
        self.last.run(kernels, last, steps, Sink::Store(out));
    }
}

/// Rows `[steps, dimension]` to audio `[steps × frame size / 2]`.
#[derive(Debug)]
pub(crate) struct Decoder {
    first: Conv,
    /// The transposed convolution, its stride and the residual block behind it.
    stages: Vec<(Conv, usize, Residual)>,
    last: Conv,
}

impl Decoder {
    pub fn load(weights: &mut Weights, config: &Config) -> Result<Self> {
        let mut channels = config.deepest();
        let first = [config.dimension, channels, config.kernel_size, 1];
        let first = Conv::load(weights, "decoder.model.0.conv.conv", first, true)?;
        let mut stages = Vec::new();
        let mut index = 2;
        for &stride in &config.ratios {
            let name = format!("decoder.model.{index}.convtr.convtr");
            let up = Conv::load_transposed(weights, &name, [channels, channels / 2, stride])?;
            channels /= 2;
            let block = Residual::load(weights, &format!("decoder.model.{}", index + 1), channels, config)?;
            stages.push((up, stride, block));
            index += 3;
        }
        let last = [channels, config.channels, config.last_kernel_size, 1];
        let last = Conv::load(weights, &format!("decoder.model.{index}.conv.conv"), last, true)?;
        Ok(Self { first, stages, last })
    }

    pub fn state(&self) -> State {
        State {
            input: self.first.history(),
            stages: self.stages.iter().map(|(up, _, block)| (block.narrow.history(), up.history())).collect(),
            last: self.last.history(),
            raw: Vec::new(),
            inner: Vec::new(),
        }
    }

    /// Decodes the fresh rows of `state.input` into `out`.
    pub fn run(&self, kernels: &Kernels, state: &mut State, mut steps: usize, out: &mut [f32]) {
        let State { input, stages, last, raw, inner } = state;
        for (i, (up, stride, block)) in self.stages.iter().enumerate() {
            if i == 0 {
                let target = stages[0].1.fresh(steps);
                self.first.run(kernels, input, steps, Sink::Act(Activation::Elu, target));
            }
            let (here, later) = stages[i..].split_at_mut(1);
            let (block_input, up_input) = &mut here[0];
            let taken = steps;
            steps *= stride;
            let raw = sized(raw, up.output_len(taken));
            up.run(kernels, up_input, taken, Sink::StoreAct(raw, Activation::Elu, block_input.fresh(steps)));
            let next = later.first_mut().map_or(&mut *last, |(_, up_input)| up_input);
            block.run(kernels, block_input, raw, inner, steps, next.fresh(steps));
        }
        self.last.run(kernels, last, steps, Sink::Store(out));
    }
}
