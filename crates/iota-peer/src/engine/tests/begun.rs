//! Passes that are finished after others have been begun.

use super::*;

/// A pass that has been begun, and what its log entry will say besides.
enum Begun {
    Forward(u64, BegunForward),
    Backward(u64, u64, BegunBackward),
}

fn begin(engine: &mut Engine, step: Step) -> Begun {
    let stage = engine.index().get();
    match step {
        Step::Forward { sample } | Step::LostForward { sample } => {
            let begun = engine.begin_forward(SampleId::new(sample), &input(stage, sample, 0));
            Begun::Forward(sample, begun.unwrap())
        }
        Step::Backward { sample, version } => {
            let gradient = (!engine.is_tail()).then(|| values(1_000 + sample));
            let begun = engine.begin_backward(
                SampleId::new(sample),
                &input(stage, sample, version),
                gradient.as_deref(),
                LEARNING_RATE,
                false,
            );
            Begun::Backward(sample, version, begun.unwrap())
        }
    }
}

fn finish(engine: &mut Engine, begun: Begun) -> Entry {
    match begun {
        Begun::Forward(sample, begun) => {
            Entry::of_forward(sample, engine.finish_forward(begun).unwrap())
        }
        Begun::Backward(sample, version, begun) => {
            let result = engine.finish_backward(begun).unwrap();
            Entry::of_backward(sample, version, &result)
        }
    }
}

#[test]
fn passes_that_are_finished_one_later_are_those_that_are_finished_at_once() {
    for stage in 0..STAGES {
        let is_known = |step: &Step| !matches!(step, Step::LostForward { .. });
        let script: Vec<Step> = script(stage).into_iter().filter(is_known).collect();
        let (mut at_once, mut late) = (engine(stage, 1), engine(stage, 1));
        let expected = mine(&mut at_once, &script);
        let mut log = Vec::new();
        let mut before = None;
        for step in script {
            let begun = begin(&mut late, step);
            if let Some(before) = before.replace(begun) {
                log.push(finish(&mut late, before));
            }
        }
        log.extend(before.map(|last| finish(&mut late, last)));
        assert_eq!(log, expected, "stage {stage}");
        assert!(
            upload(&mut late) == upload(&mut at_once),
            "the uploads of stage {stage} differ"
        );
    }
}

#[test]
fn a_forward_that_overflows_takes_nothing_of_one_that_was_begun_behind_it() {
    let mut engine = engine(1, 1);
    for parameter in engine.stage.cpu().state_mut().parameters.iter_mut() {
        *parameter *= 100.0;
    }
    let sample = SampleId::new(0);
    let first = engine.begin_forward(sample, &overflowing()).unwrap();
    let second = engine.begin_forward(sample, &input(1, 0, 0)).unwrap();
    assert!(engine.finish_forward(first).unwrap_err().is_not_finite());
    assert_eq!(engine.finish_forward(second).unwrap().0, 1);
    assert_eq!(backward(&mut engine, 0, 0, false).recomputed, Some(false));
}
