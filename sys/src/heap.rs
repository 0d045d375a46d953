//! An allocator for where the C library is musl: `dlmalloc` behind the lock of Rust's library.
//!
//! The lock that `dlmalloc` would bring along is musl's `pthread_mutex`, three calls for each use: two fifths of what a list
//! of jobs did in user space (docs/adr/0026).
//!
//! Invariant: the heap is touched by who holds its lock, and nobody allocates while he holds it.

use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::Dlmalloc;

/// The heap of a program, for `#[global_allocator]`.
#[derive(Debug)]
pub struct Heap(Mutex<Opaque>);

/// Without a word about what is in it.
struct Opaque(Dlmalloc);

impl std::fmt::Debug for Opaque {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dlmalloc")
    }
}

impl Heap {
    /// Nothing is asked of the kernel before the first use.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a program has one, in a static")]
    pub const fn new() -> Self {
        Self(Mutex::new(Opaque(Dlmalloc::new())))
    }

    /// A thread that panicked is none in which the heap was left half-changed: `dlmalloc` does not unwind.
    fn lock(&self) -> MutexGuard<'_, Opaque> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// SAFETY: GlobalAlloc wants what `malloc(3)` promises, of `dlmalloc`, which is used by one thread at a time; neither it nor
// the lock unwinds or allocates here.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout is the caller's, who promises that its size is not zero.
        unsafe { self.lock().0.malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the same.
        unsafe { self.lock().0.calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller promises that the block is of this heap and of this layout.
        unsafe { self.lock().0.free(block, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the same, and that the new size is not zero.
        unsafe { self.lock().0.realloc(block, layout.size(), layout.align(), size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static HEAP: Heap = Heap::new();

    struct Block(*mut u8, Layout);

    impl Block {
        fn zeroed(layout: Layout) -> Self {
            // SAFETY: no size here is zero.
            Self(unsafe { HEAP.alloc_zeroed(layout) }, layout)
        }

        fn grow(&mut self, size: usize) {
            // SAFETY: the block is of this heap and layout.
            self.0 = unsafe { HEAP.realloc(self.0, self.1, size) };
            self.1 = Layout::from_size_align(size, self.1.align()).unwrap();
        }

        /// The first bytes, which were zeroed or written.
        fn bytes(&mut self, length: usize) -> &mut [u8] {
            assert!(!self.0.is_null() && self.0.addr().is_multiple_of(self.1.align()) && length <= self.1.size());
            // SAFETY: the block has as many bytes, and this is the only way to them.
            unsafe { std::slice::from_raw_parts_mut(self.0, length) }
        }
    }

    impl Drop for Block {
        fn drop(&mut self) {
            // SAFETY: the block is of this heap and layout, and nobody has it any more.
            unsafe { HEAP.dealloc(self.0, self.1) }
        }
    }

    #[test]
    fn blocks_of_threads_are_apart_and_keep_what_is_in_them() {
        let work = |mark: u8| {
            for round in 1..2_000_usize {
                let layout = Layout::from_size_align(round % 700 + 1, 1 << (round % 8)).unwrap();
                let mut block = Block::zeroed(layout);
                assert!(block.bytes(layout.size()).iter().all(|byte| *byte == 0));
                block.bytes(layout.size()).fill(mark);
                let beside = Block::zeroed(layout);
                block.grow(layout.size() * 3);
                drop(beside);
                assert!(block.bytes(layout.size()).iter().all(|byte| *byte == mark));
            }
        };
        std::thread::scope(|scope| {
            for mark in 1..=4 {
                let _thread = scope.spawn(move || work(mark));
            }
        });
    }
}
