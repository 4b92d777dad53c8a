"""The Slurm launcher: array jobs of workers, submitted by submitit, counted by squeue.

No result of submitit's is ever asked for: what was done stands in the store, what runs is known to the scheduler.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
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
    job_cluster,
    named_cluster,
    no_answer,
    of_cluster,
    own_cluster,
    shell,
    unanswered,
)
from harness.claims import Owner
from harness.errors import SchedulerUnavailable, UserError
from harness.launch import ARGV, PROFILE, Job, Size, until
from harness.launch.local import Machine
from harness.launch.profiles import Profile
from harness.launch.remedies import COMPARED, OFFERS, compare, explain, hopeless, known_refusal, waits
from harness.launch.slurm_request import JobRequest, NotSubmitted
from harness.launch.starts import OUTSTANDING, SIGNED_IN, Starts, last_words
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
HIDDEN = (
    "not in the queue{of} by name, and neither accounting nor the controller tells of its end; counted as a worker; "
    "if gone, remove {path}"
)
QUEUE = ("squeue", "--me", "--noheader", "--array", "--format", "%i|%A|%j|%T|%r|%V")
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
    again: str = ""
    """What to say after a refusal where the profile is a copy that only the sweep command replaces."""
    _own: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        """Find the cluster: the profile's wins. Raises UserError where the shell names several."""
        self.cluster = self.profile.cluster or self.cluster
        if not re.fullmatch(r"[\w.-]*", self.cluster):
            raise UserError(
                f"SLURM_CLUSTERS={self.cluster}: a profile's workers are submitted to one cluster; write `cluster:` "
                "and its name into the profile"
            )
        if self.cluster == job_cluster():  # a job of its own asks the controller next to it
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
        if found := next((each for each in jobs if each.runs(owner)), None):
            return found.size
        number = owner.job_number
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
        file = Path(self.document.file).absolute()
        write_whole(folder / PROFILE, file.read_bytes())
        said = {"argv": list(self.argv), "cluster": self.cluster, "profile": str(file)}
        write_whole(folder / ARGV, json.dumps(said).encode())

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

    def command(self, size: Size) -> list[str]:
        """Return a worker's argv on the node."""
        asked = self.profile.at(size.step)
        argv = [asked.interpreter, "-m", "harness.worker", *self.argv, *(["--plan", self.plan] if self.plan else [])]
        argv += ["--world", str(size.world), "--idle", self.profile.idle]
        argv += ["--device", "cuda" if asked.gpus else "cpu", "--threads", str(asked.cpus)]
        argv += ["--memory", f"{asked.bytes / 2**30:.3f}"] if asked.bytes else []
        argv += ["--scratch", self.profile.scratch] if self.profile.scratch else []
        argv += ["--large"] if size.step else []
        argv += ["--submits"] if self.profile.nodes_submit else []
        return argv

    def request(self, size: Size, folder: Path | None = None) -> JobRequest:
        """Return what is asked of sbatch for workers of a size, of which what is kept goes into a folder."""
        folder = folder or self.folder / f"{size}.{self.tag(size)}-WHEN"
        asked, name, excluded = self.profile.at(size.step), self.job_name(size), self.excluded(size)
        return JobRequest(asked, size.world, name, folder, self.cluster, tuple(excluded))

    def text(self, size: Size, tasks: int) -> str:
        """Return the sbatch file of an array of so many workers, as it is submitted."""
        return self.request(size).text(tasks)

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
        when = f"{time.time():.3f}-{uuid.uuid4().hex[:6]}"
        folder = self.folder / f"{size}.{self.tag(size)}-{when}"
        request = self.request(size, folder)
        folder.mkdir(parents=True)
        self._keep(folder, size, [])  # should this process end before it knows the jobs, nobody takes them for ended
        try:
            jobs = request.submit(tasks, argv)
        except NotSubmitted as error:
            if not (said := str(error).strip()) or NO_ANSWER.search(" ".join(said.split())):
                raise no_answer("sbatch", said or "it ended without a word") from None
            shutil.rmtree(folder, ignore_errors=True)  # no job is of it, none failed at its start
            refused = explain(said, self.document, size.step, self._unmet(said, size))
            raise UserError(f"{refused}{self.again}") from None
        except (RuntimeError, FileNotFoundError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise UserError(f"no Slurm here: {error}; run this on a login node, or use --via local") from None
        self._keep(folder, size, jobs)
        each = f" of {size.world} processes" if size.world > 1 else ""
        return f"job {jobs[0].partition('_')[0]}: {count(tasks, 'worker')}{each}"

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
                words = f"ExcNodeList={self.profile.at(size.step).excluding(excluded)}"
                for job in waiting:
                    with contextlib.suppress(OSError, subprocess.SubprocessError):  # it has just started
                        self._ask("scontrol", "update", f"JobId={job.number}", words, cluster=job.cluster)
        return said

    def in_vain(self, size: Size) -> str:
        """Return what was wrong with the last submissions of a size, if no worker of theirs could take a stage.

        While a node is known to be good, nodes that are not are excluded, and the rest goes on: as many more
        submissions may fail as there are failures that a node is blamed for.
        """
        starts = self.starts(size)
        number = IN_VAIN + (sum(map(len, starts.failed().values())) if starts.good else 0)
        last = sorted(self.folder.glob(f"{size}.{self.tag(size)}-*"), key=lambda path: path.name)[-number:]
        if len(last) < number or any((path / OUTSTANDING).exists() for path in last):
            return ""
        refusals = [[file.read_text() for file in path.glob(f"{SIGNED_IN}*")] for path in last]
        if not all(map(all, refusals)):  # a worker that started well and left with nothing to take is no failure
            return ""
        logs = sorted(last[-1].glob("*_log.out"))
        words, why = last_words(logs[0] if logs else None), "ended before they were ready"
        where = logs[0] if logs else last[-1]
        if refusals[-1]:
            words, why = refusals[-1][0], "found no stage that they could take"
        return (
            f"{self.name}: workers were submitted {number} times and {why}; no more are, until the sweep command is "
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
                raise no_answer("squeue", error.stderr) from None
            raise UserError(f"{explain(error.stderr, self.document)}{self.again}") from None

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
                raise no_answer(command[0], said) from None
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
                here = self.profile.on_node(size.world)
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


def plan_mark(file: str) -> str:
    """Return the mark of a plan in the names of the jobs that are bound to it; empty: the sweep's newest plan."""
    return digest(file)[:4]


def _rows(told: str) -> list[list[str]]:
    """Return the jobs in what squeue prints; other lines name a cluster."""
    return [line.split("|") for line in told.splitlines() if line.count("|") >= 4]
