"""Numbers in words: times, sizes, counts; and times and amounts of memory as people and Slurm write them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.errors import UserError, short

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MEMORY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def span(seconds: float) -> str:
    """Return a time in words."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"


def count(number: int, what: str) -> str:
    """Return a count with its noun, in the plural where it is not one."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {plural(what)}"


def plural(what: str) -> str:
    """Return the plural of a regular English noun."""
    if re.search(r"[^aeiou]y$", what):
        return f"{what[:-1]}ies"
    return f"{what}es" if what.endswith("s") else f"{what}s"


def listed(words: Iterable[str], most: int = 0) -> str:
    """Return words as a sentence lists them, each once: `a, b and c`; with `most`, that many and how many more."""
    shown = list(dict.fromkeys(words))
    if most and len(shown) > most:
        shown = [*shown[:most], f"{len(shown) - most:,} more"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def size(number: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def read_span(text: str) -> float:
    """Read a time such as `55m`, `1h30m`, `90s`, `2d`, `500h`, or as Slurm writes it (`D-H`, `D-H:M:S`), in seconds.

    Raises ValueError that says how it is written.
    """
    text = text.strip()
    found = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,6})(?::(\d\d?)(?::(\d\d?))?)?", text)
    if found and (found[1] or found[3]):
        days, first, second, third = found.groups()
        if third is None and days is None:  # Slurm reads a lone A:B as minutes and seconds, and D-A:B as hours
            return 60.0 * int(first) + int(second)
        return 86400.0 * int(days or 0) + 3600.0 * int(first) + 60.0 * int(second or 0) + int(third or 0)
    if re.fullmatch(r"(?:\d+(?:\.\d+)?[smhd])+", text):
        return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([smhd])", text))
    raise ValueError(f"{text!r} is no time; write 55m, 1h30m, 90s, 2d, or D-HH:MM:SS")


def read_memory(text: str) -> int:
    """Read an amount of memory as Slurm spells it, in bytes; a plain number is MiB. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([KMGT]?)(?:i?B)?)", text.strip(), re.IGNORECASE)
    amount = int(float(found[1]) * MEMORY_UNITS[found[2].upper() or "M"]) if found else 0
    if amount < MEMORY_UNITS["M"]:
        raise ValueError(f"{short(text)} is no amount of memory; write 16G or 64000M")
    return amount


def given_span(option: str, text: str) -> float:
    """Read a time given on the command line. Raises UserError that names the option."""
    try:
        return read_span(text)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from None
