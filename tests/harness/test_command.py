"""The main command, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import claims, descendants, hashes, results, save_whole_plan, until

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_grid_trains_to_a_table_and_running_it_again_trains_nothing(sweep: Run, project: Path) -> None:
    first = sweep("tiny.yaml")
    assert first.returncode == 0, first.stderr
    assert "any-mask" in first.stdout
    assert "± " in first.stdout
    assert "10 of 10 cells done" in first.stderr
    assert "Test is a fixed stratified fifth of scikit-learn's digits." in " ".join(first.stdout.split())
    before, made = claims(project / "runs"), hashes(project / "runs")
    again = sweep("tiny.yaml")
    assert again.returncode == 0
    assert again.stdout == first.stdout
    assert claims(project / "runs") == before
    assert hashes(project / "runs") == made
    report = project / "runs" / "sweeps" / "tiny" / "report"
    assert {"report.html", "cells.csv", "any-mask.md", "any-mask.tex", "any-mask.csv"} <= {
        p.name for p in report.iterdir()
    }


def test_a_finished_stage_holds_few_files_and_no_checkpoint(sweep: Run, project: Path) -> None:
    sweep("tiny.yaml", "--only", "mask=random,seed=0,recipe=default", "--checkpoint-every", "0")
    for folder in (project / "runs" / "stages" / "train").glob("*/*"):
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        assert len(names) == 6, names
        assert not [name for name in names if "checkpoint" in name]


def test_a_lost_mask_is_made_again_only_when_something_needs_it(sweep: Run, project: Path) -> None:
    chosen = ("--only", "mask=random,seed=0")
    assert sweep("tiny.yaml", *chosen).returncode == 0
    store = project / "runs"
    made, before = hashes(store), claims(store)
    (mask,) = (store / "stages" / "mask").glob("*/*")
    (artifact,) = mask.glob("*.safetensors")
    artifact.unlink()
    assert sweep("tiny.yaml", *chosen).returncode == 0
    assert claims(store) == before, "nothing needs the mask, so nothing runs"
    text = (project / "tiny.yaml").read_text().replace("recipe: [default, ls]", "recipe: [default, ls, gsw]")
    (project / "tiny.yaml").write_text(text)
    assert sweep("tiny.yaml", *chosen).returncode == 0
    assert artifact.exists()
    assert claims(store)[mask.name] == 2
    assert {key: n for key, n in claims(store).items() if key in before and key != mask.name} == {
        key: n for key, n in before.items() if key != mask.name
    }, "the rebuilt mask is the same, so what was trained with it stands"
    assert {key: hashes(store)[key] for key in made} == made


def test_children_run_again_only_when_a_rebuilt_parent_differs(sweep: Run, project: Path) -> None:
    from harness.store import Artifact, Result, file_sha256
    from tost.masks.io import load_masks, save_masks

    chosen = ("--only", "mask=random,seed=0,recipe=default")
    assert sweep("tiny.yaml", *chosen).returncode == 0
    store = project / "runs"
    (mask,) = (store / "stages" / "mask").glob("*/*")
    (child,) = (store / "stages" / "train").glob("*/*")
    old = Result.load(mask / "result-0001.json", 1)
    assert old is not None

    def rebuilt(edition: int, shift: int) -> str:
        """Publish another edition of the mask, as another kind of machine might: the same weights kept, or others."""
        masks = load_masks(mask / old.artifact.file)
        save_masks({name: m.flatten().roll(shift).view(m.shape) for name, m in masks.items()}, mask / "draft")
        sha256 = file_sha256(mask / "draft")
        (mask / "draft").rename(mask / f"{sha256}.safetensors")
        artifact = Artifact(sha256, (mask / f"{sha256}.safetensors").stat().st_size)
        result = Result(edition, artifact, old.parents, old.metrics)
        (mask / f"result-{edition:04d}.json").write_bytes(result.dump())
        return sha256

    assert rebuilt(2, 0) == old.artifact.sha256
    assert sweep("tiny.yaml", *chosen).returncode == 0
    assert claims(store)[child.name] == 1, "the same content: the child stands"
    other = rebuilt(3, 1)
    assert other != old.artifact.sha256
    assert sweep("tiny.yaml", *chosen).returncode == 0
    assert claims(store)[mask.name] == 1
    first, second = results(store)[child.name]
    assert second["parents"][mask.name] == other
    assert first["artifact"] != second["artifact"]
    assert sweep("tiny.yaml", *chosen).returncode == 0
    assert claims(store)[child.name] == 2, "and then it stands again"


def test_the_plan_prints_sharing_and_starts_nothing(sweep: Run, project: Path) -> None:
    text = (project / "tiny.yaml").read_text().replace("[50%]", "[50%, 36%]")
    (project / "tiny.yaml").write_text(text)
    done = sweep("tiny.yaml", "--plan")
    assert done.returncode == 0
    # A seed: random 2 x 2; lottery rounds 0 to 3, of which 0 is the dense row and 2 the default cell at 36 %, two cells
    # at 50 % and one more at 36 %. Alone: random 4, lottery 2 x (4 + 1) + 2 x (2 + 1), dense 1.
    assert "18 cells, " in done.stdout
    assert "trainings: 22 with shared tickets; 42 if every cell made its own" in done.stdout
    assert not (project / "runs" / "stages").exists()


def test_only_and_limit_choose_cells_and_say_what_there_is(sweep: Run, project: Path) -> None:
    done = sweep("tiny.yaml", "--plan", "--only", "mask=random,seed=0")
    assert "tiny: 2 cells" in done.stdout
    assert "tiny: 3 cells" in sweep("tiny.yaml", "--plan", "--limit", "3").stdout
    for wrong, said in [
        ("mask=randm", "did you mean 'random'"),
        ("msk=random", "did you mean 'mask'"),
        ("seed", "AXIS=VALUE"),
    ]:
        done = sweep("tiny.yaml", "--plan", "--only", wrong)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_failing_cell_stops_no_other_and_is_listed(sweep: Run, project: Path) -> None:
    (project / "bad.py").write_text("def score(model):\n    raise RuntimeError('no score today')\n")
    text = (project / "tiny.yaml").read_text().replace("mask: [random, lth]", "mask: [random, bad]")
    (project / "tiny.yaml").write_text(
        text.replace('thin: "./thin.py:build"', 'thin: "./thin.py:build", bad: "./bad.py:score"')
    )
    done = sweep("tiny.yaml", "--only", "seed=0")
    assert done.returncode == 1
    assert "3 of 5 cells done" in done.stderr
    assert "no score today (bad.py:2); 2 cells held back" in done.stderr
    assert "Traceback" not in done.stderr
    assert "[1 mask failed]" in done.stdout
    assert "Holes: 'mask failed: RuntimeError: no score today (bad.py:2)'" in " ".join(done.stdout.split())
    (log,) = re.findall(r"log: (\S+)", done.stderr)
    assert "Traceback" in (project / log).read_text()
    assert sweep("tiny.yaml", "--only", "seed=0", "--retry", "cod").returncode == 2
    before = claims(project / "runs")
    assert sweep("tiny.yaml", "--only", "seed=0").returncode == 1
    assert claims(project / "runs") == before, "a failure is not tried again by itself"
    retried = sweep("tiny.yaml", "--only", "seed=0", "--retry", "code")
    assert "1 failed stage released" in retried.stderr
    assert sum(claims(project / "runs").values()) == sum(before.values()) + 2


def test_a_diverging_training_is_recorded_with_its_step(sweep: Run, project: Path) -> None:
    text = (
        (project / "tiny.yaml")
        .read_text()
        .replace("{preset: quick, epochs: 2}", "{preset: quick, epochs: 2, lr: 1000, warmup: 0}")
    )
    (project / "nan.py").write_text(
        "from torch import nn\n\nclass Log(nn.Module):\n    def forward(self, x):\n        return (x - 1e9).log()\n\n"
        "def build(classes, channels):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, classes), Log())\n"
    )
    (project / "tiny.yaml").write_text(text.replace("./thin.py:build", "./nan.py:build"))
    done = sweep("tiny.yaml", "--only", "mask=dense,seed=0")
    assert done.returncode == 1
    assert "diverged: digits thin dense default seed 0: the loss is not finite at epoch 1, step 1" in done.stderr
    assert "[1 diverged]" in done.stdout


SPOILT = """
import torch
import torch.distributed as dist


class Spoilt(nn.Module):
    def forward(self, x):
        mine = self.training and torch.is_grad_enabled() and dist.is_initialized() and dist.get_rank() == 1
        return x * float("nan") if mine else x
"""


@pytest.mark.slow
def test_a_divergence_in_one_of_two_processes_is_that_of_the_training(sweep: Run, project: Path) -> None:
    thin = (project / "thin.py").read_text()
    (project / "thin.py").write_text(
        thin.replace("def build", f"{SPOILT}\n\ndef build").replace("nn.Flatten()", "nn.Flatten(), Spoilt()")
    )
    text = (project / "tiny.yaml").read_text().replace("  seed: 0..1", "  seed: 0\n  world: 2")
    (project / "tiny.yaml").write_text(text)
    done = sweep("tiny.yaml", "--only", "mask=dense", "--threads", "1")
    assert done.returncode == 1
    assert "the loss is not finite at epoch 1, step 1" in done.stderr


def test_editing_a_mask_of_ones_own_runs_exactly_its_cells_again(sweep: Run, project: Path) -> None:
    mine = project / "my_mask.py"
    mine.write_text(
        "def score(model, power=1.0):\n"
        "    return {n: p.detach().abs() ** power for n, p in model.named_parameters() if p.ndim > 1}\n"
    )
    text = (project / "tiny.yaml").read_text().replace("mask: [random, lth]", "mask: [random, {mine: {power: 0.5}}]")
    (project / "tiny.yaml").write_text(
        text.replace('thin: "./thin.py:build"', 'thin: "./thin.py:build", mine: "./my_mask.py:score"')
    )
    first = sweep("tiny.yaml", "--only", "seed=0")
    assert first.returncode == 0, first.stderr
    assert "mine(power=0.5)" in first.stdout
    before = claims(project / "runs")
    mine.write_text(mine.read_text().replace("abs()", "square()"))
    assert sweep("tiny.yaml", "--only", "seed=0").returncode == 0
    new = set(claims(project / "runs")) - set(before)
    assert {key: n for key, n in claims(project / "runs").items() if key in before} == before
    kinds = sorted(path.parent.parent.name for key in new for path in (project / "runs" / "stages").glob(f"*/*/{key}"))
    assert kinds == ["mask", "train", "train"]


def test_ctrl_c_saves_and_the_next_call_goes_on(
    start: Callable[..., subprocess.Popen[bytes]], sweep: Run, project: Path
) -> None:
    (project / "tiny.yaml").write_text((project / "tiny.yaml").read_text().replace("epochs: 2", "epochs: 60"))
    process = start("harness.sweep", "tiny.yaml", "--only", "mask=dense,seed=0")
    until(lambda: list((project / "runs").glob("stages/train/*/*/attempt-0001/metrics.jsonl")))
    os.kill(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130, output
    assert "the same command goes on from here" in output
    assert "Traceback" not in output
    (attempt,) = (project / "runs").glob("stages/train/*/*/attempt-0001")
    assert json.loads((attempt / "end.json").read_text())["outcome"] == "stopped"
    assert list(attempt.glob("checkpoint-*"))
    done = sweep("tiny.yaml", "--only", "mask=dense,seed=0")
    assert done.returncode == 0, done.stderr
    (result,) = results(project / "runs")[attempt.parent.name]
    assert result["provenance"]["generation"] == 2
    assert result["provenance"]["resumed_at_step"] > 0
    rows = [json.loads(line) for line in (attempt.parent / "attempt-0002" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 61))


def test_workers_leave_with_a_killed_driver(start: Callable[..., subprocess.Popen[bytes]], project: Path) -> None:
    (project / "tiny.yaml").write_text((project / "tiny.yaml").read_text().replace("epochs: 2", "epochs: 2000"))
    process = start("harness.sweep", "tiny.yaml", "--only", "mask=dense,seed=0", "--workers", "1")
    (claim,) = until(lambda: list((project / "runs").glob("stages/train/*/*/claim-0001")))
    family = [pid for pid in descendants(process.pid) if pid != process.pid]
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: (claim.parent / "attempt-0001" / "end.json").exists())
    until(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()])
    assert json.loads((claim.parent / "attempt-0001" / "end.json").read_text())["outcome"] == "stopped"
    assert list((claim.parent / "attempt-0001").glob("checkpoint-*"))


def test_help_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys\nsys.argv = ['sweep', '--help']\nimport harness.sweep\n"
        "try:\n    harness.sweep.app()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'wandb', 'pandas', 'matplotlib', 'sklearn', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--only" in done.stdout


def test_the_schema_is_json(sweep: Run) -> None:
    schema = json.loads(sweep("--schema").stdout)
    assert "grid" in schema["properties"]


def test_on_a_login_node_the_local_launcher_waits_to_be_named(sweep: Run, project: Path, monkeypatch: object) -> None:
    folder = project / "bin"
    folder.mkdir()
    for name in ("sbatch", "sinfo"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    environment.pop("SLURM_JOB_ID", None)
    command = [sys.executable, "-m", "harness.sweep", "tiny.yaml", "--only", "mask=dense,seed=0"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--via local" in done.stderr
    done = subprocess.run(
        [*command, "--via", "local"], cwd=project, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "tiny.yaml"),
        ("sweep", "tiny.yaml", "--via", "debug"),
        ("sweep", "tiny.yaml", "--via", "ray"),
        ("sweep", "tiny.yaml", "--plan", "--pilot"),
        ("worker", "tiny"),
        ("tick", "tiny"),
        ("debug", "tiny.yaml", "--cell", "mask=dense,seed=0"),
    ],
)
def test_a_salloc_shell_beside_its_nodes_trains_nothing(project: Path, words: tuple[str, ...]) -> None:
    save_whole_plan(project)
    environment = {**os.environ, "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "no-such-node[1-2]"}
    command = [sys.executable, "-m", "harness.cli", *words]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "this shell holds job 12, but this host" in done.stderr
    assert "srun --nodes=1 --ntasks=1 --pty" in done.stderr
    assert ("--via local" if words[0] == "sweep" else "env -u SLURM_JOB_ID") in done.stderr
    assert not list(project.rglob("stages"))


NETWORKS = {
    "nn.Sequential(nn.Flatten(), nn.Linear(64, 2 * classes))": "the network returns [2, 20] for 2 images",
    "nn.Conv2d(3, 4, 3)": "the network cannot take images of shape [1, 8, 8] [channels, height, width]: ",
    "None": "the architecture returned NoneType; it must return a torch.nn.Module",
    "nn.Sequential(nn.AdaptiveAvgPool2d((1, 10)), nn.Flatten())": "the network has no weight to prune",
}
SCORES = {
    "None": "the score returned NoneType; it must return {parameter name: tensor}",
    "{'x': 1}": "the score returned nothing for '0.weight'",
    "dict.fromkeys(['0.weight', '3.weight', '8.weight'], 1.0)": "the score of '0.weight' is builtins.float",
    "{n: w.detach() / 0 for n, w in prunable(model).items()}": "the scores of '0.weight' are not all finite",
}


def test_a_network_or_score_that_does_not_fit_is_said_in_a_sentence(sweep: Run, project: Path) -> None:
    head = "from torch import nn\nfrom tost.masks import prunable\n"
    nets = [f"def net{n}(classes, channels):\n    return {body}\n" for n, body in enumerate(NETWORKS)]
    scores = [f"def score{n}(model):\n    return {body}\n" for n, body in enumerate(SCORES)]
    (project / "own.py").write_text("\n\n".join([head, *nets, *scores]))
    names = [f"net{n}" for n in range(len(nets))], [f"score{n}" for n in range(len(scores))]
    use = ", ".join(f"{name}: './own.py:{name}'" for name in (*names[0], *names[1]))
    (project / "own.yaml").write_text(
        f"name: own\nprotocol: {{preset: quick, epochs: 1}}\nuse: {{{use}, thin: './thin.py:build'}}\n"
        f"grid: {{dataset: digits, arch: [{', '.join(names[0])}], mask: random, sparsity: 50%}}\n"
        f"also: [{{arch: thin, mask: [{', '.join(names[1])}]}}]\ntables: [any-mask]\nfigures: []\n"
    )
    done = sweep("own.yaml")
    assert done.returncode == 1
    assert "0 of 8 cells done" in done.stderr
    for said in (*NETWORKS.values(), *SCORES.values()):
        assert said in done.stderr


def test_a_store_that_cannot_be_one_is_said(sweep: Run, project: Path) -> None:
    (project / "file").write_text("")
    for place in ("file", "file/below"):
        done = sweep("tiny.yaml", "--plan", "--store", place)
        assert done.returncode == 2
        assert "file is a file; name a folder" in done.stderr
