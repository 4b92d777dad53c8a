"""`python -m harness.debug SWEEP --cell AXIS=VALUE,...`: one cell, in this process, where a debugger reaches it."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.debugging import Case, check_step, open_case
from harness.errors import UserError, printable
from harness.launch.local import this_machine
from harness.launching import DEBUG_LEASE
from harness.store import Store
from harness.supervisor import Setup

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

STEPS = {"overfit": 200, "profile": 10}
"""Steps of a way to look at a training, where none are given."""
EXAMPLES = """Examples:

\b
  python -m harness.debug sweeps/quickstart.yaml --cell mask=snip,sparsity=0.9,recipe=ls,seed=0 --steps 20
  python -m harness.debug sweeps/quickstart.yaml --cell mask=dense,recipe=default,seed=0 --profile
  python -m harness.debug quickstart --like 3fa9c1 --anomaly
  python -m harness.debug quickstart --replay 3fa9c1@2:5 --break
"""


@dataclass(frozen=True)
class Wish:
    """How a stage is to be looked at."""

    steps: int | None = None
    overfit: bool = False
    profile: bool = False
    replay: str = ""
    halt: bool = False
    anomaly: bool = False

    @property
    def way(self) -> str:
        """Return the option that says how, empty where the stage is run to its end."""
        ways = {"--overfit-batch": self.overfit, "--profile": self.profile, "--replay": bool(self.replay)}
        chosen = [name for name, wanted in ways.items() if wanted]
        if len(chosen) > 1:
            raise UserError(f"{' and '.join(chosen)} do not go together: choose one")
        return chosen[0] if chosen else "--steps" if self.steps else ""

    def check(self, kind: str, label: str) -> None:
        """Raise UserError where a stage cannot be looked at in this way."""
        if self.halt and not self.replay:
            raise UserError("--break stops before the step that --replay names; elsewhere, write breakpoint()")
        if self.replay and self.steps:
            raise UserError("--replay is of one step: leave --steps out")
        if self.way and kind != "train":
            raise UserError(f"{self.way}: {label} is a {kind} stage without steps; leave it out, and it is run whole")


@app.command(epilog=EXAMPLES)
def main(
    sweep: Annotated[str, typer.Argument(help="A sweep file, or the name of a sweep in the store.")],
    cell: Annotated[str, typer.Option(help="The cell, as mask=snip,seed=0.", metavar="AXIS=VALUE,...")] = "",
    like: Annotated[str, typer.Option(help="A stage, by its key's first digits: one that failed.", metavar="KEY")] = "",
    replay: Annotated[
        str, typer.Option(help="The weights and batch of one step; KEY alone: of the one that it diverged at.")
    ] = "",
    halt: Annotated[bool, typer.Option("--break", help="With --replay: stop in the debugger before the step.")] = False,
    steps: Annotated[int | None, typer.Option(help="Only so many steps, each of them told.", min=1)] = None,
    overfit: Annotated[
        bool, typer.Option("--overfit-batch", help="Train on one batch alone: is it learnt by heart?")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Where a step's time goes, and its ceiling.")] = False,
    anomaly: Annotated[
        bool, typer.Option("--anomaly", help="Let autograd name the operation whose gradient is not a number.")
    ] = False,
    source: Annotated[
        Path, typer.Option("--from", help="The store that finished stages are taken from; nothing is written there.")
    ] = Path("runs"),
    store: Annotated[
        Path | None, typer.Option(help="Run it in this store, as --via debug does, and publish its result.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of data sets.")] = None,
    device: Annotated[str | None, typer.Option(help="A torch device: cpu, cuda, mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
) -> None:
    """Run one cell in this process: breakpoint() and print() work, and an exception shows its whole traceback.

    What the cell is made from (data set, masks, earlier rounds) is taken from the store where it is finished there, and
    else made, in a folder beside the store (runs-debug), where the next call finds it. Exit codes: 0 it ran; 1 it
    failed, or the batch was not learnt; 2 a mistake on the command line or in the file.
    """
    wish = Wish(steps, overfit, profile, replay, halt, anomaly)
    try:
        given = {"--cell": cell, "--like": like, "--replay": check_step(replay) if replay else ""}
        named = [option for option, value in given.items() if value]
        if len(named) > 1:
            raise UserError(f"{' and '.join(named)} both say which stage: give one of them")
        if store is not None and wish.way:
            raise UserError(f"--store publishes a result, {wish.way} has none: leave one of them out")
        option = named[0] if named else "--cell"
        here = this_machine(1, threads, device)
        os.environ["OMP_NUM_THREADS"] = str(here.threads)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler speaks of devices that are not there
        setup = Setup(here.device, here.threads, lease=DEBUG_LEASE, as_one=True)
        own = Store(store if store is not None else source.with_name(f"{source.name}-debug"))
        case = open_case(sweep, given[option], option, Store(source if store is None else store), own, data, _say)
        wish.check(case.stage.kind, case.stage.label)
        if case.own:
            case.make_ready(setup)
            code = _look(case, setup, wish)
        else:
            metrics = case.run(setup)
            code = 1 if metrics is None else 0
            if metrics is not None:
                _result(metrics)
    except UserError as error:
        typer.echo(printable(str(error), 20_000), err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(code)


def _look(case: Case, setup: Setup, wish: Wish) -> int:
    """Look at a stage that all is ready for; return the exit code. Whatever it raises is raised."""
    from harness.train.debugging import at_work, overfit, run_steps, run_whole
    from harness.train.loop import Diverged
    from harness.train.order import Corrupt

    with tempfile.TemporaryDirectory(prefix="harness-debug-") as attempt:
        try:
            with at_work(case.order(setup, Path(attempt)), wish.anomaly) as order:
                if wish.replay:
                    _replay(case, order, wish)
                elif wish.overfit:
                    return 0 if overfit(order, wish.steps or STEPS["overfit"], _result) else 1
                elif wish.profile:
                    _profile(case, order, wish.steps or STEPS["profile"])
                elif wish.steps:
                    run_steps(order, wish.steps, _result, wish.anomaly)
                else:
                    _result(run_whole(order, _say, wish.anomaly))
        except Diverged as error:
            typer.echo(f"diverged: {error}", err=True)
            step = f"{case.stage.key[:8]}@{error.epoch + 1}:{error.step + 1}"
            typer.echo(f"what was in it: --replay {step}", err=True)
            return 1
        except Corrupt as error:
            raise UserError(f"{error}; run the same command again: it is made anew") from None
    return 0


def _profile(case: Case, order: Any, steps: int) -> None:
    from harness.train.profiling import look_closely

    trace = case.store.root / f"trace-{case.stage.key[:8]}.json"
    _result("\n".join(look_closely(order, steps, trace)))


def _replay(case: Case, order: Any, wish: Wish) -> None:
    from harness.train.replaying import batch, examine, keep, reach

    epoch, step = case.step(wish.replay)
    run = reach(order, epoch, step, _say)
    images, labels = batch(run)
    file = case.store.root / f"replay-{case.stage.key[:8]}-{run.done + 1}.safetensors"
    keep(run, images, labels, file)
    if wish.halt:
        _say("run, images and labels are what the step begins with; examine(run, images, labels) does it; c goes on")
        breakpoint()
    _result("\n".join(examine(run, images, labels)))
    _result(f"kept: {file}: model/NAME, masks/NAME, optimizer/..., images, labels, by safetensors.torch.load_file")


def _say(sentence: str) -> None:
    typer.echo(printable(sentence), err=True)


def _result(found: Any) -> None:
    typer.echo(found if isinstance(found, str) else json.dumps(dict(found), indent=1, default=str))


if __name__ == "__main__":
    app()
