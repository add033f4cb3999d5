//! Merging many copies of a flat tensor into one: rules that give the same bits everywhere.
