"""Write docs/reliability.md from what the tests of faults have recorded: python -m tests.chaos.table RECORD."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
HEAD = """# What it survives

Faults that the tests in `tests/chaos` inject into real runs, with real processes and file systems, and what became of
the results. *Lost*: finished results that were gone, or that nothing brought back. *Wrong*: results that differ from an
undisturbed run's, or damaged files that were used.

    make chaos         # all of it, and this page; needs root for its file systems
    make test-chaos    # the short form, as before every change

"""
AGAIN = "CHAOS=full .venv/bin/python -m pytest -m chaos"


def page(rows: Sequence[Mapping[str, Any]], about: str) -> str:
    """Return the page: a table for each area, in the order in which areas were first met."""
    total = sum(row["injected"] for row in rows)
    lost, wrong = (sum(row[name] for row in rows) for name in ("lost", "wrong"))
    lines = [f"{total:,} faults injected, {lost:,} results lost, {wrong:,} wrong; {about}.", ""]
    for area in dict.fromkeys(row["area"] for row in rows):
        lines += [f"## {area}", "", "| fault | injected | lost | wrong | how it shows, and what is done |"]
        lines.append("|---|---:|---:|---:|---|")
        mine = [row for row in rows if row["area"] == area]
        for fault in dict.fromkeys(row["fault"] for row in mine):
            same = [row for row in mine if row["fault"] == fault]
            sums = (f"{sum(row[name] for row in same):,}" for name in ("injected", "lost", "wrong"))
            lines.append(f"| {fault} | {' | '.join(sums)} | {same[-1]['found']} |")
        files = sorted({row["test"].partition("::")[0] for row in mine})
        lines += ["", *(f"    {AGAIN} {file}" for file in files), ""]
    return HEAD + "\n".join(lines)


def read(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return a record's rows; of a test that ran more than once, those of its last run."""
    runs: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        row = json.loads(line)
        runs[row["test"], row["fault"]] = row
    return list(runs.values())


def main() -> None:
    """Write the page."""
    rows = read(Path(sys.argv[1]).read_text().splitlines())
    full = "in full" if all(row["full"] for row in rows) else "in the short form"
    day = datetime.now(UTC).date().isoformat()
    kernel = platform.release().partition("-")[0]
    about = f"run {full} on {day}, Python {platform.python_version()}, {platform.system()} {kernel}"
    PAGE.write_text(page(rows, about))


if __name__ == "__main__":
    main()
