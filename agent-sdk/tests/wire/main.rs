//! What an agent believes and does on the wire, against a broker that may lie.

mod calling;
mod clock;
mod fake;
mod listening;
mod posting;
mod serving;
mod sessions;
mod suspicion;
