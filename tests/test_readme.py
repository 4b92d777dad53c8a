"""The README's own examples, run as they stand."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.cell import expand
from harness.check import load_sweep
from tests.documents import blocks, check_options

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(language: str, containing: str) -> str:
    (text,) = [b for b in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in b]
    return str(text)


def test_the_mask_of_ones_own_trains(sweep: Callable[..., subprocess.CompletedProcess[str]], project: Path) -> None:
    (project / "my_mask.py").write_text(block("python", "my_mask.py"))
    (project / "my_sweep.yaml").write_text(block("yaml", "my_sweep.yaml"))
    done = sweep("my_sweep.yaml")
    assert done.returncode == 0, done.stderr
    assert "mine(power=0.5)" in done.stdout


def test_the_sweep_file_is_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(block("yaml", "name: mine"))
    assert expand(load_sweep(tmp_path / "mine.yaml"))[0]


def test_the_commands_and_options_it_names_exist() -> None:
    shells = [found for found in blocks(README) if found.language == "sh"]
    lines = [words for shell in shells for words in replace(shell, title="not run here").commands()]
    assert len(lines) > 10
    for words in lines:
        check_options(words)


def test_the_numbers_of_the_quickstart_are_true(tmp_path: Path) -> None:
    from harness.planner import make_plan
    from harness.store import Store

    plan = make_plan(load_sweep(Path(__file__).parents[1] / "sweeps" / "quickstart.yaml"), Store(tmp_path), tmp_path)
    trainings = sum(stage.kind == "train" for stage in plan.stages.values())
    assert (
        f"{len(plan.cells)} cells take {trainings} trainings instead of {plan.unshared_trainings()}"
        in README.replace("\n", " ")
    )
