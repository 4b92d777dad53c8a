"""The stage kinds: from an order (a spec, the parents' files, a folder to write into) to an artifact and metrics."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save

from harness.catalog import DATASETS
from harness.errors import UserError
from harness.names import Choice
from harness.sources import confirm_content
from harness.train.decode import Decoded, stand_in
from harness.train.group import ALONE, Group
from harness.train.images import encode
from harness.train.loop import Watcher
from harness.train.network import load_method
from harness.train.order import Order, Outcome
from harness.train.rescaling import make_scales
from harness.train.scoring import make_mask
from harness.train.training import make_weights


def run_stage(order: Order, watch: Watcher, group: Group = ALONE) -> Outcome:
    """Run one stage to its end; only trainings and rescalings have steps to watch, only trainings several processes."""
    match order.kind:
        case "train":
            return make_weights(order, watch, group)
        case "rescale":
            return make_scales(order, watch)
        case "mask":
            return make_mask(order)
        case _:
            return _data(order)


def _data(order: Order) -> Outcome:
    spec = order.spec
    if "standin" in spec:
        return _encoded(order, stand_in(**spec["standin"]), 0, "stand-in")
    read = load_method(order, DATASETS, spec["dataset"])
    args = dict(spec["dataset"].get("args", {}))
    if "source" in spec["dataset"]:
        accepted = inspect.signature(read).parameters
        _confirm(order)  # before reading: a function of the user's may keep files of its own there
        decoded = _decoded(read(**({"folder": Path(order.place)} if "folder" in accepted else {}), **args))
    else:
        decoded = read(Path(order.place), spec.get("size", 0), **args)
        _confirm(order)  # after reading, so that what changed meanwhile is seen too
    return _encoded(order, decoded, spec.get("size", 0), spec["content"])


def _confirm(order: Order) -> None:
    """Raise UserError where a data set's files are not, or no longer, those whose hash its key holds."""
    if order.place:
        name = order.spec["dataset"].get("name", order.spec["dataset"].get("path", ""))
        choice, cache = Choice(name, (), order.place, order.place), Path(order.store) / "cache"
        confirm_content(choice, DATASETS.get(name), Path(order.place), cache, order.spec["content"])


def _encoded(order: Order, decoded: Decoded, size: int, content: str) -> Outcome:
    tensors, metadata = encode(decoded, size, content)
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
