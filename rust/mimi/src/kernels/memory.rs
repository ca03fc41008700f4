//! Memory for packed weights.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// The size of a huge page on the usual systems.
const HUGE: usize = 2 << 20;

/// Zeroed at first; large ones lie in huge pages where the system has them to give: a step reads 150 MB of weights once
/// each, and with pages of 4 KB it spends a tenth of its time on looking up addresses.
#[derive(Debug)]
pub(super) struct Aligned<T: Plain> {
    start: NonNull<T>,
    len: usize,
}

/// Types whose values may be all zero bits and need no dropping.
///
/// # Safety
/// Zero bits must be a value of the type, and it must not implement `Drop`.
pub(super) unsafe trait Plain: Copy + Send + Sync {}

impl<T: Plain> Aligned<T> {
    fn layout(len: usize) -> Layout {
        let layout = Layout::array::<T>(len).expect("weights fit into memory");
        if layout.size() >= HUGE { layout.align_to(HUGE).expect("a power of two") } else { layout }
    }

    pub fn zeroed(len: usize) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return Self { start: NonNull::dangling(), len };
        }
        // SAFETY: the size is not 0.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if layout.size() >= HUGE {
            // SAFETY: the range is this allocation, whole huge pages of it; the advice changes no contents, and that it
            // may be refused does not matter.
            unsafe { libc::madvise(start.as_ptr().cast(), layout.size() / HUGE * HUGE, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: the range is this allocation. (`alloc_zeroed` would touch the pages before the advice.)
        unsafe { start.write_bytes(0, layout.size()) };
        Self { start: start.cast(), len }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() > 0 {
            // SAFETY: `zeroed` allocated it with the same layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Plain> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` made `len` values there, and zero bits are a value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and it is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

// SAFETY: it owns its values, as a `Box<[T]>` does.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Aligned<T> {}
