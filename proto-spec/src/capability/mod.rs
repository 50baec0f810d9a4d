//! Who may do what: names of rights, the tokens that carry them, and who holds a token.
//!
//! Reading order: `pattern` (what is a right), `token` (how a token grants one), `gate` (what a
//! token may look like before any work is spent on it), `chain` (who holds it), `claims` (what it says),
//! `decision` (whether it permits what is asked), `check` and `constraint` (conditions), [`issue`] (how
//! to make one).

mod arguments;
mod chain;
mod check;
mod claims;
mod constraint;
mod decision;
mod gate;
pub mod issue;
mod pattern;
mod token;

pub use check::{BadCheck, Check};
pub use claims::{Block, Claims};
pub use decision::{Arguments, Proof, Question, permits};
pub use issue::{BadTerms, Bearer, Narrowing, PeerTerms, Terms};
pub use pattern::{BadPattern, Capability, Pattern};
pub use token::{Enrolment, RevocationId, Token, TokenKind, UnknownKind, decode_text, encode_text};
