//! The machine as its runtime sees it: commands in, events out.

mod happy_path;
mod world;
