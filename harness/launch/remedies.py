"""What a scheduler complains of, which line of the profile it means, and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.reading import Document


@dataclass(frozen=True)
class Remedy:
    """A complaint's pattern, the profile's key that it means, and what to do."""

    pattern: str
    key: str
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
    Remedy(r"[Mm]emory specification|memory .* not available", "memory", "`sinfo -o '%P %m'` shows what nodes have"),
    Remedy(r"[Ii]nvalid feature|BadConstraints", "constraint", "`sinfo -o '%P %f'` shows what nodes offer"),
    Remedy(
        r"generic resource|[Ii]nvalid GRES|gres/", "gpus", "`sinfo -o '%P %G'` shows the GPUs; set gpus and gpu_type"
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
        "cpus",
        "no node has so much together: lower cpus, memory, gpus or per_node (`sinfo -o '%P %c %m %G'`)",
    ),
    Remedy(r"[Rr]equeue.*(disabled|not permitted|denied)|presently disabled", "requeue", "set requeue: false"),
    Remedy(r"slurm_load_conf|configuration", "", "Slurm is installed here but not configured; is this the login node?"),
)
"""Tried in order; the first that matches speaks."""

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
    "DependencyNeverSatisfied": ("sbatch", "it depends on a job that can never end as wanted"),
}
"""Reasons for which a pending job never starts."""
HOPELESS_PATTERN = re.compile(r"^(QOS|Assoc)(Max|Grp)\w*Per(Job|Node)\w*")
"""Others: limits for a single job."""
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


def explain(said: str, document: Document | None) -> str:
    """Turn a scheduler's complaint into a sentence that names the profile's line and what to do."""
    said = " ".join(re.sub(r"sbatch: error: |scontrol: error: ", "", said).split()) or "it gave no reason"
    for remedy in REFUSALS:
        if re.search(remedy.pattern, said):
            return f"{_place(document, remedy.key)}the scheduler refuses: {said}; {remedy.advice}"
    return f"{_place(document, '')}the scheduler refuses: {said}"


def hopeless(reason: str, document: Document | None) -> str:
    """Return why a pending job can never start, empty where it may."""
    if found := HOPELESS.get(reason):
        return f"{_place(document, found[0])}{found[1]} ({reason})"
    if HOPELESS_PATTERN.match(reason):
        key = next(
            (k for k, word in (("memory", "Mem"), ("cpus", "C[Pp][Uu]"), ("time", "Wall")) if re.search(word, reason)),
            "qos",
        )
        return f"{_place(document, key)}one job of this kind is over a limit of the account or qos ({reason})"
    return ""


def _place(document: Document | None, key: str) -> str:
    if document is None:
        return ""
    mark = document.mark((key,)) if key else None
    shown = f" {key}: {document.values[key]}:" if key in document.values else f" {key} (not set):" if key else ""
    return f"{mark or document.file}:{shown} "
