"""Trivial stages for the engine's tests: real workers, whose trainer needs no torch and writes a stage's key."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.claims import Claim
from harness.errors import UserError
from harness.events import in_words
from harness.plan import Plan, Stage
from harness.planfile import NEWEST, SavedPlan, dump, read_plan
from harness.shift import Limits, work
from harness.store import Store, digest, write_whole
from harness.supervisor import Setup, Trouble
from harness.trainer import Trainer

NAME = "trivial"


def content(key: str) -> bytes:
    """Return what a trivial stage makes."""
    return key.encode() * 8


def trivial_plan(stages: int, chains: int) -> Plan:
    """Return so many mask stages, most of them in chains as long as one another, and a data stage above all."""
    plan = Plan(NAME)

    def add(kind: str, spec: dict[str, Any], parents: dict[str, str]) -> str:
        key = digest({"kind": kind, "parents": parents, **spec})
        plan.stages[key] = Stage(key, kind, spec, parents, f"{kind} {spec}")
        return key

    data = add("data", {"n": 0}, {})
    ends = dict.fromkeys(range(chains), data)
    for number in range(1, stages):
        chain = number % chains
        role = "data" if ends[chain] == data else "mask"
        ends[chain] = add("mask", {"n": number}, {role: ends[chain]})
    plan.leaves = list(ends.values())
    return plan


def save(plan: Plan, store: Store) -> None:
    """Write a plan where workers look for it."""
    folder = store.sweep(plan.name)
    folder.mkdir(parents=True)
    write_whole(folder / NEWEST, dump(SavedPlan(Path(), plan, [])))


def serve(pipe: Connection, device: str) -> None:
    """Be a trainer: `device` says how many seconds a stage takes, `=9`, or takes at most, `9`; or how it fails."""
    pipe.send_bytes(json.dumps({"at": "ready"}).encode())
    pause = threading.Event()
    while True:
        try:
            order = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        if "stop" in order:
            continue
        pipe.send_bytes(json.dumps(outcome(order, device, pause)).encode())


def tried(pipe: Connection, device: str, how: str) -> None:
    """Be a trainer that tries out convolutions, which are right, wrong, or end it."""
    pipe.send_bytes(json.dumps({"at": "checking"}).encode())
    if how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
    said = {"at": "ready"} if how == "right" else {"at": "unsound", "message": how}
    pipe.send_bytes(json.dumps(said).encode())
    pipe.recv_bytes()


def fallen(pipe: Connection, device: str) -> None:
    """Be a trainer that is killed as it starts."""
    os.kill(os.getpid(), signal.SIGKILL)


def outcome(order: dict[str, Any], how: str, pause: threading.Event) -> dict[str, Any]:
    """Do a stage's work: wait a little and write its file; or fail as told."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("fault"):
        where = {"host": "n7", "boot": "of n7"} if how == "fault of a rank on n7" else {}
        return {"at": "end", "outcome": "fault", "cause": "device", "message": "uncorrectable ECC error", **where}
    if how == "oom":
        return {"at": "end", "outcome": "failed", "cause": "oom", "resource": "ram", "message": "out of memory"}
    pause.wait(float(how[1:]) if how.startswith("=") else random.random() * float(how))
    draft = Path(order["attempt"]) / "draft"
    draft.write_bytes(content(order["key"]))
    return {
        "at": "end",
        "outcome": "made",
        "draft": "draft",
        "sha256": hashlib.sha256(content(order["key"])).hexdigest(),
        "bytes": len(content(order["key"])),
        "metrics": {},
        "stamp": {"device": "cpu", "threads": 1},
        "resumed_at": 0,
        "resumed": 0,
        "seconds": 0.0,
        "device_seconds": 0.0,
    }


def trainer(device: str) -> Trainer:
    """Start a trivial trainer."""
    return Trainer(device, serve, "tests.harness.trivial")


def skewed(seconds: float) -> None:
    """Set this process's wall clock, and the times of the claims it beats, off by so many seconds."""
    true, beat = time.time, Claim.beat

    def shifted(claim: Claim) -> bool:
        going_on = beat(claim)
        now = true() + seconds
        os.utime(claim.folder.claim_path(claim.generation), (now, now))
        return going_on

    time.time = lambda: true() + seconds
    Claim.beat = shifted  # type: ignore[method-assign]


def far(seed: int) -> None:
    """Put this process's store behind a network: replies are lost, and what others have linked is seen late.

    A link or a rename may be made and still fail; the first of each does so for sure. A claim or a result of another
    process is not listed, found or opened for a draw of up to 0.4 s.
    """
    import io

    draw, own, lost = random.Random(seed), set[str](), set[str]()
    link, replace, stat, listdir, io_open = os.link, os.replace, os.stat, os.listdir, io.open

    def reply(what: str, chance: float, *codes: int) -> None:
        if what not in lost or draw.random() < chance:
            lost.add(what)
            code = codes[draw.random() < 0.2] if len(codes) > 1 else codes[0]
            raise OSError(code, os.strerror(code))

    def hidden(path: Any) -> bool:
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if not os.path.basename(name).startswith(("claim-", "result-")) or name in own:
            return False
        try:
            age = time.time() - stat(name).st_ctime
        except OSError:
            return False
        return age < random.Random(f"{name} {seed}").uniform(0, 0.4)

    def linked(source: Any, target: Any, **more: Any) -> None:
        link(source, target, **more)
        own.add(os.fspath(target))
        reply("link", 0.05, errno.EEXIST, errno.EIO)

    def replaced(source: Any, target: Any, **more: Any) -> None:
        replace(source, target, **more)
        reply("rename", 0.15, errno.ENOENT)

    def seen(real: Any) -> Any:
        def looked(path: Any, *more: Any, **named: Any) -> Any:
            if hidden(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
            return real(path, *more, **named)

        return looked

    def listed(path: Any = ".") -> list[Any]:
        return [name for name in listdir(path) if not hidden(os.path.join(os.fspath(path), name))]

    os.link, os.replace, os.stat, os.listdir, io.open = linked, replaced, seen(stat), listed, seen(io_open)


def main(
    store: str,
    how: str,
    lease: str,
    memory: str = "0",
    host: str = "",
    skew: str = "0",
    seconds: str = "0",
    seed: str = "",
) -> int:
    """Be a worker; `seconds`: its time limit, 0 for none; `seed`: of what a far file system does to it."""
    if host:
        socket.sethostname(host)
    if float(skew):
        skewed(float(skew))
    if seed:
        far(int(seed))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    place = Store(Path(store))
    setup, limits = Setup(how, 1, 300.0, float(lease), int(memory), time=float(seconds)), Limits(float(seconds) or None)
    try:
        work(read_plan(place.sweep(NAME) / NEWEST), place, setup, limits, stop, in_words, trainer)
    except (Trouble, UserError, OSError) as error:
        in_words(event="note", message=str(error))
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
