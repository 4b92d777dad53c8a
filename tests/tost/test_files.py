"""Masks of other codes: every form in which the field saves them comes out as the same mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

from tests.tost.nets import small_net
from tost.masks import Masks, find_masks, prunable
from tost.masks.apply import apply_masks
from tost.masks.files import FORMS as FORMS_WRITTEN
from tost.masks.files import fit_masks, read_masks, write_masks
from tost.masks.io import save_masks
from tost.masks.scores import magnitude

LAYERS = ("0", "3", "5", "8")


@pytest.fixture
def net() -> nn.Module:
    return small_net()


@pytest.fixture
def masks(net: nn.Module) -> Masks:
    return find_masks(magnitude, net, 60)


def ours(net: nn.Module, masks: Masks, path: Path) -> None:
    save_masks(masks, path)


def trained(net: nn.Module, masks: Masks, path: Path) -> None:
    apply_masks(net, masks)
    save_file({**net.state_dict(), **{f"mask/{name}": mask.to(torch.uint8) for name, mask in masks.items()}}, path)


def torch_prune(net: nn.Module, masks: Masks, path: Path) -> None:
    pruned = copy.deepcopy(net)
    for layer in LAYERS:
        prune.custom_from_mask(pruned.get_submodule(layer), "weight", masks[f"{layer}.weight"])
    torch.save(pruned.state_dict(), path)


def weight_mask_buffers(net: nn.Module, masks: Masks, path: Path) -> None:
    """SynFlow's and ToST's layers: a buffer weight_mask beside the weight, and one of ones for the bias."""
    extra = {f"{name}_mask": mask.float() for name, mask in masks.items()}
    torch.save({"state_dict": {**net.state_dict(), **extra, "8.bias_mask": torch.ones(4)}, "epoch": 3}, path)


def layer_masks(net: nn.Module, masks: Masks, path: Path) -> None:
    torch.save({name.replace(".weight", ".mask"): mask for name, mask in masks.items()}, path)


def zeros_of_a_checkpoint(net: nn.Module, masks: Masks, path: Path) -> None:
    apply_masks(net, masks)
    torch.save({"model": {f"module.{name}": value for name, value in net.state_dict().items()}, "lr": 0.1}, path)


FORMS = [ours, trained, torch_prune, weight_mask_buffers, layer_masks, zeros_of_a_checkpoint]


@pytest.mark.parametrize("write", FORMS, ids=lambda write: write.__name__)
def test_every_form_comes_out_as_the_same_mask(
    write: Callable[..., None], net: nn.Module, masks: Masks, tmp_path: Path
) -> None:
    write(net, masks, tmp_path / "file")
    found, _ = read_masks(tmp_path / "file")
    assert_close(fit_masks(found, net), masks, rtol=0, atol=0)


def test_names_that_differ_can_be_matched_by_order(net: nn.Module, masks: Masks, tmp_path: Path) -> None:
    torch.save({f"layer{n}.weight_mask": masks[f"{layer}.weight"] for n, layer in enumerate(LAYERS)}, tmp_path / "f")
    found, _ = read_masks(tmp_path / "f")
    with pytest.raises(
        ValueError, match=r"no mask for '0\.weight'; its masks are named 'layer0\.weight'.*match: order"
    ):
        fit_masks(found, net)
    assert_close(fit_masks(found, net, match="order"), masks, rtol=0, atol=0)
    with pytest.raises(ValueError, match="the file has 4 masks, the network 3 prunable weights"):
        fit_masks(found, net, "conv", match="order")


def test_a_mask_of_convolutions_only_fits_the_set_of_convolutions(net: nn.Module, tmp_path: Path) -> None:
    save_masks(find_masks(magnitude, net, 60, which="conv"), tmp_path / "f")
    found, _ = read_masks(tmp_path / "f")
    assert sorted(fit_masks(found, net, "conv")) == ["0.weight", "3.weight", "5.weight"]
    with pytest.raises(ValueError, match=r"no mask for '8\.weight'.*prunable: conv"):
        fit_masks(found, net)


def test_what_does_not_fit_is_named(net: nn.Module, masks: Masks) -> None:
    with pytest.raises(ValueError, match=r"'0\.weight' of the file has shape \[2\]; the weight has \[6, 3, 3, 3\]"):
        fit_masks({**masks, "0.weight": torch.ones(2).bool()}, net)
    with pytest.raises(ValueError, match=r"prunes '8\.bias', which is not in the prunable set"):
        fit_masks({**masks, "8.bias": torch.zeros(4).bool()}, net)
    with pytest.raises(ValueError, match=r"prunes '8\.weight', which is not in the prunable set conv"):
        fit_masks(masks, net, "conv")


class Whole(nn.Module):
    """A module pickled whole, as torch.save(model) does it."""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Whole(), "neither safetensors nor a file of tensors alone"),
        ({"a": 1}, "holds no state dict"),
        ({"bn.weight": torch.ones(3)}, "holds neither masks nor weights"),
        ({"conv.weight": torch.ones(3, 3)}, "no weight in it is 0"),
        ({"conv.weight_mask": torch.full((3, 3), 0.5)}, r"'conv\.weight' is no mask; it must hold 0 and 1 only"),
        ([1, 2], "holds no state dict"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_file_that_tells_no_mask_is_refused(content: Any, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "f")
    with pytest.raises(ValueError, match=said):
        read_masks(tmp_path / "f")


@pytest.mark.parametrize("data", [b"", b"\0" * 20, b"12345678{nonsense", b"\x80\x04junk", b"PK\x03\x04broken"])
def test_junk_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ValueError, match="safetensors"):
        read_masks(tmp_path / "f")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing: cannot be read: No such file"):
        read_masks(tmp_path / "nothing")


def test_no_code_of_a_file_is_ever_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "run",))

    torch.save({"conv.weight": Bomb()}, tmp_path / "f")
    with pytest.raises(ValueError, match="it could run code"):
        read_masks(tmp_path / "f")
    assert not (tmp_path / "run").exists()


def test_a_weight_of_its_own_that_is_zero_stays_in_a_mask_told_by_entries(net: nn.Module, tmp_path: Path) -> None:
    masks = {name: torch.ones(weight.shape).bool() for name, weight in prunable(net).items()}
    with torch.no_grad():
        net[0].weight.zero_()  # type: ignore[union-attr, operator]
    weight_mask_buffers(net, masks, tmp_path / "f")
    assert bool(fit_masks(read_masks(tmp_path / "f")[0], net)["0.weight"].all())


def test_order_is_not_relied_on_where_the_file_has_none(net: nn.Module, masks: Masks, tmp_path: Path) -> None:
    save_masks(masks, tmp_path / "f")
    with pytest.raises(ValueError, match="safetensors keeps tensors by name, not in order"):
        read_masks(tmp_path / "f", ordered=True)


def test_wrappers_around_wrappers_are_looked_through(net: nn.Module, masks: Masks, tmp_path: Path) -> None:
    torch.save({f"_orig_mod.module.{name}_mask": mask for name, mask in masks.items()}, tmp_path / "f")
    assert_close(fit_masks(read_masks(tmp_path / "f")[0], net), masks, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS_WRITTEN)
def test_what_is_written_is_read_back(form: str, net: nn.Module, masks: Masks, tmp_path: Path) -> None:
    apply_masks(net, masks)
    write_masks(masks, tmp_path / "f", form, dict(net.state_dict()))
    assert_close(fit_masks(read_masks(tmp_path / "f")[0], net), masks, rtol=0, atol=0)
    if form in ("prune", "zeros"):
        with pytest.raises(ValueError, match="needs the weights along with the masks"):
            write_masks(masks, tmp_path / "g", form, {n: m.to(torch.uint8) for n, m in masks.items()})
