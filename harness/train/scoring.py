"""The mask stage: from a network and some images to the weights that are kept."""

from __future__ import annotations

import inspect
from fractions import Fraction
from pathlib import Path

from safetensors.torch import load_file

from harness.errors import UserError
from harness.train.draws import stream
from harness.train.network import build, load_method, open_images
from harness.train.order import Order, Outcome
from tost.catalog import MASKS, PER_CLASS, settings
from tost.masks import MaskError, find_masks, imp_count, keep_count, prunable
from tost.masks.io import save_masks


def make_mask(order: Order) -> Outcome:
    """Run a mask stage: score the initial or trained weights and keep the exact number of the highest."""
    spec, images = order.spec, open_images(order)
    model = build(order, images)
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
    score = load_method(order, MASKS, spec["method"])
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
