"""What a run is told of its stage before anything is measured: name, group, tags, axes, how to run it again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.facts import Facts
from harness.plan import Stage
from harness.planfile import SavedPlan
from harness.report.frame import Line
from harness.report.rerun import COMMANDS, only
from harness.store import digest

LONGEST = 64
"""Characters of a tag: what W&B accepts."""
LONGEST_NAME = 128
"""Characters of a run's name and of a group's: what W&B accepts."""
SHARED = ("dataset", "arch", "mask", "ticket_seed")
"""Axes that a shared stage has in common with the cells that use it."""
SEED = re.compile(r" (ticket )?seed \d+$")


@dataclass(frozen=True)
class About:
    """A stage among the sweeps that want it."""

    stage: Stage
    role: str
    """cell, dense, training (a lottery round, or weights that others start from), mask or rescale."""
    name: str
    group: str
    labels: Mapping[str, str]
    facts: Facts
    commands: tuple[str, ...]
    sweeps: tuple[str, ...] = ()
    read: bool = False
    """Whether another stage is made from its artifact."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """Role -> key of those parents that have a run of their own."""

    @property
    def tags(self) -> list[str]:
        """Return the sweeps and the axes, by which a project is filtered."""
        axes = [label for axis, label in self.labels.items() if axis in ("dataset", "arch", "mask", "sparsity")]
        recipe = [self.labels["recipe"]] if "recipe" in self.labels else []
        tags = [*self.sweeps, self.role, *axes, *recipe]
        return sorted({shortened(tag, LONGEST) for tag in tags if tag})

    @property
    def config(self) -> dict[str, Any]:
        """Return the axes and everything that the stage's key is made of."""
        spec = {name: value for name, value in self.stage.spec.items() if name != "protocol"}
        sparsity = {"sparsity_share": self.facts.share} if "sparsity" in self.labels else {}
        numbers = {axis: int(v) for axis, v in self.labels.items() if axis in ("seed", "ticket_seed", "world")}
        protocol = dict(self.facts.protocol or self.stage.spec.get("protocol", {}))
        return {
            **self.labels,
            **numbers,
            **sparsity,
            **({"parts": list(self.facts.parts)} if "recipe" in self.labels else {}),
            "role": self.role,
            "kind": self.stage.kind,
            "key": self.stage.key,
            **({"protocol": protocol} if protocol else {}),  # wandb drops what is empty
            "spec": spec,
            "sweeps": list(self.sweeps),
        }


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters: a longer one loses its middle to a digest of the whole."""
    if len(text) <= most:
        return text
    mark = f"…{digest(text)[:6]}…"
    head = (most - len(mark)) // 2
    return f"{text[:head]}{mark}{text[len(text) - (most - len(mark) - head) :]}"


def about_stages(plans: Sequence[SavedPlan]) -> dict[str, About]:
    """Return every stage of some plans that has a run of its own, parents first; the first plan's words win."""
    found: dict[str, About] = {}
    for saved in plans:
        for key, about in _of_plan(saved).items():
            had = found.get(key)
            if had is None or (had.role in ("training",) and about.role in ("cell", "dense")):
                found[key] = replace(about, sweeps=had.sweeps if had else ())
            found[key] = replace(
                found[key],
                sweeps=tuple(dict.fromkeys([*found[key].sweeps, saved.plan.name])),
                read=found[key].read or about.read or (had is not None and had.read),
            )
    return found


def _of_plan(saved: SavedPlan) -> dict[str, About]:
    plan, file = saved.plan, saved.declared.file or f"{saved.plan.name}.yaml"
    cells: dict[str, Line] = {}
    users: dict[str, Line] = {}
    for cell in saved.cells:
        line = Line(dict(zip(saved.axes, cell.labels, strict=True)), cell.facts, cell.key)
        cells.setdefault(cell.key, line)
    for key, line in cells.items():
        for above in _unseen(saved, key, users):
            users[above] = line
    found = {}
    for key, stage in plan.stages.items():
        if stage.kind == "data":
            continue
        parents = {role: parent for role, parent in stage.parents.items() if plan.stages[parent].kind != "data"}
        rest = {"read": key in plan.inner, "parents": parents}
        if key in cells:
            found[key] = _cell(stage, cells[key], plan.name, file, rest)
        else:
            found[key] = _shared(stage, users.get(key), plan.name, rest)
    return found


def _unseen(saved: SavedPlan, key: str, seen: Mapping[str, Any]) -> Iterable[str]:
    """Yield a stage and what it is made from, as far as nobody was met there before."""
    waiting, here = [key], set()
    while waiting:
        at = waiting.pop()
        if at not in seen and at not in here:
            here.add(at)
            waiting.extend(saved.plan.stages[at].parents.values())
    return here


def _cell(stage: Stage, line: Line, sweep: str, file: str, rest: Mapping[str, Any]) -> About:
    labels = {axis: label for axis, label in line.labels.items() if axis != "sparsity" or not line.dense}
    plain = {axis: label for axis, label in labels.items() if axis not in ("seed", "ticket_seed", "world")}
    shown = [label for axis, label in plain.items() if axis in ("dataset", "arch", "mask", "sparsity", "recipe")]
    shown += [f"{axis}={label}" for axis, label in plain.items() if axis not in _USUAL and label]
    same = digest({"axes": plain, "protocol": dict(line.facts.protocol), "dev": line.facts.dev})
    words = {"file": file, "only": only(line), "sweep": sweep, "key": stage.key, "store": ""}
    commands = tuple(command.format(**words) for command in COMMANDS)
    role = "dense" if line.dense else "cell"
    name = shortened(f"{' '.join(shown)} seed {line.axis('seed')}", LONGEST_NAME)
    return About(stage, role, name, _group(shown, same), labels, line.facts, commands, **rest)


_USUAL = ("dataset", "arch", "mask", "sparsity", "recipe", "seed", "ticket_seed", "world")


def _shared(stage: Stage, user: Line | None, sweep: str, rest: Mapping[str, Any]) -> About:
    labels = {axis: user.axis(axis) for axis in SHARED} if user else {}
    seeds = ("seed", "ticket_seed")
    same = digest({name: value for name, value in stage.spec.items() if name not in seeds})
    role = "training" if stage.kind == "train" else stage.kind
    commands = (COMMANDS[-1].format(sweep=sweep, key=stage.key, store=""),)
    group = _group([SEED.sub("", stage.label)], same)
    name = shortened(stage.label, LONGEST_NAME)
    return About(stage, role, name, group, labels, Facts(), commands, **rest)


def _group(words: Sequence[str], same: str) -> str:
    """Return a group's name: readable, and its own for whatever differs in anything but the seeds."""
    return f"{shortened(' '.join(words), LONGEST_NAME - 8)} #{same[:6]}"
