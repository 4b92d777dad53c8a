"""Sync: brings a W&B project to what the store says, and believes nothing but what the server shows afterwards."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.attempts import checkpoint_names
from harness.claims import Lease, Observer
from harness.errors import UserError, printable
from harness.index import Done, stand
from harness.states import State
from harness.store import Store, digest
from harness.tracking.run_record import (
    DIGEST,
    SUPERSEDED,
    RunRecord,
    rerun_id,
    run_records,
    split_run_id,
    stage_infos,
)
from harness.tracking.settings import Project, Settings, size_warning
from harness.tracking.wandb_process import RUNS_PER_CHILD, WandbProcess, WandbUnavailable
from harness.words import count

BATCH = 100
"""Stages that are sent, and then looked for on the server, together."""
LIVE_RUNS = 32
"""Running trainings that are shown live: each costs the server a request every half minute."""
CONFIRMATIONS = 3
"""Times that the server is asked for what it has taken but may not show yet."""
SHORTEST_PAUSE, LONGEST_PAUSE, SHARE = 5.0, 60.0, 0.05
"""Seconds between two passes, and the share of the time that passes may take."""
LONGEST_PASS = 30.0
"""Seconds of sending after which running trainings are looked at again."""
PATIENCE = 3
"""Failed passes in a row after which it gives up, if there is nothing else to wait for."""
FIRST_BACK_OFF, LONGEST_BACK_OFF = 2.0, 300.0
"""Seconds to wait after one failed pass, and after many."""


@dataclass
class Progress:
    """What one pass found and did."""

    runs: int = 0
    """Runs that the store has something to say of, as far as it was read."""
    sent: int = 0
    """Those of which the server shows all that there is to say now."""
    unfinished: int = 0
    """Stages that will change by themselves."""
    missing: dict[str, str] = field(default_factory=dict)
    """Run -> what the server lacks of it, or why it refused it."""
    cut_short: bool = False
    fault: str = ""
    """What ended the pass before its time."""

    @property
    def complete(self) -> bool:
        """Return whether the server has all that there is to say now."""
        return not self.fault and not self.missing


@dataclass
class Mirror:
    """One project, and what its server is known to have."""

    store: Store
    settings: Settings
    project: Project
    process: WandbProcess
    log: Callable[[str], None]
    live: bool = False
    """Whether running trainings are shown too."""
    verify: bool = False
    """Whether rows are compared one by one also where all seems to have come."""
    on_progress: Callable[[Progress], None] = lambda progress: None
    active: float = 0.0
    """The time, on the monotonic clock, of the server's last answer."""
    _observer: Observer = field(default_factory=Observer)
    _listed: bool = False
    """Whether the server was asked for all runs."""
    _remote: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Run -> what the server showed last."""
    _reruns: dict[str, int] = field(default_factory=dict)
    """Run as it was first -> its newest rerun."""
    _records: dict[str, set[str]] = field(default_factory=dict)
    """Stage -> ids of its records."""
    _settled: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Stage -> signature of what the server has whole, and how many runs that is."""
    _shown: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Run -> how many rows the server was given of it, and their hash."""
    _open: set[str] = field(default_factory=set)
    """Runs that the process holds open, which are shown live."""
    _failed: dict[str, tuple[int, float, str]] = field(default_factory=dict)
    """Run that could not be sent -> how often in a row, when it is tried again on the monotonic clock, and why."""
    _logged: set[str] = field(default_factory=set)

    def follow(self, lease: Lease, stopped: threading.Event, until_stopped: bool = False) -> Progress:
        """Send what is new until everything has ended and come; once stopped, until what there is has come.

        `until_stopped`: going on although everything has ended, since there may be more.
        """
        failures = 0
        while True:
            last, began = stopped.is_set(), time.monotonic()
            progress = self.run_pass(lease, ask_again=last)
            if progress.cut_short and lease.held:
                continue
            failures = 0 if progress.complete else failures + 1
            nothing_else = last or (progress.unfinished == 0 and not progress.fault and not until_stopped)
            if not lease.held or (nothing_else and (progress.complete or failures >= PATIENCE)):
                return progress
            regular = max(SHORTEST_PAUSE, min(LONGEST_PAUSE, (time.monotonic() - began) / SHARE))
            pause = back_off(failures) if nothing_else or progress.fault else regular
            (threading.Event() if last else stopped).wait(pause)

    def run_pass(self, lease: Lease, ask_again: bool = False) -> Progress:
        """Send all that is new; `ask_again`: not believing that the server still has what it had.

        A fault of the server ends it early; the next pass goes on from there.
        """
        progress, began = Progress(), time.monotonic()
        try:
            if ask_again or not self._listed:
                self.list_runs()
            stages = self._changed(progress)
            while batch := list(itertools.islice(stages, BATCH)):
                if not lease.held:
                    raise WandbUnavailable("another process mirrors this project now")
                self._send(batch, progress)
                self.on_progress(progress)
                if self.live and not ask_again and time.monotonic() - began > LONGEST_PASS:
                    progress.cut_short = True  # running trainings are looked at again
                    break
            self._tag_superseded()
        except (WandbUnavailable, OSError) as error:  # the server's fault, or that of the store's file system
            self._close()
            self._listed, progress.fault = False, str(error)
            self.say(f"wandb: {self.project}: {error}; trainings go on, what is missing is sent later")
        for why in dict.fromkeys(progress.missing.values()):
            runs = [run for run, reason in progress.missing.items() if reason == why]
            self.say(f"wandb: {count(len(runs), 'run')} left for later: {why} ({runs[0]})")
        return progress

    def summary(self, progress: Progress, later: str) -> str:
        """Return how a mirror ended, in one line; `later`: what sends the rest."""
        rest = "" if progress.complete else f"; {progress.fault or 'the rest was refused'}: {later}"
        return f"wandb: {self.project.path} has {progress.sent} of {count(progress.runs, 'run')}{rest}"

    def compare(self) -> Progress:
        """Return what the server lacks of the runs that are final; nothing is sent. Raises WandbUnavailable."""
        progress = Progress()
        self.list_runs()
        for _, _, records in self._changed(progress):
            lacks = {r.id: lacking for r in records if (lacking := difference(r, self._remote.get(r.id)))}
            progress.missing |= lacks
            progress.sent += len(records) - len(lacks)
        return progress

    @property
    def log_file(self) -> Path:
        """Return the file in the store that keeps what was said."""
        return self.project.folder(self.store) / "log"

    def say(self, message: str) -> None:
        """Log a message, here and in the store, unless it was logged before."""
        if message not in self._logged:
            self._logged.add(message)
            with contextlib.suppress(OSError), self.log_file.open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}\n")
            self.log(printable(message))

    def newest(self, run: str) -> str:
        """Return the id of a run's newest rerun."""
        return rerun_id(run, self._reruns.get(run, 0))

    def _changed(self, progress: Progress) -> Iterator[tuple[str, str, list[RunRecord]]]:
        """Yield stages that the server may lack something of, running ones first: key, signature, records to send."""
        plans = self.settings.plans(self.store, self.say)
        infos = stage_infos(plans)
        if warning := size_warning(self.project.name, len(infos)):
            self.say(f"wandb: {warning}")
        done: dict[str, Done] = {}
        states: dict[str, State] = {}
        for saved in plans:
            standing = stand(saved.plan, self.store, self._observer, rebuild=self.verify, keep=False)
            done, states = done | standing.done, states | standing.states
            going = {key for key, state in standing.states.items() if key in infos and not state.over}
            progress.unfinished += len(going - standing.blocked(saved.plan).keys())
        opened: set[str] = set()
        for key in sorted(infos, key=lambda key: key not in states or states[key].name != "running"):
            self.active, info = time.monotonic(), infos[key]
            state = None if key in done else states.get(key, State("todo", 0))
            if state is None:
                what = [done[key].edition, done[key].sha256]
            elif state.generation:
                what = [*vars(state).values(), *checkpoint_names(self.store.folder(info.stage.kind, key))]
            else:
                continue
            signature = digest([what, info.config, info.tags, info.name, info.group])
            if (settled := self._settled.get(key)) and settled[0] == signature:
                progress.runs, progress.sent = progress.runs + settled[1], progress.sent + settled[1]
                continue
            records = run_records(self.store, info, state, f"{self.project}/reportlist", self.newest)
            self._records[key] = {record.id for record in records}
            if self.live and len(self._open | opened) < LIVE_RUNS:
                opened |= {record.id for record in records if record.state == "running"}
            wanted = [record for record in records if record.final or record.id in self._open | opened]
            progress.runs += len(wanted)
            if wanted:
                yield key, signature, wanted

    def list_runs(self) -> int:
        """Ask the server for all runs of the sweeps; return how many there are."""
        self._remote, self._reruns = {}, {}
        self._settled.clear()
        self._ask({"tags": {"$in": self.settings.sweeps(self.store)}})
        for run in self._remote:
            first, rerun = split_run_id(run)
            self._reruns[first] = max(rerun, self._reruns.get(first, 0))
        self._listed = True
        return len(self._remote)

    def _ask(self, filters: Mapping[str, Any]) -> None:
        """Ask the server what it has of some runs."""
        found = self._call("list_runs", project=self.project.path, filters=filters, digest_key=DIGEST)
        self._remote |= {run["id"]: run for run in found}

    def _call(self, operation: str, **arguments: Any) -> Iterator[Any]:
        for item in self.process.call(operation, **arguments):
            self.active = time.monotonic()
            yield item

    def _send(self, batch: Sequence[tuple[str, str, list[RunRecord]]], progress: Progress) -> None:
        """Send the records of some stages, look whether they have come, and remember those that have."""
        batch = [(key, signature, list(map(self._without_conflict, some))) for key, signature, some in batch]
        records = [record for _, _, some in batch for record in some]
        new, now = [record for record in records if not self._has(record)], time.monotonic()
        waiting = {r.id for r in new if r.id in self._failed and self._failed[r.id][1] > now}
        errors = self._write([record for record in new if record.id not in waiting])
        lacking = self._confirm([record for record in new if record.final and errors.get(record.id) == ""])
        for run, reason in ({run: error for run, error in errors.items() if error} | lacking).items():
            times = self._failed[run][0] + 1 if run in self._failed else 1
            self._failed[run] = times, time.monotonic() + back_off(times), reason
            waiting.add(run)
        self._failed = {
            run: failure for run, failure in self._failed.items() if run in waiting or errors.get(run) != ""
        }
        missing = {run: self._failed[run][2] for run in waiting}
        progress.missing |= missing
        progress.sent += len(records) - len(missing)
        for key, signature, some in batch:
            self._records[key] |= {record.id for record in some}
            if all(record.final and not difference(record, self._remote.get(record.id)) for record in some):
                self._settled[key] = signature, len(some)

    def _without_conflict(self, record: RunRecord) -> RunRecord:
        """Return a record, as the next rerun where the server has other rows of the run than the store."""
        if record.id not in self._shown:
            remote = self._remote.get(record.id)
            if remote is None or not remote["rows"] or not (self.verify or difference(record, remote)):
                return record
            rows = list(self._call("read_rows", project=self.project.path, run=record.id))
            if len(rows) > len(record.rows) and not record.final and rows[: len(record.rows)] == list(record.rows):
                return record  # it went on from an earlier checkpoint: whether it comes to the same is seen later
            lost = self.verify and set(remote["digests"]) == {record.digest}  # all came but the rows that are not there
            same = rows == list(record.rows[: len(record.rows) if lost else len(rows)])
            self._shown[record.id] = len(rows), record.prefix(len(rows)) if same else ""
        rows_shown, prefix = self._shown[record.id]
        if record.prefix(rows_shown) == prefix or (len(record.rows) < rows_shown and not record.final):
            return record
        first, rerun = split_run_id(record.id)
        self._reruns[first] = rerun + 1
        self._open.discard(record.id)
        self._records[first.partition("-")[0]].discard(record.id)
        return self._without_conflict(replace(record, id=rerun_id(first, rerun + 1)))

    def _has(self, record: RunRecord) -> bool:
        """Return whether the server has all of a run that there is now."""
        if record.final:
            return not difference(record, self._remote.get(record.id))
        shown = self._shown.get(record.id, (self._remote.get(record.id, {"rows": 0})["rows"], ""))[0]
        is_open = record.state == "running" and record.id in self._open
        return shown > len(record.rows) or (is_open and shown == len(record.rows))

    def _write(self, records: Sequence[RunRecord]) -> dict[str, str]:
        """Write runs; return what went wrong of each, or nothing. Raises WandbUnavailable."""
        if not records:
            return {}
        if self.process.runs > RUNS_PER_CHILD:
            self._close()
        self.process.runs += sum(record.id not in self._open for record in records)
        payload = [record.payload for record in records]
        words = {"entity": self.project.entity, "project": self.project.name}
        errors: dict[str, str] = dict(self._call("write_runs", records=payload, **words))
        for record in records:
            if not errors[record.id]:
                self._shown[record.id] = (len(record.rows), record.prefix(len(record.rows)))
                (self._open.add if record.state == "running" else self._open.discard)(record.id)
        if any(errors.values()):
            self._close()  # what is left in it of a run that failed must not meet the next try
            self._ask({"name": {"$in": [records[0].id]}})  # raises where it is the server that fails, and no single run
        return errors

    def _confirm(self, records: Sequence[RunRecord]) -> dict[str, str]:
        """Ask the server for runs that were written; return what it lacks of those that have not come."""
        lacking = {record.id: "not on the server" for record in records}
        for pause in range(CONFIRMATIONS if records else 0):
            threading.Event().wait(pause)
            self._ask({"name": {"$in": list(lacking)}})
            found = {record.id: difference(record, self._remote.get(record.id)) for record in records}
            lacking = {run: lacks for run, lacks in found.items() if lacks}
            if not lacking:
                break
        return lacking

    def _tag_superseded(self) -> None:
        """Tag the runs on the server that stand for no attempt in the store any more, or were begun anew."""
        old = [
            run
            for run, shown in self._remote.items()
            if SUPERSEDED not in shown["tags"] and run not in self._records.get(run.partition("-")[0], {run})
        ]
        for run, error in self._call("add_tag", project=self.project.path, runs=old, tag=SUPERSEDED) if old else ():
            self._remote[run] = {**self._remote[run], "tags": [*self._remote[run]["tags"], SUPERSEDED]}
            if error:
                self.say(f"wandb: run {run} could not be tagged {SUPERSEDED}: {error}")

    def _close(self) -> None:
        self.process.close()
        self._open.clear()


def difference(record: RunRecord, remote: Mapping[str, Any] | None) -> str:
    """Return what the server lacks of a run that is final; empty where it shows all of it."""
    if remote is None:
        return "not on the server"
    if remote["rows"] != len(record.rows):
        return f"{remote['rows']} of {count(len(record.rows), 'row')}"
    if remote["state"] == "running":
        return "not ended there"
    same = set(remote["digests"]) == {record.digest} and list(remote["tags"]) == list(record.tags)
    return "" if same else "with an older config, summary or tags"


def back_off(failures: int) -> float:
    """Return the seconds to wait after so many failed passes in a row."""
    return min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2.0 ** min(failures - 1, 10)) if failures else 0.0


@contextlib.contextmanager
def connected(store: Store, settings: Settings, log: Callable[[str], None]) -> Iterator[Mirror]:
    """Give a project's mirror while the block runs. Raises WandbUnavailable where its server cannot be reached."""
    process = WandbProcess()
    try:
        ((base_url, entity),) = process.call("identify", entity=settings.entity)
        yield Mirror(store, settings, Project(base_url, entity, settings.project), process, log)
    finally:
        process.close()


@contextlib.contextmanager
def leased(mirror: Mirror, stopped: threading.Event) -> Iterator[Lease]:
    """Hold a project's lease while the block runs; another mirror of the store to it is waited for until `stopped`.

    Raises UserError where it goes on after that.
    """
    lease = Lease(mirror.project.folder(mirror.store))
    while not lease.acquire():
        holder, does = lease.holder, f"sends the runs of this store to {mirror.project.path}"
        if not (lease.beating or (holder and holder.is_here)):
            mirror.say(f"wandb: {lease.holder_name} may be gone; waiting for its lease to end")
        elif stopped.is_set():
            raise UserError(f"{lease.holder_name} {does} already; `harness wandb status` shows what is missing")
        else:
            mirror.say(f"wandb: {lease.holder_name} {does}, and takes this sweep along")
        threading.Event().wait(0.5)
    try:
        yield lease
    finally:
        lease.release()
