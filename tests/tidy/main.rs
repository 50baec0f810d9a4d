//! The architecture, the documents and the README's steps, held true.

mod dependencies;
mod documents;
mod layers;
mod readme;
