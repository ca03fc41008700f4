//! Released crates that cancel echoes, with the face that `echo_peers.cc` has: one of them, by the feature of its name.

use std::slice;

const RATE: usize = 24_000;
const BLOCK: usize = RATE / 100;

#[cfg(feature = "aec3")]
mod peer {
    use aec3::api::EchoCanceller3Config;
    use aec3::audio_processing::aec3::block::Block;
    use aec3::audio_processing::aec3::block_processor::BlockProcessor;

    const SIZE: usize = 64;
    const SCALE: f32 = 32_768.0;

    /// At 24 kHz in its one band, as ours is called; it finds the delay by itself.
    pub struct Peer {
        processor: BlockProcessor,
        render: Block,
        capture: Block,
    }

    impl Peer {
        pub fn new() -> Self {
            let processor = BlockProcessor::new(EchoCanceller3Config::default(), 16_000, 1, 1);
            Self { processor, render: Block::new(1, 1), capture: Block::new(1, 1) }
        }

        pub fn process(&mut self, heard: &[f32], played: &[f32], clean: &mut [f32]) {
            let blocks = heard.chunks_exact(SIZE).zip(played.chunks_exact(SIZE)).zip(clean.chunks_exact_mut(SIZE));
            for ((heard, played), clean) in blocks {
                for (to, from) in [(&mut self.capture, heard), (&mut self.render, played)] {
                    to.view_mut(0, 0).iter_mut().zip(from).for_each(|(to, from)| *to = SCALE * from);
                }
                self.processor.buffer_render(&self.render);
                self.processor.process_capture(false, false, None, &mut self.capture);
                clean.iter_mut().zip(self.capture.view(0, 0)).for_each(|(to, from)| *to = from / SCALE);
            }
        }
    }
}

#[cfg(feature = "sonora")]
mod peer {
    use sonora::{AudioProcessing, Config, StreamConfig, config::EchoCanceller};

    use super::{BLOCK, RATE};

    pub struct Peer(AudioProcessing);

    impl Peer {
        pub fn new() -> Self {
            let config = Config { echo_canceller: Some(EchoCanceller::default()), ..Config::default() };
            let stream = StreamConfig::new(RATE as u32, 1);
            Self(AudioProcessing::builder().config(config).capture_config(stream).render_config(stream).build())
        }

        pub fn process(&mut self, heard: &[f32], played: &[f32], clean: &mut [f32]) {
            let mut aside = [0.0; BLOCK];
            let blocks = heard.chunks_exact(BLOCK).zip(played.chunks_exact(BLOCK)).zip(clean.chunks_exact_mut(BLOCK));
            for ((heard, played), clean) in blocks {
                self.0.process_render_f32(&[played], &mut [&mut aside]).expect("the rate is as it was told");
                self.0.process_capture_f32(&[heard], &mut [clean]).expect("the rate is as it was told");
            }
        }
    }
}

use peer::Peer;

#[unsafe(no_mangle)]
pub extern "C" fn peer_new() -> *mut Peer {
    Box::into_raw(Box::new(Peer::new()))
}

/// # Safety
///
/// `peer` is of `peer_new`, and not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_delete(peer: *mut Peer) {
    // SAFETY: as said above.
    drop(unsafe { Box::from_raw(peer) });
}

/// # Safety
///
/// `peer` is of `peer_new`; the others have 240 samples for each of `blocks`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peer_process(
    peer: *mut Peer,
    heard: *const f32,
    played: *const f32,
    clean: *mut f32,
    blocks: i32,
    _delay: i32,
) {
    let length = blocks as usize * BLOCK;
    // SAFETY: as said above.
    unsafe {
        let clean = slice::from_raw_parts_mut(clean, length);
        (*peer).process(slice::from_raw_parts(heard, length), slice::from_raw_parts(played, length), clean);
    }
}
