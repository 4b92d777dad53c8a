"""Wrong sweep files, made of good ones: keys and values dropped, doubled, renamed and replaced, and bytes changed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.conftest import GRID, THIN

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
RICH = """
name: rich
base: base.yaml
protocol: {preset: quick, epochs: 4, lr: 0.05, milestones: [1, 2]}
use: {thin: "./thin.py:build"}
grid:
  dataset: digits
  arch: [thin, {resnet20: {width: 0.5}}]
  mask: [random, {snip: {control: shuffled}}, lth, "file:mask.safetensors"]
  sparsity: [50%, imp:3, 0.9]
  recipe: [default, tost, {gsw: {b1: 10}}, leave-one-out(tost)]
  seed: 0..2
also:
  - {mask: dense, recipe: default}
  - {mask: lth, recipe: default, epochs: match_cost(ls)}
when:
  - {if: "mask == 'snip' and sparsity > 0.6", set: {lr: 0.1}}
exclude: ["arch == 'thin' and recipe in ['ls']"]
data: data
baselines: numbers.csv
wandb: {project: p, entity: e, mode: offline, shard_by: [dataset]}
launch: {via: local, workers: 2, threads: 1, device: cpu}
claims:
  - {name: helps, compare: {recipe: [tost, default]}, where: "mask != 'dense'", margin: 0.3, seeds: 3}
tables: [any-mask, {name: own, rows: [mask], columns: [sparsity], values: [accuracy, density]}]
figures: [accuracy]
"""
SEARCH = """
name: hunt
protocol: quick
grid: {dataset: digits, arch: resnet20, mask: snip, sparsity: 90%, recipe: [default, ls]}
search:
  space: {lr: "loguniform(0.01, 0.3)", ls.alpha: [0.1, 0.2], warmup: "uniform(0, 1)"}
  samples: {default: 4, ls: 4}
  scheduler: {asha: {grace: 1, reduction: 3}}
  write: best.yaml
"""
BESIDE = {
    "thin.py": THIN,
    "base.yaml": "grid: {seed: 1}\nexclude: []\n",
    "numbers.csv": "mask,sparsity,value,source\nsnip,90%,93.1,a paper\n",
    "mask.safetensors": "no mask",
}

Tree = Any
"""A list of pairs for a mapping, a tuple for a list, Raw, or a plain value: so that a key can stand twice."""


class Raw(str):
    """YAML as it is written."""

    __slots__ = ()


def tricks(folder: Path) -> list[Tree]:
    """Return values that a sweep file should not have, some of which would leave the folder or run code."""
    planted = folder.parent / "planted"
    names = ["../x", "../../x", "..", ".", "a/../../x", str(planted), "~/x", "~nobody/x", "-rf", "CON", "a\0b", "x\n"]
    odd = [
        "",
        " ",
        "💥",
        "\x1b[31m",
        "٣",
        "ﬀ",
        "%s%n{0.__class__}",
        "${HOME}",
        "a" * 100_000,
        "'; DROP TABLE",
        "\u202e",
    ]
    texts = ["yes", "010", "0x7f", "1_000", "12:00:00", "2001-01-01", "1e-4", ".5", "90%", "-0", "NaN", "null", "~"]
    grids = ["0..99999999999", "5..1", "imp:60", "imp:0", "subsets(tost)", "match_cost(tost)", "match_cost(())"]
    files = ["file:/dev/zero", "file:../../x", "imagefolder:/dev", "imagefolder:..", "./thin.py:build", "./thin.py:x"]
    code = [f"__import__('os').system('touch {planted}')", "os:system", "this:x", "timm:../../x", "x.yaml", "/dev/zero"]
    deep = ["not " * 300 + "seed", "seed == " + "-" * 500 + "1", "(" * 500, "a" + ".a" * 480, "seed in [" * 90, "'\\d'"]
    long = ["uniform(" + " " * 4000, "subsets(" * 300, "tost" + "-gsw" * 200, "a," * 2000, "9" * 5000, "1e" + "9" * 30]
    raw = [".nan", ".inf", "-.inf", "1e999", "&a [*a]", "!!python/object/apply:os.system [id]", "*nowhere", '"\\ud800"']
    raw += [f'!!python/object/apply:os.system ["touch {planted}"]', "!!binary aGk=", "? [a, b] : c", "- - -", "'", "\t"]
    raw += ['"\\UFFFFFFFF"', "[" * 60 + "]" * 60, "[" * 900, "{a: " * 70 + "1" + "}" * 70, "{<<: {name: x}}", "&b"]
    bomb = "[&c [x,x,x,x,x,x,x,x,x,x]" + "".join(
        f", &{b} [{','.join(['*' + a] * 10)}]" for a, b in zip("cdefg", "defgh", strict=True)
    )
    plain = [None, True, False, 0, -1, 10**38, 2**63, 1e308, -1e-308, (), [], ("0..999999",) * 3, (0, True, "a", None)]
    written = [Raw(text) for text in [*raw, bomb + "]"]]
    return [*names, *odd, *texts, *grids, *files, *code, *deep, *long, *plain, *written]


def tree(value: Any) -> Tree:
    """Return plain values as a tree that can be changed."""
    if isinstance(value, dict):
        return [[key, tree(item)] for key, item in value.items()]
    return tuple(map(tree, value)) if isinstance(value, list) else value


def written(node: Tree) -> str:
    """Return a tree as YAML."""
    if isinstance(node, Raw):
        return node
    if isinstance(node, list):
        return "{" + ", ".join(f"{written(key)}: {written(value)}" for key, value in node) + "}"
    if isinstance(node, tuple):
        return "[" + ", ".join(map(written, node)) + "]"
    return json.dumps(node)


def places(node: Tree, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Return the paths of all mappings, lists and values."""
    found = [path]
    if isinstance(node, list):
        for number, (_, value) in enumerate(node):
            found += places(value, (*path, number))
    elif isinstance(node, tuple):
        for number, value in enumerate(node):
            found += places(value, (*path, number))
    return found


def pairs(node: Tree) -> list[tuple[str, Tree]]:
    """Return all keys with their values, at any depth."""
    if isinstance(node, tuple):
        return [pair for value in node for pair in pairs(value)]
    if not isinstance(node, list):
        return []
    return [pair for key, value in node for pair in ((key, value), *pairs(value))]


def at(node: Tree, path: tuple[int, ...]) -> Tree:
    """Return what stands at a path."""
    for number in path:
        node = node[number][1] if isinstance(node, list) else node[number]
    return node


def changed(node: Tree, path: tuple[int, ...], change: Callable[[Tree], Tree]) -> Tree:
    """Return a tree with what stands at a path changed."""
    if not path:
        return change(node)
    first, *rest = path
    if isinstance(node, tuple):
        return (*node[:first], changed(node[first], tuple(rest), change), *node[first + 1 :])
    key, value = node[first]
    return [*node[:first], [key, changed(value, tuple(rest), change)], *node[first + 1 :]]


def seeds() -> list[bytes]:
    """Return good sweep files: all that come with the project, and those of tests."""
    return [*(path.read_bytes() for path in sorted(SWEEPS.glob("*.yaml"))), *map(str.encode, (GRID, RICH, SEARCH))]


class Mutants:
    """Makes wrong sweep files of good ones."""

    def __init__(self, folder: Path) -> None:
        self.seeds, self.tricks = seeds(), tricks(folder)
        self.trees = [tree(YAML(typ="safe", pure=True).load(text)) for text in self.seeds]
        self.values = [value for each in self.trees for path in places(each) if (value := at(each, path)) is not each]
        self.keys = sorted({str(key) for each in self.trees for key, _ in each} | {"b1", "mask", "lr", "gsw.b1", "if"})
        self.under: dict[str, list[Tree]] = {}
        for each in self.trees:
            for key, value in pairs(each):
                self.under.setdefault(key, []).append(value)

    def draw(self, source: random.Random) -> bytes:
        """Return a file changed in its structure, or in its bytes."""
        kind = source.randrange(4)
        if kind == 0:
            return self.bytes(source)
        node = source.choice(self.trees)
        if kind == 1:
            return written(self.gentle(node, source)).encode()
        for _ in range(source.choice([1, 1, 1, 2, 4])):
            node = changed(node, source.choice(places(node)), lambda here: self.change(here, source))
        return written(node).encode(errors="surrogatepass")

    def change(self, here: Tree, source: random.Random) -> Tree:
        """Return something else in place of a part of a tree."""
        trick = source.choice(self.tricks if source.randrange(2) else self.values)
        if isinstance(here, list) and here and not isinstance(here, Raw) and source.randrange(3):
            number = source.randrange(len(here))
            key, value = here[number]
            match source.randrange(5):
                case 0:
                    return here[:number] + here[number + 1 :]
                case 1:
                    return [*here, [key, value]]
                case 2:
                    return [*here, [source.choice(self.keys), trick]]
                case 3:
                    return [
                        *here[:number],
                        [trick if isinstance(trick, str) else key + "x", value],
                        *here[number + 1 :],
                    ]
                case _:
                    return [*here[:number], [source.choice(self.keys), value], *here[number + 1 :]]
        if isinstance(here, tuple) and here and source.randrange(2):
            return here * source.choice([2, 100, 3000]) if source.randrange(3) == 0 else (*here, trick)
        if isinstance(here, int | float) and source.randrange(2):
            return here + source.choice([-1, 1, 1000])
        match source.randrange(6):
            case 0:
                return (here,)
            case 1:
                return [[str(here)[:40], here]]
            case 2 if isinstance(here, str):
                return here + source.choice(["x", " ", "\0", "..9", "%", "/../../x", "\n", "\u0301", "-ls", ")"])
            case _:
                return trick

    def gentle(self, node: Tree, source: random.Random) -> Tree:
        """Return a tree with a key gone, keys in another order, or what another file has below the same key."""
        path = source.choice([path for path in places(node) if isinstance(at(node, path), list) and at(node, path)])
        number = source.randrange(len(at(node, path)))

        def change(here: Tree) -> Tree:
            key = here[number][0]
            match source.randrange(3):
                case 0:
                    return here[:number] + here[number + 1 :]
                case 1:
                    return source.sample(here, len(here))
                case _:
                    return [*here[:number], [key, source.choice(self.under[key])], *here[number + 1 :]]

        return changed(node, path, change)

    def bytes(self, source: random.Random) -> bytes:
        """Return a good file with some bytes other, gone, doubled or moved."""
        data = bytearray(source.choice(self.seeds))
        for _ in range(source.randrange(1, 6)):
            at, size = source.randrange(len(data) + 1), source.randrange(1, 40)
            match source.randrange(5):
                case 0:
                    data[at : at + 1] = bytes([source.randrange(256)])
                case 1:
                    del data[at : at + size]
                case 2:
                    data[at:at] = data[at : at + size] * source.choice([1, 50])
                case 3:
                    data[at:at] = source.choice(
                        [b"\0", b"\xff", b"&a ", b"*a", b"\t", b"{", b"[", b"!!", b": ", b"\r\n---\n"]
                    )
                case _:
                    data[at:] = data[at + size :] + data[at : at + size]
        return bytes(data)
