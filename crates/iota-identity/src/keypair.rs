//! Keys and signatures.
//!
//! sr25519 is Schnorr's scheme over Ristretto. The *signing context* separates uses of one key; Bittensor and every
//! other Substrate chain use [`SIGNING_CONTEXT`] for everything, and so do we, so that a hotkey's existing tools can
//! check our signatures. Callers separate uses by what they put first into the message.

use std::fmt;

use iota_protocol::PeerId;
use schnorrkel::{ExpansionMode, MiniSecretKey, PublicKey};
use zeroize::Zeroizing;

/// The signing context of Substrate chains.
pub const SIGNING_CONTEXT: &[u8] = b"substrate";

/// A peer's secret key and its public half. The secret is wiped from memory on drop and never printed.
pub struct Keypair(schnorrkel::Keypair);

impl Keypair {
    /// A new key from the operating system's randomness.
    ///
    /// # Panics
    /// If the operating system has no randomness to give.
    pub fn generate() -> Self {
        Self::from_seed(*new_seed())
    }

    /// The key that a seed stands for. The same seed gives the same key as in a Bittensor hotkey (`secretSeed`).
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        let secret =
            MiniSecretKey::from_bytes(seed.as_slice()).expect("any 32 bytes are a mini secret key");
        Self(secret.expand_to_keypair(ExpansionMode::Ed25519))
    }

    /// Who this key is.
    pub fn peer_id(&self) -> PeerId {
        PeerId::from_bytes(self.0.public.to_bytes())
    }

    /// The public key as people write it: SS58 with Bittensor's prefix.
    pub fn address(&self) -> String {
        crate::address::encode(&self.peer_id())
    }

    /// Signs a message. Signing twice gives two signatures, both valid: the scheme draws fresh randomness.
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign_simple(SIGNING_CONTEXT, message).to_bytes())
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keypair").field(&self.peer_id()).finish()
    }
}

/// What [`Keypair::sign`] makes; whether it is a valid signature of anything is [`verify`]'s to say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; Self::LENGTH]);

impl Signature {
    /// Length in bytes.
    pub const LENGTH: usize = 64;

    /// Takes the bytes as they are.
    pub const fn from_bytes(bytes: [u8; Self::LENGTH]) -> Self {
        Self(bytes)
    }

    /// The bytes, as they travel.
    pub const fn as_bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Signature({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// The bytes are not this peer's signature of this message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not the peer's signature of the message")]
pub struct InvalidSignature;

/// Whether `signature` is `peer`'s over `message`.
///
/// # Errors
/// [`InvalidSignature`] also when the peer id is not a point of the curve or the signature is not well formed: to a
/// caller, all of these are the same refusal.
pub fn verify(
    peer: &PeerId,
    message: &[u8],
    signature: &Signature,
) -> Result<(), InvalidSignature> {
    let public = PublicKey::from_bytes(peer.as_bytes()).map_err(|_| InvalidSignature)?;
    let signature =
        schnorrkel::Signature::from_bytes(signature.as_bytes()).map_err(|_| InvalidSignature)?;
    public
        .verify_simple(SIGNING_CONTEXT, message, &signature)
        .map_err(|_| InvalidSignature)
}

/// 32 bytes from the operating system, wiped on drop.
pub(crate) fn new_seed() -> Zeroizing<[u8; 32]> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut_slice()).expect("the operating system gives randomness");
    seed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The development account that every Substrate tool knows, as printed by `subkey inspect //Alice`.
    const ALICE_SEED: &str = "e5be9a5092b81bca64be81d212e7f2f9eba183bb7a90954f7b76361f6edb5c0a";
    const ALICE_PUBLIC: &str =
        "peer_d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d";

    fn seed(hex: &str) -> [u8; 32] {
        std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
    }

    #[test]
    fn a_seed_gives_the_key_that_substrate_tools_give() {
        let alice = Keypair::from_seed(seed(ALICE_SEED));
        assert_eq!(alice.peer_id().to_string(), ALICE_PUBLIC);
        assert_eq!(
            alice.address(),
            "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
        );
    }

    #[test]
    fn generated_keys_differ() {
        assert_ne!(Keypair::generate().peer_id(), Keypair::generate().peer_id());
    }

    #[test]
    fn another_peers_signature_does_not_verify() {
        let (ours, theirs) = (Keypair::from_seed([1; 32]), Keypair::from_seed([2; 32]));
        let signature = theirs.sign(b"message");
        assert_eq!(verify(&theirs.peer_id(), b"message", &signature), Ok(()));
        assert_eq!(
            verify(&ours.peer_id(), b"message", &signature),
            Err(InvalidSignature)
        );
    }

    #[test]
    fn debug_output_does_not_hold_the_secret() {
        let alice = Keypair::from_seed(seed(ALICE_SEED));
        assert_eq!(format!("{alice:?}"), "Keypair(peer_d43593c7)");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_signature_holds_for_its_message_only(
            message in prop::collection::vec(any::<u8>(), 1..200),
            flip in any::<prop::sample::Index>(),
            bit in 0..8_u32,
        ) {
            let keypair = Keypair::from_seed([3; 32]);
            let signature = keypair.sign(&message);
            prop_assert!(verify(&keypair.peer_id(), &message, &signature).is_ok());

            let mut other = message.clone();
            other[flip.index(message.len())] ^= 1 << bit;
            prop_assert!(verify(&keypair.peer_id(), &other, &signature).is_err());

            let mut damaged = *signature.as_bytes();
            damaged[flip.index(damaged.len())] ^= 1 << bit;
            prop_assert!(verify(&keypair.peer_id(), &message, &Signature::from_bytes(damaged)).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_a_panic(peer: [u8; 32], signature: [u8; 32]) {
            let signature = std::array::from_fn(|i| signature[i % 32]);
            prop_assert!(verify(&PeerId::from_bytes(peer), b"", &Signature::from_bytes(signature)).is_err());
        }
    }
}
