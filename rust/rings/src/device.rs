//! The boundary to the sound device: the C callback and the state that belongs to it alone.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_ulong, c_void};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Capture, Playback};

/// PortAudio's `PaStreamCallback`: input, output, frame count, time, status flags, user data.
pub type StreamCallback =
    unsafe extern "C" fn(*const c_void, *mut c_void, c_ulong, *const c_void, c_ulong, *mut c_void) -> c_int;

const CONTINUE: c_int = 0; // paContinue
const INPUT_OVERFLOW: c_ulong = 2; // paInputOverflow
const OUTPUT_UNDERFLOW: c_ulong = 4; // paOutputUnderflow

/// State for one thread at a time. A second thread gets nothing instead of waiting.
pub struct Exclusive<T> {
    busy: AtomicBool,
    state: UnsafeCell<T>,
}

// SAFETY: `try_with` gives the state to one thread at a time.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    pub fn new(state: T) -> Self {
        Self { busy: AtomicBool::new(false), state: UnsafeCell::new(state) }
    }

    /// Runs `work` on the state, or gives None while another thread does.
    pub fn try_with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Option<R> {
        if self.busy.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: `busy` was false and is true now, so nobody else has a reference to the state.
        let result = work(unsafe { &mut *self.state.get() });
        self.busy.store(false, Ordering::Release);
        Some(result)
    }
}

/// The samples in a device's buffer, if it can be one.
fn samples_in(count: c_ulong, channels: usize) -> Option<usize> {
    let samples = usize::try_from(count).ok()?.checked_mul(channels)?;
    (samples <= isize::MAX as usize / size_of::<f32>()).then_some(samples)
}

/// Takes a device's input.
///
/// # Safety
///
/// `user` is null or points to a [`Capture`]; `input` is null or points to `count` times its channels float32 values.
pub unsafe extern "C" fn capture(
    input: *const c_void,
    _output: *mut c_void,
    count: c_ulong,
    _time: *const c_void,
    status: c_ulong,
    user: *mut c_void,
) -> c_int {
    // SAFETY: promised by the caller.
    if let Some(capture) = unsafe { user.cast::<Capture>().as_ref() } {
        let samples = match samples_in(count, capture.channels()) {
            // SAFETY: promised by the caller; the length was checked.
            Some(samples) if !input.is_null() => unsafe { slice::from_raw_parts(input.cast::<f32>(), samples) },
            _ => &[],
        };
        capture.take(samples, status & INPUT_OVERFLOW != 0);
    }
    CONTINUE
}

/// Fills a device's output.
///
/// # Safety
///
/// `user` is null or points to a [`Playback`]; `output` is null or points to room for `count` times its channels
/// float32 values.
pub unsafe extern "C" fn playback(
    _input: *const c_void,
    output: *mut c_void,
    count: c_ulong,
    _time: *const c_void,
    status: c_ulong,
    user: *mut c_void,
) -> c_int {
    // SAFETY: promised by the caller.
    if let Some(playback) = unsafe { user.cast::<Playback>().as_ref() } {
        let samples = match samples_in(count, playback.channels()) {
            Some(samples) if !output.is_null() => {
                // SAFETY: promised by the caller; the length was checked, and zeros make float32 of whatever was there.
                unsafe {
                    output.cast::<f32>().write_bytes(0, samples);
                    slice::from_raw_parts_mut(output.cast::<f32>(), samples)
                }
            }
            _ => &mut [],
        };
        playback.give(samples, status & OUTPUT_UNDERFLOW != 0);
    }
    CONTINUE
}

/// Calls the callback of `capture` as a device would.
pub fn feed(capture: &Capture, input: &[f32]) {
    let count = (input.len() / capture.channels()) as c_ulong;
    let user = ptr::from_ref(capture).cast_mut().cast();
    // SAFETY: `user` is a capture, which is only read, and `input` has that many samples of each channel.
    unsafe { self::capture(input.as_ptr().cast(), ptr::null_mut(), count, ptr::null(), 0, user) };
}

/// Calls the callback of `playback` as a device would.
pub fn render(playback: &Playback, output: &mut [f32]) {
    let count = (output.len() / playback.channels()) as c_ulong;
    let user = ptr::from_ref(playback).cast_mut().cast();
    // SAFETY: `user` is a playback, which is only read, and `output` has that many samples of each channel.
    unsafe { self::playback(ptr::null(), output.as_mut_ptr().cast(), count, ptr::null(), 0, user) };
}
