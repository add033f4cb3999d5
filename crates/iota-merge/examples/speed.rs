//! How fast rules and codecs are, beside how fast memory can be read, as a table: the shortest of many passes, which a busy
//! machine disturbs least. (`benches/merge.rs` has the same loops with criterion's statistics, for a machine of one's own.)
//!
//! ```sh
//! cargo run --release -p iota-merge --example speed [-- --json] [-- WORD]
//! ```
//!
//! With `--json` every row is a line of JSON; with a word only rows with that word are measured, and memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use iota_merge::{Clip, Codec, Element, Feedback, Rule, WeightedCopy};

const COPIES: usize = 8;
/// 16 MiB a copy as bf16: eight are far more than any cache holds.
const ELEMENTS: usize = 1 << 23;
/// Elements that a pass of one thread takes of each copy, another piece each time, so that none is in a cache: few, for a
/// pass of some hundred microseconds has a chance not to be interrupted.
const PIECE: usize = 1 << 18;
/// Of more threads, so that starting them does not count.
const LARGE_PIECE: usize = 1 << 22;
/// Each is measured for at least so long, and so often.
const DURATION: Duration = Duration::from_millis(400);
const PASSES: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    let word = arguments.iter().find(|argument| *argument != "--json");
    let mut table = Table { json, rows: 0 };
    let is_wanted = |name: &str| word.is_none_or(|word| name.contains(word));

    let values: Vec<Vec<f32>> = (0..COPIES as u64).map(copy).collect();
    let bf16: Vec<Vec<[u8; 2]>> = values
        .iter()
        .map(|copy| {
            copy.iter()
                .map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes())
                .collect()
        })
        .collect();
    for threads in [1, 2] {
        let memory = reading(&bf16, threads);
        table.row("memory, read", threads, memory, memory);
        for rule in RULES {
            for clip in [Clip::None, Clip::MedianNorm] {
                let clipped = if clip == Clip::None { "" } else { ", clipped" };
                if clip != Clip::None && rule != Rule::WeightedMean {
                    continue;
                }
                let name = format!("{rule:?}{clipped}, 8 x bf16");
                if is_wanted(&name) {
                    let rate = merging(rule, clip, &bf16, threads);
                    table.row(&name, threads, rate, memory);
                }
                let name = format!("{rule:?}{clipped}, 8 x f32");
                if is_wanted(&name) {
                    let rate = merging(rule, clip, &values, threads);
                    table.row(&name, threads, rate, memory);
                }
            }
        }
        if threads == 1 {
            for codec in CODECS {
                if is_wanted(&codec.to_string()) {
                    let (encode, decode) = coding(codec, &values[0]);
                    table.row(&format!("{codec}, encode with feedback"), 1, encode, memory);
                    table.row(&format!("{codec}, decode"), 1, decode, memory);
                }
            }
        }
    }
}

const RULES: [Rule; 6] = [
    Rule::WeightedMean,
    Rule::GeometricMean,
    Rule::Median,
    Rule::TRIMMED,
    Rule::CLIPPED,
    Rule::Radial,
];

const CODECS: [Codec; 8] = [
    Codec::F32,
    Codec::Bf16,
    Codec::Int8,
    Codec::TOP_64,
    Codec::Sparse,
    Codec::SIGNS,
    Codec::Ternary,
    Codec::LowRank {
        rank: 4,
        columns: 1024,
    },
];

/// Prints as it goes.
struct Table {
    json: bool,
    rows: usize,
}

impl Table {
    /// Rates in bytes per second.
    fn row(&mut self, name: &str, threads: usize, rate: f64, memory: f64) {
        if self.json {
            println!(
                r#"{{"name": "{name}", "threads": {threads}, "bytes_per_second": {rate:.0}}}"#
            );
            return;
        }
        if self.rows == 0 {
            println!("| GB/s of input | threads | | of memory |");
            println!("|---|---:|---:|---:|");
        }
        self.rows += 1;
        let share = 100.0 * rate / memory;
        println!("| {name} | {threads} | {:.1} | {share:.0} % |", rate / 1e9);
    }
}

/// Runs `work` on a piece of all copies that is another one each time, each thread on its share of it. Returns bytes of
/// copies per second.
fn rate<E: Sync>(
    copies: &[Vec<E>],
    threads: usize,
    mut merged: Vec<f32>,
    work: impl Fn(&[&[E]], &mut [f32]) + Sync,
) -> f64 {
    let piece = if threads == 1 { PIECE } else { LARGE_PIECE };
    let share = piece / threads;
    let work = &work;
    let pieces = |start: usize| -> Vec<&[E]> {
        copies
            .iter()
            .map(|copy| &copy[start..start + share])
            .collect()
    };
    let time = shortest(|turn| {
        let start = turn * piece % ELEMENTS;
        let merged = &mut merged[start..start + piece];
        if threads == 1 {
            work(&pieces(start), merged);
            return;
        }
        std::thread::scope(|scope| {
            for (thread, merged) in merged.chunks_mut(share).enumerate() {
                scope.spawn(move || work(&pieces(start + thread * share), merged));
            }
        });
    });
    (copies.len() * piece * size_of::<E>()) as f64 / time.as_secs_f64()
}

/// Of the copies' sum as integers.
fn reading(copies: &[Vec<[u8; 2]>], threads: usize) -> f64 {
    rate(copies, threads, vec![0.0; ELEMENTS], |pieces, _| {
        for piece in pieces {
            let words = piece.as_flattened().as_chunks::<8>().0.iter();
            let add = |sum: u64, word: &[u8; 8]| sum.wrapping_add(u64::from_le_bytes(*word));
            black_box(words.fold(0, add));
        }
    })
}

fn merging<E: Element + Sync>(rule: Rule, clip: Clip, copies: &[Vec<E>], threads: usize) -> f64 {
    rate(copies, threads, vec![0.0; ELEMENTS], |pieces, merged| {
        let copies: Vec<WeightedCopy<'_, E>> = pieces
            .iter()
            .zip(1..)
            .map(|(elements, weight)| WeightedCopy { elements, weight })
            .collect();
        rule.merge_into(black_box(&copies), clip, merged)
            .expect("the copies are finite and of one length");
    })
}

/// Bytes of f32 values per second, of encoding with error feedback and of decoding.
fn coding(codec: Codec, values: &[f32]) -> (f64, f64) {
    let mut residual = vec![0.0; values.len()];
    let piece = |turn: usize| {
        let start = turn * PIECE % values.len();
        start..start + PIECE
    };
    let encoding = shortest(|turn| {
        let feedback = Feedback {
            residual: &mut residual[piece(turn)],
            decay: 0.95,
        };
        let bytes = codec.encode(black_box(&values[piece(turn)]), Some(feedback));
        black_box(bytes).expect("the values are finite");
    });
    let encoded = |turn| codec.encode(&values[piece(turn)], None);
    let pieces: Vec<Vec<u8>> = (0..values.len() / PIECE)
        .map(|turn| encoded(turn).expect("the values are finite"))
        .collect();
    let mut decoded = vec![0.0; values.len()];
    let decoding = shortest(|turn| {
        let bytes = &pieces[turn % pieces.len()];
        codec
            .decode_into(black_box(bytes), &mut decoded[piece(turn)])
            .expect("it was just encoded");
    });
    let rate = |time: Duration| 4.0 * PIECE as f64 / time.as_secs_f64();
    (rate(encoding), rate(decoding))
}

fn shortest(mut pass: impl FnMut(usize)) -> Duration {
    let begin = Instant::now();
    let mut shortest = Duration::MAX;
    let mut turn = 0;
    while turn < PASSES || begin.elapsed() < DURATION {
        let start = Instant::now();
        pass(turn);
        shortest = shortest.min(start.elapsed());
        turn += 1;
    }
    shortest
}

/// Noise of the size that deltas have: nearly normal, with deviation 0.001.
fn copy(seed: u64) -> Vec<f32> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 24) as f32 - 0.5
    };
    (0..ELEMENTS)
        .map(|_| 0.001 * (uniform() + uniform() + uniform() + uniform()) * 1.7)
        .collect()
}
