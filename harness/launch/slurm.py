"""The Slurm launcher: array jobs of workers, written and submitted by submitit, counted by squeue.

What is submitted is an argv. On the node submitit's process *becomes* the worker (exec), so that signals reach it. No
result of submitit's is ever asked for: what was done stands in the store, what runs is known to the scheduler.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.allocation import (
    NO_ANSWER,
    Shell,
    named_cluster,
    notice,
    of_cluster,
    own_cluster,
    scheduler_environment,
    shell,
    unanswered,
)
from harness.claims import Owner
from harness.errors import SchedulerUnavailable, UserError
from harness.launch import ARGV, PROFILE, Job, Size, until
from harness.launch.local import Machine
from harness.launch.profiles import Profile
from harness.launch.remedies import COMPARED, OFFERS, compare, explain, hopeless, known_refusal, waits
from harness.launch.starts import OUTSTANDING, OWN_NAME, SIGNED_IN, Starts, last_words, shell_line
from harness.memory import clearly_more
from harness.reading import Document
from harness.records import ENDED, ended, fate
from harness.store import Store, digest, read_json, write_whole
from harness.terminal import cron_line
from harness.words import count, read_span

MOST_ARRAY = 1000
"""Tasks of an array where the cluster does not say its MaxArraySize (Slurm's own default is 1001)."""
STATES = {"COMPLETING": "leaving", **dict.fromkeys(("RUNNING", "STOPPED", "SIGNALING", "RESIZING"), "running")}
"""What states of a job in the queue mean. Any other that has not ended waits, also one that is not known here."""
BECOME = "import os, signal, sys; signal.pthread_sigmask(0, {10, 12, 15}); os.execvp(sys.argv[1], sys.argv[1:])"
"""Holds SIGUSR1, SIGUSR2 and SIGTERM back until the worker listens to them: before, one would be lost, or fatal."""
HIDDEN = (
    "not in the queue{of} by name, and neither accounting nor the controller tells of its end; counted as a worker; "
    "if gone, remove {path}"
)
QUEUE = ("squeue", "--me", "--noheader", "--array", "--format", "%i|%A|%j|%T|%r|%V")
PATTERNS = r"%[\dA-Za-z%]|[\\\n\r]"
"""What Slurm does not take as it stands in the path of a log: patterns such as %j, their escape, a new line."""
IN_VAIN = 3
"""Submissions in a row whose workers failed at their start, after which the profile or the nodes are at fault."""


@dataclass
class Slurm:
    """Submits a sweep's workers to Slurm as a profile says."""

    profile: Profile
    store: Store
    name: str
    argv: Sequence[str]
    """What every worker is told beside what its size is."""
    document: Document | None = None
    run: Shell = field(default=shell, repr=False)
    plan: str = ""
    """The file of the plan that workers are bound to: that of a part of the sweep; else its newest whole one."""
    every: bool = False
    """Whether workers bound to any plan of the sweep are counted: to end them all."""
    queued: int = 0
    """Jobs that this person had in the queue when it was last looked at, of whatever kind."""
    _compared: dict[Size, tuple[str, str] | None] = field(default_factory=dict, init=False, repr=False)
    """What no node satisfies of what a size asks for, where that was looked up."""
    cluster: str = field(default_factory=named_cluster)
    """The cluster that workers are submitted to; empty: the one this machine is of."""
    _own: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the cluster: the profile's wins. Raises UserError where the shell names several."""
        self.cluster = self.profile.cluster or self.cluster
        if not re.fullmatch(r"[\w.-]*", self.cluster):
            raise UserError(
                f"SLURM_CLUSTERS={self.cluster}: a profile's workers are submitted to one cluster; write `cluster:` "
                "and its name into the profile"
            )
        if self.cluster == os.environ.get("SLURM_CLUSTER_NAME"):  # a job of its own asks the controller next to it
            self.cluster = ""

    @property
    def most(self) -> int:
        """Return the profile's most workers of a size."""
        return self.profile.workers

    @property
    def machine(self) -> Machine:
        """Return what a job has, as a machine of its workers: what a forecast is for."""
        return Machine(self.profile.workers, self.profile.cpus, "cuda" if self.profile.gpus else "cpu")

    def size_for(self, world: int, step: int) -> Size:
        """Return a size of its own for every number of processes and step of memory."""
        return Size(world, step)

    @property
    def idle(self) -> float:
        """Return the profile's idle time in seconds."""
        return read_span(self.profile.idle)

    def size_of(self, owner: Owner, jobs: Sequence[Job]) -> Size | None:
        """Return the size of the job that an owner is part of; of one that the queue does not show, by its sign-in."""
        number = owner.job_number
        for each in jobs:
            if number and number == (each.inner or each.number):
                return each.size
        if not number or not any(each.name for each in jobs):
            return None
        files = (f"{SIGNED_IN}{number}", OUTSTANDING)
        sizes = (size for folder, size, _ in self.submissions() if all((folder / file).exists() for file in files))
        return next(sizes, None)

    def begin(self) -> None:
        """Keep the profile as it is now, and what workers are told; those of a part only where nothing was kept."""
        folder = self.store.sweep(self.name)
        if self.document is None or (self.plan and (folder / ARGV).exists()):
            return
        write_whole(folder / PROFILE, Path(self.document.file).read_bytes())
        write_whole(folder / ARGV, json.dumps({"argv": list(self.argv), "cluster": self.cluster}).encode())

    def later(self) -> str:
        """Say that somebody must look again, where jobs may not submit jobs."""
        if self.profile.nodes_submit:
            return ""
        return (
            "workers leave at their time limit, and what becomes ready later needs others: follow the sweep, or add "
            f"this line to your crontab:\n{cron_line('tick', self.name, store=self.store.root)}"
        )

    @property
    def own(self) -> str:
        """Return the name of the cluster that answers where none is named, empty where nobody says."""
        self._own = self._own or own_cluster(self._answer)
        return self._own

    @property
    def home(self) -> str:
        """Return the name of the cluster that workers are submitted to, empty where nobody says."""
        return self.cluster or self.own

    @cached_property
    def mark(self) -> str:
        """Return what the names of this sweep's jobs begin with: its name, and a digest of it and its store."""
        return f"{self.name}.{digest([str(self.store.root.absolute()), self.name])[:8]}"

    @property
    def bound(self) -> str:
        """Return a mark of the plan that workers are bound to: those of another are no concern of this one's."""
        return plan_mark(self.plan)

    def tag(self, size: Size) -> str:
        """Return a digest of what a worker of a size asks for and is told, as the profile is now."""
        no_matter = {"workers", "submit", "array", "larger", "cluster"}
        asked = self.profile.at(size.step).model_dump(mode="json", exclude=no_matter)
        return digest([asked, list(self.argv)])[:4]

    def job_name(self, size: Size) -> str:
        """Return the name of a size's jobs."""
        return f"{self.mark}.{self.bound}.{size}.{self.tag(size)}"

    def parameters(self, size: Size, folder: Path | None = None) -> dict[str, Any]:
        """Return what submitit is told of a worker's job, which writes down its node in a folder."""
        asked = self.profile.at(size.step)
        here = self.per_node(size)
        if awkward := re.search(PATTERNS, str(self.folder)):
            raise UserError(
                f"{self.store.root}: Slurm cannot write a log where {awkward[0]!r} is in the path; give --store a path "
                "without it, such as that of a symbolic link"
            )
        cpus = asked.cpus * here
        found = {
            "job_name": self.job_name(size),
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "constraint": asked.constraint,
            "nodes": size.world // here,
            "ntasks_per_node": 1,
            "cpus_per_task": cpus,
            "signal_delay_s": notice(asked.minutes * 60),
            "array_parallelism": self.profile.workers,
            # srun takes a job's CPUs for its step from the first alone (Slurm 22.05 to 23.02); without the second, what
            # the lines set stays from the worker where the job was given no environment (sbatch --export=NONE)
            "setup": [
                *([shell_line(folder)] if folder else []),
                f"export SRUN_CPUS_PER_TASK={cpus} SRUN_EXPORT_ENV=ALL",
                *self.profile.lines,
            ],
            "srun_args": ["--kill-on-bad-exit=1"],
            "stderr_to_stdout": True,
            "additional_parameters": self._others(size, here),
        }
        # submitit has defaults of its own: five minutes, and as wckey its name, refused where wckeys are enforced
        limit = {"time": None if asked.time is None else asked.minutes}
        return {name: value for name, value in found.items() if value is not None} | {"wckey": None} | limit

    def per_node(self, size: Size) -> int:
        """Return how many processes of a size a node has. Raises UserError where nodes would have different numbers."""
        here = min(self.profile.per_node or size.world, size.world)
        if size.world % here:
            raise UserError(f"per_node: {here} does not divide world: {size.world}; write one that does")
        return here

    def _others(self, size: Size, here: int) -> dict[str, Any]:
        """Return the options of sbatch that submitit has no name for, or that a profile spells in several ways."""
        asked = self.profile.at(size.step)
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
        if excluded := self.excluded(size):
            options["exclude"] = ",".join([*self._own_exclude(size), *excluded])
        return options

    @property
    def interpreter(self) -> str:
        """Return the interpreter on the node, or in its container."""
        return self.profile.python or ("python" if self.profile.container else sys.executable)

    @property
    def python(self) -> str:
        """Return how a shell on the node starts it, a container's command before it where there is one."""
        quoted = shlex.quote(self.interpreter)
        return f"{self.profile.container} {quoted}" if self.profile.container else quoted

    def command(self, size: Size) -> list[str]:
        """Return a worker's argv on the node."""
        asked = self.profile.at(size.step)
        argv = [self.interpreter, "-m", "harness.worker", *self.argv, *(["--plan", self.plan] if self.plan else [])]
        argv += ["--world", str(size.world), "--idle", self.profile.idle]
        argv += ["--device", "cuda" if asked.gpus else "cpu", "--threads", str(asked.cpus)]
        argv += ["--memory", f"{asked.bytes / 2**30:.3f}"] if asked.bytes else []
        argv += ["--scratch", self.profile.scratch] if self.profile.scratch else []
        argv += ["--large"] if size.step else []
        argv += ["--submits"] if self.profile.nodes_submit else []
        return argv

    def text(self, size: Size, tasks: int, folder: Path | None = None) -> str:
        """Return the sbatch file of an array of so many workers, as it is submitted."""
        from submitit.slurm.slurm import _make_sbatch_string  # the same that its executor writes, without a cluster

        folder = folder or self.folder / f"{size}.{self.tag(size)}-WHEN"
        command = f"{self.python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
        array = tasks if tasks > 1 else None
        return _make_sbatch_string(command=command, folder=folder, map_count=array, **self._asked(size, folder))

    def _asked(self, size: Size, folder: Path, sign_in: bool = True) -> dict[str, Any]:
        """Return what submitit is told of a job whose submission is kept in a folder."""
        asked = self.parameters(size, folder if sign_in else None)
        first, *others = asked["setup"]  # which writes down the node, before anything can fail
        return asked | {"setup": [first, own_pickle(folder), *others]}

    def arrays(self, number: int) -> list[int]:
        """Return how many workers each array has: as many as the cluster takes, until there are enough."""
        most = self.profile.array or (self._array_limit() if number > 1 else 1)
        return [min(most, number - first) for first in range(0, number, most)]

    def submit(self, size: Size, number: int) -> Iterator[str]:
        """Submit workers in arrays, as long as there is room in the queue.

        Raises UserError that names the profile's line, and SchedulerUnavailable.
        """
        if self.profile.submit is not None:
            number = min(number, self.profile.submit - self.queued)
        for tasks in self.arrays(number) if number > 0 else ():
            yield self.submit_argv(size, tasks, self.command(size))
            self.queued += tasks

    def submit_argv(self, size: Size, tasks: int, argv: Sequence[str]) -> str:
        """Submit jobs that become a command; return what was submitted, in words.

        Raises UserError, and SchedulerUnavailable where the jobs may have been submitted or not: the queue shows it.
        """
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        when = f"{time.time():.3f}-{uuid.uuid4().hex[:6]}"
        folder = self.folder / f"{size}.{self.tag(size)}-{when}"
        sign_in = ["--sign-in", str(folder)] if "harness.worker" in argv else []
        become = [self.interpreter, "-c", BECOME, *argv, *sign_in]
        asked = self._asked(size, folder, bool(sign_in))
        folder.mkdir(parents=True)
        self._keep(folder, size, [])  # should this process end before it knows the jobs, nobody takes them for ended
        try:
            with _own_environment(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it also raises
                executor = SlurmExecutor(folder, python=self.python)
                executor.update_parameters(**asked)
                jobs = executor.map_array(os.execvp, [become[0]] * tasks, [become] * tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            if not (said := str(error).strip()) or NO_ANSWER.search(" ".join(said.split())):
                raise SchedulerUnavailable(_silent("sbatch", said or "it ended without a word")) from None
            shutil.rmtree(folder, ignore_errors=True)  # no job is of it, none failed at its start
            raise UserError(explain(said, self.document, size.step, self._unmet(said, size))) from None
        except (RuntimeError, FileNotFoundError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"no Slurm here: {error}; run this on a login node, or use --via local") from None
        self._keep(folder, size, [job.job_id for job in jobs])
        each = f" of {size.world} processes" if size.world > 1 else ""
        return f"job {jobs[0].job_id.partition('_')[0]}: {count(tasks, 'worker')}{each}"

    def _keep(self, folder: Path, size: Size, jobs: Sequence[str]) -> None:
        """Write down a submission's jobs; none where it is not known whether there are any."""
        said = {"name": self.job_name(size), "cluster": self.home, "jobs": jobs}
        write_whole(folder / OUTSTANDING, json.dumps(said).encode())

    @property
    def folder(self) -> Path:
        """Return where submissions are kept, a folder for each: what was submitted, and what the workers said."""
        return self.store.sweep(self.name).absolute() / "slurm"

    def submissions(self) -> Iterator[tuple[Path, Size, str]]:
        """Yield the folder of every submission, the size of its workers, and the tag of what they asked for."""
        for folder in self.folder.glob("w*m*.*-*"):
            size, _, tag = folder.name.partition("-")[0].partition(".")
            if found := Size.read(size):
                yield folder, found, tag

    def starts(self, size: Size) -> Starts:
        """Return what is known of the starts of a size's workers, with the profile as it is now."""
        return Starts(self.folder, f"{size}.{self.tag(size)}")

    def excluded(self, size: Size) -> list[str]:
        """Return the nodes on which a size's workers fail at their start: none where no other node would be left."""
        bad = self.starts(size).bad()
        partition = self.profile.at(size.step).partition
        told = ""
        if bad:
            with contextlib.suppress(OSError, subprocess.SubprocessError, SchedulerUnavailable):
                of = ["--partition", partition] if partition else []
                told = self._ask("sinfo", "--noheader", "--Node", *of, "--format", "%N")
        nodes = set(told.split())
        return bad if not nodes or nodes - set(bad) else []

    def exclude(self, jobs: Sequence[Job]) -> list[str]:
        """Exclude nodes on which workers fail at their start from jobs that wait; say which are excluded, and why."""
        said = []
        for size in sorted({size for _, size, _ in self.submissions() if size.step <= len(self.profile.larger)}):
            starts = self.starts(size)
            before = starts.bad()
            starts.look(lambda job: fate(job, lambda command: self._ask(*command)))
            excluded = self.excluded(size)
            said += [starts.sentence(node) for node in excluded]
            waiting = [job for job in jobs if job.size == size and job.state == "pending" and not job.name]
            if set(excluded) - set(before):
                words = f"ExcNodeList={','.join([*self._own_exclude(size), *excluded])}"
                for job in waiting:
                    with contextlib.suppress(OSError, subprocess.SubprocessError):  # it has just started
                        self._ask("scontrol", "update", f"JobId={job.number}", words, cluster=job.cluster)
        return said

    def _own_exclude(self, size: Size) -> list[str]:
        """Return the nodes that the profile itself excludes, as Slurm spells them."""
        own = self.profile.at(size.step).sbatch.get("exclude")
        return [str(own)] if own else []

    def in_vain(self, size: Size) -> str:
        """Return what was wrong with the last submissions of a size, if no worker of theirs could take a stage.

        While a node is known to be good, nodes that are not are excluded, and the rest goes on.
        """
        last = sorted(self.folder.glob(f"{size}.{self.tag(size)}-*"), key=lambda path: path.name)[-IN_VAIN:]
        if len(last) < IN_VAIN or any((path / OUTSTANDING).exists() for path in last):
            return ""
        refusals = [[file.read_text() for file in path.glob(f"{SIGNED_IN}*")] for path in last]
        if not all(map(all, refusals)):  # a worker that started well and left with nothing to take is no failure
            return ""
        if not any(refusals) and self.starts(size).good:
            return ""
        logs = sorted(last[-1].glob("*_log.out"))
        words, why = last_words(logs[0] if logs else None), "ended before they were ready"
        where = logs[0] if logs else last[-1]
        if refusals[-1]:
            words, why = refusals[-1][0], "found no stage that they could take"
        return (
            f"{self.name}: workers were submitted {IN_VAIN} times and {why}; no more are, until the sweep command is "
            f"run again. The last said: {words} ({where})"
        )

    def poll(self) -> list[Job]:
        """Return this sweep's workers: by one call of squeue a cluster that any were submitted to, and what it leaves
        out but is not known to have ended.
        """
        told = self._own_queue()
        kept: dict[str, dict[Path, dict[str, Any]]] = {self.home: {}}
        for path in self.folder.glob(f"*/{OUTSTANDING}"):
            if (said := read_json(path)) and self._known(said["name"]):
                kept.setdefault(said.get("cluster") or self.home, {})[path] = said
        found = []
        for cluster, submissions in kept.items():
            lines = told if cluster == self.home else self._queue(cluster)
            jobs = list(self._shown(lines, cluster))
            jobs += self._hidden(submissions, {job.number for job in jobs}, cluster)
            if cluster == self.home:
                self.queued = len(lines) + sum(bool(job.name) for job in jobs)
            found += jobs
        return found

    def shown(self) -> list[Job]:
        """Return the workers that the queue shows of the cluster that workers are submitted to.

        Raises UserError, and SchedulerUnavailable where nobody answers.
        """
        return list(self._shown(self._own_queue(), self.home))

    def _own_queue(self) -> list[list[str]]:
        """Return what the queue shows of this person's jobs on the cluster that workers are submitted to."""
        try:
            return _rows(self._ask(*QUEUE))
        except FileNotFoundError:
            raise UserError("no Slurm here: squeue is not on the PATH; run this on a login node") from None
        except subprocess.CalledProcessError as error:
            if not known_refusal(error.stderr):
                raise SchedulerUnavailable(_silent("squeue", error.stderr)) from None
            raise UserError(explain(error.stderr, self.document)) from None

    def _queue(self, cluster: str) -> list[list[str]]:
        """Return the same of a cluster that workers were submitted to before; empty where it does not answer."""
        with contextlib.suppress(OSError, subprocess.SubprocessError, SchedulerUnavailable):
            return _rows(self._ask(*QUEUE, cluster=cluster))
        return []

    def _shown(self, lines: Sequence[Sequence[str]], cluster: str) -> Iterator[Job]:
        """Yield the workers among the jobs in a cluster's queue."""
        for number, inner, name, state, reason, *submitted in lines:
            if state not in ENDED and (known := self._known(name)):
                size, outdated, bound = known
                state = STATES.get(state, "pending")
                since = float(submitted[0]) if submitted and submitted[0].isdigit() else None
                yield Job(number, size, state, reason.strip("()"), inner, outdated, "", cluster, bound, since)

    def _known(self, job_name: str) -> tuple[Size, bool, str] | None:
        """Return a worker's size by its job's name, whether it is outdated, and its plan; None for others' jobs."""
        named = re.fullmatch(re.escape(self.mark) + r"\.(\w+)\.(w\w+)\.(\w+)", job_name)
        if not named or not (self.every or named[1] == self.bound) or not (size := Size.read(named[2])):
            return None
        return size, size.step > len(self.profile.larger) or named[3] != self.tag(size), named[1]

    def _hidden(self, kept: Mapping[Path, dict[str, Any]], shown: Collection[str], cluster: str) -> Iterator[Job]:
        """Yield the workers submitted to a cluster that its queue does not show, but that are not known to have ended.

        The controller may have given a job's number to another: ours bear the name, or run a script of the sweep's.
        """
        asked = {job for said in kept.values() for job in said["jobs"]} - set(shown)
        own = {str(self.folder), *(said["name"] for said in kept.values())}
        over = set[str]()
        if asked:
            try:
                over = ended(
                    asked,
                    lambda command: self._ask(*command, cluster=cluster),
                    lambda record: any(word in record for word in own),
                )
            except SchedulerUnavailable:
                if cluster == self.home:
                    raise
        of = "" if cluster == self.home else f" of cluster {cluster}"
        for path, said in kept.items():
            left = [job for job in said["jobs"] if job not in over]
            if said["jobs"] and not left:
                path.unlink(missing_ok=True)
            elif left != said["jobs"]:
                write_whole(path, json.dumps({**said, "jobs": left}).encode())
            if known := self._known(said["name"]):
                size, outdated, bound = known
                why = HIDDEN.format(of=of, path=path)
                for job in left:
                    if job in asked:
                        yield Job(job, size, "pending", why, job, outdated, said["name"], cluster, bound)

    def _ask(self, command: str, *words: str, cluster: str = "") -> str:
        """Ask one of Slurm's commands of a cluster; empty: of the one that workers are submitted to."""
        option = cluster
        if not cluster or cluster == self.home:
            option = self.cluster
        elif cluster == self.own:
            option = ""
        return self._answer(of_cluster([command, *words], option))

    def _answer(self, command: Sequence[str]) -> str:
        """Return what a command says. Raises SchedulerUnavailable where the scheduler does not answer it."""
        try:
            return self.run(command)
        except (OSError, subprocess.SubprocessError) as error:
            if said := unanswered(error):
                raise SchedulerUnavailable(_silent(command[0], said)) from None
            raise

    def never(self, job: Job) -> str:
        """Return why a pending job can never start."""
        return hopeless(job.reason, self.document, job.size.step, self._unmet(job.reason, job.size))

    def _unmet(self, said: str, size: Size) -> tuple[str, str] | None:
        """Return the profile's key that no node satisfies, and why, for a complaint that does not say which it is."""
        if not COMPARED.search(said) or size.step > len(self.profile.larger):
            return None
        if size not in self._compared:
            with contextlib.suppress(OSError, subprocess.SubprocessError, SchedulerUnavailable, UserError):
                here = self.per_node(size)
                told = self._ask("sinfo", "--noheader", "--exact", "--format", OFFERS)
                self._compared[size] = compare(self.profile.at(size.step), here, size.world // here, told)
        return self._compared.get(size)

    def waits(self, job: Job) -> str:
        """Return a pending job's reason, and what to do where time alone does not mend it."""
        return "" if job.reason in ("", "None") else waits(job.reason, job.number)

    def cancel(self, jobs: Sequence[Job]) -> str:
        """End jobs, each on its cluster; those that run get SIGTERM and the site's KillWait to save.

        Return what Slurm complains of, empty where it does not. Raises SchedulerUnavailable where the cluster that
        workers are submitted to does not answer.
        """
        said = dict[str, None]()
        for cluster, name in sorted({(job.cluster, job.name) for job in jobs}):
            numbers = [job.number for job in jobs if (job.cluster, job.name) == (cluster, name)]
            named = [f"--name={name}"] if name else []  # one that is not shown may be another's by now
            for first in range(0, len(numbers), 500):
                try:
                    self._ask("scancel", *named, *numbers[first : first + 500], cluster=cluster)
                except (OSError, subprocess.SubprocessError) as error:
                    said[" ".join(str(getattr(error, "stderr", "") or error).split())] = None
                except SchedulerUnavailable as error:
                    if cluster in ("", self.home):
                        raise
                    said[str(error)] = None
        return "; ".join(said)

    def has_more_memory(self, step: int) -> bool:
        """Return whether jobs of a step have more memory than the profile's own; those of a step that has gone may."""
        profile = self.profile
        return step > len(profile.larger) or profile.at(step).bytes > profile.bytes

    def step_for(self, amount: float, resource: str) -> int | None:
        """Return the first of the profile's steps with clearly more memory or time."""
        if resource == "time" and not clearly_more(until(self.argv), amount):
            return None
        return self.profile.step_for(amount, resource)

    def _array_limit(self) -> int:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if found := re.search(r"MaxArraySize\s*=\s*(\d+)", self._ask("scontrol", "show", "config")):
                return max(1, int(found[1]) - 1)
        return MOST_ARRAY


def own_pickle(folder: Path) -> str:
    """Return the line of shell that gives a job the file which submitit names after it only once sbatch has answered.

    All jobs of a submission have the same in theirs.
    """
    place = shlex.quote(str(folder))
    copied = f'cp -n "$any" {place}/"{OWN_NAME}_submitted.pkl" 2>/dev/null'
    return f"for any in {place}/{'[0-9a-f]' * 32}.pkl; do {copied}; break; done"


def plan_mark(file: str) -> str:
    """Return the mark of a plan in the names of the jobs that are bound to it; empty: the sweep's newest plan."""
    return digest(file)[:4]


def _rows(told: str) -> list[list[str]]:
    """Return the jobs in what squeue prints; other lines name a cluster."""
    return [line.split("|") for line in told.splitlines() if line.count("|") >= 4]


def _silent(command: str, said: str) -> str:
    return f"the scheduler does not answer ({command}: {' '.join(said.split())})"


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Give submitit's sbatch, and with it the job, what any command of the scheduler's is given."""
    hidden = {name: os.environ.pop(name) for name in os.environ.keys() - scheduler_environment(os.environ).keys()}
    try:
        yield
    finally:
        os.environ.update(hidden)
