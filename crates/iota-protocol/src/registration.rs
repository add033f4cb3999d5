//! Who may become a miner, and in what order: places in the run, and a waiting list for those who find none.
//!
//! ```text
//!                open, and room
//!   newcomer ───────────────────────► session ── left, banned ──► free for the first in line
//!      │                                ▲  │
//!      ▼                          comes │  │ silent
//!   waiting list ── admitted ──► kept place ◄┘
//!    3 ─► 2 ─► 1                        │
//!      └────── not heard of ────────────┴── expired
//! ```
//!
//! A *place* belongs to a peer and not to a connection. One in the run is held by a session, or kept for a while for a
//! miner that fell silent or was admitted and has not come yet; one on the waiting list is a numbered [`Ticket`]. Places are
//! facts of the state, so they outlive whatever process they were given by, and each change is an event with its reason.
//! A ticket's place only ever gets better (W3): whoever leaves the line moves those behind up, and tells them why.
//!
//! Windows of registration come at times that nobody outside can foresee: the run's secret decides, and the past says
//! nothing about the future, because a window is as likely to begin in any moment as in any other.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::event::{Event, Phase, SessionEnd};
use crate::id::{PeerId, Session, Ticket};
use crate::rejection::Rejection;
use crate::settings::Opens;
use crate::state::State;
use crate::state::places::Waiting;
use crate::time::Timestamp;

/// Why a peer that asks for a place in the run has to wait for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// Every place in the run is taken, or kept for a miner that may come back.
    Full,
    /// Registration is closed for now.
    Closed,
    /// There are places, and others were there first.
    InLine,
}

impl WaitReason {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Full => "FULL",
            Self::Closed => "CLOSED",
            Self::InLine => "IN_LINE",
        }
    }

    /// The reason with this code.
    pub fn from_code(code: &str) -> Option<Self> {
        let all = [Self::Full, Self::Closed, Self::InLine];
        all.into_iter().find(|reason| reason.code() == code)
    }
}

/// How a place came to its end: one on the waiting list, or one in the run that was kept for an absent peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceEnd {
    /// The first in line that is alive got a place in the run.
    Admitted,
    /// Its peer was not heard of for as long as a place is kept.
    Expired,
    /// Its peer was found cheating.
    Banned,
    /// The run is over.
    RunOver,
}

impl PlaceEnd {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Admitted => "ADMITTED",
            Self::Expired => "EXPIRED",
            Self::Banned => "BANNED",
            Self::RunOver => "RUN_OVER",
        }
    }

    /// The reason with this code.
    pub fn from_code(code: &str) -> Option<Self> {
        let all = [Self::Admitted, Self::Expired, Self::Banned, Self::RunOver];
        all.into_iter().find(|end| end.code() == code)
    }
}

/// Why a place on the waiting list got better: somebody before it left the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedUp {
    /// Who left.
    pub because_of: PeerId,
    /// Why.
    pub why: PlaceEnd,
}

/// What somebody on the waiting list is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Names the place for as long as it lasts.
    pub ticket: Ticket,
    /// The first in line is 1.
    pub place: u32,
    /// How many wait.
    pub line: u32,
    /// Why there is no place in the run now.
    pub why: WaitReason,
    /// Why it last got better; none if it never did.
    pub moved: Option<MovedUp>,
    /// After how long to ask again. It follows from the place alone, so that it tells nothing of when a window opens.
    pub come_back_after: Duration,
}

/// Whoever waits asks again after at most so long.
pub(crate) const COME_BACK_MAX: Duration = Duration::from_secs(30);

/// The first in line asks so often; those behind each as much less.
const COME_BACK_STEP: Duration = Duration::from_secs(1);

/// Somebody in line is alive if it was heard of in this time: two questions that did not arrive are forgiven.
const ALIVE_FOR: Duration = Duration::from_secs(90);

/// In how many parts the mean time between windows is divided; in each a window begins with a chance of one in as many.
const PARTS: u64 = 64;

/// Parts that are tried at most, so that a draw always ends. One in 10^17 gets here.
const PARTS_MAX: u64 = 40 * PARTS;

impl State {
    /// The place of a peer on the waiting list.
    pub fn place_of(&self, peer: PeerId) -> Option<Place> {
        let ticket = *self.places.tickets.get(&peer)?;
        let waiting = &self.places.line[&ticket];
        Some(Place {
            ticket,
            place: waiting.place,
            line: count(self.places.line.len()),
            why: self.why_waits(),
            moved: waiting.moved,
            come_back_after: (COME_BACK_STEP * waiting.place).min(COME_BACK_MAX),
        })
    }

    /// Everybody on the waiting list, in order.
    pub fn waiting_list(&self) -> impl Iterator<Item = (PeerId, Ticket)> {
        let line = self.places.line.iter();
        line.map(|(ticket, waiting)| (waiting.peer, *ticket))
    }

    /// Whether newcomers are taken now, if there is room. Miners that hold a place may come back at any time, and a run
    /// that lacks miners takes as many as it lacks.
    pub fn registration_is_open(&self) -> bool {
        match self.settings.registration.opens {
            Opens::Always => true,
            Opens::Never => false,
            Opens::Windows { .. } => self.places.window.is_some_and(|window| window.is_open),
        }
    }

    /// What `Join` does for a miner that holds no place in the run, if that is to wait; none if it is taken at once.
    pub(crate) fn decide_waiting(
        &self,
        peer: PeerId,
        now: Timestamp,
    ) -> Option<Result<Vec<Event>, Rejection>> {
        let ticket = self.places.tickets.get(&peer).copied();
        let before = self.places.line.range(..ticket.unwrap_or(self.places.next));
        let free = self.free_places();
        let alive = before.filter(|(_, waiting)| is_alive(waiting, now));
        if alive.take(free).count() < free {
            return None;
        }
        Some(match ticket.map(|ticket| &self.places.line[&ticket]) {
            // A question that says nothing new leaves no event behind.
            Some(waiting) if now.since(waiting.heard_of) < self.hears_every() => {
                Err(Rejection::Waiting)
            }
            Some(_) => Ok(vec![Event::WaiterHeard { peer }]),
            None if self.places.line.len() >= self.settings.registration.waiting_max as usize => {
                Err(Rejection::Full)
            }
            None => Ok(vec![Event::WaitBegan {
                peer,
                ticket: self.places.next,
                why: self.why_waits(),
            }]),
        })
    }

    /// The end of a peer's place, on the waiting list or kept in the run, if it has one.
    pub(crate) fn end_place(&self, peer: PeerId, why: PlaceEnd) -> Option<Event> {
        if let Some(&ticket) = self.places.tickets.get(&peer) {
            return Some(Event::WaitEnded { peer, ticket, why });
        }
        let is_kept = self.places.kept.contains_key(&peer);
        is_kept.then_some(Event::PlaceLapsed { peer, why })
    }

    /// A place that nobody came for.
    pub(crate) fn lapsed_place(&self, now: Timestamp) -> Option<Vec<Event>> {
        let (heard_of, peer) = *self.places.heard.first()?;
        let is_due = now >= heard_of + self.settings.registration.place_kept;
        let ended = is_due.then(|| self.end_place(peer, PlaceEnd::Expired));
        ended.flatten().map(|event| vec![event])
    }

    /// The first in line that is alive, if there is a place in the run.
    pub(crate) fn next_admission(&self, now: Timestamp) -> Option<Vec<Event>> {
        if self.places.line.is_empty() || !self.admits() || self.free_places() == 0 {
            return None;
        }
        let mut line = self.places.line.iter();
        let (&ticket, waiting) = line.find(|(_, waiting)| is_alive(waiting, now))?;
        let (peer, why) = (waiting.peer, PlaceEnd::Admitted);
        Some(vec![Event::WaitEnded { peer, ticket, why }])
    }

    /// A miner that does nothing for its place, while somebody waits who could have it: without the checkpoint it can do no
    /// work, and it takes no lease to install it.
    pub(crate) fn next_displacement(&self, now: Timestamp) -> Option<Vec<Event>> {
        let (at, session) = self.displaced_at(now)?;
        (now >= at).then(|| self.end_session(session, SessionEnd::Idle))
    }

    /// Who is to make room next if it goes on doing nothing, and when.
    fn displaced_at(&self, now: Timestamp) -> Option<(Timestamp, Session)> {
        if self.places.line.is_empty() || self.free_places() > 0 || !self.somebody_alive_waits(now)
        {
            return None;
        }
        let needed = self.miners_needed();
        let idle = self.stages().flat_map(|stage| {
            let index = self.index.stage(stage);
            // Most of the time all have installed, and nobody has to be looked at.
            let lack = index.miners.len() > index.installed.len();
            // Whoever leaves a closed run makes room only where the run then stands still.
            let helps = self.registration_is_open() || index.miners.len() <= needed;
            let miners = (lack && helps).then(|| self.sessions.miners_of(stage));
            miners.into_iter().flatten()
        });
        idle.filter(|(_, miner)| {
            miner.room == 0 && miner.held.is_empty() && !miner.is_installed(self.epoch)
        })
        .map(|(session, miner)| {
            let since = miner.joined_at.max(self.phase_since);
            (since + self.settings.registration.place_kept, session)
        })
        .min()
    }

    /// A window that begins or ends.
    pub(crate) fn next_window(&self, now: Timestamp) -> Option<Vec<Event>> {
        let Opens::Windows {
            closed_mean,
            open_for,
        } = self.settings.registration.opens
        else {
            return None;
        };
        let window = self.places.window.filter(|window| now >= window.until)?;
        let is_open = !window.is_open;
        let lasts = if is_open {
            open_for
        } else {
            closed_for(&self.settings.secret, window.number, closed_mean)
        };
        let until = now + lasts;
        Some(vec![Event::RegistrationChanged { is_open, until }])
    }

    /// When something of this is due.
    pub(crate) fn places_at(&self) -> Option<Timestamp> {
        let kept = self.settings.registration.place_kept;
        let lapses = self.places.heard.first().map(|(at, _)| *at + kept);
        let changes = self.places.window.map(|window| window.until);
        let displaced = self.displaced_at(self.clock).map(|(at, _)| at);
        [lapses, changes, displaced].into_iter().flatten().min()
    }

    /// Places in the run that can be given to somebody new.
    pub(crate) fn free_places(&self) -> usize {
        let kept = self.places.kept.len();
        let free = self
            .places_in_all()
            .saturating_sub(self.miners_live() + kept);
        if self.registration_is_open() {
            free
        } else {
            free.min(self.miners_lacking().saturating_sub(kept))
        }
    }

    /// Places that the run has.
    pub(crate) fn places_in_all(&self) -> usize {
        let of_stage = self.settings.miners_per_stage_max as usize;
        let of_stages = of_stage.saturating_mul(self.settings.stages().into());
        of_stages.min(self.settings.registration.miners_max as usize)
    }

    pub(crate) fn miners_live(&self) -> usize {
        self.stages()
            .map(|stage| self.index.stage(stage).miners.len())
            .sum()
    }

    /// Whether somebody in line was heard of lately.
    pub(crate) fn somebody_alive_waits(&self, now: Timestamp) -> bool {
        let mut line = self.places.line.values();
        self.admits() && line.any(|waiting| is_alive(waiting, now))
    }

    /// Once only audits are left, nobody can do anything for the run any more.
    const fn admits(&self) -> bool {
        !matches!(self.phase, Phase::Settling | Phase::Over)
    }

    /// Miners without whom the run stands still.
    fn miners_lacking(&self) -> usize {
        let needed = self.miners_needed();
        self.stages()
            .map(|stage| needed.saturating_sub(self.index.stage(stage).miners.len()))
            .sum()
    }

    /// Miners without whom a stage stands still.
    fn miners_needed(&self) -> usize {
        if self.phase == Phase::Gathering {
            self.settings.miners_to_start as usize
        } else {
            1
        }
    }

    fn why_waits(&self) -> WaitReason {
        if self.miners_live() + self.places.kept.len() >= self.places_in_all() {
            WaitReason::Full
        } else if self.registration_is_open() {
            WaitReason::InLine
        } else {
            WaitReason::Closed
        }
    }

    /// A question is noted as often as this: often enough to tell the living from the dead, and to keep their places.
    fn hears_every(&self) -> Duration {
        (self.settings.registration.place_kept / 8).min(COME_BACK_MAX)
    }
}

/// Whether somebody in line was heard of lately.
pub(crate) fn is_alive(waiting: &Waiting, now: Timestamp) -> bool {
    now.since(waiting.heard_of) < ALIVE_FOR
}

/// How long registration stays closed after window `number`: on average `mean`, and memoryless. Whether a window begins in
/// the next part of the mean is drawn anew for every part.
fn closed_for(secret: &[u8; 32], number: u64, mean: Duration) -> Duration {
    let draw = |part: u64| {
        Draw::about(secret, "registration window")
            .number(number)
            .number(part)
    };
    let part_ms = (u64::try_from(mean.as_millis()).unwrap_or(u64::MAX) / PARTS).max(1);
    let parts = (0..PARTS_MAX).take_while(|part| draw(*part).below(PARTS) != 0);
    let whole = part_ms.saturating_mul(parts.count() as u64);
    // Somewhere within the part, and never at once.
    Duration::from_millis(whole.saturating_add(1 + draw(PARTS_MAX).below(part_ms)))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEAN: Duration = Duration::from_secs(3_600);

    fn gaps(secret: u8) -> Vec<u64> {
        let gap = |number| closed_for(&[secret; 32], number, MEAN).as_secs();
        (0..4_000).map(gap).collect()
    }

    #[test]
    fn windows_are_as_far_apart_as_the_setting_says_on_average() {
        let gaps = gaps(7);
        let mean = gaps.iter().sum::<u64>() / gaps.len() as u64;
        assert!((3_400..=3_800).contains(&mean), "{mean} s");
    }

    /// Without memory: of the times without a window as long as the mean, as many last another mean as last one at all.
    #[test]
    fn how_long_it_has_been_closed_says_nothing_about_how_long_it_will_be() {
        let gaps = gaps(7);
        let longer = |than: u64| gaps.iter().filter(|gap| **gap > than).count() as f64;
        let at_first = longer(3_600) / longer(0);
        let later = longer(7_200) / longer(3_600);
        assert!((0.33..0.41).contains(&at_first), "{at_first}");
        assert!((0.33..0.41).contains(&later), "{later}");
    }

    #[test]
    fn without_the_secret_nobody_knows_when_a_window_opens() {
        let (ours, theirs) = (gaps(7), gaps(8));
        let same = ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
        assert!(same < 40, "{same} of 4000 gaps are the same");
        assert_eq!(ours, gaps(7), "and whoever knows it can check");
    }

    #[test]
    fn codes_name_their_reasons() {
        for reason in [WaitReason::Full, WaitReason::Closed, WaitReason::InLine] {
            assert_eq!(WaitReason::from_code(reason.code()), Some(reason));
        }
        let ends = [
            PlaceEnd::Admitted,
            PlaceEnd::Expired,
            PlaceEnd::Banned,
            PlaceEnd::RunOver,
        ];
        for end in ends {
            assert_eq!(PlaceEnd::from_code(end.code()), Some(end));
        }
    }
}
