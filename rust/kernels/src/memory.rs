//! Memory for weights and for the state of streams.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

/// The size of a huge page on the usual systems.
const HUGE: usize = 2 << 20;

/// A multiple of the size of every page that Linux has on our processors.
#[cfg(target_os = "linux")]
const PAGE: usize = 64 << 10;

/// Less than this is not worth a place beside others.
const SMALL: usize = 1 << 10;

/// What a thread asks the system for when it needs a place for something smaller; pages that are not used are not there.
const REGION: usize = 32 << 20;

/// Where the places in a region begin: at a cache line, two of which are fetched together.
const PLACE: usize = 128;

/// Values in memory that is zeroed at first. Large ones lie in huge pages where the system has them to give: a step
/// reads 150 MB of weights once each, and with pages of 4 KB it spends a tenth of its time on looking up addresses.
#[derive(Debug)]
pub struct Aligned<T: Plain> {
    start: NonNull<T>,
    len: usize,
    /// What it lies in; none if that is empty.
    _region: Option<Arc<Region>>,
}

/// Types whose values may be all zero bits and need no dropping.
///
/// # Safety
/// Zero bits must be a value of the type, it must not implement `Drop`, and it must need no larger alignment than 64.
pub unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: numbers.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

impl<T: Plain> Aligned<T> {
    fn bytes(len: usize) -> usize {
        Layout::array::<T>(len).expect("numbers fit into memory").size()
    }

    fn empty() -> Self {
        Self { start: NonNull::dangling(), len: 0, _region: None }
    }

    /// Zeros, in memory of their own: it is given back when they are dropped.
    pub fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).unwrap_or_else(|| handle_alloc_error(Layout::new::<T>()))
    }

    /// The same; none if the system does not have so much.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let bytes = Layout::array::<T>(len).ok()?.size();
        if bytes == 0 {
            return Some(Self { len, ..Self::empty() });
        }
        let region = Arc::new(Region::try_new(bytes)?);
        Some(Self { start: region.start.cast(), len, _region: Some(region) })
    }

    /// Zeros beside those that the same thread has made before, in the same huge pages: for the many parts of a model.
    /// The memory is given back when the last of them is dropped.
    pub fn beside(len: usize) -> Self {
        let bytes = Self::bytes(len);
        if bytes < SMALL {
            return Self::zeroed(len);
        }
        let (start, region) = REST.with_borrow_mut(|rest| rest.take(bytes));
        Self { start: start.cast(), len, _region: Some(region) }
    }

    /// A copy of `values`, [`beside`](Self::beside) others.
    pub fn copied(values: &[T]) -> Self {
        let mut copy = Self::beside(values.len());
        copy.copy_from_slice(values);
        copy
    }
}

/// The last region of a thread, as far as it is not used.
#[derive(Default)]
struct Rest {
    region: Weak<Region>,
    used: usize,
}

thread_local! {
    static REST: RefCell<Rest> = RefCell::default();
}

impl Rest {
    /// A place of `bytes` bytes that nobody has had.
    fn take(&mut self, bytes: usize) -> (NonNull<u8>, Arc<Region>) {
        let size = bytes.next_multiple_of(PLACE);
        let region = match self.region.upgrade().filter(|region| size <= region.layout.size() - self.used) {
            Some(region) => region,
            None => {
                let region = Arc::new(Region::new(size.max(REGION)));
                *self = Self { region: Arc::downgrade(&region), used: 0 };
                region
            }
        };
        // SAFETY: the place lies within the region.
        let start = unsafe { region.start.add(self.used) };
        self.used += size;
        (start, region)
    }
}

/// Zeroed memory from the system.
#[derive(Debug)]
struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

impl Region {
    /// `bytes` must not be 0.
    fn new(bytes: usize) -> Self {
        Self::try_new(bytes).unwrap_or_else(|| handle_alloc_error(Layout::new::<u8>()))
    }

    /// None if the system does not have so much.
    fn try_new(bytes: usize) -> Option<Self> {
        let align = if bytes >= HUGE { HUGE } else { PLACE };
        let layout = Layout::from_size_align(bytes, align).ok()?;
        // SAFETY: the size is not 0.
        let start = unsafe { if bytes >= HUGE { huge(layout) } else { alloc_zeroed(layout) } };
        Some(Self { start: NonNull::new(start)?, layout })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let start = self.start.as_ptr();
        // SAFETY: `try_new` allocated it with the same layout, in the same way.
        unsafe { if self.layout.size() >= HUGE { free_huge(start, self.layout) } else { dealloc(start, self.layout) } };
    }
}

// SAFETY: it only owns the memory; who has a place in it has that alone.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

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
        // SAFETY: `len` values are there, this one's alone, and zero bits are a value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and it is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> Clone for Aligned<T> {
    /// A copy in memory of its own.
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.copy_from_slice(self);
        copy
    }
}

// SAFETY: it owns its values, as a `Box<[T]>` does.
unsafe impl<T: Plain> Send for Aligned<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Aligned<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_system_has_is_refused() {
        assert!(Aligned::<f32>::try_zeroed(usize::MAX / 2).is_none());
        assert!(Aligned::<f32>::try_zeroed(1 << 59).is_none());
        assert!(Aligned::<f32>::try_zeroed(0).is_some_and(|none| none.is_empty()));
    }

    #[test]
    fn places_do_not_overlap_and_outlive_their_thread() {
        let numbers = std::thread::spawn(|| {
            let sizes = [SMALL / 4, 1, 3 << 20, 0, 5, HUGE, 1_000_003, 9 << 20, SMALL / 4 + 1, 17];
            let mut all: Vec<Aligned<f32>> = sizes.iter().map(|len| Aligned::beside(*len)).collect();
            for (i, numbers) in all.iter_mut().enumerate() {
                assert_eq!(numbers.len(), sizes[i]);
                assert!(numbers.is_empty() || numbers.as_ptr().addr().is_multiple_of(64));
                assert!(numbers.iter().all(|x| *x == 0.0), "{i} is not zeroed");
                numbers.fill(i as f32 + 1.0);
            }
            all.drain(2..4);
            all.push(Aligned::copied(&all[3]));
            all
        });
        let numbers = numbers.join().unwrap();
        for (numbers, value) in numbers.iter().zip([1.0, 2.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 6.0]) {
            assert!(numbers.iter().all(|x| *x == value), "{value}");
        }
        assert_eq!(*numbers[4].clone(), *numbers[4]);
    }
}
