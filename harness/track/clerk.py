"""The clerk: the only process that loads wandb. It writes the pages it is given, one run each.

`python -m harness.track.clerk` reads JSON lines from its input and answers in JSON lines on its output; everything that
wandb prints goes elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import shutil
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from harness.track.page import ALIAS, DIGEST
from harness.track.target import Target

HANDS = 16
"""Runs that are written at the same time: each waits for the server most of its time."""
START = 30.0
"""Seconds that a run's start, and its end, may take."""
PROBE = 15
"""Seconds that the server has to answer a probe."""
PAGE = 100
"""Runs asked about in one request."""
PR_SET_PDEATHSIG = 1


class Clerk:
    """Holds the runs that are open, and the words that go back."""

    def __init__(self, mode: str, folder: Path, say: Any) -> None:
        self.mode, self.folder, self.say = mode, folder, say
        self.open: dict[str, Any] = {}
        self.locks: dict[str, threading.Lock] = {}
        self.hands = ThreadPoolExecutor(HANDS)

    def work(self, orders: IO[str]) -> None:
        """Do one order after another, until there are no more; what is open then stays as it is."""
        for line in orders:
            order = json.loads(line)
            match order["do"]:
                case "put":
                    lock = self.locks.setdefault(order["page"]["id"], threading.Lock())
                    self.hands.submit(self._answer, order, lambda o=order, lock=lock: self._put(o, lock))
                case "look":
                    self.hands.submit(self._answer, order, lambda o=order: {"found": look(o["where"], o["ids"])})
                case "leave":
                    self._answer(order, lambda o=order: self._leave(o["id"]))
                case "rows":
                    self.hands.submit(self._answer, order, lambda o=order: {"rows": rows_of(o["where"], o["id"])})
                case "list":
                    self.hands.submit(self._answer, order, lambda o=order: {"ids": ids_of(o["where"])})
                case "draw":
                    self._answer(order, lambda o=order: draw(o["sketch"], Target(**o["target"]), o["known"]))
                case "probe":
                    self._answer(order, lambda o=order: probe(o["mode"], o["entity"]))

    def _answer(self, order: Mapping[str, Any], work: Any) -> None:
        try:
            said = work()
        except Exception as error:  # whatever a client of a server that may do anything raises
            said = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:500]}
        self.say({"number": order["number"], **said})

    def _put(self, order: Mapping[str, Any], lock: threading.Lock) -> dict[str, Any]:
        """Write a page: what is new of its rows, what else it says; leave it open where more will come."""
        page, place = order["page"], self.folder / order["page"]["id"]
        with lock:
            run = self.open.pop(page["id"], None)
            known = run is not None  # its words may be others by now
            if run is None:
                run = self._begin(order, place)
                known = run.resumed  # the server's words win over those given to init
            for step in range(run.step, len(page["rows"])):
                run.log(page["rows"][step], step=step, commit=True)
            if page["state"] == "running":
                self.open[page["id"]] = run
                return {"rows": len(page["rows"])}
            self._tell_artifacts(run, page)
            if known:
                run.name, run.notes, run.tags = page["name"], page["notes"], tuple(page["tags"])
                run.config.update(order["config"], allow_val_change=True)
            run.summary.update(order["summary"])
            if page["state"] == "stopped":
                run.mark_preempting()
            run.finish(exit_code=int(page["state"] != "finished"))
            if self.mode == "online":
                shutil.rmtree(place, ignore_errors=True)
            return {"rows": len(page["rows"])}

    def _leave(self, run: str) -> dict[str, Any]:
        """End a run that is open as one that was stopped."""
        if (held := self.open.pop(run, None)) is not None:
            held.mark_preempting()
            held.finish(exit_code=1)
        return {}

    def _begin(self, order: Mapping[str, Any], place: Path) -> Any:
        import wandb

        page = order["page"]
        where = place if self.mode == "online" else self.folder
        where.mkdir(parents=True, exist_ok=True)
        run: Any = wandb.init(
            mode="online" if self.mode == "online" else "offline",
            entity=order["entity"],
            project=page["project"],
            id=page["id"],
            name=page["name"],
            group=page["group"],
            job_type=page["job_type"],
            tags=page["tags"],
            notes=page["notes"],
            config=page["config"] if page["state"] == "running" else order["config"],
            dir=str(where),
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=settings_of_runs(),
        )
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        return run

    def _tell_artifacts(self, run: Any, page: Mapping[str, Any]) -> None:
        """Log the stage's artifact, a reference or a copy, and name those that it was made from."""
        from wandb.errors import CommError

        if (said := page["artifact"]) is not None:
            run.log_artifact(artifact_of(said), aliases=[said["sha256"][:ALIAS]])
        for name in page["uses"] if self.mode == "online" else ():  # offline no server could know them
            with contextlib.suppress(CommError):  # its own run was refused: no reason to refuse this one
                run.use_artifact(f"{run.entity}/{page['project']}/{name}")


def settings_of_runs() -> Any:
    """Return what is the same of all runs, for one of them: `wandb.init` writes into it."""
    import wandb

    return wandb.Settings(
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        silent=True,
        init_timeout=START,
        finish_timeout=START,
        finish_timeout_raises=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def spare_collections() -> None:
    """Collect garbage rarely: wandb's thousands of classes were walked for every few rows (a fifth of all time)."""
    import wandb  # noqa: F401 - here for what its import makes

    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def artifact_of(said: Mapping[str, Any]) -> Any:
    """Return a stage's artifact for wandb: where it lies in the store, with its hash, or a copy of it."""
    import wandb

    told = {"sha256": said["sha256"], "bytes": said["bytes"], "stage": said["key"]}
    artifact = wandb.Artifact(said["name"], said["type"], metadata=told)
    path = Path(said["path"])
    if said["upload"]:
        artifact.add_file(str(path), name=path.name)
    else:
        artifact.add_reference(path.absolute().as_uri(), name=path.name, checksum=False)
    return artifact


def probe(mode: str, entity: str | None) -> dict[str, Any]:
    """Say whether runs can be published now, whose they would be, and on which server; else why not."""
    import wandb

    if mode == "offline":
        return {"online": False, "why": "as its file asks for"}
    if (told := os.environ.get("WANDB_MODE", "")) in ("offline", "disabled", "dryrun"):
        return {"online": False, "why": f"WANDB_MODE={told} is set"}
    host = str(wandb.setup().settings.base_url)
    try:
        with urllib.request.urlopen(host, timeout=PROBE):  # noqa: S310 - wandb's own address; it retries for long # nosec B310
            pass
    except urllib.error.HTTPError:  # an answer, be it that there is no such page
        pass
    except (OSError, ValueError) as error:
        return {"online": False, "host": host, "why": f"{host} does not answer ({getattr(error, 'reason', error)})"}
    try:
        if not wandb.login(prompt=False, verify=False):
            return {"online": False, "host": host, "why": "no API key is there; `wandb login` asks for one"}
        viewer = wandb.Api(timeout=PROBE).viewer
    except Exception as error:  # whatever a client of a server that may do anything raises
        return {"online": False, "host": host, "why": f"{host}: {error}".splitlines()[0][:300]}
    if not viewer:
        return {"online": False, "host": host, "why": f"{host} does not accept the API key that is there"}
    return {"online": True, "host": host, "entity": entity or viewer.entity}


def look(where: str, ids: list[str]) -> dict[str, Any]:
    """Return what the server has of some runs of a project: rows, state, the digest of the page, tags."""
    import wandb

    found = {}
    with contextlib.suppress(ValueError):  # no such project
        for run in wandb.Api(timeout=PROBE).runs(where, {"name": {"$in": ids}}, per_page=PAGE, lazy=False):
            rows = int(getattr(run, "historyLineCount", None) or 0)
            found[run.id] = {
                "rows": rows,
                "state": run.state,
                "digests": [run.config.get(DIGEST, ""), run.summary.get(DIGEST, "")],
                "tags": sorted(run.tags or ()),
            }
    return found


def draw(sketch: Mapping[str, Any], target: Target, known: Mapping[str, Any]) -> dict[str, Any]:
    """Save a sketch as a report and views; return their addresses. `known`: those of an earlier call."""
    from harness.track.boards import draw_report, draw_view

    views = [(view, project) for view in sketch["views"] for project in view["projects"]]
    first = views[0][1] if views else target.project
    drawn: dict[str, Any] = {"report": known.get("report", ""), "views": {}}
    try:
        drawn["report"] = draw_report(sketch, target, first, drawn["report"])
        for view, project in views:
            name = f"{project}: {view['name']}"
            drawn["views"][name] = draw_view(view, target, project, known.get("views", {}).get(name, ""))
    except Exception as error:  # what has been saved is to be found again all the same
        drawn["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    return drawn


def rows_of(where: str, run: str) -> list[dict[str, Any]]:
    """Return the rows that the server has of a run, in order, without what wandb adds to them."""
    import wandb

    found = wandb.Api(timeout=PROBE).run(f"{where}/{run}").scan_history(page_size=10_000)
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in found]


def ids_of(where: str) -> list[str]:
    """Return the ids of all runs of a project."""
    import wandb

    try:
        return [run.id for run in wandb.Api(timeout=PROBE).runs(where, per_page=1000)]
    except ValueError:  # no such project
        return []


def die_with_parent() -> None:
    """Ask the kernel to end this process when its publisher ends, however that happens (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Serve the publisher at the other end of this process's input and output."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the publisher decides
    mode, folder = sys.argv[1], Path(sys.argv[2])
    orders = os.fdopen(os.dup(0), "r")  # os.dup: not inherited by what wandb starts
    answers = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    spare_collections()
    guard = threading.Lock()

    def say(message: Mapping[str, Any]) -> None:
        with guard:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    Clerk(mode, folder, say).work(orders)
    os._exit(0)  # without wandb's own end, which would finish what is still open


if __name__ == "__main__":
    main()
