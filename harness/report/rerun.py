"""The command lines that lead from a cell back to its training: to run it, to debug it, to have it explained."""

from __future__ import annotations

import shlex

from harness.report.frame import Line

COMMANDS = (
    "python -m harness.sweep {file} --only {only}{store}                 # run it, or what is missing of it",
    "python -m harness.sweep {file} --only {only}{store} --retry all     # run it again where it failed",
    "python -m harness.sweep {file} --only {only}{store} --via debug     # in one process, with your debugger",
    "harness status {sweep} --why {key}{store}",
)


def only(line: Line) -> str:
    """Return what `--only` is given to mean one cell, quoted for a shell."""
    return shlex.quote(",".join(f"{axis}={line.axis(axis)}" for axis in telling(line)))


def telling(line: Line) -> list[str]:
    """Return the axes that say which cell it is."""
    usual = [axis for axis in ("dataset", "arch", "mask", "sparsity", "recipe", "seed") if line.labels.get(axis)]
    if line.dense and "sparsity" in usual:
        usual.remove("sparsity")
    own = ["ticket_seed"] if line.axis("ticket_seed") != line.axis("seed") else []
    known = {*usual, "sparsity", "ticket_seed", "world"}
    return [*usual, *own, *(axis for axis, label in line.labels.items() if axis not in known and label)]
