//! The store that all peers of a world share, and what goes wrong on the way to it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use iota_node::Clock as _;
use iota_protocol::Timestamp;
use iota_store::{Carrier, Counter, Credentials, Error, Grant, Grants, Result, Store};

use crate::chance::Chance;
use crate::network::SimulatedClock;
use crate::plan::Host;
use crate::trace::Trace;

/// Objects in memory, which outlive every process. What is granted is checked as S3 checks it.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) store: Store,
    pub(crate) signer: Grants,
    counter: Counter,
    weather: Mutex<Weather>,
    trace: Arc<Trace>,
}

/// How the store is today, and who reaches it.
#[derive(Debug)]
struct Weather {
    cut_off: BTreeSet<Host>,
    refusing: bool,
    slow: bool,
    lossy: bool,
    chance: Chance,
}

/// What becomes of one request.
struct Passage {
    there: Duration,
    arrives: Arrives,
    back: Duration,
}

enum Arrives {
    Yes,
    AndTheAnswerDoesNot,
    AndIsRefused,
    No,
}

/// How long a connection is waited for that does not come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Objects {
    pub(crate) fn new(seed: u64, trace: Arc<Trace>) -> Self {
        let endpoint = "http://store:9000".parse().expect("it is an address");
        let credentials = Credentials::new("iota", "the secret of the store");
        let signer = Grants::new(&endpoint, "iota", "us-east-1", &credentials)
            .expect("the address is one of HTTP");
        let store = Store::in_memory();
        Self {
            counter: Counter::new(store.clone(), signer.clone()),
            store,
            signer,
            weather: Mutex::new(Weather {
                cut_off: BTreeSet::new(),
                refusing: false,
                slow: false,
                lossy: false,
                chance: Chance::new(seed, "store"),
            }),
            trace,
        }
    }

    pub(crate) fn cut_off(&self, host: Host, is_cut_off: bool) {
        let mut weather = self.weather();
        if is_cut_off {
            weather.cut_off.insert(host);
        } else {
            weather.cut_off.remove(&host);
        }
    }

    pub(crate) fn refuse(&self, refusing: bool) {
        self.weather().refusing = refusing;
    }

    pub(crate) fn slow_down(&self, slow: bool) {
        self.weather().slow = slow;
    }

    pub(crate) fn lose(&self, lossy: bool) {
        self.weather().lossy = lossy;
    }

    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a request of `host` to the store and the answer back.
    async fn carry<T>(
        &self,
        host: Host,
        verb: &str,
        grant: &Grant,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Passage {
            there,
            arrives,
            back,
        } = self.weather().passage(host);
        tokio::time::sleep(there).await;
        let answer = match arrives {
            Arrives::Yes => request.await,
            Arrives::AndTheAnswerDoesNot => {
                drop(request.await);
                unavailable("the connection was reset")
            }
            Arrives::AndIsRefused => unavailable("status 503"),
            Arrives::No => unavailable("the connection timed out"),
        };
        tokio::time::sleep(back).await;
        let name = grant.url.path();
        match &answer {
            Ok(_) => self.trace.note(host.name(), format_args!("{verb} {name}")),
            Err(error) => {
                let why = std::error::Error::source(error).map(ToString::to_string);
                let why = why.unwrap_or_default();
                self.trace
                    .note(host.name(), format_args!("{verb} {name}: {error} {why}"));
            }
        }
        answer
    }
}

fn unavailable<T>(why: &str) -> Result<T> {
    let source = why.into();
    Err(Error::Unavailable { source })
}

impl Weather {
    fn passage(&mut self, host: Host) -> Passage {
        let chance = &mut self.chance;
        let longest_ms = if self.slow { 6_000 } else { 30 };
        let mut passage = Passage {
            there: chance.millis(0, longest_ms),
            arrives: Arrives::Yes,
            back: chance.millis(0, longest_ms),
        };
        if self.cut_off.contains(&host) {
            passage.arrives = Arrives::No;
            passage.there = CONNECT_TIMEOUT;
        } else if self.refusing {
            passage.arrives = Arrives::AndIsRefused;
        } else if self.lossy && chance.happens(20) {
            passage.arrives = Arrives::AndTheAnswerDoesNot;
        } else if self.lossy && chance.happens(20) {
            passage.arrives = Arrives::No;
        }
        passage
    }
}

/// A peer's way to the store.
#[derive(Debug)]
pub(crate) struct WayToStore {
    pub(crate) host: Host,
    pub(crate) objects: Arc<Objects>,
}

/// The time by the store's clock, which is right.
fn now() -> Timestamp {
    SimulatedClock::new(0).now()
}

impl Carrier for WayToStore {
    fn get<'a>(&'a self, grant: &'a Grant) -> BoxFuture<'a, Result<Bytes>> {
        // Checked when the request is there, not when it is sent.
        let request = async { self.objects.counter.get(grant, now()).await };
        Box::pin(self.objects.carry(self.host, "read", grant, request))
    }

    fn put<'a>(&'a self, grant: &'a Grant, bytes: Bytes) -> BoxFuture<'a, Result<()>> {
        let request = async { self.objects.counter.put(grant, bytes, now()).await };
        Box::pin(self.objects.carry(self.host, "wrote", grant, request))
    }
}
