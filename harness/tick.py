"""`harness tick`: one look at a sweep and at its launcher, and the workers that are missing started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.allocation import refuse_salloc_shell
from harness.claims import LEASE, Observer
from harness.completing import sweeps_here
from harness.detached import Detached
from harness.launch import Launcher
from harness.launch.kept import kept, last_used
from harness.launch.local import this_machine
from harness.options import refuse_graphs
from harness.planfile import find_plan, read_plan, sweep_name
from harness.rounds import answered_round, go_round
from harness.store import Store
from harness.terminal import STORE, answered, command, cron_line, examples, note, tell
from harness.words import count

EXAMPLES = examples(
    "harness tick quickstart",
    "harness tick sweeps/quickstart.yaml --workers 2 --until 55m",
    "harness tick quickstart --workers 2 --cron",
)


def main(
    sweep: Annotated[str, typer.Argument(help="A sweep's name, or its file.", autocompletion=sweeps_here)],
    store: Annotated[Path, typer.Option(help="The store's folder.")] = STORE,
    workers: Annotated[int | None, typer.Option(help="Workers wanted on this machine.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads a worker.", min=1)] = None,
    device: Annotated[str | None, typer.Option(help="A torch device: cpu, cuda, mps.")] = None,
    until: Annotated[str, typer.Option(help="Workers leave before this much time is over: 55m, 23h30m.")] = "",
    lease: Annotated[float, typer.Option(help="Seconds without a heartbeat that mean a lost worker.", min=0.5)] = LEASE,
    cron: Annotated[
        bool,
        typer.Option("--cron", help="Print a line for a crontab that does this every ten minutes; do nothing."),
    ] = False,
) -> None:
    """Start the workers that a sweep could use and this machine lacks, and leave; for cron, or by hand, at any time.

    The sweep must have been planned by the sweep command. Workers started here outlive this command; their words go to
    runs/sweeps/NAME/workers/log-HOST. Exit codes: 0 looked, and started what was missing; 2 a mistake, 3 the store
    cannot be read or written, or the scheduler does not answer.
    """
    with answered(store):
        place = Store(store)
        saved = read_plan(find_plan(place, sweep_name(sweep)))
        name, launch = saved.plan.name, saved.launch
        if cron:
            given: dict[str, object] = {"--workers": workers, "--threads": threads, "--device": device}
            given |= {"--until": until, "--lease": lease if lease != LEASE else None}
            options = [word for option, value in given.items() if value for word in (option, value)]
            tell(cron_line("tick", name, *options, store=place.root))
            return
        elsewhere = launch.get("via", "local") != "local"
        launcher: Launcher | None = kept(place, name) if elsewhere else last_used(place, name)
        if launcher is None:
            refuse_salloc_shell()
            wanted = launch.get("workers")  # `auto` is tried out by the sweep command alone
            machine = this_machine(
                workers or (wanted if isinstance(wanted, int) else None),
                threads or launch.get("threads"),
                device or launch.get("device"),
            )
            refuse_graphs(launch.get("execution", ""), machine.device)
            argv = ["--lease", str(lease), *(["--until", until] if until else [])]
            argv += ["--fast"] if launch.get("fast") else []
            launcher = Detached(machine, place, name, argv)
        seen = answered_round(
            lambda: go_round(saved, place, launcher, Observer(lease), wait=note),
            f"run `{command('tick', name, store=store)}` again later to submit what is missing",
            note,
        )
    there = f"{count(len(seen.jobs), 'worker')} at work or waiting{' before' if seen.submitted else ''}"
    there = "another round is under way" if seen.elsewhere else there
    there += "; cancelled until the sweep command is run again" if seen.cancelled else ""
    there += f"; {seen.reached}" if seen.reached else ""
    started = [f"started {sentence}" for sentence in seen.submitted]
    for sentence in filter(None, [*started, *seen.notes(launcher), seen.waiting(launcher)]):
        tell(sentence)
    left, could = len(seen.standing.states), sum(seen.wanted.values())
    tell(f"{name}: {left} stages to do, {could} could be run now; {there}")
