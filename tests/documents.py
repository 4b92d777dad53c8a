"""What the tests of the documentation share: the blocks of a page, and commands held against the command line."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from typer import Typer
from typer.main import get_command

from harness.cli import app

BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]*)")?\n(.*?)^```$', re.M | re.S)
NAMED = re.compile(r"[#%] ([\w./-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    """A block of code; `title`: why it cannot run here; `file`: where its text belongs."""

    language: str
    title: str
    text: str

    @property
    def file(self) -> str:
        """Return the name in the block's first comment."""
        named = NAMED.match(self.text)
        return named[1] if named else ""

    def commands(self) -> Iterator[list[str]]:
        """Yield the arguments of every command that is the harness's own, `python -m harness.report` as `report`."""
        for line in self.text.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["harness"]:
                yield words[1:]
            elif words[:2] == ["python", "-m"] and words[2].startswith("harness."):
                yield [words[2].removeprefix("harness."), *words[3:]]
            elif words and not self.title:
                raise AssertionError(f"not the harness's own command, in a block without a title: {line}")


def blocks(text: str) -> list[Block]:
    """Return a page's blocks of code, in order."""
    assert text.count("\n```") % 2 == 0
    return [Block(language, title, body) for language, title, body in BLOCK.findall(text)]


def program(words: list[str]) -> tuple[Typer, list[str]]:
    """Return whose command a line is, and its arguments: a module of its own is not among those of `harness`."""
    whole: Any = get_command(app)
    if words[0] in whole.commands:
        return app, words
    return importlib.import_module(f"harness.{words[0]}").app, words[1:]


def check_options(words: list[str]) -> None:
    """Parse a command line without running it. Raises for a command or an option that does not exist."""
    whose, words = program(words)
    command: Any = get_command(whose)
    while getattr(command, "commands", None):
        command, words = command.commands[words[0]], words[1:]
    command.make_context("harness", list(words))
