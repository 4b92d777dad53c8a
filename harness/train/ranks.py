"""The ranks of a training: the processes that train one network together, and the leader that launches them.

A leader launches the ranks of each training anew: on its own node by `torch.multiprocessing.start_processes`, over
several nodes by one Slurm step, `srun --overlap`, with a task a rank. To its supervisor it is one trainer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Protocol, cast

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined] # public, though not in its __all__
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from harness.allocation import CONTAINER
from harness.machine import machine
from harness.provenance import source_digest
from harness.store import read_json
from harness.train.group import JOINING, LOOPBACK
from harness.train.order import Order
from harness.train.process import Control, attend, prepare_process, read_order, run_order, testify, unfit
from harness.train.watch import Desk
from harness.trainer_signals import DUMP, HEEDED

AGREED = frozenset({"made", "stopped", "diverged"})
"""Outcomes that all ranks come to together."""
LAST_WORDS = 3.0
"""Seconds that the other ranks have to say how they ended once one has failed, before they are asked to leave; as many
later they are killed."""
A_LOOK = 0.25
"""Seconds between two looks at the ranks."""
KILLED = {signal.strsignal(number): number.name for number in signal.Signals}
"""How srun tells of a task that a signal ended."""
FELL = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (.+?)(?: \(core dumped\))?$", re.MULTILINE)
HELD = f"import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {{{', '.join(str(int(n)) for n in HEEDED)}}}); "
"""A task holds back the signals that ask it to save until it listens to them; before, they would end it."""


def run_rank(message: Mapping[str, Any], desk: Desk) -> dict[str, Any]:
    """Run an order as the rank that this process is; return how it ended, in rank 0 with what it made.

    Which rank it is stands in RANK, WORLD_SIZE and LOCAL_RANK, and where the ranks meet in MASTER_ADDR and MASTER_PORT,
    as torchrun and Ray Train set them. Where the process group is initialised already, that one is used and left as it
    is; it needs gloo for tensors on the CPU: `cpu:gloo,cuda:nccl`. `prepare_process` of harness.train.process must have
    set up this process before.

    Only rank 0 tells `desk` of progress. `desk.stop`, set in any rank, makes all of them save and leave. A rank that
    fails writes attempt/rank-R.json, of which `first_cause` finds the one to report.
    """
    if dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
    else:
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = message["device"]
    if world > 1:
        device = own_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    order = read_order({**message, "rank": rank, "world": world, "device": device})
    end = run_order(order, desk)
    if end["outcome"] not in AGREED:
        end |= {"host": machine()[0], "boot": machine()[1]}
        if world > 1:
            testify(order, end)
    return end


def own_device(device: str, local: int) -> str:
    """Return the device of a node's rank: a GPU of its own, where the process sees several."""
    return f"cuda:{local}" if device == "cuda" and torch.cuda.device_count() > max(local, 1) else device


def first_cause(attempt: Path, world: int, fallen: Mapping[int, dict[str, Any]] | None = None) -> dict[str, Any] | None:
    """Return how a training failed: the first testimony of a rank that does not only miss another one.

    `fallen`: how ranks ended that could say nothing, as their launcher saw it. None where no rank says anything.
    """
    found = {rank: read_json(attempt / f"rank-{rank}.json") for rank in range(world)}
    told = {rank: said for rank, said in found.items() if said}
    told |= {rank: {"outcome": "died", **said} for rank, said in (fallen or {}).items() if rank not in told}
    if not told:
        return None
    rank = min(told, key=lambda rank: (told[rank].get("peer", False), told[rank].get("time", float("inf"))))
    end = told[rank]
    where = f" on {end['host']}" if "host" in end else ""
    return {**end, "message": f"rank {rank} of {world}{where}: {end['message']}", "rank": rank}


class Ranks(Protocol):
    """The ranks of an order under way, as their leader sees them."""

    pids: Sequence[int]
    """Their processes on this machine."""
    fallen: dict[int, dict[str, Any]]
    """How ranks ended that could say nothing, once all are over."""
    said: str
    """What their launcher complained of."""

    def words(self) -> Iterator[dict[str, Any]]:
        """Yield what rank 0 says, until it has ended."""

    def over(self) -> bool:
        """Wait a moment; return whether all have ended. Where one has failed, the others are ended too."""

    def ask(self, what: str) -> None:
        """Ask all to `stop`: to save and leave, or to `dump`: to write their stacks into their logs, and end."""


class Forked:
    """The ranks of one node, forked off a server that has torch loaded."""

    said = ""

    def __init__(self, message: dict[str, Any], variables: Mapping[str, str], world: int) -> None:
        self.pipe, theirs = Pipe(duplex=False)
        line, self.line = Pipe(duplex=False)
        self.context = _forked(_forked_rank, message, variables, theirs, line, world=world)
        self.pids = self.context.pids()
        self.fallen: dict[int, dict[str, Any]] = {}
        theirs.close()
        line.close()

    def words(self) -> Iterator[dict[str, Any]]:
        """Yield what rank 0 says."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                yield json.loads(self.pipe.recv_bytes())

    def over(self) -> bool:
        """Wait a moment."""
        try:
            return bool(self.context.join(A_LOOK, grace_period=LAST_WORDS))
        except (ProcessExitedException, ProcessRaisedException) as error:
            first = int(error.error_index)
            codes = [process.exitcode or 0 for process in self.context.processes]
            for rank in (first, *range(len(codes))):
                if codes[rank]:
                    self.fallen[rank] = _fall(machine()[0], codes[rank])
            self.line.close()  # to ranks that only seem to have ended, since the server that they are forked off has
            return True

    def ask(self, what: str) -> None:
        """Send a signal: the handler of a dump is C, and works where no Python runs."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, DUMP if what == "dump" else signal.SIGTERM)


def _fall(host: str, code: int) -> dict[str, Any]:
    """Say how a process ended that left no testimony."""
    if code >= 0:
        return {"host": host, "message": f"the process ended by itself with code {code}"}
    return _killed(host, signal.Signals(-code).name)


def _killed(host: str, name: str) -> dict[str, Any]:
    """Say that a process was ended by a signal."""
    return {"host": host, "message": f"the process was ended by {name}", "signal": name}


def _forked(function: Any, *args: Any, world: int) -> Any:
    """Start a process a rank; the function is called with its number first."""
    return start_processes(function, args, world, join=False, start_method="forkserver")  # type: ignore[no-untyped-call]


def _forked_rank(
    rank: int, message: dict[str, Any], variables: Mapping[str, str], pipe: Connection, line: Connection
) -> None:
    def send(said: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the leader is gone: so will be this process
            pipe.send_bytes(json.dumps(said).encode())

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):
            line.recv_bytes()
        os._exit(1)

    os.environ.update({**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    desk = Desk(send)
    attend(desk.stop, listen)
    sys.exit(_be_rank(message, desk))


def _be_rank(message: dict[str, Any], desk: Desk) -> int:
    """Run an order in a process that does nothing else; return its exit code."""
    prepare_process()
    end = run_rank(message, desk)
    if os.environ["RANK"] == "0":
        desk.tell(at="end", **end)
    return 0 if end["outcome"] in AGREED else 1


class Step:
    """The ranks on several nodes: the tasks of a job step, beside the one that the worker itself runs in."""

    pids: Sequence[int] = ()
    said = ""

    def __init__(self, message: dict[str, Any], variables: Mapping[str, str], world: int, nodes: int) -> None:
        command = step_command(world, nodes, message["threads"], "be_task()")
        self.complaints = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - until srun has ended
        line, stdin = os.pipe()
        self.pipe = os.fdopen(stdin, "w")
        given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": self.complaints, "errors": "replace"}
        self.process = subprocess.Popen(command, stdin=line, env={**step_environment(), **variables}, **given)
        os.close(line)
        self.fallen: dict[int, dict[str, Any]] = {}
        self.ending = False
        self.failed = 0.0
        """When rank 0 said that it has failed."""
        self._say(message)

    def _say(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            print(json.dumps(message), file=self.pipe, flush=True)  # to every task

    def words(self) -> Iterator[dict[str, Any]]:
        """Yield what rank 0 says; a line that is no message is a library's."""
        with cast("IO[str]", self.process.stdout) as out:
            for line in out:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    said = json.loads(line)
                    if said["at"] == "end" and said["outcome"] not in AGREED:
                        self.failed = time.monotonic()
                    yield said

    def over(self) -> bool:
        """Wait a moment. srun itself ends the others, but may wait long for a node that is gone."""
        try:
            self.process.wait(A_LOOK)
        except subprocess.TimeoutExpired:
            waited = time.monotonic() - self.failed if self.failed else 0.0
            if waited > 3 * LAST_WORDS:
                self.process.kill()
            elif waited > LAST_WORDS and not self.ending:
                self.ending = True
                self.process.terminate()  # once: each is a line of its complaints
            return False
        self.complaints.seek(0)
        with self.complaints:
            self.said = self.complaints.read()
        with contextlib.suppress(OSError):
            self.pipe.close()
        for host, tasks, how in FELL.findall(self.said):
            for task in _numbers(tasks):
                self.fallen.setdefault(task, self._fall(host, how))
        return True

    def _fall(self, host: str, how: str) -> dict[str, Any]:
        if how == "Out Of Memory":
            cause = {"outcome": "failed", "cause": "oom", "resource": "ram"}
            return {"host": host, "message": "the kernel ended the process: out of memory", **cause}
        if name := KILLED.get(how):
            return _killed(host, name)
        return {"host": host, "message": f"the process ended by itself: {how}; {self.said.strip()}"}

    def ask(self, what: str) -> None:
        """Send all tasks a line."""
        self._say({what: True})


def step_command(world: int, nodes: int, threads: int, call: str) -> list[str]:
    """Return what starts a task a rank, spread evenly over a job's nodes, that calls something of this module.

    However long after the first the last of them ends: a cluster may have another idea of that (`WaitTime`).
    """
    command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={world}", f"--ntasks-per-node={world // nodes}"]
    command += [f"--cpus-per-task={threads}", "--distribution=block", "--mpi=none"]
    command += ["--kill-on-bad-exit=1", "--wait=0", "--export=ALL", "--unbuffered"]
    command += [*shlex.split(os.environ.get(CONTAINER, "")), sys.executable, "-c"]
    return [*command, f"{HELD}from harness.train.ranks import be_task, try_task; {call}"]


def step_environment() -> dict[str, str]:
    """Return the environment of such a step: that of the worker's own binds to its CPUs alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_CPU_BIND")}


def _errors(said: str) -> str:
    """Return what srun, and what it started, complains of, in one line."""
    return "; ".join(dict.fromkeys(line.partition("error: ")[2] for line in said.splitlines() if "error: " in line))


def _numbers(ranges: str) -> Iterator[int]:
    """Yield the tasks that srun names, such as `0,2-3`."""
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def be_task() -> None:
    """Be a rank that is a task of a job step: the order and what is asked come on stdin, words go to stdout."""
    for name, its in (("RANK", "PROCID"), ("LOCAL_RANK", "LOCALID"), ("WORLD_SIZE", "NTASKS")):
        os.environ[name] = os.environ[f"SLURM_{its}"]
    out = os.fdopen(os.dup(1), "w", buffering=1)  # a training's own prints go into its log
    desk = Desk(lambda said: print(json.dumps(said), file=out))
    message = json.loads(sys.stdin.readline())

    def listen() -> None:
        for line in sys.stdin:
            if "dump" in json.loads(line):
                os.kill(os.getpid(), DUMP)
            desk.stop.set()
        os._exit(1)  # the leader is gone: what this makes could not be published

    attend(desk.stop, listen)
    code = _be_rank(message, desk)
    out.flush()
    os._exit(code)  # a process group that others have left can wait for them as it is taken down


def lead(pipe: Connection, device: str, world: int, nodes: int) -> None:
    """Launch the ranks of one order after another, until the pipe closes; what is no training has one rank, here."""
    control, dump = Control(pipe), threading.Event()
    attend(control.stop, control.listen)
    signal.signal(DUMP, lambda *_: dump.set())
    if said := _unfit(device, world) if nodes == 1 else _unfit_nodes(device, world, nodes):
        control.tell(at="unfit", message=said)
        return
    control.tell(at="ready", source=source_digest())
    while True:
        order = control.orders.get()
        ranks, place = (world, nodes) if order.kind == "train" else (1, 1)
        end = _led(order, control, dump, ranks, place)
        control.stop.clear()
        control.tell(**{**end, "at": "end"})


def _unfit(device: str, count: int) -> str:
    """Return why a rank's device cannot be used here, nothing where all can."""
    pipe, theirs = Pipe(duplex=False)
    context = _forked(_try, theirs, device, world=count)
    theirs.close()
    try:
        while not context.join(A_LOOK, grace_period=LAST_WORDS):
            pass
        return pipe.recv_bytes().decode()
    except EOFError:
        return ""
    except (ProcessExitedException, ProcessRaisedException) as error:
        return str(error)


def _try(rank: int, pipe: Connection, device: str) -> None:
    if said := unfit(own_device(device, rank)):
        pipe.send_bytes(said.encode())


def _unfit_nodes(device: str, world: int, nodes: int) -> str:
    """Return why ranks cannot be started on all nodes, or their devices not be used there, nothing where they can."""
    command = step_command(world, nodes, 1, f"try_task({device!r})")
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "errors": "replace"}
    try:
        done = subprocess.run(command, env=step_environment(), **given)
    except FileNotFoundError:
        return "a training over several nodes needs srun on the PATH of its worker, in a container too"
    return (_errors(done.stderr) or f"srun ended with code {done.returncode}") if done.returncode else ""


def try_task(device: str) -> None:
    """Be a task that only tries its device."""
    if said := unfit(own_device(device, int(os.environ["SLURM_LOCALID"]))):
        sys.exit(f"error: {machine()[0]}: {said}")


def _led(order: Order, control: Control, dump: threading.Event, world: int, nodes: int) -> dict[str, Any]:
    """Launch an order's ranks, pass on what rank 0 says, and return how the order ended."""
    host = LOOPBACK if nodes == 1 else socket.gethostname()
    store = open_store(host)
    variables = {"MASTER_ADDR": host, "MASTER_PORT": str(store.port), "WORLD_SIZE": str(world)}
    variables |= {"LOCAL_WORLD_SIZE": str(world // nodes), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    message = {**vars(order), "world": world}
    ranks: Ranks = Step(message, variables, world, nodes) if nodes > 1 else Forked(message, variables, world)
    control.tell(at="ranks", pids=ranks.pids)
    ends: list[dict[str, Any]] = []

    def pass_on() -> None:
        for said in ranks.words():
            if said["at"] == "end":
                ends.append(said)
            else:
                control.tell(**said)

    relay = threading.Thread(target=pass_on, daemon=True)
    relay.start()
    asked = 0.0
    while not ranks.over():
        if dump.is_set():
            ranks.ask("dump")
            dump.clear()
        elif control.stop.is_set() and time.monotonic() > asked:  # again: while it starts, a rank is deaf to signals
            ranks.ask("stop")
            asked = time.monotonic() + 1.0
    relay.join()
    end = ends[0] if ends else {"outcome": "died", "message": "rank 0 ended without a word"}
    if end["outcome"] in AGREED or (world == 1 and ends):
        return end
    cause = first_cause(Path(order.attempt), world, ranks.fallen) or end
    if nodes > 1 and cause.get("peer", cause is end):  # nobody has a cause of its own
        said = _errors(ranks.said) or cause["message"]
        return {"outcome": "lost", "message": f"a node of this training is gone: {said}"}
    return cause


def open_store(host: str) -> TCPStore:
    """Open the ranks' store at a free port: on the loopback interface alone for ranks of one node, else on all."""
    port, listener = 0, None
    if host == LOOPBACK:
        with socket.create_server((host, 0)) as server:
            port, listener = server.getsockname()[1], server.detach()
    return TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=JOINING, master_listen_fd=listener)
