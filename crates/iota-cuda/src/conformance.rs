//! What every device must compute: each operation of the seam on numbers that are drawn anew for each seed, beside its
//! definition in f64.
//!
//! The tests run it on the CPU, and on the kernels without a card; the example `cuda_check` on a card. Buffers that an
//! operation is to overwrite hold NaN first, so that an element that it leaves out is seen.

mod bench;
mod exact;

use iota_compute::backend::{AttentionShape, Form, Product};
use iota_compute::{Backend, Result};
use iota_model::Precision;

use self::bench::Bench;

/// An operation of [`Backend`], forward and backward where it has both, on one shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// `fill`, `copy`, `upload` and `download` of parts of a buffer.
    Move {
        /// Elements of the part.
        elements: usize,
    },
    /// `add_columns`.
    AddColumns {
        /// Rows of both.
        rows: usize,
        /// Of the sum.
        out_width: usize,
        /// Of what is added.
        source_width: usize,
    },
    /// `matmul`, in place of what is there and added to it.
    Multiply(Product),
    /// `rms_norm` and its gradients, one added.
    RmsNorm {
        /// Tokens.
        rows: usize,
        /// Channels.
        width: usize,
    },
    /// `rotate`, forward and back.
    Rotate(AttentionShape),
    /// `attention` and its gradients.
    Attention(AttentionShape),
    /// `swiglu` and its gradients.
    SwiGlu {
        /// Tokens.
        rows: usize,
        /// Channels.
        width: usize,
    },
    /// `silu`, `relu` and their gradients.
    Activations {
        /// Elements.
        elements: usize,
    },
    /// `embedding` and its gradient.
    Embedding {
        /// Tokens.
        rows: usize,
        /// Channels.
        width: usize,
        /// Distinct tokens that there may be.
        vocabulary: usize,
    },
    /// `cross_entropy`, with and without gradients.
    CrossEntropy {
        /// Tokens.
        rows: usize,
        /// Channels.
        width: usize,
        /// Distinct tokens.
        vocabulary: usize,
    },
    /// `squared_norm`.
    SquaredNorm {
        /// Elements.
        elements: usize,
    },
    /// `adam`, as NAdam has it.
    Adam {
        /// Elements.
        elements: usize,
    },
    /// `momentum` with and without looking ahead, and `blend` with and without what is there.
    Momentum {
        /// Elements.
        elements: usize,
    },
}

/// A result of an operation: its name, what the device computed, and what it should be.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Such as `gradient of x`.
    pub name: &'static str,
    /// In f32.
    pub computed: Vec<f32>,
    /// From the same f32 inputs, in f64; from factors rounded to bf16, if a product's factors are.
    pub exact: Vec<f64>,
    /// Whether the device may have made factors of it, and so rounded it.
    pub is_factors: bool,
}

impl Outcome {
    /// `|computed - exact| / |exact|`: NaN if anything computed is.
    pub fn error(&self) -> f64 {
        let pairs = self.computed.iter().zip(&self.exact);
        let difference: f64 = pairs
            .map(|(computed, exact)| (f64::from(*computed) - exact).powi(2))
            .sum();
        let size: f64 = self.exact.iter().map(|exact| exact.powi(2)).sum();
        if difference == 0.0 {
            0.0
        } else {
            (difference / size).sqrt()
        }
    }
}

/// Shapes with odd sizes, ends of blocks, pieces and warps, heads that share keys, and sequences shorter than a block.
pub fn small() -> Vec<Operation> {
    let mut operations = Vec::new();
    for elements in [1, 257, 5000] {
        operations.extend([
            Operation::Move { elements },
            Operation::Activations { elements },
            Operation::SquaredNorm { elements },
            Operation::Adam { elements },
            Operation::Momentum { elements },
        ]);
    }
    for (rows, out_width, source_width) in [(1, 5, 5), (7, 300, 17), (3, 17, 300)] {
        operations.push(Operation::AddColumns {
            rows,
            out_width,
            source_width,
        });
    }
    for form in [Form::TransposedRight, Form::Plain, Form::TransposedLeft] {
        for (rows, columns, inner) in [(1, 1, 1), (37, 29, 53), (8, 130, 1)] {
            operations.push(Operation::Multiply(Product {
                form,
                rows,
                columns,
                inner,
            }));
        }
    }
    for (rows, width) in [(1, 5), (65, 36), (3, 515), (130, 256)] {
        operations.push(Operation::RmsNorm { rows, width });
        operations.push(Operation::SwiGlu { rows, width });
    }
    for [sequences, tokens, heads, key_value_heads, head_width] in [
        [1, 5, 1, 1, 8],
        [2, 13, 6, 2, 6],
        [1, 70, 4, 1, 16],
        [3, 33, 2, 2, 34],
        [2, 5, 4, 1, 64],
        [1, 70, 3, 1, 64],
        [1, 130, 4, 2, 128],
    ] {
        let shape = AttentionShape {
            sequences,
            tokens,
            heads,
            key_value_heads,
            head_width,
        };
        operations.push(Operation::Rotate(shape));
        operations.push(Operation::Attention(shape));
    }
    for (rows, width, vocabulary) in [(1, 4, 3), (150, 36, 2), (90, 20, 300)] {
        operations.push(Operation::Embedding {
            rows,
            width,
            vocabulary,
        });
        operations.push(Operation::CrossEntropy {
            rows,
            width,
            vocabulary,
        });
    }
    operations
}

/// Widths of real models, as few rows as a CPU computes by the definitions in a minute.
pub fn large() -> Vec<Operation> {
    let (rows, elements) = (100, 1 << 20);
    let shape = |tokens| AttentionShape {
        sequences: 2,
        tokens,
        heads: 4,
        key_value_heads: 2,
        head_width: 128,
    };
    let product = |form| Product {
        form,
        rows: 300,
        columns: 520,
        inner: 900,
    };
    vec![
        Operation::Move { elements },
        Operation::AddColumns {
            rows,
            out_width: 4096,
            source_width: 64,
        },
        Operation::Multiply(product(Form::TransposedRight)),
        Operation::Multiply(product(Form::Plain)),
        Operation::Multiply(product(Form::TransposedLeft)),
        Operation::RmsNorm { rows, width: 4096 },
        Operation::Rotate(shape(300)),
        Operation::Attention(shape(300)),
        Operation::Attention(shape(520)),
        Operation::SwiGlu {
            rows,
            width: 14_336,
        },
        Operation::Activations { elements },
        Operation::Embedding {
            rows: 4000,
            width: 512,
            vocabulary: 1000,
        },
        Operation::CrossEntropy {
            rows: 200,
            width: 256,
            vocabulary: 5003,
        },
        Operation::SquaredNorm { elements },
        Operation::Adam { elements },
        Operation::Momentum { elements },
    ]
}

/// Numbers in (-1, 1), the same for the same seed.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// A quarter of them is token 0, so that one token has many rows.
fn tokens(count: usize, vocabulary: usize, seed: u64) -> Vec<u32> {
    noise(count, seed)
        .into_iter()
        .map(|x| (f64::from(x.max(-0.5)) + 0.5) / 1.5)
        .map(|share| (share * vocabulary as f64) as u32)
        .collect()
}

impl Operation {
    /// Runs it on a device. `precision`: that of the device's factors.
    ///
    /// # Errors
    /// The device's.
    pub fn run<B: Backend>(
        &self,
        device: &B,
        precision: Precision,
        seed: u64,
    ) -> Result<Vec<Outcome>> {
        let bench = Bench { device };
        let drawn = |count, number: u64| noise(count, seed.wrapping_mul(100) + number);
        match *self {
            Self::Move { elements } => bench.moves(drawn(elements + 7, 1)),
            Self::AddColumns {
                rows,
                out_width,
                source_width,
            } => {
                let (out, source) = (drawn(rows * out_width, 1), drawn(rows * source_width, 2));
                bench.add_columns((out, out_width), (source, source_width))
            }
            Self::Multiply(product) => {
                let Product {
                    rows,
                    columns,
                    inner,
                    ..
                } = product;
                let (a, b) = (drawn(rows * inner, 1), drawn(inner * columns, 2));
                bench.multiply(product, precision, a, b, drawn(rows * columns, 3))
            }
            Self::RmsNorm { rows, width } => bench.rms_norm(
                drawn(rows * width, 1),
                drawn(width, 2),
                drawn(rows * width, 3),
                drawn(rows * width, 4),
                drawn(width, 5),
            ),
            Self::Rotate(shape) => bench.rotate(
                shape,
                drawn(shape.rows() * shape.packed_width(), 1),
                drawn(shape.tokens * shape.head_width / 2, 2),
                drawn(shape.tokens * shape.head_width / 2, 3),
            ),
            Self::Attention(shape) => {
                // Larger than at the start of training, so that the softmax is far from uniform.
                let mut packed = drawn(shape.rows() * shape.packed_width(), 1);
                packed.iter_mut().for_each(|x| *x *= 2.0);
                bench.attention(shape, packed, drawn(shape.rows() * shape.width(), 2))
            }
            Self::SwiGlu { rows, width } => {
                let gate_up = drawn(2 * rows * width, 1).iter().map(|x| 4.0 * x).collect();
                bench.swiglu(width, gate_up, drawn(rows * width, 2))
            }
            Self::Activations { elements } => {
                let x = drawn(elements, 1).iter().map(|x| 4.0 * x).collect();
                bench.activations(x, drawn(elements, 2))
            }
            Self::Embedding {
                rows,
                width,
                vocabulary,
            } => bench.embedding(
                width,
                drawn(vocabulary * width, 1),
                tokens(rows, vocabulary, seed + 1),
                drawn(rows * width, 2),
                drawn(vocabulary * width, 3),
            ),
            Self::CrossEntropy {
                rows,
                width,
                vocabulary,
            } => bench.cross_entropy(
                precision,
                width,
                drawn(rows * width, 1),
                drawn(vocabulary * width, 2),
                tokens(rows, vocabulary, seed + 1),
                drawn(vocabulary * width, 3),
            ),
            Self::SquaredNorm { elements } => bench.squared_norm(drawn(elements, 1)),
            Self::Adam { elements } => {
                let squares = drawn(elements, 3).iter().map(|x| x * x).collect();
                bench.adam([
                    drawn(elements, 1),
                    drawn(elements, 2),
                    squares,
                    drawn(elements, 4),
                ])
            }
            Self::Momentum { elements } => {
                bench.momentum([drawn(elements, 1), drawn(elements, 2), drawn(elements, 3)])
            }
        }
    }
}
