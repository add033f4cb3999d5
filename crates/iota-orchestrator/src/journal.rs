//! Where events go before anybody is told of them.

use std::fmt;

use iota_protocol::Timestamp;
use iota_protocol::event::Event;
use serde::{Deserialize, Serialize};

use crate::Error;

/// An event and when it happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, by the orchestrator's clock.
    pub at: Timestamp,
    /// What.
    pub event: Event,
}

/// An append-only log of events. When [`append`](Self::append) returns, they are as durable as the journal is.
pub trait Journal: Send + fmt::Debug {
    /// Adds the events of one command, all or none.
    ///
    /// # Errors
    /// If they could not be kept. The run ends then: nothing may be acknowledged that is not kept.
    fn append(&mut self, records: &[Record]) -> Result<(), Error>;
}

/// Keeps nothing: for runs that may be lost with their process.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoJournal;

impl Journal for NoJournal {
    fn append(&mut self, _: &[Record]) -> Result<(), Error> {
        Ok(())
    }
}
