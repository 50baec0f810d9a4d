//! Who may do what: names of rights, the tokens that carry them, and who holds a token.
//!
//! Reading order: [`pattern`] (what is a right), [`token`] (how a token grants one), [`gate`] (what a
//! token may look like before any work is spent on it), [`chain`] (who holds it), [`issue`] (how to
//! make one).

mod pattern;

pub use pattern::{BadPattern, Capability, Pattern};
