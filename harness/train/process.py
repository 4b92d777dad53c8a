"""The trainer: a process with torch loaded that runs one stage after another for its supervisor, and dies with it."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import os
import platform
import queue
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from harness import __version__
from harness.errors import UserError
from harness.memory import forget_peak, peak
from harness.plugins import forget_frozen
from harness.provenance import source_digest
from harness.store import file_sha256, write_whole
from harness.train.convolution_check import RELIED, wrong
from harness.train.group import joined
from harness.train.loop import Diverged
from harness.train.order import Corrupt, Order
from harness.train.stages import run_stage
from harness.train.watch import Desk, Stopped, Watch
from harness.trainer_signals import DUMP, HEEDED

TROUBLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS})
"""Errors of the file system, which say nothing about the stage."""

OUT_OF_MEMORY = re.compile(r"can't allocate memory|CUDA (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED")
"""How torch's allocator on the CPU, and libraries on the GPU, say it in a plain RuntimeError."""
FULL = 2**28
"""Bytes: with less of a GPU free, an internal error of cuDNN is taken for one of memory, which it does not name."""
PEER = re.compile(
    r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|Timed out waiting|NCCL|recv|Socket|TCPStore|\bgloo\b"
)
"""How torch.distributed says that another process has left: a consequence, never the cause."""
OF_THE_CODE = re.compile(
    r"device-side assert|illegal (instruction|memory access)|misaligned address|invalid (argument|configuration)"
)
"""Errors that an accelerator reports and that a kernel given wrong numbers makes."""


STDERR = 2
"""The file that native code complains on, whatever `sys.stderr` is."""


class Control(Desk):
    """The trainer's side of the pipe: orders in, progress and outcomes out."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__(self._send)
        self.pipe = pipe
        self.orders: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def listen(self) -> None:
        """Receive until the supervisor is gone, and end the whole process then: what it did could not be published."""
        while True:
            try:
                message = json.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):
                os._exit(1)
            if "stop" in message:
                self.stop.set()
            else:
                self.orders.put(read_order(message))

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it is gone: listen() is about to end this process
            self.pipe.send_bytes(json.dumps(message).encode())


def read_order(message: Mapping[str, Any]) -> Order:
    """Return the order that a message is."""
    parents = {role: (str(path), str(sha256)) for role, (path, sha256) in message["parents"].items()}
    return Order(**{**message, "parents": parents})


def serve_here(message: Mapping[str, Any], desk: Desk) -> None:
    """Run an order that a supervisor in this same process gives, its words and tracebacks on the terminal."""
    desk.tell(at="end", **_outcome(read_order(message), desk, shown=True))


def attend(stop: threading.Event, listen: Callable[[], None]) -> None:
    """Heed the signals of a scheduler, and listen, in a thread, to whom this process works for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the supervisor decides
    for number in HEEDED:
        signal.signal(number, lambda *_: stop.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
    faulthandler.register(DUMP, file=STDERR, all_threads=True, chain=True)  # chain: and then the process ends
    threading.Thread(target=listen, daemon=True).start()


def serve(pipe: Connection, device: str, check: int = 0) -> None:
    """Run a trainer: orders from the pipe, one after another, until the pipe closes.

    `check`: how many threads convolutions are tried with first, on a CPU whose torch nothing is known of.
    """
    control = Control(pipe)
    attend(control.stop, control.listen)
    prepare_process()
    if said := unfit(device):
        control.tell(at="unfit", message=said)
        return
    if check:
        control.tell(at="checking")  # a wrong kernel may end this process, or SIGPROF one that hangs
        if said := next(wrong(RELIED, check), ""):
            control.tell(at="unsound", message=said)
            return
    control.tell(at="ready", source=source_digest())
    while True:
        order = control.orders.get()
        end = run_order(order, control)
        control.stop.clear()
        control.tell(at="end", **end)


def unfit(device: str) -> str:
    """Return why a device cannot be used here, nothing where it can."""
    try:
        torch.ones(1, device=device).add_(1).cpu()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return ""


def prepare_process() -> None:
    """Set torch to what every stage relies on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    if not faulthandler.is_enabled():
        faulthandler.enable(file=STDERR)  # where a kernel crashes, Python's stacks are told; a stage's go to its log
    os.environ.setdefault("LIBC_FATAL_STDERR_", "1")  # older C libraries tell of a broken heap on the terminal alone
    set_mode(fast=False)
    # Else deterministic algorithms fill all new memory with NaN first: up to 29 % of a step's time on an H100.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # set by its own setter
    torch.backends.cudnn.allow_tf32 = False  # on by default: fp32 would mean another precision on some devices


def set_mode(fast: bool) -> None:
    """Let kernels be chosen for their speed alone, or only those that compute the same to the bit every time."""
    torch.use_deterministic_algorithms(not fast, warn_only=True)
    torch.backends.cudnn.benchmark = fast


def run_order(order: Order, control: Desk) -> dict[str, Any]:
    """Run one order, what it prints going into its log."""
    try:
        with _log(_log_of(order)):
            return _outcome(order, control)
    except OSError as error:  # the log itself cannot be written
        return {"outcome": "trouble", "message": str(error)}


def _outcome(order: Order, control: Desk, shown: bool = False) -> dict[str, Any]:
    """Run one order; whatever happens becomes a message."""
    try:
        with contextlib.ExitStack() as after:
            after.callback(forget_frozen)
            return _made(order, control)
    except Stopped:
        return {"outcome": "stopped", "message": "asked to stop"}
    except Corrupt as error:
        return {"outcome": "corrupt", "message": str(error), "role": error.role}
    except Diverged as error:
        return {"outcome": "diverged", "message": str(error), "epoch": error.epoch + 1, "step": error.step + 1}
    except UserError as error:
        return {"outcome": "failed", "cause": "input", "message": str(error)}
    except MemoryError as error:
        return {"outcome": "failed", "cause": "oom", "resource": "ram", "message": f"out of memory: {error}"}
    except Exception as error:
        _note(order, traceback.format_exc())
        if shown:
            traceback.print_exc()
        if PEER.search(str(error)) and order.world > 1:
            return {"outcome": "died", "peer": True, "message": f"another process of this training is gone: {error}"}
        if isinstance(error, SafetensorError) or (isinstance(error, OSError) and _of_the_store(error, order)):
            return {"outcome": "trouble", "message": str(error)}
        return failure(error)


def _of_the_store(error: OSError, order: Order) -> bool:
    """Return whether an error tells of the file system: by its number, or since it met a file of the harness's own."""
    own = (order.store, order.scratch or order.store)
    return error.errno in TROUBLE or str(error.filename or "").startswith(own)


def failure(error: Exception) -> dict[str, Any]:
    """Tell an exception's cause: memory ran out, the device failed, or the code did."""
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in where)
    message = f"{type(error).__name__}: {error}{place}"
    said = str(error).partition("\n")[0]  # below, torch advises on device-side assertions whatever the error is
    if isinstance(error, torch.OutOfMemoryError) or OUT_OF_MEMORY.search(said) or _cudnn_starved(said):
        resource = "gpu" if re.search("CUDA|CUBLAS|CUDNN", said) else "ram"
        return {"outcome": "failed", "cause": "oom", "resource": resource, "message": message}
    if isinstance(error, torch.AcceleratorError) and not OF_THE_CODE.search(said):
        return {"outcome": "fault", "cause": "device", "message": message}
    return {"outcome": "failed", "cause": "code", "message": message}


def _cudnn_starved(said: str) -> bool:
    """Return whether cuDNN failed on a GPU that has no memory left for it."""
    if "CUDNN_STATUS_INTERNAL_ERROR" not in said:
        return False
    with contextlib.suppress(RuntimeError):
        return torch.cuda.mem_get_info()[0] < FULL
    return False


def testify(order: Order, end: dict[str, Any]) -> None:
    """Write down how a rank failed: who leads it may be gone before it hears."""
    with contextlib.suppress(OSError):
        text = json.dumps({"rank": order.rank, "time": time.time(), **end}, indent=1)
        write_whole(Path(order.attempt) / f"rank-{order.rank}.json", text.encode())


def _note(order: Order, text: str) -> None:
    with contextlib.suppress(OSError), open(_log_of(order), "a") as file:
        file.write(text)


def _log_of(order: Order) -> Path:
    return Path(order.attempt) / (f"log-{order.rank}" if order.rank else "log")


def _made(order: Order, control: Desk) -> dict[str, Any]:
    """Run an order and return the message of its success."""
    began = time.monotonic()
    worked = time.process_time()
    torch.set_num_threads(order.threads)
    set_mode(order.fast)
    watch = Watch(order, control)
    if order.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    forget_peak()
    with joined(order, (Stopped, Diverged)) as group:
        outcome = run_stage(order, watch, group)
        most = group.most(peak())
    watch.checkpoints.settle()
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - worked
    if order.rank:
        return {"outcome": "made"}
    return {
        "outcome": "made",
        "draft": outcome.draft.name,
        "sha256": file_sha256(outcome.draft),
        "bytes": outcome.draft.stat().st_size,
        "metrics": outcome.metrics,
        "stamp": stamp(order) | watch.stamp,
        "resumed_at": watch.resumed_at,
        "resumed": watch.resumed,
        "first_step": watch.first_step,
        "writing": watch.writing,
        "peak_memory": most * (int(os.environ.get("LOCAL_WORLD_SIZE", order.world)) if order.world > 1 else 1),
        "device_memory": torch.cuda.max_memory_allocated() if order.device.startswith("cuda") else 0,
        "seconds": seconds,
        "device_seconds": seconds if order.device != "cpu" else cpu_seconds,
        "cpu_seconds": cpu_seconds,
    }


def stamp(order: Order) -> dict[str, Any]:
    """Return what describes how a number came about without defining it."""
    device = torch.device(order.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    local = order.world > 1 and order.spec.get("protocol", {}).get("batch_norm") == "local"
    return {
        "device": device.type,
        "device_name": name,
        "threads": order.threads,
        "world": order.world,
        **({"batch_norm": "local"} if local else {}),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "harness": __version__,
    }


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """Send everything that this process prints, C code included, into a file; an empty one is removed."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), STDERR)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
