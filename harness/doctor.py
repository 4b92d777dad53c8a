"""`harness doctor`: whether this machine, or a job of a cluster profile, has what workers need."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from harness.allocation import insist
from harness.completing import profiles_here
from harness.errors import UserError
from harness.launch import Size
from harness.launch.profiles import find_profile, load_profile
from harness.launch.slurm import Slurm
from harness.soundness import Finding, look
from harness.store import Store, read_json, write_whole
from harness.terminal import STORE, answered, command, examples, note, tell, tell_json

NAME = "doctor"
"""What the sweeps that its jobs go by begin with, one a call."""
ASK = 10.0
"""Seconds between two questions to the scheduler."""


EXAMPLES = examples(
    "harness doctor",
    "harness doctor --store runs --data data --json",
    "harness doctor --via slurm/a100.yaml",
)


def main(
    store: Annotated[Path, typer.Option(help="The store's folder.")] = STORE,
    via: Annotated[
        str, typer.Option(help="A cluster profile: look from inside a job of it.", autocompletion=profiles_here)
    ] = "",
    scratch: Annotated[str, typer.Option(help="A folder on the machine's own disk.")] = "",
    device: Annotated[str | None, typer.Option(help="The device that is expected, such as cuda.")] = None,
    data: Annotated[Path, typer.Option(help="The folder of data sets.", envvar="HARNESS_DATA")] = Path("data"),
    as_text: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    report: Annotated[str, typer.Option(help="Write what was found into a file.", hidden=True)] = "",
) -> None:
    """Look at device, torch, the store's file system and clock, and the scheduler, and say what is missing.

    Exit codes: 0 nothing is missing, 1 something is, 2 a mistake on the command line or in the profile, 3 the store
    cannot be read or written, or the scheduler does not answer.
    """
    with answered(store):
        findings = _in_a_job(via, Store(store)) if via else list(look(store, scratch, device, data))
    told = {"findings": [asdict(finding) for finding in findings]}
    if report:
        write_whole(Path(report), json.dumps(told).encode())
    if as_text:
        tell_json(told)
    else:
        tell("\n".join(line for finding in findings for line in _lines(finding)))
    raise typer.Exit(any(finding.grade == "bad" for finding in findings))


def _lines(finding: Finding) -> list[str]:
    mark = {"ok": "ok  ", "note": "note", "bad": "BAD "}[finding.grade]
    remedy = [f"      -> {finding.remedy}"] if finding.grade != "ok" and finding.remedy else []
    return [f"{mark}  {finding.name}: {finding.said}", *remedy]


def _in_a_job(via: str, store: Store) -> list[Finding]:
    """Submit a job that looks, wait for it, and return what it found. Raises UserError where it cannot be had."""
    profile, document = load_profile(find_profile(via, Path.cwd()))
    name = f"{NAME}-{uuid.uuid4().hex[:8]}"
    launcher = Slurm(profile, store, name, [name], document)
    folder = store.sweep(name).absolute()
    said = folder / "found.json"
    folder.mkdir(parents=True)
    argv = [profile.interpreter, "-m", "harness.cli", "doctor", "--store", str(store.root.absolute())]
    argv += ["--report", str(said), "--device", "cuda" if profile.gpus else "cpu"]
    argv += ["--scratch", profile.scratch] if profile.scratch else []
    later = f"run `{command('doctor', '--via', via, store=store.root)}` again later"

    def submit() -> None:
        if not launcher.poll():  # sbatch may have submitted it, and have found no answer
            note(f"submitted {launcher.submit_argv(Size(), 1, argv)}")

    insist(submit, later, note)
    told = ""
    while (found := read_json(said)) is None:
        jobs = insist(launcher.poll, later, note)
        if not jobs and read_json(said) is None:
            raise UserError(f"the job ended without a word; look into its log, below {launcher.folder}")
        for job in jobs:
            if reason := launcher.never(job):
                launcher.cancel(jobs)
                raise UserError(f"the job can never start: {reason}; mend {via}")
            if job.state == "pending" and (reason := launcher.waits(job)) != told:
                told = reason
                note(f"waiting: {told or 'for its turn'}")
        time.sleep(ASK / 5 if all(job.state == "running" for job in jobs) else ASK)
    shutil.rmtree(folder, ignore_errors=True)  # only what went wrong leaves its log
    return [Finding(**finding) for finding in found["findings"]]
