//! What only several parts together can show: a [`lab::Lab`] is a broker on loopback with agents that
//! speak the wire protocol by hand, so that a test can say what no well-behaved client would.

pub mod binaries;
pub mod by_hand;
pub mod cable;
pub mod certs;
pub mod house;
pub mod lab;
pub mod load;
pub mod mcp;
pub mod measure;
pub mod peer;
pub mod site;
pub mod wire;
pub mod witness;
