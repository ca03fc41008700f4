//! Opus packets (RFC 6716): sound to bytes, and back, one packet at a time.
//!
//! libopus computes, in its form in Rust, so nothing has to be installed. This is the safe side of it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use unsafe_libopus as unsafe_opus;

/// Most samples of a packet in each channel: 120 ms at 48 kHz.
const MOST_SAMPLES: usize = 5760;

/// Most bytes of a packet that is written: more than any bitrate needs for 120 ms.
const MOST_BYTES: usize = 8 << 10;

/// What cannot be coded, in a sentence.
#[derive(Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Sound of one channel to packets, with the least delay: 2.5 ms.
#[derive(Debug)]
pub struct Encoder(NonNull<unsafe_opus::OpusEncoder>);

// SAFETY: the state is its own memory, and nothing else points into it.
unsafe impl Send for Encoder {}

impl Encoder {
    /// An encoder of sound at `rate` Hz to `bitrate` bits a second on average. `complexity`, 0 to 10, is how much it computes.
    ///
    /// # Errors
    /// Opus does not have such a rate, bitrate or complexity.
    pub fn new(rate: i32, bitrate: i32, complexity: i32) -> Result<Self, Error> {
        let mut status = 0;
        // SAFETY: it checks its arguments, and `status` is written.
        let state = unsafe {
            unsafe_opus::opus_encoder_create(rate, 1, unsafe_opus::OPUS_APPLICATION_RESTRICTED_LOWDELAY, &mut status)
        };
        let Some(state) = NonNull::new(state) else { return Err(refused("the sample rate", rate, status)) };
        let new = Self(state);
        for (what, request, value) in [
            ("the bitrate", unsafe_opus::OPUS_SET_BITRATE_REQUEST, bitrate),
            ("the complexity", unsafe_opus::OPUS_SET_COMPLEXITY_REQUEST, complexity),
        ] {
            // SAFETY: the state is an encoder's, and both requests take one integer.
            let status = unsafe { unsafe_opus::opus_encoder_ctl!(state.as_ptr(), request, value) };
            if status != unsafe_opus::OPUS_OK {
                return Err(refused(what, value, status));
            }
        }
        Ok(new)
    }

    /// How many samples the decoded sound is late.
    pub fn delay(&self) -> usize {
        let mut samples = 0;
        // SAFETY: the state is an encoder's, and the request writes one integer.
        unsafe {
            unsafe_opus::opus_encoder_ctl!(self.0.as_ptr(), unsafe_opus::OPUS_GET_LOOKAHEAD_REQUEST, &mut samples)
        };
        samples as usize
    }

    /// Encodes a packet of 2.5, 5, 10, 20, 40, 60, 80, 100 or 120 ms. What is louder than full scale is cut off: Opus can
    /// hold it, but some decoders let it wrap around.
    ///
    /// # Errors
    /// It has another length.
    pub fn encode(&mut self, pcm: &[f32]) -> Result<Vec<u8>, Error> {
        let pcm: Vec<f32> = pcm.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let mut packet = vec![0; MOST_BYTES];
        let size = pcm.len().min(i32::MAX as usize) as i32;
        // SAFETY: the state is an encoder's; it reads `size` samples, which it checks, and writes at most `MOST_BYTES`.
        let size = unsafe {
            unsafe_opus::opus_encode_float(self.0.as_ptr(), pcm.as_ptr(), size, packet.as_mut_ptr(), MOST_BYTES as i32)
        };
        if size < 0 {
            return Err(refused("a packet of so many samples", pcm.len() as i32, size));
        }
        packet.truncate(size as usize);
        Ok(packet)
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        // SAFETY: it was created, and is destroyed once.
        unsafe { unsafe_opus::opus_encoder_destroy(self.0.as_ptr()) };
    }
}

/// Packets to sound of one channel or two.
#[derive(Debug)]
pub struct Decoder {
    state: NonNull<unsafe_opus::OpusDecoder>,
    rate: i32,
    channels: usize,
}

// SAFETY: as for the encoder.
unsafe impl Send for Decoder {}

impl Decoder {
    /// A decoder to sound at `rate` Hz.
    ///
    /// # Errors
    /// Opus does not have such a rate, or so many channels.
    pub fn new(rate: i32, channels: usize) -> Result<Self, Error> {
        Ok(Self { state: decoder(rate, channels)?, rate, channels })
    }

    /// Decodes a packet, and returns its samples in [-1, 1], those of the channels in turns.
    ///
    /// # Errors
    /// It is not a packet of Opus. The next one can be decoded.
    pub fn decode(&mut self, packet: &[u8]) -> Result<Vec<f32>, Error> {
        let broken = || Error("Opus cannot decode this packet.".into());
        if packet.is_empty() || packet.len() > i32::MAX as usize {
            return Err(broken()); // an empty one would ask for sound in place of what is lost
        }
        let mut pcm = vec![0.0; MOST_SAMPLES * self.channels];
        // SAFETY: the state is a decoder's; it reads the packet, and writes at most so many samples for each channel.
        let decode = || unsafe {
            let size = packet.len() as i32;
            unsafe_opus::opus_decode_float(
                self.state.as_ptr(),
                packet.as_ptr(),
                size,
                pcm.as_mut_ptr(),
                MOST_SAMPLES as i32,
                0,
            )
        };
        match catch_unwind(AssertUnwindSafe(decode)) {
            Ok(samples) if samples >= 0 => {
                pcm.truncate(samples as usize * self.channels);
                pcm.iter_mut().for_each(|x| *x = if x.is_nan() { 0.0 } else { x.clamp(-1.0, 1.0) });
                Ok(pcm)
            }
            Ok(_) => Err(broken()),
            Err(_) => {
                // A check inside has failed, perhaps in the middle of its work.
                let new = decoder(self.rate, self.channels)?;
                // SAFETY: it was created, and is not used any more.
                unsafe { unsafe_opus::opus_decoder_destroy(self.state.as_ptr()) };
                self.state = new;
                Err(broken())
            }
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: it was created, and is destroyed once.
        unsafe { unsafe_opus::opus_decoder_destroy(self.state.as_ptr()) };
    }
}

fn decoder(rate: i32, channels: usize) -> Result<NonNull<unsafe_opus::OpusDecoder>, Error> {
    if !(1..=2).contains(&channels) {
        return Err(Error(format!("Opus has 1 or 2 channels, not {channels}.")));
    }
    let mut status = 0;
    // SAFETY: it checks its arguments, and `status` is written.
    let state = unsafe { unsafe_opus::opus_decoder_create(rate, channels as i32, &mut status) };
    NonNull::new(state).ok_or_else(|| refused("the sample rate", rate, status))
}

fn refused(what: &str, value: i32, status: i32) -> Error {
    Error(format!("Opus does not take {value} as {what} ({status})."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: i32 = 24_000;
    const PACKET: usize = 960;

    fn tone(samples: usize) -> Vec<f32> {
        (0..samples).map(|i| 0.5 * (i as f32 * 0.1).sin()).collect()
    }

    fn packets(bitrate: i32) -> Vec<Vec<u8>> {
        let mut encoder = Encoder::new(RATE, bitrate, 5).unwrap();
        tone(50 * PACKET).chunks(PACKET).map(|pcm| encoder.encode(pcm).unwrap()).collect()
    }

    #[test]
    fn sound_comes_back() {
        let delay = Encoder::new(RATE, 48_000, 5).unwrap().delay();
        assert_eq!(delay, 60);
        let mut decoder = Decoder::new(RATE, 1).unwrap();
        let heard: Vec<f32> = packets(48_000).iter().flat_map(|packet| decoder.decode(packet).unwrap()).collect();
        let said = tone(50 * PACKET);
        assert_eq!(heard.len(), said.len());
        let (said, heard) = (&said[PACKET..said.len() - delay], &heard[PACKET + delay..]);
        let noise: f32 = said.iter().zip(heard).map(|(a, b)| (a - b) * (a - b)).sum();
        let power: f32 = said.iter().map(|a| a * a).sum();
        assert!(noise < 0.01 * power, "{}", noise / power);
    }

    #[test]
    fn the_bitrate_is_kept() {
        for bitrate in [16_000, 48_000] {
            let bytes: usize = packets(bitrate).iter().map(Vec::len).sum();
            let seconds = 50.0 * PACKET as f32 / RATE as f32;
            let part = bytes as f32 * 8.0 / seconds / bitrate as f32;
            assert!((0.5..1.2).contains(&part), "{part} of {bitrate}");
        }
    }

    #[test]
    fn wrong_arguments_are_refused() {
        assert!(Encoder::new(44_100, 48_000, 5).is_err());
        assert!(Encoder::new(RATE, 48_000, 11).is_err());
        assert!(Encoder::new(RATE, 0, 5).is_err());
        assert!(Decoder::new(44_100, 1).is_err());
        assert!(Decoder::new(RATE, 0).is_err());
        assert!(Decoder::new(RATE, usize::MAX).is_err());
        assert!(Encoder::new(RATE, 48_000, 5).unwrap().encode(&[0.0; 961]).is_err());
        assert!(Encoder::new(RATE, 48_000, 5).unwrap().encode(&[]).is_err());
    }

    #[test]
    fn damaged_packets_are_refused_or_heard() {
        let mut random = fastrand::Rng::with_seed(7);
        let good = packets(48_000);
        for channels in [1, 2] {
            let mut decoder = Decoder::new(RATE, channels).unwrap();
            assert!(decoder.decode(&[]).is_err());
            for round in 0..3000 {
                let mut packet = good[random.usize(..good.len())].clone();
                for _ in 0..random.usize(1..20) {
                    let at = random.usize(..packet.len());
                    packet[at] = random.u8(..);
                }
                packet.truncate(random.usize(1..=packet.len()));
                if round % 3 == 0 {
                    packet = (0..random.usize(1..400)).map(|_| random.u8(..)).collect();
                }
                if let Ok(pcm) = decoder.decode(&packet) {
                    assert!(pcm.len() <= MOST_SAMPLES * channels && pcm.len().is_multiple_of(channels));
                }
            }
            assert_eq!(decoder.decode(&good[0]).unwrap().len(), PACKET * channels);
        }
    }

    #[test]
    fn hostile_numbers_do_not_stop_it() {
        let mut encoder = Encoder::new(RATE, 48_000, 5).unwrap();
        let mut decoder = Decoder::new(RATE, 1).unwrap();
        for value in [f32::NAN, f32::INFINITY, 1e30, -1e-40] {
            let packet = encoder.encode(&[value; PACKET]).unwrap();
            let heard = decoder.decode(&packet).unwrap();
            assert_eq!(heard.len(), PACKET);
            assert!(heard.iter().all(|x| (-1.0..=1.0).contains(x)));
        }
    }
}
