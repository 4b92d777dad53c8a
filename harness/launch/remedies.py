"""What a scheduler complains of, which line of the profile it means, and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from harness.launch.profiles import FIELDS, Profile
from harness.reading import Document, Path_
from harness.words import read_span


@dataclass(frozen=True)
class Remedy:
    """A complaint's pattern, the profile's keys or sbatch options that it may mean, and what to do."""

    pattern: str
    keys: str
    """With spaces; the first that the profile sets is the one."""
    advice: str


REFUSALS = (
    Remedy(r"[Nn]o cluster|cluster name", "cluster", "`sacctmgr show clusters format=cluster` lists them"),
    Remedy(r"invalid partition", "partition", "choose one that `sinfo -s` lists"),
    Remedy(
        r"[Ii]nvalid account|account/partition combination|InvalidAccount",
        "account",
        "choose one that `sacctmgr show associations user=$USER` lists",
    ),
    Remedy(
        r"[Ii]nvalid qos|InvalidQOS", "qos", "choose one that `sacctmgr show associations user=$USER format=qos` lists"
    ),
    Remedy(
        r"[Ii]nvalid wckey",
        "wckey",
        "write `sbatch: {wckey: NAME}` with one that `sacctmgr show user $USER withassoc format=wckeys%60` lists",
    ),
    Remedy(r"reservation", "reservation", "choose one that `scontrol show reservation` lists"),
    Remedy(r"[Ll]icense", "licenses", "choose those that `scontrol show licenses` lists"),
    Remedy(r"[Dd]ependency", "dependency", "name a job that `squeue --me` lists"),
    Remedy(r"[Ii]nvalid node name", "nodelist exclude", "choose those that `sinfo --Node` lists"),
    Remedy(r"[Tt]emporary disk", "tmp", "`sinfo -o '%P %d'` shows the MB of disk that nodes have"),
    Remedy(
        r"[Ss]ocket, core",
        "sockets-per-node cores-per-socket threads-per-core extra-node-info hint cpus",
        "`sinfo -o '%P %z'` shows the sockets, cores and threads of nodes",
    ),
    Remedy(r"[Mm]emory specification|memory .* not available", "memory", "`sinfo -o '%P %m'` shows what nodes have"),
    Remedy(r"[Ii]nvalid feature|BadConstraints", "constraint", "`sinfo -o '%P %f'` shows what nodes offer"),
    Remedy(
        r"generic resource|[Ii]nvalid GRES|gres/",
        "gres gpus",
        "`sinfo -o '%P %G'` shows what nodes have; set gpus and gpu_type, other kinds under sbatch",
    ),
    Remedy(
        r"submit limit|MaxSubmit|job count|AssocMaxSubmit|QOSMaxSubmit",
        "submit",
        "set submit: to what the site allows one person to have in the queue; the rest follows as jobs end",
    ),
    Remedy(r"time limit|PartitionTimeLimit", "time", "`sinfo -o '%P %l'` shows the most each partition allows"),
    Remedy(r"[Ii]nvalid job array|MaxArraySize", "array", "set array: to at most MaxArraySize - 1 of the cluster"),
    Remedy(
        r"[Nn]ode configuration is not available|PartitionNodeLimit|MaxNodePerAccount|MaxCpuPer|Maximum|CPU count",
        "exclude nodelist mincpus cpus",
        "no node has so much together: lower cpus, memory, gpus or per_node, or name other nodes "
        "(`sinfo -o '%P %c %m %G'`)",
    ),
    Remedy(r"[Rr]equeue.*(disabled|not permitted|denied)|presently disabled", "requeue", "set requeue: false, or null"),
    Remedy(r"slurm_load_conf|configuration", "", "Slurm is installed here but not configured; is this the login node?"),
)
"""Tried in order; the first that matches speaks."""
OTHERWISE = {
    "gpus": "`gpu_option: gres` asks for them otherwise",
    "memory": "`memory: null` leaves it out, `memory_option: mem-per-cpu` asks for it otherwise",
    "requeue": "`requeue: null` leaves it out",
    "time": "`time: null` leaves it out",
}
"""What to do where sbatch or the site does not take the option that such a key stands for."""
COMPARED = re.compile(
    r"not available|not be satisfied|feature spec|generic resource|Memory spec|Node count|more proc|[Tt]ime limit|"
    r"^(PartitionConfig|PartitionNodeLimit|PartitionTimeLimit|BadConstraints|MaxMemPerLimit)$"
)
"""Complaints and reasons for which what is asked is compared with what nodes have, since they do not say what it is."""

HOPELESS = {
    "PartitionConfig": (
        "partition",
        "no node of it has so many cpus, GPUs or so much memory together, or its limits forbid such a job",
    ),
    "PartitionTimeLimit": ("time", "its time is over the partition's limit (`sinfo -o '%P %l'`)"),
    "PartitionNodeLimit": ("per_node", "it asks for more nodes than the partition allows, or than it has"),
    "BadConstraints": ("constraint", "no node offers what it asks for"),
    "AccountNotAllowed": ("account", "the account may not use this partition"),
    "InvalidAccount": ("account", "the account does not exist"),
    "InvalidQOS": ("qos", "the qos does not exist or may not be used"),
    "QOSNotAllowed": ("qos", "the partition does not allow this qos"),
    "DependencyNeverSatisfied": ("dependency", "it depends on a job that can never end as wanted"),
}
"""Reasons for which a pending job never starts."""
HOPELESS_PATTERN = re.compile(r"^(QOS|Assoc)(Max|Grp)\w*Per(Job|Node)\w*|^QOSMin")
"""Others: limits for a single job."""
LIMITED = {"memory": "Mem", "cpus": "C[Pp][Uu]", "time": "Wall", "gpus": "GRES", "per_node": "M(ax|in)Node"}
"""The profile's key that such a limit is about, by what its name has in it."""
BROKEN = re.compile(r"launch.failed.requeued.held")
"""A job that a node could not start, as when the controller fell at that moment: it waits for ever, another may not."""

WAITS = (
    (r"JobHeldUser", "its user holds it; `scontrol release {job}` lets it start"),
    (r"JobHeldAdmin", "an administrator holds it, and only one can release it"),
    (r"ReqNodeNotAvail|Nodes required", "nodes are down, drained or reserved; `sinfo -R` says why"),
    (r"PartitionDown|PartitionInactive", "its partition is closed; `sinfo -s` shows when it is open again"),
    (r"Reservation", "its reservation has not begun, or is over; `scontrol show reservation` lists them"),
    (r"Licenses", "all licenses are in use; `scontrol show licenses` counts them"),
    (r"(QOS|Assoc)\w*Minutes", "the account or qos has used up what it may; `sshare` shows it"),
    (r"(QOS|Assoc)\w+", "a limit of the account or qos on all its jobs; it starts as others end"),
)
"""What pending jobs wait for that time or a person mends, by the reason's beginning."""


def known_refusal(said: str) -> bool:
    """Return whether a complaint is one that says what is wrong with the profile."""
    return any(re.search(remedy.pattern, said) for remedy in REFUSALS)


def waits(reason: str, job: str) -> str:
    """Return a pending job's reason, and in words what it means where that is no plain queueing."""
    name = re.sub(r"^(\w+),.*", r"\1", reason)  # what follows a comma are the names of nodes
    found = next((words for pattern, words in WAITS if re.match(pattern, reason)), "")
    return f"{name}: {found.format(job=job.partition('_')[0])}" if found else name


def explain(said: str, document: Document | None, step: int = 0, unmet: tuple[str, str] | None = None) -> str:
    """Turn a scheduler's complaint into a sentence that names the profile's line and what to do.

    `step`: that of memory which was asked for; `unmet`: the key that no node satisfies, and why, where one was found.
    """
    said = re.sub(r"sbatch: error: |scontrol: error: |sbatch: (?=unrec)", "", said)
    said = "; ".join(" ".join(line.split()) for line in said.splitlines() if line.strip())
    refused = f"the scheduler refuses: {said or 'it gave no reason'}"
    if unmet:
        return f"{_place(document, unmet[:1], step)}{refused}; {unmet[1]}"
    if named := re.search(r"--([a-z][a-z-]+)", said):
        if key := FIELDS.get(named[1]):
            return f"{_place(document, [key], step)}{refused}{f'; {OTHERWISE[key]}' if key in OTHERWISE else ''}"
        if document and named[1] not in Profile.model_fields and _found(document, named[1], step):
            return f"{_place(document, [named[1]], step)}{refused}; `man sbatch` says what it takes"
    for remedy in REFUSALS:
        if re.search(remedy.pattern, said):
            return f"{_place(document, remedy.keys.split(), step)}{refused}; {remedy.advice}"
    return f"{_place(document, ())}{refused}"


def hopeless(reason: str, document: Document | None, step: int = 0, unmet: tuple[str, str] | None = None) -> str:
    """Return why a pending job can never start, empty where it may; the rest as of `explain`."""
    if unmet:
        return f"{_place(document, unmet[:1], step)}{unmet[1]} ({reason})"
    if found := HOPELESS.get(reason):
        return f"{_place(document, found[0].split(), step)}{found[1]} ({reason})"
    if HOPELESS_PATTERN.match(reason):
        key = next((k for k, word in LIMITED.items() if re.search(word, reason)), "qos")
        limit = "under" if reason.startswith("QOSMin") else "over"
        return (
            f"{_place(document, [key], step)}one job of this kind is {limit} a limit of the account or qos ({reason})"
        )
    return ""


OFFERS = "%P|%D|%c|%m|%G|%f|%l|%s"
"""What sinfo is asked of every kind of node (`--exact`)."""


@dataclass(frozen=True)
class Offer:
    """Nodes of a partition that are alike."""

    partition: str
    default: bool
    number: int
    cpus: int
    memory: int
    """In MiB."""
    gpus: dict[str, int]
    """By type; empty where they have none."""
    features: frozenset[str]
    minutes: float
    """The partition's time limit."""
    most: float
    """Nodes that one job of the partition may have."""

    @staticmethod
    def read(line: str) -> Offer:
        """Read a line of sinfo's."""
        partition, number, cpus, memory, gres, features, limit, size = line.strip().split("|")
        gpus: dict[str, int] = {}
        for kind, amount in re.findall(r"(?:^|,)gpu:(?:([^:,(]+):)?(\d+)", gres):
            gpus[kind] = gpus.get(kind, 0) + int(amount)
        return Offer(
            partition.rstrip("*"),
            partition.endswith("*"),
            _number(number),
            _number(cpus),
            _number(memory),
            gpus,
            frozenset(features.split(",")) - {"(null)"},
            math.inf if limit == "infinite" else read_span(limit) / 60,
            math.inf if size.endswith("infinite") else _number(size.rpartition("-")[2]),
        )

    def has(self, kind: str | None) -> int:
        """Return how many GPUs of a type a node has; None: of any."""
        return sum(self.gpus.values()) if kind is None else self.gpus.get(kind, 0)

    def suits(self, constraint: str | None) -> bool:
        """Return whether nodes have a constraint's features; True for one that is more than names with `&` or `|`."""
        if constraint is None or not re.fullmatch(r"[\w.-]+(&[\w.-]+)*|[\w.-]+(\|[\w.-]+)*", constraint):
            return True
        names = set(re.split(r"[&|]", constraint))
        return bool(names & self.features) if "|" in constraint else names <= self.features


def _number(text: str) -> int:
    """Return a number of sinfo's, which has a `+` where nodes have at least so much."""
    return int(re.sub(r"\D", "", text) or 0)


def compare(asked: Profile, here: int, nodes: int, told: str) -> tuple[str, str] | None:
    """Return the key of a request that no node satisfies, and why; None where all is to be had.

    `here`: processes on a node; `nodes`: of a job; `told`: sinfo's lines.
    """
    offers = [Offer.read(line) for line in told.splitlines() if line.count("|") == OFFERS.count("|")]
    names = (asked.partition or "").split(",")
    offers = [one for one in offers if one.partition in names or (one.default and not asked.partition)]
    if not offers:
        return None
    where = asked.partition or "the default partition"
    who = "one process asks" if here == 1 else f"{here} processes on a node ask"
    limit = math.inf if asked.time and not asked.minutes else asked.minutes
    features = ", ".join(sorted({name for one in offers for name in one.features}))
    types = ", ".join(sorted({kind or "some without a type" for one in offers for kind in one.gpus})) or "none"
    wants: list[tuple[str, float, Callable[[Offer], float], str]] = [
        (
            "constraint",
            True,
            lambda one: one.suits(asked.constraint),
            f"no node of {where} has such features; there are {features or 'none'}",
        ),
        (
            "gpu_type",
            bool(asked.gpus and asked.gpu_type),
            lambda one: one.has(asked.gpu_type) > 0,
            f"no node of {where} has GPUs of this type; there are {types}",
        ),
        ("gpus", asked.gpus * here, lambda one: one.has(asked.gpu_type), "GPUs"),
        ("cpus", asked.cpus * here, lambda one: one.cpus, "CPUs"),
        ("memory", asked.bytes * here // 2**20, lambda one: one.memory, "MB of memory"),
        ("time", limit, lambda one: one.minutes, "its time is over the partition's limit: {most:g} minutes"),
        ("per_node", nodes, lambda one: one.most, f"a job asks for {nodes} nodes, one of {where} may have {{most:g}}"),
    ]
    for key, amount, has, said in wants:
        if (most := max(map(has, offers))) < amount:
            if key in ("gpus", "cpus", "memory"):
                said = f"{who} for {amount:g} {said}, a node of {where} has {{most:g}} at most"
            return key, said.format(most=most)
    left, narrowed = offers, list[str]()
    for key, amount, has, said in wants:
        before, left = left, [one for one in left if has(one) >= amount]
        if not left:
            there = f" {max(map(has, before)):g} {said} at most" if key in ("gpus", "cpus", "memory") else " none"
            return key, f"nodes of {where} with {' and '.join(narrowed)} as asked have{there}"
        narrowed += [key] if len(left) < len(before) else []
    most = max(sum(one.number for one in left if one.partition == name) for name in {one.partition for one in left})
    if most < nodes:
        return "per_node", f"a job asks for {nodes} nodes, and {where} has no more than {most} of that kind"
    return None


def _found(document: Document, key: str, step: int) -> Path_ | None:
    """Return where a profile sets a key, or an option under `sbatch`, that holds for a step of memory."""
    larger: list[Path_] = [("larger", step - 1)] if step else []
    changed = bool(larger) and _value(document.values, (*larger[0], "sbatch")) is not None
    blocks: Iterable[Path_] = [(*larger[0], "sbatch")] if changed else [("sbatch",)]
    paths = [(*above, key) for above in (*larger, ())]
    paths += [(*block, name) for block in blocks for name in (key, key.replace("-", "_"))]
    return next((path for path in paths if _value(document.values, path) is not None), None)


def _value(values: Any, path: Path_) -> Any:
    for part in path:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return None
    return values


def _place(document: Document | None, keys: Iterable[str], step: int = 0) -> str:
    """Return the line of the first of some keys that the profile sets; else the file, and the last as not set."""
    if document is None:
        return ""
    shown = ""
    for key in keys:
        if path := _found(document, key, step):
            name = ".".join(map(str, path))
            return f"{document.mark(path) or document.file}: {name}: {_value(document.values, path)}: "
        shown = f" {key if key in Profile.model_fields else f'sbatch.{key}'} (not set):"
    return f"{document.file}:{shown} "
