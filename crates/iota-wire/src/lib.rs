//! The orchestrator protocol over gRPC: messages, conversions, signed requests, typed errors.
//!
//! ```text
//!   miner, validator                                                             orchestrator
//!
//!   Client ---- values ---> messages ---> signature ===== gRPC =====> check ---> messages ---> values ---> OrchestratorApi
//!      ^        convert                   auth                        auth       convert                    |
//!      '------- CallError <-------------- error/status <=========== error/status <----------- ApiError -----'
//! ```
//!
//! Peers only ever call; nobody calls them. They ask for work with a long poll, and report what they did. Tensors never
//! come this way: a lease comes with *grants*, presigned requests for exactly the objects that it names.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use iota_protocol::Role;
//! use iota_wire::{Client, WorkRequest};
//!
//! # async fn example() -> Result<(), iota_wire::CallError> {
//! let keypair = Arc::new(iota_identity::Keypair::generate());
//! let (client, run) = Client::connect("http://127.0.0.1:9000", keypair).await?;
//! println!("joining {}", run.run);
//! let joined = client.join(Role::Miner, 2).await?;
//! let request = WorkRequest { session: joined.session, room: 2, held: vec![], hold: Duration::from_secs(20) };
//! for work in client.get_work(request).await?.leases {
//!     println!("{:?} by {:?}", work.lease.work.kind(), work.lease.deadline);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | module | concern |
//! |---|---|
//! | [`client`] | the peers' side |
//! | [`server`] | the orchestrator's side |
//! | [`auth`] | who sent a request, and whether just now, once, and for us |
//! | [`error`] | why a call failed, and the one table between that and gRPC |
//! | [`message`] | values that the protocol's rules do not need: grants, questions and answers |
//! | `convert` | between generated messages and values; believes nothing |
//! | [`limits`] | how much of anything a message may hold |
//! | [`clock`] | where the time comes from |
//! | [`transport`] | what calls travel over: TCP, or what a program brings instead |
//! | [`proto`] | what the compiler makes of `proto/iota/v1` |
//!
//! It does *not* know what a lease or an outcome means (that is `iota-protocol`'s), how an object is reached with a grant
//! (`iota-store`), or when to repeat a call (the runtimes).

pub mod auth;
pub mod client;
pub mod clock;
mod convert;
pub mod error;
pub mod limits;
pub mod message;
pub mod proto;
pub mod server;
pub mod transport;

pub use auth::{AuthSettings, Authenticator, RateSettings};
pub use client::{Client, ConnectOptions};
pub use clock::Clock;
pub use convert::ConversionError;
pub use error::{ApiError, AuthFailure, CallError, CallErrorKind};
pub use message::{
    Grant, GrantMethod, GrantTarget, Joined, LeasedWork, RunInfo, RunStatus, WorkReply,
    WorkRequest, WorkStatus,
};
pub use server::{OrchestratorApi, ServeError, Service, serve, service};
pub use transport::{Connection, Connector, Incoming};

/// Version of the protocol. Peers of another version must not join: a number goes up only with a change that the other
/// side would misunderstand.
pub const PROTOCOL_VERSION: u32 = 1;
