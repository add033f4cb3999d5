//! Who may become a miner, as an operator says it.

use std::time::Duration;

use iota_protocol::settings::{Opens, Registration};
use serde::{Deserialize, Serialize};

/// Who may become a miner, and when; see [`Registration`]. Who finds no place waits for one, in a line whose places never get
/// worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrationOptions {
    /// When newcomers are taken: `always`, `never` once training has begun, or in `windows` that nobody can foresee.
    pub opens: OpensChoice,
    /// With `windows`: from the end of one to the beginning of the next, on average.
    pub closed_mean_ms: u64,
    /// With `windows`: how long one lasts.
    pub open_for_ms: u64,
    /// Miners of a stage, at most.
    pub miners_per_stage_max: u32,
    /// Miners of the whole run, at most; 0: as many as its stages take.
    pub miners_max: u32,
    /// Places on the waiting list.
    pub waiting_max: u32,
    /// For how long a place, in the run or on the waiting list, is kept for a miner that is not heard of.
    pub place_kept_ms: u64,
}

/// When newcomers are taken; see [`Opens`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpensChoice {
    /// [`Opens::Always`].
    #[default]
    Always,
    /// [`Opens::Never`].
    Never,
    /// [`Opens::Windows`].
    Windows,
}

impl Default for RegistrationOptions {
    fn default() -> Self {
        let usual = Registration::default();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self {
            opens: OpensChoice::Always,
            closed_mean_ms: millis(Duration::from_secs(6 * 3_600)),
            open_for_ms: millis(Duration::from_secs(15 * 60)),
            // IOTA's number.
            miners_per_stage_max: 50,
            miners_max: 0,
            waiting_max: usual.waiting_max,
            place_kept_ms: millis(usual.place_kept),
        }
    }
}

impl From<RegistrationOptions> for Registration {
    fn from(options: RegistrationOptions) -> Self {
        Self {
            opens: match options.opens {
                OpensChoice::Always => Opens::Always,
                OpensChoice::Never => Opens::Never,
                OpensChoice::Windows => Opens::Windows {
                    closed_mean: Duration::from_millis(options.closed_mean_ms),
                    open_for: Duration::from_millis(options.open_for_ms),
                },
            },
            miners_max: match options.miners_max {
                0 => u32::MAX,
                miners => miners,
            },
            waiting_max: options.waiting_max,
            place_kept: Duration::from_millis(options.place_kept_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_does_not_say_is_what_the_rules_do_by_themselves() {
        let usual = Registration::from(RegistrationOptions::default());
        assert_eq!(usual, Registration::default());
        let windows = RegistrationOptions {
            opens: OpensChoice::Windows,
            closed_mean_ms: 7,
            open_for_ms: 3,
            ..RegistrationOptions::default()
        };
        let opens = Opens::Windows {
            closed_mean: Duration::from_millis(7),
            open_for: Duration::from_millis(3),
        };
        assert_eq!(Registration::from(windows).opens, opens);
    }
}
