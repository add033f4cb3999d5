//! Keys and signatures of peers: sr25519, as Bittensor hotkeys use it.
