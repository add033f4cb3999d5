//! What processes of miners and validators do: the effects of their machines, and the steps of their work.

use iota_protocol::LeaseId;
use iota_protocol::peer::{Effect, Stop};
use iota_protocol::work::{Difference, Failure};

use super::{Happening, Step, World};
use crate::fault::Fault;
use crate::node::{Asked, Node};
use crate::orchestrator::Request;
use crate::plan::{Behaviour, NodePlan, Plan};
use crate::worker::{Operated, inputs};

impl World {
    pub(super) fn add(&mut self, plan: NodePlan) {
        let node = self.nodes.len();
        self.nodes.push(Node::new(plan));
        self.at(plan.starts_at, Happening::Starts { node });
    }

    /// An honest miner comes who was not there before.
    pub(super) fn help(&mut self) {
        self.helpers += 1;
        self.add(Plan::helper(self.helpers, self.now));
    }

    /// Does what a peer's machine asks for, and arms its timer.
    pub(super) fn drain(&mut self, node: usize) {
        while let Some(effect) = self.nodes[node]
            .peer
            .as_mut()
            .and_then(|peer| peer.poll_effect())
        {
            self.effect(node, effect);
        }
        let place = &mut self.nodes[node];
        let timeout = place.peer.as_ref().and_then(|peer| peer.poll_timeout());
        let Some(timeout) = timeout else {
            return;
        };
        let at = timeout
            .as_millis()
            .saturating_sub(place.plan.clock_ahead)
            .max(self.now);
        if place.timer_at.is_none_or(|armed| at < armed) {
            place.timer_at = Some(at);
            let life = place.life;
            self.at(at, Happening::Timer { node, life });
        }
    }

    pub(super) fn effect(&mut self, node: usize, effect: Effect) {
        let place = &mut self.nodes[node];
        match effect {
            Effect::Join => {
                let NodePlan {
                    peer,
                    role,
                    capacity,
                    ..
                } = place.plan;
                let request = Request::Join {
                    peer,
                    role,
                    capacity,
                };
                self.call(node, Asked::Join, request);
            }
            Effect::Poll {
                session,
                room,
                held,
            } => {
                if let Some(earlier) = place.open_poll.take() {
                    place.asked.remove(&earlier);
                }
                let request = Request::Poll {
                    session,
                    room,
                    held,
                };
                let call = self.call(node, Asked::Poll(session), request);
                self.nodes[node].open_poll = Some(call);
            }
            Effect::Start { lease } => {
                let Some(arrived) = place.arrived.remove(&lease) else {
                    return;
                };
                if place.behaviour == Behaviour::Idler {
                    self.faults.count(Fault::Lie);
                    return;
                }
                let reads = !inputs(&arrived.work).is_empty();
                place.worker.start(arrived);
                let readable =
                    !(reads && self.strikes(self.rates.unavailable, Fault::StoreUnavailable));
                let took = self.transfer(node);
                self.task_at(self.now + took, node, lease, Step::Fetched { readable });
            }
            Effect::Abandon { lease } => place.worker.abandon(lease),
            Effect::Report {
                session,
                lease,
                result: Ok(outcome),
            } => {
                let request = Request::Complete {
                    session,
                    lease,
                    outcome,
                };
                self.call(node, Asked::Complete(session, lease), request);
            }
            Effect::Report {
                session,
                lease,
                result: Err(failure),
            } => {
                let request = Request::Fail {
                    session,
                    lease,
                    failure,
                };
                self.call(node, Asked::GiveBack(session, lease), request);
            }
            Effect::Reset => place.reset(),
            Effect::Leave { session } => {
                self.call(node, Asked::Leave, Request::Leave { session });
            }
            Effect::Stop { why } => {
                place.end();
                if why == Stop::Shutdown {
                    let back = self.now + self.chance.between(1_000, 40_000);
                    self.at(back, Happening::Starts { node });
                }
            }
        }
    }

    pub(super) fn task(&mut self, node: usize, lease: LeaseId, step: Step) {
        let place = &mut self.nodes[node];
        let ended = match step {
            Step::Fetched { readable: false } => Err(Failure::StoreUnavailable.into()),
            Step::Fetched { readable: true } => {
                let accused = place.worker.lease(lease).map(|lease| inputs(&lease.work));
                let accused = accused.and_then(|objects| objects.first().copied());
                let fetched = match accused {
                    Some(object)
                        if place.behaviour == Behaviour::Accuser && self.chance.happens(3_000) =>
                    {
                        self.faults.count(Fault::Lie);
                        let difference = Difference::Missing;
                        let object = object.name;
                        Err(Failure::BadInput { object, difference }.into())
                    }
                    _ => place.worker.fetched(lease, &self.store),
                };
                match fetched {
                    Ok(()) => {
                        let took = self.chance.between(20, 400) * place.plan.slowness;
                        place.busy_until = place.busy_until.max(self.now) + took;
                        let at = place.busy_until;
                        return self.task_at(at, node, lease, Step::Operates);
                    }
                    Err(undone) => Err(undone),
                }
            }
            Step::Operates => {
                match place
                    .worker
                    .operate(lease, &self.plan.settings, place.behaviour)
                {
                    Ok(Operated { outputs, lied }) => {
                        if lied {
                            self.faults.count(Fault::Lie);
                        }
                        let took = if outputs.is_empty() {
                            0
                        } else {
                            self.transfer(node)
                        };
                        return self.task_at(
                            self.now + took,
                            node,
                            lease,
                            Step::Stored { outputs },
                        );
                    }
                    Err(undone) => Err(undone),
                }
            }
            Step::Stored { outputs } => {
                let is_stored = outputs.is_empty()
                    || !self.strikes(self.rates.unavailable, Fault::StoreUnavailable);
                if is_stored {
                    for (name, seal) in outputs {
                        self.store.put(name, seal);
                        if self.strikes(self.rates.vanishes, Fault::ObjectVanished) {
                            self.store.lose(name);
                        }
                        if self.strikes(self.rates.corrupt, Fault::ObjectCorrupted) {
                            self.store.spoil(name, &mut self.chance);
                        }
                    }
                }
                match self.nodes[node].worker.stored(lease, is_stored) {
                    Some(ended) => ended,
                    None => return,
                }
            }
        };
        self.nodes[node].ended(lease, ended);
    }
}
