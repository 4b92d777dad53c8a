"""The stage kinds: from an order (a spec, the parents' files, a folder to write into) to an artifact and metrics."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from harness.catalog import DATASETS, LOSSES, OPTIMIZERS, SCHEDULES
from harness.errors import UserError
from harness.plugins import load_frozen
from harness.protocol import Protocol
from harness.store import file_sha256
from harness.train.checkpoint import load_checkpoint
from harness.train.decode import Decoded
from harness.train.draws import global_draws, stream
from harness.train.images import Images, encode
from harness.train.loop import Training, Watcher, train
from harness.train.optimizers import load_named_state, named_state
from tost.catalog import MASKS, MODELS, PARTS, PER_CLASS, resolve, settings
from tost.masks import MaskError, Masks, find_masks, imp_count, keep_count, prunable
from tost.masks.apply import apply_masks, check_masks
from tost.masks.io import load_masks, save_masks
from tost.recipe import Part


class Corrupt(Exception):
    """A parent's artifact is not what its result says it is."""

    def __init__(self, role: str) -> None:
        super().__init__(f"the {role} artifact is damaged: its bytes are not the ones its result names")
        self.role = role


@dataclass(frozen=True)
class Order:
    """A stage to run, as the supervisor sends it to the trainer."""

    key: str
    kind: str
    spec: Mapping[str, Any]
    store: str
    attempt: str
    earlier: tuple[str, ...]
    """Folders of earlier attempts, where checkpoints may lie."""
    parents: Mapping[str, tuple[str, str]]
    """Role -> (path, SHA-256) of the parent's artifact."""
    place: str = ""
    device: str = "cpu"
    threads: int = 1
    checkpoint_every: float = 300.0

    def parent(self, role: str) -> Path:
        """Return the path of a parent's artifact, its checksum verified. Raises Corrupt."""
        path, sha256 = self.parents[role]
        if (path, sha256) not in _verified:
            try:
                if file_sha256(Path(path)) != sha256:
                    raise Corrupt(role)
            except OSError:
                raise Corrupt(role) from None
            _verified.add((path, sha256))
        return Path(path)

    @property
    def read(self) -> dict[str, str]:
        """Return role -> SHA-256 of what this stage reads."""
        return {role: sha256 for role, (_, sha256) in self.parents.items()}


_verified: set[tuple[str, str]] = set()
_images: dict[tuple[Any, ...], Images] = {}


@dataclass
class Outcome:
    """What a stage made: the artifact's draft in the attempt's folder, and metrics."""

    draft: Path
    metrics: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)


def run_stage(order: Order, watch: Watcher) -> Outcome:
    """Run one stage to its end."""
    kinds: Mapping[str, Callable[[Order, Watcher], Outcome]] = {"data": _data, "mask": _mask, "train": _train}
    return kinds[order.kind](order, watch)


def _load(order: Order, table: Mapping[str, Any], spec: Mapping[str, Any]) -> Any:
    """Import a method: a catalog's by name, a user's own from its frozen copy."""
    if "source" in spec:
        return load_frozen(Path(order.store), spec["source"], spec["path"])
    return resolve(table[spec["name"]].path)


def _data(order: Order, watch: Watcher) -> Outcome:
    spec = order.spec
    read = _load(order, DATASETS, spec["dataset"])
    args = dict(spec["dataset"].get("args", {}))
    if "source" in spec["dataset"]:
        accepted = inspect.signature(read).parameters
        decoded = _decoded(read(**({"folder": Path(order.place)} if "folder" in accepted else {}), **args))
    else:
        decoded = read(Path(order.place), spec.get("size", 0), **args)
    tensors, metadata = encode(decoded, spec.get("size", 0), spec["content"])
    draft = Path(order.attempt) / "data.safetensors"
    draft.write_bytes(save(tensors, metadata))
    return Outcome(
        draft,
        {
            "train_images": len(tensors["train.labels"]),
            "test_images": len(tensors["test.labels"]),
            "shape": list(tensors["train.images"].shape[1:]),
            "classes": len(decoded.classes),
            "note": decoded.note,
        },
    )


def _decoded(value: Any) -> Decoded:
    """Read what a user's data set returned: ((images, labels), (images, labels)) of train and test."""
    if isinstance(value, Decoded):
        return value
    try:
        (train_images, train_labels), (test_images, test_labels) = value
    except (TypeError, ValueError):
        raise UserError(
            f"the data set returned {type(value).__name__}; "
            "it must return ((images, labels), (images, labels)) of train and test"
        ) from None
    labels = [np.asarray(split) for split in (train_labels, test_labels)]
    for split in labels:
        if split.ndim != 1 or split.dtype.kind not in "iu" or not len(split):
            raise UserError(
                f"the data set's labels are {split.dtype}{list(split.shape)}; they must be whole numbers [N] from 0 on"
            )
    classes = tuple(map(str, range(int(max(split.max() for split in labels)) + 1)))
    return Decoded(train_images, labels[0].astype(np.int64), test_images, labels[1].astype(np.int64), classes)


def _open_images(order: Order) -> Images:
    """Return the data set on the device; the last one is kept, since a worker's next stage mostly uses it again."""
    path = order.parent("data")
    view = {name: order.spec.get(name) for name in ("dev", "normalize", "augment")}
    key = (str(path), json.dumps(view), order.device)
    if key not in _images:
        _images.clear()
        _images[key] = Images(path, view, torch.device(order.device))
    return _images[key]


def _build(order: Order, images: Images) -> nn.Module:
    """Build the network with the initial weights of the ticket seed."""
    spec = order.spec["arch"]
    build = _load(order, MODELS, spec)
    with global_draws(order.spec["ticket_seed"], "init"):
        model = build(images.classes, images.shape[0], **spec.get("args", {}))
    if not isinstance(model, nn.Module):
        raise UserError(f"the architecture returned {type(model).__name__}; it must return a torch.nn.Module")
    _check_outputs(model, images)
    return model.to(images.device)


def _check_outputs(model: nn.Module, images: Images) -> None:
    """Raise UserError where a network does not map images to logits: torch would say so late, or not at all."""
    shape = list(images.shape)
    try:
        with torch.no_grad():
            logits = copy.deepcopy(model).cpu().eval()(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"the network cannot take images of shape {shape} [channels, height, width]: {error}"
        ) from error
    if not isinstance(logits, Tensor) or list(logits.shape) != [2, images.classes]:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the network returns {got} for 2 images; it must return logits [2, {images.classes}]")


def _mask(order: Order, watch: Watcher) -> Outcome:
    spec, images = order.spec, _open_images(order)
    model = _build(order, images)
    within = None
    if "trained" in order.parents:
        tensors = load_file(order.parent("trained"))
        masks = {name.removeprefix("mask/"): t.bool() for name, t in tensors.items() if name.startswith("mask/")}
        model.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("mask/")})
        within = masks or None
    weights = prunable(model, spec["prunable"])
    total = sum(weight.numel() for weight in weights.values())
    if not total:
        raise UserError(f"the network has no weight to prune: no Conv2d or Linear layer in the set {spec['prunable']}")
    level = spec["sparsity"].get("imp")
    keep = imp_count(total, level) if level else keep_count(total, Fraction(spec["sparsity"]["density"]))
    score = _load(order, MASKS, spec["method"])
    given = spec["method"].get("args", {})
    knobs = dict(given) if "source" in spec["method"] else settings(MASKS[spec["method"]["name"]], given)
    offered = {**knobs, "shape": images.shape, "generator": stream(spec["ticket_seed"], "mask")}
    composed = {
        name: offered.pop(name) for name in ("steps", "scope") if name in offered and "source" not in spec["method"]
    }
    if "batches" in inspect.signature(score).parameters:
        offered["batches"] = images.per_class(spec["ticket_seed"], int(knobs.get("per_class", PER_CLASS.default)))
    try:
        masks = find_masks(score, model, keep, which=spec["prunable"], within=within, **composed, offered=offered)
    except MaskError as error:
        raise UserError(str(error)) from error
    draft = Path(order.attempt) / "mask.safetensors"
    save_masks(masks, draft)
    layers = {name: [int(mask.sum()), mask.numel()] for name, mask in masks.items()}
    empty = [name for name, (kept, _) in layers.items() if kept == 0]
    return Outcome(draft, {"kept": keep, "total": total, "layers": layers, "empty_layers": empty})


def _train(order: Order, watch: Watcher) -> Outcome:
    run, masks = _training(order)
    resumed = load_checkpoint([Path(order.attempt), *map(Path, order.earlier)], order.read)
    if resumed is not None:
        _resume(run, *resumed)
    train(run, watch)
    for part in run.parts:
        part.detach()
    return _trained(order, run, masks)


def _training(order: Order) -> tuple[Training, Masks]:
    """Put a training together: network, masks, recipe, optimizer, all as they are before the first step."""
    spec, images = order.spec, _open_images(order)
    protocol = Protocol(**{k: v for k, v in spec["protocol"].items() if k != "versions"})
    model = _build(order, images)
    masks = load_masks(order.parent("mask")) if "mask" in order.parents else {}
    check_masks(model, masks)
    apply_masks(model, masks)
    parts: list[Part] = []
    for part in spec["recipe"]:
        parts.append(_load(order, PARTS, part)(**part.get("args", {})))
        parts[-1].attach(model)
    optimizer = resolve(OPTIMIZERS[protocol.optimizer].path)(model.parameters(), protocol)
    schedule = resolve(SCHEDULES[protocol.schedule].path)
    run = Training(
        model=model,
        optimizer=optimizer,
        images=images,
        criterion=resolve(LOSSES[protocol.loss].path),
        rate=lambda epoch: protocol.lr * schedule(epoch, protocol),
        masks=lambda steps_done: masks,
        parts=parts,
        seed=spec["seed"],
        epochs=protocol.epochs,
        batch=protocol.batch,
        precision=protocol.precision,
    )
    return run, masks


def state_tensors(run: Training) -> dict[str, Tensor]:
    """Return everything that a checkpoint holds beside the position."""
    tensors = {f"model/{name}": value for name, value in run.model.state_dict().items()}
    return tensors | {f"optimizer/{name}": value for name, value in named_state(run.optimizer, run.model).items()}


def _resume(run: Training, position: Any, tensors: dict[str, Tensor]) -> None:
    run.position = position
    run.go_to(run.done)
    run.model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
    state = {n.removeprefix("optimizer/"): t for n, t in tensors.items() if n.startswith("optimizer/")}
    load_named_state(run.optimizer, run.model, state)


def _trained(order: Order, run: Training, masks: Masks) -> Outcome:
    """Check the mask contract and write the weights, plain keys, with the mask beside them."""
    weights = dict(run.model.named_parameters())
    for name, mask in masks.items():
        if bool((weights[name].detach().cpu()[~mask] != 0).any()):
            raise RuntimeError(f"pruned weights of {name} are not 0 at the end of training")
    tensors = {name: value.cpu().clone().contiguous() for name, value in run.model.state_dict().items()}
    tensors |= {f"mask/{name}": mask.to(torch.uint8) for name, mask in masks.items()}
    draft = Path(order.attempt) / "weights.safetensors"
    draft.write_bytes(save(tensors))  # not save_file, whose error for a full disk is no OSError
    rows = run.position.rows
    last = rows[-1]
    metrics: dict[str, Any] = {
        "test@last": last["test_accuracy"],
        "test_loss": last["test_loss"],
        "train_loss": last["train_loss"],
        "dev_accuracy": last.get("dev_accuracy"),
        "epochs": len(rows),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "kept": sum(int(mask.sum()) for mask in masks.values()) if masks else None,
        "prunable": sum(mask.numel() for mask in masks.values()) if masks else None,
    }
    bests = [row for row in rows if row["best"]]
    if bests:
        metrics |= {"test@best-dev": bests[-1]["test_accuracy"], "best_epoch": bests[-1]["epoch"]}
    return Outcome(draft, metrics)
