"""The stage kinds: from an order (a spec, the parents' files, a folder to write into) to an artifact and metrics."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from harness.catalog import DATASETS, LOSSES, OPTIMIZERS, SCHEDULES
from harness.errors import UserError
from harness.protocol import Protocol
from harness.train.checkpoint import Position, load_checkpoint
from harness.train.decode import Decoded
from harness.train.images import encode
from harness.train.loop import Training, Watcher, train
from harness.train.network import build, load_method, open_images
from harness.train.optimizers import load_named_state, named_state
from harness.train.order import Order, Outcome
from harness.train.scoring import make_mask
from tost.catalog import PARTS, resolve
from tost.masks import Masks
from tost.masks.apply import apply_masks, check_masks
from tost.masks.io import load_masks
from tost.recipe import Part


def run_stage(order: Order, watch: Watcher) -> Outcome:
    """Run one stage to its end; only a training has steps to watch."""
    if order.kind == "train":
        return _train(order, watch)
    return _data(order) if order.kind == "data" else make_mask(order)


def _data(order: Order) -> Outcome:
    spec = order.spec
    read = load_method(order, DATASETS, spec["dataset"])
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


def _train(order: Order, watch: Watcher) -> Outcome:
    run, masks = prepare(order)
    resumed = load_checkpoint([Path(order.attempt), *map(Path, order.earlier)], order.read)
    if resumed is not None:
        resume(run, *resumed)
    train(run, watch)
    for part in run.parts:
        part.detach()
    return _trained(order, run, masks)


def prepare(order: Order) -> tuple[Training, Masks]:
    """Put a training together: network, masks, recipe, optimizer, all as they are before the first step."""
    spec, images = order.spec, open_images(order)
    protocol = Protocol(**{k: v for k, v in spec["protocol"].items() if k != "versions"})
    model = build(order, images)
    masks = load_masks(order.parent("mask")) if "mask" in order.parents else {}
    check_masks(model, masks)
    apply_masks(model, masks)
    parts: list[Part] = []
    for part in spec["recipe"]:
        parts.append(load_method(order, PARTS, part)(**part.get("args", {})))
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


def resume(run: Training, position: Position, tensors: dict[str, Tensor]) -> None:
    """Put a prepared training where a checkpoint stood."""
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
