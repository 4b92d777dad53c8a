"""A worker that spans several nodes: the first claims and leads, on each other one an agent runs trainers for it."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from harness.links import LOOPBACK, MEETING, Door, Link, call
from harness.machine import machine
from harness.memory import oom_kills
from harness.team import Member, Team
from harness.trainer import Trainer

Start = Callable[[str], Trainer]


class NodeLost(Exception):
    """Another node of the job is gone, or never came up."""


@dataclass(frozen=True)
class Shape:
    """How a worker's processes lie on nodes, and which of the nodes this is."""

    world: int = 1
    nodes: int = 1
    node: int = 0

    @property
    def here(self) -> int:
        """Return the ranks of each node."""
        return self.world // self.nodes

    def devices(self, device: str) -> list[str]:
        """Return a device for every rank of a node: the GPUs that it may see, in order, or the CPU for all."""
        return [f"cuda:{rank}" if device == "cuda" and self.here > 1 else device for rank in range(self.here)]


class Distant:
    """A trainer on another node, as its team sees it."""

    def __init__(self, link: Link, host: str, device: str) -> None:
        self.link, self.host = link, host
        self.life = uuid.uuid4().hex
        """Told with each of its messages, so that a late one of a trainer before it is not taken for its own."""
        self.pids: list[int] = []
        self.waiting: list[dict[str, Any]] = []
        self.died = False
        link.send({"start": self.life, "device": device})

    @property
    def alive(self) -> bool:
        """Return whether it is there, as far as one has heard."""
        return not (self.died or self.link.dead)

    @property
    def doors(self) -> Sequence[Any]:
        """Return the line's door, which it shares with the others of its node."""
        return () if self.link.dead else (self.link.door,)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send an order, or {"stop": true}."""
        self.link.send({"life": self.life, "message": dict(message)})

    def hear(self, timeout: float) -> dict[str, Any] | None:
        """Return its next message; the death of its node is its own."""
        if self.waiting:
            return self.waiting.pop(0)
        if self.link.dead and not self.died:
            self.died = True
            return {"at": "died", "outcome": "lost", "message": f"node {self.host} is gone"}
        return None

    def dump(self) -> None:
        """Have it write its stacks into its log, and end."""
        self.link.send({"dump": self.life})

    def kill(self) -> None:
        """End it at once, or when its stacks are written."""
        self.died = True
        self.link.send({"kill": self.life})


class Lead:
    """The first node's side: lines to all others, over which a team is started as often as one is needed."""

    def __init__(self, shape: Shape, place: Path, start: Start, stop: threading.Event) -> None:
        self.shape, self.start, self.stop = shape, start, stop
        self.members: dict[str, Distant] = {}
        self.links: dict[int, tuple[Link, str]] = {}
        self.place, self.host = place, LOOPBACK
        if shape.nodes > 1:
            self._meet()

    def _meet(self) -> None:
        """Wait until an agent on each of the other nodes has called."""
        door, deadline = Door(self.place), time.monotonic() + MEETING
        self.host = door.host
        try:
            while len(self.links) < self.shape.nodes - 1:
                link = door.answer(deadline)
                wait([link.door], MEETING)
                if said := link.next():
                    self.links[int(said["node"])] = (link, str(said["host"]))
        except OSError as error:
            raise NodeLost(f"{len(self.links) + 1} of {self.shape.nodes} nodes came up in {MEETING:.0f} s") from error
        finally:
            door.close()

    def team(self, device: str) -> Team:
        """Start a trainer for every rank. Raises NodeLost where a node is gone."""
        self._sort()  # what the last team said late, behind which a line may have died
        for link, host in self.links.values():
            if link.dead:
                raise NodeLost(f"node {host} is gone")
        devices = self.shape.devices(device)
        members: list[Member] = [self.start(device) for device in devices]
        distant = [Distant(*self.links[node], device) for node in range(1, self.shape.nodes) for device in devices]
        self.members = {member.life: member for member in distant}
        return Team([*members, *distant], devices * self.shape.nodes, self.host, self._sort)

    def _sort(self) -> None:
        """Hand what came over the lines to the trainers that said it."""
        for link, _ in self.links.values():
            while (said := link.next()) is not None:
                if "signal" in said:
                    self.stop.set()
                elif member := self.members.get(str(said.get("life"))):
                    member.waiting.append(said["message"])

    def leave(self) -> None:
        """Send the agents home."""
        for link, _ in self.links.values():
            link.send({"leave": True})


def be_agent(shape: Shape, place: Path, start: Start, stop: threading.Event) -> None:
    """Run trainers for the first node until it sends this one home. Raises NodeLost where it is gone."""
    link = call(place)
    if link is None:
        raise NodeLost(f"the first node did not come up in {MEETING:.0f} s")
    link.send({"node": shape.node, "host": machine()[0]})
    trainers: dict[str, Trainer] = {}
    killed, told = oom_kills(), False
    try:
        while not link.dead:
            while (order := link.next()) is not None:
                if "leave" in order:
                    return
                _obey(order, trainers, start)
            if stop.is_set() and not told:
                told = True
                link.send({"signal": True})
            for life, trainer in list(trainers.items()):
                while life in trainers and (message := trainer.hear(0)) is not None:
                    if message["at"] == "died":
                        del trainers[life]
                        message, killed = _explained(message, killed), oom_kills()
                    link.send({"life": life, "message": message})
            wait([link.door, *(door for trainer in trainers.values() for door in trainer.doors)], 0.5)
    finally:
        for trainer in trainers.values():
            trainer.kill()
    raise NodeLost("the first node of this job is gone")


def _obey(order: dict[str, Any], trainers: dict[str, Trainer], start: Start) -> None:
    if "start" in order:
        trainers[order["start"]] = start(order["device"])
    elif "dump" in order:
        if (trainer := trainers.get(order["dump"])) is not None:
            trainer.dump()
    elif "kill" in order:
        if (trainer := trainers.pop(order["kill"], None)) is not None:
            trainer.kill()
    elif (trainer := trainers.get(order["life"])) is not None:
        trainer.send(order["message"])


def _explained(message: dict[str, Any], before: int) -> dict[str, Any]:
    """Say of a trainer that the kernel ended for want of memory that it was so: its leader cannot see it."""
    if message.get("signal") == "SIGKILL" and oom_kills() > before:
        said = "the kernel ended the trainer: out of memory"
        return {**message, "outcome": "failed", "cause": "oom", "resource": "ram", "message": said}
    return message
