//! The device: what its operations have at hand.
#![expect(unsafe_code, reason = "kernels and products are given addresses")]

use std::sync::Arc;

use iota_compute::backend::Product;
use iota_model::Precision;

use crate::attention::AttentionPath;
use crate::copies::Copies;
use crate::driver::{
    Address, Argument, Driver, Factors, Launch, Matrix, Multiplication, factor_columns,
};
use crate::error::Result;
use crate::factors::{Room, Rooms};
use crate::kernels::{LANES, THREADS};
use crate::memory::{Scratch, View, ViewMut};

/// A card, as a [`Backend`](iota_compute::Backend). Clones are handles to the same one.
///
/// On one card the same inputs give the same bits: sums are made in an order that follows from shapes, and nothing is
/// added atomically. They are not the bits of a CPU, nor those of another model of card.
#[derive(Debug, Clone)]
pub struct Cuda {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) scratch: Arc<Scratch>,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) copies: Arc<Copies>,
    pub(crate) precision: Precision,
    pub(crate) pieces: Pieces,
    pub(crate) attention_path: AttentionPath,
}

/// How much of a thing is worked on at a time: more is faster up to a point, and takes scratch space. Other choices give
/// other bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pieces {
    /// Tokens of a block of queries.
    pub queries: usize,
    /// Scores of blocks of queries that are in memory together, about.
    pub scores: usize,
    /// Logits in memory together, about.
    pub logits: usize,
}

/// A block of 256 queries wastes 128 masked keys for each query, an eighth or less from 1,024 tokens on. 16 million scores
/// are 64 MiB and a few hundred tiles for each product; 64 million logits are 256 MiB and, of 128,000 tokens, 523 rows.
/// None of these is measured on a card.
impl Default for Pieces {
    fn default() -> Self {
        Self {
            queries: 256,
            scores: 16 << 20,
            logits: 64 << 20,
        }
    }
}

impl Cuda {
    /// On this driver, with the factors of all matrix products, those within attention too, in this precision.
    pub fn on(driver: Arc<dyn Driver>, precision: Precision) -> Self {
        Self {
            scratch: Arc::new(Scratch::new(Arc::clone(&driver))),
            rooms: Rooms::new(Arc::clone(&driver)),
            copies: Arc::new(Copies::new(Arc::clone(&driver))),
            driver,
            precision,
            pieces: Pieces::default(),
            attention_path: AttentionPath::Fused,
        }
    }

    /// With other pieces.
    #[must_use]
    pub fn with_pieces(self, pieces: Pieces) -> Self {
        Self { pieces, ..self }
    }

    /// With attention computed in another way than by fused kernels where there are such.
    #[must_use]
    pub fn with_attention_path(self, attention_path: AttentionPath) -> Self {
        Self {
            attention_path,
            ..self
        }
    }

    pub(crate) const fn factors(&self) -> Factors {
        match self.precision {
            Precision::F32 => Factors::F32,
            Precision::Bf16 => Factors::Bf16,
        }
    }

    /// The kernel that makes factors of this precision.
    pub(crate) const fn by_factors(
        &self,
        of_f32: &'static str,
        of_bf16: &'static str,
    ) -> &'static str {
        match self.precision {
            Precision::F32 => of_f32,
            Precision::Bf16 => of_bf16,
        }
    }

    /// Runs a kernel by so many blocks; by none, nothing.
    ///
    /// Operations check the lengths of their views against the shape that they hand to a kernel: that is what makes these
    /// launches sound.
    pub(crate) fn launch(
        &self,
        kernel: &'static str,
        blocks: [usize; 2],
        arguments: &[Argument],
    ) -> Result<()> {
        if blocks.contains(&0) {
            return Ok(());
        }
        let launch = Launch {
            kernel,
            blocks: blocks.map(to_u32),
            arguments,
        };
        // SAFETY: the arguments are those of the kernel (the tests run every kernel through a driver that compares them
        // with its signature), and views borrow what they name. See above for lengths.
        unsafe { self.driver.launch(&launch) }
    }

    /// Runs a kernel that goes through so many elements.
    pub(crate) fn launch_elements(
        &self,
        kernel: &'static str,
        elements: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        self.launch(kernel, [element_blocks(elements), 1], arguments)
    }

    /// Runs a kernel that has a warp for each row.
    pub(crate) fn launch_warps(
        &self,
        kernel: &'static str,
        rows: usize,
        arguments: &[Argument],
    ) -> Result<()> {
        let blocks = rows.div_ceil((THREADS / LANES) as usize);
        self.launch(kernel, [blocks, 1], arguments)
    }

    /// Multiplies factors that lie densely at these places, as [`factors`](Self::factors) says.
    pub(crate) fn multiply(
        &self,
        product: Product,
        [out, a, b]: [Address; 3],
        add: bool,
    ) -> Result<()> {
        let (a_columns, b_columns) = factor_columns(product);
        let dense = |address, row_stride| Matrix {
            address,
            row_stride,
            batch_stride: 0,
        };
        self.multiply_batch(&Multiplication {
            product,
            factors: self.factors(),
            out: dense(out, product.columns),
            a: dense(a, a_columns),
            b: dense(b, b_columns),
            batch: 1,
            add,
        })
    }

    /// The same for matrices that lie in any way.
    pub(crate) fn multiply_batch(&self, multiplication: &Multiplication) -> Result<()> {
        // SAFETY: as for `launch`.
        unsafe { self.driver.multiply(multiplication) }
    }

    /// Numbers as factors: where they lie as such already, where they are if no rounding is called for, or else at `room`,
    /// which is as large as [`factor_room`](Self::factor_room) says; or, if they are `wanted_again`, in room of their own, to
    /// be found there the next time.
    pub(crate) fn factor(&self, x: View<'_>, wanted_again: bool, room: Address) -> Result<Address> {
        if self.precision == Precision::F32 {
            return Ok(x.address());
        }
        if let Some(known) = x.find_factors() {
            return Ok(known);
        }
        let mut own = None;
        if wanted_again {
            own = Some(self.rooms.take(x.len())?);
        }
        let at = own.as_ref().map_or(room, Room::address);
        let arguments = [at.into(), x.into(), (x.len() as u64).into()];
        self.launch_elements("round_to_bf16", x.len(), &arguments)?;
        if let Some(own) = own {
            x.keep_factors(own);
        }
        Ok(at)
    }

    /// Bytes of room that [`factor`](Self::factor) needs.
    pub(crate) fn factor_room(&self, x: View<'_>, wanted_again: bool) -> usize {
        match self.precision {
            Precision::F32 => 0,
            Precision::Bf16 if wanted_again || x.find_factors().is_some() => 0,
            Precision::Bf16 => x.len() * Factors::Bf16.bytes(),
        }
    }

    /// Where a result goes that is wanted as factors only.
    pub(crate) fn as_factors(&self, out: &ViewMut<'_>) -> Result<Address> {
        match self.precision {
            Precision::F32 => Ok(out.address()),
            Precision::Bf16 => out.make_factors(&self.rooms),
        }
    }
}

/// Blocks for a kernel that goes through so many elements: four for each thread, and for a large buffer as many blocks as
/// keep any card busy.
pub(crate) fn element_blocks(elements: usize) -> usize {
    const BLOCKS: usize = 8192;
    elements.div_ceil(4 * THREADS as usize).min(BLOCKS)
}

/// Shapes of a stage are far below 2^32.
pub(crate) fn to_u32(number: usize) -> u32 {
    u32::try_from(number).expect("rows, widths and blocks are fewer than 2^32")
}
