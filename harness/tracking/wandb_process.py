"""A child process with wandb in it, the only place that imports it: it may hang or die, and is replaced.

The mirror asks for one operation at a time and waits for each answer with a time-out. The child ends by itself when the
mirror's end of the pipe is closed, however that happens, and wandb's own process ends with it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

TIMEOUT = 120.0
"""Seconds without any answer after which a child is given up."""
RUNS_PER_CHILD = 250
"""Runs after which a child is replaced: wandb keeps a little of every one."""
WRITERS = 16
"""Runs written at the same time: each waits for the server most of its time."""
PROBE_TIMEOUT = 15
"""Seconds that the server has to answer a question about itself or its runs."""
RUN_TIMEOUT = 30.0
"""Seconds that a run's start, and its end, may take."""
PAGE = 100
"""Runs of one request."""
SWITCHED_ON = (
    *("silent", "finish_timeout_raises", "disable_git", "disable_code", "x_disable_stats", "x_disable_meta"),
    *("x_disable_machine_info", "x_skip_transaction_log"),
)
"""Settings of runs. No transaction log, since the store has it all: a full disk can drop nothing."""


class WandbUnavailable(Exception):
    """W&B cannot be reached, or does not answer as it should: to be tried again later."""


class WandbProcess:
    """A child with wandb, started when it is first needed. Used by one thread at a time."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self.runs = 0
        """Runs that the present child has written."""
        self.process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._scratch = Path()

    def _start(self) -> Connection:
        self._connection, theirs = Pipe()
        self._scratch = Path(tempfile.mkdtemp(prefix="harness-wandb-"))
        folders = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "TMPDIR")
        environment = {**os.environ, "WANDB_ERROR_REPORTING": "false"} | dict.fromkeys(folders, str(self._scratch))
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "harness.tracking.wandb_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the command's
            )
        self.runs = 0
        return self._connection

    def call(self, operation: str, **arguments: Any) -> Iterator[Any]:
        """Yield what an operation answers, item by item. Raises WandbUnavailable."""
        try:
            connection = self._connection or self._start()
            watchdog = threading.Timer(self.timeout, self.process.kill if self.process else connection.close)
            watchdog.start()  # a child that is stopped reads nothing
            try:
                connection.send_bytes(json.dumps([operation, arguments]).encode())
            finally:
                watchdog.cancel()
            while True:
                if not connection.poll(self.timeout):
                    raise WandbUnavailable(f"no answer in {self.timeout:.0f} s")
                kind, value = json.loads(connection.recv_bytes())
                if kind == "error":
                    raise WandbUnavailable(value)
                if kind == "end":
                    return
                yield value
        except (OSError, EOFError) as error:
            self.close()
            why = "the process with wandb ended" if isinstance(error, EOFError | ConnectionError) else str(error)
            raise WandbUnavailable(why) from None
        except WandbUnavailable:
            self.close()
            raise

    def close(self) -> None:
        """End the child; runs that it has open stay as they are on the server."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            shutil.rmtree(self._scratch, ignore_errors=True)


@cache
def load_wandb() -> Any:
    """Return wandb's module. What its import makes, thousands of classes, is left out of garbage collection."""
    import wandb

    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return wandb


OPEN_RUNS: dict[str, Any] = {}
"""The child's runs that are shown live, by id."""


def write_runs(entity: str, project: str, records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Write what is new of some runs, all at once; yield each one's id, and what went wrong or nothing."""
    with ThreadPoolExecutor(WRITERS) as threads:
        futures = {threads.submit(_write_run, entity, project, record): record["id"] for record in records}
        for future in as_completed(futures):
            yield futures[future], _one_line(error) if (error := future.exception()) else ""


def _write_run(entity: str, project: str, record: Mapping[str, Any]) -> None:
    open_run = OPEN_RUNS.pop(record["id"], None)
    run = open_run or _init_run(entity, project, record)
    for step in range(run.step, len(record["rows"])):
        run.log(record["rows"][step], step=step, commit=True)
    if record["state"] == "running":
        OPEN_RUNS[record["id"]] = run
        return
    if open_run or run.resumed:  # what the server has goes before what was given to init
        run.name, run.notes, run.tags = record["name"], record["notes"], tuple(record["tags"])
        run.config.update(record["config"], allow_val_change=True)
    run.summary.update(record["summary"])
    if record["state"] == "stopped":
        run.mark_preempting()
    run.finish(exit_code=int(record["state"] != "finished"))


def _init_run(entity: str, project: str, record: Mapping[str, Any]) -> Any:
    settings = load_wandb().Settings(
        console="off",
        init_timeout=RUN_TIMEOUT,
        finish_timeout=RUN_TIMEOUT,
        save_code=False,
        x_save_requirements=False,
        **dict.fromkeys(SWITCHED_ON, True),
    )
    run = load_wandb().init(
        mode="online",
        entity=entity,
        project=project,
        resume="allow",
        reinit="create_new",
        settings=settings,
        **{name: record[name] for name in ("id", "name", "group", "job_type", "tags", "notes", "config")},
    )
    run.define_metric("epoch")
    run.define_metric("*", step_metric="epoch")
    return run


def _api() -> Any:
    return load_wandb().Api(timeout=PROBE_TIMEOUT)


def identify(entity: str | None) -> Iterator[tuple[str, str]]:
    """Yield the server's address, and the entity that runs would be of. Raises WandbUnavailable."""
    wandb = load_wandb()
    host = str(wandb.setup().settings.base_url)
    try:  # wandb itself would try for a long time
        with urllib.request.urlopen(host, timeout=PROBE_TIMEOUT):  # noqa: S310 - wandb's own address # nosec B310
            pass
    except urllib.error.HTTPError:  # an answer, be it that there is no such page
        pass
    except (OSError, ValueError) as error:
        raise WandbUnavailable(f"{host} does not answer ({getattr(error, 'reason', error)})") from None
    if not wandb.login(prompt=False, verify=False):
        raise WandbUnavailable("no API key is there; `wandb login` asks for one")
    try:
        viewer = _api().viewer
    except Exception as error:  # whatever a client of a server that may do anything raises
        raise WandbUnavailable(f"{host}: {error}") from None
    if not viewer:
        raise WandbUnavailable(f"{host} does not accept the API key that is there")
    yield host, entity or str(viewer.entity)


def list_runs(project: str, filters: dict[str, Any], digest_key: str) -> Iterator[dict[str, Any]]:
    """Yield what the server has of the runs of a project, ENTITY/NAME: id, state, tags, rows, digests."""
    try:
        for run in _api().runs(project, filters, per_page=PAGE, lazy=False):
            yield {
                "id": run.id,
                "state": run.state,
                "tags": sorted(run.tags or ()),
                "rows": int(getattr(run, "historyLineCount", None) or 0),
                "digests": [run.config.get(digest_key, ""), run.summary.get(digest_key, "")],
            }
    except ValueError as error:
        if "Could not find project" not in str(error):  # before its first run
            raise


def read_rows(project: str, run: str) -> Iterator[dict[str, Any]]:
    """Yield the rows that the server has of a run, in order, without what wandb adds to them."""
    for row in _api().run(f"{project}/{run}").scan_history(page_size=10_000):
        yield {name: value for name, value in row.items() if not name.startswith("_")}


def add_tag(project: str, runs: Sequence[str], tag: str) -> Iterator[tuple[str, str]]:
    """Add a tag to some runs; yield each one's id, and what went wrong or nothing."""
    for name in runs:
        try:
            run = _api().run(f"{project}/{name}")
            run.tags = sorted({*(run.tags or ()), tag})
            run.update()
            yield name, ""
        except Exception as error:  # whatever a client of a server that may do anything raises
            yield name, _one_line(error)


def write_report(**arguments: Any) -> Iterator[str]:
    """Save a report; yield its address."""
    from harness.tracking import wandb_report

    yield wandb_report.write_report(**arguments)


def _one_line(error: BaseException) -> str:
    message = str(error) if isinstance(error, WandbUnavailable) else f"{type(error).__name__}: {error}"
    return " ".join(message.split())[:300]


def main() -> None:
    """Answer the mirror at the other end of the pipe whose file descriptor is the first argument, until it closes."""
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)  # wandb's own process must not hold it open
    os.nice(19)  # trainings go first
    connection = Connection(descriptor)
    operations = [write_runs, identify, list_runs, read_rows, add_tag, write_report]
    by_name = {operation.__name__: operation for operation in operations}
    with contextlib.suppress(EOFError, OSError):
        while True:  # here and not where operations run, so that the mirror's end is noticed in the midst of one
            name, arguments = json.loads(connection.recv_bytes())
            threading.Thread(target=_answer, args=(connection, by_name[name], arguments), daemon=True).start()
    shutil.rmtree(os.environ["WANDB_DIR"], ignore_errors=True)
    os._exit(0)  # without wandb's own end, which would finish what is open


def _answer(connection: Connection, operation: Callable[..., Iterator[Any]], arguments: Mapping[str, Any]) -> None:
    def answer(kind: str, value: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # the mirror is gone, and this process ends
            connection.send_bytes(json.dumps([kind, value]).encode())

    try:
        for item in operation(**arguments):
            answer("item", item)
        answer("end", None)
    except Exception as error:  # whatever a client of a server that may do anything raises
        answer("error", _one_line(error))


if __name__ == "__main__":
    main()
