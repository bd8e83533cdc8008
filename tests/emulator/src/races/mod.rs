//! Races, found by what happens before what and not by luck.
//!
//! Every thread has a clock that grows whenever it tells others how far it is. A thread knows up to which clock
//! the work of every other thread lies before its own: from barriers of its block, from `bar.warp.sync`, and from
//! releases that it acquired. Lanes of a warp are threads like any others: only `bar.warp.sync` and barriers of
//! the block order their memory accesses; shuffles, votes and running in lockstep do not, as CUDA documents.
//! Every byte remembers who wrote it last and who read it since. An access that the other's clock does not put
//! before is a race, whatever the order in which the two were run here. (The vector clocks are those of FastTrack,
//! Flanagan and Freund 2009.)

mod epoch;
mod knowledge;
mod shadow;
mod variables;

pub(crate) use epoch::Epoch;
pub(crate) use knowledge::Knowledge;
pub(crate) use shadow::{Conflict, Observer, Shadow, Touch};
pub(crate) use variables::{Reach, Release, Variables};
