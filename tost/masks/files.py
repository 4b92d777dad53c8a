"""Masks from anywhere: the forms in which the field's codes save them, recognised by content, fitted to a network."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tost.catalog import nearest
from tost.masks.apply import Masks, prunable
from tost.masks.checkpoints import in_the_way, items, levels, load_checkpoint, text
from tost.masks.io import save_masks, split_masks

NESTS = ("masks", "mask", "state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which checkpoints keep what we look for, the more telling first."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
DTYPES = (*FLOATS, torch.bool, torch.uint8, *INTEGERS)
"""Types of numbers that can be compared with 0 and 1."""

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a name that DataParallel, torch.compile, FSDP and activation checkpointing put into it."""

AUTO = "auto"
OURS, ZEROS = "our own", "zeros of the weights"


def read_masks(path: Path, ordered: bool = False, entry: str = AUTO) -> tuple[Masks, str]:
    """Read masks from a file and say which form it had.

    Known are our own safetensors (a mask, or trained weights with their mask), state dicts with `NAME_mask` or
    `LAYER.mask` entries (torch.nn.utils.prune, SynFlow, ToST), dicts and lists of integers that are 0 or 1 (open_lth),
    and plain checkpoints whose zeros are the mask. Only tensors are loaded, never code. `ordered`: the order of the
    entries will be relied on. `entry`: where in a checkpoint they are, such as `trainer.state_dict_ema`; `auto` is
    under one of the usual names, or in the only place that has any.
    Raises ValueError, naming file and tensor.
    """
    tensors, form, found = _place(path, load_checkpoint(path, ordered), entry)
    if not found:
        raise ValueError(f"{path}: holds neither masks nor weights; its entries are {_few(tensors)}")
    if form != ZEROS:
        return {name: _as_mask(path, name, tensor) for name, tensor in found.items()}, form
    if all(bool((tensor != 0).all()) for tensor in found.values()):
        raise ValueError(f"{path}: no weight in it is 0, so it tells no mask")
    return {name: tensor != 0 for name, tensor in found.items()}, form


def read_weights(path: Path, entry: str = AUTO) -> dict[str, Tensor]:
    """Read the tensors of a file that are no masks. Raises ValueError as read_masks does."""
    tensors, _, _ = _place(path, load_checkpoint(path), entry)
    return {name: t for name, t in split_masks(tensors)[0].items() if not name.endswith("_mask")}


def fit_masks(masks: Masks, model: nn.Module, which: str = "conv+linear", match: str = "name") -> Masks:
    """Return masks for exactly a network's prunable set, by name or, where the names differ, by `order`.

    Raises ValueError as `pair_masks` does.
    """
    mine = prunable(model, which)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters() if name in mine}
    pairs = pair_masks(masks, shapes, which, match)
    return {name: masks[pairs[name]] for name in mine}


def pair_masks(
    masks: Masks, shapes: Mapping[str, Sequence[int | None]], which: str = "conv+linear", match: str = "name"
) -> dict[str, str]:
    """Return for every prunable weight of a network, in the network's order, the name that its mask has in a file.

    `shapes`: of the weights, in the order in which the network registers them; None is any size. By name, what wrappers
    put into names is passed over, and so is one prefix that all have. By order, names that contradict it are refused.
    Raises ValueError, naming the tensor, for one that is missing, has another shape, or prunes what the set leaves out.
    """
    pairs = _by_order(masks, shapes) if match == "order" else _by_name(masks, shapes)
    for name, theirs in pairs.items():
        shape = list(masks[theirs].shape)
        if len(shape) != len(shapes[name]) or any(n not in (m, None) for n, m in zip(shapes[name], shape, strict=True)):
            said = f", paired by order: {_shown(pairs, name)}" if match == "order" else ""
            wanted = ", ".join("any" if n is None else str(n) for n in shapes[name])
            raise ValueError(f"the mask {theirs!r} of the file has shape {shape}; the weight has [{wanted}]{said}")
    used = set(pairs.values())
    if pruned := [name for name, mask in masks.items() if name not in used and not bool(mask.all())]:
        raise ValueError(
            f"the file prunes {_few(pruned)}, which is not in the prunable set {which} of this network: batch norm's "
            "weights and biases never are. Where that is to be dropped, write the other masks alone:\n"
            "    torch.save({name: mask for name, mask in masks.items() if mask.ndim > 1}, 'masks.pt')"
        )
    return pairs


def rename_masks(masks: Masks, like: Mapping[str, Any]) -> Masks:
    """Return masks under the names of others, where only wrappers or a prefix make them differ; else as they are."""
    try:
        pairs = _by_name(masks, like)
    except ValueError:
        return masks
    return {name: masks[theirs] for name, theirs in pairs.items()} if len(pairs) == len(masks) else masks


FORMS = ("safetensors", "weight_mask", "prune", "zeros")


def write_masks(
    masks: Masks, path: Path, form: str = "safetensors", weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write masks in one of the forms that read_masks knows, as a new file.

    `weight_mask`: a state dict of `NAME_mask` entries. `prune`: the weights as torch.nn.utils.prune keeps them,
    NAME_orig beside NAME_mask. `zeros`: the weights, pruned ones 0. The last two need `weights` and raise ValueError
    without.
    """
    plain = dict(weights or {})
    if form in ("prune", "zeros") and not all(n in plain and plain[n].is_floating_point() for n in masks):
        raise ValueError(f"the form {form} needs the weights along with the masks; name a training, not a mask alone")
    entries = {f"{name}_mask": mask.float() for name, mask in masks.items()}
    match form:
        case "safetensors":
            save_masks(masks, path)
        case "weight_mask":
            path.write_bytes(_saved(entries))
        case "prune":
            originals = {f"{n}_orig" if n in masks else n: w for n, w in plain.items()}
            path.write_bytes(_saved({**originals, **entries}))
        case "zeros":
            path.write_bytes(_saved({n: torch.where(masks[n], w, 0) if n in masks else w for n, w in plain.items()}))
        case _:
            raise ValueError(f"{form!r} is no form; choose from {', '.join(FORMS)}{nearest(form, FORMS)}")


def _saved(tensors: Mapping[str, Tensor]) -> bytes:
    """Return what torch.save writes; its own error for a full disk is no OSError."""
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    return buffer.getvalue()


def _by_name(masks: Masks, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Pair by names, without what wrappers put into them, and without one prefix that all of the file's have."""
    pairs, missing = _named(masks, shapes, "")
    if missing:
        first = _bare(next(iter(shapes)))
        prefixes = {bare.removesuffix(first) for bare in map(_bare, masks) if bare.endswith(f".{first}")}
        fits = [prefix for prefix in sorted(prefixes) if not _named(masks, shapes, prefix)[1]]
        if len(fits) > 1:
            raise ValueError(f"the file has masks for this network under {' and '.join(map(repr, fits))}; keep one")
        pairs, missing = _named(masks, shapes, fits[0]) if fits else (pairs, missing)
    if missing:
        raise ValueError(
            f"the file has no mask for {missing[0]!r}; its masks are named {_few(masks)}. Where it masks convolutions "
            "only, write prunable: conv; where only its names differ, write match: order"
        )
    twice = [theirs for theirs in pairs.values() if len(theirs) > 1]
    if twice:
        raise ValueError(
            f"the file has {' and '.join(map(repr, twice[0]))}, which are one name without "
            f"{', '.join(f'{w}.' for w in WRAPPERS)}; keep one of them"
        )
    return {name: theirs[0] for name, theirs in pairs.items()}


def _named(masks: Masks, shapes: Mapping[str, Any], prefix: str) -> tuple[dict[str, list[str]], list[str]]:
    """Return the masks of each weight's name after a prefix, and the weights that have none."""
    bare: dict[str, list[str]] = {}
    for theirs in masks:
        bare.setdefault(_bare(theirs), []).append(theirs)
    own = Counter(map(_bare, shapes))
    pairs = {n: bare.get(prefix + _bare(n), []) if own[_bare(n)] == 1 else [n] * (n in masks) for n in shapes}
    return pairs, [name for name, theirs in pairs.items() if not theirs]


def _bare(name: str) -> str:
    """Return a name without the parts that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _by_order(masks: Masks, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Pair by place: the file's order against the order in which the network holds its layers.

    Raises ValueError where the names say that the order is not the network's: a list of tensors has none to contradict.
    """
    given = [name for name, mask in masks.items() if mask.ndim >= 2]
    if len(given) != len(shapes):
        raise ValueError(f"match: order: the file has {len(given)} masks, the network {len(shapes)} prunable weights")
    pairs = dict(zip(shapes, given, strict=True))
    if said := _sorted_as_text(given):
        said = f"its names are sorted as text ({said}), where numbers give another order"
    elif said := _crossing(pairs):
        said = f"the names of both say otherwise ({said})"
    if said:
        raise ValueError(
            f"match: order would pair {_shown(pairs)}; but {said}. Write match: name, or the masks in the network's "
            "order, as a list where their names are to be passed over: torch.save(list(masks.values()), 'ordered.pt')"
        )
    return pairs


def _sorted_as_text(names: Iterable[str]) -> str:
    """Return two names that stand as texts are sorted, 10 before 2, where all numbers at their place stand so."""
    numbers: dict[str, dict[str, str]] = {}
    for name in names:
        for number in re.finditer(r"\d+", name):
            numbers.setdefault(name[: number.start()], {}).setdefault(number.group(), name)
    for first in numbers.values():
        places = list(first)
        if places == sorted(places) != sorted(places, key=int):
            late, early = next((a, b) for a, b in pairwise(places) if int(a) > int(b))
            return f"{first[late]!r} before {first[early]!r}"
    return ""


def _crossing(pairs: Mapping[str, str]) -> str:
    """Return a pair that contradicts the names, where the network and the file have some in common.

    Names that both have must stand in one order; where the layers' own names, such as conv1 and conv2, are the same
    ones equally often, each must be paired with its like.
    """
    mine, theirs = [_bare(name) for name in pairs], [_bare(name) for name in pairs.values()]
    common = [[n for n in dict.fromkeys(names) if n in mine and n in theirs] for names in (mine, theirs)]
    for name, other in zip(*common, strict=True):
        if name != other:
            return f"{name!r} is {_nth(mine.index(name))} of the network, {_nth(theirs.index(name))} of the file"
    leaves = [[(name.split(".")[-2:-1] or [""])[0] for name in names] for names in (mine, theirs)]
    if Counter(leaves[0]) == Counter(leaves[1]):
        for name, other, *leaf in zip(mine, theirs, *leaves, strict=True):
            if leaf[0] != leaf[1] and not all(part.isdigit() for part in leaf):
                return f"{other!r} would mask {name!r}"
    return ""


def _nth(place: int) -> str:
    return f"number {place + 1}"


def _shown(pairs: Mapping[str, str], name: str = "") -> str:
    """Return some pairs, those up to a name; of none, the first."""
    shown = [f"{mine!r} <- {theirs!r}" for mine, theirs in pairs.items()]
    end = list(pairs).index(name) + 1 if name else 3
    more = len(shown) - len(shown[max(0, end - 3) : end])
    return ", ".join(shown[max(0, end - 3) : end]) + (f" and {more} more" if more else "")


def _place(path: Path, root: Any, entry: str) -> tuple[dict[str, Tensor], str, dict[str, Tensor]]:
    """Return the tensors of the dict or list in a checkpoint that tells masks, in which form, and which of them do."""
    level = root if entry == AUTO else _entry(path, root, entry)
    for _ in NESTS if entry == AUTO else ():  # no deeper: a dict can hold itself
        nested = [k for k in NESTS if isinstance(level, Mapping) and isinstance(dict(items(level)).get(k), Mapping)]
        level = level[nested[0]] if nested else level
    if entry == AUTO and not _told(level)[1]:
        telling = {name: other for name, other in levels(root) if _tells(path, other)}
        if len(telling) > 1:
            raise ValueError(
                f"{path}: has masks or weights under {_few(telling)}; write which, such as entry: {next(iter(telling))}"
            )
        level = next(iter(telling.values()), level)
    tensors = _tensors(level)
    if not tensors:
        raise ValueError(f"{path}: holds no state dict; {in_the_way(path, root)}")
    for name, tensor in tensors.items():
        _plain(path, name, tensor)
    return tensors, *_told(level)


def _entry(path: Path, root: Any, entry: str) -> Any:
    """Return what a checkpoint holds under a name. Raises ValueError, with the names that there are, for another."""
    found = next(filter(_tensors, _within(root, entry)), None)
    if found is None:
        holding = [name for name, level in levels(root) if name and _tensors(level)]
        there = f"tensors are under {_few(holding)}" if holding else "no entry of it holds tensors"
        raise ValueError(f"{path}: holds no tensors under the entry {entry!r}{nearest(entry, holding)}; {there}")
    return found


def _within(level: Any, entry: str) -> Iterator[Any]:
    """Yield what stands at a path of keys joined by dots: more than one thing where the keys themselves have dots."""
    for key, value in items(level):
        name = text(key)
        if name == entry:
            yield value
        elif entry.startswith(f"{name}."):
            yield from _within(value, entry.removeprefix(f"{name}."))


def _tells(path: Path, level: Any) -> bool:
    """Tell whether a dict or list that nobody named holds masks or weights; numbers other than 0 and 1 are no masks."""
    form, found = _told(level)
    try:
        for name, tensor in found.items():
            _plain(path, name, tensor)
    except ValueError:
        return True  # it is refused by its name, should it be the only place
    return bool(found) and (form == ZEROS or all(bool(((t == 0) | (t == 1)).all()) for t in found.values()))


def _tensors(level: Any) -> dict[str, Tensor]:
    """Return the tensors that a dict or a list of a checkpoint itself holds."""
    plain = {text(name): value for name, value in items(level) if isinstance(value, Tensor)}
    if not isinstance(level, Mapping):
        return plain
    while wrapped := [w for w in WRAPPERS if plain and all(name.startswith(f"{w}.") for name in plain)]:
        plain = {name.removeprefix(f"{wrapped[0]}."): tensor for name, tensor in plain.items()}
    return plain


def _told(level: Any) -> tuple[str, dict[str, Tensor]]:
    """Return the form in which a dict or list tells masks, and the tensors that do; those without a size tell none."""
    tensors, listed = _tensors(level), not isinstance(level, Mapping)
    arrays = {n: t for n, t in tensors.items() if t.ndim}
    small = {n: t for n, t in arrays.items() if t.dtype in (torch.uint8, torch.bool)}
    whole = {n: t for n, t in arrays.items() if t.dtype in INTEGERS}
    weights = {n: t for n, t in arrays.items() if n.endswith("weight") and t.ndim >= 2 and t.dtype in FLOATS}
    for form, found, least in (
        (OURS, split_masks(tensors)[1], 0),
        ("mask entries", _entries(tensors), 0),
        ("a list", arrays if listed and all(t.dtype in DTYPES for t in arrays.values()) else {}, 2),
        (OURS, small, 2),
        (ZEROS, {n: t for n, t in weights.items() if t.numel()}, 2),
        ("integers", whole, 2),
    ):
        if any(t.ndim >= least for t in found.values()):
            return form, found
    return "", {}


def _plain(path: Path, name: str, tensor: Tensor) -> None:
    """Raise ValueError for a tensor that is no plain array, or larger than the numbers that the file has for it."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        raise ValueError(f"{path}: {name!r} is no plain tensor; write dense ones, such as mask.to_dense().cpu()")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{path}: {name!r} has shape {list(tensor.shape)}, stretched over fewer numbers; "
            "write mask.clone(memory_format=torch.contiguous_format)"
        )
    if (size := tensor.untyped_storage().nbytes()) > path.stat().st_size:
        raise ValueError(f"{path}: {name!r} is of {size:,} bytes, which the file does not hold")


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `LAYER.weight_mask`, `LAYER_mask` and `LAYER.mask` entries under the weight's name."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("_mask"):
            found[name.removesuffix("_mask")] = tensor
        elif parametrised := re.fullmatch(r"(.*)parametrizations\.(\w+)\.\d+\.mask", name):  # torch.ao.pruning
            found["".join(parametrised.groups())] = tensor
        elif name == "mask" or name.endswith(".mask"):
            found[name.removesuffix("mask") + "weight"] = tensor
    return found


def _as_mask(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.ndim or not tensor.numel() or tensor.dtype not in DTYPES:
        raise ValueError(f"{path}: {name!r} is no mask; it is {tensor.dtype} of shape {list(tensor.shape)}")
    if bool((other := (tensor != 0) & (tensor != 1)).any()):
        seen = tensor[other][:3].tolist()
        raise ValueError(
            f"{path}: {name!r} is no mask; it must hold 0 and 1 only, and is {tensor.dtype} with "
            f"{', '.join(map(str, seen))}"
        )
    return tensor.bool()


def _few(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(map(repr, every[:3])) + (f" and {len(every) - 3} more" if len(every) > 3 else "")
