//! Who may ask the process to stop, and how everybody hears of it.
//!
//! Stopping has two steps. The first request asks to *drain*: finish what is in flight, start nothing new, say goodbye.
//! Whoever asks a second time (an impatient person, a supervisor) gets the process ended at once with exit code 130;
//! the journal and the store are written so that nothing acknowledged is lost by that.
//!
//! ```text
//!   Shutdown::on_signals()          request() here reaches every child …
//!    ├── child(): server
//!    └── child(): miner             … and request() here reaches only this branch
//!         └── child(): transfers
//! ```

use std::future::Future;
use std::io;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::exit::Exit;

/// A request to stop that any number of tasks can wait for. Clones are the same request.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    requested: CancellationToken,
}

impl Shutdown {
    /// A request that nobody has made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request that Ctrl-C or (on Unix) SIGTERM makes. The second signal ends the process with exit code 130.
    ///
    /// Call it inside a tokio runtime with its I/O driver on, once per process.
    ///
    /// # Errors
    /// The signal handlers could not be installed.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn on_signals() -> io::Result<Self> {
        let shutdown = Self::new();
        let mut signals = Signals::install()?;
        let task = shutdown.clone().obey(
            async move || signals.next().await,
            || {
                std::process::exit(Exit::Interrupted.code().into());
            },
        );
        tokio::spawn(task);
        Ok(shutdown)
    }

    /// A request that is made with this one, and can be made without it.
    pub fn child(&self) -> Self {
        Self {
            requested: self.requested.child_token(),
        }
    }

    /// Asks to stop. Asking again changes nothing.
    pub fn request(&self) {
        self.requested.cancel();
    }

    /// Whether somebody has asked.
    pub fn is_requested(&self) -> bool {
        self.requested.is_cancelled()
    }

    /// Waits until somebody asks; at once if somebody has.
    pub fn wait(&self) -> impl Future<Output = ()> + Send + use<> {
        self.requested.clone().cancelled_owned()
    }

    /// Makes the request at the first signal and calls `force` at the second.
    async fn obey(self, mut next_signal: impl AsyncFnMut() -> &'static str, force: impl FnOnce()) {
        let signal = next_signal().await;
        info!(
            signal,
            "stopping after the work in flight; a second signal stops at once"
        );
        self.request();
        let signal = next_signal().await;
        warn!(signal, "stopping at once");
        force();
    }
}

/// The signals that mean "stop".
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn install() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

/// The signals that mean "stop".
#[cfg(windows)]
struct Signals {
    interrupt: tokio::signal::windows::CtrlC,
}

#[cfg(windows)]
impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: tokio::signal::windows::ctrl_c()?,
        })
    }

    async fn next(&mut self) -> &'static str {
        self.interrupt.recv().await;
        "Ctrl-C"
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_request_reaches_every_child_and_none_of_the_parents() {
        let process = Shutdown::new();
        let (miner, server) = (process.child(), process.child());
        let transfers = miner.child();
        miner.request();
        transfers.wait().await;
        assert!(!process.is_requested() && !server.is_requested());
        process.request();
        server.wait().await;
    }

    #[test]
    fn a_child_of_a_stopped_parent_is_stopped() {
        let process = Shutdown::new();
        process.request();
        assert!(process.child().is_requested());
    }

    #[tokio::test]
    async fn the_first_signal_drains_and_only_the_second_forces() {
        let shutdown = Shutdown::new();
        let forced = AtomicBool::new(false);
        let (send, mut signals) = mpsc::channel(2);
        let obey = shutdown.clone().obey(
            async move || signals.recv().await.expect("the test holds the sender"),
            || forced.store(true, Ordering::Relaxed),
        );
        let person = async {
            send.send("SIGINT").await.expect("obey is listening");
            shutdown.wait().await;
            assert!(!forced.load(Ordering::Relaxed));
            send.send("SIGTERM").await.expect("obey is listening");
        };
        tokio::join!(obey, person);
        assert!(forced.load(Ordering::Relaxed));
    }
}
