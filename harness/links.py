"""Messages between the nodes of one job: JSON over TCP, both sides saying each second that they are there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Mapping
from multiprocessing import AuthenticationError, Pipe
from multiprocessing.connection import Client, Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any

from harness.store import read_json, write_whole

LOOPBACK = "127.0.0.1"
"""Where processes of one node meet: nothing outside it reaches them there."""
PULSE = 1.0
"""Seconds between two signs of life."""
SILENCE = 8.0
"""Seconds without one after which the other side counts as gone, where its machine fell without closing the line."""
HANDSHAKE = 10
"""Seconds in which a caller must have shown that it knows the word."""
MEETING = 300.0
"""Seconds in which all nodes of a job must have come up."""


class Link:
    """A line to another node. A thread keeps it alive, another receives, so that neither waits for a file system."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.door, self._in = Pipe(duplex=False)
        """Readable when a message has come, or the line is dead."""
        self._come = self._read = 0
        """Messages that have come, and those of them that were read."""
        self._sending = threading.Lock()
        self._heard = time.monotonic()
        self._dead = threading.Event()
        for work in (self._receive, self._pulse):
            threading.Thread(target=work, daemon=True).start()

    @property
    def dead(self) -> bool:
        """Return whether the other side is gone, and all that it said has been read."""
        return self._dead.is_set() and self._read == self._come

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; over a dead line it is lost."""
        try:
            with self._sending:
                self.connection.send_bytes(json.dumps(message).encode())
        except (OSError, ValueError):
            self.close()

    def next(self) -> dict[str, Any] | None:
        """Return a message that has come, if any."""
        with contextlib.suppress(EOFError, OSError):
            if self.door.poll():
                message: dict[str, Any] = json.loads(self.door.recv_bytes())
                self._read += 1
                return message
        return None

    def close(self) -> None:
        """Hang up. What has come by then can still be read."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)  # closing would leave a thread that reads from it asleep

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError, ValueError):
            while True:
                data = self.connection.recv_bytes()
                self._heard = time.monotonic()
                if data != b"{}":
                    self._in.send_bytes(data)
                    self._come += 1
        self._dead.set()
        self._in.close()

    def _pulse(self) -> None:
        while not self._dead.wait(PULSE):
            self.send({})
            if time.monotonic() - self._heard > SILENCE:
                self.close()


class Door:
    """A free port at which other nodes call. Where it is, and the word that a caller must know, stand in a file."""

    def __init__(self, place: Path) -> None:
        self.place, self.key, self.host = place, os.urandom(16), socket.gethostname()
        self.socket = socket.create_server(("", 0), backlog=64)
        place.parent.mkdir(parents=True, exist_ok=True)
        said = {"host": self.host, "port": self.socket.getsockname()[1], "key": self.key.hex()}
        write_whole(place, json.dumps(said).encode(), 0o600)  # only its owner may read it

    def answer(self, deadline: float) -> Link:
        """Return a line to the next caller who knows the word. Raises OSError where none came in time."""
        while True:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            caller, _ = self.socket.accept()
            caller.setblocking(True)
            _limit(caller, HANDSHAKE)
            connection = Connection(caller.detach())
            try:
                deliver_challenge(connection, self.key)
                answer_challenge(connection, self.key)
            except (OSError, EOFError, AuthenticationError):  # a stranger, or one that says nothing
                connection.close()
                continue
            with socket.socket(fileno=os.dup(connection.fileno())) as line:
                _limit(line, 0)
            return Link(connection)

    def close(self) -> None:
        """Take no more calls."""
        self.socket.close()
        self.place.unlink(missing_ok=True)


def _limit(line: socket.socket, seconds: int) -> None:
    """Let a read of a line that stays silent fail after some seconds; 0: never."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def call(place: Path) -> Link | None:
    """Call the node whose door a file names, as soon as the file is there; None where nobody answers in time."""
    deadline = time.monotonic() + MEETING
    while time.monotonic() < deadline:
        said = read_json(place)
        if said:
            with contextlib.suppress(OSError, EOFError, AuthenticationError):  # or left by a job of the same number
                return Link(Client((said["host"], said["port"]), authkey=bytes.fromhex(said["key"])))
        time.sleep(0.2)
    return None
