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
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
        {
            // SAFETY: the processor was just seen to have all that the function is compiled for.
            return unsafe { avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { avx2(kernel) };
        }
    }
    kernel.run::<false>()
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
