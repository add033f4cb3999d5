//! The network between peers and the orchestrator: requests and answers, with what may happen to them on the way.

use super::{Happening, World};
use crate::fault::Fault;
use crate::node::Asked;
use crate::orchestrator::{Answer, Answers, Caller, Fate, Request};

/// How long a call is waited for, in milliseconds: longer than a poll is held.
const CALL_TIMEOUT: u64 = 15_000;

impl World {
    pub(super) fn call(&mut self, node: usize, asked: Asked, request: Request) -> u64 {
        self.calls += 1;
        let call = self.calls;
        let place = &mut self.nodes[node];
        place.asked.insert(call, asked);
        let is_cut_off = place.cut_off_until > self.now;
        let caller = Caller {
            node,
            life: place.life,
            call,
        };
        let answer = Answer::Unreachable;
        self.at(
            self.now + CALL_TIMEOUT,
            Happening::Answered { caller, answer },
        );
        if is_cut_off || self.strikes(self.rates.request_lost, Fault::RequestLost) {
            return call;
        }
        if self.strikes(self.rates.repeated, Fault::RequestRepeated) {
            let at = self.now + self.latency() + self.chance.between(0, 5_000);
            let request = request.clone();
            self.at(at, Happening::Arrives { caller, request });
        }
        let at = self.now + self.latency();
        self.at(at, Happening::Arrives { caller, request });
        call
    }

    pub(super) fn arrives(&mut self, caller: Caller, request: &Request) -> Result<(), String> {
        if !self.orchestrator.is_up {
            self.deliver(vec![(caller, Answer::Unreachable)]);
            return Ok(());
        }
        let fate = if self.strikes(self.rates.decision_lost, Fault::DecisionLost) {
            Fate::DecisionLost
        } else if self.strikes(self.rates.answer_died, Fault::AnswerDied) {
            Fate::AnswerDied
        } else {
            Fate::Answered
        };
        let answers = self.orchestrator.take(caller, request, self.now, fate)?;
        if fate == Fate::Answered {
            self.deliver(answers);
            self.arm();
            if self.rates.orchestrator_crash_every > 0 && self.chance.happens(60) {
                self.orchestrator.save_snapshot()?;
            }
        } else {
            self.crash_orchestrator();
        }
        Ok(())
    }

    pub(super) fn deliver(&mut self, answers: Answers) {
        for (caller, answer) in answers {
            let is_cut_off = self.nodes[caller.node].cut_off_until > self.now;
            if is_cut_off || self.strikes(self.rates.answer_lost, Fault::AnswerLost) {
                continue;
            }
            let at = self.now + self.latency();
            self.at(at, Happening::Answered { caller, answer });
        }
    }
}
