//! What is asked of a card: memory, copies, kernels, products. Nothing here knows what they are for.
#![expect(
    unsafe_code,
    reason = "whoever asks a card for something vouches for the addresses"
)]

use std::fmt::Debug;

use iota_compute::backend::{Form, Product};

use crate::error::Result;

/// A card, or something that does as if. Work is done in the order in which it is asked for; all but
/// [`download`](Self::download) may return before it is done.
///
/// Two kinds of copies go their own ways beside that work, in an order of their own each, and only tickets hold the three
/// together:
///
/// ```text
///   uploads      --[begin_upload]------------.                        .--[begin_upload(after mark)]-->
///                                            v wait                   |
///   work         --multiply--launch-------------copy--[mark]----------'---launch--multiply--launch-->
///                                 |                                               ^
///   downloads                     '--[begin_download]--> finish_download          '-- may write there only from then on
/// ```
///
/// Implemented by `Card`, by [`Planner`](crate::Planner), which only counts, and in the tests by one that runs the kernels
/// on the CPU.
///
/// # Safety
/// An implementation touches no memory but what its caller names.
pub unsafe trait Driver: Debug + Send + Sync {
    /// Takes so many bytes, aligned to 256. They hold anything.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    fn allocate(&self, bytes: usize) -> Result<Address>;

    /// Gives back what [`allocate`](Self::allocate) gave, once the work and the copies that were asked for are done.
    ///
    /// # Safety
    /// `address` came from `allocate(bytes)` of this driver, and nothing asked for later touches it.
    unsafe fn release(&self, address: Address, bytes: usize);

    /// Sets bytes to 0.
    ///
    /// # Safety
    /// The bytes are allocated.
    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()>;

    /// Copies from the host, which may use `from` again at once.
    ///
    /// # Safety
    /// As many bytes are allocated at `to`.
    unsafe fn upload(&self, to: Address, from: &[u8]) -> Result<()>;

    /// Copies to the host, after all that was asked for.
    ///
    /// # Safety
    /// As many bytes are allocated at `from`.
    unsafe fn download(&self, to: &mut [u8], from: Address) -> Result<()>;

    /// Stands for all the work that was asked for so far.
    ///
    /// # Errors
    /// [`crate::Error::Call`], here and below.
    fn mark(&self) -> Result<Ticket>;

    /// Begins to copy from the host, which may use `from` again at once: after the uploads that were begun before and the
    /// work that `after` stands for, and beside all other work. The ticket stands for the end of it.
    ///
    /// # Safety
    /// As many bytes are allocated at `to`. Of the work, only what `after` stands for and what is asked for after a
    /// [`wait`](Self::wait) for the ticket touches them.
    unsafe fn begin_upload(
        &self,
        to: Address,
        from: &[u8],
        after: Option<Ticket>,
    ) -> Result<Ticket>;

    /// What is asked for from now on begins after this upload.
    fn wait(&self, upload: Ticket) -> Result<()>;

    /// Begins to copy to the host, after the downloads that were begun before and the work that was asked for so far, and
    /// beside what is asked for from now on.
    ///
    /// # Safety
    /// As many bytes are allocated at `from`, and no work that is asked for before
    /// [`finish_download`](Self::finish_download) writes to them.
    unsafe fn begin_download(&self, from: Address, bytes: usize) -> Result<Ticket>;

    /// Waits for a download on the host, and takes as much of it as there is room for.
    fn finish_download(&self, to: &mut [u8], download: Ticket) -> Result<()>;

    /// Copies on the card.
    ///
    /// # Safety
    /// The bytes are allocated at both, and do not overlap.
    unsafe fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()>;

    /// Shared memory that a block may have, in bytes: kernels that ask for more are not launched.
    fn shared_bytes_max(&self) -> u32 {
        crate::kernels::SHARED_BYTES_OF_A100
    }

    /// Runs a kernel of [`crate::kernels`].
    ///
    /// # Safety
    /// The arguments are of the kernel's types, and all memory that it touches for them is allocated; what it writes,
    /// nobody else holds.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Multiplies matrices.
    ///
    /// # Safety
    /// All elements of all matrices are allocated, and `out` overlaps neither factor.
    unsafe fn multiply(&self, multiplication: &Multiplication) -> Result<()>;
}

/// Something that will be over. Whoever is given one gives it back once, to [`Driver::wait`], [`Driver::begin_upload`] or
/// [`Driver::finish_download`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a driver remembers it until it is given back"]
pub struct Ticket(pub u64);

/// A place in a card's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub u64);

impl Address {
    /// So many bytes further on.
    pub const fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// One run of a kernel, by blocks of [`crate::kernels::THREADS`] threads.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Its name, one of [`crate::kernels::NAMES`].
    pub kernel: &'static str,
    /// Blocks: `x`, `y`.
    pub blocks: [u32; 2],
    /// In the kernel's order.
    pub arguments: &'a [Argument],
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// A pointer.
    Address(Address),
    /// A `u32`.
    U32(u32),
    /// A `u64`.
    U64(u64),
    /// A `float`.
    F32(f32),
}

/// `out = a b` or `out += a b` for each of a batch, row-major, with sums and result in f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Multiplication {
    /// Sizes and forms.
    pub product: Product,
    /// What the factors' elements are.
    pub factors: Factors,
    /// The result.
    pub out: Matrix,
    /// The left factor.
    pub a: Matrix,
    /// The right factor.
    pub b: Matrix,
    /// How many products.
    pub batch: usize,
    /// Whether the result is added to what is there.
    pub add: bool,
}

/// Where a batch of matrices lies. Distances in elements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix {
    /// Of the first one's first element.
    pub address: Address,
    /// From a row to the next.
    pub row_stride: usize,
    /// From a matrix to the next.
    pub batch_stride: usize,
}

/// Elements of factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factors {
    /// f32, multiplied as such.
    F32,
    /// bf16.
    Bf16,
}

impl Factors {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl From<Address> for Argument {
    fn from(address: Address) -> Self {
        Self::Address(address)
    }
}

impl From<u32> for Argument {
    fn from(number: u32) -> Self {
        Self::U32(number)
    }
}

impl From<u64> for Argument {
    fn from(number: u64) -> Self {
        Self::U64(number)
    }
}

impl From<f32> for Argument {
    fn from(number: f32) -> Self {
        Self::F32(number)
    }
}

/// Columns of both factors as they lie in memory.
pub const fn factor_columns(product: Product) -> (usize, usize) {
    match product.form {
        Form::TransposedRight => (product.inner, product.inner),
        Form::Plain => (product.inner, product.columns),
        Form::TransposedLeft => (product.rows, product.columns),
    }
}
