"""Run benchmarks: `python -m bench [SECTION ...]`; prints tables and writes figures as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.figures import Given, Section, machine, table

SECTIONS = ("peak", "data", "loop", "cells", "packing", "ddp", "masks", "planning", "status", "report", "overhead")
"""Those that run when none is named, in this order."""
NAMED = ("batching", "wandb", "slurm")
"""Those that need more than Python, or long, and run when they are named."""


def title(section: Section) -> str:
    """Return the first sentence of a section's description."""
    return (section.__doc__ or "").partition("\n")[0].rstrip(".")


def main(argv: list[str] | None = None) -> int:
    """Run the sections asked for; return 1 where one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join((*SECTIONS, *NAMED)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=Given.seconds, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=Given.repeats)
    parser.add_argument("--small", action="store_true", help="try everything out, on little")
    parser.add_argument("--out", type=Path, default=Path("bench-figures.json"))
    options = parser.parse_args(argv)
    sections = options.sections or SECTIONS
    if unknown := set(sections) - {*SECTIONS, *NAMED}:
        parser.error(f"{', '.join(unknown)}: no such section; choose from {', '.join((*SECTIONS, *NAMED))}")
    given = Given(options.device, options.threads, options.seconds, options.repeats, options.small)
    found: dict[str, Any] = {"machine": machine(given.device), "given": vars(given)}
    failed = 0
    for name in sections:
        section: Any = importlib.import_module(f"bench.{name}")
        print(f"\n## {title(section)}\n", flush=True)
        began, rows = time.monotonic(), []
        said: dict[str, Any] = {"rows": rows}
        try:
            for row in section.measure(given):
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
        except Exception as error:  # told, and the next section runs: a machine's time is dear
            words = getattr(error, "stderr", None) or ""  # of a command that it ran
            said["failed"] = f"{type(error).__name__}: {error} {words}".strip()
            failed = 1
            print(f"failed: {said['failed']}", flush=True)
        said["seconds"] = round(time.monotonic() - began, 1)
        print(table(rows), flush=True)
        found.setdefault("sections", {})[name] = said
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
