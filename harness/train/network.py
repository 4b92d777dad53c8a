"""The network of a stage and the images it sees: built from its seed, checked before anything is paid for."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.plugins import load_frozen
from harness.train.draws import global_draws
from harness.train.images import Images
from harness.train.order import Order
from tost.catalog import MODELS, resolve

_images: dict[tuple[Any, ...], Images] = {}


def load_method(order: Order, table: Mapping[str, Any], spec: Mapping[str, Any]) -> Any:
    """Import a method: a catalog's by name, a user's own from its frozen copy."""
    if "source" in spec:
        return load_frozen(Path(order.store), spec["source"], spec["path"])
    return resolve(table[spec["name"]].path)


def open_images(order: Order) -> Images:
    """Return the data set on the device; the last one is kept, since a worker's next stage mostly uses it again."""
    path = order.parent("data")
    view = {name: order.spec.get(name) for name in ("dev", "normalize", "augment")}
    key = (str(path), json.dumps(view), order.device)
    if key not in _images:
        _images.clear()
        _images[key] = Images(path, view, torch.device(order.device))
    return _images[key]


def build(order: Order, images: Images) -> nn.Module:
    """Build the network with the initial weights of the ticket seed."""
    spec = order.spec["arch"]
    make = load_method(order, MODELS, spec)
    with global_draws(order.spec["ticket_seed"], "init"):
        model = make(images.classes, images.shape[0], **spec.get("args", {}))
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
