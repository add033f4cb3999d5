use std::ops::Range;

use crate::quarantine::Quarantined;

/// Why there is no merged tensor, or no encoding of one.
///
/// All of these speak of the inputs; trying again with the same inputs gives the same error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A merge of nothing.
    #[error("there are no copies to merge")]
    NoCopies,
    /// A copy is not as long as the merge is.
    #[error("copy {copy} has {found} elements instead of {expected}")]
    Length {
        /// Position of the copy, counted from 0 in the order in which the copies were given.
        copy: usize,
        /// Elements that it must have: those of the output or the accumulator, else those of copy 0.
        expected: usize,
        /// Elements that it has.
        found: usize,
    },
    /// The copies that could be averaged weigh nothing.
    #[error("the weights of the usable copies add up to zero")]
    ZeroWeight,
    /// Every copy holds a NaN or an infinity.
    #[error("none of the {} copies is finite", left_out.len())]
    NoneFinite {
        /// All of them, each with its first bad element.
        left_out: Vec<Quarantined>,
    },
    /// A range that does not lie inside its buffer, or that ends before it begins.
    #[error("range {}..{} does not lie in a buffer of {elements} elements", range.start, range.end)]
    OutOfBounds {
        /// The range, in elements.
        range: Range<u64>,
        /// Elements of the buffer.
        elements: usize,
    },
    /// What is to be installed is not as long as its range.
    #[error("{found} elements are to be installed in the {} of {}..{}", range.end - range.start, range.start, range.end)]
    CellLength {
        /// The range, in elements.
        range: Range<u64>,
        /// Elements that were given.
        found: usize,
    },
    /// What is to be installed holds a NaN or an infinity.
    #[error("element {element} of what is to be installed is not finite")]
    CellNotFinite {
        /// The first bad element, counted from the start of the cell.
        element: usize,
    },
    /// A setting of a rule, an outer step or a codec that makes no sense.
    #[error("{name} has to be {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it may be.
        expected: &'static str,
    },
    /// A vector that goes with another is not as long.
    #[error("{what} has {found} elements instead of {expected}")]
    OtherLength {
        /// What it is.
        what: &'static str,
        /// Elements that it must have.
        expected: usize,
        /// Elements that it has.
        found: usize,
    },
    /// A value that should be encoded, or that was decoded, is a NaN, an infinity, or larger than the codec can write.
    #[error("the value at element {element} has no encoding")]
    Value {
        /// Its position.
        element: usize,
    },
    /// There are more or fewer bytes than so many elements take.
    #[error("{found} bytes instead of {expected}")]
    EncodedLength {
        /// What they take; of codecs whose lengths vary, what is announced up to the place where it went wrong.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// Bytes that no encoder writes.
    #[error("{what} of chunk {chunk} is none that an encoder writes")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// In which chunk, counted from 0.
        chunk: usize,
    },
}
