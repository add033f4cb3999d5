//! Which vector instructions the kernels use.

/// The vector instructions that kernels are run with. Holding one proves that this CPU has them.
///
/// Results have the same bits with any of them: kernels sum in lanes of fixed number and order, and multiply-add is fused
/// where it is written so and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstructionSet(Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// What the compiler's target has.
    Portable,
    /// 256 bits at a time, with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512 bits at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 512 bits at a time, and products of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

/// Proof that this CPU has instructions for products of bf16.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Bf16(());

/// Proof that this CPU has instructions for products of bf16: none of this architecture does that is known here.
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug, Clone, Copy)]
pub(super) enum Bf16 {}

impl InstructionSet {
    /// The best that this CPU has.
    pub fn detect() -> Self {
        *Self::available()
            .last()
            .expect("the portable one is always there")
    }

    /// All that this CPU has, slowest first.
    pub fn available() -> Vec<Self> {
        let mut sets = vec![Self(Level::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as detected;
            if detected!("avx2") && detected!("fma") {
                sets.push(Self(Level::Avx2));
                if detected!("avx512f")
                    && detected!("avx512bw")
                    && detected!("avx512dq")
                    && detected!("avx512vl")
                {
                    sets.push(Self(Level::Avx512));
                    if detected!("avx512bf16") {
                        sets.push(Self(Level::Avx512Bf16));
                    }
                }
            }
        }
        sets
    }

    pub(super) const fn level(self) -> Level {
        self.0
    }

    /// Whether they multiply bf16.
    pub(super) fn bf16(self) -> Option<Bf16> {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Level::Avx512Bf16 {
            return Some(Bf16(()));
        }
        None
    }

    /// Whether the `gemm` crate, on this architecture and with these instructions, adds products by fused
    /// multiply-adds. Its scalar kernels do not.
    pub(super) fn has_fused_gemm(self) -> bool {
        cfg!(target_arch = "aarch64") || self.0 != Level::Portable
    }
}

/// Compiles one body several times, for each level of vector instructions, and picks one at run time by the
/// [`InstructionSet`] that is the first argument of the resulting function.
macro_rules! vectorised {
    (
        $(#[$meta:meta])*
        $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "kernels take slices and sizes one by one")]
        $visibility fn $name(
            instructions: $crate::cpu::instructions::InstructionSet,
            $($argument: $type),*
        ) $(-> $result)? {
            #[inline(always)]
            fn body($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($argument: $type),*) $(-> $result)? {
                body($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) $(-> $result)? {
                body($($argument),*)
            }

            match instructions.level() {
                // SAFETY: an instruction set of this level is only made where the CPU was seen to have it.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::instructions::Level::Avx512 | $crate::cpu::instructions::Level::Avx512Bf16 => unsafe {
                    avx512($($argument),*)
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::instructions::Level::Avx2 => unsafe { avx2($($argument),*) },
                $crate::cpu::instructions::Level::Portable => body($($argument),*),
            }
        }
    };
}

pub(super) use vectorised;
