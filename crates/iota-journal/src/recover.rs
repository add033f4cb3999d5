//! From a journal to the state that it leads to.

use iota_protocol::{State, Timestamp};

use crate::{Entry, Error, Genesis, Journal, Result, Snapshot};

/// Entries read at a time: enough to hide the cost of a query, few enough for any memory.
const PAGE: usize = 4096;

/// A run as a journal leaves it.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovered {
    /// What it began with.
    pub genesis: Genesis,
    /// Its state after the last entry.
    pub state: State,
    /// The last entry; 0 if there is none.
    pub sequence: u64,
}

/// A point in a run's past: after an entry, or at a time and after whatever happened by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// After this entry; 0 for before the first.
    Entry(u64),
    /// At this time, by the orchestrator's clock.
    Time(Timestamp),
}

impl Point {
    fn includes(self, sequence: u64, at: Timestamp) -> bool {
        match self {
            Self::Entry(last) => sequence <= last,
            Self::Time(last) => at <= last,
        }
    }
}

/// What a [`check`] has read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Commands that changed something.
    pub entries: u64,
    /// What they changed.
    pub events: u64,
    /// Snapshots that are what a replay gives.
    pub snapshots: u64,
    /// When the last entry was made.
    pub last: Option<Timestamp>,
}

/// The run as it was when its last entry was acknowledged: from the newest snapshot, and what was added after it. None if
/// nothing was begun.
///
/// # Errors
/// [`Error::Damaged`] if what it reads is not as it was written. What lies before the newest snapshot it does not read:
/// [`check`] does.
pub fn recover(journal: &dyn Journal) -> Result<Option<Recovered>> {
    let Some(genesis) = journal.genesis()? else {
        return Ok(None);
    };
    let newest = journal.snapshots()?.last().copied();
    let (mut state, mut sequence) = match newest {
        Some(sequence) => (snapshot_state(journal, sequence)?, sequence),
        None => (first_state(journal, &genesis)?, 0),
    };
    replay(journal, sequence, |entry| {
        for event in &entry.events {
            state.apply(entry.at, event);
        }
        sequence = entry.sequence;
        Ok(())
    })?;
    Ok(Some(Recovered {
        genesis,
        state,
        sequence,
    }))
}

/// The run as it was at some point of its past. Reads on from the newest snapshot before that. None if nothing was begun.
///
/// # Errors
/// As [`recover()`].
pub fn recover_at(journal: &dyn Journal, point: Point) -> Result<Option<Recovered>> {
    let Some(genesis) = journal.genesis()? else {
        return Ok(None);
    };
    let (mut state, mut sequence) = (first_state(journal, &genesis)?, 0);
    for snapshot in journal.snapshots()?.into_iter().rev() {
        if matches!(point, Point::Entry(last) if snapshot > last) {
            continue;
        }
        let then = snapshot_state(journal, snapshot)?;
        if point.includes(snapshot, then.clock()) {
            (state, sequence) = (then, snapshot);
            break;
        }
    }
    'past: loop {
        let page = journal.entries_after(sequence, PAGE)?;
        if page.is_empty() {
            break;
        }
        for entry in page {
            if !point.includes(entry.sequence, entry.at) {
                break 'past;
            }
            for event in &entry.events {
                state.apply(entry.at, event);
            }
            sequence = entry.sequence;
        }
    }
    Ok(Some(Recovered {
        genesis,
        state,
        sequence,
    }))
}

/// Reads a whole journal: every hash, every event, and every snapshot against what the events before it lead to.
///
/// # Errors
/// [`Error::Damaged`] with the first thing that is not as it should be.
pub fn check(journal: &dyn Journal) -> Result<Checked> {
    let mut checked = Checked::default();
    let Some(genesis) = journal.genesis()? else {
        return Ok(checked);
    };
    let mut state = first_state(journal, &genesis)?;
    let mut snapshots = journal.snapshots()?.into_iter().peekable();
    let mut compare = |sequence: u64, state: &State| -> Result<u64> {
        if snapshots.next_if_eq(&sequence).is_none() {
            return Ok(0);
        }
        if journal.snapshot(sequence)? != Snapshot::of(sequence, state) {
            let what = "it differs from what the events before it lead to";
            return Err(damaged_snapshot(journal, sequence, what.to_owned()));
        }
        Ok(1)
    };
    checked.snapshots += compare(0, &state)?;
    replay(journal, 0, |entry| {
        for event in &entry.events {
            state.apply(entry.at, event);
        }
        checked.entries += 1;
        checked.events += entry.events.len() as u64;
        checked.last = Some(entry.at);
        checked.snapshots += compare(entry.sequence, &state)?;
        Ok(())
    })?;
    match snapshots.next() {
        Some(sequence) => Err(damaged_snapshot(
            journal,
            sequence,
            "the entries before it are gone".to_owned(),
        )),
        None => Ok(checked),
    }
}

/// Shows every entry after `sequence`, in order.
///
/// # Errors
/// [`Error::Damaged`] at the first that is not as it was written; whatever `visit` says.
pub fn replay(
    journal: &dyn Journal,
    mut sequence: u64,
    mut visit: impl FnMut(&Entry) -> Result<()>,
) -> Result<()> {
    loop {
        let page = journal.entries_after(sequence, PAGE)?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        sequence = last.sequence;
        page.iter().try_for_each(&mut visit)?;
    }
}

fn snapshot_state(journal: &dyn Journal, sequence: u64) -> Result<State> {
    let snapshot = journal.snapshot(sequence)?;
    snapshot
        .state()
        .map_err(|what| damaged_snapshot(journal, sequence, what))
}

fn first_state(journal: &dyn Journal, genesis: &Genesis) -> Result<State> {
    genesis.state().map_err(|error| Error::Damaged {
        place: journal.place(),
        what: format!("its beginning: {error}"),
    })
}

fn damaged_snapshot(journal: &dyn Journal, sequence: u64, what: String) -> Error {
    Error::Damaged {
        place: journal.place(),
        what: format!("the snapshot after entry {sequence}: {what}"),
    }
}
