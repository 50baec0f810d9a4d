// Calls a tool of an MCP server with a client of npm's, and prints one line of JSON: how many tools there
// are, and the text of the answer.
//
//   node client.mjs sdk|client legacy|auto TOOL ARGUMENTS URL        with the token in TOKEN, if there is one
//   node client.mjs sdk|client legacy|auto TOOL ARGUMENTS -- COMMAND ARGS...
//
// `sdk` is the TypeScript SDK 1.x, which knows no other era than legacy; `client` is its successor.

const [library, era, tool, args, ...rest] = process.argv.slice(2);
const stdio = rest[0] === "--";
const me = { name: "fem-interop", version: "0" };

async function parts() {
  if (library === "sdk") {
    const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
    const { StreamableHTTPClientTransport } = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
    const { StdioClientTransport } = await import("@modelcontextprotocol/sdk/client/stdio.js");
    return { client: new Client(me), StreamableHTTPClientTransport, StdioClientTransport };
  }
  const { Client, StreamableHTTPClientTransport } = await import("@modelcontextprotocol/client");
  const { StdioClientTransport } = await import("@modelcontextprotocol/client/stdio");
  const options = era === "auto" ? { versionNegotiation: { mode: "auto" } } : {};
  return { client: new Client(me, options), StreamableHTTPClientTransport, StdioClientTransport };
}

const { client, StreamableHTTPClientTransport, StdioClientTransport } = await parts();
const headers = process.env.TOKEN ? { Authorization: `Bearer ${process.env.TOKEN}` } : {};
const transport = stdio
  ? new StdioClientTransport({ command: rest[1], args: rest.slice(2), env: process.env })
  : new StreamableHTTPClientTransport(new URL(rest[0]), { requestInit: { headers } });
await client.connect(transport);
const { tools } = await client.listTools();
const { content } = await client.callTool({ name: tool, arguments: JSON.parse(args) });
console.log(JSON.stringify({ tools: tools.length, text: content[0].text }));
await client.close();
