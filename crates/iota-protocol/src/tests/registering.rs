//! Places in the run and on the waiting list, windows, and reasons.

use std::time::Duration;

use super::world::{World, installed, peer, settings};
use crate::command::{Command, Role};
use crate::event::{BanReason, Event, Phase, SessionEnd};
use crate::id::{AuditId, Epoch, PeerId, Session, Ticket};
use crate::registration::{COME_BACK_MAX, MovedUp, PlaceEnd, WaitReason};
use crate::rejection::Rejection;
use crate::settings::{Opens, Registration, RunSettings};
use crate::state::State;
use crate::work::{Difference, Outcome, Work};

const KEPT: Duration = Duration::from_secs(120);

/// One stage with `places` places.
fn small(places: u32, opens: Opens) -> RunSettings {
    RunSettings {
        epochs: 50,
        registration: Registration {
            opens,
            miners_max: places,
            waiting_max: 10,
            place_kept: KEPT,
        },
        ..settings(1)
    }
}

impl World {
    /// A peer asks to join as a miner; its session, if it gets one.
    fn ask(&mut self, name: u8) -> Option<Session> {
        let answer = self.command(&Command::Join {
            peer: peer(name),
            role: Role::Miner,
            capacity: 2,
        });
        let refusal = answer.map_or_else(Some, |events| events.iter().find_map(Event::refusal));
        match refusal {
            None => self.state.session_of(peer(name)),
            Some(refusal) => {
                assert_eq!(refusal, Rejection::Waiting);
                None
            }
        }
    }

    /// Everybody who is named asks, again and again, for so long; the `awake` sessions live on.
    fn wait(&mut self, duration: Duration, asking: &[u8], awake: &[Session]) {
        let end = self.now + duration;
        while self.now < end {
            let step = Duration::from_secs(10).min(end.since(self.now));
            self.pass(step, awake);
            for name in asking {
                if self.state.session_of(peer(*name)).is_none() {
                    self.ask(*name);
                }
            }
        }
    }

    fn place(&self, name: u8) -> Option<u32> {
        self.state.place_of(peer(name)).map(|place| place.place)
    }

    fn line(&self) -> Vec<PeerId> {
        self.state.waiting_list().map(|(peer, _)| peer).collect()
    }
}

fn gathered(settings: RunSettings, names: std::ops::Range<u8>) -> (World, Vec<Session>) {
    let mut world = World::new(settings);
    let sessions: Vec<Session> = names.map(|name| world.ask(name).unwrap()).collect();
    for session in &sessions {
        world.offer(*session, 1);
        let lease = world.lease(*session);
        let Work::Install { checkpoint, .. } = &lease.work else {
            panic!("{lease:?}")
        };
        let state = installed(checkpoint);
        let outcome = Outcome::Install {
            state,
            operations: 0,
        };
        world.complete(*session, lease.id, outcome).unwrap();
    }
    assert_eq!(world.state.phase(), Phase::Training);
    (world, sessions)
}

#[test]
fn who_finds_the_run_full_waits_in_the_order_of_asking() {
    let (mut world, _) = gathered(small(2, Opens::Always), 1..3);
    for name in 3..6 {
        assert_eq!(world.ask(name), None);
    }
    assert_eq!(world.line(), [peer(3), peer(4), peer(5)]);
    let place = world.state.place_of(peer(5)).unwrap();
    assert_eq!((place.place, place.line), (3, 3));
    assert_eq!((place.why, place.moved), (WaitReason::Full, None));
    assert!(place.come_back_after > Duration::ZERO && place.come_back_after <= COME_BACK_MAX);
    // Asking often helps nobody, and leaves nothing behind.
    assert_eq!(world.ask(5), None);
    assert_eq!(world.place(5), Some(3));
    assert_eq!(
        world.saw(|event| matches!(event, Event::WaiterHeard { .. })),
        0
    );
}

#[test]
fn when_a_miner_leaves_the_first_in_line_gets_its_place_and_the_others_move_up_and_know_why() {
    let (mut world, miners) = gathered(small(1, Opens::Always), 1..2);
    for name in 2..5 {
        world.ask(name);
    }
    world
        .command(&Command::Leave { session: miners[0] })
        .unwrap();
    let admitted = Event::WaitEnded {
        peer: peer(2),
        ticket: Ticket::new(0),
        why: PlaceEnd::Admitted,
    };
    assert_eq!(world.events.last(), Some(&admitted));
    let because = MovedUp {
        because_of: peer(2),
        why: PlaceEnd::Admitted,
    };
    let place = world.state.place_of(peer(3)).unwrap();
    assert_eq!((place.place, place.moved), (1, Some(because)));
    assert_eq!(world.place(4), Some(2));
    // The place is there for whoever was admitted, and for nobody else meanwhile.
    assert_eq!(world.ask(3), None);
    assert_eq!(world.ask(9), None);
    assert!(world.ask(2).is_some());
    assert_eq!(world.line(), [peer(3), peer(4), peer(9)]);
}

#[test]
fn a_place_goes_to_the_first_who_is_alive_and_whoever_is_passed_over_keeps_its_own() {
    let (mut world, miners) = gathered(small(1, Opens::Always), 1..2);
    for name in 2..5 {
        world.ask(name);
    }
    // Peer 2 is not heard of for long enough to be passed over, and not for long enough to lose its place.
    world.wait(Duration::from_secs(100), &[3, 4], &miners);
    assert_eq!(world.line(), [peer(2), peer(3), peer(4)]);
    world
        .command(&Command::Leave { session: miners[0] })
        .unwrap();
    assert_eq!(world.line(), [peer(2), peer(4)]);
    assert_eq!(world.place(2), Some(1));
    let session = world.ask(3).unwrap();
    // When it asks again it is first again.
    world.ask(2);
    world.command(&Command::Leave { session }).unwrap();
    assert!(world.ask(2).is_some());
}

#[test]
fn a_place_that_nobody_asks_for_expires_and_those_behind_are_told() {
    let (mut world, miners) = gathered(small(1, Opens::Always), 1..2);
    world.ask(2);
    world.ask(3);
    world.wait(KEPT + Duration::from_secs(40), &[3], &miners);
    let why = PlaceEnd::Expired;
    let expired = |event: &Event| matches!(event, Event::WaitEnded { peer: gone, why: PlaceEnd::Expired, .. } if *gone == peer(2));
    assert_eq!(world.saw(expired), 1);
    let because_of = peer(2);
    let moved = world.state.place_of(peer(3)).unwrap().moved;
    assert_eq!(moved, Some(MovedUp { because_of, why }));
    // Whoever comes back after that begins at the end.
    world.ask(4);
    world.ask(2);
    assert_eq!(world.line(), [peer(3), peer(4), peer(2)]);
}

#[test]
fn a_miner_that_fell_silent_finds_its_place_however_many_wait_for_one() {
    let (mut world, miners) = gathered(small(2, Opens::Always), 1..3);
    world.ask(3);
    world.wait(Duration::from_secs(40), &[3], &miners[1..]);
    let silent = Event::SessionEnded {
        session: miners[0],
        why: SessionEnd::Silent,
    };
    assert_eq!(world.saw(|event| *event == silent), 1);
    assert_eq!(world.place(3), Some(1));
    let back = world.ask(1).unwrap();
    assert_eq!(back.generation, 2);
    // A process that begins anew while its session still lasts has its place too.
    assert!(world.ask(1).is_some());

    // It falls silent again, and stays away: then its place goes to whoever waits.
    world.wait(KEPT + Duration::from_secs(60), &[3], &miners[1..]);
    let lapsed = Event::PlaceLapsed {
        peer: peer(1),
        why: PlaceEnd::Expired,
    };
    assert_eq!(world.saw(|event| *event == lapsed), 1);
    assert!(world.state.session_of(peer(3)).is_some());
    assert_eq!(world.ask(1), None);
}

#[test]
fn a_closed_run_takes_no_more_than_the_miners_without_whom_it_would_stand_still() {
    let (mut world, miners) = gathered(small(4, Opens::Never), 1..2);
    for name in 2..4 {
        assert_eq!(world.ask(name), None);
        assert_eq!(
            world.state.place_of(peer(name)).unwrap().why,
            WaitReason::Closed
        );
    }
    world.wait(Duration::from_secs(60), &[2, 3], &miners);
    assert_eq!(world.line(), [peer(2), peer(3)]);
    // The only miner of the stage leaves: one is needed, and one is taken.
    world
        .command(&Command::Leave { session: miners[0] })
        .unwrap();
    assert_eq!(world.line(), [peer(3)]);
    assert!(world.ask(2).is_some());
    assert_eq!(world.ask(3), None);
}

#[test]
fn when_a_window_opens_the_line_is_admitted_at_once_and_between_windows_nobody_is() {
    let opens = Opens::Windows {
        closed_mean: Duration::from_secs(600),
        open_for: Duration::from_secs(20),
    };
    let (mut world, miners) = gathered(small(8, opens), 1..3);
    world.pass(Duration::from_secs(20), &miners);
    let closed = |world: &World| !world.state.registration_is_open();
    assert!(closed(&world), "the first window is over");
    for name in 3..5 {
        assert_eq!(world.ask(name), None);
    }
    let mut rounds = 0;
    while closed(&world) {
        assert_eq!(world.line(), [peer(3), peer(4)]);
        world.wait(Duration::from_secs(10), &[3, 4], &miners);
        rounds += 1;
        assert!(rounds < 1_000, "no window ever");
    }
    let opened = |event: &Event| matches!(event, Event::RegistrationChanged { is_open: true, .. });
    assert_eq!(world.saw(opened), 1);
    assert_eq!(world.line(), []);
    let position = |wanted: &dyn Fn(&Event) -> bool| world.log.iter().position(|(_, e)| wanted(e));
    let opened_at = world.log[position(&opened).unwrap()].0;
    let admitted_at = world.log[position(
        &|event| matches!(event, Event::WaitEnded { peer: who, .. } if *who == peer(4)),
    )
    .unwrap()]
    .0;
    assert_eq!(opened_at, admitted_at);
}

/// It polls, so it is alive; it never installs anything, so the run stands still as long as it has its place.
#[test]
fn a_miner_that_does_nothing_for_its_place_loses_it_when_somebody_waits() {
    let mut world = World::new(small(1, Opens::Always));
    let idle = world.ask(1).unwrap();
    world.offer(idle, 0);
    let ended = Event::SessionEnded {
        session: idle,
        why: SessionEnd::Idle,
    };
    world.pass(KEPT * 2, &[idle]);
    assert_eq!(
        world.saw(|event| *event == ended),
        0,
        "nobody else wants it"
    );
    assert_eq!(world.ask(2), None);
    assert_eq!(world.saw(|event| *event == ended), 1);
    assert!(world.ask(2).is_some());
    assert_eq!(
        world.ask(1),
        None,
        "it is not silent: its place is not kept"
    );
}

#[test]
fn whoever_joined_just_before_the_orchestrator_slept_has_its_time_all_the_same() {
    let mut world = World::new(small(1, Opens::Always));
    world.pass(KEPT, &[]);
    let idle = world.ask(1).unwrap();
    world.offer(idle, 0);
    assert_eq!(world.ask(2), None);
    let away = Duration::from_secs(10_000);
    world.now = world.now + away + Duration::from_secs(20);
    world.command(&Command::Wake { away }).unwrap();
    assert!(world.state.session(idle).is_some());
}

/// When a window opens is not to be read from what those who wait are told.
#[test]
fn the_time_to_come_back_says_nothing_of_windows() {
    let told = |secret: u8| -> Vec<Duration> {
        let opens = Opens::Windows {
            closed_mean: Duration::from_secs(600),
            open_for: Duration::from_secs(20),
        };
        let settings = RunSettings {
            secret: [secret; 32],
            ..small(8, opens)
        };
        let (mut world, miners) = gathered(settings, 1..3);
        world.pass(Duration::from_secs(25), &miners);
        world.ask(3);
        let mut told = Vec::new();
        while let Some(place) = world.state.place_of(peer(3)) {
            told.push(place.come_back_after);
            world.wait(Duration::from_secs(10), &[3], &miners);
        }
        told
    };
    let (one, other) = (told(1), told(2));
    assert_ne!(one.len(), other.len(), "the windows come at other times");
    assert!(one.iter().chain(&other).all(|wait| *wait == one[0]));
}

#[test]
fn places_and_windows_wait_while_the_orchestrator_is_away() {
    let opens = Opens::Windows {
        closed_mean: Duration::from_secs(600),
        open_for: Duration::from_secs(20),
    };
    let (mut world, miners) = gathered(small(2, opens), 1..3);
    world.ask(3);
    world.ask(4);
    let written = serde_json::to_string(&world.state).unwrap();
    let read: State = serde_json::from_str(&written).unwrap();
    assert_eq!(read, world.state);
    world.now = world.now + Duration::from_secs(24 * 3_600);
    world.command(&Command::Resume).unwrap();
    assert_eq!(world.line(), [peer(3), peer(4)]);
    assert!(world.state.registration_is_open());
    // Then time counts again.
    world.wait(KEPT + Duration::from_secs(60), &[4], &miners);
    assert_eq!(world.line(), [peer(4)]);
}

#[test]
fn whoever_is_banned_loses_its_place_and_so_does_everybody_when_the_run_is_over() {
    let (mut world, _) = gathered(small(1, Opens::Always), 1..2);
    for name in 2..4 {
        world.ask(name);
    }
    let why = BanReason::Audit {
        audit: AuditId::new(0),
        epoch: Epoch::new(0),
        ordinal: None,
        difference: Difference::Upload,
    };
    let events = world.state.ban(peer(2), why);
    let ended = |name: u8, ticket: u64, why| Event::WaitEnded {
        peer: peer(name),
        ticket: Ticket::new(ticket),
        why,
    };
    assert!(events.contains(&ended(2, 0, PlaceEnd::Banned)));
    world.command(&Command::Stop).unwrap();
    for (name, ticket) in [(2, 0), (3, 1)] {
        let over = ended(name, ticket, PlaceEnd::RunOver);
        assert_eq!(world.saw(|event| *event == over), 1);
    }
    assert_eq!(
        world.command(&Command::Join {
            peer: peer(3),
            role: Role::Miner,
            capacity: 1
        }),
        Err(Rejection::RunOver)
    );
}

#[test]
fn settings_that_leave_no_place_or_no_time_are_refused() {
    let setting = |registration: Registration| {
        let settings = RunSettings {
            registration,
            ..settings(2)
        };
        settings.validate().map_err(|invalid| invalid.setting)
    };
    let usual = Registration::default();
    assert_eq!(setting(usual), Ok(()));
    let few = Registration {
        miners_max: 1,
        ..usual
    };
    assert_eq!(setting(few), Err("registration.miners_max"));
    let hasty = Registration {
        place_kept: Duration::from_secs(59),
        ..usual
    };
    assert_eq!(setting(hasty), Err("registration.place_kept"));
    let never = Registration {
        opens: Opens::Windows {
            closed_mean: Duration::from_secs(1),
            open_for: Duration::ZERO,
        },
        ..usual
    };
    assert_eq!(setting(never), Err("registration.opens.windows"));
}
