"""Everything that needs a GPU, in one go and within a given time: tests, resuming, benchmarks, a real grid.

Run: bench/gpu.sh MINUTES OUT. Writes OUT/gpu.json and OUT/gpu.md; a phase that fails is told there and in the exit
code, and the next one runs all the same.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # run as a script, it would see only this folder

from bench.figures import environment, machine, table  # noqa: E402
from tests.conftest import hashes, kill_tree, results, until  # noqa: E402

RESUME = """
name: resume
protocol: {preset: quick, epochs: %d, batch: 128}
grid:
  dataset: "%s"
  arch: [resnet18, vgg16, mobilenet]
  mask: random
  sparsity: 95%%
  recipe: {tost: {lrsi: {iterations: 10}}}
  precision: [fp32, bf16]
  seed: 0
tables: [any-mask]
figures: []
"""
KILLS = 3
PART = {"train": 250, "test": 50}
"""Images of every class that the check of resuming is made with."""
SECTIONS = ("peak", "data", "loop", "cells", "packing", "ddp", "masks")
SHARED = "resnet18"
"""The network of the grid."""
MARGIN = 1.1
"""How many times the last seed's seconds must be left for another one."""


@dataclass(frozen=True)
class Setting:
    """What the phases run with."""

    device: str
    images: Path | None
    work: Path
    out: Path
    ends: float
    workers: int
    small: bool

    @property
    def left(self) -> float:
        """Return the seconds left."""
        return self.ends - time.monotonic()


def run(command: Sequence[str], setting: Setting, seconds: float | None = None, **given: Any) -> int:
    """Run a command of this python, its output shown; return its exit code, 124 where its time was over."""
    process = subprocess.Popen([sys.executable, *command], **{"cwd": setting.work, "env": environment(), **given})
    try:
        return process.wait(max(1.0, setting.left if seconds is None else seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest writes what it has, a sweep saves
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        kill_tree(process.pid)
        process.wait()
        return 124


def tests(setting: Setting) -> dict[str, Any]:
    """Run the tests marked gpu."""
    told = setting.work / "tests.xml"
    code = run(
        ["-m", "pytest", "-vv", "-m", "gpu", "-rfEs", "-p", "no:cacheprovider", "--durations=5", f"--junit-xml={told}"],
        setting,
        setting.left / 2,
        cwd=ROOT,
    )
    if not told.exists():
        return {"ok": False, "code": code}
    cases = list(ElementTree.parse(told).iter("testcase"))  # noqa: S314 - pytest wrote it just now
    ended = {
        kind: [f"{case.get('name')}" for case in cases if case.find(kind) is not None]
        for kind in ("failure", "error", "skipped")
    }
    passed = len(cases) - sum(map(len, ended.values()))
    return {
        "ok": code == 0 and passed > 0,
        "passed": passed,
        "seconds": round(sum(float(case.get("time", 0)) for case in cases)),
        **{kind: names for kind, names in ended.items() if names},
    }


def resume(setting: Setting) -> dict[str, Any]:
    """Kill a sweep's whole tree of processes again and again; compare what it ends with to an undisturbed run's."""
    dataset = "digits" if setting.images is None else f"imagefolder:{part_of(setting.images, setting.work / 'part')}"
    (setting.work / "resume.yaml").write_text(RESUME % (1 if setting.small else 4, dataset))
    sweep = ["-m", "harness.sweep", "resume.yaml", "--device", setting.device, "--workers", "3"]
    calm, store = setting.work / "calm", setting.work / "killed"
    quiet = {"stdout": subprocess.DEVNULL}
    code = run([*sweep, "--store", "calm"], setting, **quiet)
    disturbed = [*sweep, "--store", "killed", "--checkpoint-every", "0.5"]
    for _ in range(KILLS):
        before = checkpoints(store)
        process = subprocess.Popen([sys.executable, *disturbed], cwd=setting.work, env=environment(), **quiet)
        try:
            until(lambda before=before, process=process: checkpoints(store) - before or process.poll() is not None)
        finally:
            kill_tree(process.pid)
            process.wait()
    code = code or run(disturbed, setting, **quiet)
    trained = [made[0]["provenance"] for made in results(store).values() if made[0]["metrics"].get("epochs")]
    resumed = sum(said["resumed_at_step"] > 0 for said in trained)
    equal = hashes(calm) == hashes(store)
    return {
        "ok": code == 0 and equal and resumed > 0,
        "kills": KILLS,
        "trainings": len(trained),
        "resumed": resumed,
        "artifacts": len(hashes(store)),
        "equal_to_the_bit": equal,
    }


def checkpoints(store: Path) -> set[Path]:
    """Return the checkpoints that lie in a store."""
    return set(store.glob("stages/train/*/*/attempt-*/checkpoint-*"))


def part_of(images: Path, folder: Path) -> Path:
    """Link some images of every class into a folder of their own."""
    for split, count in PART.items():
        for place in sorted((images / split).iterdir()):
            (folder / split / place.name).mkdir(parents=True)
            for file in sorted(place.iterdir())[:count]:
                (folder / split / place.name / file.name).symlink_to(file)
    return folder


def bench(setting: Setting) -> dict[str, Any]:
    """Run the sections of `python -m bench` that a GPU changes; say how many workers of resnet18 share it best."""
    told = setting.out / "bench.json"
    command = ["-m", "bench", *SECTIONS, "--device", setting.device, "--out", str(told)]
    code = run([*command, *(["--small"] if setting.small else [])], setting, setting.left / 2, cwd=ROOT)
    if not told.exists():
        return {"ok": False, "code": code}
    found = json.loads(told.read_text())["sections"]
    packed = [row for row in found.get("packing", {}).get("rows", []) if row["network"] == SHARED]
    best = max(packed, key=lambda row: row["cells an hour"], default={"workers": 1})
    return {"ok": code == 0 and set(found) == set(SECTIONS), "best": best["workers"], "sections": found}


def grid(setting: Setting) -> dict[str, Any]:
    """Run the sweep bench/gpu.yaml seed by seed, as many as the time allows; return its numbers and its own table."""
    if setting.images is None:
        return {"ok": True, "said": "no images were given"}
    sweep = (HERE / "gpu.yaml").read_text()
    (setting.work / "gpu.yaml").write_text(sweep.replace("epochs: 5", "epochs: 1") if setting.small else sweep)
    if not (setting.work / "images").exists():
        (setting.work / "images").symlink_to(setting.images)
    command = ["-m", "harness.sweep", "gpu.yaml", "--device", setting.device, "--workers", str(setting.workers)]
    code, seed, took, began = 0, 0, 0.0, time.monotonic()
    while seed < 10 and setting.left > MARGIN * took:
        start = time.monotonic()
        until_then = ["--until", f"{max(1, int(setting.left))}s"]
        code = max(code, run([*command, "--only", f"seed={seed}", *until_then], setting, setting.left + 60))
        took, seed = max(took, time.monotonic() - start), seed + 1
    run(["-m", "harness.report", "gpu.yaml", "--quiet"], setting, 120)
    report = setting.work / "runs" / "sweeps" / "gpu" / "report"
    with (report / "cells.csv").open() as file:
        cells = [cell for cell in csv.DictReader(file) if cell["test@last"]]
    shutil.copy(report / "cells.csv", setting.out / "cells.csv")
    return {
        "ok": code == 0,
        "seconds": round(time.monotonic() - began),
        "workers": setting.workers,
        "sweep": (setting.work / "gpu.yaml").read_text(),
        "rows": aggregated(cells),
        "stages": spent(setting.work / "runs"),
        "table": (report / "any-mask.md").read_text(),
    }


def aggregated(cells: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Return n, mean and standard deviation by mask, sparsity and recipe, and the same of the paired differences."""
    found: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for cell in cells:
        found[cell["mask"], cell["sparsity"], cell["recipe"]][cell["seed"]] = float(cell["test@last"])
    rows = []
    for (mask, sparsity, recipe), by_seed in sorted(found.items()):
        base = found.get((mask, sparsity, "default"), {})
        gains = [by_seed[seed] - base[seed] for seed in by_seed if seed in base] if recipe != "default" else []
        rows.append(
            {"mask": mask, "sparsity": sparsity, "recipe": recipe, **moments(list(by_seed.values()))}
            | ({"difference": moments(gains)} if gains else {})
        )
    return rows


def moments(values: Sequence[float]) -> dict[str, Any]:
    """Return n, mean and sample standard deviation."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"n": len(values), "mean": statistics.mean(values), "std": std}


def spent(store: Path) -> list[dict[str, Any]]:
    """Return by kind of stage and recipe how many were made and what they took, in seconds; medians."""
    taken: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in store.glob("stages/*/*/*/result-*.json"):
        spec = json.loads((path.parent / "spec.json").read_text())
        parts = "+".join(part["name"] for part in spec.get("recipe", []))
        name = f"train {parts or 'default'}" if spec["kind"] == "train" else spec["kind"]
        taken[name].append(json.loads(path.read_text())["result"]["provenance"])
    return [
        {
            "stage": name,
            "made": len(said),
            "seconds": statistics.median(one["seconds"] for one in said),
            "gib": max(one.get("device_memory", 0) for one in said) / 2**30,
        }
        for name, said in sorted(taken.items())
    ]


PHASES: Mapping[str, Callable[[Setting], dict[str, Any]]] = {
    "tests": tests,
    "resume": resume,
    "bench": bench,
    "grid": grid,
}


def markdown(found: Mapping[str, Any], called: str) -> str:
    """Return the summary."""
    on = found["machine"]
    lines = [
        f"# On {on['device']}",
        "",
        f"{on['date']}; driver {on['driver']}, CUDA {on['cuda']}, cuDNN {on['cudnn']}, torch {on['torch']}, Python "
        f"{on['python']}, {on['cores']} CPU cores; source {on['source']}.",
    ]
    if "tests" in found:
        counts = {key: value if isinstance(value, int) else len(value) for key, value in found["tests"].items()}
        lines += ["", "## Tests marked `gpu`", "", ", ".join(f"{key}: {value}" for key, value in counts.items())]
    if "resume" in found:
        lines += ["", "## Killed and resumed", "", ", ".join(f"{k}: {v}" for k, v in found["resume"].items())]
    for name, said in found.get("bench", {}).get("sections", {}).items():
        lines += ["", f"## `python -m bench {name}`", "", table(said["rows"])]
    if "rows" in found.get("grid", {}):
        lines += ["", f"## {called}", *_grid(found["grid"])]
    return "\n".join(lines) + "\n"


def _grid(found: Mapping[str, Any]) -> list[str]:
    lines = ["", "| mask | sparsity | recipe | n | test@last | std | to default, paired | std |"]
    lines.append("|---|---|---|---:|---:|---:|---:|---:|")
    for row in found["rows"]:
        gain = row.get("difference")
        shown = [f"{row['mean']:.2f}", _std(row["std"])] + (
            [f"{gain['mean']:+.2f}", _std(gain["std"])] if gain else ["", ""]
        )
        lines.append(f"| {row['mask']} | {row['sparsity']} | {row['recipe']} | {row['n']} | {' | '.join(shown)} |")
    lines += ["", f"{found['seconds']} s with {found['workers']} workers. The product's own table:", "", found["table"]]
    lines += ["| stage | made | median s | most GiB |", "|---|---:|---:|---:|"]
    lines += [f"| {s['stage']} | {s['made']} | {s['seconds']:.1f} | {s['gib']:.2f} |" for s in found["stages"]]
    return lines


def _std(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> int:
    """Run the phases and write what they found after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=Path, help="train/CLASS/* and test/CLASS/* for the grid")
    parser.add_argument("--called", default="the images given", help="what they are, for the summary")
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--workers", type=int, default=0, help="of the grid; else as many as share best")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, help="a folder to keep the grid's store in, and to go on from")
    parser.add_argument("--small", action="store_true", help="try the whole out on a CPU")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        images = options.images.resolve() if options.images else None
        setting = Setting(
            options.device, images, work, options.out.resolve(), ends, options.workers or 1, options.small
        )
        found: dict[str, Any] = {"machine": machine(setting.device)}
        for phase in options.phases.split(","):
            print(f"== {phase}, {setting.left:.0f} s left", flush=True)
            try:
                found[phase] = PHASES[phase](setting)
            except Exception as error:  # told, and the next phase runs: a machine's time is dear
                found[phase] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            print(f"== {phase}: {json.dumps({k: v for k, v in found[phase].items() if k != 'sweep'})}", flush=True)
            if phase == "bench" and not options.workers:
                setting = replace(setting, workers=found[phase].get("best", 1))
            (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
            (options.out / "gpu.md").write_text(markdown(found, options.called))
    return int(not all(found[phase]["ok"] for phase in options.phases.split(",")))


if __name__ == "__main__":
    sys.exit(main())
