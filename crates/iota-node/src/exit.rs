//! The exit codes of every iota program. Scripts rely on them, so they never change.

use std::process::{ExitCode, Termination};

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// The job was done, all of it.
    Done,
    /// The job was understood and tried, and failed.
    Failed,
    /// What was asked for cannot be: wrong flags, settings or files. Nothing was started.
    Unusable,
    /// Somebody asked the process to stop before the job was done.
    Interrupted,
}

impl Exit {
    /// The code that the process hands to its parent.
    ///
    /// 2 is what clap uses for wrong flags; 130 is what shells report for a program that Ctrl-C ended.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Unusable => 2,
            Self::Interrupted => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_the_published_ones() {
        let codes = [Exit::Done, Exit::Failed, Exit::Unusable, Exit::Interrupted].map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 130]);
    }
}
