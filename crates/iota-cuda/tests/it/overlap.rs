//! Passes that are begun before what the last one gives is there: the same bits, in the memory that was planned.

use std::sync::Arc;

use iota_compute::{
    Backend, Cpu, Error, Input, OptimizerSettings, Outgoing, Recompute, Saved, Stage, StageOptions,
};
use iota_cuda::driver::{Address, Driver};
use iota_cuda::{Cuda, memory_plan};
use iota_model::{Boundary, ModelConfig, Precision, StagePlan};

use crate::emulator::Emulator;
use crate::stage::model;

const SAMPLES: usize = 5;

/// When what a pass gives is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Taken {
    /// Before the next pass begins.
    AtOnce,
    /// When the next pass has been begun.
    OnePassLater,
}

/// Takes what passes give, in the order in which they were begun.
struct Taker<B: Backend> {
    taken: Taken,
    before: Option<Outgoing<B>>,
    values: Vec<Vec<f32>>,
    losses: Vec<f32>,
}

impl<B: Backend> Taker<B> {
    fn begun(&mut self, stage: &mut Stage<B>, outgoing: Outgoing<B>) -> Result<(), Error> {
        let before = self.before.replace(outgoing);
        self.take(stage, before)?;
        if self.taken == Taken::AtOnce {
            self.take_last(stage)?;
        }
        Ok(())
    }

    fn take_last(&mut self, stage: &mut Stage<B>) -> Result<(), Error> {
        let last = self.before.take();
        self.take(stage, last)
    }

    fn take(&mut self, stage: &mut Stage<B>, outgoing: Option<Outgoing<B>>) -> Result<(), Error> {
        if let Some(outgoing) = outgoing {
            self.values.push(stage.arrive(outgoing)?);
        }
        Ok(())
    }
}

/// All that a stage gives while it trains as a miner lets it: two forwards before each backward, now and then a backward
/// whose forward is redone, a step after two backwards. Its state comes last.
fn trained<B: Backend>(
    device: B,
    plan: &StagePlan,
    index: usize,
    recompute: Recompute,
    taken: Taken,
) -> Result<Vec<Vec<f32>>, Error> {
    let optimizer = OptimizerSettings::default();
    let mut stage = Stage::on(device, plan, index, optimizer)?.with_recompute(recompute);
    stage.initialise(3)?;
    let mut taker = Taker {
        taken,
        before: None,
        values: Vec::new(),
        losses: Vec::new(),
    };
    let (rows, width) = (plan.config().context, plan.boundary_width());
    let text = |sample: usize, offset| -> Vec<u32> {
        let at = |at: usize| ((at * at + (3 + sample) * at) % 61) as u32;
        (offset..offset + rows).map(at).collect()
    };
    let noise = |seed: usize| -> Vec<f32> {
        let value = |at: usize| ((at * 31 + seed * 17) % 64) as f32 / 32.0 - 1.0;
        (0..rows * width).map(value).collect()
    };
    let mut kept: Vec<(usize, Saved<B>)> = Vec::new();
    for sample in 0..SAMPLES {
        let (tokens, activation) = (text(sample, 0), noise(sample));
        let activation = (index > 0).then_some(activation.as_slice());
        let input = Input::of(plan, &tokens, activation);
        if stage.role().computes_loss() {
            let targets = text(sample, 1);
            let (loss, gradient) = stage.begin_forward_backward_loss(input, &targets)?;
            taker.losses.push(loss);
            if let Some(gradient) = gradient {
                taker.begun(&mut stage, gradient)?;
            }
        } else {
            let (output, saved) = stage.begin_forward(input)?;
            taker.begun(&mut stage, output)?;
            kept.push((sample, saved));
            if sample == 0 {
                continue;
            }
            let (sample, mut saved) = kept.remove(0);
            let tokens = text(sample, 0);
            let activation = noise(sample);
            let activation = (index > 0).then_some(activation.as_slice());
            if sample == 2 {
                stage.discard(saved);
                saved = stage.forward_again(Input::of(plan, &tokens, activation))?;
            }
            let gradient = noise(100 + sample);
            if let Some(gradient) = stage.begin_backward(saved, &gradient)? {
                taker.begun(&mut stage, gradient)?;
            }
        }
        if sample % 2 == 1 {
            stage.step(0.003, 2)?;
        }
    }
    taker.take_last(&mut stage)?;
    let state = stage.download_state(0..stage.layout().elements())?;
    let losses = [taker.losses];
    Ok(taker
        .values
        .into_iter()
        .chain(losses)
        .chain(state)
        .collect())
}

fn bits(values: &[Vec<f32>]) -> Vec<u32> {
    values.iter().flatten().map(|it| it.to_bits()).collect()
}

/// `device` makes a new one for each run.
#[track_caller]
fn assert_same_bits<B: Backend>(plan: &StagePlan, recompute: Recompute, device: impl Fn() -> B) {
    for index in 0..plan.stages().len() {
        let [at_once, later] = [Taken::AtOnce, Taken::OnePassLater]
            .map(|taken| trained(device(), plan, index, recompute, taken).unwrap());
        assert!(
            at_once.iter().flatten().all(|value| value.is_finite()),
            "stage {index}: something was read before it was there"
        );
        assert!(bits(&at_once) == bits(&later), "stage {index}");
    }
}

fn plan(boundary: Boundary) -> StagePlan {
    let config = ModelConfig {
        blocks: 3,
        ..model(boundary)
    };
    StagePlan::new(&config, 3).unwrap()
}

fn on(driver: Arc<dyn Driver>, precision: Precision) -> Cuda {
    Cuda::on(driver, precision)
}

#[test]
fn every_stage_gives_the_same_bits_whether_its_passes_overlap_or_not() {
    for (boundary, recompute, precision) in [
        (Boundary::None, Recompute::Nothing, Precision::F32),
        (
            Boundary::Anchored { channels: 9 },
            Recompute::Blocks,
            Precision::Bf16,
        ),
    ] {
        let Some(emulator) = Emulator::new(1) else {
            return;
        };
        assert_same_bits(&plan(boundary), recompute, || {
            on(emulator.clone(), precision)
        });
    }
}

#[test]
fn a_cpu_whose_passes_are_over_when_they_return_gives_the_same_bits_too() {
    let plan = plan(Boundary::Iota { channels: 10 });
    assert_same_bits(&plan, Recompute::Nothing, || Cpu::new(1).unwrap());
}

/// What a stage holds when what one pass gives is not taken before the next has been begun, and not a tenth more.
#[test]
fn passes_that_overlap_stay_within_the_memory_that_was_planned() {
    let plan = plan(Boundary::None);
    let options = StageOptions::default();
    for index in 0..3 {
        // Of two forwards one waits while the other is under way, and one is redone beside one that waits.
        let memory = memory_plan(&plan, index, &options, plan.config().context, 2).unwrap();
        let run = |room_bytes: u64| {
            let emulator = Emulator::with_room(1, room_bytes as usize)?;
            let device = on(emulator, options.precision);
            let taken = Taken::OnePassLater;
            Some(trained(device, &plan, index, Recompute::Nothing, taken))
        };
        let Some(result) = run(memory.total_bytes()) else {
            return;
        };
        result.unwrap_or_else(|error| panic!("stage {index}: {error}\n{memory}"));
        let result = run(memory.total_bytes() * 9 / 10).unwrap();
        assert!(
            matches!(result, Err(Error::OutOfMemory { .. })),
            "stage {index}: a tenth less is enough"
        );
    }
}

/// The code that calls the driver, over one that does what it is asked for as late as it may, and copies in the worst moment.
#[cfg(feature = "cuda")]
#[test]
fn a_card_orders_passes_and_copies_by_events_alone() {
    if !crate::emulator::stand_in_for_nvidia() {
        return;
    }
    let card = iota_cuda::Card::open(0, None).unwrap();
    let plan = plan(Boundary::Anchored { channels: 9 });
    assert_same_bits(&plan, Recompute::Nothing, || {
        on(card.clone(), Precision::F32)
    });
}

mod teeth {
    //! That the emulation shows what it is there to show.
    #![expect(unsafe_code, reason = "a driver is given addresses")]

    use super::*;

    /// A number in a card's memory that work has read, and another. Whether there is such a card.
    fn with_numbers(check: impl FnOnce(&Emulator, [Address; 2])) -> bool {
        let Some(card) = Emulator::new(1) else {
            return false;
        };
        let places = [(); 2].map(|()| card.allocate(4).unwrap());
        // SAFETY: they are allocated, here and below, and given back when they are done with.
        unsafe {
            card.upload(places[0], &1.0_f32.to_ne_bytes()).unwrap();
            card.copy(places[1], places[0], 4).unwrap();
            check(&card, places);
            for place in places {
                card.release(place, 4);
            }
        }
        true
    }

    fn number(card: &Emulator, at: Address) -> f32 {
        let mut bytes = [0; 4];
        // SAFETY: as above.
        unsafe { card.download(&mut bytes, at).unwrap() };
        f32::from_ne_bytes(bytes)
    }

    #[test]
    fn an_upload_is_not_a_number_until_it_is_waited_for() {
        with_numbers(|card, [at, _]| {
            let read = card.mark().unwrap();
            // SAFETY: as above.
            let landed = unsafe { card.begin_upload(at, &2.0_f32.to_ne_bytes(), Some(read)) };
            assert!(number(card, at).is_nan());
            card.wait(landed.unwrap()).unwrap();
            assert_eq!(number(card, at), 2.0);
        });
    }

    #[test]
    fn an_upload_that_does_not_wait_for_those_who_read_what_it_overwrites_is_caught() {
        let caught = std::panic::catch_unwind(|| {
            with_numbers(|card, [at, _]| {
                // SAFETY: as above; that it is still read is what this is about.
                let landed = unsafe { card.begin_upload(at, &2.0_f32.to_ne_bytes(), None) };
                card.wait(landed.unwrap()).unwrap();
            })
        });
        // Where there is no compiler there was no card.
        assert_ne!(caught.ok(), Some(true), "nothing was caught");
    }

    #[test]
    fn a_download_has_what_was_written_before_it_was_taken() {
        with_numbers(|card, [at, _]| {
            // SAFETY: as above; that it is written to is what this is about.
            let leaving = unsafe {
                let leaving = card.begin_download(at, 4).unwrap();
                card.zero(at, 4).unwrap();
                leaving
            };
            let mut bytes = [0; 4];
            card.finish_download(&mut bytes, leaving).unwrap();
            assert_eq!(f32::from_ne_bytes(bytes), 0.0);
        });
    }
}
