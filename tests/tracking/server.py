"""A fake Weights & Biases server on the loopback: it keeps what the clients send, and fails as it is told.

GraphQL is not executed: an operation is known by its name and answered with all fields that clients may have asked for.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import itertools
import json
import math
import re
import socket
import socketserver
import threading
import time
import traceback
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Self

Node = dict[str, Any]
Key = tuple[str, str, str]

KEY = "local-" + "0" * 40
KINDS = ("graphql", "file_stream", "storage")
FAULTS = ("401", "403", "409", "429", "500", "slow", "hang", "drop", "lost", "dead")
UNSTABLE = ("_timestamp", "_runtime", "_wandb")
FIELDS = {"displayName": "display_name", "groupName": "group", "jobType": "job_type", "notes": "notes", "tags": "tags"}
FIELDS |= {"display_name": "display_name", "config": "settings", "summaryMetrics": "summary"}
"""Variable of UpsertBucket -> field of a run."""


class Refused(Exception):
    """A request that is answered with an error."""


def opaque(*parts: object) -> str:
    """Return an id as the real server forms them."""
    return base64.b64encode(":".join(map(str, parts)).encode()).decode()


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def stable(line: str) -> Node:
    return {name: value for name, value in json.loads(line).items() if name not in UNSTABLE}


def camel(item: object) -> Node:
    """Return the fields of an object by their names in GraphQL; dictionaries, which go as JSON, are left out."""
    plain = {name: value for name, value in vars(item).items() if not isinstance(value, dict)}
    return {re.sub("_(.)", lambda found: found[1].upper(), name): value for name, value in plain.items()}


def connection(nodes: Iterable[Node], end: int = 0, more: bool = False) -> Node:
    """Return one page of a list; a cursor is the number of items up to it."""
    page = {"__typename": "PageInfo", "endCursor": str(end), "hasNextPage": more}
    return {"edges": [{"node": node, "cursor": str(end)} for node in nodes], "pageInfo": page}


@dataclass
class RemoteRun:
    """A run as the server has it; `lines` is its history as it was streamed, by offset."""

    entity: str
    project: str
    id: str
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    state: str = "running"
    settings: Node = field(default_factory=dict)
    summary: Node = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)
    overwritten: list[str] = field(default_factory=list)
    created_at: str = field(default_factory=now)
    heartbeat_at: str = field(default_factory=now)

    @property
    def key(self) -> Key:
        return self.entity, self.project, self.id

    @property
    def storage_id(self) -> str:
        return opaque("Run", "v1", self.id, self.project, self.entity)

    @property
    def config(self) -> Node:
        """The configuration as `run.config` has it."""
        return {name: item["value"] for name, item in self.settings.items() if name != "_wandb"}

    @property
    def ordered(self) -> list[str]:
        return [self.lines[offset] for offset in sorted(self.lines)]

    @property
    def history(self) -> list[Node]:
        """The rows, in the order of their offsets."""
        return [json.loads(line) for line in self.ordered]

    @property
    def conflicting(self) -> list[str]:
        """Lines that were written where other content was, and lines of a step that has several."""
        steps = Counter(row["_step"] for row in self.history)
        return self.overwritten + [line for line in self.ordered if steps[json.loads(line)["_step"]] > 1]

    def stream(self, body: Node) -> None:
        """Take one file_stream request: lines at their offsets, then perhaps the end."""
        preempting = body.get("preempting") or self.state == "preempting"
        self.heartbeat_at, self.state = now(), "preempting" if preempting else "running"
        for name, chunk in body.get("files", {}).items():
            if name == "wandb-summary.json":
                self.summary = json.loads(chunk["content"][-1])
            elif name == "wandb-history.jsonl":
                for offset, line in enumerate(chunk["content"], chunk["offset"]):
                    if offset in self.lines and stable(self.lines[offset]) != stable(line):
                        self.overwritten.append(line)
                    self.lines[offset] = line
        if body.get("complete"):
            self.state = ("preempted" if preempting else "failed") if body.get("exitcode") else "finished"

    def node(self, number: int) -> Node:
        """Return what GraphQL says of the run, whose project has a number."""
        newest = self.ordered[-1:]
        keys = {"sets": [], "keys": {}, "lastStep": json.loads(newest[0])["_step"]} if newest else None
        summary, tail = json.dumps(self.summary), json.dumps(newest)
        lines = {"historyLineCount": len(self.lines), "historyTail": tail, "historyKeys": keys}
        names = {"id": self.storage_id, "name": self.id, "projectId": number, "user": {"name": self.entity}}
        texts = {"config": json.dumps(self.settings), "summaryMetrics": summary, "systemMetrics": "{}"}
        texts["wandbConfig"] = json.dumps(self.settings.get("_wandb", {"value": {}})["value"])
        nothing = dict.fromkeys(("description", "sweepName", "commit", "readOnly"))
        nothing |= {"eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]"}
        return camel(self) | nothing | lines | names | texts | {"parquetHistory": {"parquetUrls": [], "liveData": []}}


@dataclass
class RemoteView:
    """A report; `spec` is its JSON text, `writes` how often it was saved."""

    id: str
    entity: str
    project: str
    name: str = ""
    display_name: str = ""
    description: str = ""
    spec: str = "{}"
    type: str = "runs"
    writes: int = 0
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)


class Account:
    """What the server holds, and what it answers to an operation with its variables."""

    def __init__(self, entities: Sequence[str]) -> None:
        self.url, self.entities = "", entities
        self.projects: dict[tuple[str, str], int] = {}
        self.numbers = itertools.count(1000)
        self.unknown: list[str] = []
        self.refused_runs: set[str] = set()
        """Ids that no run may have, as the real server refuses those of runs that were deleted."""
        self.forget()

    def forget(self) -> None:
        """Lose every run and view, as in a restart without the disk; projects stay."""
        self.runs: dict[Key, RemoteRun] = {}
        self.views: dict[str, RemoteView] = {}

    def answer(self, operation: str, given: Node) -> Node:
        """Return the data that answers an operation; raises Refused."""
        match operation:
            case "Viewer" | "GetViewer" | "GetDefaultEntity":
                return {"viewer": self.user()}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
            case "Run" | "RunHistoryKeys" | "RunParquetHistory" | "HistoryPage" | "RunResumeStatus":
                return self.run(given.get("run") or given.get("runName") or given["name"], given)
            case "Runs":
                return {"project": self.page_of_runs(given)}
            case "ProjectInternalId":
                return {"project": self.project(given["entityName"], given["projectName"])}
            case "GetProjects":
                return {"models": connection(self.project(*key) for key in self.projects if key[0] == given["entity"])}
            case "CreateProject":
                made = self.project(*self.opened(given["input"]["entityName"], given["input"]["name"]))
                return {"result": {"project": made, "model": made, "inserted": True}}
            case "UpsertBucket":
                return {"upsertBucket": self.upsert_run(given)}
            case "CreateRunFiles":
                key = given["entity"], given["project"], given["run"]
                files = [{"name": name, **self.upload("run", *key, name)} for name in given["files"]]
                return {"createRunFiles": {"runID": self.found(self.runs, key).storage_id, "files": files}}
            case "upsertView":
                return {"upsertView": {"view": self.upsert_view(given), "inserted": not given.get("id")}}
            case "SpecificReport":
                return {"view": self.view(view) if (view := self.views.get(given["reportId"])) else None}
        self.unknown.append(operation)
        raise Refused(f"unknown operation {operation!r}")

    def found(self, where: dict[Any, Any], key: Any) -> Any:
        if key not in where:
            raise Refused(f"{key!r} not found")
        return where[key]

    def user(self) -> Node:
        name = self.entities[0]
        teams = {"teams": connection({"name": name} for name in self.entities), "apiKeys": connection([])}
        words = dict.fromkeys(("id", "name", "username", "entity", "email"), name)
        return words | teams | {"admin": False, "flags": "{}", "deletedAt": None}

    def opened(self, entity: str | None, project: str) -> tuple[str, str]:
        """Make sure of a project; refused in an entity that is not the key's."""
        entity = entity or self.entities[0]
        if entity not in self.entities:
            raise Refused(f"permission denied: no entity {entity!r}")
        self.projects.setdefault((entity, project), 1 + len(self.projects))
        return entity, project

    def project(self, entity: str, project: str) -> Node | None:
        if (entity, project) not in self.projects:
            return None
        names = {"name": project, "entityName": entity, "entity": {"id": entity, "name": entity}, "user": self.user()}
        ids = {"id": opaque(entity, project), "internalId": opaque("ProjectInternalId", self.projects[entity, project])}
        words = {"description": "", "access": "PRIVATE", "views": "{}", "isBenchmark": False, "createdAt": now()}
        return {"__typename": "Project"} | names | ids | words

    def run(self, id: str, given: Node) -> Node:
        """Answer for one run, with its rows where steps are given."""
        key = given["entity"], given["project"], id
        project, run = self.project(*key[:2]), self.runs.get(key)
        if project and run:
            node = run.node(self.projects[key[:2]])
            if "minStep" in given:
                steps = range(given["minStep"], given["maxStep"])
                node["history"] = [line for line in run.ordered if json.loads(line)["_step"] in steps]
                node["history"] = node["history"][: given["pageSize"]]
            project |= {"run": node, "bucket": node}
        return {"project": project, "model": project}

    def page_of_runs(self, given: Node) -> Node | None:
        """Answer with the runs that a filter by names or tags lets pass: {"name": {"$in": [...]}}."""
        project, rule = self.project(given["entity"], given["project"]), json.loads(given["filters"] or "{}")
        if project is None:
            return None
        chosen = [run for run in self.runs.values() if (run.entity, run.project) == (given["entity"], given["project"])]
        for column, allowed in rule.items():
            value = {"name": lambda run: [run.id], "tags": lambda run: run.tags}[column]
            chosen = [run for run in chosen if set(value(run)) & set(allowed["$in"])]
        start = int(given["cursor"] or 0)
        stop = start + given["perPage"]
        nodes = [run.node(self.projects[run.key[:2]]) for run in chosen[start:stop]]
        return project | {"runCount": len(chosen), "runs": connection(nodes, stop, stop < len(chosen))}

    def upsert_run(self, given: Node) -> Node:
        """Make a run or change one; what is null or left out stays."""
        if made := "name" in given and "project" in given and "entity" in given:
            key = *self.opened(given["entity"], given["project"] or "uncategorized"), given["name"]
            made = key not in self.runs
        else:
            key = (*reversed(base64.b64decode(given["id"]).decode().split(":")[2:]),)
        if key[2] in self.refused_runs:
            raise Refused(f"run {key[2]} was previously created and deleted; try a new run id")
        run = self.runs.setdefault(key, RemoteRun(*key, display_name=key[2])) if made else self.found(self.runs, key)
        for name, mine in FIELDS.items():
            if (value := given.get(name)) is not None:
                setattr(run, mine, json.loads(value) if name in ("config", "summaryMetrics") else value)
        bucket = run.node(self.projects[key[:2]]) | {"project": self.project(*key[:2])}
        return {"bucket": bucket, "inserted": made}

    def upload(self, *path: str) -> Node:
        """Return a file that can be put to the server."""
        name = "/".join(path)
        return {"id": name, "storagePath": name, "uploadUrl": f"{self.url}/storage/{name}"}

    def view(self, view: RemoteView) -> Node:
        return camel(view) | {"project": self.project(view.entity, view.project)}

    def upsert_view(self, given: Node) -> Node:
        id, place = given["id"] or opaque("View", next(self.numbers)), (given["entityName"], given["projectName"])
        self.found(self.projects, place)
        view = self.found(self.views, id) if given["id"] else self.views.setdefault(id, RemoteView(id, *place))
        view.name, view.display_name, view.description = given["name"], given["displayName"], given["description"]
        view.spec, view.writes, view.updated_at = given["spec"], view.writes + 1, now()
        return self.view(view)


class Handler(BaseHTTPRequestHandler):
    """One connection of the fake."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: in two, the second waits 40 ms for the first's acknowledgement
    disable_nagle_algorithm = True
    server: Listener

    def answer(self) -> None:
        owner = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, content = owner.serve(self, urllib.parse.unquote(self.path.partition("?")[0]), body)
        except ConnectionError:
            self.close_connection = True
            return
        except Exception as error:  # a bug of the fake: a 5xx or a cut connection would be retried for ever
            owner.broken.append(traceback.format_exc())
            status, content = 400, {"errors": [{"message": f"the fake broke: {error!r}"}]}
        raw = json.dumps(content).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", str(math.ceil(60 / (owner.rate or 60))))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_PUT = do_CONNECT = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


class Listener(socketserver.ThreadingTCPServer):
    """A listening socket that can also end the connections it has taken."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, owner: Server, port: int) -> None:
        self.owner, self.taken = owner, set[socket.socket]()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.taken.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.taken.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that is gone."""

    def kill(self) -> None:
        """Stop listening and end every connection."""
        self.shutdown()
        self.server_close()
        for request in list(self.taken):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class Server(Account):
    """A W&B server for tests: what it was told, and the fault it has at the moment."""

    def __init__(self, entities: Sequence[str] = ("lab",)) -> None:
        super().__init__(entities)
        self.key, self.faults_on, self.delay = KEY, set(KINDS), 1.0
        self.rate: float | None = None
        """Requests a minute, that many at once; more are answered with 429."""
        self.allowance, self.counted = 0.0, -math.inf
        self.requests, self.broken = Counter[str](), list[str]()
        self.lock = threading.Condition()
        self.held = socket.socket()  # nobody else gets the port while nothing listens and connections are refused
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        self.port = self.held.getsockname()[1]
        self.url, self.mode, self.faulted = f"http://127.0.0.1:{self.port}", None, 0
        self.listener: Listener | None = Listener(self, self.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.fault = "dead"
        self.held.close()

    @property
    def fault(self) -> str | None:
        """How requests fail now: one of FAULTS, or None; `faulted` counts those since it was set."""
        return self.mode

    @fault.setter
    def fault(self, mode: str | None) -> None:
        if mode not in (None, *FAULTS):
            raise ValueError(f"unknown fault {mode!r}: one of {', '.join(FAULTS)}, or None")
        with self.lock:
            self.mode, self.faulted = mode, 0
            self.lock.notify_all()
        if mode == "dead" and self.listener:
            self.listener.kill()
            self.listener = None
        elif mode != "dead" and not self.listener:
            self.listener = Listener(self, self.port)

    def until(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        """Wait until something is so; looked at after each request."""
        with self.lock:
            assert self.lock.wait_for(condition, seconds), f"not so after {seconds} s"

    def limited(self) -> bool:
        """Count one request against the rate."""
        if self.rate is None:
            return False
        moment = time.monotonic()
        self.allowance = min(self.rate, self.allowance + (moment - self.counted) * self.rate / 60)
        self.counted = moment
        self.allowance -= self.allowance >= 1
        return self.allowance < 1

    def serve(self, http: Handler, path: str, body: bytes) -> tuple[int, Any]:
        """Answer one request, or fail it as the fault says; raises ConnectionError where there is no answer."""
        kind = "graphql" if path == "/graphql" else "file_stream" if path.endswith("/file_stream") else "storage"
        request = {} if kind == "storage" else json.loads(body)
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", request.get("query", ""))
        name = found[1] if found else kind
        with self.lock:
            mode = self.mode if kind in self.faults_on else None
            self.requests[name] += 1
            self.faulted += mode is not None
            self.lock.notify_all()
            limited = self.limited()
            if mode == "hang":
                self.lock.wait_for(lambda: self.mode != "hang" or kind not in self.faults_on)
        if mode == "slow":
            time.sleep(self.delay)
        if mode in ("drop", "hang"):
            raise ConnectionError
        if mode and mode.isdigit():
            return int(mode), {"errors": [{"message": f"fault {mode}"}], "error": f"fault {mode}"}
        if limited:
            return 429, {"errors": [{"message": "rate limit exceeded"}]}
        trusted = http.headers.get("Authorization") == f"Basic {opaque('api', self.key)}"
        if kind != "storage" and not trusted:
            return 401, {"errors": [{"message": "user is not logged in"}]}
        with self.lock:
            try:
                answer = self.take(kind, name, path, request, http.command)
            except Refused as refusal:
                answer = 200 if kind == "graphql" else 404, {"data": None, "errors": [{"message": str(refusal)}]}
            self.lock.notify_all()
        if mode == "lost":
            raise ConnectionError
        return answer

    def take(self, kind: str, name: str, path: str, request: Node, method: str) -> tuple[int, Any]:
        """Do what a request asks, and return the answer; raises Refused."""
        if kind == "graphql":
            return 200, {"data": self.answer(name, request.get("variables") or {})}
        if kind == "file_stream":
            self.found(self.runs, tuple(path.split("/")[2:5])).stream(request)
        elif method != "PUT" and (method, path) != ("GET", "/"):  # put are summary and config once more, as files
            self.unknown.append(f"{method} {path}")
            raise Refused("not found")
        return 200, {}
