//! Whether a cell was settled as the results of its owners say.
//!
//! ```text
//!   results        a a     a b     a b a     a b v       a b      -     nothing nothing
//!   settled with   a       -       a         v           -        -     -
//!   how            agreed  (waits) arbitrated arbitrated  carried forward  unmergeable
//! ```
//!
//! What a cell is settled with is in the store: one that nobody stored is carried forward, whatever its owners said.
//! //! Results are equal if their bits are, what they changed, and the copies that they left out. More than one equal result
//! is needed, and more than of any other; a validator (v) decides alone. One result alone is no agreement, and is called so.

use iota_protocol::event::{CellResult, Unmergeable};
use iota_protocol::work::ObjectName;
use iota_protocol::{PeerId, Session};
use serde::{Deserialize, Serialize};

use crate::merging::Made;

/// What the results of a cell's owners do not say, though it was settled so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Objection {
    /// It was settled with another result than that of most, or of a validator.
    #[error("most of them, or a validator, came to another result")]
    AgainstTheMajority,
    /// Owners are said to agree, and there are not two equal results, or there is another one.
    #[error("its owners do not agree")]
    NoAgreement,
    /// Nobody, or somebody else, was outvoted.
    #[error("the one who is called a liar did not differ from the others")]
    NotTheLiar,
    /// There is not just one result.
    #[error("there is not just one result")]
    NotSingle,
    /// The old values stay, and there was a result to settle it with.
    #[error("there was a result, and the old values stay")]
    Decided,
}

/// What is wrong with how a cell was settled; none if `results`, one per owner, lead to it.
pub(crate) fn objection(
    results: &[&Made],
    validators: &[PeerId],
    (result, merged): (CellResult, Option<ObjectName>),
) -> Option<Objection> {
    let is_validators = |made: &&&Made| validators.contains(&made.owner.peer);
    let verdict = results.iter().copied().find(|made| is_validators(&made));
    let winner = verdict.or_else(|| majority(results));
    let dissent = |owner: Session, winner: &Made| {
        let mut results = results.iter();
        results.any(|made| made.owner == owner && !made.agrees(winner))
    };
    let unanimous = |winner: &Made| results.iter().all(|made| made.agrees(winner));
    let settled_with = |winner: &Made| {
        let mut named = results.iter().filter(|made| Some(made.output) == merged);
        named.any(|made| made.agrees(winner) && made.stored)
    };
    let can_be_had = |winner: &Made| {
        let mut same = results.iter().filter(|made| made.agrees(winner));
        winner.seal.is_none() || same.any(|made| made.stored)
    };
    match (result, winner) {
        (CellResult::CarriedForward, None) => None,
        (CellResult::CarriedForward, Some(winner)) => {
            can_be_had(winner).then_some(Objection::Decided)
        }
        (CellResult::Unmergeable { why }, Some(winner)) => {
            let every_copy = why == Unmergeable::EveryCopyQuarantined;
            let fits = winner.seal.is_none() && winner.from.is_empty() == every_copy;
            (!fits).then_some(Objection::AgainstTheMajority)
        }
        (CellResult::Single, _) => match results {
            [only] if verdict.is_none() && settled_with(only) => None,
            _ => Some(Objection::NotSingle),
        },
        (CellResult::Agreed, Some(winner)) => {
            let enough = verdict.is_some() || results.len() > 1;
            if !enough || !unanimous(winner) {
                Some(Objection::NoAgreement)
            } else {
                (!settled_with(winner)).then_some(Objection::AgainstTheMajority)
            }
        }
        (CellResult::Arbitrated { liar }, Some(winner)) => {
            if !settled_with(winner) {
                Some(Objection::AgainstTheMajority)
            } else {
                (!dissent(liar, winner)).then_some(Objection::NotTheLiar)
            }
        }
        (
            CellResult::Agreed | CellResult::Arbitrated { .. } | CellResult::Unmergeable { .. },
            None,
        ) => Some(Objection::NoAgreement),
    }
}

/// What more owners came to than to anything else; a single result decides only that the cell is not carried forward.
fn majority<'a>(results: &[&'a Made]) -> Option<&'a Made> {
    if let [only] = results {
        return Some(only);
    }
    let votes = |made: &Made| results.iter().filter(|other| other.agrees(made)).count();
    let winner = results.iter().copied().max_by_key(|made| votes(made))?;
    let most = votes(winner);
    let tied = results
        .iter()
        .any(|other| votes(other) == most && !other.agrees(winner));
    (most > 1 && !tied).then_some(winner)
}

#[cfg(test)]
mod tests {
    use iota_protocol::testing::peer;

    use super::*;

    const VALIDATOR: u8 = 9;

    fn session(name: u8) -> Session {
        Session {
            peer: peer(name),
            generation: 1,
        }
    }

    /// Who made what, how the cell was settled, with whose result, and what is wrong with that.
    type Case<'a> = (
        &'a [(u8, &'a str)],
        CellResult,
        Option<u8>,
        Option<Objection>,
    );

    /// What is wrong if owners came to these results, and the cell was settled with that of one of them.
    fn check(
        results: &[(u8, &str)],
        result: CellResult,
        settled_with: Option<u8>,
    ) -> Option<Objection> {
        let copies = [session(1), session(2)];
        let made = |(owner, content): &(u8, &str)| {
            // "?": it only said what it would be.
            let mut made = Made::by(session(*owner), content.trim_end_matches('?'), &copies);
            made.stored = !content.ends_with('?');
            if matches!(*content, "" | "nothing") {
                made.seal = None;
            }
            if content.is_empty() {
                // It found nothing finite in any copy.
                made.from.clear();
            }
            made
        };
        let made: Vec<Made> = results.iter().map(made).collect();
        let named = settled_with.map(|owner| {
            let mut made = made.iter();
            made.find(|made| made.owner == session(owner))
                .unwrap()
                .output
        });
        let results: Vec<&Made> = made.iter().collect();
        objection(&results, &[peer(VALIDATOR)], (result, named))
    }

    const EVERY_COPY: CellResult = CellResult::Unmergeable {
        why: Unmergeable::EveryCopyQuarantined,
    };
    const NO_RESULT: CellResult = CellResult::Unmergeable {
        why: Unmergeable::ResultNotFinite,
    };

    const fn liar(name: u8) -> CellResult {
        CellResult::Arbitrated {
            liar: Session {
                peer: peer(name),
                generation: 1,
            },
        }
    }

    #[test]
    fn a_cell_is_settled_as_most_of_its_owners_say() {
        use CellResult::{Agreed, CarriedForward, Single};
        use Objection::{AgainstTheMajority, Decided, NoAgreement, NotSingle, NotTheLiar};
        let cases: &[Case<'_>] = &[
            (&[(1, "a"), (2, "a")], Agreed, Some(1), None),
            (&[(1, "a"), (2, "a")], Agreed, Some(2), None),
            (&[(1, "a")], Agreed, Some(1), Some(NoAgreement)),
            (&[(1, "a"), (2, "b")], Agreed, Some(1), Some(NoAgreement)),
            (
                &[(1, "a"), (2, "a"), (3, "b")],
                Agreed,
                Some(1),
                Some(NoAgreement),
            ),
            (&[], Agreed, None, Some(NoAgreement)),
            // A validator's word is enough, and stands against most.
            (&[(9, "a")], Agreed, Some(9), None),
            (&[(1, "a"), (2, "b"), (9, "b")], liar(1), Some(9), None),
            (&[(1, "a"), (2, "a"), (9, "b")], liar(1), Some(9), None),
            (
                &[(1, "a"), (2, "a"), (9, "b")],
                Agreed,
                Some(1),
                Some(NoAgreement),
            ),
            (&[(1, "a"), (2, "b"), (3, "b")], liar(1), Some(2), None),
            (
                &[(1, "a"), (2, "b"), (3, "b")],
                liar(1),
                Some(1),
                Some(AgainstTheMajority),
            ),
            (
                &[(1, "a"), (2, "b"), (3, "b")],
                liar(3),
                Some(2),
                Some(NotTheLiar),
            ),
            (
                &[(1, "a"), (2, "b"), (3, "b")],
                liar(7),
                Some(2),
                Some(NotTheLiar),
            ),
            (&[(1, "a"), (2, "b")], liar(1), Some(2), Some(NoAgreement)),
            (
                &[(1, "a"), (2, "a"), (3, "b"), (4, "b")],
                liar(3),
                Some(1),
                Some(NoAgreement),
            ),
            (&[(1, "a")], Single, Some(1), None),
            (&[(1, "a"), (2, "a")], Single, Some(1), Some(NotSingle)),
            (&[(9, "a")], Single, Some(9), Some(NotSingle)),
            // One of those who agree has stored it, and that one it is settled with.
            (&[(1, "a"), (2, "a?")], Agreed, Some(1), None),
            (
                &[(1, "a"), (2, "a?")],
                Agreed,
                Some(2),
                Some(AgainstTheMajority),
            ),
            (&[(1, "a?")], Single, Some(1), Some(NotSingle)),
            (&[(1, "a?"), (2, "a?")], CarriedForward, None, None),
            // Owners also agree on that there is nothing, and why.
            (&[(1, ""), (2, "")], EVERY_COPY, None, None),
            (&[(1, "")], EVERY_COPY, None, None),
            (&[(1, "nothing"), (2, "nothing")], NO_RESULT, None, None),
            (
                &[(1, ""), (2, "")],
                NO_RESULT,
                None,
                Some(AgainstTheMajority),
            ),
            (&[(1, ""), (2, "a")], EVERY_COPY, None, Some(NoAgreement)),
            (
                &[(1, "a"), (2, "a")],
                EVERY_COPY,
                None,
                Some(AgainstTheMajority),
            ),
            (&[(1, ""), (2, "")], CarriedForward, None, Some(Decided)),
            // The old values stay where nobody decided.
            (&[], CarriedForward, None, None),
            (&[(1, "a"), (2, "b")], CarriedForward, None, None),
            (&[(1, "a")], CarriedForward, None, Some(Decided)),
            (&[(1, "a"), (2, "a")], CarriedForward, None, Some(Decided)),
        ];
        for (results, result, settled_with, expected) in cases {
            let found = check(results, *result, *settled_with);
            assert_eq!(found, *expected, "{results:?} {result:?} {settled_with:?}");
        }
    }
}
