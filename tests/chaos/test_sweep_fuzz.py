"""Wrong sweep files, made of good ones by a draw: each is refused with a sentence, or planned, in bounded time."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from harness.check import load_sweep
from harness.declaring import check_claims
from harness.errors import UserError
from harness.planfile import save_plan
from harness.planner import data_folder, make_plan
from harness.store import Store
from tests.chaos.limited import outcomes
from tests.conftest import GRID, THIN

pytestmark = pytest.mark.chaos

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
RICH = """
name: rich
base: base.yaml
protocol: {preset: quick, epochs: 4, lr: 0.05, milestones: [1, 2]}
use: {thin: "./thin.py:build"}
grid:
  dataset: digits
  arch: [thin, {resnet20: {width: 0.5}}]
  mask: [random, {snip: {control: shuffled}}, lth]
  sparsity: [50%, imp:3, 0.9]
  recipe: [default, tost, {gsw: {b1: 10}}, leave-one-out(tost)]
  seed: 0..2
also:
  - {mask: dense, recipe: default}
  - {mask: lth, recipe: default, epochs: match_cost(ls)}
when:
  - {if: "mask == 'snip' and sparsity > 0.6", set: {lr: 0.1}}
exclude: ["arch == 'thin' and recipe in ['ls']"]
baselines: numbers.csv
wandb: {project: p, entity: e, mode: offline}
launch: {via: local, workers: 2, threads: 1, device: cpu}
claims:
  - {name: helps, compare: {recipe: [tost, default]}, where: "mask != 'dense'", margin: 0.3, seeds: 3}
tables: [any-mask, {name: own, rows: [mask], columns: [sparsity], values: [accuracy, density]}]
figures: [accuracy]
"""
BESIDE = {
    "thin.py": THIN,
    "base.yaml": "grid: {seed: 1}\nexclude: []\n",
    "numbers.csv": "mask,sparsity,value,source\nsnip,90%,93.1,a paper\n",
}
PLANTED = "planted"
DEEP = ["not " * 300 + "seed", "seed == " + "-" * 500 + "1", "(" * 500, "a" + ".a" * 480, "seed in [" * 90, "'\\d'"]
LONG = ["uniform(" + " " * 4000, "subsets(" * 300, "tost" + "-gsw" * 200, "a," * 2000, "9" * 5000, "1e" + "9" * 30]
PLACES = ["../../x", "..", "~nobody/x", "a\0b", "x\n", "file:/dev/zero", "imagefolder:/dev", "./thin.py:x", "this:x"]
ODD = ["", "\x1b[31m", "٣", "%s%n{0.__class__}", "a" * 100_000, "yes", "010", "12:00:00", "2001-01-01", "NaN", "-0"]
GRIDS = ["0..99999999999", "5..1", "imp:60", "subsets(tost)", "match_cost(())", f"os:system('touch {PLANTED}')"]
PLAIN = [None, True, -1, 10**38, 1e308, [], {}, ["0..999999"] * 3, [0, True, "a", None]]
TRICKS: list[Any] = [*DEEP, *LONG, *PLACES, *ODD, *GRIDS, *PLAIN]
BOMB = b"[&c [x,x,x,x,x,x,x,x,x,x]" + b"".join(
    b", &%c [%s]" % (n, b",".join([b"*%c" % (n - 1)] * 10)) for n in b"defgh"
)
RAW = [
    b"\0",
    b"\xff",
    b"&a [*a]",
    b"*a",
    b"\t",
    b"{",
    b"[" * 900,
    b"{a: " * 70,
    b"!!",
    b": ",
    b"\r\n---\n",
    BOMB + b"]",
]
RAW += [
    b"!!python/object/apply:os.system ['touch planted']",
    b"!!binary aGk=",
    b"{<<: {name: x}}",
    b'"\\ud800"',
    b".nan",
]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all mappings, lists and values."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(found for key, value in inner for found in places(value, (*path, key)))]


def changed(node: Any, path: tuple[Any, ...], draw: random.Random, others: list[Any]) -> Any:
    """Return a tree with what stands at a path gone, renamed, doubled or replaced by another value."""
    if len(path) > 1:
        inner = dict(node) if isinstance(node, dict) else list(node)
        inner[path[0]] = changed(inner[path[0]], path[1:], draw, others)
        return inner
    other = draw.choice(TRICKS if draw.randrange(2) else others)
    if not path:
        return other
    (key,) = path
    if isinstance(node, list):
        return [*node[:key], *draw.choice([[], [other], [node[key], other], node * 50]), *node[key + 1 :]]
    rest = {name: value for name, value in node.items() if name != key}
    renamed = draw.choice([key + "x", str(other)[:40], draw.choice(list(node))])
    return draw.choice([rest, {**rest, renamed: node[key]}, {**node, key: other}, {**node, key: [node[key]]}])


def wrong(seeds: list[bytes], trees: list[Any], draw: random.Random) -> bytes:
    """Return a file changed in its structure, or in its bytes."""
    if draw.randrange(3):
        others = [value for tree in trees for value in tree.values()]
        tree = draw.choice(trees)
        for _ in range(draw.choice([1, 1, 2])):
            paths = places(tree)
            tree = changed(tree, draw.choice(paths[1:] or paths), draw, others)
        return json.dumps(tree).encode()
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.randrange(1, 6)):
        at, size = draw.randrange(len(data) + 1), draw.randrange(1, 40)
        match draw.randrange(4):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size] * draw.choice([1, 50])
            case _:
                data[at:at] = draw.choice(RAW)
    return bytes(data)


def answer(path: Path) -> str:
    """Read a file as the sweep command does, and plan it where it is small; raises what is no UserError."""
    try:
        sweep = load_sweep(path)
        if sweep.size() > 200:
            return "large"
        store = Store(path.parents[1] / "runs")
        plan = make_plan(sweep, store, data_folder(sweep, None))
        check_claims(sweep, plan)
        save_plan(plan, store, sweep, whole=True)
    except UserError as error:
        return "refused" if 0 < len(str(error)) < 20_000 else f"fault: said in {len(str(error))} characters"
    return "planned"


def test_wrong_sweep_files_are_refused_or_planned_and_nothing_else(tmp_path: Path) -> None:
    seeds = [*(path.read_bytes() for path in sorted(SWEEPS.glob("*.yaml"))), GRID.encode(), RICH.encode()]
    trees = [YAML(typ="safe", pure=True).load(text) for text in seeds]
    (files := tmp_path / "a" / "b").mkdir(parents=True)
    for number in range(300):
        (files / f"{number:03d}.yaml").write_bytes(wrong(seeds, trees, random.Random(number)))
    for name, text in BESIDE.items():
        (files / name).write_text(text)
    found = outcomes("tests.chaos.test_sweep_fuzz:answer", files, pattern="*[0-9].yaml")
    came = Counter(found.values())
    assert len(found) == 300
    assert set(came) <= {"refused", "planned", "large"}, [name for name, said in found.items() if "fault" in said]
    assert min(came["refused"], came["planned"]) > 10, "they must be neither all good nor all bad"
    made = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*")} - {("a",)}
    assert made == {("a", "b"), ("a", "runs")}, "nothing is written outside of the store"
    assert not [*tmp_path.rglob(PLANTED), *Path().glob(PLANTED)]
