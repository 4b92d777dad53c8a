"""`python -m harness.debug SWEEP --cell AXIS=VALUE,...`: one cell, in this process, where a debugger reaches it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.allocation import refuse_salloc_shell
from harness.debugging import Case, check_step, open_case, own_store
from harness.errors import UserError
from harness.launch.local import this_machine
from harness.launching import DEBUG_LEASE
from harness.store import Store
from harness.supervisor import Setup
from harness.terminal import STORE, answered, enter, examples, note, tell, tell_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

STEPS = {"overfit": 200, "profile": 10}
"""Steps of a way to look at a training, where none are given."""
ELSEWHERE = "mend that, or name another folder with --into"
EXAMPLES = examples(
    "harness debug sweeps/quickstart.yaml --cell mask=snip,sparsity=0.9,recipe=ls,seed=0 --steps 20",
    "harness debug sweeps/quickstart.yaml --cell mask=dense,recipe=default,seed=0 --profile",
    "harness debug quickstart --like 3fa9c1 --anomaly",
    "harness debug quickstart --replay 3fa9c1@2:5 --break",
)


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
        if self.anomaly and self.way in ("--profile", "--replay"):
            raise UserError(
                f"--anomaly: {self.way} {'does that anyway' if self.replay else 'would time it'}; leave it out"
            )
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
    store: Annotated[
        Path,
        typer.Option("--store", "--from", help="The store that finished stages are taken from; it stays as it is."),
    ] = STORE,
    into: Annotated[
        Path | None,
        typer.Option(help="The folder that all is written to, else one beside the store; never a store of results."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of data sets.")] = None,
    device: Annotated[str | None, typer.Option(help="A torch device: cpu, cuda, mps.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
) -> None:
    """Run one cell in this process: breakpoint() and print() work, and an exception shows its whole traceback.

    What the cell is made from (data set, masks, earlier rounds) is taken from the store where it is finished there, and
    else made, in a folder beside the store (runs-debug), where the next call finds it; nothing is ever published into
    the store. Exit codes: 0 it ran; 1 it failed, or the batch was not learnt; 2 a mistake on the command line or in the
    file; 3 the store cannot be read or written.
    """
    wish = Wish(steps, overfit, profile, replay, halt, anomaly)
    with answered(into or f"{store}-debug", ELSEWHERE):
        refuse_salloc_shell()
        given = {"--cell": cell, "--like": like, "--replay": check_step(replay) if replay else ""}
        named = [option for option, value in given.items() if value]
        if len(named) > 1:
            raise UserError(f"{' and '.join(named)} both say which stage: give one of them")
        real, own = _stores(store, into)
        option = named[0] if named else "--cell"
        here = this_machine(1, threads, device)
        os.environ["OMP_NUM_THREADS"] = str(here.threads)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler speaks of devices that are not there
        setup = Setup(here.device, here.threads, lease=DEBUG_LEASE, as_one=True)
        case = open_case(sweep, given[option], option, real, own, data, note)
        wish.check(case.stage.kind, case.stage.label)
        _check_device(setup.device)
        if case.stage.world > 1:
            note(f"{case.stage.label} asks for {case.stage.world} processes; here one trains it, to rounding the same")
        case.make_ready(setup)
    raise typer.Exit(_look(case, setup, wish))


def _check_device(device: str) -> None:
    from harness.train.process import unfit  # torch, which no mistake before it has to wait for

    if said := unfit(device):
        raise UserError(f"--device {device} cannot be used here: {said}")


def _stores(store: Path, into: Path | None) -> tuple[Store, Store]:
    """Return the store that finished stages are taken from, and the one to run in."""
    place = Path(os.path.abspath(store))
    if not place.name:
        raise UserError(f"--store {store}: is no store; name its folder, such as runs")
    return Store(place), own_store(into or place.with_name(f"{place.name}-debug"))


def _look(case: Case, setup: Setup, wish: Wish) -> int:
    """Look at a stage that all is ready for; return the exit code. An exception that is no user's mistake is raised."""
    from harness.train.debugging import at_work
    from harness.train.loop import Diverged
    from harness.train.order import Corrupt
    from harness.train.process import TROUBLE

    with tempfile.TemporaryDirectory(prefix="harness-debug-") as attempt:
        try:
            with at_work(case.order(setup, Path(attempt), bool(wish.replay)), wish.anomaly) as order:
                return _shown(case, order, wish)
        except Diverged as error:
            note(f"diverged: {error}")
            note(f"what was in it: --replay {case.stage.key[:8]}@{error.epoch + 1}:{error.step + 1}")
            return 1
        except Corrupt as error:
            Path(order.parents[error.role][0]).unlink(missing_ok=True)  # of the store beside the real one
            note(f"{error}; run the same command again: it is made anew")
        except OSError as error:
            if error.errno not in TROUBLE:  # of a network or a method
                raise
            note(f"{error.filename or case.store.root}: {error.strerror}; {ELSEWHERE}")
            return 3
        except UserError as error:
            if error.__cause__ is not None:  # a network's or a method's own: here it is wanted whole
                note(str(error))
                raise error.__cause__ from None
            note(str(error))
        return 2


def _shown(case: Case, order: Any, wish: Wish) -> int:
    """Show a stage in the way that is wished for; return the exit code."""
    from harness.train.debugging import overfit, run_steps, run_whole

    if wish.overfit:
        return 0 if overfit(order, wish.steps or STEPS["overfit"], tell, wish.anomaly) else 1
    if wish.replay:
        _replay(case, order, wish)
    elif wish.profile:
        _profile(case, order, wish.steps or STEPS["profile"])
    elif wish.steps:
        run_steps(order, wish.steps, tell, wish.anomaly)
    else:
        tell_json(run_whole(order, note, wish.anomaly))
    return 0


def _profile(case: Case, order: Any, steps: int) -> None:
    from harness.train.profiling import look_closely

    trace = case.store.root / f"trace-{case.stage.key[:8]}.json"
    tell("\n".join(look_closely(order, steps, trace)))


def _replay(case: Case, order: Any, wish: Wish) -> None:
    from harness.train.replaying import batch, examine, keep, reach

    epoch, step = case.step(wish.replay)
    run = reach(order, epoch, step, note)
    images, labels = batch(run)
    file = case.store.root / f"replay-{case.stage.key[:8]}-{run.done + 1}.safetensors"
    keep(run, images, labels, file)
    if wish.halt:
        note("run, images and labels are what the step begins with; examine(run, images, labels) does it; c goes on")
        breakpoint()
    tell("\n".join(examine(run, images, labels)))
    tell(f"kept: {file}: model/NAME, masks/NAME, optimizer/..., images, labels, by safetensors.torch.load_file")


if __name__ == "__main__":
    enter(app)
