use iota_compute::{Error, Input, Stage, StageOptions};
use iota_model::{StagePlan, StageRole, preset};

use crate::stages;

fn head_and_tail() -> [Stage; 2] {
    let plan = StagePlan::new(&preset("tiny").unwrap(), 2).unwrap();
    stages(&plan, StageOptions::default())
        .try_into()
        .unwrap_or_else(|_| panic!("two stages"))
}

#[test]
fn an_input_of_the_wrong_kind_or_shape_is_refused() {
    let [mut head, mut tail] = head_and_tail();
    let activation = vec![0.5; 32 * 16];
    let tokens = vec![1; 32];
    let refused = head.forward(Input::Activation(&activation)).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::InputKind {
                role: StageRole::Head,
                given: "an activation",
                ..
            }
        ),
        "{refused}"
    );
    let anchored = Input::Anchored {
        activation: &activation,
        tokens: &tokens,
    };
    let refused = tail.evaluate(anchored, &tokens).unwrap_err();
    assert!(matches!(
        refused,
        Error::InputKind {
            expected: "an activation",
            given: "an activation and tokens",
            ..
        }
    ));
    let refused = tail.evaluate(Input::Tokens(&tokens), &tokens).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::InputKind {
                role: StageRole::Tail,
                given: "tokens",
                ..
            }
        ),
        "{refused}"
    );
    let refused = tail
        .evaluate(Input::Activation(&activation[1..]), &tokens)
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Rows {
                elements: 511,
                width: 16
            }
        ),
        "{refused}"
    );
    for count in [0, 33] {
        let refused = head.forward(Input::Tokens(&vec![1; count])).unwrap_err();
        assert!(
            matches!(refused, Error::Sequences { context: 32, .. }),
            "{refused}"
        );
    }
    let refused = tail
        .evaluate(Input::Activation(&activation), &tokens[1..])
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Length {
                expected: 32,
                actual: 31,
                ..
            }
        ),
        "{refused}"
    );
}

#[test]
fn tokens_and_targets_outside_the_vocabulary_are_refused_by_their_position() {
    let [mut head, mut tail] = head_and_tail();
    let mut tokens = vec![1; 32];
    tokens[7] = 256;
    let refused = head.forward(Input::Tokens(&tokens)).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Vocabulary {
                what: "token",
                token: 256,
                position: 7,
                ..
            }
        ),
        "{refused}"
    );
    let refused = tail
        .forward_backward_loss(Input::Activation(&vec![0.5; 32 * 16]), &tokens)
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Vocabulary {
                what: "target",
                position: 7,
                ..
            }
        ),
        "{refused}"
    );
}

#[test]
fn what_is_not_finite_is_refused_before_it_spreads() {
    let [mut head, mut tail] = head_and_tail();
    let tokens = vec![1; 32];
    let mut activation = vec![0.5; 32 * 16];
    activation[100] = f32::NAN;
    let refused = tail
        .forward_backward_loss(Input::Activation(&activation), &tokens)
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::NotFinite {
                what: "the input activation"
            }
        ),
        "{refused}"
    );
    let (output, saved) = head.forward(Input::Tokens(&tokens)).unwrap();
    let refused = head
        .backward(saved, &vec![f32::INFINITY; output.len()])
        .unwrap_err();
    assert!(matches!(refused, Error::NotFinite { .. }), "{refused}");
    assert!(
        head.gradients()
            .iter()
            .chain(tail.gradients())
            .all(|gradient| *gradient == 0.0)
    );
}

#[test]
fn a_gradient_that_overflows_is_dropped_by_the_step() {
    let [mut head, _] = head_and_tail();
    let before = head.digest();
    let (output, saved) = head.forward(Input::Tokens(&[1; 32])).unwrap();
    head.backward(saved, &vec![f32::MAX; output.len()]).unwrap();
    let refused = head.step(0.1, 1).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::NotFinite {
                what: "the gradient"
            }
        ),
        "{refused}"
    );
    assert_eq!(head.digest(), before);
    assert!(head.gradients().iter().all(|gradient| *gradient == 0.0));
}

#[test]
fn only_the_last_stage_computes_a_loss_and_it_computes_nothing_else() {
    let [mut head, mut tail] = head_and_tail();
    let refused = head
        .forward_backward_loss(Input::Tokens(&[1; 32]), &[1; 32])
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Unsupported {
                role: StageRole::Head,
                ..
            }
        ),
        "{refused}"
    );
    let refused = tail
        .forward(Input::Activation(&vec![0.5; 32 * 16]))
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::Unsupported {
                role: StageRole::Tail,
                ..
            }
        ),
        "{refused}"
    );
}

#[test]
fn a_forward_pass_of_another_stage_is_not_taken_back() {
    let plan = StagePlan::new(&preset("tiny").unwrap(), 3).unwrap();
    let mut three = stages(&plan, StageOptions::default());
    let [mut head, _] = head_and_tail();
    let (output, saved) = three[0].forward(Input::Tokens(&[1; 32])).unwrap();
    assert!(matches!(
        head.backward(saved, &output),
        Err(Error::ForeignSaved)
    ));
    let (output, saved) = head.forward(Input::Tokens(&[1; 32])).unwrap();
    assert!(matches!(
        three[1].backward(saved, &output),
        Err(Error::ForeignSaved)
    ));
}

#[test]
fn there_is_no_stage_beyond_the_plan() {
    let plan = StagePlan::new(&preset("tiny").unwrap(), 2).unwrap();
    let refused = Stage::new(&plan, 2, StageOptions::default()).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::NoSuchStage {
                index: 2,
                stages: 2
            }
        ),
        "{refused}"
    );
}
