//! Rules of the repository that the compiler cannot check.

mod layers;
mod manifests;
mod map;
mod repository;
mod sources;
