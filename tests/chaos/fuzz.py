"""Sweep files made wrong on purpose, by structure and by bytes, and read: python -m tests.chaos.fuzz 20000.

Each is read and planned as the sweep command would, in this process, which may use so much memory and so long a time
for one of them and no more. `atheris` drives it where it is installed, with the harness's own code instrumented, else
hypothesis. The last line of its output is what came of it, as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.chaos.mutants import Mutants

MOST_PLANNED = 500
"""Points of a grid that is planned too, and not only read."""
MOST_SECONDS = 60
"""Of processor time for one file."""
MOST_MEMORY = 2**31


class Stuck(BaseException):
    """A file took too long."""


class Reader:
    """Reads files as the sweep command would, up to where it would write its plan, which goes into the store too."""

    def __init__(self, folder: Path, beside: Mapping[str, str]) -> None:
        self.folder, self.came = folder, Counter[str]()
        for name, text in beside.items():
            (folder / name).write_text(text)
        signal.signal(signal.SIGPROF, self._stuck)

    def _stuck(self, number: int, frame: object) -> None:
        raise Stuck(f"over {MOST_SECONDS} s of processor time")

    def read(self, data: bytes) -> None:
        """Read one; whatever is raised but UserError is a fault of the harness."""
        from harness.check import load_sweep
        from harness.declaring import check_claims
        from harness.errors import UserError
        from harness.planfile import save_plan
        from harness.planner import data_folder, make_plan
        from harness.store import Store

        path, store = self.folder / "x.yaml", Store(self.folder / "runs")
        path.write_bytes(data)
        self.came["given"] += 1
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            sweep = load_sweep(path)
            if sweep.size() > MOST_PLANNED:
                self.came["large"] += 1
            else:
                plan = make_plan(sweep, store, data_folder(sweep, None))
                check_claims(sweep, plan)
                save_plan(plan, store, sweep, whole=True)
                self.came["planned"] += 1
        except UserError as error:
            self.came["refused"] += 1
            if not 0 < len(str(error)) < 20_000:
                raise AssertionError(f"said in {len(str(error))} characters") from None
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def outside(root: Path, project: Path) -> list[str]:
    """Return what lies below a folder and not in the project's."""
    return sorted(
        str(path) for path in root.rglob("*") if not path.is_relative_to(project) and path not in project.parents
    )


def by_hypothesis(count: int, reader: Reader, mutants: Mutants) -> None:
    """Let hypothesis choose the files."""
    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis import strategies as st

    plain = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(mutants.keys)
    )
    documents = st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(mutants.keys), inner, max_size=5),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode())
    made = st.integers(0, 2**64 - 1).map(lambda number: mutants.draw(random.Random(number)))
    others = documents | st.binary(max_size=300) | st.text(max_size=300).map(_encoded)
    files = st.sampled_from([made] * 5 + [others]).flatmap(lambda chosen: chosen)

    @seed(int(os.environ.get("CHAOS_SEED", "1")))
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(files)
    def reads(data: bytes) -> None:
        reader.read(data)

    reads()


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def by_atheris(count: int, reader: Reader, mutants: Mutants, atheris: Any) -> None:
    """Let atheris choose the files by what of the harness they reach; ends this process."""

    def read(data: bytes) -> None:
        reader.read(data)
        if reader.came["given"] == count:
            _tell(reader, "atheris")

    def mutate(data: bytes, most: int, number: int) -> bytes:
        return mutants.draw(random.Random(number))[:most] if number % 2 else bytes(atheris.Mutate(data, most))

    atheris.Setup([sys.argv[0], f"-runs={count}", "-max_len=65536"], read, custom_mutator=mutate)
    atheris.Fuzz()


def _tell(reader: Reader, by: str) -> None:
    root, project = reader.folder.parents[2], reader.folder
    print(json.dumps({"by": by, **reader.came, "outside": outside(root, project)}), flush=True)  # noqa: T201


def instrumented() -> Any:
    """Return atheris with the harness imported so that it sees which branches a file takes, or None without it."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        return None
    with atheris.instrument_imports(include=["harness"]):
        for name in ("check", "declaring", "planner", "planfile"):
            importlib.import_module(f"harness.{name}")
    return atheris


def main(count: int) -> None:
    """Read so many wrong files."""
    atheris = instrumented()
    from tests.chaos.mutants import BESIDE, Mutants  # after it, since they import the harness

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "a" / "b" / "project"
        folder.mkdir(parents=True)
        os.chdir(folder)
        reader, mutants = Reader(folder, BESIDE), Mutants(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        for data in mutants.seeds:
            reader.read(data)
        if reader.came["refused"]:
            raise AssertionError("one of the good files, which the wrong ones are made of, was refused")
        reader.came.clear()
        if atheris is not None:
            by_atheris(count, reader, mutants, atheris)
        else:
            by_hypothesis(count, reader, mutants)
            _tell(reader, "hypothesis")


if __name__ == "__main__":
    main(int(sys.argv[1]))
