//! Calls over turmoil's network, and a clock that shows its time.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use iota_node::clock::{Clock, Sleep};
use iota_protocol::Timestamp;
use iota_wire::{Connection, Connector, Incoming};
use turmoil::net::{TcpListener, TcpStream};

use crate::seeded::BEGAN;

/// Where the orchestrator listens.
pub(crate) const PORT: u16 = 7400;

/// What comes in at the machine that calls this.
pub(crate) async fn listen(at: IpAddr) -> io::Result<Incoming> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let connections = futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await;
        let connection = accepted.map(|(stream, _)| Connection::new(stream));
        Some((connection, listener))
    });
    Ok(Incoming::new(SocketAddr::new(at, PORT), connections))
}

/// Connects from the machine that uses it.
pub(crate) fn connector() -> Connector {
    Connector::new(|address: http::Uri| async move {
        let host = address.host().and_then(|host| host.parse::<IpAddr>().ok());
        let (Some(host), Some(port)) = (host, address.port_u16()) else {
            return Err(io::Error::other(format!("{address} is no address")));
        };
        let stream = TcpStream::connect(SocketAddr::new(host, port)).await?;
        Ok(Connection::new(stream))
    })
}

/// The time of a simulated machine, whose clock may be wrong.
pub(crate) struct SimulatedClock {
    ahead_ms: i64,
}

impl SimulatedClock {
    pub(crate) const fn new(ahead_ms: i64) -> Self {
        Self { ahead_ms }
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        let elapsed = turmoil::sim_elapsed().unwrap_or(Duration::ZERO);
        let now_ms = u64::try_from((BEGAN + elapsed).as_millis()).unwrap_or(u64::MAX);
        Timestamp::from_millis(now_ms.saturating_add_signed(self.ahead_ms))
    }

    fn sleep_until(&self, at: Timestamp) -> Sleep<'_> {
        Box::pin(tokio::time::sleep(at.since(self.now())))
    }
}

impl fmt::Debug for SimulatedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedClock")
            .field("ahead_ms", &self.ahead_ms)
            .finish()
    }
}
