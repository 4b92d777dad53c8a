"""Machines that failed: faults of a device are counted by host, and a host with two takes no more stages.

And what is remembered of those that were tried.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import socket
import time
from pathlib import Path
from typing import Any

from harness.machine import machine
from harness.store import Store, digest, publish, read_json

MOST_FAULTS = 2
"""Stages that met a fault since a host's last boot, after which it is avoided."""
CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGPROF"})
"""How a process ends that a kernel of torch brought down, or that SIGPROF ended as it hung in one."""
CHECK = 1
"""The version of what a machine's torch is tried with; to be raised where that changes."""


def soundness_note(store: Store, threads: int) -> Path:
    """Return the file that is there once this machine's torch was seen to compute convolutions rightly."""
    told = [os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")]
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:  # which its trainer will say
        version = ""
    made_of = [CHECK, machine()[0], processor(), version, threads, *told]
    return store.root / "cache" / "convolutions" / f"{digest(made_of)}.json"


def processor() -> str:
    """Return the model of this machine's CPU and what it can compute with, as far as the system tells."""
    try:
        told = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return platform.processor()
    return " ".join(re.findall(r"^(?:model name|flags|Features)\s*: (.*)$", told, re.M)[:2])


def record_fault(store: Store, device: str, message: str, stage: str, host: str, boot: str) -> None:
    """Write down a fault of a host's device since its boot, and the key of the stage that met it."""
    folder = _folder(store, host)
    folder.mkdir(parents=True, exist_ok=True)
    said = {"host": host, "boot": boot, "device": device, "message": message, "stage": stage, "when": time.time()}
    number = 1
    while not publish(folder / f"fault-{number:04d}.json", json.dumps(said, indent=1).encode()):
        number += 1


def avoided_here(store: Store) -> str:
    """Return why this host must not be used, empty where it may be. A reboot wipes the slate, as does a person."""
    host, boot, _ = machine()
    counted = _counted(host, faults(store), boot)
    if len(counted) < MOST_FAULTS:
        return ""
    return (
        f"{host} has had faults of its device in {len(counted)} stages since it was booted, the last: {counted[-1]}; "
        f"when it is mended, remove {_folder(store, host)}"
    )


def avoided(store: Store) -> list[str]:
    """Return the hosts that are avoided, as far as one can tell from elsewhere: each since the boot it last told of."""
    found = faults(store)
    return [
        host for host, said in found.items() if said and len(_counted(host, found, said[-1].get("boot"))) >= MOST_FAULTS
    ]


def _counted(host: str, found: dict[str, list[dict[str, Any]]], boot: object) -> list[str]:
    """Return the last message of every stage that failed on a host and on no other, where it would be to blame."""
    elsewhere = {said.get("stage") for name, faults in found.items() if name != _name(host) for said in faults}
    mine = [said for said in found.get(_name(host), []) if said.get("boot") == boot]
    return list({str(s.get("stage")): str(s.get("message")) for s in mine if s.get("stage") not in elsewhere}.values())


def _name(host: str) -> str:
    return host.replace("/", "_")


def faults(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Return all faults by host, oldest first."""
    folder = store.root / "faults"
    return {host.name: _faults(host) for host in sorted(folder.iterdir())} if folder.is_dir() else {}


def _folder(store: Store, host: str = "") -> Path:
    return store.root / "faults" / _name(host or socket.gethostname())


def _faults(folder: Path) -> list[dict[str, Any]]:
    found = [read_json(file) for file in sorted(folder.glob("fault-*.json"))]
    return [{name: str(value) for name, value in said.items()} for said in found if said]
