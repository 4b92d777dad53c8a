"""Slurm's commands, whatever the shell has set, and the job that this process runs in: its name, nodes and end."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from harness.errors import SchedulerUnavailable, UserError

T = TypeVar("T")
Shell = Callable[[Sequence[str]], str]
"""Runs a command and returns what it prints. Raises OSError or subprocess.SubprocessError where it fails."""


SETTINGS = (
    *("SLURM_", "SLURMD_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_"),
    "SUBMITIT_",
)
"""What the variables begin with that stand for options of Slurm's commands (their manual pages, "input environment
variables"), or that speak of the job a process runs in: a job submitted from there would inherit them."""
LEAST_NOTICE, MOST_NOTICE = 10, 90
"""Seconds before the time limit at which Slurm tells the job, should it not have left by itself."""
KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
"""Those that say where the controller is and who asks: without them there is no answer."""

CONTAINER = "HARNESS_CONTAINER"
"""The variable that holds a profile's command which starts a container: ranks on other nodes run in it too."""

NO_ANSWER = re.compile(
    r"unable to contact|connect(ion)? (failure|refused|reset|timed out)|timed out|zero bytes|munge|standby mode|"
    r"temporarily un|authentication|communication|message (send|receive) failure|no route to host|unreachable",
    re.IGNORECASE,
)
"""Complaints of Slurm's commands that nobody answered them: the next call may be answered."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
"""Seconds before a scheduler that does not answer is asked again; each pause is twice the one before."""
APART = 15.0
"""Seconds between two questions to a scheduler that answers, whoever asks for a sweep."""
PATIENCE = 60.0
"""Seconds after which a command that does not wait for workers gives up on such a scheduler."""


def scheduler_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that a command of Slurm's is given: without what would change its options, or be a job's.

    SBATCH_PARTITION wins over a job's own lines, SQUEUE_STATES hides jobs, SLURM_MEM_PER_CPU of a job contradicts the
    memory of one that is submitted from within it. Which cluster is meant, every command is told (`of_cluster`).
    """
    return {name: value for name, value in environment.items() if name in KEPT or not name.startswith(SETTINGS)}


def named_cluster(environment: Mapping[str, str] = os.environ) -> str:
    """Return the cluster that the shell names, as Slurm lets one; empty: that of this machine."""
    return environment.get("SLURM_CLUSTERS", "")


def of_cluster(command: Sequence[str], cluster: str) -> list[str]:
    """Return a command of Slurm's as it is asked of a cluster; empty: of this machine's."""
    return [command[0], *(["-M", cluster] if cluster else []), *command[1:]]


def shell(command: Sequence[str], patience: float = 60) -> str:
    """Run a command of the scheduler's, with its times as seconds since 1970."""
    environment = scheduler_environment(os.environ) | {"SLURM_TIME_FORMAT": "%s", "LC_ALL": "C"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, check=True, env=environment
    )
    return done.stdout


def unanswered(error: OSError | subprocess.SubprocessError) -> str:
    """Return what a command of the scheduler's said, if that is no answer; empty where it is one."""
    if isinstance(error, FileNotFoundError):
        return ""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"nothing within {error.timeout:.0f} s"
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    said = " ".join((error.stderr or "").split())
    return said if NO_ANSWER.search(said) else "" if said else f"exit code {error.returncode} without a word"


def no_answer(command: str, said: str) -> SchedulerUnavailable:
    """Return what is to be raised where one of the scheduler's commands got no answer."""
    return SchedulerUnavailable(f"the scheduler does not answer ({command}: {' '.join(said.split())})")


def insist(ask: Callable[[], T], later: str, tell: Callable[[str], None]) -> T:
    """Do what asks the scheduler; while it does not answer, again after growing pauses, for about a minute.

    Raises SchedulerUnavailable that says what to do `later`.
    """
    begin, pause = time.monotonic(), FIRST_PAUSE
    while True:
        try:
            return ask()
        except SchedulerUnavailable as error:
            if time.monotonic() - begin + pause > PATIENCE:
                raise SchedulerUnavailable(f"{error}; what runs goes on; {later}") from None
            if pause == FIRST_PAUSE:
                tell(f"{error}; it is asked again for about a minute")
        time.sleep(pause)
        pause *= 2


def _listed(node: str, node_list: str) -> bool:
    """Return whether a node is in a list of Slurm's, such as `gpu[01-04,7],login1`."""
    for part in re.findall(r"(?:[^,\[]|\[[^]]*\])+", node_list):
        literal_and_ranges = re.split(r"\[([^]]*)\]", part)
        pattern = r"(\d+)".join(re.escape(text) for text in literal_and_ranges[::2])
        found = re.fullmatch(pattern, node)
        if found and all(map(_in_ranges, found.groups(), literal_and_ranges[1::2])):
            return True
    return False


def _in_ranges(number: str, ranges: str) -> bool:
    bounds = [one.partition("-") for one in ranges.split(",")]
    return any(int(first) <= int(number) <= int(last or first) for first, _, last in bounds)


def on_allocated_node(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this host is a node of the job that the environment names.

    A salloc shell usually stays on the login node, with the job's variables: only what it starts by srun is on a node.
    """
    lists = [value for name, value in environment.items() if name.startswith("SLURM_JOB_NODELIST")]  # of each component
    node = environment.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0]
    return not lists or any(_listed(node, node_list) for node_list in lists)


def job_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return the number of the job that this process runs in; empty outside one, as in a salloc shell."""
    return environment.get("SLURM_JOB_ID", "") if on_allocated_node(environment) else ""


def job(environment: Mapping[str, str] = os.environ) -> str:
    """Return this job's number and how often it was started before, empty outside a job: `4711.0`.

    A job that is requeued keeps its number.
    """
    number = job_id(environment)
    return f"{number}.{environment.get('SLURM_RESTART_COUNT', '0')}" if number else ""


def job_cluster(environment: Mapping[str, str] = os.environ) -> str:
    """Return the cluster that this job runs on, empty outside a job."""
    return environment.get("SLURM_CLUSTER_NAME", "") if on_allocated_node(environment) else ""


def own_cluster(run: Shell = shell, environment: Mapping[str, str] = os.environ) -> str:
    """Return the name of the cluster that answers here when none is named; empty where nobody says."""
    if found := job_cluster(environment):
        return found
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if said := re.search(r"^ClusterName\s*=\s*(\S+)", run(["scontrol", "show", "config"]), re.MULTILINE):
            return said[1]
    return ""


def cluster_option(cluster: str, run: Shell = shell) -> str:
    """Return what `of_cluster` is to name to ask a cluster: nothing for this machine's, which may know no name."""
    return "" if not cluster or cluster == own_cluster(run) else cluster


def on_cluster(cluster: str, run: Shell) -> Shell:
    """Return a shell that asks Slurm's commands of a cluster by its name; empty: of the one that answers here."""
    other = cluster_option(cluster, run)
    return lambda command: run(of_cluster(command, other))


def refuse_salloc_shell(otherwise: str = "env -u SLURM_JOB_ID before it") -> None:
    """Raise UserError in a salloc shell that is on none of the job's nodes: whoever allocated those means them."""
    number = os.environ.get("SLURM_JOB_ID")
    if number and not on_allocated_node():
        raise UserError(
            f"this shell holds job {number}, but this host ({socket.gethostname()}) is no node of it; to run on its "
            f"first node: `srun --nodes=1 --ntasks=1 --pty` before the same command; to run here all the same: "
            f"{otherwise}"
        )


def worker_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment of workers that are started on this host: without a job that has no node here."""
    return {k: v for k, v in environment.items() if k != "SLURM_JOB_ID" or on_allocated_node(environment)}


def nodes(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the tasks of this job step, one a node, and which of them this is; (1, 0) outside a step."""
    if "SLURM_STEP_ID" not in environment:
        return 1, 0
    return int(environment.get("SLURM_NTASKS", "1")), int(environment.get("SLURM_PROCID", "0"))


@dataclass(frozen=True)
class TimeLimit:
    """A job's time limit, in seconds."""

    whole: float
    left: float

    @property
    def notice(self) -> float:
        """Return the time before the limit within which Slurm's notice comes, which may be a minute early."""
        return notice(self.whole) + 60


def notice(limit: float) -> int:
    """Return the seconds before a time limit, itself in seconds (0: none), at which Slurm is to tell the job."""
    return min(MOST_NOTICE, max(LEAST_NOTICE, int(limit) // 20 or MOST_NOTICE))


def time_limit(
    run: Shell = shell, environment: Mapping[str, str] = os.environ, tell: Callable[[str], None] | None = None
) -> TimeLimit | None:
    """Return this job's time limit; None outside a job, or where nobody says.

    Newer Slurm puts its start and its end into the environment; an older one must be asked: once, or where `tell` hears
    of it, until it answers, for about a minute.
    """
    number = job_id(environment)
    if not number:
        return None
    times = [environment.get(f"SLURM_JOB_{name}_TIME", "") for name in ("START", "END")]

    def ask() -> list[str]:
        try:
            return run(["squeue", "--noheader", "--jobs", number, "--format", "%S %e"]).split()
        except (OSError, subprocess.SubprocessError) as error:
            if tell and (said := unanswered(error)):
                raise no_answer("squeue", said) from None
        return []

    if not all(times):
        try:
            times = insist(ask, "this worker does not know its time limit", tell) if tell else ask()
        except SchedulerUnavailable as error:
            if tell:
                tell(str(error))
    if len(times) != 2 or not all(map(str.isdigit, times)):
        return None
    start, end = map(int, times)
    return TimeLimit(end - start, max(0.0, end - time.time()))
