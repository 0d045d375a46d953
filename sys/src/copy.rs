//! `memcpy` and `memmove` for musl on x86-64.
//!
//! musl's own begin each copy with `rep movsq`, which takes 24 to 49 ns to copy 1 to 64 bytes where what stands here takes
//! 2 to 3, and Rust moves strings and values by these all the time: 0.3 ms of a start, a quarter of a list of jobs
//! (docs/benchmarks.md). No crate that is kept has them. Nobody calls these by name: they are what the compiler calls.
//!
//! Invariant: all that is read of a short copy is read before any of it is written, and a long one goes in the direction in
//! which nothing is overwritten that was not read, so either may stand for the other.

use std::arch::naked_asm;
use std::ffi::c_void;

/// Copies `length` bytes; the two places may overlap.
///
/// # Safety
/// memmove(3): `from` can be read and `to` written for `length` bytes.
#[unsafe(naked)]
#[cfg_attr(target_env = "musl", unsafe(export_name = "memcpy"))]
pub unsafe extern "C" fn copy(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void {
    // rdi: to, rsi: from, rdx: length; what is answered is `to`. Each stretch is its first and its last bytes, which may overlap.
    naked_asm!(
        "mov rax, rdi",
        "cmp rdx, 16",
        "ja 4f",
        "cmp edx, 8",
        "jae 3f",
        "cmp edx, 4",
        "jae 2f",
        "test edx, edx",
        "je 1f",
        // 1 to 3 bytes: the first, the middle and the last.
        "mov r8, rdx",
        "shr r8, 1",
        "movzx ecx, byte ptr [rsi]",
        "movzx r9d, byte ptr [rsi + r8]",
        "movzx r10d, byte ptr [rsi + rdx - 1]",
        "mov byte ptr [rdi], cl",
        "mov byte ptr [rdi + r8], r9b",
        "mov byte ptr [rdi + rdx - 1], r10b",
        "1:",
        "ret",
        // 4 to 7.
        "2:",
        "mov ecx, dword ptr [rsi]",
        "mov r8d, dword ptr [rsi + rdx - 4]",
        "mov dword ptr [rdi], ecx",
        "mov dword ptr [rdi + rdx - 4], r8d",
        "ret",
        // 8 to 16.
        "3:",
        "mov rcx, qword ptr [rsi]",
        "mov r8, qword ptr [rsi + rdx - 8]",
        "mov qword ptr [rdi], rcx",
        "mov qword ptr [rdi + rdx - 8], r8",
        "ret",
        // 17 to 32.
        "4:",
        "cmp rdx, 32",
        "ja 5f",
        "movups xmm0, xmmword ptr [rsi]",
        "movups xmm1, xmmword ptr [rsi + rdx - 16]",
        "movups xmmword ptr [rdi], xmm0",
        "movups xmmword ptr [rdi + rdx - 16], xmm1",
        "ret",
        // 33 to 64.
        "5:",
        "cmp rdx, 64",
        "ja 6f",
        "movups xmm0, xmmword ptr [rsi]",
        "movups xmm1, xmmword ptr [rsi + 16]",
        "movups xmm2, xmmword ptr [rsi + rdx - 32]",
        "movups xmm3, xmmword ptr [rsi + rdx - 16]",
        "movups xmmword ptr [rdi], xmm0",
        "movups xmmword ptr [rdi + 16], xmm1",
        "movups xmmword ptr [rdi + rdx - 32], xmm2",
        "movups xmmword ptr [rdi + rdx - 16], xmm3",
        "ret",
        // More: backwards where `to` lies within what is read.
        "6:",
        "mov rcx, rdi",
        "sub rcx, rsi",
        "cmp rcx, rdx",
        "jb 8f",
        "cmp rdx, {by_the_processor}",
        "jae 9f",
        // Forwards, 64 at a time; the last 64 were read before.
        "movups xmm4, xmmword ptr [rsi + rdx - 64]",
        "movups xmm5, xmmword ptr [rsi + rdx - 48]",
        "movups xmm6, xmmword ptr [rsi + rdx - 32]",
        "movups xmm7, xmmword ptr [rsi + rdx - 16]",
        "lea rcx, [rdi + rdx - 64]",
        "7:",
        "movups xmm0, xmmword ptr [rsi]",
        "movups xmm1, xmmword ptr [rsi + 16]",
        "movups xmm2, xmmword ptr [rsi + 32]",
        "movups xmm3, xmmword ptr [rsi + 48]",
        "movups xmmword ptr [rdi], xmm0",
        "movups xmmword ptr [rdi + 16], xmm1",
        "movups xmmword ptr [rdi + 32], xmm2",
        "movups xmmword ptr [rdi + 48], xmm3",
        "add rsi, 64",
        "add rdi, 64",
        "cmp rdi, rcx",
        "jb 7b",
        "movups xmmword ptr [rcx], xmm4",
        "movups xmmword ptr [rcx + 16], xmm5",
        "movups xmmword ptr [rcx + 32], xmm6",
        "movups xmmword ptr [rcx + 48], xmm7",
        "ret",
        // Backwards, 64 at a time; the first 64 were read before.
        "8:",
        "movups xmm4, xmmword ptr [rsi]",
        "movups xmm5, xmmword ptr [rsi + 16]",
        "movups xmm6, xmmword ptr [rsi + 32]",
        "movups xmm7, xmmword ptr [rsi + 48]",
        "lea rcx, [rdi + 64]",
        "add rdi, rdx",
        "add rsi, rdx",
        "2:",
        "movups xmm0, xmmword ptr [rsi - 16]",
        "movups xmm1, xmmword ptr [rsi - 32]",
        "movups xmm2, xmmword ptr [rsi - 48]",
        "movups xmm3, xmmword ptr [rsi - 64]",
        "movups xmmword ptr [rdi - 16], xmm0",
        "movups xmmword ptr [rdi - 32], xmm1",
        "movups xmmword ptr [rdi - 48], xmm2",
        "movups xmmword ptr [rdi - 64], xmm3",
        "sub rsi, 64",
        "sub rdi, 64",
        "cmp rdi, rcx",
        "ja 2b",
        "movups xmmword ptr [rax], xmm4",
        "movups xmmword ptr [rax + 16], xmm5",
        "movups xmmword ptr [rax + 32], xmm6",
        "movups xmmword ptr [rax + 48], xmm7",
        "ret",
        // From here on the processor's own loop is the faster one.
        "9:",
        "mov rcx, rdx",
        "rep movsb",
        "ret",
        by_the_processor = const 2048,
    )
}

/// The same: musl's `memmove` would bring its `memcpy` along.
///
/// # Safety
/// memmove(3).
#[unsafe(naked)]
#[cfg_attr(target_env = "musl", unsafe(export_name = "memmove"))]
pub unsafe extern "C" fn copy_overlapping(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void {
    naked_asm!("jmp {copy}", copy = sym copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies within one piece of memory, here and by the standard library.
    fn compare(from: usize, to: usize, length: usize) {
        let before: Vec<u8> = (0..from.max(to) + length + 65).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
        let mut expected = before.clone();
        expected.copy_within(from..from + length, to);
        for function in [copy, copy_overlapping] {
            let mut copied = before.clone();
            let begin = copied.as_mut_ptr();
            let target = begin.wrapping_add(to).cast();
            // SAFETY: memmove(3): the vector has more than `length` bytes from either place on.
            let answer = unsafe { function(target, begin.wrapping_add(from).cast(), length) };
            assert_eq!(answer, target);
            assert!(copied == expected, "{length} bytes from {from} to {to}");
        }
    }

    #[test]
    fn every_length_is_copied_whole_whichever_way_it_overlaps() {
        const PLACES: [usize; 12] = [0, 1, 2, 7, 8, 15, 16, 33, 63, 64, 65, 200];
        for length in (0..=260).chain([511, 2047, 2048, 2049, 2100, 5000]) {
            for from in PLACES {
                for to in PLACES.into_iter().chain([from + length, from + length + 1]) {
                    compare(from, to, length);
                }
            }
        }
    }
}
