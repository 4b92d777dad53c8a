"""The train stage: a training put together from a spec, resumed where it stood, checked and measured at its end."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness.catalog import LOSSES, OPTIMIZERS, SCHEDULES
from harness.errors import UserError
from harness.protocol import Protocol
from harness.train.checkpoint import Position, load_checkpoint
from harness.train.cost import ghost_operations, matched
from harness.train.execution import set_execution
from harness.train.group import ALONE, Group
from harness.train.images import Images
from harness.train.layout import fitting, usual
from harness.train.loop import Watcher, train
from harness.train.measures import account, accuracies, activations, sparse_flops
from harness.train.network import build, kept_weights, load_method, open_images, wanted_size, weights_hash
from harness.train.optimizers import load_named_state, named_state
from harness.train.order import Order, Outcome
from harness.train.remembered import remembered
from harness.train.rescaling import load_scales
from harness.train.run import Training
from tost.accounting import layers
from tost.catalog import MASKS, PARTS, asked_for, resolve, settings
from tost.masks import MaskError, Masks
from tost.masks.apply import apply_masks, check_contract, check_masks
from tost.masks.io import MARK, load_masks
from tost.masks.schedule import GradualPruning
from tost.recipe import Criterion, Part
from tost.recipe.part import Reach


def make_weights(order: Order, watch: Watcher, group: Group = ALONE) -> Outcome:
    """Run a train stage, from where the furthest checkpoint stands; of several processes, the first has the outcome."""
    run = prepare(order)
    run.group = group
    group.prepare(run.model, run.batch_norm)
    if (resumed := group.same(find_checkpoint(order, run) if group.rank == 0 else None)) is not None:
        resume(run, *resumed)
        group.check(run.model)
    set_execution(order, run)
    run.position.worlds = sorted({*run.position.worlds, group.world})
    try:
        train(run, watch)
    except MaskError as error:
        raise UserError(str(error)) from error
    for part in run.parts:
        if not part.stays:
            part.detach()
    group.gather()
    return _trained(order, run) if group.rank == 0 else Outcome(Path(), {})


def find_checkpoint(order: Order, run: Training, most: int | None = None) -> tuple[Position, dict[str, Tensor]] | None:
    """Return the furthest checkpoint of an order's attempts; `most`: steps done, beyond which none counts."""
    folders = [Path(order.attempt), *map(Path, order.earlier), *([Path(order.scratch)] if order.scratch else [])]
    return load_checkpoint(folders, {**order.read, "epochs": str(run.epochs)}, most=most)


def prepare(order: Order) -> Training:
    """Put a training together: network, masks, recipe, optimizer, all as they are before the first step."""
    spec, images = order.spec, open_images(order)
    protocol = Protocol(**{k: v for k, v in spec["protocol"].items() if k != "versions"})
    model = build(order, images, least=min(2, len(images.train) % protocol.batch or protocol.batch))
    theta0 = weights_hash(model)
    criterion = resolve(LOSSES[protocol.loss].path)
    if "match_cost" in spec:
        protocol = _lengthened(order, protocol, model, criterion, images)
    masks, pruning = _masks(order, model, images.steps(protocol.batch) * protocol.epochs)
    first, until = spec.get("rewind", 0), spec.get("until", protocol.epochs)
    scales, spent = load_scales(order.parent("rescale")) if "rescale" in order.parents else ({}, 0)
    recipe_parts, overhead, layout = _with_recipe(order, protocol, model, criterion, images, scales)
    model.to(memory_format=layout)
    schedule = resolve(SCHEDULES[protocol.schedule].path)
    return Training(
        model=model,
        optimizer=resolve(OPTIMIZERS[protocol.optimizer].path)(_trained_parameters(model), protocol),
        images=images,
        criterion=criterion,
        rate=lambda epoch: protocol.lr * schedule(epoch, protocol),
        masks=pruning or (lambda steps_done: masks),
        parts=recipe_parts,
        seed=spec["seed"],
        epochs=protocol.epochs,
        batch=protocol.batch,
        precision=protocol.precision,
        batch_norm=protocol.batch_norm,
        layout=layout,
        until=until,
        blind=spec.get("blind", False),
        settled=pruning.last if pruning else 0,
        flops=(lambda worn: sparse_flops(layers(model, images.shape, worn))) if pruning else None,
        extra={"ghost_operations": len(images.train) * sum(overhead[first:until]), "rescale_operations": spent},
        theta0=theta0,
        position=Position(epoch=first),
    )


def _trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return all but the frozen parameters, which no optimizer moves."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError("every parameter of the network is frozen (requires_grad is False): there is nothing to train")
    return trained


def _lengthened(order: Order, protocol: Protocol, model: nn.Module, criterion: Criterion, images: Images) -> Protocol:
    """Return the protocol with as many epochs more as another recipe costs."""
    recipe = order.spec["match_cost"]["recipe"]
    parts = partial(load_parts, order, recipe, images, dict.fromkeys(dict(model.named_parameters()), 1.0))
    try:
        return matched(model, protocol, recipe, parts, criterion, images.shape, len(images.train))
    except ValueError as error:
        raise UserError(f"match_cost: the recipe does not fit this network: {error}") from error


def _with_recipe(
    order: Order,
    protocol: Protocol,
    model: nn.Module,
    criterion: Criterion,
    images: Images,
    scales: Mapping[str, float],
) -> tuple[list[Part], Sequence[int], torch.memory_format]:
    """Attach a recipe's parts to a network.

    Return them, by epoch the operations that they add for one image, and the layout that the network is trained in.
    Both are found out on copies, with parts of their own.
    """
    made_of = [order.spec["arch"], order.spec.get("small"), order.spec["recipe"], images.shape, images.classes]
    own = partial(load_parts, order, order.spec["recipe"], images, scales)
    parts = own()
    try:
        overhead = remembered(
            "operations",
            [*made_of, protocol.loss, protocol.epochs],
            lambda: ghost_operations(model, own(), criterion, images.shape, protocol.epochs),
        )
        layout = remembered(
            "layout",
            [*made_of, order.device, protocol.precision],
            lambda: fitting(_dressed(model, own()), usual(images.device, protocol.precision), images.shape),
        )
        for part in parts:
            part.attach(model)
    except ValueError as error:
        raise UserError(f"the recipe does not fit this network: {error}") from error
    return parts, overhead, layout


def _dressed(model: nn.Module, parts: Sequence[Part]) -> nn.Module:
    """Return a copy of a network with parts attached."""
    tried = copy.deepcopy(model)
    for part in parts:
        part.attach(tried)
        part.step(0.0)
    return tried


def _masks(order: Order, model: nn.Module, steps: int) -> tuple[Masks, GradualPruning | None]:
    """Return the masks of a training, applied to the model, and what changes them where something does."""
    if "prune" in order.spec:
        spec = order.spec["prune"]
        knobs: dict[str, Any] = settings(MASKS[spec["method"]["name"]], spec["method"].get("args", {}))
        answer = spec.get("on_collapse", "allow")
        try:
            pruning = GradualPruning(
                model,
                kept_weights(model, spec),
                steps,
                which=spec["prunable"],
                at_least=int(answer == "keep_one"),
                refuse_empty=answer == "error",
                after=True,
                **knobs,
            )
        except MaskError as error:
            raise UserError(str(error)) from error
        return pruning.masks, pruning
    masks = load_masks(order.parent("mask")) if "mask" in order.parents else {}
    check_masks(model, masks)
    apply_masks(model, masks)
    return masks, None


def load_parts(
    order: Order, recipe: Sequence[Mapping[str, Any]], images: Images, scales: Mapping[str, float]
) -> list[Part]:
    """Build a recipe's parts, each given what it asks for by parameter name."""
    offered: dict[str, Any] = {"shape": images.shape, "scales": scales}
    parts: list[Part] = []
    for spec in recipe:
        make = load_method(order, PARTS, spec)
        knobs = {} if "name" in spec and PARTS[spec["name"]].stage else spec.get("args", {})
        if "name" in spec:
            own = asked_for(make, {**offered, "image": images.shape}, PARTS[spec["name"]].knobs)
        else:
            own = asked_for(make, offered)
        parts.append(make(**knobs, **own))
    return parts


def state_tensors(run: Training) -> dict[str, Tensor]:
    """Return everything that a checkpoint holds beside the position."""
    tensors = {f"model/{name}": value for name, value in run.model.state_dict().items()}
    if isinstance(run.masks, GradualPruning):
        tensors |= {f"masks/{name}": mask.to(torch.uint8) for name, mask in run.masks.masks.items()}
    if run.statistics is not None:  # those in the model are the first process's own
        tensors["statistics"] = run.statistics
    return tensors | {f"optimizer/{name}": value for name, value in named_state(run.optimizer, run.model).items()}


def resume(run: Training, position: Position, tensors: dict[str, Tensor]) -> None:
    """Put a prepared training where a checkpoint stood."""
    run.position = position
    position.resumed += 1
    run.step_parts(run.done)
    run.model.load_state_dict(_under("model/", tensors))
    if "statistics" in tensors:
        run.group.restore(run.model, tensors["statistics"])
    load_named_state(run.optimizer, run.model, _under("optimizer/", tensors))
    if isinstance(run.masks, GradualPruning):
        run.masks.masks = {name: mask.bool() for name, mask in _under("masks/", tensors).items()}
        run.wear(run.masks.masks)


def _reached_in_part(order: Order, run: Training) -> dict[str, str]:
    """Return of the recipe's parts that reach only some of what they are for how much they do, as `1 of 3 ReLUs`."""
    names = [spec.get("name", spec.get("path")) for spec in order.spec["recipe"]]
    reaches = {name: part.reach for name, part in zip(names, run.parts, strict=True)}
    return {name: str(reach) for name, reach in reaches.items() if isinstance(reach, Reach) and reach.partial}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _trained(order: Order, run: Training) -> Outcome:
    """Check the mask contract and write the weights, plain keys, with the mask beside them."""
    weights, masks = dict(run.model.named_parameters()), run.masks(run.done)
    for name, mask in masks.items():
        if bool((weights[name].detach().cpu()[~mask] != 0).any()):
            raise RuntimeError(f"pruned weights of {name} are not 0 at the end of training")
    if isinstance(run.masks, GradualPruning):
        check_contract(masks, run.masks.keep)
    tensors = {name: value.cpu().clone().contiguous() for name, value in run.model.state_dict().items()}
    tensors |= {f"{MARK}{name}": mask.to(torch.uint8) for name, mask in masks.items()}
    draft = Path(order.attempt) / "weights.safetensors"
    draft.write_bytes(save(tensors))  # not save_file, whose error for a full disk is no OSError
    metrics = accuracies(run.position.rows) | account(run, masks) | activations(run)
    metrics |= {**run.extra, "ghosts_stay": any(part.stays for part in run.parts)}
    if reached := _reached_in_part(order, run):
        metrics["reached"] = reached
    if "small" in order.spec:
        metrics["size_wanted"] = wanted_size(order)
    return Outcome(draft, metrics)
