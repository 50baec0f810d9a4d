//! Running code that nobody vouches for, on Linux.
//!
//! A [`Policy`] says what a program may use; a [`Sandbox`] is a policy that this machine has shown to
//! enforce; [`Sandbox::run`] runs one program under it and says how it ended. What the kernel cannot
//! enforce is a refusal before anything ran, never a warning after it.
//!
//! Layers, each of which has to fail before the next one matters: namespaces (what is not there cannot
//! be reached), Landlock and seccomp (what is there cannot be used), limits and a watch (what can be
//! used is bounded). None of them needs a privilege. Started by root, a program runs as another user.
//!
//! Inside, from below: `policy`, `job` (what is said to the helpers), `folder` (files that hostile
//! programs left), `scratch` (such a folder on disk), `room`, `filter` and `confine` (the layers), `watch`, `fork_server` and
//! `stage` (the helpers), `probe`, `command`, `running`, `launch`, `doctor`, `tool`.

mod command;
mod confine;
mod doctor;
mod filter;
mod folder;
mod fork_server;
mod job;
mod launch;
#[cfg(feature = "wasm")]
mod module;
mod policy;
mod probe;
mod room;
mod running;
mod scratch;
mod stage;
mod tool;
#[cfg(feature = "wasm")]
mod wasm;
mod watch;

pub use command::Command;
pub use doctor::{Finding, Held, examine};
pub use folder::{Entry, Folder, Listing};
pub use launch::{NotRun, Sandbox, init};
#[cfg(feature = "wasm")]
pub use module::MODULE_BYTES_MAX;
pub use policy::{Files, Network, Policy, Profile, Tier, Wanted};
pub use running::{Ended, Finished, Output, Running, Told};
pub use tool::SANDBOX_FAILED;
#[cfg(feature = "wasm")]
pub use wasm::{Prepared, WasmSandbox};
