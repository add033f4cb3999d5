//! Who a peer is: an sr25519 key, made, kept, shown and used as Bittensor does with its hotkeys.
//!
//! ```text
//!   key file (0600) --load_or_create--> Keypair --sign--> Signature (64 bytes) --.
//!                                          |                                      +--> verify
//!                                          '--peer_id--> PeerId (public key) ----'
//!                                                           |
//!                                                           '--> address: SS58 text, "5..."
//! ```
//!
//! A peer *is* its public key. Whoever holds the secret half can act as the peer, so the secret stays in two places: a
//! file that only its owner may read, and memory that is wiped when a [`Keypair`] goes away.
//!
//! ```
//! use iota_identity::{Keypair, verify};
//!
//! let keypair = Keypair::from_seed([7; 32]);
//! let signature = keypair.sign(b"I was here");
//! verify(&keypair.peer_id(), b"I was here", &signature)?;
//! assert!(verify(&keypair.peer_id(), b"I was there", &signature).is_err());
//! # Ok::<(), iota_identity::InvalidSignature>(())
//! ```
//!
//! | module | concern |
//! |---|---|
//! | [`keypair`] | keys, signatures |
//! | [`address`] | SS58: a public key as people write it |
//! | [`key_file`] | a keypair on disk, in the layout of a Bittensor hotkey |
//! | `key_lock` | one process per key |
//!
//! What is signed and what a signature entitles to is not known here (that is `iota-wire`'s), nor whether a key is
//! registered anywhere. Encrypted wallets and coldkeys are recognised and refused, never opened.

pub mod address;
pub mod key_file;
mod key_lock;
pub mod keypair;

pub use key_file::{KeyFileError, load_or_create};
pub use key_lock::KeyLock;
pub use keypair::{InvalidSignature, Keypair, Signature, verify};
