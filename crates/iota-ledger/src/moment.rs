//! Points in time as people write them: since a run's beginning, or by the calendar in UTC.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use iota_protocol::Timestamp;

/// A point in a run's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// After an entry of the journal: `4711`.
    Entry(u64),
    /// So long after the run began: `90s`, `1h30m`, `2d`, `250ms`.
    After(Duration),
    /// By the orchestrator's clock: `2026-11-22T05:01:47Z`, with a fraction of a second if need be.
    At(Timestamp),
}

/// A text that is no point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no point of a run: give the number of an entry (4711), a time since the run began (1h30m, 90s, 250ms) or a time in UTC (2026-11-22T05:01:47Z)"
)]
pub struct InvalidMoment {
    text: String,
}

impl FromStr for Moment {
    type Err = InvalidMoment;

    fn from_str(text: &str) -> Result<Self, InvalidMoment> {
        let parsed = if text.contains('T') {
            parse_utc(text).map(Self::At)
        } else if text.bytes().all(|byte| byte.is_ascii_digit()) {
            text.parse().ok().map(Self::Entry)
        } else {
            parse_duration(text).map(Self::After)
        };
        parsed.ok_or_else(|| InvalidMoment {
            text: text.to_owned(),
        })
    }
}

const UNITS_MS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", DAY_MS),
];
const DAY_MS: u64 = 86_400_000;

fn parse_duration(mut text: &str) -> Option<Duration> {
    let mut total_ms = 0_u64;
    while !text.is_empty() {
        let digits = text.find(|character: char| !character.is_ascii_digit())?;
        let (number, rest) = text.split_at(digits);
        let letters = rest
            .find(|character: char| character.is_ascii_digit())
            .unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(letters);
        let (_, unit_ms) = UNITS_MS.iter().find(|(name, _)| *name == unit)?;
        let number: u64 = number.parse().ok()?;
        total_ms = total_ms.checked_add(number.checked_mul(*unit_ms)?)?;
        text = rest;
    }
    Some(Duration::from_millis(total_ms))
}

fn parse_utc(text: &str) -> Option<Timestamp> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let numbers = |text: &str, separator| -> Option<[u64; 3]> {
        let parts: Vec<u64> = text
            .split(separator)
            .map(|part| {
                let digits = part.bytes().all(|byte| byte.is_ascii_digit());
                digits.then(|| part.parse().ok()).flatten()
            })
            .collect::<Option<_>>()?;
        parts.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let plausible = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_of_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let digits = fraction.len() <= 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    if !plausible || !digits {
        return None;
    }
    let fraction_ms: u64 = format!("{fraction:0<3}").parse().ok()?;
    let years: u64 = (1970..year).map(days_of_year).sum();
    let months: u64 = (1..month).map(|month| days_of_month(year, month)).sum();
    let seconds = (hour * 60 + minute) * 60 + second;
    let days = years + months + day - 1;
    Some(Timestamp::from_millis(
        days * DAY_MS + seconds * 1_000 + fraction_ms,
    ))
}

/// A time in UTC, to the millisecond: `2026-11-22T05:01:47.250Z`.
pub fn utc(at: Timestamp) -> impl fmt::Display {
    let (mut days, of_day) = (at.as_millis() / DAY_MS, at.as_millis() % DAY_MS);
    let mut year = 1970;
    // A cycle of 400 years at a time: whatever a clock says, this ends soon.
    const CYCLE_DAYS: u64 = 146_097;
    year += 400 * (days / CYCLE_DAYS);
    days %= CYCLE_DAYS;
    while days >= days_of_year(year) {
        days -= days_of_year(year);
        year += 1;
    }
    let mut month = 1;
    while days >= days_of_month(year, month) {
        days -= days_of_month(year, month);
        month += 1;
    }
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, fraction_ms) = (of_day / 1_000 % 60, of_day % 1_000);
    let day = days + 1;
    fmt::from_fn(move |f| {
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction_ms:03}Z"
        )
    })
}

/// A time since a run's beginning, to the millisecond and as wide for all of a day: `01:02:03.004`, `2d 01:02:03.004`.
pub fn elapsed(since: Duration) -> impl fmt::Display {
    let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    fmt::from_fn(move |f| {
        if ms >= DAY_MS {
            write!(f, "{}d ", ms / DAY_MS)?;
        }
        let (hours, minutes) = (ms / 3_600_000 % 24, ms / 60_000 % 60);
        let (seconds, fraction_ms) = (ms / 1_000 % 60, ms % 1_000);
        write!(f, "{hours:02}:{minutes:02}:{seconds:02}.{fraction_ms:03}")
    })
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

const fn days_of_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

const fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_an_entry_a_duration_or_a_time() {
        assert_eq!("4711".parse(), Ok(Moment::Entry(4711)));
        let after = |ms| Ok(Moment::After(Duration::from_millis(ms)));
        assert_eq!("90s".parse(), after(90_000));
        assert_eq!("1h30m".parse(), after(5_400_000));
        assert_eq!("1d2ms".parse(), after(86_400_002));
        let at = Timestamp::from_millis(1_795_323_707_250);
        assert_eq!("2026-11-22T05:01:47.25Z".parse(), Ok(Moment::At(at)));
    }

    #[test]
    fn what_is_no_moment_is_said_to_be_none() {
        for text in [
            "",
            "soon",
            "5x",
            "s",
            "1h30",
            "2026-11-22",
            "2026-11-22T05:01:47",
            "2026-02-29T00:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T+5:01:47Z",
        ] {
            let moment = text.parse::<Moment>();
            assert!(moment.is_err(), "{text}: {moment:?}");
        }
    }

    #[test]
    fn times_print_as_they_are_written() {
        for text in [
            "1970-01-01T00:00:00.000Z",
            "2000-02-29T23:59:59.999Z",
            "2026-11-22T05:01:47.250Z",
            "2400-12-31T12:00:00.001Z",
        ] {
            let Ok(Moment::At(at)) = text.parse() else {
                panic!("{text}");
            };
            assert_eq!(utc(at).to_string(), text);
        }
        assert_eq!(
            elapsed(Duration::from_millis(3_723_004)).to_string(),
            "01:02:03.004"
        );
        assert_eq!(
            elapsed(Duration::from_secs(90_000)).to_string(),
            "1d 01:00:00.000"
        );
    }
}
