//! The buffers between a sound device and the rest of the program, with the policy of their delay.
//!
//! ```text
//! Capture   device ─▶ callback (Mixer of the channels) ─▶ ring ─▶ Source (Resampler, places) ─▶ 24 kHz
//! Playback  24 kHz ─▶ Mouth (Resampler) ─▶ write (splices) ─▶ ring ─▶ callback (cushion, fades, all channels) ─▶ device
//!                                                                        └─▶ Reference: what was played meanwhile, 24 kHz
//! ```
//!
//! Sound is mono float32; in the rings it has the device's rate. A callback is a C function that PortAudio calls on a thread that
//! must never wait. So it copies, mixes, counts and reads the monotonic clock for the statistics, and does nothing else.
//! The thread at the other end of the ring does all work that takes time or memory. Decisions depend only on counts of
//! samples, so the same calls with the same samples always give the same sound.

#![deny(unsafe_code)]

mod blend;
mod capture;
#[allow(unsafe_code)]
mod device;
mod gauge;
mod mixer;
mod mouth;
mod playback;
mod reference;
mod resample;
mod ring;
mod source;

use std::num::NonZeroUsize;

pub use capture::{Capture, CaptureStats};
pub use device::StreamCallback;
pub use mixer::Mixer;
pub use mouth::Mouth;
pub use playback::{Playback, PlaybackStats};
pub use reference::Reference;
pub use resample::Resampler;
pub use source::{Source, Taken};

/// The rate of the sound that a [`Source`], a [`Reference`] and a [`Mouth`] give and take, in samples per second.
pub const RATE: usize = 24_000;

/// The length of a fade, a crossfade included, in samples: 5 ms.
fn fade_length(rate: usize) -> usize {
    (rate / 200).max(1)
}

/// Checks a rate and a number of channels.
fn checked(rate: usize, channels: usize) -> Result<NonZeroUsize, String> {
    if !(1_000..=1_000_000).contains(&rate) {
        return Err(format!("rate is {rate}, but 1000 to 1000000 samples per second are expected."));
    }
    let Some(channels) = NonZeroUsize::new(channels).filter(|channels| channels.get() <= 1024) else {
        return Err(format!("channels is {channels}, but 1 to 1024 are expected."));
    };
    Ok(channels)
}

/// Checks how long a ring is to be, and gives its capacity in samples.
fn capacity(rate: usize, seconds: f64) -> Result<usize, String> {
    if !(0.1..=600.0).contains(&seconds) {
        return Err(format!("seconds is {seconds}, but 0.1 to 600 are expected."));
    }
    Ok((seconds * rate as f64).ceil() as usize)
}
