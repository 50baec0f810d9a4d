"""An MCP server over stdio for tests: of either era, well-behaved and hostile, as its argument says.

`server.py legacy` speaks 2025-11-25, `server.py modern` 2026-07-28. What each tool does is its name. Words after
the era make it hostile from the start; with `http` among them it listens on loopback, prints its port, and ends when
its standard input does.
"""

import base64
import json
import os
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ERA = sys.argv[1]
HOSTILE = sys.argv[2:]
LOCK = threading.Lock()
WAITING = {}
STATE = {"count": 0, "level": "none", "extra": False, "cancelled": []}
SPOKEN_BEFORE = []


LOCAL = threading.local()
STREAMS = []
SESSIONS = set()


def put(text):
    if "http" in HOSTILE:
        out = getattr(LOCAL, "out", None)
        if "list_changed" in text or "resources/updated" in text:
            out = STREAMS[-1] if STREAMS else out
        out.write(b"data: " + text.encode() + b"\n\n")
        return out.flush()
    with LOCK:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def say(message):
    put(json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":")))


def answer(id, result):
    if ERA == "modern":
        result = {"resultType": "complete", **result}
    say({"id": id, "result": result})


def refuse(id, code, text, data=None):
    error = {"code": code, "message": text}
    if data is not None:
        error["data"] = data
    say({"id": id, "error": error})


def notify(method, params):
    say({"method": method, "params": params})


def text(words):
    return {"content": [{"type": "text", "text": str(words)}]}


def ask(method, params):
    """Asks the client, and waits for what it says."""
    id = "ask-%d" % len(WAITING)
    WAITING[id] = (threading.Event(), [])
    say({"id": id, "method": method, "params": params})
    event, answers = WAITING[id]
    event.wait(60)
    return answers[0]


def tool(name, properties=None, required=(), **more):
    schema = {"type": "object", "properties": properties or {}, "required": list(required)}
    return {"name": name, "description": "Does " + name, "inputSchema": schema, **more}


STRING = {"type": "string"}
TOOLS = [
    tool("echo", {"text": {"type": "string", "x-mcp-header": "Text"}}, ["text"], annotations={"readOnlyHint": True, "odd": 18446744073709551615}),
    tool("raw"),
    tool("whole"),
    tool("count"),
    tool("steps", {"n": {"type": "integer"}}),
    tool("flood"),
    tool("log"),
    tool("fail"),
    tool("go_wrong"),
    tool("slow"),
    tool("finish"),
    tool("reach", {"what": STRING, "paths": {"type": "object"}}),
    tool("was_cancelled"),
    tool("elicit"),
    tool("both_questions"),
    tool("die"),
    tool("out_of_order"),
    tool("twice"),
    tool("never"),
    tool("huge"),
    tool("endless"),
    tool("not_utf8"),
    tool("two_names"),
    tool("too_deep"),
    tool("garbage"),
    tool("who"),
    tool("change"),
    tool("gone"),
    tool("cut"),
    tool("later"),
    tool("cut_again"),
    tool("touch"),
    tool("subscribed"),
    tool("begin", {"text": STRING}, ["text"]),
    tool("dotted.name/with odd\u001b"),
    tool("long_" + "x" * 300),
]
if "clash" in HOSTILE:
    TOOLS += [tool("a.b"), tool("a_b")]
if "schemas" in HOSTILE:
    deep = {"type": "string"}
    for _ in range(60):
        deep = {"properties": {"a": deep}}
    TOOLS += [
        tool("bomb_deep", {"a": deep}),
        tool("bomb_large", {"a": {"description": "x" * 100000}}),
        tool("bomb_header", {"a": {"type": "string", "x-mcp-header": "a b"}}),
        tool("bomb_remote", {"a": {"$ref": "https://example.invalid/schema"}}),
        {"name": "bomb_array", "inputSchema": {"type": "array"}},
        {"name": "bomb_none"},
        tool("bomb_pattern", {"a": {"type": "string", "pattern": "(a{1000}){1000}"}}),
    ]
HELD = []


def call(id, params, line):
    name = params.get("name")
    given = params.get("arguments", {})
    meta = params.get("_meta", {})
    if name == "echo":
        answer(id, text(given["text"]))
    elif name == "raw":
        put('{"jsonrpc":"2.0","id":%d,"result":{"z":1,"content":[{"type":"odd","n":18446744073709551615,"f":1.50,"e":"\\u00e9"}],"a":{"y":1,"b":2},"structuredContent":{"k":[1e5]}}}' % id)
    elif name == "whole":
        answer(id, text(line))
    elif name == "count":
        STATE["count"] += 1
        answer(id, text(STATE["count"]))
    elif name == "steps":
        for step in range(given.get("n", 20)):
            if "progressToken" in meta:
                notify("notifications/progress", {"progressToken": meta["progressToken"], "progress": step + 1, "total": 20, "message": "step", "odd": [step]})
        answer(id, text("done"))
    elif name == "flood":
        for step in range(20000):
            notify("notifications/progress", {"progressToken": meta.get("progressToken"), "progress": step})
        answer(id, text("done"))
    elif name == "log":
        for level in ["debug", "info", "error"]:
            notify("notifications/message", {"level": level, "data": "a log line"})
        answer(id, text(STATE["level"]))
    elif name == "fail":
        refuse(id, -32042, "it fails", {"why": [1, {"b": 1, "a": 2}]})
    elif name == "go_wrong":
        answer(id, {**text("it went wrong"), "isError": True})
    elif name == "slow":
        WAITING["slow"] = id
        if "progressToken" in meta:
            notify("notifications/progress", {"progressToken": meta["progressToken"], "progress": 1})
    elif name == "reach":
        try:
            reach(given["what"], given["paths"])
            answer(id, text("done"))
        except OSError as why:
            answer(id, text(why))
    elif name == "finish":
        answer(WAITING["slow"], text("finished"))
        answer(id, text("done"))
    elif name == "was_cancelled":
        answer(id, text(json.dumps(STATE["cancelled"])))
    elif name == "elicit":
        said = ask("elicitation/create", {"message": "Who?", "requestedSchema": {"type": "object", "z": 1, "a": 2}})
        answer(id, text(json.dumps(said)))
    elif name == "both_questions":
        first = ask("elicitation/create", {"message": "1"})
        second = ask("sampling/createMessage", {"messages": []})
        answer(id, text(json.dumps([first, second])))
    elif name == "die":
        sys.stderr.write("its last words \x1b[2J\n" * 1000)
        sys.stderr.flush()
        os._exit(3)
    elif name == "out_of_order":
        HELD.append((id, given.get("n")))
        if len(HELD) == 3:
            for held, n in reversed(HELD):
                answer(held, text(n))
            HELD.clear()
    elif name == "twice":
        answer(id, text("first"))
        answer(id, text("second"))
        answer(987654, text("nobody's"))
    elif name == "never":
        pass
    elif name == "huge":
        with LOCK:
            sys.stdout.write('{"jsonrpc":"2.0","id":%d,"result":{"x":"' % id)
            for _ in range(100):
                sys.stdout.write("x" * (1 << 20))
            sys.stdout.write('"}}\n')
            sys.stdout.flush()
    elif name == "endless":
        with LOCK:
            while True:
                sys.stdout.write("x" * (1 << 16))
    elif name == "not_utf8":
        with LOCK:
            sys.stdout.buffer.write(b'{"jsonrpc":"2.0","id":%d,"result":{"x":"\xff\xfe"}}\n' % id)
            sys.stdout.buffer.flush()
    elif name == "two_names":
        put('{"jsonrpc":"2.0","id":%d,"result":{"x":1,"x":2}}' % id)
    elif name == "too_deep":
        put('{"jsonrpc":"2.0","id":%d,"result":{"x":%s1%s}}' % (id, "[" * 100, "]" * 100))
    elif name == "garbage":
        for line in ["listening on port 3000", "{}", "[1,2]", '{"jsonrpc":"2.0"}', "\x00\x1b", '{"jsonrpc":"2.0","id":"x","method":"admin/everything"}']:
            put(line)
        answer(id, text("fine"))
    elif name == "who":
        answer(id, text(os.getpid()))
    elif name == "change":
        STATE["extra"] = True
        if ERA == "legacy":
            notify("notifications/tools/list_changed", {})
        for listening in STATE.get("listening", []):
            notify("notifications/tools/list_changed", {"_meta": {"io.modelcontextprotocol/subscriptionId": listening}})
        answer(id, text("changed"))
    elif name == "begin":
        task = {"taskId": "task-%d" % len(TASKS), "status": "working"}
        TASKS[task["taskId"]] = given["text"]
        answer(id, {"resultType": "task", **task} if ERA == "modern" else {"task": task})
    elif name == "subscribed":
        answer(id, text(STATE.get("uris", [])))
    elif name == "touch":
        notify("notifications/resources/updated", {"uri": "test://one"})
        notify("notifications/resources/updated", {"uri": "test://two"})
        answer(id, text("touched"))
    else:
        answer(id, text("called by its own name: " + str(name)))


def reach(what, paths):
    """Tries what the box may keep it from."""
    if what == "read":
        open(paths["read"] + "/there").read()
    elif what.startswith("change"):
        folder = paths["read" if what == "change_read" else "write"]
        with open(folder + "/new", "w") as new:
            new.write("new")
        os.rename(folder + "/there", folder + "/moved")
    elif what == "unix":
        socket.socket(socket.AF_UNIX)
    else:
        with socket.socket() as one, socket.socket(type=socket.SOCK_DGRAM) as two:
            two.connect(("127.0.0.1", 9))
            two.send(b"x")
            if what == "listen":
                one.bind(("127.0.0.1", 0))
                one.listen()


def modern_elicit(id, params):
    """In the manner of 2026-07-28 a question is a result."""
    answers = params.get("inputResponses")
    if answers and params.get("requestState") == "state 1":
        answer(id, text(json.dumps(answers.get("who"))))
    else:
        say({"id": id, "result": {"resultType": "input_required", "inputRequests": {"who": {"method": "elicitation/create", "params": {"message": "Who?"}}}, "requestState": "state 1"}})


def about_task(id, method, params):
    task = params["taskId"]
    if task not in TASKS:
        refuse(id, -32602, "the server knows no task " + task)
    elif method == "tasks/get":
        answer(id, {"taskId": task, "status": "completed", "result": text(TASKS[task])})
    elif method == "tasks/cancel":
        del TASKS[task]
        answer(id, {})
    else:
        answer(id, {"updated": params["inputResponses"]})


def listed():
    extra = [tool("extra")] if STATE["extra"] else []
    return TOOLS + extra


CAPABILITIES = {
    "tools": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "prompts": {},
    "completions": {},
    "logging": {},
}
TASKS = {}
if "tasks" in HOSTILE:
    CAPABILITIES["extensions"] = {"io.modelcontextprotocol/tasks": {}}
INFO = {"name": "fixture", "version": "1.0", "odd": [1]}


def request(id, method, params, line):
    if ERA == "modern":
        meta = params.get("_meta", {})
        if meta.get("io.modelcontextprotocol/protocolVersion") != "2026-07-28" or SPOKEN_BEFORE == ["initialize"]:
            return refuse(id, -32600, "not in the manner of 2026-07-28")
    if method == "server/discover" and ERA == "modern":
        answer(id, {"supportedVersions": ["2026-07-28"], "capabilities": CAPABILITIES, "ttlMs": 0, "cacheScope": "private", "_meta": {"io.modelcontextprotocol/serverInfo": INFO}})
    elif method == "initialize" and ERA == "legacy":
        if "strict" in HOSTILE and SPOKEN_BEFORE:
            return refuse(id, -32600, "the first word was another")
        answer(id, {"protocolVersion": "2025-11-25", "capabilities": CAPABILITIES, "serverInfo": INFO, "instructions": "Be kind."})
    elif method == "tools/list":
        tools = listed()
        at = int(params.get("cursor", "0"))
        page = {"tools": tools[at : at + 10]}
        if "pages" in HOSTILE:
            page["nextCursor"] = "0"
        elif at + 10 < len(tools):
            page["nextCursor"] = str(at + 10)
        answer(id, page)
    elif method == "tools/call":
        if ERA == "modern" and params["name"] == "elicit":
            modern_elicit(id, params)
        else:
            call(id, params, line)
    elif method == "resources/read":
        answer(id, {"contents": [{"uri": params["uri"], "text": "read", "odd": 1.0}]})
    elif method == "resources/list":
        answer(id, {"resources": [{"uri": "test://one", "name": "one"}]})
    elif method.startswith("tasks/") and "tasks" in HOSTILE:
        about_task(id, method, params)
    elif method == "prompts/get":
        answer(id, {"messages": [], "description": json.dumps(params.get("arguments"))})
    elif method == "resources/subscribe":
        STATE.setdefault("uris", []).append(params["uri"])
        answer(id, {})
    elif method == "resources/unsubscribe":
        STATE["uris"].remove(params["uri"])
        answer(id, {})
    elif method == "logging/setLevel":
        STATE["level"] = params["level"]
        answer(id, {})
    elif method == "subscriptions/listen" and ERA == "modern":
        subscription = {"io.modelcontextprotocol/subscriptionId": id}
        notify("notifications/subscriptions/acknowledged", {"notifications": params["notifications"], "_meta": subscription})
        STATE.setdefault("listening", []).append(id)
    else:
        refuse(id, -32601, "no such method: " + method)
    SPOKEN_BEFORE.append(method)


class Http(BaseHTTPRequestHandler):
    """Streamable HTTP of the era."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def end_with(self, status, headers=None, body=b""):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, is_new=False):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.close_connection = True
        if is_new:
            session = "session-%d" % time.monotonic_ns()
            SESSIONS.add(session)
            self.send_header("Mcp-Session-Id", session)
        self.end_headers()
        self.wfile.write(b": hello\n\n")
        self.wfile.flush()
        LOCAL.out = self.wfile

    def is_known(self, method):
        if self.headers.get("Authorization") != "Bearer secret":
            return self.end_with(401)
        if ERA == "legacy" and method != "initialize":
            if self.headers.get("Mcp-Session-Id") not in SESSIONS:
                return self.end_with(404)
            if self.headers.get("MCP-Protocol-Version") != "2025-11-25":
                return self.end_with(400)
        return True

    def do_GET(self):
        if ERA == "modern":
            return self.end_with(405)
        if self.is_known("GET"):
            self.stream()
            last = self.headers.get("Last-Event-ID", "")
            if last.startswith("later-"):
                return answer(int(last[6:]), text("later"))
            if last.startswith("cut_again-"):
                return
            STREAMS.append(self.wfile)
            time.sleep(3600)

    def do_DELETE(self):
        SESSIONS.discard(self.headers.get("Mcp-Session-Id"))
        self.end_with(200)

    def do_POST(self):
        line = self.rfile.read(int(self.headers["Content-Length"])).decode()
        message = json.loads(line)
        if not self.is_known(message.get("method")):
            return
        if "method" not in message:
            waiting = WAITING[message["id"]]
            waiting[1].append(message.get("result", message.get("error")))
            waiting[0].set()
            return self.end_with(202)
        if "id" not in message:
            if message["method"] == "notifications/cancelled":
                STATE["cancelled"].append(message["params"]["requestId"])
            return self.end_with(202)
        params = message.get("params", {})
        if ERA == "legacy" and message["method"] == "server/discover":
            return self.end_with(400, {"Content-Type": "text/plain"}, b"who are you?")
        if ERA == "modern":
            name = params.get("name", params.get("uri", params.get("taskId")))
            text = params.get("arguments", {}).get("text") if name == "echo" else None
            label = self.headers.get("Mcp-Param-Text")
            if label and label.startswith("=?base64?"):
                label = base64.b64decode(label[9:-2]).decode()
            if self.headers.get("MCP-Protocol-Version") != "2026-07-28" or self.headers.get("Mcp-Method") != message["method"] or self.headers.get("Mcp-Name") != name or label != text:
                body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32020, "message": str(self.headers)}})
                return self.end_with(400, {"Content-Type": "application/json"}, body.encode())
        if params.get("name") == "gone":
            SESSIONS.clear()
            return self.end_with(404)
        if params.get("name") in ("cut", "later", "cut_again"):
            self.stream()
            if params["name"] != "cut":
                self.wfile.write(b"id: %s-%d\nretry: 300\ndata:\n\ndata: {half" % (params["name"].encode(), message["id"]))
            return
        if message["method"] == "prompts/get":
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"messages": [], "plain": True}})
            return self.end_with(200, {"Content-Type": "application/json"}, body.encode())
        self.stream(message["method"] == "initialize")
        request(message["id"], message["method"], params, line)


def listen():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Http)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()


def main():
    if "http" in HOSTILE:
        return listen()
    if "silent" in HOSTILE:
        time.sleep(3600)
    if "dies" in HOSTILE:
        sys.exit("it will not start")
    if "banner" in HOSTILE:
        print("Welcome to the fixture!", flush=True)
    if "early" in HOSTILE and ERA == "legacy":
        for n in range(40):
            say({"id": "early-%d" % n, "method": "elicitation/create", "params": {"message": "early"}})
    for line in sys.stdin:
        message = json.loads(line)
        if "method" not in message:
            waiting = WAITING.get(message.get("id"))
            if waiting:
                waiting[1].append(message.get("result", message.get("error")))
                waiting[0].set()
        elif "id" in message:
            job = threading.Thread(target=request, args=(message["id"], message["method"], message.get("params", {}), line.rstrip("\n")), daemon=True)
            job.start()
            if message["method"] in ("initialize", "server/discover"):
                job.join()
        elif message["method"] == "notifications/cancelled":
            STATE["cancelled"].append(message["params"]["requestId"])
    if "stays" in HOSTILE:
        time.sleep(3600)


main()
