"""`harness doctor`: whether this machine, or a job of a cluster profile, has what workers need."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import UserError, printable
from harness.launch import Size
from harness.launch.profiles import find_profile, load_profile
from harness.launch.slurm import Slurm
from harness.meeting import meet
from harness.soundness import Finding, look, together
from harness.store import Store, read_json, write_whole

NAME = "doctor"
"""The sweep that its jobs go by."""
ASK = 10.0
"""Seconds between two questions to the scheduler."""


def main(
    store: Annotated[Path, typer.Option(help="The store's folder.")] = Path("runs"),
    via: Annotated[str, typer.Option(help="A cluster profile: look from inside a job of it.")] = "",
    scratch: Annotated[str, typer.Option(help="A folder on the machine's own disk.")] = "",
    device: Annotated[str | None, typer.Option(help="The device that is expected, such as cuda.")] = None,
    data: Annotated[Path, typer.Option(help="The folder of data sets.", envvar="HARNESS_DATA")] = Path("data"),
    meeting: Annotated[
        bool,
        typer.Option("--meet", help="Try the store's file system from two hosts: run this on both at the same time."),
    ] = False,
    report: Annotated[str, typer.Option(help="Write what was found into a file.", hidden=True)] = "",
) -> None:
    """Look at device, torch, the store's file system and clock, and the scheduler, and say what is missing.

    With --meet, started on two hosts within two minutes, the two contend for names in the store and measure how soon
    each sees what the other wrote. Exit codes: 0 nothing is missing, 1 something is, 2 a mistake on the command line
    or in the profile.
    """
    try:
        if meeting:
            typer.echo(f"waiting for the same command on another host: harness doctor --store {store} --meet", err=True)
            findings = list(together(meet(store)))
        else:
            findings = _in_a_job(via, Store(store)) if via else list(look(store, scratch, device, data))
    except (UserError, OSError) as error:
        typer.echo(printable(str(error)), err=True)
        raise typer.Exit(2) from None
    if report:
        write_whole(Path(report), json.dumps({"findings": [asdict(finding) for finding in findings]}).encode())
    for finding in findings:
        mark = {"ok": "ok  ", "note": "note", "bad": "BAD "}[finding.grade]
        typer.echo(printable(f"{mark}  {finding.name}: {finding.said}"))
        if finding.grade != "ok" and finding.remedy:
            typer.echo(printable(f"      -> {finding.remedy}"))
    raise typer.Exit(any(finding.grade == "bad" for finding in findings))


def _in_a_job(via: str, store: Store) -> list[Finding]:
    """Submit a job that looks, wait for it, and return what it found. Raises UserError where it cannot be had."""
    profile, document = load_profile(find_profile(via, Path.cwd()))
    launcher = Slurm(profile, store, NAME, [NAME], document)
    said = store.sweep(NAME).absolute() / f"found-{time.time():.3f}.json"
    said.parent.mkdir(parents=True, exist_ok=True)
    argv = [launcher.interpreter, "-m", "harness.cli", "doctor", "--store", str(store.root.absolute())]
    argv += ["--report", str(said), "--device", "cuda" if profile.gpus else "cpu"]
    argv += ["--scratch", profile.scratch] if profile.scratch else []
    typer.echo(f"submitted {launcher.submit_argv(Size(), 1, argv)}", err=True)
    told = ""
    while (found := read_json(said)) is None:
        jobs = launcher.poll()
        if not jobs and read_json(said) is None:
            raise UserError(f"the job ended without a word; its log is below {launcher.folder}")
        for job in jobs:
            if reason := launcher.never(job):
                launcher.cancel(jobs)
                raise UserError(f"the job can never start: {reason}")
            if job.state == "pending" and job.reason != told:
                told = job.reason
                typer.echo(f"waiting: {told}", err=True)
        time.sleep(ASK / 5 if all(job.state == "running" for job in jobs) else ASK)
    said.unlink(missing_ok=True)
    return [Finding(**finding) for finding in found["findings"]]
