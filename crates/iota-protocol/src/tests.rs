//! The machine as its runtime sees it: commands in, events out.

mod auditing;
mod chaos;
mod going_ahead;
mod handing_over;
mod happy_path;
mod merging;
mod registering;
mod repairing;
mod restoring;
mod sessions;
mod storing;
mod training;
mod wasting;
mod world;
