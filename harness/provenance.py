"""Where a number comes from: the code's version, the packages, the machine, and the time it took."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import shutil
import socket
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import harness
from harness.allocation import job_id
from harness.store import Store, write_whole

MAIN = ("torch", "torchvision", "numpy", "safetensors", "scikit-learn", "pillow", "timm")
"""The packages named in every result; all others are in the list that it refers to."""
PACKAGES = Path(harness.__file__).resolve().parent.parent


@cache
def source_digest() -> str:
    """Return 16 hex digits of the SHA-256 of all source files of harness and tost."""
    total = hashlib.sha256()
    for package in ("harness", "tost"):
        for file in sorted((PACKAGES / package).rglob("*.py")):
            total.update(f"{file.relative_to(PACKAGES)}\0".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


@cache
def commit() -> tuple[str, str]:
    """Return the checkout's commit and the difference of the working tree to it; both empty outside a checkout."""
    if not (PACKAGES / ".git").exists():
        return "", ""
    return _git("rev-parse", "HEAD").strip(), _git("diff", "HEAD", "--", "harness", "tost")


def _git(*arguments: str) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    try:
        done = subprocess.run(
            [git, "-c", "core.fsmonitor=false", *arguments],
            cwd=PACKAGES,
            capture_output=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # such as a checkout that belongs to somebody else
        return ""
    return done.stdout.decode(errors="replace")


@cache
def packages() -> dict[str, str]:
    """Return the version of every installed package by name."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return dict(sorted((name, version) for name, version in found.items() if name))


@cache
def driver() -> str:
    """Return the NVIDIA driver's version, empty where there is none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # whatever keeps the driver from answering, there is none to be named
        return ""


def _keep(store: Store, text: str, ending: str) -> str:
    """Keep a text once in the store; return the name it goes by."""
    if not text:
        return ""
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.{ending}"
    folder = store.root / "provenance"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, text.encode())
    return name


def provenance(store: Store, device: str) -> dict[str, Any]:
    """Return what a result says of the code and the machine that made it."""
    git, difference = commit()
    installed = packages()
    return {
        "source": source_digest(),
        "git": git,
        "git_diff": _keep(store, difference, "diff"),
        "packages": {name: installed[name] for name in MAIN if name in installed},
        "all_packages": _keep(store, json.dumps(installed, indent=1), "json"),
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "driver": driver() if device.startswith("cuda") else "",
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "job": job_id(),
    }
