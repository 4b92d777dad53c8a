"""The request for a Slurm job: what sbatch is told, the first lines of the job's shell, and what the job becomes.

It is written and submitted by submitit. On the node submitit's process *becomes* the command (exec), so that signals
reach it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.allocation import CONTAINER, notice, scheduler_environment
from harness.errors import SchedulerUnavailable, UserError
from harness.launch.profiles import Profile
from harness.launch.starts import OWN_NAME, shell_line

BECOME = "import os, signal, sys; signal.pthread_sigmask(0, {10, 12, 15}); os.execvp(sys.argv[1], sys.argv[1:])"
"""Holds SIGUSR1, SIGUSR2 and SIGTERM back until the worker listens to them: before, one would be lost, or fatal."""
PATTERNS = r"%[\dA-Za-z%]|[\\\n\r]"
"""What Slurm does not take as it stands in the path of a log: patterns such as %j, their escape, a new line."""


class NotSubmitted(Exception):
    """What sbatch said in place of a job's number."""


@dataclass(frozen=True)
class JobRequest:
    """What is asked for jobs that are alike."""

    profile: Profile
    """As it is for the jobs' step."""
    world: int
    """Processes of a job."""
    name: str
    folder: Path
    """Where the submission is kept, with the jobs' logs."""
    cluster: str = ""
    """The cluster that sbatch is asked of, where it is not the one that answers here."""
    excluded: tuple[str, ...] = ()
    """Nodes that are excluded beside those that the profile excludes itself."""

    def __post_init__(self) -> None:
        """Raise UserError for what no job can be asked for with."""
        self.profile.on_node(self.world)
        if awkward := re.search(PATTERNS, str(self.folder)):
            raise UserError(
                f"{self.folder.parent}: Slurm cannot write a log where {awkward[0]!r} is in the path; give --store a "
                "path without it, such as that of a symbolic link"
            )

    @property
    def python(self) -> str:
        """Return how a shell on the node starts the interpreter, a container's command before it where there is one."""
        quoted = shlex.quote(self.profile.interpreter)
        return f"{self.profile.container} {quoted}" if self.profile.container else quoted

    def parameters(self, workers: bool = True) -> dict[str, Any]:
        """Return what submitit is told; `workers`: the jobs write down their nodes."""
        asked, here = self.profile, self.profile.on_node(self.world)
        cpus = asked.cpus * here
        container = [f"export {CONTAINER}={shlex.quote(asked.container)}"] if asked.container else []
        found = {
            "job_name": self.name,
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "constraint": asked.constraint,
            "nodes": self.world // here,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "signal_delay_s": notice(asked.minutes * 60),
            "array_parallelism": asked.workers,
            "setup": [
                *([shell_line(self.folder)] if workers else []),  # before anything can fail
                own_pickle(self.folder),
                # srun takes a job's CPUs for its step from the first alone (Slurm 22.05 to 23.02); without the second,
                # what the lines set stays from the worker where the job was given no environment (--export=NONE)
                f"export SRUN_CPUS_PER_TASK={cpus} SRUN_EXPORT_ENV=ALL",
                *(container if here < self.world else []),
                *asked.lines,
            ],
            # the tasks on the other nodes leave at once, which a cluster with a WaitTime takes for the end of the step
            "srun_args": ["--kill-on-bad-exit=1", "--wait=0"],
            "stderr_to_stdout": True,
            "additional_parameters": self._others(here),
        }
        # submitit has defaults of its own: five minutes, and as wckey its name, refused where wckeys are enforced
        limit = {"time": None if asked.time is None else asked.minutes}
        return {name: value for name, value in found.items() if value is not None} | {"wckey": None} | limit

    def _others(self, here: int) -> dict[str, Any]:
        """Return the options of sbatch that submitit has no name for, or that a profile spells in several ways."""
        asked = self.profile
        options = {name: value for name, value in asked.sbatch.items() if value is not None and value is not False}
        if asked.requeue is not None:
            options["requeue" if asked.requeue else "no-requeue"] = True
        if asked.gpus:
            gpus = ":".join([*([asked.gpu_type] if asked.gpu_type else []), str(asked.gpus * here)])
            if asked.gpu_option == "gres":
                options["gres"] = ",".join([f"gpu:{gpus}", *([str(options["gres"])] if "gres" in options else [])])
            else:
                options["gpus-per-node"] = gpus
        if asked.memory is not None and asked.memory_option == "mem-per-cpu" and asked.bytes:
            options["mem-per-cpu"] = f"{-(-asked.bytes // asked.cpus // 2**20)}M"
        elif asked.memory is not None:
            options["mem"] = f"{asked.bytes * here // 2**20}M" if asked.bytes else "0"
        if self.cluster:
            options["clusters"] = self.cluster
        if self.excluded:
            options["exclude"] = asked.excluding(self.excluded)
        return options

    def text(self, tasks: int) -> str:
        """Return the sbatch file of an array of so many workers, as it is submitted."""
        from submitit.slurm.slurm import _make_sbatch_string  # the same that its executor writes, without a cluster

        command = f"{self.python} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        array = tasks if tasks > 1 else None
        return _make_sbatch_string(command=command, folder=self.folder, map_count=array, **self.parameters())

    def submit(self, tasks: int, argv: Sequence[str]) -> list[str]:
        """Submit jobs that become a command; return their numbers.

        Raises NotSubmitted, SchedulerUnavailable where jobs may have been submitted all the same, and RuntimeError or
        FileNotFoundError where there is no Slurm.
        """
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        workers = "harness.worker" in argv
        become = [self.profile.interpreter, "-c", BECOME, *argv, *(["--sign-in", str(self.folder)] if workers else [])]
        with _own_environment(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it also raises
            executor = SlurmExecutor(self.folder, python=self.python)
            executor.update_parameters(**self.parameters(workers))
            try:
                jobs = executor.map_array(os.execvp, [become[0]] * tasks, [become] * tasks)
            except FailedJobError as error:
                raise NotSubmitted(str(error)) from None
            except FailedSubmissionError as error:
                said = " ".join(str(error).partition("\nJob instance")[0].split())
                raise SchedulerUnavailable(f"sbatch names no job, so that one may wait or not: {said}") from None
        return [job.job_id for job in jobs]


def own_pickle(folder: Path) -> str:
    """Return the line of shell that gives a job the file which submitit names after it only once sbatch has answered.

    All jobs of a submission have the same in theirs.
    """
    place = shlex.quote(str(folder))
    copied = f'cp -n "$any" {place}/"{OWN_NAME}_submitted.pkl" 2>/dev/null'
    return f"for any in {place}/{'[0-9a-f]' * 32}.pkl; do {copied}; break; done"


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Give submitit's sbatch, and with it the job, what any command of the scheduler's is given."""
    hidden = {name: os.environ.pop(name) for name in os.environ.keys() - scheduler_environment(os.environ).keys()}
    try:
        yield
    finally:
        os.environ.update(hidden)
