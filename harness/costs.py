"""What a stage will cost: learned from the records of stages like it, the most alike first, with an interval."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from harness.plan import Plan, Stage
from harness.store import Result, canonical

LEVELS = ("the same settings", "the same network and data", "the same network")
SPREAD = (1.15, 2.0, 4.0)
"""How wide an interval is at least, as a factor up and down, for each level of likeness."""
FEW = 1.4
"""The same for fewer than three records."""
FILES = {"data": 5, "mask": 5, "rescale": 5, "train": 6}
"""Files of a finished stage: spec, claim, end, result, artifact, and of a training its metrics."""


@dataclass(frozen=True)
class Place:
    """Where stages run, as far as their speed depends on it."""

    device: str
    threads: int
    name: str = ""
    """The device's own name; empty matches any."""

    def like(self, other: Place) -> bool:
        """Return whether a time measured there says something about a time here."""
        same_name = not self.name or not other.name or self.name == other.name
        return self.device == other.device and same_name and (self.device != "cpu" or self.threads == other.threads)


@dataclass(frozen=True)
class Estimate:
    """Seconds of one stage: the middle and an interval, and how alike the stages are that it rests on."""

    low: float
    mid: float
    high: float
    level: int = 0


@dataclass(frozen=True)
class Record:
    """What a finished or a tried-out stage took."""

    place: Place
    seconds: float
    """A unit of work: an epoch of a training, anything else as a whole."""
    bytes: int = 0


@dataclass
class Costs:
    """Records by what they are records of, from the whole of a stage's settings to its network alone."""

    plan: Plan
    place: Place
    records: dict[tuple[Any, ...], list[Record]] = field(default_factory=lambda: defaultdict(list))
    _names: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, results: Mapping[str, Result], place: Place) -> Costs:
        """Learn from the results of a plan's own stages."""
        costs = cls(plan, place)
        for key, result in results.items():
            if key in plan.stages:
                costs.add(plan.stages[key], result)
        return costs

    def add(self, stage: Stage, result: Result) -> None:
        """Learn from a result, unless it was made elsewhere and only taken over or accepted here.

        Nor where a training went on from an attempt that vanished, and so could not say what it had spent.
        """
        said, stamp = result.provenance, result.stamp
        seconds = said.get("seconds_of_all_attempts" if said.get("resumed") else "seconds")
        untold = bool(said.get("resumed")) and said.get("attempts_untold", 0)
        if not seconds or untold or "blessed" in said or "merged_from" in said:
            return
        place = Place(str(stamp.get("device")), int(stamp.get("threads", 1)), str(stamp.get("device_name", "")))
        self.learn(stage, Record(place, float(seconds) / units(stage), result.artifact.bytes))

    def learn(self, stage: Stage, record: Record) -> None:
        """Take in a record under every level of likeness."""
        for name in self.names(stage):
            self.records[name].append(record)

    def names(self, stage: Stage) -> list[tuple[Any, ...]]:
        """Return what a stage's cost goes by, the most telling first."""
        if stage.key not in self._names:
            self._names[stage.key] = list(_names(stage, self.plan))
        return self._names[stage.key]

    def estimate(self, stage: Stage) -> Estimate | None:
        """Return the seconds a stage will take here, None where nothing like it has been seen."""
        for level, name in enumerate(self.names(stage)):
            usable = [r.seconds for r in self.records.get(name, ()) if self.place.like(r.place)]
            if usable:
                return _estimate(usable, units(stage), level)
        return None

    def bytes(self, stage: Stage) -> int | None:
        """Return the size of a stage's artifact, None where nothing like it has been seen."""
        for name in self.names(stage):
            if known := [r.bytes for r in self.records.get(name, ()) if r.bytes]:
                return int(statistics.median(known))
        return None


def _estimate(values: list[float], scale: float, level: int) -> Estimate:
    mid = statistics.median(values)
    spread = max(SPREAD[level], 1.0 if len(values) > 2 else FEW)
    low, high = mid / spread, mid * spread
    if len(values) > 2:
        cuts = statistics.quantiles(values, n=10)
        low, high = min(low, cuts[0]), max(high, cuts[-1])
    return Estimate(max(low, 0.0) * scale, mid * scale, high * scale, level)


def units(stage: Stage) -> float:
    """Return how many units of work a stage has: a training's epochs, of anything else one."""
    if stage.kind == "train":
        epochs = stage.spec.get("until", stage.spec["protocol"].get("epochs", _epochs()))
        return float(max(1, epochs - stage.spec.get("rewind", 0)))
    return 1.0


@cache
def _epochs() -> int:
    from harness.protocol import Protocol

    return int(Protocol.model_fields["epochs"].default)


def _names(stage: Stage, plan: Plan) -> Iterable[tuple[Any, ...]]:
    spec = stage.spec
    data = plan.stages[stage.parents["data"]].spec if "data" in stage.parents else spec
    images = canonical([data.get("dataset"), data.get("size", 0), data.get("standin")]) if data else b""
    arch = canonical(spec.get("arch", stage.kind if stage.kind == "data" else _arch_above(stage, plan)))
    if stage.kind == "data":
        yield ("data", images)
        return
    if stage.kind == "train":
        protocol = {k: v for k, v in spec["protocol"].items() if k in ("batch", "precision", "optimizer")}
        more = {k: spec.get(k) for k in ("recipe", "match_cost", "small")} | {"prune": "prune" in spec}
        yield ("train", images, arch, canonical([protocol, more]))
        yield ("train", images, arch)
    else:
        yield (stage.kind, images, arch, canonical([spec.get("method", spec.get("control")), spec.get("batch")]))
        yield (stage.kind, images, arch, canonical(spec.get("method", {}).get("name", "")))
    yield (stage.kind, arch)


def _arch_above(stage: Stage, plan: Plan) -> Any:
    """Return the network of a stage that does not name it itself, such as a shuffled mask."""
    for parent in stage.parents.values():
        found = plan.stages[parent]
        if "arch" in found.spec:
            return found.spec["arch"]
    return ""
