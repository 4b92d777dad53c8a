"""What `harness doctor` looks at: python, torch, device, packages, data, the store's file system and clock, Slurm."""

from __future__ import annotations

import grp
import importlib.metadata
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.allocation import job, named_cluster, of_cluster, refuse_salloc_shell, shell, time_limit
from harness.catalog import DATASETS
from harness.errors import UserError
from harness.launch.local import this_machine
from harness.sources import present
from harness.store import place, sync, write_whole
from harness.terminal import command
from harness.words import count, size, span

SKEW = 5.0
"""Seconds that a machine's clock may differ from the store's without a word."""
SLOW = 0.2
"""Seconds of a small synced write above which a file system is called slow."""
LITTLE = 10 * 2**30
PATIENCE = 8
"""Seconds that a command of the scheduler's may take."""
OLDEST = (3, 11)
TORCH = """
import json, torch
names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
nccl = torch.distributed.is_nccl_available()
print(json.dumps([torch.__version__, torch.version.cuda, len(names), names, nccl]), flush=True)
from harness.train.convolution_check import tell
tell()
"""
CHECKED = 400.0
"""Seconds that loading torch and trying it out may take, on a cold network file system."""
ELSEWHERE_TORCH = (
    "install another version of torch, use a GPU or another machine; ONEDNN_MAX_CPU_ISA=AVX2 (or AVX512_CORE), set for "
    "every worker, may choose other kernels: run this again with it; see docs/reference/channels-last.md"
)
HANDS = 4
"""Threads that want the same name at once."""
NAMES = 16
ELSEWHERE = (
    "put the store on a file system that all nodes share and that keeps POSIX's word: NFS 4, Lustre, GPFS, BeeGFS, "
    "CephFS; no object store, sshfs or VirtualBox folder"
)
"""What is to be done where a file system breaks its word."""
INSTALL = "install it into this environment: python -m pip install"


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    name: str
    said: str
    grade: str = "ok"
    """ok, note or bad."""
    remedy: str = ""
    """What to do about it."""


def look(store: Path, scratch: str = "", device: str | None = None, data: Path = Path("data")) -> Iterator[Finding]:
    """Look at this machine and at the store as it is seen from here."""
    argv = [sys.executable, "-c", TORCH]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as torch:
        began = time.monotonic()  # it is loaded while the rest is looked at
        try:
            yield _here()
            yield _python()
            yield from _folder("store", store)
            if scratch:
                yield from _folder("scratch", Path(os.path.expandvars(scratch)))
            yield _data(data)
            yield from _scheduler()
            yield _package("Ray", "ray", "--via ray and searches", "'ray[tune]'")
            yield _wandb()
            yield from _torch(torch, began, device)
        finally:  # of whoever has seen enough
            torch.kill()


def _here() -> Finding:
    limit = time_limit()
    left = limit.left if limit else None
    within = f", job {job()}" + (f" with {span(left)} left" if left is not None else "") if job() else ""
    here = this_machine(1, None, None)
    said = f"{socket.gethostname()}{within}: {here.threads} cores, {size(here.memory)} of memory"
    try:
        refuse_salloc_shell()
    except UserError as error:
        return Finding("machine", said, "note", str(error))
    return Finding("machine", said)


def _python() -> Finding:
    said = f"{sys.version.split()[0]} at {sys.executable}"
    if sys.version_info < OLDEST:
        return Finding("python", said, "bad", f"Python {'.'.join(map(str, OLDEST))} or later is needed")
    return Finding("python", said)


def _torch(process: subprocess.Popen[str], began: float, device: str | None) -> Iterator[Finding]:
    """Look at torch in a process of its own: a broken build takes more down than itself."""
    try:
        told, complaint = process.communicate(timeout=CHECKED)
    except subprocess.TimeoutExpired:
        process.kill()
        told, complaint = process.communicate()
    lines = [json.loads(line) for line in told.splitlines()]
    if not lines:
        last = (complaint.strip().splitlines() or [ended(process.returncode)])[-1]
        remedy = f"{INSTALL} torch torchvision, in the build for this machine's CUDA"
        yield Finding("torch", f"cannot be loaded: {last}", "bad", remedy)
        return
    version, cuda, number, names, nccl = lines[0]
    yield Finding("torch", f"{version}, CUDA {cuda or 'none'}, loaded and tried in {time.monotonic() - began:.1f} s")
    yield from convolutions(lines[1:], process.returncode, complaint)
    if number:
        there = "there" if nccl else "missing"
        yield Finding("GPUs", f"{number}: {', '.join(sorted(set(names)))}; {_driver()}; NCCL {there}")
    elif (device or "").startswith("cuda") or shutil.which("nvidia-smi"):
        remedy = "ask for one in the profile (gpus: 1), or install the torch build that suits the driver's CUDA"
        yield Finding("GPUs", "torch sees none", "bad", remedy)
    else:
        yield Finding("GPUs", "none; trainings run on the CPU", "note", "nothing to do, unless there should be one")


def convolutions(lines: Sequence[Any], code: int, complaint: str) -> Iterator[Finding]:
    """Say what a process that tried out convolutions has told (harness/train/convolution_check.py).

    `lines`: the name of a set of them, then what of it is wrong, while it lived; `code`: how it ended.
    """
    last = complaint.strip().splitlines()[-1:] if code > 0 else []
    found = {name: [" ".join([ended(code), *last])] for name in lines[::2]}  # of the one in which it ended
    found |= dict(zip(lines[::2], lines[1::2], strict=False))
    relied, avoided = found.get("relied"), found.get("avoided")
    if relied is None:
        yield Finding("convolutions", f"were not tried: {ended(code)} {' '.join(last)}", "bad", ELSEWHERE_TORCH)
    elif relied:
        wrongly = f"{count(len(relied), 'kind')} wrongly, so no worker trains on its CPU: {relied[0]}"
        yield Finding("convolutions", f"this machine's torch computes {wrongly}", "bad", ELSEWHERE_TORCH)
    else:
        yield Finding("convolutions", "every kind that trainings on a CPU are made of is right")
    if avoided:
        said = f"this machine's torch computes strided 1x1 ones of few channels wrongly, channels last: {avoided[0]}"
        remedy = "nothing for sweeps, which never compute them so; a loop of your own should not: docs/reference/"
        yield Finding("convolutions", said, "note", f"{remedy}channels-last.md")


def ended(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"the process ended with code {code}"
    name = signal.Signals(-code).name
    return "the process did not end and was ended" if name in ("SIGPROF", "SIGKILL") else f"the process died by {name}"


def _driver() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return f"driver {pynvml.nvmlSystemGetDriverVersion()}"
    except Exception:  # whatever keeps it from answering
        return "driver unknown"


def _package(name: str, package: str, needed: str, install: str) -> Finding:
    """Look whether a package is installed; loading it would take seconds."""
    try:
        return Finding(name, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, f"not installed; {needed} need it", "note", f"{INSTALL} {install}")


def _wandb() -> Finding:
    found = _package("W&B", "wandb", "sweep files with `wandb:`", "wandb")
    if found.grade != "ok":
        return found
    mode, server = os.environ.get("WANDB_MODE", "online"), os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    netrc = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    if mode in ("online", "shared") and "WANDB_API_KEY" not in os.environ and not netrc.is_file():
        remedy = "run: wandb login; or set WANDB_API_KEY, or WANDB_MODE=offline; sweeps run all the same"
        return Finding("W&B", f"{found.said}, {mode} to {server}, and no key is set", "note", remedy)
    return Finding("W&B", f"{found.said}, {mode}" + (f" to {server}" if mode != "offline" else ""))


def _data(folder: Path) -> Finding:
    """Look which known data sets' files are there, without reading them."""
    wanted = {name: entry for name, entry in DATASETS.items() if entry.files}
    there = [n for n, entry in wanted.items() if all(present(folder / file, entry.zipped) for file in entry.files)]
    said = f"{folder}: {', '.join(there) or 'none of ' + ', '.join(wanted)}; digits comes with scikit-learn"
    if there:
        return Finding("data", said)
    return Finding(
        "data", said, "note", f"where there is network: {command('data', 'fetch', 'NAME', '--data', folder)}"
    )


def _folder(name: str, folder: Path) -> Iterator[Finding]:
    """Look at a folder's file system: what the claims of workers rest on, speed, room, and its clock."""
    tried = folder / f".doctor-{uuid.uuid4().hex}"
    remedy = "name a folder that this user may write, with --store" if name == "store" else "name another --scratch"
    try:
        tried.mkdir(parents=True)
        began = time.monotonic()
        (tried / "one").write_bytes(b"x")
        sync(tried / "one")
        took, clock = time.monotonic() - began, (tried / "one").stat().st_mtime - time.time()
        wrong = list(broken(tried))
        room = shutil.disk_usage(folder).free
    except OSError as error:
        yield Finding(name, f"{folder}: cannot be written: {error.strerror}", "bad", remedy)
        return
    finally:
        shutil.rmtree(tried, ignore_errors=True)
    for sentence in wrong:
        said = f"{folder} ({_kind(folder)}) breaks what claims and results rest on: {sentence}"
        yield Finding(name, said, "bad", ELSEWHERE)
    if wrong:
        return
    if name == "store":
        yield from shared(folder)
    said = f"{folder} ({_kind(folder)}): {size(room)} free, a synced write in {took * 1000:.0f} ms"
    why = "make room, or name another folder" if room < LITTLE else "fewer workers, or --scratch for checkpoints"
    yield Finding(name, said, *(("note", why) if room < LITTLE or took > SLOW else ()))
    if abs(clock) > SKEW:
        said = f"{abs(clock):.0f} s off the store's; nothing is decided by it, but times shown will be"
        yield Finding("clock", said, "note", "let the machine keep its time by NTP: chronyc tracking")
    else:
        yield Finding("clock", f"within {max(abs(clock), 0.1):.1f} s of the store's")


def create(path: Path) -> bool:
    """Create a file that must not exist yet; return whether this call did."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    return True


def link(path: Path) -> bool:
    """Give a file of one's own a name that must not exist yet, as a claim is made; return whether this call did."""
    own = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    own.write_bytes(b"")
    try:
        return place(own, path)
    finally:
        own.unlink()


def broken(folder: Path) -> Iterator[str]:
    """Yield a sentence for each promise that the file system of an existing, empty folder does not keep.

    Raises OSError where it cannot be written.
    """
    for what, attempt in (("O_EXCL", create), ("link", link)):
        if said := _exclusive(folder, what, attempt):
            yield said
    yield from _renames(folder)
    yield from _appends(folder)


def _exclusive(folder: Path, what: str, attempt: Callable[[Path], bool]) -> str:
    """Let some threads want the same names at once; say what is wrong where not each is won by exactly one."""
    wins, failed = list[int](), list[OSError]()
    start = threading.Barrier(HANDS)

    def want() -> None:
        start.wait()
        for number in range(NAMES):
            try:
                if attempt(folder / f"{what}-{number}"):
                    wins.append(number)
            except OSError as error:
                failed.append(error)
                return

    hands = [threading.Thread(target=want) for _ in range(HANDS)]
    for hand in hands:
        hand.start()
    for hand in hands:
        hand.join()
    if failed:
        return f"{what}: {failed[0].strerror}"
    twice = sum(wins.count(number) > 1 for number in range(NAMES))
    never = NAMES - len(set(wins))
    if twice or never:
        return f"{what}: of {NAMES} new names {twice} were given to several who asked, and {never} to none"
    return ""


def _renames(folder: Path) -> Iterator[str]:
    """Replace a file while it is read: a reader must see the old one or the new one, whole."""
    path, whole = folder / "renamed", [b"a" * 5000, b"b" * 5000]
    try:
        for number in range(NAMES):
            write_whole(path, whole[number % 2])
            if path.read_bytes() != whole[number % 2]:
                yield "rename: a file that was replaced still reads as the one before"
                return
    except OSError as error:
        yield f"rename: a file cannot be replaced: {error.strerror}"


def _appends(folder: Path) -> Iterator[str]:
    """Append through two descriptors in turn, as heartbeats are: nothing may be written over, and the size grows."""
    path = folder / "appended"
    path.write_bytes(b"")
    with open(path, "ab", buffering=0) as one, open(path, "ab", buffering=0) as other:
        for number in range(NAMES):
            (one, other)[number % 2].write(b".")
            if os.fstat(one.fileno()).st_size != number + 1:
                yield "append: what one descriptor appends is not seen through another, or written over"
                return


def shared(folder: Path) -> Iterator[Finding]:
    """Look at the modes of a store's folders: who may write, and whether colleagues and this user can both go on."""
    os.umask(umask := os.umask(0o022))
    places = [path for path in (folder, *(folder / part for part in ("stages", "sweeps", "cache"))) if path.is_dir()]
    known = [(path, path.stat()) for path in places]
    names = ", ".join(str(path) for path, stat in known if stat.st_mode & 0o002)
    if names:
        said = f"{names}: everybody on this machine may write there, and whoever may, runs code as you in your jobs"
        yield Finding("sharing", said, "bad", f"chmod -R o-w {folder}")
    if not any(stat.st_mode & 0o020 and not _private(stat.st_gid) for _, stat in known):
        others = {stat.st_uid for _, stat in known} - {os.getuid()}
        if others and os.getuid():
            said = f"{folder} is another user's, and its group may not write there"
            yield Finding("sharing", said, "bad", f"its owner: chmod -R g+rwX {folder}, and umask 002 from then on")
        return
    group = f"chgrp -R GROUP {folder}; find {folder} -type d -exec chmod g+rwxs {{}} +"
    if plain := [str(path) for path, stat in known if stat.st_mode & 0o2020 != 0o2020]:
        said = f"a group shares it, but not all of it is the group's to write, with the setgid bit: {', '.join(plain)}"
        yield Finding("sharing", said, "note", group)
    if umask & 0o020:
        said = f"a group shares it, and umask {umask:03o} makes files that colleagues cannot write"
        yield Finding("sharing", said, "note", "umask 002, in ~/.profile; jobs take it over")


def _private(group: int) -> bool:
    """Return whether a group is one user's own, as many systems make with each account: its name is the user's."""
    try:
        found, user = grp.getgrgid(group), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group == user.pw_gid and found.gr_name == user.pw_name and not found.gr_mem


def _kind(folder: Path) -> str:
    """Return the type of the file system that a folder lies on."""
    try:
        rows = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return "file system unknown"
    here = folder.resolve()
    found = [(len(row[1]), row[2]) for row in rows if here.is_relative_to(row[1].replace("\\040", " "))]
    return max(found)[1] if found else "file system unknown"


def _scheduler() -> Iterator[Finding]:
    if not shutil.which("sbatch"):
        remedy = "nothing to do, unless this should be a login node: then load its module"
        yield Finding("Slurm", "not here; workers run on this machine, or with --via ray", "note", remedy)
        return
    for asked, what in ((["squeue", "--me"], "the queue"), (["sacct", "--noheader"], "accounting")):
        try:
            shell(of_cluster(asked, named_cluster()), PATIENCE)
            yield Finding("Slurm", f"{what} answers ({asked[0]})")
        except (OSError, subprocess.SubprocessError) as error:
            told = str(getattr(error, "stderr", "") or error).strip().splitlines()
            said = f"{what} does not answer ({asked[0]}): {told[-1] if told else 'no word'}"
            if asked[0] == "sacct":
                yield Finding("Slurm", said, "note", "nothing: the controller is asked instead of accounting")
            else:
                yield Finding("Slurm", said, "bad", "ask whoever runs the cluster; workers at work go on meanwhile")
