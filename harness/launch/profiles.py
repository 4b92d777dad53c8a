"""Cluster profiles: how a worker's job is asked for, in one YAML file that a whole group shares."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from harness.declared import Form
from harness.errors import Fault, FileError, UserError, short, usable_path
from harness.form import sentence
from harness.memory import clearly_more
from harness.reading import Document, read_document
from harness.words import read_memory, read_span
from tost.catalog import nearest

FOLDER = Path(__file__).resolve().parent.parent.parent / "slurm"
"""The profiles that come with the project."""
OURS = (
    *("array", "job-name", "output", "error", "signal", "nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu"),
    *("open-mode", "wait", "wrap", "parsable", "quiet", "test-only", "help", "usage", "version"),
)
"""sbatch options that the harness itself decides on, or after which sbatch names no job."""
FIELDS = {
    **{name: name for name in ("partition", "account", "qos", "constraint", "time", "requeue")},
    "no-requeue": "requeue",
    "clusters": "cluster",
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "cpus"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "tres-per-task"), "gpus"),
}
"""sbatch options that a profile has a key of its own for, which workers are told of too."""
SAYS = {
    "memory": ", what one process needs in all (0: the whole node's), and memory_option",
    "cpus": ", those of one process",
    "gpus": ", those of one process, and gpu_type; gpu_option says how sbatch is asked",
    "requeue": ", true, false or null",
    "cluster": ", one name",
}
"""What stands in such a key."""
UNLIMITED = ("UNLIMITED", "INFINITE", "0")
"""How Slurm spells that a job has no time limit."""


def _with_commas(given: object) -> object:
    """Return a list of names or numbers as Slurm spells one; anything else as it is."""
    listed = isinstance(given, list) and given and all(type(one) in (str, int) and one != "" for one in given)
    return ",".join(map(str, given)) if listed and isinstance(given, list) else given


class Request(Form, strict=True):
    """What a job asks for; cpus, gpus and memory are of one process. `null` leaves an option of sbatch out, so that the
    site's own default holds.
    """

    partition: str | None = Field(None, min_length=1)
    """Slurm's partition."""
    account: str | None = Field(None, min_length=1)
    """Slurm's account."""
    qos: str | None = Field(None, min_length=1)
    """Slurm's quality of service."""
    gpus: int = Field(0, ge=0, le=64)
    """GPUs of a process."""
    gpu_type: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    """Their type, as the cluster names it."""
    gpu_memory: str | None = None
    """What one GPU has, so that a stage that needs more is not given to it."""
    cpus: int = Field(1, ge=1, le=1024)
    """CPUs of a process."""
    memory: str | None = "4G"
    """Memory of a process, as Slurm spells it; a plain number is MB, 0 all that the node has, `null` what the site
    gives: a worker then uses all that its job has.
    """
    constraint: str | None = Field(None, min_length=1)
    """Slurm's constraint on nodes."""
    time: str | None = "4:00:00"
    """A job's time limit, as Slurm spells it: a plain number is minutes, `2-12` days and hours, `UNLIMITED` none,
    `null` the partition's default.
    """
    sbatch: dict[str, Any] = Field(default_factory=dict)
    """Any other option of sbatch, by its long name: a text, a number, a list, or `true` for one that takes no value."""

    @field_validator("partition", mode="before")
    @classmethod
    def _partitions(cls, given: object) -> object:
        """Take a list as Slurm's own, with commas: the job starts in whichever has room first."""
        return _with_commas(given)

    @field_validator("memory", "gpu_memory", mode="before")
    @classmethod
    def _memory(cls, given: object, info: ValidationInfo) -> object:
        text = str(given) if type(given) is int else given
        if isinstance(text, str) and not (info.field_name == "memory" and text.strip() == "0"):
            read_memory(text)
        return text

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, given: object) -> str | None:
        if given is None:
            return None
        text = str(given).strip() if type(given) in (int, str) else ""
        if text.upper() in UNLIMITED:
            return text.upper()
        if text.isdigit():  # as sbatch does: a plain number is minutes
            text = f"{text}:00"
        if not text or read_span(text) < 60:
            raise ValueError(f"{short(given)} is no time limit; write 4:00:00, 1-12:00:00, minutes, or UNLIMITED")
        return text

    @field_validator("sbatch")
    @classmethod
    def _others(cls, options: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, given in options.items():
            option, value = name.replace("_", "-"), _with_commas(given)
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]+", option):
                raise ValueError(f"{name}: {short(name)} is no option's long name; write it without its dashes")
            # an abbreviation means the option that it begins
            meant = next((known for known in (*OURS, *FIELDS) if known == option), None) or next(
                (known for known in (*OURS, *FIELDS) if known.startswith(option)), option
            )
            if meant in OURS:
                raise ValueError(f"{name} is set by the harness itself; remove it")
            field = "gpus" if meant == "gres" and re.search(r"(^|,)gpu\b", str(value)) else FIELDS.get(meant)
            if field:
                raise ValueError(f"{name} goes into the profile's own key {field}{SAYS.get(field, '')}")
            if not isinstance(value, str | int | float | None) or "\n" in str(value):
                raise ValueError(f"{name}: {short(given)} is not allowed; write a text, a number, a list or true")
            if option in found:
                raise ValueError(f"{name}: given twice; write it once")
            found[option] = value
        return found

    @property
    def minutes(self) -> int:
        """Return the time limit in whole minutes, as Slurm counts; 0 where there is none, or it is the partition's."""
        return 0 if self.time is None or self.time in UNLIMITED else max(1, int(read_span(self.time) // 60))

    @property
    def bytes(self) -> int:
        """Return the memory of a process; 0 where the profile does not say how much that is."""
        return 0 if self.memory is None or self.memory.strip() == "0" else read_memory(self.memory)

    def has(self, resource: str) -> float:
        """Return what a process has of `ram` or `gpu` memory, in bytes, or `time`; 0 where it is not said."""
        if resource == "time":
            return 0 if self.time is None else self.minutes * 60 or math.inf
        return self.bytes if resource == "ram" else read_memory(self.gpu_memory or "1")


class Profile(Request):
    """A cluster, or a way of using it."""

    cluster: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    """The one cluster to submit to, by its name, where that is not the one whose login node this is."""
    workers: int = Field(8, ge=1, le=10_000)
    """Most workers of a size at once."""
    per_node: int | None = Field(None, ge=1, le=64)
    """Processes of a group on one node; else all of them."""
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """The option of sbatch that asks for GPUs; `gres` joins those of `sbatch: {gres: ...}`."""
    memory_option: Literal["mem", "mem-per-cpu"] = "mem"
    """The option of sbatch that asks for memory; all of a node's is always asked for by `mem`."""
    requeue: bool | None = True
    """Whether Slurm may queue a job again that it has ended itself; false where the site forbids it, `null` as the site
    does.
    """
    idle: str = "60s"
    """A worker with nothing to do leaves after so long."""
    nodes_submit: bool = False
    """Whether jobs may submit jobs: then a worker submits others for what it has made ready, and when it leaves."""
    array: int | None = Field(None, ge=1)
    """Most tasks of an array job; else what the cluster says."""
    submit: int | None = Field(None, ge=1)
    """Most jobs that a person may have in the queue."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell that run before the worker."""
    modules: list[str] = Field(default_factory=list)
    """Environment modules that are loaded first."""
    container: str | None = None
    """A command before python, such as `apptainer exec --nv image.sif`."""
    python: str | None = None
    """The interpreter on the nodes; else the one that submits."""
    stage: dict[str, str] = Field(default_factory=dict)
    """Files and folders to copy beforehand, and where to; a target such as $TMPDIR/image.sif is filled by every job."""
    scratch: str | None = None
    """A folder on the node's own disk; the node's variables may stand in it."""
    larger: list[Request] = Field(default_factory=list)
    """What replaces the request for stages that ran out of memory or time, smallest first."""

    @field_validator("cluster", mode="before")
    @classmethod
    def _one(cls, given: object) -> object:
        names = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []
        if len(names) > 1:
            one = f"cluster: {str(names[0]).strip()}"
            raise ValueError(f"workers are submitted to one cluster; write `{one}`, and another profile for each other")
        return given

    @field_validator("stage")
    @classmethod
    def _copies(cls, copies: dict[str, str]) -> dict[str, str]:
        for path in (*copies, *copies.values()):
            if not re.fullmatch(r"[\w$@%+=:,./{}~ -]+", path):
                raise ValueError(f"{short(path)} is no path that a shell reads as it stands")
        return copies

    @property
    def lines(self) -> list[str]:
        """Return what a job's shell runs first: modules, copies to its nodes' own disks, the set-up lines."""
        copies = [(source, target) for source, target in self.stage.items() if "$" in target]
        return [
            *(f"module load {module}" for module in self.modules),
            *(
                "srun --ntasks-per-node=1 sh -c "
                f"""'mkdir -p "$(dirname "{to}")" && cp -rLu -- "{Path(source).expanduser()}" "{to}"' || exit 1"""
                for source, to in copies
            ),
            *self.setup,
        ]

    @property
    def interpreter(self) -> str:
        """Return the interpreter on the node, or in its container."""
        return self.python or ("python" if self.container else sys.executable)

    def on_node(self, world: int) -> int:
        """Return how many of a job's processes a node has. Raises UserError where that is not the same for all."""
        here = min(self.per_node or world, world)
        if world % here:
            raise UserError(f"per_node: {here} does not divide world: {world}; write one that does")
        return here

    def excluding(self, nodes: Iterable[str]) -> str:
        """Return nodes and those that the profile itself excludes, as Slurm spells them."""
        own = self.sbatch.get("exclude")
        return ",".join([*([str(own)] if own else []), *nodes])

    @field_validator("larger")
    @classmethod
    def _amounts(cls, steps: list[Request]) -> list[Request]:
        for step in steps:
            if "memory" in step.model_fields_set and not step.bytes:
                given = step.memory or "null"
                raise ValueError(
                    f"memory: {given} does not say whether it is more than was not enough; write the amount"
                )
        return steps

    @field_validator("idle")
    @classmethod
    def _span(cls, text: str) -> str:
        read_span(text)
        return text

    def at(self, step: int) -> Profile:
        """Return the profile as it is for a step of memory: its own, or with the changes of `larger`."""
        if step == 0:
            return self
        changes = self.larger[step - 1]
        return self.model_copy(update={name: getattr(changes, name) for name in changes.model_fields_set})

    @property
    def most(self) -> dict[str, float]:
        """Return the most that a process has of what `step_for` knows, by resource, of all steps."""
        steps = [self.at(step) for step in range(len(self.larger) + 1)]
        return {resource: max(asked.has(resource) for asked in steps) for resource in ("ram", "gpu", "time")}

    def step_for(self, amount: float, resource: str) -> int | None:
        """Return the first step with clearly more memory (`ram` or `gpu`, in bytes) or `time` than was not enough."""
        for step in range(len(self.larger) + 1):
            if clearly_more(self.at(step).has(resource), amount):
                return step
        return None


def load_profile(path: Path) -> tuple[Profile, Document]:
    """Read and check a profile. Raises FileError with a line for each fault, or UserError."""
    document = read_document(path)
    try:
        return Profile.model_validate(document.values), document
    except ValidationError as error:
        raise FileError([_fault(document, e) for e in error.errors()]) from None


def _fault(document: Document, error: Any) -> Fault:
    location = error["loc"]
    name, mark = ".".join(map(str, location)), document.mark(location)
    if error["type"] == "extra_forbidden":
        known = list((Request if len(location) > 1 else Profile).model_fields)
        return Fault(mark, f"{name}: unknown key; allowed are {', '.join(known)}{nearest(str(location[-1]), known)}")
    return Fault(mark, f"{name}: {sentence(error)}")


def find_profile(named: str, beside: Path) -> Path:
    """Return a profile's file: as named, from the sweep file's folder, from here, from a folder above the sweep file
    within its project, or one that comes with this project.

    `slurm/a100.yaml`, `a100.yaml` and `a100` all name slurm/a100.yaml. Raises UserError.
    """
    name = named if named.endswith((".yaml", ".yml")) else f"{named}.yaml"
    try:
        usable_path(name, beside)
    except ValueError as error:
        raise UserError(f"launch.via: {error}; write local, debug, ray, or the name of a file in slurm/") from None
    given = Path(name).expanduser()
    places = [beside / given, Path.cwd() / given, beside / "slurm" / given.name, Path.cwd() / "slurm" / given.name]
    for path in [*places, *(folder / given for folder in _above(beside.absolute())), FOLDER / given.name]:
        if path.is_file():
            return path
    there = sorted({p.stem for folder in (beside / "slurm", Path("slurm"), FOLDER) for p in folder.glob("*.yaml")})
    raise UserError(
        f"{named!r} is no launcher and no profile; write local, debug, ray, or the name of a file in slurm/: "
        f"{', '.join(there) or 'there is none yet'}{nearest(given.stem, there)}"
    )


def _above(folder: Path) -> list[Path]:
    """Return the folders that a folder lies in, up to its project's root; none where it is in no project."""
    for number, above in enumerate(folder.parents):
        if any((above / name).exists() for name in (".git", "pyproject.toml")):
            return list(folder.parents[: number + 1])
    return []
