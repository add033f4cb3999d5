//! Cutting a range out of a flat buffer, installing one, comparing by digest.
//!
//! Ranges are `u64` because they come from a plan that is the same for all machines, whatever their word size. They
//! are checked here, so that a plan that does not fit the buffer is an error and never a panic.

use std::ops::Range;

use crate::error::Error;
use crate::quarantine::first_non_finite;

/// The elements of `range`.
///
/// # Errors
/// [`Error::OutOfBounds`] if the range does not lie in the buffer or ends before it begins.
pub fn cut(buffer: &[f32], range: Range<u64>) -> Result<&[f32], Error> {
    let bounds = bounds(&range, buffer.len())?;
    Ok(&buffer[bounds])
}

/// Writes `cell`, a merged range, over the elements of `range`. Nothing else changes, and on an error nothing at all.
///
/// # Errors
/// [`Error::OutOfBounds`] if the range does not lie in the buffer or ends before it begins, [`Error::CellLength`] if
/// the cell is not as long as the range, [`Error::CellNotFinite`] if it holds a NaN or an infinity.
pub fn install(buffer: &mut [f32], range: Range<u64>, cell: &[f32]) -> Result<(), Error> {
    let bounds = bounds(&range, buffer.len())?;
    if bounds.len() != cell.len() {
        return Err(Error::CellLength {
            range,
            found: cell.len(),
        });
    }
    if let Some(element) = first_non_finite(cell) {
        return Err(Error::CellNotFinite { element });
    }
    buffer[bounds].copy_from_slice(cell);
    Ok(())
}

/// BLAKE3 of the elements as little-endian IEEE 754 bytes, without a header. Equal digests mean equal bits: `0.0` and
/// `-0.0` differ, and so do two NaNs with different payloads.
#[must_use]
pub fn digest(elements: &[f32]) -> [u8; 32] {
    // 16 KiB at a time: enough for BLAKE3 to hash several of its 1 KiB chunks side by side, and it stays in L1.
    const BLOCK: usize = 4096;
    let mut bytes = [0_u8; 4 * BLOCK];
    let mut hasher = blake3::Hasher::new();
    for block in elements.chunks(BLOCK) {
        let bytes = &mut bytes[..4 * block.len()];
        for (slot, element) in bytes.chunks_exact_mut(4).zip(block) {
            slot.copy_from_slice(&element.to_le_bytes());
        }
        hasher.update(bytes);
    }
    *hasher.finalize().as_bytes()
}

fn bounds(range: &Range<u64>, elements: usize) -> Result<Range<usize>, Error> {
    let out_of_bounds = || Error::OutOfBounds {
        range: range.clone(),
        elements,
    };
    let start = usize::try_from(range.start).map_err(|_| out_of_bounds())?;
    let end = usize::try_from(range.end).map_err(|_| out_of_bounds())?;
    if start > end || end > elements {
        return Err(out_of_bounds());
    }
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_outside_the_buffer_is_an_error_and_changes_nothing() {
        #[expect(
            clippy::reversed_empty_ranges,
            reason = "that it ends before it begins is the point"
        )]
        let ranges = [2..5, 4..5, 3..2, 0..u64::MAX, u64::MAX..u64::MAX];
        for range in ranges {
            let mut buffer = [1.0, 2.0, 3.0];
            let expected = Error::OutOfBounds {
                range: range.clone(),
                elements: 3,
            };
            assert_eq!(cut(&buffer, range.clone()), Err(expected.clone()));
            assert_eq!(install(&mut buffer, range, &[9.0]), Err(expected));
            assert_eq!(buffer, [1.0, 2.0, 3.0]);
        }
    }

    #[test]
    fn a_cell_that_does_not_fit_its_range_is_refused() {
        let mut buffer = [1.0, 2.0, 3.0];
        assert_eq!(
            install(&mut buffer, 0..2, &[9.0]),
            Err(Error::CellLength {
                range: 0..2,
                found: 1
            })
        );
        assert_eq!(
            install(&mut buffer, 0..2, &[9.0, f32::NAN]),
            Err(Error::CellNotFinite { element: 1 })
        );
        assert_eq!(buffer, [1.0, 2.0, 3.0]);
        assert_eq!(install(&mut buffer, 3..3, &[]), Ok(()));
    }

    #[test]
    fn the_digest_is_that_of_the_little_endian_bytes() {
        let elements: Vec<f32> = (0..10_000_u16).map(|i| f32::from(i) - 5_000.5).collect();
        let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(digest(&elements), *blake3::hash(&bytes).as_bytes());
        assert_ne!(digest(&[0.0]), digest(&[-0.0]));
    }

    proptest! {
        #[test]
        fn what_is_installed_is_what_is_cut_and_the_rest_stays(
            buffer in prop::collection::vec(-1e9_f32..1e9, 0..50), edges in (0usize..50, 0usize..50),
        ) {
            let (a, b) = (edges.0.min(buffer.len()), edges.1.min(buffer.len()));
            let (start, end) = (a.min(b), a.max(b));
            let range = start as u64..end as u64;
            let cell = vec![7.5; end - start];
            let mut installed = buffer.clone();
            install(&mut installed, range.clone(), &cell).unwrap();
            prop_assert_eq!(cut(&installed, range).unwrap(), &cell[..]);
            prop_assert_eq!(&installed[..start], &buffer[..start]);
            prop_assert_eq!(&installed[end..], &buffer[end..]);
        }
    }
}
