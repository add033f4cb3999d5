//! The same loops, compiled for several instruction sets and chosen when they run.
//!
//! None of them changes a bit: every operation rounds once and says where, sums across lanes have an order of their own
//! (see [`norm`](crate::norm)), and the compiler fuses nothing by itself. Where a product and a sum are fused on purpose
//! ([`fused`]), the product is exact, so that fusing it has nothing to save.

/// A loop over numbers.
pub(crate) trait Kernel {
    type Output;

    /// Does it. Has to be `#[inline(always)]`, and so has everything that it calls in its loops: only what is inlined is
    /// compiled for the caller's instructions. With `FUSED` the processor has fused products and sums.
    fn run<const FUSED: bool>(self) -> Self::Output;
}

/// Does it with the best instructions of this processor.
#[expect(
    unsafe_code,
    reason = "code for AVX2 and AVX-512 may run only where there are these instructions"
)]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_wanted(Instructions::Avx512)
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
        {
            // SAFETY: the processor was just seen to have all that the function is compiled for.
            return unsafe { avx512(kernel) };
        }
        if is_wanted(Instructions::Avx2)
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
        {
            // SAFETY: as above.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run::<false>()
}

/// From the fewest to the most.
#[cfg_attr(
    not(any(test, target_arch = "x86_64")),
    expect(dead_code, reason = "what other processors have is not told apart")
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Instructions {
    #[cfg(test)]
    Portable,
    Avx2,
    Avx512,
}

#[cfg(not(test))]
#[cfg(target_arch = "x86_64")]
const fn is_wanted(_: Instructions) -> bool {
    true
}

#[cfg(test)]
thread_local! {
    static LIMIT: std::cell::Cell<Instructions> = const { std::cell::Cell::new(Instructions::Avx512) };
}

#[cfg(test)]
fn is_wanted(instructions: Instructions) -> bool {
    instructions <= LIMIT.get()
}

/// Calls `work`, in which nothing beyond these instructions is used on this thread.
#[cfg(test)]
pub(crate) fn with_at_most<T>(instructions: Instructions, work: impl FnOnce() -> T) -> T {
    let before = LIMIT.replace(instructions);
    let result = work();
    LIMIT.set(before);
    result
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

/// `sum + factor * x` for a product that f64 holds exactly, which makes both ways of computing it the same.
#[inline(always)]
pub(crate) fn fused<const FUSED: bool>(factor: f64, x: f64, sum: f64) -> f64 {
    if FUSED {
        factor.mul_add(x, sum)
    } else {
        sum + factor * x
    }
}

/// Asks memory for some elements from a place on that is wanted soon, without waiting for them. They need not exist.
#[cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "nothing but this instruction tells a processor about many streams in time"
    )
)]
#[inline(always)]
pub(crate) fn fetch_early<T>(place: *const T, elements: usize) {
    #[cfg(target_arch = "x86_64")]
    for element in (0..elements).step_by(LINE_BYTES / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let line = place.wrapping_add(element).cast();
        // SAFETY: every x86-64 processor has the instruction. It accesses nothing: whatever the address, it cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (place, elements);
}

/// What memory gives at a time.
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;
