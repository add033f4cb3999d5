//! The machine as its runtime sees it: commands in, events out.

mod chaos;
mod happy_path;
mod merging;
mod training;
mod world;
