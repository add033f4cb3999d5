//! What copies are made of: `f32` in memory, or numbers as the bytes that came over a network.
//!
//! A copy that arrives as bf16 is merged as it is: widening it first would write and read twice as much as it is long.
//! Bytes need no alignment, so a part of any object can be lent with [`slice::as_chunks`].

/// A number of a copy. For `f32`, and for little-endian bytes: `[u8; 4]` are an f32, `[u8; 2]` a bf16, which is the upper
/// half of an f32.
///
/// ```
/// use iota_merge::{WeightedCopy, weighted_mean};
///
/// let upload: &[u8] = &[0x80, 0x3f, 0x00, 0xc0]; // 1 and -2 as bf16
/// let (elements, _) = upload.as_chunks::<2>();
/// assert_eq!(weighted_mean(&[WeightedCopy { elements, weight: 1 }])?.elements, [1.0, -2.0]);
/// # Ok::<(), iota_merge::Error>(())
/// ```
pub trait Element: Copy + sealed::Sealed {
    /// The same number; nothing is rounded.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for [u8; 4] {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_le_bytes(self)
    }
}

impl Element for [u8; 2] {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(self)) << 16)
    }
}

mod sealed {
    /// Further kinds of numbers would have to keep what the rules promise; nobody outside can promise it.
    #[expect(unnameable_types, reason = "that nobody can name it is its purpose")]
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for [u8; 4] {}
    impl Sealed for [u8; 2] {}
}
