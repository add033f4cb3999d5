//! Everything that happens in a world, in order.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::fault::{Counts, Fault};

/// Takes down what happens, for people and as a digest of all of it.
#[derive(Debug)]
pub(crate) struct Trace {
    print: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    digest: Vec<u8>,
    faults: Counts,
    now: Duration,
}

impl Trace {
    /// `print`: on standard output, as it happens.
    pub(crate) fn new(print: bool) -> Self {
        Self {
            print,
            inner: Mutex::default(),
        }
    }

    /// It is so long since the world began.
    pub(crate) fn move_to(&self, now: Duration) {
        self.lock().now = now;
    }

    /// Something has happened to somebody.
    pub(crate) fn note(&self, who: &str, what: impl fmt::Display) {
        let mut inner = self.lock();
        let line = format!("{:>9.3} s  {who:<12}  {what}\n", inner.now.as_secs_f64());
        if self.print {
            print!("{line}");
        }
        // Each line's digest is over the line and the digest before: a trace of any length takes no room.
        inner.digest.extend_from_slice(line.as_bytes());
        inner.digest = iota_protocol::Digest::of(&inner.digest).as_bytes().to_vec();
    }

    /// Trouble begins.
    pub(crate) fn fault(&self, fault: Fault, who: &str, until: Option<Duration>) {
        self.lock().faults.count(fault);
        match until {
            Some(until) => {
                let until = until.as_secs_f64();
                self.note(
                    who,
                    format_args!("FAULT {}, until {until:.3} s", fault.text()),
                );
            }
            None => self.note(who, format_args!("FAULT {}", fault.text())),
        }
    }

    pub(crate) fn faults(&self) -> Counts {
        self.lock().faults.clone()
    }

    /// The digest of everything so far.
    pub(crate) fn digest(&self) -> String {
        iota_protocol::Digest::of(&self.lock().digest).to_string()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
