//! Noise suppression and automatic gain control: WebRTC's, as ported in the crates `sonora-ns` and `sonora-agc2`.

use sonora_agc2::adaptive_digital_gain_controller::{AdaptiveDigitalGainController, FrameInfo};
use sonora_agc2::common::{
    ADJACENT_SPEECH_FRAMES_THRESHOLD, SATURATION_PROTECTOR_INITIAL_HEADROOM_DB, float_s16_to_dbfs,
};
use sonora_agc2::limiter::Limiter;
use sonora_agc2::noise_level_estimator::NoiseLevelEstimator;
use sonora_agc2::saturation_protector::SaturationProtector;
use sonora_agc2::speech_level_estimator::{AdaptiveDigitalConfig, SpeechLevelEstimator};
use sonora_agc2::vad_wrapper::VoiceActivityDetectorWrapper;
use sonora_ns::config::NsConfig;
use sonora_ns::noise_suppressor::NoiseSuppressor;

use crate::{RATE, SCALE, sane};

/// The noise suppressor's block. Its one band is the whole of 0 to 12 kHz here, as the canceller's is.
const NOISE_BLOCK: usize = 160;
/// The gain control's block, 10 ms.
const GAIN_BLOCK: usize = RATE / 100;
/// Sound is processed by multiples of this many samples: whole blocks of both.
pub const ENHANCED: usize = 480;

/// Suppresses steady noise behind a voice, or brings every voice to the same level, or both; 24 kHz, mono.
pub struct Enhancer {
    noise: Option<NoiseSuppressor>,
    gain: Option<GainControl>,
}

struct GainControl {
    voice: VoiceActivityDetectorWrapper,
    level: SpeechLevelEstimator,
    noise: NoiseLevelEstimator,
    headroom: SaturationProtector,
    controller: AdaptiveDigitalGainController,
    limiter: Limiter,
}

impl Enhancer {
    /// An enhancer with noise suppression (by 12 dB at most), or gain control, or both.
    pub fn new(noise_suppression: bool, gain_control: bool) -> Self {
        Self {
            noise: noise_suppression.then(|| NoiseSuppressor::new(NsConfig::default())),
            gain: gain_control.then(GainControl::new),
        }
    }

    /// Forgets everything, as after a change of devices.
    pub fn reset(&mut self) {
        *self = Self::new(self.noise.is_some(), self.gain.is_some());
    }

    /// Processes sound in place. With noise suppression it comes out 96 samples late.
    ///
    /// # Panics
    ///
    /// Its length is not a multiple of [`ENHANCED`].
    pub fn process(&mut self, pcm: &mut [f32]) {
        assert!(pcm.len().is_multiple_of(ENHANCED), "whole blocks are expected");
        if self.noise.is_none() && self.gain.is_none() {
            return;
        }
        pcm.iter_mut().for_each(|sample| *sample = SCALE * sane(sample));
        if let Some(noise) = &mut self.noise {
            for block in pcm.as_chunks_mut::<NOISE_BLOCK>().0 {
                noise.analyze(block);
                noise.process(block);
            }
        }
        if let Some(gain) = &mut self.gain {
            pcm.chunks_exact_mut(GAIN_BLOCK).for_each(|block| gain.process(block));
        }
        pcm.iter_mut().for_each(|sample| *sample /= SCALE);
    }
}

impl GainControl {
    fn new() -> Self {
        let config = AdaptiveDigitalConfig::default();
        Self {
            voice: VoiceActivityDetectorWrapper::new(sonora_simd::detect_backend(), RATE as i32),
            level: SpeechLevelEstimator::new(&config, ADJACENT_SPEECH_FRAMES_THRESHOLD),
            noise: NoiseLevelEstimator::default(),
            headroom: SaturationProtector::new(
                SATURATION_PROTECTOR_INITIAL_HEADROOM_DB,
                ADJACENT_SPEECH_FRAMES_THRESHOLD,
            ),
            controller: AdaptiveDigitalGainController::new(config, ADJACENT_SPEECH_FRAMES_THRESHOLD),
            limiter: Limiter::new(GAIN_BLOCK),
        }
    }

    fn process(&mut self, frame: &mut [f32]) {
        let speech_probability = self.voice.analyze(frame);
        let peak = frame.iter().fold(0.0f32, |peak, sample| peak.max(sample.abs()));
        let power = frame.iter().map(|sample| sample * sample).sum::<f32>() / frame.len() as f32;
        let noise_rms_dbfs = self.noise.analyze(&[frame]);
        self.level.update(float_s16_to_dbfs(power.sqrt()), speech_probability);
        self.headroom.analyze(speech_probability, float_s16_to_dbfs(peak), self.level.level_dbfs());
        let info = FrameInfo {
            speech_probability,
            speech_level_dbfs: self.level.level_dbfs(),
            speech_level_reliable: self.level.is_confident(),
            noise_rms_dbfs,
            headroom_db: self.headroom.headroom_db(),
            limiter_envelope_dbfs: float_s16_to_dbfs(self.limiter.last_audio_level()),
        };
        self.controller.process(&info, &mut [frame]);
        self.limiter.process(&mut [frame]);
    }
}
