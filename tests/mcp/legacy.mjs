// An MCP server of the era with a handshake, made with the TypeScript SDK 1.x: what most servers out
// there are. It offers what the other fixture offers, from the same file, in the ways that its era knows.
//
//   node legacy.mjs stdio|http offer.json

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";

import { Server } from "@modelcontextprotocol/sdk/server/index.js";
import { createMcpExpressApp } from "@modelcontextprotocol/sdk/server/express.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import * as mcp from "@modelcontextprotocol/sdk/types.js";

const PAUSE_MS = 50;
const SESSIONS_MAX = 1000;

const [transport, file] = process.argv.slice(2);
const offer = JSON.parse(readFileSync(file, "utf8"));

const text = (line) => ({ content: [{ type: "text", text: line }] });

/** The value with each `{argument}` in its texts filled in. */
function filled(value, args = {}) {
  if (typeof value === "string") {
    return Object.entries(args).reduce((line, [name, arg]) => line.replaceAll(`{${name}}`, String(arg)), value);
  }
  if (Array.isArray(value)) return value.map((one) => filled(one, args));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, filled(one, args)]));
}

/** What the client answers, asked one thing after the other. */
async function asked(asks, args, extra) {
  const answers = {};
  for (const [key, request] of Object.entries(filled(asks, args))) {
    answers[key] = await extra.sendRequest(request, mcp.ClientResultSchema);
  }
  return text(JSON.stringify(answers));
}

/** What tools do that do more than answer. */
const doings = {
  async test_tool_with_logging(args, extra) {
    for (const data of ["Tool execution started", "Tool processing data", "Tool execution completed"]) {
      await extra.sendNotification({ method: "notifications/message", params: { level: "info", data } });
      await pause(PAUSE_MS);
    }
    return text("logged");
  },
  async test_tool_with_progress(args, extra) {
    const progressToken = extra._meta?.progressToken;
    for (const progress of [0, 50, 100]) {
      if (progressToken !== undefined) {
        const params = { progressToken, progress, total: 100 };
        await extra.sendNotification({ method: "notifications/progress", params });
      }
      await pause(PAUSE_MS);
    }
    return text("100 of 100");
  },
  async test_reconnection() {
    await pause(2 * PAUSE_MS);
    return text("still here");
  },
  async test_logging_tool(args, extra) {
    const params = { level: "info", data: "a line that nobody asked for" };
    await extra.sendNotification({ method: "notifications/message", params });
    return text("done");
  },
  async test_trigger_tool_change(args, extra) {
    await extra.sendNotification({ method: "notifications/tools/list_changed" });
    return text("told");
  },
  async test_trigger_prompt_change(args, extra) {
    await extra.sendNotification({ method: "notifications/prompts/list_changed" });
    return text("told");
  },
};

function call(server, { name, arguments: args }, extra) {
  const lacks = Object.values(offer.asks[name] ?? {})
    .map(({ method }) => ({ "sampling/createMessage": "sampling", "roots/list": "roots" })[method] ?? "elicitation")
    .filter((capability) => server.getClientCapabilities()?.[capability] === undefined);
  if (lacks.length > 0) return { isError: true, ...text(`the client does not do: ${lacks}`) };
  if (offer.results[name]) return filled(offer.results[name], args);
  if (offer.asks[name]) return asked(offer.asks[name], args, extra);
  if (doings[name]) return doings[name](args, extra);
  throw new mcp.McpError(mcp.ErrorCode.InvalidParams, `no tool ${name}`);
}

function read({ uri }) {
  const id = uri.match(/^test:\/\/template\/([^/]*)\/data$/)?.[1];
  const data = () => JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` });
  const content = id === undefined ? offer.contents[uri] : { mimeType: "application/json", text: data() };
  if (content === undefined) throw new mcp.McpError(-32002, "Resource not found", { uri });
  return { contents: [{ uri, ...content }] };
}

/** One server for one client: a connection over standard input and output, or a session over HTTP. */
function serverOfOne() {
  const capabilities = {
    tools: { listChanged: true },
    prompts: { listChanged: true },
    resources: { subscribe: true },
    completions: {},
    logging: {},
  };
  const server = new Server({ name: "mcp-fixture-legacy", version: "0.1.0" }, { capabilities });
  // Tasks are of the other era.
  const known = ({ name }) => offer.results[name] ?? offer.asks[name] ?? doings[name];
  const tools = offer.tools.filter(known);
  const on = (schema, answer) => server.setRequestHandler(schema, ({ params }, extra) => answer(params, extra));
  on(mcp.ListToolsRequestSchema, () => ({ tools }));
  on(mcp.CallToolRequestSchema, (params, extra) => call(server, params, extra));
  on(mcp.ListPromptsRequestSchema, () => ({ prompts: offer.prompts }));
  on(mcp.GetPromptRequestSchema, async ({ name, arguments: args }, extra) => {
    if (!offer.messages[name]) throw new mcp.McpError(mcp.ErrorCode.InvalidParams, `no prompt ${name}`);
    if (offer.asks[name]) await asked(offer.asks[name], args, extra);
    return { messages: filled(offer.messages[name], args) };
  });
  on(mcp.ListResourcesRequestSchema, () => ({ resources: offer.resources }));
  on(mcp.ListResourceTemplatesRequestSchema, () => ({ resourceTemplates: offer.resourceTemplates }));
  on(mcp.ReadResourceRequestSchema, read);
  on(mcp.SubscribeRequestSchema, () => ({}));
  on(mcp.UnsubscribeRequestSchema, () => ({}));
  on(mcp.CompleteRequestSchema, ({ argument }) => ({
    completion: { values: ["paris", "park", "party"].filter((word) => word.startsWith(argument.value)) },
  }));
  return server;
}

/** Says `ready URL`, and serves until it is killed. */
function listen() {
  const sessions = new Map();
  const app = createMcpExpressApp();
  app.all("/mcp", async (request, response) => {
    const known = sessions.get(request.headers["mcp-session-id"]);
    if (known) return known.handleRequest(request, response, request.body);
    if (!mcp.isInitializeRequest(request.body)) {
      const error = { code: -32000, message: "no such session" };
      return response.status(404).json({ jsonrpc: "2.0", id: null, error });
    }
    if (sessions.size >= SESSIONS_MAX) return response.status(503).end();
    const session = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      onsessioninitialized: (id) => sessions.set(id, session),
      onsessionclosed: (id) => sessions.delete(id),
    });
    await serverOfOne().connect(session);
    return session.handleRequest(request, response, request.body);
  });
  const listener = app.listen(0, "127.0.0.1", () => {
    console.log(`ready http://127.0.0.1:${listener.address().port}/mcp`);
  });
}

if (transport === "http") listen();
else await serverOfOne().connect(new StdioServerTransport());
