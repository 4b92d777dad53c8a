"""Masks from anywhere: the forms in which the field's codes save them, recognised by content, fitted to a network."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tost.catalog import nearest
from tost.masks.apply import Masks, prunable
from tost.masks.io import save_masks, split_masks

NESTS = ("masks", "mask", "state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which checkpoints keep what we look for, the more telling first."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types of numbers that can be compared with 0 and 1."""

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def read_masks(path: Path, ordered: bool = False) -> tuple[Masks, str]:
    """Read masks from a file and say which form it had.

    Known are our own safetensors (a mask, or trained weights with their mask), state dicts with `NAME_mask` or
    `LAYER.mask` entries (torch.nn.utils.prune, SynFlow, ToST), and plain checkpoints whose zeros are the mask. Only
    tensors are loaded, never code. `ordered`: the order of the entries will be relied on.
    Raises ValueError, naming file and tensor.
    """
    tensors = _plain_names(_tensors(path, ordered))
    for form, found in (
        ("our own", split_masks(tensors)[1]),
        ("mask entries", _entries(tensors)),
        ("our own", {n: t for n, t in tensors.items() if t.dtype in (torch.uint8, torch.bool)}),
    ):
        if found:
            return {name: _as_mask(path, name, tensor) for name, tensor in found.items()}, form
    weights = {n: t for n, t in tensors.items() if n.endswith("weight") and t.ndim >= 2 and t.dtype in FLOATS}
    weights = {n: t for n, t in weights.items() if t.numel()}
    if not weights:
        raise ValueError(f"{path}: holds neither masks nor weights; its entries are {_few(tensors)}")
    if all(bool((tensor != 0).all()) for tensor in weights.values()):
        raise ValueError(f"{path}: no weight in it is 0, so it tells no mask")
    return {name: tensor != 0 for name, tensor in weights.items()}, "zeros of the weights"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file that are no masks. Raises ValueError as read_masks does."""
    tensors = _plain_names(_tensors(path, ordered=False))
    return {name: t for name, t in split_masks(tensors)[0].items() if not name.endswith("_mask")}


def fit_masks(masks: Masks, model: nn.Module, which: str = "conv+linear", match: str = "name") -> Masks:
    """Return masks for exactly a network's prunable set, by name or, where the names differ, by `order`.

    Raises ValueError, naming the tensor, for one that is missing, has another shape, or prunes what the set leaves out.
    """
    wanted = prunable(model, which)
    if match == "order":
        masks = _by_order(masks, model, which)
    for name, weight in wanted.items():
        if name not in masks:
            raise ValueError(
                f"the file has no mask for {name!r}; its masks are named {_few(masks)}. Where it masks convolutions "
                "only, write prunable: conv; where only its names differ, write match: order"
            )
        if masks[name].shape != weight.shape:
            raise ValueError(
                f"the mask {name!r} of the file has shape {list(masks[name].shape)}; "
                f"the weight has {list(weight.shape)}"
            )
    for name, mask in masks.items():
        if name not in wanted and not bool(mask.all()):
            raise ValueError(f"the file prunes {name!r}, which is not in the prunable set {which} of this network")
    return {name: masks[name] for name in wanted}


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
            torch.save(entries, path)
        case "prune":
            originals = {f"{n}_orig" if n in masks else n: w for n, w in plain.items()}
            torch.save({**originals, **entries}, path)
        case "zeros":
            torch.save({n: torch.where(masks[n], w, 0) if n in masks else w for n, w in plain.items()}, path)
        case _:
            raise ValueError(f"{form!r} is no form; choose from {', '.join(FORMS)}{nearest(form, FORMS)}")


def _by_order(masks: Masks, model: nn.Module, which: str) -> Masks:
    """Rename masks by their place: the file's order against the order in which the network holds its layers."""
    mine = prunable(model, which)
    names = [name for name, _ in model.named_parameters() if name in mine]
    given = {name: mask for name, mask in masks.items() if mask.ndim >= 2}
    if len(given) != len(names):
        raise ValueError(f"match: order: the file has {len(given)} masks, the network {len(names)} prunable weights")
    return dict(zip(names, given.values(), strict=True))


def _tensors(path: Path, ordered: bool) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if head[8:] == b"{":
        if ordered:
            raise ValueError(f"{path}: safetensors keeps tensors by name, not in order; match: order needs torch.save")
        try:
            return load_file(path)
        except Exception as error:  # of its header SafetensorError, of what that says of a tensor anything
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    found = _state(path, zipped=head[:4] == b"PK\3\4")
    for _ in NESTS:  # no deeper: a dict can hold itself
        nested = [k for k in NESTS if isinstance(found, Mapping) and isinstance(found.get(k), Mapping)]
        found = found[nested[0]] if nested else found
    tensors = {str(n): t for n, t in found.items() if isinstance(t, Tensor)} if isinstance(found, Mapping) else {}
    if not tensors:
        raise ValueError(f"{path}: holds no state dict; write one with torch.save(model.state_dict(), path)")
    for name, tensor in tensors.items():
        _plain(path, name, tensor)
    return tensors


def _state(path: Path, zipped: bool) -> Any:
    """Load what torch.save wrote, tensors and plain containers alone."""
    if zipped:
        _unpacked(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # junk raises anything: struct.error, KeyError, UnpicklingError
        raise ValueError(
            f"{path}: is neither safetensors nor a file of tensors alone; write one with "
            "torch.save(model.state_dict(), path) (a whole pickled model is never loaded: it could run code)"
        ) from None


def _unpacked(path: Path) -> None:
    """Raise ValueError for a zip file that says that it holds more than its own size: torch.save packs nothing."""
    try:
        with zipfile.ZipFile(path) as file:
            whole = sum(entry.file_size for entry in file.infolist())
    except Exception:  # a broken table of contents raises anything
        raise ValueError(f"{path}: is neither safetensors nor a whole zip file; write one with torch.save") from None
    if whole > path.stat().st_size:
        raise ValueError(
            f"{path}: is a zip file that unpacks to {whole:,} bytes; torch.save writes none that is packed"
        )


def _plain(path: Path, name: str, tensor: Tensor) -> None:
    """Raise ValueError for a tensor that is no plain array, or larger than the numbers that the file has for it."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        raise ValueError(f"{path}: {name!r} is no plain tensor; write dense ones, such as mask.to_dense().cpu()")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{path}: {name!r} has shape {list(tensor.shape)}, stretched over fewer numbers; "
            "write mask.clone(memory_format=torch.contiguous_format)"
        )


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip what wrappers put before every name."""
    plain = dict(tensors)
    while wrapped := [p for p in PREFIXES if plain and all(name.startswith(p) for name in plain)]:
        plain = {name.removeprefix(wrapped[0]): tensor for name, tensor in plain.items()}
    return plain


def _entries(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `LAYER.weight_mask`, `LAYER_mask` and `LAYER.mask` entries under the weight's name."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("_mask"):
            found[name.removesuffix("_mask")] = tensor
        elif name == "mask" or name.endswith(".mask"):
            found[name.removesuffix("mask") + "weight"] = tensor
    return found


def _as_mask(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.ndim or not tensor.numel() or tensor.dtype not in DTYPES:
        raise ValueError(f"{path}: {name!r} is no mask; it is {tensor.dtype} of shape {list(tensor.shape)}")
    if not bool(((tensor == 0) | (tensor == 1)).all()):
        raise ValueError(f"{path}: {name!r} is no mask; it must hold 0 and 1 only")
    return tensor.bool()


def _few(names: Mapping[str, Any]) -> str:
    shown = list(names)[:3]
    return ", ".join(map(repr, shown)) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
