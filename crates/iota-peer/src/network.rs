//! How a peer reaches the orchestrator and the store.

use iota_store::GrantClient;
use iota_wire::Connector;

/// The ways out of a peer's machine: by default TCP and HTTP. A program that has others, as a simulation has, brings them.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// To the orchestrator.
    pub calls: Connector,
    /// To the store.
    pub store: GrantClient,
}
