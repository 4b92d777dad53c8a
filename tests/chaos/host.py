"""A worker on another machine: a process with a host name and a clock of its own, which then is a real worker."""

from __future__ import annotations

import socket
import sys

from harness.worker import app
from tests.harness.trivial import skewed

if __name__ == "__main__":
    _, host, skew, *arguments = sys.argv
    socket.sethostname(host)
    skewed(float(skew))
    app(arguments)
