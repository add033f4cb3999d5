//! How a peer reaches the orchestrator and the store.

use iota_store::GrantClient;
use iota_tls::Trust;
use iota_wire::Connector;

/// The ways out of a peer's machine: by default TCP and HTTP, by TLS where a URL says `https`, with servers whose certificates
/// the system's authorities have signed. A program that has others, as a simulation has, brings them.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// To the orchestrator.
    pub calls: Connector,
    /// To the store.
    pub store: GrantClient,
}

impl Network {
    /// The same ways, to servers whose certificates `trust` believes.
    pub fn trusting(trust: Trust) -> Self {
        Self {
            store: GrantClient::trusting(&trust),
            calls: Connector::trusting(trust),
        }
    }
}
