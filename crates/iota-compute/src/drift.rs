//! How far two devices are apart that do the same work, as it goes on.
//!
//! ```text
//!                      what the doer sent                          what the doer sent
//!   doer      tokens ─► stage 0 ───────┬────► stage 1 ─► ...  ...◄──┬──── stage 2 ◄─ loss      n steps, then n + 1, ...
//!                          ╎           │         ╎                  │        ╎
//!   checker   tokens ─► stage 0'       └────► stage 1' ─► ...       └──── stage 2'
//!                          ╎                     ╎                           ╎
//!                       Distance              Distance                    Distance
//! ```
//!
//! The checker does what an auditor does: it starts from the same weights, reads the same tensors, takes the same steps
//! with gradients of its own. So what it computes differs by how the two round, and by what has become of the weights since
//! they started; what the tolerances of audits are made of is measured by [`drift`].

use crate::backend::Backend;
use crate::error::Result;
use crate::stage::{Input, Stage};

/// How far a tensor is from what it is compared with. Infinite where anything is not finite.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distance {
    /// `|found - expected| / |expected|`: how much of it is something else.
    pub relative: f64,
    /// The largest difference of a row, as a fraction of that row's length and the usual row's together: whether a little
    /// of it is something else altogether.
    pub row: f64,
    /// `|<found, expected> / <expected, expected> - 1|`: whether it is longer or shorter. Rounding has no direction, so of
    /// two honest tensors this is much smaller than `relative`.
    pub scale: f64,
}

impl Distance {
    /// Of what somebody says to what we have, by rows of so many elements: of an activation those of a token. Sums are in
    /// f64 and in order.
    ///
    /// # Panics
    /// If one is longer than the other, or a row has no elements.
    pub fn between(expected: &[f32], found: &[f32], row_elements: usize) -> Self {
        assert_eq!(expected.len(), found.len(), "tensors of one shape");
        let mut sums = Sums::default();
        let rows = expected
            .chunks(row_elements)
            .zip(found.chunks(row_elements));
        let rows: Vec<Sums> = rows
            .map(|(expected, found)| Sums::of(expected, found))
            .collect();
        for row in &rows {
            sums.expected += row.expected;
            sums.product += row.product;
            sums.difference += row.difference;
        }
        if sums.difference == 0.0 {
            return Self::default();
        }
        let usual = (sums.expected / rows.len() as f64).sqrt();
        let worst = rows
            .iter()
            .map(|row| row.difference.sqrt() / (row.expected.sqrt() + usual));
        let distance = Self {
            relative: (sums.difference / sums.expected).sqrt(),
            row: worst.fold(0.0, f64::max),
            scale: (sums.product / sums.expected - 1.0).abs(),
        };
        // NaN, or infinities that have cancelled.
        if sums.difference.is_finite() && distance.scale.is_finite() {
            distance
        } else {
            Self {
                relative: f64::INFINITY,
                row: f64::INFINITY,
                scale: f64::INFINITY,
            }
        }
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            relative: self.relative.max(other.relative),
            row: self.row.max(other.row),
            scale: self.scale.max(other.scale),
        }
    }
}

/// Of a row, or of all: squares of what is expected, of the difference, and the product with what was found.
#[derive(Default)]
struct Sums {
    expected: f64,
    product: f64,
    difference: f64,
}

impl Sums {
    fn of(expected: &[f32], found: &[f32]) -> Self {
        let mut sums = Self::default();
        for (expected, found) in expected.iter().zip(found) {
            let (expected, found) = (f64::from(*expected), f64::from(*found));
            sums.expected += expected * expected;
            sums.product += expected * found;
            sums.difference += (found - expected).powi(2);
        }
        sums
    }
}

/// Elements of parameters and moments that count as a row: few enough that a spoilt tensor of any size has some.
pub const STATE_ROW: usize = 256;

/// What two devices are compared in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quantity {
    /// What a stage hands on.
    Activation,
    /// What it hands back.
    Gradient,
    /// The mean loss of a sample, as a tensor of one element.
    Loss,
    /// What became of the parameters since both started.
    Change,
    /// The optimizer's first moment.
    FirstMoment,
    /// Its second moment.
    SecondMoment,
}

impl Quantity {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Activation,
        Self::Gradient,
        Self::Loss,
        Self::Change,
        Self::FirstMoment,
        Self::SecondMoment,
    ];
}

/// The worst of a quantity at any stage, after so many steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drift {
    /// Of what.
    pub quantity: Quantity,
    /// Optimizer steps since both started.
    pub steps: u64,
    /// The larger of each over stages and samples.
    pub distance: Distance,
}

/// How the comparison goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Course {
    /// Steps that the checker takes alone, first: both start where it has come to.
    pub before: u64,
    /// Steps that are compared.
    pub steps: u64,
    /// Samples of a step.
    pub backwards_per_step: u32,
    /// Of a step from the end of the warm-up on.
    pub learning_rate: f32,
    /// Steps, those before included, over which the learning rate rises to that.
    pub warmup_steps: u64,
    /// Pieces of equal length into which a stage's parameters and moments are cut: the worst of them counts.
    pub cells: usize,
}

impl Course {
    fn learning_rate(&self, steps: u64) -> f32 {
        let risen = (steps + 1) as f32 / self.warmup_steps.max(1) as f32;
        self.learning_rate * risen.min(1.0)
    }
}

/// What becomes of a tensor on its way from a stage to the next: encoded, decoded. It is given the quantity, the stage that
/// sends, and the sample.
pub type Wire<'a> = dyn FnMut(Quantity, usize, u64, Vec<f32>) -> Vec<f32> + 'a;

/// A sample's tokens and targets, by its number.
pub type Samples<'a> = dyn FnMut(u64) -> (Vec<u32>, Vec<u32>) + 'a;

/// Trains all stages of a model on one device while another one checks each pass, and says after each step how far they are
/// apart: of passes those with so many steps behind them, of parameters and moments what they are then.
///
/// `checker`, `doer`: all stages of one plan, in order, initialised with one seed.
///
/// # Errors
/// What is wrong with a sample; the devices'.
///
/// # Panics
/// If there are no stages, or not as many of both.
pub fn drift<C: Backend, D: Backend>(
    checker: &mut [Stage<C>],
    doer: &mut [Stage<D>],
    course: Course,
    samples: &mut Samples<'_>,
    wire: &mut Wire<'_>,
) -> Result<Vec<Drift>> {
    assert_eq!(checker.len(), doer.len(), "both hold all stages");
    assert!(!doer.is_empty(), "a model has stages");
    let width = doer[0].plan().boundary_width();
    let mut next_sample = 0..;
    let mut trained = |stages: &mut [Stage<C>],
                       given: Option<(&mut [Stage<D>], &mut [Distance; 3])>| {
        let number = next_sample.next().expect("numbers do not end");
        let sample = Sample::take(number, samples);
        let Some((doer, worst)) = given else {
            return pass(stages, &sample, wire, None).map(drop);
        };
        let sent = pass(doer, &sample, wire, None)?;
        let redone = pass(stages, &sample, wire, Some(&sent))?;
        redone.compare(&sent, width, worst);
        Ok(())
    };
    for steps in 0..course.before {
        for _ in 0..course.backwards_per_step {
            trained(checker, None)?;
        }
        step(checker, course, steps)?;
    }
    let starts = start_together(checker, doer)?;
    let mut drifts = Vec::new();
    for steps in 0..course.steps {
        let mut worst = [Distance::default(); 3];
        for _ in 0..course.backwards_per_step {
            trained(checker, Some((doer, &mut worst)))?;
        }
        step(checker, course, course.before + steps)?;
        step(doer, course, course.before + steps)?;
        let passes = Quantity::ALL.into_iter().zip(worst);
        drifts.extend(passes.map(|(quantity, distance)| Drift {
            quantity,
            steps,
            distance,
        }));
        let [_, _, _, states @ ..] = Quantity::ALL;
        let distances = compare_states(checker, doer, &starts, course.cells)?;
        drifts.extend(
            states
                .into_iter()
                .zip(distances)
                .map(|(quantity, distance)| Drift {
                    quantity,
                    steps: steps + 1,
                    distance,
                }),
        );
    }
    Ok(drifts)
}

/// A sample with its number.
struct Sample {
    number: u64,
    tokens: Vec<u32>,
    targets: Vec<u32>,
}

impl Sample {
    fn take(number: u64, samples: &mut Samples<'_>) -> Self {
        let (tokens, targets) = samples(number);
        Self {
            number,
            tokens,
            targets,
        }
    }
}

/// What the stages sent each other about a sample, as it arrived.
#[derive(Default)]
struct Sent {
    /// By each stage but the last.
    activations: Vec<Vec<f32>>,
    /// By each stage but the first, from the last on.
    gradients: Vec<Vec<f32>>,
    loss: f32,
}

impl Sent {
    /// `worst`: of the first three quantities, brought up to date with how far `sent` is from this.
    fn compare(&self, sent: &Self, width: usize, worst: &mut [Distance; 3]) {
        let losses = (vec![vec![self.loss]], vec![vec![sent.loss]]);
        let pairs = [
            (&self.activations, &sent.activations),
            (&self.gradients, &sent.gradients),
            (&losses.0, &losses.1),
        ];
        for (worst, (expected, found)) in worst.iter_mut().zip(pairs) {
            for (expected, found) in expected.iter().zip(found) {
                *worst = worst.max(Distance::between(expected, found, width));
            }
        }
    }
}

/// Carries a sample through all stages and back. `given`: what each of them reads, instead of what is sent here.
fn pass<B: Backend>(
    stages: &mut [Stage<B>],
    sample: &Sample,
    wire: &mut Wire<'_>,
    given: Option<&Sent>,
) -> Result<Sent> {
    let mut sent = Sent::default();
    let (tail, others) = stages.split_last_mut().expect("a model has stages");
    let plan = tail.plan().clone();
    let mut kept = Vec::with_capacity(others.len());
    for (index, stage) in others.iter_mut().enumerate() {
        let read = given
            .unwrap_or(&sent)
            .activations
            .get(index.wrapping_sub(1));
        let input = Input::of(&plan, &sample.tokens, read.map(Vec::as_slice));
        let (output, saved) = stage.forward(input)?;
        kept.push(saved);
        let output = wire(Quantity::Activation, index, sample.number, output);
        sent.activations.push(output);
    }
    let read = given.unwrap_or(&sent).activations.last();
    let input = Input::of(&plan, &sample.tokens, read.map(Vec::as_slice));
    let (loss, mut gradient) = tail.forward_backward_loss(input, &sample.targets)?;
    sent.loss = loss;
    for (index, (stage, saved)) in others.iter_mut().zip(kept).enumerate().rev() {
        let own = gradient.take().expect("there is a stage before this one");
        sent.gradients
            .push(wire(Quantity::Gradient, index + 1, sample.number, own));
        let at = sent.gradients.len() - 1;
        gradient = stage.backward(saved, &given.unwrap_or(&sent).gradients[at])?;
    }
    Ok(sent)
}

fn step<B: Backend>(stages: &mut [Stage<B>], course: Course, steps: u64) -> Result<()> {
    for stage in stages {
        stage.step(course.learning_rate(steps), course.backwards_per_step)?;
    }
    Ok(())
}

/// Gives the doer the checker's state. Returns each stage's parameters.
fn start_together<C: Backend, D: Backend>(
    checker: &[Stage<C>],
    doer: &mut [Stage<D>],
) -> Result<Vec<Vec<f32>>> {
    let mut starts = Vec::with_capacity(doer.len());
    for (from, to) in checker.iter().zip(doer) {
        let [parameters, first, second] = from.download_state(0..from.layout().elements())?;
        to.upload_state(0, [&parameters, &first, &second])?;
        to.set_optimizer_steps(from.optimizer_steps());
        starts.push(parameters);
    }
    Ok(starts)
}

/// The worst over pieces of all stages of what became of the parameters, and of both moments.
fn compare_states<C: Backend, D: Backend>(
    checker: &[Stage<C>],
    doer: &[Stage<D>],
    starts: &[Vec<f32>],
    cells: usize,
) -> Result<[Distance; 3]> {
    let mut worst = [Distance::default(); 3];
    for ((checker, doer), start) in checker.iter().zip(doer).zip(starts) {
        let all = 0..start.len();
        let (mut expected, mut found) = (
            checker.download_state(all.clone())?,
            doer.download_state(all)?,
        );
        for parameters in [&mut expected[0], &mut found[0]] {
            for (value, start) in parameters.iter_mut().zip(start) {
                *value -= start;
            }
        }
        for (worst, (expected, found)) in worst.iter_mut().zip(expected.iter().zip(&found)) {
            let cell = start.len().div_ceil(cells.max(1));
            for (expected, found) in expected.chunks(cell).zip(found.chunks(cell)) {
                *worst = worst.max(Distance::between(expected, found, STATE_ROW));
            }
        }
    }
    Ok(worst)
}
