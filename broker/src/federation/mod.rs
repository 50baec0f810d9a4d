//! Other organisations' brokers: one link for each peer that an admin took. What its agents say enters the
//! same pipeline as everything else; what its broker says is heard here.

mod advert;
pub mod dial;
mod events;
pub mod hearing;
pub mod link;
pub mod telling;
mod trust;
