//! Trouble that comes by itself, how often the rest strikes, and the end of all of it.

use super::{Happening, World};
use crate::fault::Fault;
use crate::plan::{Behaviour, Rates};

impl World {
    pub(super) fn schedule(&mut self, fault: Fault) {
        let every = match fault {
            Fault::PeerCrashed => self.rates.crash_every,
            Fault::PeerLeft => self.rates.leave_every,
            Fault::OrchestratorCrashed => self.rates.orchestrator_crash_every,
            Fault::ClockLeapt => self.rates.leap_every,
            Fault::MachineSlept => self.rates.sleep_every,
            Fault::Partition => self.rates.partition_every,
            _ => 0,
        };
        if every > 0 {
            let at = self.now + self.chance.between(1, 2 * every);
            self.at(at, Happening::Trouble(fault));
        }
    }

    pub(super) fn trouble(&mut self, fault: Fault) -> Result<(), String> {
        if fault == Fault::OrchestratorCrashed {
            if self.orchestrator.is_up {
                self.faults.count(fault);
                self.crash_orchestrator();
            }
            return Ok(());
        }
        if fault == Fault::MachineSlept {
            if self.orchestrator.is_up {
                self.faults.count(fault);
                let far = self.chance.between(600_000, 12 * 3_600_000);
                let answers = self.orchestrator.sleep(far, self.now)?;
                self.deliver(answers);
                self.arm();
            }
            return Ok(());
        }
        if fault == Fault::ClockLeapt {
            self.faults.count(fault);
            let far = self.chance.between(1, 120_000);
            let ahead = &mut self.orchestrator.clock_ahead;
            *ahead = if self.chance.happens(5_000) {
                *ahead + far
            } else {
                *ahead - far
            };
            self.arm();
            return Ok(());
        }
        let up: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.nodes[*node].peer.is_some())
            .collect();
        if up.is_empty() {
            return Ok(());
        }
        let node = self.chance.pick(&up);
        self.faults.count(fault);
        match fault {
            Fault::PeerCrashed => {
                self.nodes[node].end();
                let back = self.now + self.chance.between(500, 60_000);
                self.at(back, Happening::Starts { node });
            }
            Fault::PeerLeft => {
                if let Some(peer) = &mut self.nodes[node].peer {
                    peer.handle_shutdown();
                }
                self.drain(node);
            }
            _ => self.nodes[node].cut_off_until = self.now + self.chance.between(1_000, 60_000),
        }
        Ok(())
    }

    pub(super) fn crash_orchestrator(&mut self) {
        self.orchestrator.crash();
        let back = self.now + self.chance.between(100, 20_000);
        self.at(back, Happening::Recovers);
    }

    pub(super) fn become_calm(&mut self) {
        self.is_calm = true;
        self.rates = Rates::default();
        for node in &mut self.nodes {
            node.behaviour = Behaviour::Honest;
            node.cut_off_until = 0;
        }
    }

    /// Whether something that happens so often happens now. Counts it if so.
    pub(super) fn strikes(&mut self, rate: u64, fault: Fault) -> bool {
        let strikes = self.chance.happens(rate);
        if strikes {
            self.faults.count(fault);
        }
        strikes
    }

    pub(super) fn latency(&mut self) -> u64 {
        if self.strikes(self.rates.delayed, Fault::MessageDelayed) {
            self.chance.between(500, 12_000)
        } else {
            self.chance.between(1, 80)
        }
    }

    pub(super) fn transfer(&mut self, node: usize) -> u64 {
        let usual = self.chance.between(10, 200) * self.nodes[node].plan.slowness;
        if self.strikes(self.rates.slow, Fault::TransferSlow) {
            usual * self.chance.between(10, 200)
        } else {
            usual
        }
    }
}
