"""The mask stage: from a network and some images to the weights that are kept, from a file, or from another mask."""

from __future__ import annotations

import inspect
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import nn

from harness.errors import UserError
from harness.store import file_sha256
from harness.train.draws import global_draws, stream
from harness.train.images import Images
from harness.train.imported import check_count, read_file
from harness.train.network import build, kept_weights, load_method, load_weights, open_images
from harness.train.order import Order, Outcome
from tost.catalog import MASKS, PER_CLASS, settings
from tost.masks import MaskError, Masks, find_masks
from tost.masks.apply import check_contract, dead_filters, empty_layers
from tost.masks.controls import shuffled
from tost.masks.files import fit_masks
from tost.masks.io import load_masks, save_masks


def make_mask(order: Order) -> Outcome:
    """Run a mask stage."""
    if order.spec.get("control") == "shuffled":
        masks = shuffled(load_masks(order.parent("mask")), stream(order.spec["ticket_seed"], "shuffle"))
        return _outcome(order, masks, {})
    images = open_images(order)
    model, within = build(order, images), None
    if "trained" in order.parents:
        weights, worn = load_weights(order.parent("trained"))
        model.load_state_dict(weights)
        within = worn or None
    try:
        if "sha256" in order.spec["method"]:
            masks, about = _imported(order, model)
        else:
            masks, about = _found(order, model, images, within), {}
            check_contract(masks, kept_weights(model, order.spec), within)
    except MaskError as error:
        raise UserError(str(error)) from error
    if (empty := empty_layers(masks)) and order.spec.get("on_collapse", "allow") != "allow":
        way = "" if "sha256" in order.spec["method"] else "on_collapse: keep_one or "
        raise UserError(
            f"a layer collapse: nothing is kept of {', '.join(empty)}; "
            f"lower the sparsity, or write {way}on_collapse: allow"
        )
    return _outcome(order, masks, {**about, "prunable_set": order.spec["prunable"]})


def _found(order: Order, model: nn.Module, images: Images, within: Masks | None) -> Masks:
    """Score the initial or trained weights and keep the exact number of the highest."""
    spec = order.spec
    method, given = spec["method"], spec["method"].get("args", {})
    score = load_method(order, MASKS, method)
    accepted = inspect.signature(score).parameters
    knobs = dict(given) if "source" in method else settings(MASKS[method["name"]], given)
    composed: dict[str, Any] = {n: knobs[n] for n in ("steps", "scope") if n in knobs and n not in accepted}
    offered = {**knobs, "shape": images.shape, "generator": stream(spec["ticket_seed"], "mask")}
    if "batches" in accepted:
        own = accepted["per_class"].default if "per_class" in accepted else PER_CLASS.default
        offered["batches"] = images.per_class(spec["ticket_seed"], int(knobs.get("per_class", own)))
    density = spec["sparsity"].get("density")
    with global_draws(spec["ticket_seed"], "mask"):
        return find_masks(
            score,
            model,
            kept_weights(model, spec),
            which=spec["prunable"],
            within=within,
            density=Fraction(density) if density else None,
            at_least=int(spec.get("on_collapse") == "keep_one"),
            offered=offered,
            **composed,
        )


def _imported(order: Order, model: nn.Module) -> tuple[Masks, dict[str, Any]]:
    """Read a mask from the store's copy of a user's file, and hold it against the cell's sparsity."""
    spec = order.spec
    try:
        match = spec["method"].get("args", {}).get("match", "name")
        file = Path(order.store) / "imports" / spec["method"]["sha256"]
        if not file.is_file() or file_sha256(file) != file.name:
            raise UserError(f"{file}: the store's copy of a mask is damaged; run the sweep command again to restore it")
        found, form = read_file(file, spec["method"])
        masks = fit_masks(found, model, spec["prunable"], match)
    except ValueError as error:
        raise UserError(str(error)) from error
    check_count(masks, spec["sparsity"])
    return masks, {"form": form}


def _outcome(order: Order, masks: Masks, about: dict[str, Any]) -> Outcome:
    draft = Path(order.attempt) / "mask.safetensors"
    save_masks(masks, draft)
    layers = {name: [mask.numel(), int(mask.sum()), dead_filters(mask)] for name, mask in masks.items()}
    metrics = {
        "kept": sum(kept for _, kept, _ in layers.values()),
        "total": sum(size for size, _, _ in layers.values()),
        "layers": layers,
        "empty_layers": empty_layers(masks),
    }
    return Outcome(draft, {**metrics, **about})
