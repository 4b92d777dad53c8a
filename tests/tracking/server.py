"""A fake Weights & Biases server on the loopback: it keeps what the clients send, and fails as it is told.

GraphQL is not executed: an operation is known by its name and answered with all fields that clients may have asked for.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import socket
import socketserver
import threading
import time
import traceback
import urllib.parse
import weakref
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
QUERIES = {"Viewer", "GetViewer", "GetDefaultEntity", "ServerFeaturesQuery", "GetProjects", "ProjectInternalId", "Runs"}
QUERIES |= {"Run", "RunResumeStatus", "RunHistoryKeys", "RunParquetHistory", "HistoryPage", "SpecificReport"}
FIELDS = {"displayName": "display_name", "groupName": "group", "jobType": "job_type", "notes": "notes", "tags": "tags"}
FIELDS |= {"display_name": "display_name", "config": "settings", "summaryMetrics": "summary"}
"""Variable of UpsertBucket -> field of a run."""
TIMES = dict.fromkeys(("createdAt", "updatedAt", "heartbeatAt"), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


class Refused(Exception):
    """A request that is answered with an error."""


def opaque(*parts: object) -> str:
    """Return an id as the real server forms them."""
    return base64.b64encode(":".join(map(str, parts)).encode()).decode()


def stable(line: str) -> Node:
    return {name: value for name, value in json.loads(line).items() if name not in UNSTABLE}


def found(where: dict[Any, Any], key: Any) -> Any:
    if key not in where:
        raise Refused(f"{key!r} not found")
    return where[key]


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

    @property
    def key(self) -> Key:
        return self.entity, self.project, self.id

    @property
    def config(self) -> Node:
        """The configuration as `run.config` has it."""
        return {name: item["value"] for name, item in self.settings.items() if name != "_wandb"}

    @property
    def history(self) -> list[Node]:
        """The rows, in the order of their offsets."""
        return [json.loads(line) for line in self.lines.values()]

    @property
    def conflicting(self) -> list[str]:
        """Lines that were written where other content was, and lines of a step that has several."""
        steps = Counter(row["_step"] for row in self.history)
        return self.overwritten + [line for line in self.lines.values() if steps[json.loads(line)["_step"]] > 1]

    def stream(self, body: Node) -> None:
        """Take one file_stream request: lines at their offsets, then perhaps the end."""
        preempting = body.get("preempting") or self.state == "preempting"
        self.state = "preempting" if preempting else "running"
        files = body.get("files", {})
        if summary := files.get("wandb-summary.json"):
            self.summary = json.loads(summary["content"][-1])
        if chunk := files.get("wandb-history.jsonl"):
            new = dict(enumerate(chunk["content"], chunk["offset"]))
            both = [(self.lines[offset], line) for offset, line in new.items() if offset in self.lines]
            self.overwritten += [line for old, line in both if stable(old) != stable(line)]
            self.lines = dict(sorted((self.lines | new).items()))
        if body.get("complete"):
            self.state = ("preempted" if preempting else "failed") if body.get("exitcode") else "finished"

    def node(self) -> Node:
        """Return what GraphQL says of the run."""
        newest = list(self.lines.values())[-1:]
        keys = {"sets": [], "keys": {}, "lastStep": json.loads(newest[0])["_step"]} if newest else None
        telemetry = self.settings.get("_wandb", {}).get("value", {})
        words = {"id": "/".join(self.key), "name": self.id, "displayName": self.display_name, "notes": self.notes}
        words |= {"group": self.group, "jobType": self.job_type, "tags": self.tags, "state": self.state}
        texts = {"config": self.settings, "summaryMetrics": self.summary, "systemMetrics": {}}
        texts |= {"historyTail": newest, "eventsTail": [], "wandbConfig": telemetry}
        counts = {"historyLineCount": len(self.lines), "eventsLineCount": 0, "logLineCount": 0, "historyKeys": keys}
        rest = {"user": {"name": self.entity}, "parquetHistory": {"parquetUrls": [], "liveData": []}, "projectId": 1}
        nothing = dict.fromkeys(("description", "sweepName", "commit", "readOnly"))
        return words | {name: json.dumps(text) for name, text in texts.items()} | counts | rest | nothing | TIMES


@dataclass
class RemoteView:
    """A report; `spec` is its JSON text, `writes` how often it was saved."""

    id: str
    entity: str
    project: str
    name: str
    display_name: str
    description: str
    spec: str
    writes: int


class Handler(BaseHTTPRequestHandler):
    """One connection of the fake."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: in two, the second waits 40 ms for the first's acknowledgement
    disable_nagle_algorithm = True
    server: Listener

    def answer(self) -> None:
        owner, self.close_connection = self.server.owner, True
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            status, content = owner.serve(self, urllib.parse.unquote(self.path.partition("?")[0]), body)
        except ConnectionError:
            return
        except Exception as error:  # a bug of the fake: a 5xx or a cut connection would be retried for ever
            owner.broken.append(traceback.format_exc())
            status, content = 400, {"errors": [{"message": f"the fake broke: {error!r}"}]}
        raw, self.close_connection = json.dumps(content).encode(), False
        self.send_response_only(status)
        self.send_header("Retry-After", str(1 + int(60 / (owner.rate or 60))))  # read with 429
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_POST = do_PUT = do_CONNECT = answer


class Listener(socketserver.ThreadingTCPServer):
    """A listening socket that can also end the connections it has taken."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, owner: Server, port: int) -> None:
        self.owner, self.taken = owner, weakref.WeakSet[socket.socket]()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.taken.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that is gone."""

    def kill(self) -> None:
        """Stop listening and end every connection."""
        self.shutdown()
        self.server_close()
        for request in list(self.taken):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class Server:
    """A W&B server for tests: what it was told, and its fault of the moment. Mutations are methods of their name."""

    def __init__(self, entities: Sequence[str] = ("lab",)) -> None:
        self.entities, self.projects, self.numbers = entities, list[tuple[str, str]](), itertools.count(1000)
        self.forget()
        teams = {"teams": connection({"name": name} for name in entities), "apiKeys": connection([])}
        words = dict.fromkeys(("id", "name", "username", "entity", "email"), entities[0])
        self.user = words | teams | {"admin": False, "flags": "{}", "deletedAt": None}
        self.key, self.faults_on, self.delay = KEY, set(KINDS), 1.0
        self.rate: float | None = None
        """Requests a minute, as many at once; more are answered with 429 and counted in `refused`."""
        self.allowance, self.counted, self.faulted, self.refused = 0.0, 0.0, 0, 0
        self.requests, self.unknown, self.broken = Counter[str](), list[str](), list[str]()
        self.refused_runs: set[str] = set()
        """Ids that no run may have, as the real server refuses those of runs that were deleted."""
        self.lock = threading.Condition()
        self.held = socket.socket()  # nobody else gets the port while nothing listens and connections are refused
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        self.port = self.held.getsockname()[1]
        self.url, self.mode = f"http://127.0.0.1:{self.port}", None
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

    def limited(self, rate: float) -> bool:
        """Count one request against the rate."""
        passed, self.counted = time.monotonic() - self.counted, time.monotonic()
        self.allowance = min(rate, self.allowance + passed * rate / 60)
        over = self.allowance < 1
        self.allowance, self.refused = self.allowance - (not over), self.refused + over
        return over

    def serve(self, http: Handler, path: str, body: bytes) -> tuple[int, Any]:
        """Answer one request, or fail it as the fault says; raises ConnectionError where there is no answer."""
        kind = "graphql" if path == "/graphql" else "file_stream" if path.endswith("/file_stream") else "storage"
        request = {} if kind == "storage" else json.loads(body)
        named = re.search(r"\b(?:query|mutation)\s+(\w+)", request.get("query", ""))
        name = named[1] if named else kind
        with self.lock:
            mode = self.mode if kind in self.faults_on else None
            self.requests[name] += 1
            self.faulted += mode is not None
            self.lock.notify_all()
            if mode == "hang":
                self.lock.wait_for(lambda: self.mode != "hang" or kind not in self.faults_on)
        if mode == "slow":
            time.sleep(self.delay)
        if mode in ("drop", "hang"):
            raise ConnectionError
        if mode and mode.isdigit():
            return int(mode), {"errors": [{"message": f"fault {mode}"}], "error": f"fault {mode}"}
        if kind != "storage" and http.headers.get("Authorization") != f"Basic {opaque('api', self.key)}":
            return 401, {"errors": [{"message": "user is not logged in"}]}
        with self.lock:
            try:
                if self.rate and self.limited(self.rate):
                    return 429, {"errors": [{"message": "rate limit exceeded"}]}
                answer = 200, self.take(kind, name, f"{http.command} {path}", request)
            except Refused as refusal:
                answer = 200 if kind == "graphql" else 404, {"data": None, "errors": [{"message": str(refusal)}]}
            self.lock.notify_all()
        if mode == "lost":
            raise ConnectionError
        return answer

    def take(self, kind: str, name: str, path: str, request: Node) -> Node:
        """Do what a request asks, and return the answer; raises Refused."""
        if kind == "graphql" and (operation := self.query if name in QUERIES else getattr(self, name, None)):
            return {"data": operation(request.get("variables") or {})}
        if kind == "file_stream":
            found(self.runs, tuple(path.split("/")[2:5])).stream(request)
        elif not path.startswith("PUT /storage/") and path != "GET /":  # put are config and summary once more, as files
            self.unknown.append(name if kind == "graphql" else path)
            raise Refused(f"unknown operation {self.unknown[-1]!r}")
        return {}

    def forget(self) -> None:
        """Lose every run and view, as in a restart without the disk; projects stay."""
        self.runs: dict[Key, RemoteRun] = {}
        self.views: dict[str, RemoteView] = {}

    def query(self, given: Node) -> Node:
        """Answer any query: all that its variables name."""
        place = given.get("entity") or given.get("entityName"), given.get("project") or given.get("projectName")
        name, project = given.get("run") or given.get("runName") or given.get("name"), self.project(*place)
        if project and "perPage" in given:
            project |= self.page_of_runs(place, given)
        elif project and (run := self.runs.get((*place, name))):
            project["run"] = project["bucket"] = run.node()
            if "minStep" in given:
                steps = range(given["minStep"], given["maxStep"])
                rows = [line for line in run.lines.values() if json.loads(line)["_step"] in steps]
                project["run"]["history"] = rows[: given["pageSize"]]
        projects = connection(self.project(*place) for place in self.projects)
        roots = {"viewer": self.user, "serverInfo": {"features": []}, "models": projects}
        return roots | {
            "project": project,
            "model": project,
            "view": self.view(self.views.get(given.get("reportId", ""))),
        }

    def page_of_runs(self, place: tuple[str, str], given: Node) -> Node:
        """Return the runs that a filter by names or tags lets pass: {"name": {"$in": [...]}}."""
        chosen = [run for run in self.runs.values() if run.key[:2] == place]
        for column, allowed in json.loads(given["filters"] or "{}").items():
            value = {"name": lambda run: [run.id], "tags": lambda run: run.tags}[column]
            chosen = [run for run in chosen if set(value(run)) & set(allowed["$in"])]
        start, stop = int(given["cursor"] or 0), int(given["cursor"] or 0) + given["perPage"]
        nodes = [run.node() for run in chosen[start:stop]]
        return {"runCount": len(chosen), "runs": connection(nodes, stop, stop < len(chosen))}

    def project(self, entity: str, name: str) -> Node | None:
        if (entity, name) not in self.projects:
            return None
        number = opaque("ProjectInternalId", 1 + self.projects.index((entity, name)))
        names = {"id": opaque(entity, name), "name": name, "internalId": number, "entityName": entity}
        words = {"description": "", "access": "PRIVATE", "views": "{}", "isBenchmark": False, "__typename": "Project"}
        inside = {"entity": {"id": entity, "name": entity}, "user": self.user}
        return names | words | inside | dict.fromkeys(("run", "bucket")) | TIMES

    def place(self, entity: str | None, project: str) -> tuple[str, str]:
        """Make sure of a project; refused in an entity that is not the key's."""
        place = entity or self.entities[0], project
        if place[0] not in self.entities:
            raise Refused(f"permission denied: no entity {entity!r}")
        self.projects += [] if place in self.projects else [place]
        return place

    def CreateProject(self, given: Node) -> Node:
        project = self.project(*self.place(given["input"]["entityName"], given["input"]["name"]))
        return {"result": {"project": project, "model": project, "inserted": True}}

    def UpsertBucket(self, given: Node) -> Node:
        """Make a run or change one; what is null or left out stays."""
        if given.get("name") in self.refused_runs:
            raise Refused(f"run {given['name']} was previously created and deleted; try a new run id")
        inserted = False
        if "displayName" in given:  # sent by a run; the API's mutations go by the id alone
            key = *self.place(given["entity"], given["project"] or "uncategorized"), given["name"]
            inserted = key not in self.runs
            run = self.runs.setdefault(key, RemoteRun(*key, display_name=key[2]))
        else:
            run = found(self.runs, tuple(given["id"].split("/")))
        for name, mine in FIELDS.items():
            if (value := given.get(name)) is not None:
                setattr(run, mine, json.loads(value) if name in ("config", "summaryMetrics") else value)
        return {"upsertBucket": {"bucket": run.node() | {"project": self.project(*run.key[:2])}, "inserted": inserted}}

    def CreateRunFiles(self, given: Node) -> Node:
        run = found(self.runs, (given["entity"], given["project"], given["run"]))
        urls = {name: "/".join((self.url, "storage", *run.key, name)) for name in given["files"]}
        files = [{"name": name, "uploadUrl": url} for name, url in urls.items()]
        return {"createRunFiles": {"runID": run.id, "files": files}}

    def view(self, view: RemoteView | None) -> Node | None:
        more = {"project": self.project(view.entity, view.project), "displayName": view.display_name} if view else {}
        return view and vars(view) | more | {"type": "runs"} | TIMES

    def upsertView(self, given: Node) -> Node:
        id, place = given["id"] or opaque("View", next(self.numbers)), (given["entityName"], given["projectName"])
        writes = 1 + (found(self.views, id).writes if given["id"] else 0)
        words = [given[name] for name in ("name", "displayName", "description", "spec")]
        self.views[id] = RemoteView(id, *place, *words, writes)
        return {"upsertView": {"view": self.view(self.views[id]), "inserted": writes == 1}}
