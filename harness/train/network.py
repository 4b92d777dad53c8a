"""The network of a stage and the images it sees: built from its seed, checked before anything is paid for."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.errors import UserError
from harness.plugins import load_frozen
from harness.train.draws import global_draws
from harness.train.images import Images
from harness.train.layout import Convolutions
from harness.train.order import Order
from harness.train.remembered import remembered
from tost.accounting import layers
from tost.catalog import LIBRARIES, MODELS, resolve
from tost.masks import MaskError, imp_count, keep_count, prunable
from tost.masks.apply import EVERY
from tost.masks.io import split_masks
from tost.models.slim import slim_width

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


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a training's weights and the masks it was trained with."""
    weights, masks = split_masks(load_file(path))
    return weights, {name: mask.bool() for name, mask in masks.items()}


def build(order: Order, images: Images, least: int = 2) -> nn.Module:
    """Build the network with the weights that training starts from: the ticket seed's, or those rewound to.

    `least`: images in the smallest batch that it will be trained with.
    """
    spec = order.spec
    make = partial(network_maker(order), images.classes, images.shape[0], **spec["arch"].get("args", {}))
    try:
        if "small" in spec:
            widest = float(spec["arch"].get("args", {}).get("width", 1.0))
            make = partial(make, width=slim_width(lambda width: make(width=width), wanted_size(order), widest))
        with global_draws(spec["ticket_seed"], "fresh init" if spec.get("init") == "fresh" else "init"):
            model = make()
    except ValueError as error:
        raise UserError(f"the architecture cannot be built: {error}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"the architecture returned {type(model).__name__}; it must return a torch.nn.Module")
    model.to(memory_format=torch.contiguous_format)  # how its tensors lie is chosen for each stage (layout.py)
    made_of = [spec["arch"], spec.get("small"), images.shape, images.classes, least]
    try:
        prunable(model, EVERY)
        remembered("outputs", made_of, partial(_check_outputs, model, images, least))
    except MaskError as error:
        raise UserError(str(error)) from error
    if "start" in order.parents:
        model.load_state_dict(load_weights(order.parent("start"))[0])
    return model.to(images.device)


def weights_hash(model: nn.Module) -> str:
    """Return 32 hex digits of the SHA-256 of all parameters and buffers, by name."""
    total = hashlib.sha256()
    for name, value in model.state_dict().items():
        total.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:32]


def kept_weights(model: nn.Module, spec: Mapping[str, Any]) -> int:
    """Return how many weights a spec's sparsity keeps of its prunable set."""
    total = sum(weight.numel() for weight in prunable(model, spec["prunable"]).values())
    if not total:
        raise UserError(
            f"the network has no weight to prune: no Conv2d or Linear layer that training changes in the set "
            f"{spec['prunable']}; write mask: dense"
        )
    return kept_of(total, spec["sparsity"])


def kept_of(total: int, sparsity: Mapping[str, Any]) -> int:
    """Return how many of a number of weights a spec's sparsity keeps."""
    level = sparsity.get("imp")
    return imp_count(total, level) if level else keep_count(total, Fraction(sparsity["density"]))


def network_maker(order: Order) -> Callable[..., Any]:
    """Return what builds an order's architecture from classes, channels and its settings."""
    spec = order.spec["arch"]
    library, colon, name = spec.get("name", "").partition(":")
    if colon:
        return partial(resolve(LIBRARIES[library].path), name=name)
    made: Callable[..., Any] = load_method(order, MODELS, spec)
    return made


def wanted_size(order: Order) -> int:
    """Return how many parameters the sparse network has left whose size a small dense one is given."""
    spec, images = order.spec["small"], open_images(order)
    with torch.device("meta"):
        whole = network_maker(order)(images.classes, images.shape[0], **order.spec["arch"].get("args", {}))
    pruned = sum(weight.numel() for weight in prunable(whole, spec["prunable"]).values()) - kept_weights(whole, spec)
    return int(sum(p.numel() for p in whole.parameters()) - pruned)


def _check_outputs(model: nn.Module, images: Images, least: int) -> None:
    """Raise UserError where a network does not map images to logits: torch would say so late, or not at all.

    Raises MaskError where a weight is not multiplied as it is: pruned, it would be dense all the same.
    """
    shape = list(images.shape)
    for training, count in ((False, 2), (True, least)):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), Convolutions() as seen:
                logits = copy.deepcopy(model).cpu().train(training)(torch.zeros(count, *shape))
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            alone = "a batch of 1 image" if count == 1 else "images"
            advice = "; choose a batch size that leaves no single image in an epoch's last batch" if count == 1 else ""
            raise UserError(
                f"the network cannot take {alone} of shape {shape} [channels, height, width]: {error}{advice}"
            ) from error
        if images.device.type == "cpu":
            try:
                seen.refuse()
            except ValueError as error:
                raise UserError(f"the network cannot be trained on a CPU: {error}") from error
        if not isinstance(logits, Tensor) or list(logits.shape) != [count, images.classes]:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"the network returns {got} for {count} images; it must return logits [{count}, {images.classes}]"
            )
    try:
        layers(model, shape)
    except (RuntimeError, TypeError, IndexError, AssertionError) as error:
        raise UserError(f"the network cannot take a single image of shape {shape}: {error}") from error
