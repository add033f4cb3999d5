//! SS58: a public key as people write it.
//!
//! base58 of `prefix || key || checksum`, where the checksum is the first two bytes of
//! `blake2b-512("SS58PRE" || prefix || key)`. The prefix says which chain the address is meant for.
//!
//! Source: Substrate documentation, "SS58 address format", simple account ids.

use blake2::{Blake2b512, Digest as _};
use iota_protocol::PeerId;

/// The prefix of generic Substrate accounts, which Bittensor uses: such addresses begin with a 5.
pub const PREFIX: u8 = 42;

/// Why a text is not an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAddress {
    /// It holds other characters than base58's, or is too short or too long.
    #[error("an address is 35 bytes of base58")]
    Malformed,
    /// It is meant for another chain.
    #[error("the address has prefix {prefix}, not {PREFIX}")]
    OtherChain {
        /// What it begins with.
        prefix: u8,
    },
    /// It was mistyped or cut.
    #[error("the address's checksum does not match")]
    Checksum,
}

/// The address of a peer.
pub fn encode(peer: &PeerId) -> String {
    let mut bytes = [0; LENGTH];
    bytes[0] = PREFIX;
    bytes[1..KEY_END].copy_from_slice(peer.as_bytes());
    let checksum = checksum(&bytes[..KEY_END]);
    bytes[KEY_END..].copy_from_slice(&checksum);
    bs58::encode(bytes).into_string()
}

/// The peer with this address.
///
/// # Errors
/// Says what is wrong with the text.
pub fn decode(text: &str) -> Result<PeerId, InvalidAddress> {
    let mut bytes = [0; LENGTH];
    match bs58::decode(text).onto(&mut bytes) {
        Ok(LENGTH) => {}
        Ok(_) | Err(_) => return Err(InvalidAddress::Malformed),
    }
    if bytes[0] != PREFIX {
        return Err(InvalidAddress::OtherChain { prefix: bytes[0] });
    }
    if checksum(&bytes[..KEY_END]) != bytes[KEY_END..] {
        return Err(InvalidAddress::Checksum);
    }
    let mut key = [0; PeerId::LENGTH];
    key.copy_from_slice(&bytes[1..KEY_END]);
    Ok(PeerId::from_bytes(key))
}

fn checksum(prefix_and_key: &[u8]) -> [u8; 2] {
    let hash = Blake2b512::new()
        .chain_update(b"SS58PRE")
        .chain_update(prefix_and_key)
        .finalize();
    [hash[0], hash[1]]
}

const KEY_END: usize = 1 + PeerId::LENGTH;
const LENGTH: usize = KEY_END + 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";

    #[test]
    fn a_mistyped_address_is_refused() {
        assert!(decode(ALICE).is_ok());
        let mistyped = ALICE.replace("QY", "QZ");
        assert_eq!(decode(&mistyped), Err(InvalidAddress::Checksum));
        assert_eq!(decode(&ALICE[..40]), Err(InvalidAddress::Malformed));
        assert_eq!(decode("0OIl"), Err(InvalidAddress::Malformed));
        assert_eq!(decode(&ALICE.repeat(9)), Err(InvalidAddress::Malformed));
    }

    #[test]
    fn an_address_of_another_chain_is_named_as_such() {
        // Alice on Polkadot, whose prefix is 0.
        let polkadot = "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5";
        assert_eq!(
            decode(polkadot),
            Err(InvalidAddress::OtherChain { prefix: 0 })
        );
    }

    proptest! {
        #[test]
        fn every_key_survives_its_address(key: [u8; 32]) {
            let peer = PeerId::from_bytes(key);
            prop_assert_eq!(decode(&encode(&peer)), Ok(peer));
        }
    }
}
