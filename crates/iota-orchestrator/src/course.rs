//! The course of a run in a few numbers, from its events.

use std::collections::VecDeque;
use std::time::Duration;

use iota_protocol::Timestamp;
use iota_protocol::event::Event;
use serde::{Deserialize, Serialize};

/// What a run's events say of how it went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Course {
    first: Vec<f32>,
    last: VecDeque<f32>,
    began: Option<Timestamp>,
    ended: Option<Timestamp>,
}

/// Samples whose mean loss is called that of the start.
const FIRST: usize = 8;
/// Samples whose mean loss is called that of the end: more, since by then the loss moves less than samples differ.
const LAST: usize = 64;

impl Course {
    pub(crate) fn follow(&mut self, at: Timestamp, event: &Event) {
        match event {
            Event::SampleOpened { .. } => self.began = self.began.or(Some(at)),
            Event::SampleCompleted { loss, .. } => {
                if self.first.len() < FIRST {
                    self.first.push(*loss);
                }
                if self.last.len() == LAST {
                    self.last.pop_front();
                }
                self.last.push_back(*loss);
                self.ended = Some(at);
            }
            Event::CheckpointCommitted(_) => self.ended = Some(at),
            _ => {}
        }
    }

    /// Mean training loss over the first samples, in nats per token; NaN before there are any.
    pub fn loss_at_start(&self) -> f64 {
        mean(self.first.iter())
    }

    /// Mean training loss over the last samples, in nats per token; NaN before there are any.
    pub fn loss_at_end(&self) -> f64 {
        mean(self.last.iter())
    }

    /// From the first sample's beginning to the last merge.
    pub fn elapsed(&self) -> Duration {
        self.began
            .zip(self.ended)
            .map_or(Duration::ZERO, |(began, ended)| ended.since(began))
    }
}

fn mean<'a>(losses: impl ExactSizeIterator<Item = &'a f32>) -> f64 {
    let count = losses.len() as f64;
    losses.map(|loss| f64::from(*loss)).sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use iota_protocol::SampleId;

    use super::*;

    #[test]
    fn start_and_end_are_means_over_the_first_and_the_last_samples() {
        let mut course = Course::default();
        assert!(course.loss_at_start().is_nan());
        for sample in 0..200_u64 {
            let at = Timestamp::from_millis(1_000 * sample);
            course.follow(
                at,
                &Event::SampleOpened {
                    sample: SampleId::new(sample),
                },
            );
            let loss = 5.0 - sample as f32 / 100.0;
            course.follow(
                at,
                &Event::SampleCompleted {
                    sample: SampleId::new(sample),
                    loss,
                    path: vec![],
                },
            );
        }
        assert!((course.loss_at_start() - (5.0 - 0.035)).abs() < 1e-5);
        assert!((course.loss_at_end() - (5.0 - 1.675)).abs() < 1e-5);
        assert_eq!(course.elapsed(), Duration::from_secs(199));
    }
}
