//! Promises to users, each shown on a broker that listens. One file a promise.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that is surprised fails"
)]

mod admission;
mod bearers;
mod bounds;
mod broker_key;
mod calls;
mod capability_life;
mod clock;
mod coder;
mod compat;
mod crash;
mod events;
mod federation;
mod hostile_peer;
mod mcp_login;
mod mcp_serve;
mod mcp_wrap;
mod model;
mod namespaces;
mod partition;
mod registration;
mod restart;
mod storage;
mod transit;
mod transport;
mod trust;

use proto_spec::{Code, Envelope};
use tests::lab::code_of;
use tests::wire::Reply;

/// The code of a refused POST; checks that its HTTP status is the code's own.
fn refused(reply: &Reply) -> Code {
    let envelope: Envelope = reply.envelope().expect("a signed envelope");
    let code = code_of(&envelope).expect("an error");
    assert_eq!(reply.status, code.http_status());
    code
}
