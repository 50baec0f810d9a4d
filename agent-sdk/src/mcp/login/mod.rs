//! Authorisations at MCP servers that demand one: OAuth 2.1 as MCP has it, from the side of the client.
//!
//! [`Login`] gets one while somebody is at hand, and keeps it in a file; [`Keeper`] shows it to the server, and renews
//! it, with nobody at hand. Between the two is what a person decided ([`Terms`]).
//!
//! A token is shown to the one server that it was asked for, whose address is in the file, and a secret of the client
//! to the one authorisation server that a person named or that gave it. Who else is asked on the way is what the
//! standards demand, and no more: the MCP server itself, the authorisation server that it names, and the places that
//! this one names; all by TLS, unless the MCP server is on this machine itself. No redirect is followed.
//!
//! `challenge`, `metadata`, `client`, `consent`, `token` and `scopes` are pure: what is said, and what of it is
//! believed. `exchange`, `loopback` and `file` reach the world.

mod ask;
mod assertion;
mod challenge;
mod client;
mod consent;
mod exchange;
mod file;
mod keeper;
mod loopback;
mod metadata;
mod person;
mod scopes;
mod secret;
mod terms;
mod token;

pub(crate) use self::challenge::Challenge;
pub use self::keeper::Keeper;
pub(crate) use self::keeper::{NoToken, Verdict};
pub use self::person::{Agreed, Invitation, Login};
pub use self::scopes::Scopes;
pub use self::secret::Place;
pub(crate) use self::secret::Secret;
pub use self::terms::{Known, Means, Proof, Terms};
