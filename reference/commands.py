"""The command line, every command with its options, from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from harness.cli import app
from reference.text import table

KIND = re.compile(r"<(?:list\[)?(\w+)\]?(?: range)?>")
"""What typer calls the kind of an option's value."""


def page() -> str:
    """Return a section for each command."""
    return "\n\n".join(section(name, command) for name, command in walk("harness", get_command(app)))


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield the commands that do something, by full name; a group is what stands above them."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for word, inner in below.items():
        if not inner.hidden:
            yield from walk(f"{name} {word}", inner)


def section(name: str, command: Any) -> str:
    """Return a command's heading, help, arguments and options, and examples."""
    context = command.make_context(name, [], resilient_parsing=True)
    shown = [one for one in command.params if not getattr(one, "hidden", False) and "--help" not in one.opts]
    places = [_place(one) for one in shown if one.param_type_name == "argument"]
    lines = [f"## {name}", "", f"`{' '.join([name, *places, '[OPTIONS]'])}`", ""]
    lines += [" ".join(block.split()) + "\n" for block in (command.help or "").split("\n\n")]
    rows = []
    for one in shown:
        written = _place(one) if one.param_type_name == "argument" else one.get_help_record(context)[0]
        written = KIND.sub(lambda found: f"<{found[1].lower()}>", written)
        variable = f" Also `${one.envvar}`." if one.envvar else ""
        rows.append([f"`{written}`", _default(one), " ".join((one.help or "").split()) + variable])
    lines.append(table(["argument or option", "default", "meaning"], rows))
    if command.epilog:  # "\b" tells typer to leave lines as they are
        lines += ["", "```text", *(line.strip("\b ") for line in command.epilog.strip("\b\n ").splitlines()), "```"]
    return "\n".join(lines)


def _place(one: Any) -> str:
    word = (one.metavar or one.name).upper() + ("..." if one.nargs == -1 else "")
    return word if one.required else f"[{word}]"


def _default(one: Any) -> str:
    if one.required:
        return "to be given"
    value = one.default
    if value in (None, "", False, []) or callable(value) or value == Path("-"):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
