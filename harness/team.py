"""Several trainers that run one order together, seen from outside as one: the order goes to all, one end comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from harness.store import write_whole

LAST_WORDS = 3.0
"""Seconds that the other ranks have to say how they ended, once one has failed: the first to fall may not be first
heard."""


AGREED = frozenset({"made", "stopped", "diverged"})
"""Ends that all ranks come to together."""


class Member(Protocol):
    """A trainer, here or on another node."""

    host: str

    @property
    def pids(self) -> Sequence[int]:
        """Return its process number, where it is on this machine."""

    @property
    def alive(self) -> bool:
        """Return whether it is there."""

    @property
    def doors(self) -> Sequence[Any]:
        """Return what becomes readable when it has something to say."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Send an order, or {"stop": true}."""

    def hear(self, timeout: float) -> dict[str, Any] | None:
        """Return its next message."""

    def dump(self) -> None:
        """Have it write its stacks into its log, and end."""

    def kill(self) -> None:
        """End it at once, or when its stacks are written."""


class Team:
    """One trainer a rank. A stage that is no training is run by rank 0 alone."""

    def __init__(
        self,
        members: Sequence[Member],
        devices: Sequence[str],
        meet: str,
        sort: Callable[[], None] = lambda: None,
    ) -> None:
        self.members, self.devices, self.meet, self.sort = members, devices, meet, sort
        self.ready: set[int] = set()
        self.ends: dict[int, dict[str, Any]] = {}
        """How each rank ended the order at hand; empty between two orders."""
        self.order: dict[str, Any] = {}
        self.ranks = 0
        """How many ranks run the order at hand."""
        self.fail_by = 0.0
        self.spoilt = False

    @property
    def pids(self) -> list[int]:
        """Return the process numbers of those on this machine, rank 0's first."""
        return [pid for member in self.members for pid in member.pids]

    @property
    def alive(self) -> bool:
        """Return whether another order can be given."""
        return not self.spoilt and all(member.alive for member in self.members)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send an order, or {"stop": true}."""
        if "stop" in message:
            for member in self.members:
                member.send(message)
            return
        together = message["kind"] == "train"
        self.ranks = len(self.members) if together else 1
        self.ends, self.fail_by = {}, 0.0
        self.order = {**message, "world": self.ranks}
        self.members[0].send({**self.order, "rank": 0, "meet": self.meet, "device": self.devices[0]})

    def hear(self, timeout: float) -> dict[str, Any] | None:
        """Return the next message of the team, None after a timeout."""
        deadline = time.monotonic() + timeout
        while True:
            self.sort()
            for rank, member in enumerate(self.members):
                if rank in self.ends or not (message := member.hear(0)):
                    continue
                if (said := self._heard(rank, message)) is not None:
                    return said
            now = time.monotonic()
            if self.fail_by and now > self.fail_by:
                return self._end()
            if now >= deadline:
                return None
            heard = [member for rank, member in enumerate(self.members) if rank not in self.ends]
            doors = {id(door): door for member in heard for door in member.doors}  # a node's ranks share one
            wait(doors.values(), min(deadline - now, 1.0))

    def dump(self) -> None:
        """Have all trainers write their stacks into their logs, and end."""
        for member in self.members:
            member.dump()

    def kill(self) -> None:
        """End all trainers."""
        for member in self.members:
            member.kill()

    def _heard(self, rank: int, message: dict[str, Any]) -> dict[str, Any] | None:
        """Take in what one rank says; return what that means for the team, None where nothing."""
        match message["at"]:
            case "ready":
                self.ready.add(rank)
                return message if len(self.ready) == len(self.members) else None
            case "meet":
                for other in range(1, self.ranks):
                    told = {**self.order, "rank": other, "meet": message["address"], "device": self.devices[other]}
                    self.members[other].send(told)
                return None
            case "end" | "died" if self.ranks:
                return self._ended(rank, message)
            case "died" | "unfit":
                return {**message, "message": f"{self._who(rank)}: {message['message']}"}
            case _:
                return message if rank == 0 else None

    def _ended(self, rank: int, message: dict[str, Any]) -> dict[str, Any] | None:
        end = self.ends[rank] = {"outcome": "died", **message}
        if message["at"] == "died":
            self._note(rank)
        if end["outcome"] not in AGREED or (rank == 0 and end["outcome"] == "made"):
            self.fail_by = self.fail_by or time.monotonic() + LAST_WORDS
        return self._end() if len(self.ends) >= self.ranks else None

    def _end(self) -> dict[str, Any]:
        """Return how the order ended: as rank 0 says, or for the first cause that is no consequence of another."""
        bad = [rank for rank, end in self.ends.items() if end["outcome"] not in AGREED]
        self.spoilt = bool(bad) or len(self.ends) < self.ranks  # some still wait for a fallen one, or are gone
        end = self.ends.get(0, {})
        if bad and end.get("outcome") != "made":  # which it says after all have met at the end of the training
            own = [rank for rank in bad if not self.ends[rank].get("peer")]
            rank = (own or bad)[0]
            end = self.ends[rank]
            if self.ranks > 1:
                end = {**end, "message": f"{self._who(rank)}: {end['message']}", "rank": rank}
        self.ranks, self.fail_by, self.ends = 0, 0.0, {}
        return {**end, "at": "end"}

    def _who(self, rank: int) -> str:
        return f"rank {rank} of {len(self.members)} on {self.members[rank].host}"

    def _note(self, rank: int) -> None:
        """Write down how a rank failed, beside what it may have written itself."""
        if self.ranks > 1:
            said = {"rank": rank, "host": self.members[rank].host, **self.ends[rank]}
            write_whole(Path(self.order["attempt"]) / f"rank-{rank}.json", json.dumps(said, indent=1).encode())
