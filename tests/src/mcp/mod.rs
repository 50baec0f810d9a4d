//! What proves that other people's MCP clients, servers and suites work with ours.
//!
//! Nothing of it is linked: [`toolbox`] installs it by the locks in `tests/mcp`, [`servers`] and
//! [`clients`] run it as processes, [`suite`] reads what the conformance suite found. [`front`] stands
//! between those who speak plain HTTP and those who speak TLS with a token; a [`house`] has servers behind its
//! agents; a [`shelf`] is seen in the box; [`stateless`] and [`handshake`] ask by hand, each in its era;
//! [`ground`] is where clients of ours are put to the test, [`guarded`] a server that demands an authorisation,
//! and [`browser`] that of whoever logs in there.

pub mod browser;
pub mod clients;
pub mod front;
pub mod ground;
pub mod guarded;
pub mod handshake;
pub mod house;
pub mod process;
pub mod servers;
pub mod shelf;
pub mod stateless;
pub mod suite;
pub mod toolbox;
