//! The two ends of a model: the embedding's gradient, and the output projection with its loss.

#![expect(unsafe_code, reason = "scratch space is copied from and to the host")]

use std::ops::Range;

use iota_compute::backend::{Form, Product};

use crate::copies::Indices;
use crate::device::{Cuda, to_u32};
use crate::driver::Address;
use crate::error::Result;
use crate::memory::{View, ViewMut};

/// Rows of a piece of the embedding's gradient: what one thread adds up one after the other.
const PIECE: usize = 64;

/// Which rows read which token: each token's rows in pieces of [`PIECE`].
#[derive(Debug, PartialEq, Eq)]
struct Readers {
    /// Rows, those of one token together, in order.
    order: Vec<u32>,
    /// Where each piece begins in `order`, and where the last ends.
    pieces: Vec<u32>,
    /// The distinct tokens.
    tokens: Vec<u32>,
    /// Where each token's pieces begin, and where the last token's end.
    token_pieces: Vec<u32>,
}

impl Readers {
    fn of(tokens: &[u32]) -> Self {
        let mut order: Vec<u32> = (0..to_u32(tokens.len())).collect();
        // Stable: the rows of a token stay in order.
        order.sort_by_key(|row| tokens[*row as usize]);
        let mut readers = Self {
            order: Vec::new(),
            pieces: Vec::new(),
            tokens: Vec::new(),
            token_pieces: Vec::new(),
        };
        let mut start = 0;
        for rows in order.chunk_by(|a, b| tokens[*a as usize] == tokens[*b as usize]) {
            readers.tokens.push(tokens[rows[0] as usize]);
            readers.token_pieces.push(to_u32(readers.pieces.len()));
            let starts = (start..start + rows.len()).step_by(PIECE).map(to_u32);
            readers.pieces.extend(starts);
            start += rows.len();
        }
        readers.token_pieces.push(to_u32(readers.pieces.len()));
        readers.pieces.push(to_u32(start));
        readers.order = order;
        readers
    }

    /// All four, one after the other, filled up to what they come to at most for so many rows.
    fn lists(&self, rows: usize) -> Vec<u32> {
        let mut lists = Vec::with_capacity(4 * rows + 2);
        for list in [&self.order, &self.pieces, &self.tokens, &self.token_pieces] {
            lists.extend_from_slice(list);
        }
        lists.resize(4 * rows + 2, 0);
        lists
    }

    /// Pieces of so many rows of so many possible tokens, at most.
    fn pieces_max(rows: usize, vocabulary: usize) -> usize {
        rows.min(rows / PIECE + vocabulary)
    }
}

/// Rows of logits that are worked on together, and where they lie.
struct Chunk {
    rows: Range<usize>,
    logits: Address,
    /// The gradient of the logits, as factors.
    gradient: Address,
}

impl Cuda {
    pub(crate) fn embedding_gradient(
        &self,
        table_gradient: &ViewMut<'_>,
        out_gradient: View<'_>,
        tokens: &Indices,
        width: usize,
    ) -> Result<()> {
        let rows = tokens.host().len();
        assert_eq!(
            out_gradient.len(),
            rows * width,
            "shape of an embedding's gradient"
        );
        let vocabulary = table_gradient.len() / width;
        assert_tokens(tokens, vocabulary);
        let readers = Readers::of(tokens.host());
        // Room for any tokens, so that the memory plan holds whatever the text is.
        let pieces_max = Readers::pieces_max(rows, vocabulary);
        let lists = readers.lists(rows);
        let room = self
            .scratch
            .take([size_of_val(&*lists), pieces_max * width * size_of::<f32>()])?;
        // SAFETY: the part was taken for as many.
        unsafe { self.copies.upload(room.parts[0], &lists)? };
        let [lists, partial] = room.parts;
        let order = lists;
        let pieces = order.offset(size_of_val(&*readers.order));
        let distinct = pieces.offset(size_of_val(&*readers.pieces));
        let token_pieces = distinct.offset(size_of_val(&*readers.tokens));
        self.launch(
            "embedding_partial",
            [readers.pieces.len() - 1, 1],
            &[
                partial.into(),
                out_gradient.into(),
                order.into(),
                pieces.into(),
                to_u32(width).into(),
            ],
        )?;
        self.launch(
            "embedding_add",
            [readers.tokens.len(), 1],
            &[
                table_gradient.numbers().into(),
                partial.into(),
                distinct.into(),
                token_pieces.into(),
                to_u32(width).into(),
            ],
        )
    }

    pub(crate) fn projected_cross_entropy(
        &self,
        gradients: Option<(&ViewMut<'_>, &ViewMut<'_>)>,
        x: View<'_>,
        projection: View<'_>,
        targets: &Indices,
        width: usize,
    ) -> Result<f32> {
        let (rows, vocabulary) = (targets.host().len(), projection.len() / width);
        assert_eq!(
            (x.len(), projection.len()),
            (rows * width, vocabulary * width),
            "shapes of the output projection"
        );
        if let Some((x_gradient, projection_gradient)) = &gradients {
            assert_eq!(
                (x_gradient.len(), projection_gradient.len()),
                (x.len(), projection.len()),
                "shapes of the output projection's gradients"
            );
        }
        assert_tokens(targets, vocabulary);
        let at_a_time = (self.pieces.logits / vocabulary).clamp(1, rows.max(1));
        let logits = at_a_time * vocabulary;
        let bytes = self.factors().bytes();
        let room = self.scratch.take([
            rows * size_of::<f32>(),
            logits * size_of::<f32>(),
            if gradients.is_some() {
                logits * bytes
            } else {
                0
            },
            self.factor_room(x, false),
        ])?;
        let [losses, logits, gradient, x_room] = room.parts;
        let x = self.factor(x, false, x_room)?;
        let projection = self.factor(projection, true, Address(0))?;
        for start in (0..rows).step_by(at_a_time) {
            let chunk = Chunk {
                rows: start..(start + at_a_time).min(rows),
                logits,
                gradient,
            };
            let x = x.offset(start * width * bytes);
            self.multiply(
                Product {
                    form: Form::TransposedRight,
                    rows: chunk.rows.len(),
                    columns: vocabulary,
                    inner: width,
                },
                [chunk.logits, x, projection],
                false,
            )?;
            self.row_losses(&chunk, losses, targets, vocabulary, gradients.is_some())?;
            let Some((x_gradient, projection_gradient)) = &gradients else {
                continue;
            };
            let x_gradient = x_gradient
                .address()
                .offset(start * width * size_of::<f32>());
            self.multiply(
                Product {
                    form: Form::Plain,
                    rows: chunk.rows.len(),
                    columns: width,
                    inner: vocabulary,
                },
                [x_gradient, chunk.gradient, projection],
                false,
            )?;
            self.multiply(
                Product {
                    form: Form::TransposedLeft,
                    rows: vocabulary,
                    columns: width,
                    inner: chunk.rows.len(),
                },
                [projection_gradient.numbers(), chunk.gradient, x],
                true,
            )?;
        }
        // SAFETY: the part was taken for as many.
        let losses: Vec<f32> = unsafe { room.download(0, rows)? };
        let total: f64 = losses.into_iter().map(f64::from).sum();
        Ok((total / rows as f64) as f32)
    }

    /// The losses of a chunk's rows, and the gradients of its logits.
    fn row_losses(
        &self,
        chunk: &Chunk,
        losses: Address,
        targets: &Indices,
        vocabulary: usize,
        gradients: bool,
    ) -> Result<()> {
        let share = 1.0 / targets.host().len() as f32;
        let no_gradient = Address(0);
        self.launch(
            self.by_factors("cross_entropy_f32", "cross_entropy_bf16"),
            [chunk.rows.len(), 1],
            &[
                losses.offset(chunk.rows.start * size_of::<f32>()).into(),
                if gradients {
                    chunk.gradient
                } else {
                    no_gradient
                }
                .into(),
                chunk.logits.into(),
                targets
                    .address()
                    .offset(chunk.rows.start * size_of::<u32>())
                    .into(),
                to_u32(vocabulary).into(),
                share.into(),
            ],
        )
    }
}

/// A kernel would read beyond the table.
pub(crate) fn assert_tokens(tokens: &Indices, vocabulary: usize) {
    let known = tokens
        .host()
        .iter()
        .all(|token| (*token as usize) < vocabulary);
    assert!(known, "a token is not below the vocabulary of {vocabulary}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_token_stay_in_order_and_are_cut_into_pieces() {
        let mut tokens = vec![7; 2 * PIECE + 1];
        tokens.extend([3, 9, 3]);
        let readers = Readers::of(&tokens);
        let rows = to_u32(tokens.len());
        let mut order = vec![rows - 3, rows - 1];
        order.extend(0..rows - 3);
        order.push(rows - 2);
        assert_eq!(readers.order, order);
        assert_eq!(readers.tokens, [3, 7, 9]);
        assert_eq!(readers.token_pieces, [0, 1, 4, 5]);
        let piece = to_u32(PIECE);
        assert_eq!(
            readers.pieces,
            [0, 2, 2 + piece, 2 + 2 * piece, rows - 1, rows]
        );
    }

    /// The room that is taken depends on the number of rows only.
    #[test]
    fn no_text_has_more_pieces_than_there_is_room_for() {
        for distinct in [1, 2, 5, 63, 64, 200] {
            for rows in [1, 64, 65, 128, 200, 1000] {
                let tokens: Vec<u32> = (0..rows).map(|row| row % distinct).collect();
                let pieces = Readers::of(&tokens).pieces.len() - 1;
                assert!(pieces <= Readers::pieces_max(rows as usize, distinct as usize));
            }
        }
    }
}
