"""One cell under a debugger: what it shows is what a sweep would have done, and the real store stays as it is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from harness.cli import app as harness_app
from harness.debug import app
from harness.planfile import find_plan, read_plan
from harness.store import Store
from harness.sweep import app as sweep_app
from harness.train.checkpoint import Position
from harness.train.loop import Enough, train
from harness.train.order import Order
from harness.train.profiling import SORTS, sort_of
from harness.train.replaying import Until
from harness.train.run import Training
from tests.conftest import THIN, environment, kill_tree, results, run_sweep, until, write_project

CELL = "mask=random,recipe=ls,seed=0"
Debug = Callable[..., Result]


LAYER = """
import torch


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        {body}
"""


def write_layer(body: str) -> None:
    """Put a layer of one's own into the network."""
    text = THIN.replace("nn.Flatten()", "Own(), nn.Flatten()")
    Path("thin.py").write_text(text.replace("\n\n\ndef", f"\n{LAYER.format(body=body)}\n\ndef"))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose sweep has run."""
    folder = write_project(tmp_path_factory.mktemp("real"))
    done = run_sweep(folder, "tiny.yaml", "--only", "mask=random,recipe=ls", "--workers", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Debug:
    """Run the command in a project of its own, on one thread."""
    monkeypatch.chdir(write_project(tmp_path))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--threads", "1"])

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def swept(cell: str, *more: str) -> int:
    """Run one cell of the sweep in this process; return the exit code."""
    command = ["tiny.yaml", "--only", cell, "--via", "debug", "--threads", "1", *more]
    return CliRunner().invoke(sweep_app, command).exit_code


def trained(store: Path) -> list[dict[str, object]]:
    return [json.loads(line) for path in store.glob("stages/train/*/*/attempt-*/metrics.jsonl") for line in path.open()]


def stages(store: Path, kind: str) -> list[str]:
    """Return the keys of a kind's stages in the sweep's plan."""
    plan = read_plan(find_plan(Store(store), "tiny")).plan
    return [stage.key for stage in plan.stages.values() if stage.kind == kind]


def test_the_whole_cell_has_the_sweeps_numbers_and_the_real_store_stays_as_it_was(real: Path, debug: Debug) -> None:
    before = files(real / "runs")
    done = debug("tiny.yaml", "--cell", CELL, "--from", str(real / "runs"))
    assert done.exit_code == 0, done.output
    assert "start" not in done.stderr, "data set and mask were taken over"
    key = re.search(r"train ([0-9a-f]{8})", done.stderr)
    assert key
    ((found,),) = [editions for name, editions in results(real / "runs").items() if name.startswith(key[1])]
    assert json.loads(done.stdout) == found["metrics"]
    assert files(real / "runs") == before


def test_steps_are_those_of_the_sweep(real: Path, debug: Debug) -> None:
    first = json.loads(next(real.glob("runs/stages/train/*/*/attempt-0001/metrics.jsonl")).read_text().splitlines()[0])
    losses = set()
    for seed in (0, 1):
        done = debug("tiny.yaml", "--cell", f"mask=random,recipe=ls,seed={seed}", "--steps", "21")
        assert done.exit_code == 0, done.output
        lines = re.findall(r"loss ([\d.]+), ([\d.]+) % right of (\d+)", done.stdout)
        assert len(lines) == 21
        counts = [int(count) for *_, count in lines]
        losses.add(round(sum(float(loss) * n for (loss, *_), n in zip(lines, counts, strict=True)) / sum(counts), 3))
    assert round(first["train_loss"], 3) in losses
    assert not list(Path().glob("runs")), "nothing was written where results would be"


def test_nothing_is_ever_written_where_results_are(real: Path, debug: Debug) -> None:
    before = files(real / "runs")
    (key, *_) = [key for key in stages(real / "runs", "train") if key in results(real / "runs")]
    for more in ((), ("--into", "looked")):
        done = debug("tiny", "--like", key, "--steps", "1", "--store", str(real / "runs"), *more)
        assert done.exit_code == 0, done.output
    assert Store(Path("looked")).for_debugging
    assert Store(real / "runs-debug").for_debugging
    for into in (real / "runs", real / "runs" / "."):
        done = debug("tiny", "--like", key, "--store", str(real / "runs"), "--into", str(into))
        assert done.exit_code == 2
        assert "is a store of results, which harness debug never writes into" in done.stderr
    assert files(real / "runs") == before
    done = CliRunner().invoke(sweep_app, ["tiny.yaml", "--store", "looked"])
    assert done.exit_code == 2
    assert "which may be removed at any time" in done.stderr


def test_breakpoints_work(debug: Debug) -> None:
    Path("thin.py").write_text(THIN.replace("    return nn", "    breakpoint()\n    return nn"))
    command = [sys.executable, "-m", "harness.debug", "tiny.yaml", "--cell", CELL, "--steps", "1", "--threads", "1"]
    said = "p f'{width} wide'\nc\n" * 9
    done = subprocess.run(command, input=said, capture_output=True, text=True, env=environment(), timeout=120)
    assert "6 wide" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("return self.unheard_of(x) if self.training else x", AttributeError),
        (
            "return x @ torch.zeros(7, 9)",
            RuntimeError,
        ),  # which a sweep answers with a sentence, that being enough there
        ("return x + None", TypeError),
    ],
)
def test_an_exception_shows_its_whole_traceback(body: str, kind: type[Exception], debug: Debug) -> None:
    write_layer(body)
    done = debug("tiny.yaml", "--cell", "mask=dense,seed=0", "--steps", "1")
    assert done.exit_code == 1
    assert isinstance(done.exception, kind), done.output
    assert any("thin.py" in frame.filename for frame in traceback.extract_tb(done.exception.__traceback__))


def test_what_is_damaged_beside_the_store_is_made_anew_by_the_same_command(debug: Debug) -> None:
    command = ("tiny.yaml", "--cell", CELL, "--steps", "1")
    first = debug(*command)
    (artifact,) = Path("runs-debug").glob("stages/data/*/*/*.safetensors")
    data = bytearray(artifact.read_bytes())
    data[-1] ^= 1
    artifact.unlink()
    artifact.write_bytes(data)
    told = debug(*command)
    assert told.exit_code == 2
    assert "run the same command again: it is made anew" in told.stderr
    again = debug(*command)
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines()[:2] == first.stdout.splitlines()[:2]


SCORE = """
import pathlib


def score(model):
    if not pathlib.Path("found").exists():
        raise RuntimeError("nothing was found")
    return {name: weight.abs() for name, weight in model.named_parameters()}
"""


def test_a_failed_mask_is_looked_at_by_its_key_and_tried_again_once_its_cause_is_gone(debug: Debug) -> None:
    Path("score.py").write_text(SCORE)
    text = Path("tiny.yaml").read_text().replace("[random, lth]", "own")
    Path("tiny.yaml").write_text(text.replace("use: {", 'use: {own: "./score.py:score", '))
    cell = ("--cell", "mask=own,recipe=ls,seed=0")
    assert swept(cell[1], "--store", "a store") == 1
    shown = CliRunner().invoke(harness_app, ["status", "tiny", "--store", "a store"])
    assert shown.exit_code == 0
    (line,) = re.findall(r"look at it: harness debug (.*)", shown.stdout)
    pasted = debug(*shlex.split(line))
    assert isinstance(pasted.exception, RuntimeError), pasted.output
    for copy in Path("a store-debug/plugins").rglob("*.py"):
        copy.write_text(copy.read_text() + "damaged")
    assert str(debug(*shlex.split(line)).exception) == "nothing was found", "copies of files are taken anew"
    (line,) = re.findall(r"mend the code, then (harness sweep .*)", shown.stdout)
    assert shlex.split(line)[2:] == ["tiny.yaml", "--retry", "code", "--store", "a store"]
    held = debug("tiny", *cell, "--steps", "1", "--store", "a store")
    assert held.exit_code == 2
    named = re.search(r"look at that one: --like ([0-9a-f]{8})", held.stderr)
    assert named, held.stderr
    assert any(key.startswith(named[1]) for key in stages(Path("a store"), "mask"))
    done = debug("tiny", "--like", named[1], "--store", "a store")
    assert isinstance(done.exception, RuntimeError)
    assert str(done.exception) == "nothing was found"
    Path("found").touch()
    assert debug("tiny", *cell, "--steps", "1", "--store", "a store").exit_code == 0


def test_a_failing_step_is_rebuilt_and_looked_into(debug: Debug) -> None:
    write_layer("self.seen += self.training\n        return torch.where(self.seen > 30, torch.inf, 1.0) * x")
    assert swept(CELL) == 1
    told = debug("tiny.yaml", "--cell", CELL)
    assert told.exit_code == 1
    step = re.search(r"--replay ([0-9a-f]{8})@(\d+):(\d+)", told.stderr)
    assert step, told.stderr
    done = debug("tiny", "--replay", step[1])
    assert done.exit_code == 0, done.output
    assert "not finite" in done.stdout
    kept = load_file(next(Path("runs-debug").glob(f"replay-{step[1]}-*.safetensors")))
    assert kept["images"].shape == (64, 1, 8, 8)
    assert kept["labels"].shape == (64,)
    assert {name for name in kept if name.startswith("masks/")}
    named = debug("tiny", "--replay", f"{step[1]}@{step[2]}:{step[3]}")
    assert named.stdout == done.stdout


def test_a_step_from_a_checkpoint_is_the_step_from_the_start(debug: Debug) -> None:
    Path("tiny.yaml").write_text(Path("tiny.yaml").read_text().replace("epochs: 2}", "epochs: 40}"))
    command = [sys.executable, "-m", "harness.sweep", "tiny.yaml", "--only", CELL, "--workers", "1", "--threads", "1"]
    command += ["--checkpoint-every", "0"]
    sweep = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    there = "runs/stages/train/*/*/attempt-0001/checkpoint-*"
    until(lambda: len(list(Path().glob(there))) > 1, 120)
    kill_tree(sweep.pid)
    sweep.wait()
    newest = max(Path().glob(there), key=lambda path: path.name)
    done, key = int(newest.name.split("-")[1]), newest.parents[1].name
    kept = Path(f"runs-debug/replay-{key[:8]}-{done + 1}.safetensors")
    told = debug("tiny", "--replay", f"{key}@{done + 1}")
    assert f"from the checkpoint after step {done}" in told.stderr, told.output
    from_it, stored = load_file(kept), load_file(newest)
    kept.unlink()
    told = debug("tiny.yaml", "--replay", f"{key}@{done + 1}", "--from", "nowhere")
    assert "from the start" in told.stderr, told.output
    from_start = load_file(Path("nowhere-debug") / kept.name)
    assert from_it.keys() == from_start.keys()
    assert all(torch.equal(from_it[name], from_start[name]) for name in from_it)
    assert all(torch.equal(from_it[name], stored[name]) for name in stored if name.startswith(("model/", "optimizer/")))


def test_a_checkpoint_between_two_epochs_is_gone_on_from(debug: Debug, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.train.training import find_checkpoint, state_tensors

    whole = debug("tiny.yaml", "--cell", CELL, "--steps", "1")
    (key, *_) = [key for key in stages(Path("runs-debug"), "train") if key.startswith(str(named(whole)))]

    def between(order: Order, run: Training, most: int | None = None) -> tuple[Position, dict[str, Tensor]] | None:
        """Give what a checkpoint would hold that was saved after an epoch's last step, before its evaluation."""
        assert find_checkpoint(order, run, most) is None
        kept = Ended(run.steps)
        with contextlib.suppress(Enough):
            train(run, kept)
        return dataclasses.replace(run.position), {name: value.clone() for name, value in state_tensors(run).items()}

    debug("tiny.yaml", "--replay", f"{key}@2:1")
    kept = Path(f"runs-debug/replay-{key[:8]}-22.safetensors")
    plain = load_file(kept)
    monkeypatch.setattr("harness.train.replaying.find_checkpoint", between)
    kept.unlink()
    done = debug("tiny.yaml", "--replay", f"{key}@2:1")
    assert done.exit_code == 0, done.output
    gone_on = load_file(kept)
    assert all(torch.equal(plain[name], gone_on[name]) for name in plain)


class Ended(Until):
    """Ends the loop right after so many steps, before an epoch's evaluation."""

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        if training.done == self.step:
            due()
            raise Enough


def named(done: Result) -> str:
    found = re.search(r"train ([0-9a-f]{8})", done.stderr)
    assert found, done.output
    return found[1]


def test_a_batch_is_learnt_by_heart_unless_nothing_learns(debug: Debug) -> None:
    done = debug("tiny.yaml", "--cell", "mask=dense,seed=0", "--overfit-batch", "--steps", "300")
    assert done.exit_code == 0, done.output
    assert "learnt by heart after" in done.stdout
    Path("tiny.yaml").write_text(Path("tiny.yaml").read_text().replace("epochs: 2}", "epochs: 2, lr: 1.0e-9}"))
    done = debug("tiny.yaml", "--cell", "mask=dense,seed=0", "--overfit-batch", "--steps", "20")
    assert done.exit_code == 1
    assert "not learnt in 20 steps" in done.stdout


def test_a_profile_says_where_the_time_goes(debug: Debug) -> None:
    done = debug("tiny.yaml", "--cell", "mask=dense,seed=0", "--profile", "--steps", "4")
    assert done.exit_code == 0, done.output
    shares = [float(share) for share in re.findall(r"^\S.{35} +([\d.]+) %  ", done.stdout, re.M)]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert "median of 4" in done.stdout
    assert "ceiling:" in done.stdout
    assert len(done.stdout.splitlines()) < 24, "one screen"
    (trace,) = Path("runs-debug").glob("trace-*.json")
    assert any("conv" in event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"])


@pytest.mark.parametrize(
    ("operation", "sort"),
    [
        ("aten::mkldnn_convolution", "convolutions and matrix products"),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", "convolutions and matrix products"),
        ("aten::addmm", "convolutions and matrix products"),
        ("aten::native_batch_norm_backward", "batch norm"),
        ("aten::clamp_min", "pooling and activations"),
        ("aten::_fused_sgd_", "optimizer"),
        ("aten::_log_softmax", "loss"),
        ("aten::index_select", "batches: picked, cropped, scaled"),
        ("aten::copy_", "copies and changes of layout"),
        ("aten::masked_fill_", "masks, and looking for divergence"),
        ("aten::add_", ""),
        ("aten::mul", ""),
    ],
)
def test_an_operation_is_counted_as_what_it_is(operation: str, sort: str) -> None:
    assert sort_of(operation) == sort
    assert sort in {*SORTS, ""}


def test_anomaly_names_the_operation(debug: Debug) -> None:
    write_layer("return (x - x).sqrt() * x")
    done = debug("tiny.yaml", "--cell", "mask=dense,seed=0", "--steps", "2", "--anomaly")
    assert "returned nan values" in str(done.exception), str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "tiny.yaml has 10 cells; say which: --cell mask="),
        (("--cell", "mask=randon"), "did you mean 'random'?"),
        (("--cell", "mask=random"), "4 cells match; they differ in recipe, seed"),
        (("--cell", CELL, "--like", "abcd"), "--cell and --like both say which stage"),
        (("--cell", CELL, "--profile", "--overfit-batch"), "--overfit-batch and --profile do not go together"),
        (("--cell", CELL, "--break"), "--replay names"),
        (("--cell", CELL, "--anomaly", "--profile"), "--anomaly: --profile would time it; leave it out"),
        (("--cell", CELL, "--store", "/"), "is no store; name its folder"),
        (("--cell", CELL, "--device", "foo"), "--device foo cannot be used here"),
        (("--replay", "abcd@2:00"), "write KEY@EPOCH:STEP"),
        (("--replay", "xyz"), "write KEY@EPOCH:STEP"),
        (("--replay", "abcd@0:1"), "write KEY@EPOCH:STEP"),
        (("--like", "abcd"), "0 stages' keys begin so"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(arguments: tuple[str, ...], said: str, debug: Debug) -> None:
    done = debug("tiny.yaml", *arguments)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output


def test_a_step_that_is_none_of_the_training_is_refused(debug: Debug) -> None:
    debug("tiny.yaml", "--cell", CELL, "--steps", "1")
    (key, *_) = stages(Path("runs-debug"), "train")
    done = debug("tiny.yaml", "--replay", f"{key}@9:1")
    assert done.exit_code == 2
    assert "this training has steps 1 to 42, 21 an epoch; not 169" in done.stderr
    done = debug("tiny.yaml", "--replay", f"{key}@1:22")
    assert "an epoch of this training has 21 steps, not 22" in done.stderr
