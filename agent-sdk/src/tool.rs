//! A tool: what it is called, what it takes, and the code that runs it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use proto_spec::limits::TOOL_SEGMENTS_MAX;
use proto_spec::message::McpRequest;
use proto_spec::{Capability, message};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

use crate::incoming::Call;

type Outcome = Result<Box<RawValue>, ToolError>;
type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A tool that an agent serves.
///
/// ```
/// use agent_sdk::{Call, Tool};
///
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// struct Add { a: i64, b: i64 }
///
/// let add = Tool::new("calc.add", |_call: Call, args: Add| async move { Ok(args.a + args.b) })
///     .describe("Adds two numbers")
///     .read_only();
/// assert_eq!(add.name(), "calc.add");
/// ```
#[derive(Clone)]
pub struct Tool {
    name: String,
    capability: Option<String>,
    description: Option<String>,
    input: Option<Box<RawValue>>,
    output: Option<Box<RawValue>>,
    annotations: serde_json::Map<String, serde_json::Value>,
    hints: Option<Box<RawValue>>,
    sandbox: Option<String>,
    mcp: Option<McpRequest>,
    run: Arc<dyn Fn(Call, Box<RawValue>) -> Running + Send + Sync>,
}

impl Tool {
    /// A tool that is an async closure. Its arguments are read as `A`, whose JSON Schema is offered to
    /// callers; what does not fit `A` is answered with `INVALID_ARGUMENTS` and never reaches `run`.
    ///
    /// A wrong name is reported by [`crate::Agent::serve`].
    pub fn new<A, R, F, Fut>(name: impl Into<String>, run: F) -> Self
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize,
        F: Fn(Call, A) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, ToolError>> + Send + 'static,
    {
        let run = Arc::new(run);
        let schema = to_raw_value(&schemars::schema_for!(A)).ok();
        let parsed = move |call: Call, arguments: Box<RawValue>| -> Running {
            let run = Arc::clone(&run);
            Box::pin(async move {
                let arguments = serde_json::from_str(arguments.get())
                    .map_err(|why| ToolError::new(INVALID_ARGUMENTS, why.to_string()))?;
                let result = run(call, arguments).await?;
                to_raw_value(&result).map_err(ToolError::from)
            })
        };
        Self::of(name.into(), schema, Arc::new(parsed))
    }

    /// A tool that takes and gives raw JSON, for bridges and proxies. `schema` describes its
    /// arguments to callers; nothing checks them against it but `run` itself.
    pub fn raw<F, Fut>(name: impl Into<String>, schema: &serde_json::Value, run: F) -> Self
    where
        F: Fn(Call, Box<RawValue>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Box<RawValue>, ToolError>> + Send + 'static,
    {
        let run = move |call: Call, arguments: Box<RawValue>| -> Running {
            Box::pin(run(call, arguments))
        };
        Self::of(name.into(), to_raw_value(schema).ok(), Arc::new(run))
    }

    fn of(
        name: String,
        input: Option<Box<RawValue>>,
        run: Arc<dyn Fn(Call, Box<RawValue>) -> Running + Send + Sync>,
    ) -> Self {
        Self {
            name,
            capability: None,
            description: None,
            input,
            output: None,
            annotations: serde_json::Map::new(),
            hints: None,
            sandbox: None,
            mcp: None,
            run,
        }
    }

    /// The capability that calling it requires, where that is not its own name.
    #[must_use]
    pub fn capability(mut self, capability: impl Into<String>) -> Self {
        self.capability = Some(capability.into());
        self
    }

    /// What it does, for people and models.
    #[must_use]
    pub fn describe(mut self, description: impl Into<String>) -> Self {
        self.description = Some(description.into());
        self
    }

    /// Offers the JSON Schema of `R` as that of its result.
    #[must_use]
    pub fn returns<R: JsonSchema>(mut self) -> Self {
        self.output = to_raw_value(&schemars::schema_for!(R)).ok();
        self
    }

    /// Offers `schema` as the JSON Schema of its arguments, as it is.
    #[must_use]
    pub fn input(mut self, schema: Box<RawValue>) -> Self {
        self.input = Some(schema);
        self
    }

    /// Offers `schema` as the JSON Schema of its result, as it is.
    #[must_use]
    pub fn output(mut self, schema: Box<RawValue>) -> Self {
        self.output = Some(schema);
        self
    }

    /// Says that calling it is this request to an MCP server: its result is that request's result, and
    /// [`Call::mcp`] has what comes beside the arguments.
    #[must_use]
    pub fn mcp(mut self, request: McpRequest) -> Self {
        self.mcp = Some(request);
        self
    }

    /// A hint for callers, as MCP has them: `readOnlyHint`, `destructiveHint`, `title` ….
    #[must_use]
    pub fn annotate(
        mut self,
        name: impl Into<String>,
        value: impl Into<serde_json::Value>,
    ) -> Self {
        self.annotations.insert(name.into(), value.into());
        self
    }

    /// Offers these hints for callers, as they are, in place of those of [`Tool::annotate`].
    #[must_use]
    pub fn hints(mut self, hints: Box<RawValue>) -> Self {
        self.hints = Some(hints);
        self
    }

    /// Says that calling it changes nothing.
    #[must_use]
    pub fn read_only(self) -> Self {
        self.annotate("readOnlyHint", true)
    }

    /// Says that it runs in the sandbox of this name. A call whose grant demands a sandbox is run by
    /// no tool that does not say so: claim only what is true.
    #[must_use]
    pub fn sandboxed(mut self, sandbox: impl Into<String>) -> Self {
        self.sandbox = Some(sandbox.into());
        self
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn sandbox(&self) -> Option<&str> {
        self.sandbox.as_deref()
    }

    pub(crate) fn start(&self, call: Call, arguments: Box<RawValue>) -> Running {
        (self.run)(call, arguments)
    }

    /// As it is offered to the broker.
    pub(crate) fn offer(&self) -> Result<message::Tool, String> {
        let annotations = match (&self.hints, self.annotations.is_empty()) {
            (Some(hints), _) => Some(hints.clone()),
            (None, true) => None,
            (None, false) => to_raw_value(&self.annotations).ok(),
        };
        Ok(message::Tool {
            name: tool_name(&self.name)?,
            capability: self.capability.as_deref().map(tool_name).transpose()?,
            description: self.description.clone(),
            input_schema: self.input.clone(),
            output_schema: self.output.clone(),
            annotations,
            mcp: self.mcp.clone(),
        })
    }
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tool({})", self.name)
    }
}

fn tool_name(text: &str) -> Result<Capability, String> {
    let capability: Capability = text
        .parse()
        .map_err(|why| format!("tool {text:?}: {why}"))?;
    if capability.is_reserved() {
        return Err(format!(
            "tool {text:?}: its first segment is reserved for the broker"
        ));
    }
    if capability.segments() > TOOL_SEGMENTS_MAX {
        return Err(format!(
            "tool {text:?}: more than {TOOL_SEGMENTS_MAX} segments"
        ));
    }
    Ok(capability)
}

/// The arguments do not fit what the tool takes.
pub const INVALID_ARGUMENTS: &str = "INVALID_ARGUMENTS";
/// The tool ended with an error that has no code of its own.
pub const TOOL_FAILED: &str = "TOOL_FAILED";
/// The tool panicked. The agent goes on serving.
pub const TOOL_PANICKED: &str = "TOOL_PANICKED";
/// The agent stopped serving in mid-call: the tool may or may not have acted.
pub const TOOL_STOPPED: &str = "TOOL_STOPPED";
/// The result is longer than the broker takes.
pub const RESULT_TOO_LARGE: &str = "RESULT_TOO_LARGE";
/// The grant demands a sandbox in which the tool does not run.
pub const SANDBOX_REQUIRED: &str = "SANDBOX_REQUIRED";

/// Why a tool could not. The caller reads all of it.
///
/// Every error type becomes one with `?`, under [`TOOL_FAILED`] and with its message: give errors whose
/// messages callers must not see a [`ToolError::new`] of their own.
#[derive(Debug, Clone)]
pub struct ToolError {
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) data: Option<Box<RawValue>>,
}

impl ToolError {
    /// An error under a code of the tool's own, by convention in `UPPER_SNAKE`.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            data: None,
        }
    }

    /// Adds what programs can read. What cannot be written as JSON is left out.
    #[must_use]
    pub fn with(mut self, data: &impl Serialize) -> Self {
        self.data = to_raw_value(data).ok();
        self
    }
}

impl<E: std::error::Error> From<E> for ToolError {
    fn from(why: E) -> Self {
        Self::new(TOOL_FAILED, why.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize, JsonSchema)]
    struct Take {
        #[expect(dead_code, reason = "only its schema is looked at")]
        path: String,
    }

    fn tool(name: &str) -> Tool {
        Tool::new(name, |_call: Call, _take: Take| async { Ok(()) })
    }

    #[test]
    fn an_offer_has_the_schema_of_the_arguments() {
        let offer = tool("fs.read")
            .capability("fs.readers")
            .read_only()
            .offer()
            .unwrap();
        let schema: serde_json::Value =
            serde_json::from_str(offer.input_schema.as_ref().unwrap().get()).unwrap();
        assert_eq!(schema["properties"]["path"]["type"], "string");
        assert_eq!(offer.required().as_str(), "fs.readers");
        assert_eq!(offer.annotations.unwrap().get(), r#"{"readOnlyHint":true}"#);
    }

    #[test]
    fn a_tool_without_a_possible_name_is_not_offered() {
        for bad in ["", "a b", "admin.x", "broker.y", &["x"; 13].join(".")] {
            assert!(tool(bad).offer().is_err(), "{bad:?}");
        }
    }
}
