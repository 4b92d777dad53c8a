"""Machines that failed: faults of a device are counted by host, and a host with two takes no more stages."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from harness.claims import machine
from harness.store import Store, publish, read_json

MOST_FAULTS = 2
"""Faults since a host's last boot after which it is avoided."""


def record_fault(store: Store, device: str, message: str, stage: str) -> None:
    """Write down a fault of this host's device."""
    host, boot, _ = machine()
    folder = _folder(store, host)
    folder.mkdir(parents=True, exist_ok=True)
    said = {"host": host, "boot": boot, "device": device, "message": message, "stage": stage, "when": time.time()}
    number = 1
    while not publish(folder / f"fault-{number:04d}.json", json.dumps(said, indent=1).encode()):
        number += 1


def avoided_here(store: Store) -> str:
    """Return why this host must not be used, empty where it may be. A reboot wipes the slate, as does a person."""
    host, boot, _ = machine()
    since = [said for said in _faults(_folder(store, host)) if said.get("boot") == boot]
    if len(since) < MOST_FAULTS:
        return ""
    return (
        f"{host} has had {len(since)} faults of its device since it was booted, the last: {since[-1].get('message')}; "
        f"when it is mended, remove {_folder(store, host)}"
    )


def faults(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Return all faults by host, oldest first."""
    folder = store.root / "faults"
    return {host.name: _faults(host) for host in sorted(folder.iterdir())} if folder.is_dir() else {}


def _folder(store: Store, host: str = "") -> Path:
    return store.root / "faults" / (host or socket.gethostname()).replace("/", "_")


def _faults(folder: Path) -> list[dict[str, Any]]:
    found = [read_json(file) for file in sorted(folder.glob("fault-*.json"))]
    return [said for said in found if said]
