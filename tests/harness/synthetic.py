"""A store with made-up results of a real plan: what a report reads, without training anything."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from harness.check import load_sweep
from harness.facts import Place
from harness.plan import Stage
from harness.planfile import SavedPlan, as_saved, find_plan, read_plan, save_plan
from harness.planner import make_plan
from harness.registry import register
from harness.store import Artifact, Result, Store, forget_index

FIXTURE = Path(__file__).parent / "fixtures" / "results.csv"
SWEEP = """
name: synthetic
protocol: {preset: quick, epochs: 12}
grid:
  dataset: digits
  arch: [resnet20, resnet32]
  mask: [random, snip, lth]
  sparsity: [90%, 95%, 98%]
  recipe: [default, gsw, ls, tost]
  seed: 0..3
also:
  - {mask: dense}
  - {mask: dense, arch: resnet20, recipe: tost}
exclude:
  - "mask == 'dense' and recipe in ['gsw', 'ls']"
  - "mask == 'dense' and arch == 'resnet32' and recipe == 'tost'"
baselines: published.csv
claims:
  - {name: tost-helps, compare: {recipe: [tost, default]}, where: "mask != 'dense'", margin: 1, seeds: 4}
  - name: ls-is-harmless
    compare: {recipe: [ls, default]}
    where: "mask != 'dense' and sparsity < 0.97"
    margin: 2
    seeds: 3
  - name: more-seeds
    compare: {recipe: [gsw, default]}
    where: "mask == 'snip'"
    margin: 0.5
    seeds: 4
tables:
  - {shape: any-mask, emphasis: best}
  - {shape: components, emphasis: significant}
  - {name: cost, rows: [mask], columns: [sparsity], blocks: [arch], values: [accuracy, training_flops]}
"""
PUBLISHED = """arch,mask,sparsity,recipe,value,std,n,source
resnet32,snip,90%,default,88.5,0.4,5,"Lee et al., 2019 (made up)"
resnet32,rigl,90%,default,91.25,,,"<b>Evci & al.</b>, 2020 100% (made up)"
"""
BROKEN = "digits resnet32 lth round 12 ticket seed 3"
LAYERS = {"conv1.weight": 40, "layer1.0.conv1.weight": 120, "layer2.0.conv1.weight": 240, "fc.weight": 100}
AXES = ("arch", "mask", "sparsity", "recipe", "seed")
HOSTS = ("node1", "node2")


def fixture() -> dict[tuple[str, ...], dict[str, str]]:
    """Return the stored results by (arch, mask, sparsity, recipe, seed)."""
    with FIXTURE.open() as file:
        return {tuple(row[axis] for axis in AXES): row for row in csv.DictReader(file)}


def write_fixture_store(folder: Path) -> tuple[Store, SavedPlan]:
    """Write the store of the stored fixture, and its sweep beside it."""
    (folder / "published.csv").write_text(PUBLISHED)
    (folder / "synthetic.yaml").write_text(SWEEP)
    rows = fixture()

    def row_of(place: Mapping[str, str]) -> Mapping[str, str]:
        return rows[tuple(place[axis] for axis in AXES)]

    return write_store(folder, folder / "synthetic.yaml", row_of, BROKEN)


def write_store(
    folder: Path, file: Path, row_of: Callable[[Mapping[str, str]], Mapping[str, str]], broken: str = ""
) -> tuple[Store, SavedPlan]:
    """Write the store of a sweep, and return its plan read back.

    `row_of`: axis -> label to a row with `state`, `test`, `dev` and `cause`; `broken`: the label of a failed stage.
    """
    store, sweep = Store(folder / "runs"), load_sweep(file)
    plan = make_plan(sweep, store, folder)
    saved = as_saved(plan, sweep)
    save_plan(plan, store, sweep, whole=True)
    forget_index(store)
    register(saved, store)
    cells = {cell.key: (dict(zip(saved.axes, cell.labels, strict=True)), cell) for cell in saved.cells}
    made: dict[str, str] = {}
    for key, stage in plan.stages.items():
        if any(parent not in made for parent in stage.parents.values()):
            continue
        if (before := store.folder(stage.kind, key).result()) is not None:
            made[key] = before.artifact.sha256
            continue
        place, cell = cells.get(key, ({}, None))
        row = row_of(place) if cell else {"state": "done", "test": "", "dev": "", "cause": ""}
        if stage.label == broken:
            row = {"state": "failed:code", "cause": "out of luck"}
        if row["state"] == "done":
            made[key] = finish(store, stage, {p: made[p] for p in stage.parents.values()}, cell, place, row)
        elif row["state"] != "missing":
            end(store, stage, row)
    return store, read_plan(find_plan(store, plan.name))


def finish(
    store: Store,
    stage: Stage,
    parents: Mapping[str, str],
    cell: Place | None,
    place: Mapping[str, str],
    row: Mapping[str, str],
) -> str:
    """Write a stage's result; return its artifact's SHA-256."""
    folder = store.path(stage.kind, stage.key)
    (folder / "attempt-0001").mkdir(parents=True)
    (folder / "claim-0001").write_bytes(b"")
    data = masks(stage) if stage.kind == "mask" else stage.key.encode()
    artifact = Artifact(hashlib.sha256(data).hexdigest(), len(data))
    if stage.kind == "mask":
        (folder / artifact.file).write_bytes(data)
    host = HOSTS[int(stage.key[0], 16) % 2]
    metrics: dict[str, Any] = {"note": "images are made up"} if stage.kind == "data" else {}
    if cell is not None:
        metrics = measured(cell, place, float(row["test"]), float(row["dev"]))
        rows = curve(int(cell.facts.protocol["epochs"]), float(row["test"]), float(row["dev"]), stage.key)
        (folder / "attempt-0001" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    told = {"source": "0" * 16, "git": "1" * 40, "host": host, "generation": 1}
    told |= {"seconds": 60.0, "finished": "2026-01-02T03:04:05Z"}
    theta0 = hashlib.sha256(f"{place.get('arch')} {place.get('ticket_seed')}".encode()).hexdigest()[:32]
    stamp = {"device": "cpu", "threads": 1, "theta0": theta0}
    result = Result(1, artifact, parents, metrics, stamp, told)
    (folder / "result-0001.json").write_bytes(result.dump())
    return artifact.sha256


def end(store: Store, stage: Stage, row: Mapping[str, str]) -> None:
    """Write how a stage failed."""
    folder = store.path(stage.kind, stage.key)
    (folder / "attempt-0001").mkdir(parents=True)
    (folder / "claim-0001").write_bytes(b"")
    outcome, _, cause = row["state"].partition(":")
    body = {"outcome": outcome, "cause": cause or outcome, "message": row["cause"]}
    (folder / "attempt-0001" / "end.json").write_text(json.dumps(body))
    (folder / "attempt-0001" / "log").write_text(f"Traceback (most recent call last):\n{row['cause']}\n")


def masks(stage: Stage) -> bytes:
    """Return made-up masks of a stage's density."""
    density = float(eval_fraction(stage.spec["sparsity"].get("density", "1/10"))) if "sparsity" in stage.spec else 0.1
    draw = np.random.default_rng(int(stage.key[:8], 16))
    tensors = {name: np.zeros(size, np.uint8) for name, size in LAYERS.items()}
    for tensor in tensors.values():
        tensor[draw.permutation(tensor.size)[: max(1, round(density * tensor.size))]] = 1
    return bytes(save({name: tensor.reshape(-1, 4) for name, tensor in tensors.items()}))  # one row is no mask


def eval_fraction(text: str) -> float:
    """Return a fraction such as 1/10 as a number."""
    above, _, below = text.partition("/")
    return int(above) / int(below or 1)


def measured(cell: Place, place: Mapping[str, str], test: float, dev: float) -> dict[str, Any]:
    """Return made-up metrics around a cell's accuracies."""
    density = 1 - cell.facts.share
    total = sum(LAYERS.values())
    kept = {name: max(1, round(size * density * (0.6 + 0.2 * n))) for n, (name, size) in enumerate(LAYERS.items())}
    sparse = cell.facts.mask != "dense"
    return {
        "test@last": test,
        "test@best-dev": test - 0.25,
        "best_epoch": 9,
        "epochs": int(cell.facts.protocol["epochs"]),
        "dev_accuracy": dev,
        "train_loss": 0.1,
        "parameters": total + 20,
        "parameters_kept": sum(kept.values()) + 20,
        "kept": sum(kept.values()) if sparse else None,
        "prunable": total if sparse else None,
        "density": sum(kept.values()) / total,
        "density_with_ghosts": sum(kept.values()) / total,
        "layers": {name: [size, kept[name], 0] for name, size in LAYERS.items()},
        "empty_layers": [],
        "dead_filters": 1,
        "inference_flops": sum(kept.values()) * 200,
        "inference_flops_dense": total * 200,
        "training_flops": sum(kept.values()) * 10**7,
        "training_flops_dense": total * 10**7,
        "ghost_operations": len(cell.facts.parts) * 10**6,
        "ghost_parameters": 0,
        "near_zero": 0.3 + 0.5 * cell.facts.share,
        "silent_channels": 2,
        "activations": {f"relu{n}": [0.2 + 0.1 * n + 0.3 * cell.facts.share, n, 16] for n in range(4)},
        "ghosts_stay": False,
    }


def curve(epochs: int, test: float, dev: float, key: str) -> list[dict[str, Any]]:
    """Return made-up rows that rise to a cell's accuracies."""
    draw = random.Random(key)
    rows = []
    for epoch in range(1, epochs + 1):
        rise = 1 - math.exp(-4 * epoch / epochs)
        accuracy = dev * rise + (draw.random() if epoch < epochs else 0.0)
        row = {
            "epoch": epoch,
            "lr": 0.1,
            "train_loss": 2.3 * (1 - rise) + 0.05,
            "train_accuracy": min(100.0, accuracy + 1),
            "dev_accuracy": accuracy,
            "best": epoch == 9,
            "ghosts": epoch <= epochs // 3,
        }
        rows.append(row | ({"test_accuracy": test} if epoch == epochs else {}))
    return rows


def draw_fixture(places: Iterable[Mapping[str, str]]) -> str:
    """Draw the stored fixture: effects of recipes, seeds and noise of known size, and some that went wrong."""
    draw = random.Random(2022)
    bases = {"dense": 95.0, "random": 84.0, "snip": 88.0, "lth": 91.0}
    gains = {"default": 0.0, "gsw": 0.1, "ls": 0.2, "tost": 1.5}
    of_seed = [draw.gauss(0, 0.3) for _ in range(16)]
    lines = ["arch,mask,sparsity,recipe,seed,state,test,dev,cause"]
    for place in places:
        drop = {"0%": 0.0, "90%": 0.0, "95%": 1.5, "98%": 6.0}[place["sparsity"]]
        wide = 1.0 if place["arch"] == "resnet32" else 0.0
        test = bases[place["mask"]] - drop + wide + gains[place["recipe"]]
        test += of_seed[int(place["seed"])] + draw.gauss(0, 0.4)
        state, cause, luck = "done", "", draw.random()
        if luck < 0.02:
            state, cause = "failed:code", "RuntimeError: <script>alert(1)</script> & 50% of $x_1$ {were} \\\\bad #1"
        elif luck < 0.03:
            state, cause = "diverged", "the loss is not finite in epoch 3"
        elif luck < 0.04:
            state, cause = "failed:input", "a layer would be left empty"
        elif luck < 0.05:
            state = "missing"
        lines.append(
            f"{place['arch']},{place['mask']},{place['sparsity']},{place['recipe']},{place['seed']},{state},"
            f"{test:.2f},{test + draw.gauss(0.3, 0.2):.2f},{cause}"
        )
    return "\n".join(lines) + "\n"
