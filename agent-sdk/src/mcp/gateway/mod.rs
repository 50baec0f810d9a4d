//! MCP clients call agents' tools: a server of MCP on one side, an [`Upstream`] on the other.

mod upstream;

pub use upstream::{Failure, Ongoing, Outgoing, Shared, Step, Upstream};
pub type Body = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, std::convert::Infallible>;
#[derive(Debug, Clone)]
pub enum Scope {
    All,
    Agent(proto_spec::AgentId),
}
#[derive(Debug)]
pub struct Gateway;
impl Gateway {
    pub fn new(_s: [u8; 32], _h: Vec<String>, _o: &[String]) -> Self {
        Self
    }
    pub async fn serve<B>(
        &self,
        _r: hyper::Request<B>,
        _u: Shared,
        _s: Scope,
    ) -> hyper::Response<Body> {
        todo!()
    }
}
