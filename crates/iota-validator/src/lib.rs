//! The validator as a library: replays miners' work and compares.
