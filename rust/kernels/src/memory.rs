//! Memory for packed weights.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// The size of a huge page on the usual systems.
const HUGE: usize = 2 << 20;

/// A multiple of the size of every page that Linux has on our processors.
#[cfg(target_os = "linux")]
const PAGE: usize = 64 << 10;

/// Zeroed at first; large ones lie in huge pages where the system has them to give: a step reads 150 MB of weights once
/// each, and with pages of 4 KB it spends a tenth of its time on looking up addresses.
#[derive(Debug)]
pub(crate) struct Aligned<T: Plain> {
    start: NonNull<T>,
    len: usize,
}

/// Types whose values may be all zero bits and need no dropping.
///
/// # Safety
/// Zero bits must be a value of the type, and it must not implement `Drop`.
pub(crate) unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

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
        let start = unsafe { if layout.size() >= HUGE { huge(layout) } else { alloc_zeroed(layout) } };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start: start.cast(), len }
    }
}

impl<T: Plain> Drop for Aligned<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() > 0 {
            let start = self.start.as_ptr().cast();
            // SAFETY: `zeroed` allocated it with the same layout, in the same way.
            unsafe { if layout.size() >= HUGE { free_huge(start, layout) } else { dealloc(start, layout) } };
        }
    }
}

/// Zeroed pages from the system, huge ones where it has them: nothing has to clear them again. Null if there are none.
///
/// # Safety
/// The size must not be 0.
#[cfg(target_os = "linux")]
unsafe fn huge(layout: Layout) -> *mut u8 {
    let Some(size) = mapped(layout) else { return std::ptr::null_mut() };
    let Some(room) = size.checked_add(HUGE) else { return std::ptr::null_mut() };
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping; what is cut off at its ends has never been used, and the rest begins at a huge page and is
    // `size` bytes long. The advice changes no contents; that it may be refused does not matter.
    unsafe {
        let mapping = libc::mmap(std::ptr::null_mut(), room, access, kind, -1, 0);
        if mapping == libc::MAP_FAILED {
            return std::ptr::null_mut();
        }
        let ahead = mapping.align_offset(HUGE);
        let start = mapping.byte_add(ahead);
        if ahead > 0 {
            libc::munmap(mapping, ahead);
        }
        let behind = HUGE - ahead;
        if behind > 0 {
            libc::munmap(start.byte_add(size), behind);
        }
        libc::madvise(start, size / HUGE * HUGE, libc::MADV_HUGEPAGE);
        start.cast()
    }
}

/// The layout's size in whole pages.
#[cfg(target_os = "linux")]
fn mapped(layout: Layout) -> Option<usize> {
    layout.size().checked_next_multiple_of(PAGE)
}

/// # Safety
/// `start` must be from [`huge`] with the same layout.
#[cfg(target_os = "linux")]
unsafe fn free_huge(start: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(start.cast(), mapped(layout).unwrap_or_default()) };
}

#[cfg(not(target_os = "linux"))]
use std::alloc::{alloc_zeroed as huge, dealloc as free_huge};

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
