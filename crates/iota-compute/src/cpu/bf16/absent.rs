//! No CPU of this architecture has the instructions, so nothing here can be called: there is no [`Bf16`].

use std::marker::PhantomData;
use std::ops::Range;

use super::super::instructions::Bf16;
use super::super::matmul::{Matrix, Size};

pub(super) fn pack(bf16: Bf16, _: &mut [u32], _: usize, _: Matrix<'_>, _: usize, _: usize) {
    match bf16 {}
}

pub(super) struct Product<'a>(PhantomData<&'a mut [f32]>);

impl<'a> Product<'a> {
    pub(super) const fn new(_: &'a mut [f32], _: Size) -> Self {
        Self(PhantomData)
    }
}

/// # Safety
/// Cannot be called.
pub(super) unsafe fn block(
    bf16: Bf16,
    _: &Product<'_>,
    _: &[u32],
    _: &[u32],
    _: Range<usize>,
    _: Range<usize>,
    _: bool,
) {
    match bf16 {}
}
