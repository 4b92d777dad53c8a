"""A fake Weights & Biases server on the loopback: HTTP, the ways it may fail, and a process of its own.

`python -m tests.track.server` prints {"url": ..., "control": ...} and serves until its input ends.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import json
import math
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.track.account import Account
from tests.track.graphql import Document, Node, Refused
from tests.track.remote import RemoteArtifact, RemoteRun, RemoteView

KEY = "local-" + "0" * 40
KINDS = ("graphql", "file_stream", "storage")
FAULTS = ("401", "403", "409", "429", "500", "slow", "hang", "drop", "lost", "dead")


class Handler(BaseHTTPRequestHandler):
    """One connection of the fake."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: in two, the second waits 40 ms for the first's acknowledgement
    disable_nagle_algorithm = True
    server: Listener

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            content = b"".join(parts)
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def answer(self) -> None:
        owner = self.server.owner
        try:
            owner.serve(self, urllib.parse.unquote(self.path.partition("?")[0]), self.body())
        except OSError:
            raise
        except Exception as error:  # a bug of the fake: a 5xx or a cut connection would be retried for ever
            owner.broken.append(traceback.format_exc())
            self.reply(400, {"errors": [{"message": f"the fake broke: {error!r}"}]})

    do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = answer

    def reply(self, status: int, content: bytes | Node, **headers: str) -> None:
        """Send a whole answer."""
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", f"application/{'octet-stream' if isinstance(content, bytes) else 'json'}")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Listener(ThreadingHTTPServer):
    """A listening socket that can also end the connections it has taken."""

    daemon_threads = True
    request_queue_size = 128
    owner: Server | Control

    def __init__(self, owner: Server | Control, bound: socket.socket) -> None:
        super().__init__(bound.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.owner, self.socket, self.taken = owner, bound, set[socket.socket]()
        self.server_name, self.server_port = bound.getsockname()
        self.server_activate()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.taken.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.taken.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            self.owner.broken.append(traceback.format_exc())

    def kill(self) -> None:
        """Stop listening and end every connection."""
        self.shutdown()
        self.server_close()
        for request in list(self.taken):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


def bind(port: int = 0) -> socket.socket:
    """Hold a port without listening: a client that connects is refused."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


def gone(connection: socket.socket) -> bool:
    """Whether the client has given up waiting."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


class Server(Account):
    """A W&B server for tests: what it was told, and the fault it has at the moment."""

    def __init__(self, key: str = KEY, entities: Collection[str] = ("lab",), port: int = 0) -> None:
        super().__init__(list(entities))
        self.key = key
        self.faults_on: Collection[str] = KINDS
        self.rate: float | None = None
        self.allowance, self.counted = 0.0, 0.0
        self.lock, self.lifted = threading.RLock(), threading.Condition()
        self.mode: str | None = None
        self.faulted = self.refused = 0
        self.delay = 1.0
        self.listener: Listener | None = Listener(self, bind(port))
        self.held: socket.socket | None = None
        self.port = self.listener.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        with self.lifted:
            self.mode = None
            self.lifted.notify_all()
        if self.listener:
            self.listener.kill()
            self.listener = None
        elif self.held:
            self.held.close()

    @property
    def fault(self) -> str | None:
        """How requests fail now: one of FAULTS, or None."""
        return self.mode

    @fault.setter
    def fault(self, mode: str | None) -> None:
        if mode is not None and mode not in FAULTS:
            raise ValueError(f"unknown fault {mode!r}: one of {', '.join(FAULTS)}, or None")
        with self.lifted:
            was, self.mode, self.faulted = self.mode, mode, 0
            self.lifted.notify_all()
        if mode == "dead" and self.listener:
            self.listener.kill()
            self.listener, self.held = None, bind(self.port)
        elif was == "dead" and mode != "dead":
            self.listener, self.held = Listener(self, self.held or bind(self.port)), None

    def changed(self) -> None:
        with self.lifted:
            self.lifted.notify_all()

    def until(self, holds: Callable[[], Any], seconds: float = 60) -> None:
        """Wait until something is so; looked at after each request."""
        with self.lifted:
            assert self.lifted.wait_for(holds, seconds), f"not so after {seconds} s"

    def over(self) -> bool:
        """Count one request against the rate: a minute's worth at once, then as it refills."""
        if self.rate is None:
            return False
        with self.lock:
            moment = time.monotonic()
            refill = (moment - self.counted) * self.rate / 60 if self.counted else self.rate
            self.allowance, self.counted = min(self.rate, self.allowance + refill), moment
            if self.allowance < 1:
                return True
            self.allowance -= 1
            return False

    def serve(self, http: Handler, path: str, body: bytes) -> None:
        """Answer one request, or fail it as the fault says."""
        kind = "graphql" if path == "/graphql" else "file_stream" if path.endswith("/file_stream") else "storage"
        document = Document(json.loads(body)["query"]) if kind == "graphql" else None
        name = document.name if document else path
        with self.lock:
            self.requests[name] += 1
        mode = self.mode if kind in self.faults_on else None
        if mode:
            self.faulted += 1
            self.changed()
        if mode == "hang":
            with self.lifted:
                self.lifted.wait_for(lambda: self.mode != "hang" or kind not in self.faults_on)
            if gone(http.connection):
                http.close_connection = True
                return
        if mode == "slow":
            time.sleep(self.delay)
        if mode == "drop":
            http.close_connection = True
        elif mode in ("401", "403", "409", "429", "500"):
            headers = {"Retry_After": "1"} if mode == "429" else {}
            http.reply(int(mode), {"errors": [{"message": f"fault {mode}"}], "error": f"fault {mode}"}, **headers)
        elif self.over():
            self.refused += 1
            wait = math.ceil(60 / (self.rate or 60))
            http.reply(429, {"errors": [{"message": "rate limit exceeded"}]}, Retry_After=str(wait))
        else:
            answer = self.graphql(http, document, body) if document else self.other(http, path, kind, body)
            self.changed()
            if mode == "lost":
                http.close_connection = True
            else:
                http.reply(*answer)

    def trusts(self, http: Handler) -> bool:
        token = base64.b64encode(f"api:{self.key}".encode()).decode()
        return http.headers.get("Authorization") == f"Basic {token}"

    def graphql(self, http: Handler, document: Document, body: bytes) -> tuple[int, Node]:
        if not self.trusts(http):
            return 401, {"errors": [{"message": "user is not logged in"}]}
        try:
            with self.lock:
                return 200, {"data": self.answer(document, json.loads(body).get("variables") or {})}
        except Refused as refusal:
            if "Cannot query" in str(refusal) or str(refusal).startswith("Field"):
                self.unknown.append(f"{document.name}: {refusal}")
            return 200, {"data": None, "errors": [{"message": str(refusal), "path": []}]}

    def other(self, http: Handler, path: str, kind: str, body: bytes) -> tuple[int, Node | bytes]:
        """Answer a request that is not GraphQL."""
        words = path.strip("/").split("/")
        if kind == "file_stream":
            if not self.trusts(http):
                return 401, {"error": "user is not logged in"}
            with self.lock:
                try:
                    self.stream((words[1], words[2], words[3]), json.loads(body))
                except Refused as refusal:
                    return 404, {"error": str(refusal)}
            return 200, {"exitcode": None, "limits": {}}
        if path == "/":
            return 200, b""
        name = path.removeprefix("/storage/")
        if path == name or http.command == "POST":
            self.unknown.append(f"{http.command} {path}")
            return 404, {"error": "not found"}
        if http.command == "PUT":
            self.blobs[name] = body
            return 200, b""
        return (200, self.blobs[name]) if name in self.blobs else (404, {"error": "not found"})

    def state(self) -> Node:
        """Return all that a look from another process may ask for, as JSON."""
        with self.lock:
            return {
                "entities": self.entities,
                "projects": [[*key, made] for key, made in self.projects.items()],
                "runs": [asdict(run) for run in self.runs.values()],
                "artifacts": [asdict(v) for versions in self.artifacts.values() for v in versions],
                "views": [asdict(view) for view in self.views.values()],
                "requests": dict(self.requests),
                "unknown": self.unknown,
                "broken": self.broken,
                "fault": self.fault,
            }


class Control:
    """A second port beside a server, to look at it and to set its faults even while it is dead."""

    def __init__(self, server: Server) -> None:
        self.server, self.broken = server, server.broken
        self.listener = Listener(self, bind())
        self.url = f"http://127.0.0.1:{self.listener.server_port}"

    def serve(self, http: Handler, path: str, body: bytes) -> None:
        if path == "/_fake/state":
            http.reply(200, self.server.state())
        elif path == "/_fake/fault":
            want = json.loads(body)
            self.server.rate = want.get("rate", self.server.rate)
            self.server.faults_on = want.get("on") or self.server.faults_on
            self.server.fault = want.get("mode")
            http.reply(200, {})
        else:
            http.reply(404, {"error": "GET /_fake/state or POST /_fake/fault"})


class Remote:
    """The same server in a process of its own: `url`, `fault`, and what it holds, fetched at each look."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.track.server", *arguments],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        where = json.loads(self.process.stdout.readline())
        self.url, self.control, self.key = where["url"], where["control"], where["key"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.communicate()

    def ask(self, path: str, body: Node | None = None) -> Node:
        raw = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"{self.control}/_fake/{path}", raw, timeout=60) as answer:  # noqa: S310
            return json.load(answer)

    def fail(self, mode: str | None, on: Collection[str] = (), rate: float | None = None) -> None:
        """Set the fault, which requests it is for (none given: as before), and the rate."""
        self.ask("fault", {"mode": mode, "on": list(on)} | ({} if rate is None else {"rate": rate}))

    def state(self) -> Account:
        """Return a copy of what the server holds, with `requests`, `unknown` and `broken`."""
        seen = self.ask("state")
        copy = Account(seen["entities"])
        copy.projects = {(entity, project): made for entity, project, made in seen["projects"]}
        for run in seen["runs"]:
            for name in ("lines", "events", "output"):
                run[name] = {int(offset): line for offset, line in run[name].items()}
            made = RemoteRun(**run)
            copy.runs[made.key] = made
        for item in seen["artifacts"]:
            version = RemoteArtifact(**item)
            copy.artifacts.setdefault(version.key, []).append(version)
        copy.views = {view["id"]: RemoteView(**view) for view in seen["views"]}
        copy.requests, copy.unknown, copy.broken = Counter(seen["requests"]), seen["unknown"], seen["broken"]
        return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=KEY)
    parser.add_argument("--entity", action="append", default=[])
    given = parser.parse_args()
    with Server(given.key, given.entity or ["lab"], given.port) as server:
        print(json.dumps({"url": server.url, "control": Control(server).url, "key": server.key}), flush=True)  # noqa: T201
        sys.stdin.read()


if __name__ == "__main__":
    main()
