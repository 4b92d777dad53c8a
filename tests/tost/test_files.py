"""Masks of other codes: every form in which the field saves them comes out as the same mask."""

from __future__ import annotations

import argparse
import copy
import datetime
import pickle
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

from tests.tost.nets import small_net
from tost.catalog import MODELS, resolve
from tost.masks import Masks, find_masks, prunable
from tost.masks.apply import apply_masks
from tost.masks.checkpoints import CLASS, levels
from tost.masks.files import FORMS as FORMS_WRITTEN
from tost.masks.files import fit_masks, pair_masks, read_masks, rename_masks, write_masks
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


def parametrised(net: nn.Module, masks: Masks, path: Path) -> None:
    """torch.ao.pruning's sparsifiers: a mask below the weight's parametrisation."""
    torch.save({n.replace(".weight", ".parametrizations.weight.0.mask"): m for n, m in masks.items()}, path)


FORMS = [ours, trained, torch_prune, weight_mask_buffers, layer_masks, zeros_of_a_checkpoint, parametrised]


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
        (Whole(), r"it is a whole pickled .*\.Whole, which is never loaded: it could run code"),
        ({"model": Whole(), "epoch": 3}, r"its entry 'model' is a pickled (?s:.*)found\['model'\]\.state_dict\(\)"),
        ({"a": 1}, "holds no state dict"),
        ({"bn.weight": torch.ones(3)}, "holds neither masks nor weights"),
        ({"conv.weight": torch.ones(3, 3)}, "no weight in it is 0"),
        ({"conv.weight_mask": torch.full((3, 3), 0.5)}, r"'conv\.weight' is no mask; it must hold 0 and 1 only"),
        ([1, 2], "holds no state dict"),
        ({"conv.weight": torch.tensor([[0, 1], [2, 1]])}, "hold 0 and 1 only, and is torch.int64 with 2"),
        ([torch.ones(2, 2), torch.full((2, 2), 0.5)], "'1' is no mask; it must hold 0 and 1 only"),
        ({"rng": torch.zeros(9, dtype=torch.uint8)}, "holds neither masks nor weights"),
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


def zeros(net: nn.Module, masks: Masks) -> dict[str, torch.Tensor]:
    apply_masks(net, masks)
    return dict(net.state_dict())


DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32)

CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "bare": lambda state: state,
    "OrderedDict": OrderedDict,
    "known name": lambda state: {"state_dict": state, "epoch": 3},
    "unknown name": lambda state: {"auto": state, "arch": "x", "accuracy": torch.tensor(91.2)},
    "three levels down": lambda state: {"trainer": {"module": {"params": state}}, "rng": torch.get_rng_state()},
    "defaultdict": lambda state: defaultdict(list, model_state=state),
    "Namespace": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "numpy scalar": lambda state: {"net": state, "accuracy": np.float64(91.2)},
    "path and date": lambda state: {"weights": state, "dir": PurePosixPath("/x"), "at": datetime.date(2026, 1, 1)},
    "a dict of one's own": lambda state: {"weights": state, "settings": Settings(lr=0.1), "last": deque([1, 2])},
    "attributes named as a dict's methods": lambda state: {"weights": state, "model": Methods(), "net": Ordered()},
    "an object with slots": lambda state: {"weights": state, "settings": Slotted()},
}


class Settings(dict[str, Any]):
    """A dict with attributes, as many configurations are."""


class Methods:
    """An object whose attributes have the names of a dict's methods."""

    def __init__(self) -> None:
        self.items = self.get = self.keys = self.values = [1, 2]


class Ordered(OrderedDict[str, Any]):
    """A dict of one's own with such attributes."""

    def __init__(self) -> None:
        super().__init__(lr=0.1)
        vars(self).update(get=3, keys=[1, 2])


class Slotted:
    __slots__ = ("x",)

    def __init__(self) -> None:
        self.x = 1


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_tensors_are_read_whatever_stands_beside_them(
    container: str, old: bool, net: nn.Module, masks: Masks, tmp_path: Path
) -> None:
    kinds = [{n: m.to(dtype) for n, m in masks.items()} for dtype in DTYPES]
    for state in (*kinds, zeros(net, masks)):
        torch.save(CONTAINERS[container](state), tmp_path / "f", _use_new_zipfile_serialization=not old)
        assert_close(fit_masks(read_masks(tmp_path / "f")[0], net), masks, rtol=0, atol=0)


def test_of_several_places_one_is_named(net: nn.Module, masks: Masks, tmp_path: Path) -> None:
    other = {name: ~mask for name, mask in masks.items()}
    torch.save({"run": {"a.1": masks, "ema": other}, "args": [1, 2]}, tmp_path / "f")
    with pytest.raises(ValueError, match=r"under 'run\.a\.1', 'run\.ema'; write which, such as entry: run\.a\.1"):
        read_masks(tmp_path / "f")
    for entry, wanted in (("run.a.1", masks), ("run.ema", other)):
        assert_close(fit_masks(read_masks(tmp_path / "f", entry=entry)[0], net), wanted, rtol=0, atol=0)
    for entry in ("run.em", "args"):
        with pytest.raises(ValueError, match=rf"no tensors under the entry '{entry}'.*tensors are under 'run\.a\.1'"):
            read_masks(tmp_path / "f", entry=entry)


def test_one_state_dict_under_two_names_is_read_under_each(net: nn.Module, masks: Masks, tmp_path: Path) -> None:
    torch.save({"runs": {"a.1": masks, "last": masks}, "best": masks}, tmp_path / "f")
    for entry in ("auto", "best", "runs.a.1", "runs.last"):
        assert_close(fit_masks(read_masks(tmp_path / "f", entry=entry)[0], net), masks, rtol=0, atol=0)
    for entry in ("runs", "runs.a", "runs.last.0.weight", "last", "."):
        with pytest.raises(ValueError, match="no tensors under the entry"):
            read_masks(tmp_path / "f", entry=entry)


class Called:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.given = (function, given)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.given


def doubled(times: int) -> tuple[Any, ...]:
    """Return a tuple of some bytes in a file whose text doubles with each time."""
    value: tuple[Any, ...] = ("x",)
    for _ in range(times):
        value = (value, value)
    return value


class Settable(OrderedDict[str, Any]):
    """A dict that may have any attributes."""


@pytest.mark.parametrize("plain", [OrderedDict, Settable], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("attribute", ["foreign", CLASS])
def test_what_a_file_calls_a_class_is_not_repeated(
    attribute: str, plain: type[OrderedDict[str, Any]], tmp_path: Path
) -> None:
    for value in (doubled(12), "x" * 10_000):
        record = plain()
        vars(record)[attribute] = value
        for content in (record, {"x": record}, {doubled(12): {"x": record}}, {"x": {doubled(12): record}}):
            torch.save(content, tmp_path / "f")
            with pytest.raises(ValueError, match="holds no state dict") as refused:
                read_masks(tmp_path / "f")
            assert len(str(refused.value)) < 1000


def test_names_of_places_are_bounded() -> None:
    """Else thousands of lists under one long key would each repeat it."""
    assert [name for name, _ in levels({"x" * 200: [[]], doubled(12): [], "y" * 201: [[]]})][1:] == [
        "x" * 200,
        "(((...), (...)), ((...), (...)))",
        f"{'x' * 200}.0",
    ]


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_memory_that_the_file_does_not_hold_is_not_taken(old: bool, masks: Masks, tmp_path: Path) -> None:
    for content in ({**masks, "x": Called(bytearray, 9)}, {"model": masks, "x": [Called(bytearray, 9)]}):
        torch.save(content, tmp_path / "f", _use_new_zipfile_serialization=not old)
        with pytest.raises(ValueError, match=r"names builtins\.bytearray, which is never loaded(?s:.*)convert it"):
            read_masks(tmp_path / "f")
    for content in ({"a.mask": Called(torch.FloatTensor, 9999)}, {"x": {"a.mask": Called(torch.FloatTensor, 9999)}}):
        torch.save(content, tmp_path / "f", _use_new_zipfile_serialization=not old)
        with pytest.raises(ValueError, match=r"'a(\.mask)?' is of 39,996 bytes, which the file does not hold"):
            read_masks(tmp_path / "f")


def test_no_pickle_of_a_file_is_loaded_before_all_are_listed(masks: Masks, tmp_path: Path) -> None:
    torch.save(masks, tmp_path / "old", _use_new_zipfile_serialization=False)
    magic, call = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", pickle.dumps(Called(bytearray, 9), 2)
    old = (tmp_path / "old").read_bytes()
    assert old.startswith(magic)
    for data in (call[:-1] + old[2:], magic + call + old[len(magic) :], old[: len(magic) + 5] + call):
        (tmp_path / "f").write_bytes(data)
        with pytest.raises(ValueError, match=r"neither safetensors|never loaded"):
            read_masks(tmp_path / "f")
    torch.save(masks, tmp_path / "f")
    with zipfile.ZipFile(tmp_path / "f", "a") as file:
        file.writestr("f/DATA.PKL", call)
    with pytest.raises(ValueError, match="neither safetensors"):
        read_masks(tmp_path / "f")


WRAPPED: dict[str, Callable[[str], str]] = {
    "DataParallel": lambda name: f"module.{name}",
    "compiled within": lambda name: f"_orig_mod.module.{name}",
    "one stage compiled": lambda name: name.replace("3.", "3._orig_mod.", 1) if name.startswith("3.") else name,
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('.', '._fsdp_wrapped_module.', 1)}",
    "activation checkpointing": lambda name: name.replace(".", "._checkpoint_wrapped_module.", 1),
    "a trainer's model": lambda name: f"model.{name}",
    "behind a normalisation": lambda name: f"1.module.{name}",
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("match", ["name", "order"])
def test_wrappers_are_looked_through_wherever_they_stand(
    match: str, wrapped: str, net: nn.Module, masks: Masks, tmp_path: Path
) -> None:
    state = {WRAPPED[wrapped](name): value for name, value in zeros(net, masks).items()}
    torch.save({**state, "seen": torch.tensor(3)}, tmp_path / "f")
    assert_close(fit_masks(read_masks(tmp_path / "f")[0], net, match=match), masks, rtol=0, atol=0)


def test_names_that_only_a_wrapper_tells_apart_are_refused(net: nn.Module, masks: Masks) -> None:
    with pytest.raises(ValueError, match=r"has '0\.weight' and '0\.module\.weight', which are one name"):
        fit_masks({**masks, "0.module.weight": masks["0.weight"]}, net)
    both = {f"{who}.{name}": mask for who in ("student", "teacher") for name, mask in masks.items()}
    with pytest.raises(ValueError, match=r"under 'student\.' and 'teacher\.'; keep one"):
        fit_masks(both, net)


def test_a_network_may_have_wrappers_names_of_its_own() -> None:
    net = nn.Sequential(OrderedDict(module=nn.Linear(2, 2), orig=nn.Sequential(OrderedDict(module=nn.Linear(2, 2)))))
    masks = {name: torch.rand(2, 2) > 0.5 for name in prunable(net)}
    assert sorted(masks) == ["module.weight", "orig.module.weight"]
    assert_close(fit_masks(masks, net), masks, rtol=0, atol=0)


def chain(names: Iterable[str]) -> tuple[nn.Module, Masks]:
    """Return a network of twelve layers of one shape, and their masks under other names, in the network's order."""
    net = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    return net, {name: torch.eye(4)[n % 4].reshape(2, 2).bool() for n, name in enumerate(names)}


def test_an_order_that_the_names_contradict_is_refused() -> None:
    net, right = chain([f"unit1.{n}.w" for n in range(12)])
    assert list(fit_masks(right, net, match="order")) == sorted(f"{n}.weight" for n in range(12))
    with pytest.raises(
        ValueError, match=r"'1\.weight' <- 'unit1\.1\.w', .*as text \('unit1\.11\.w' before 'unit1\.2\.w'"
    ):
        fit_masks(dict(sorted(right.items())), net, match="order")
    same = {f"{n}.weight": mask for n, mask in enumerate(right.values())}
    with pytest.raises(ValueError, match=r"'0\.weight' is number 1 of the network, number 12 of the file"):
        fit_masks(dict(reversed(same.items())), net, match="order")
    pairs = nn.ModuleDict({f"{b}": nn.ModuleDict({"up": nn.Linear(2, 2), "down": nn.Linear(2, 2)}) for b in "ab"})
    theirs = {f"x{n}.{leaf}.weight": torch.ones(2, 2).bool() for n in (1, 2) for leaf in ("down", "up")}
    with pytest.raises(ValueError, match=r"'x1\.down\.weight' would mask 'a\.up\.weight'"):
        fit_masks(theirs, pairs, match="order")


@pytest.mark.parametrize("name", sorted({*MODELS} - {"resnet104"}))
def test_no_networks_own_order_is_refused_under_other_names(name: str) -> None:
    with torch.device("meta"):
        net = resolve(MODELS[name].path)(10, 3)
    own = [n for n, _ in net.named_parameters() if n in prunable(net)]
    kept = {n: torch.ones(1).bool().expand(w.shape) for n, w in prunable(net).items()}
    for rename in (str, "net.{}".format, lambda n: n.replace("layer", "unit").replace("conv1", "c1")):
        assert pair_masks({rename(n): kept[n] for n in own}, {n: kept[n].shape for n in own}, match="order") == {
            n: rename(n) for n in own
        }


def test_masks_are_compared_under_one_name(masks: Masks) -> None:
    wrapped = {f"1.module.{name}": mask for name, mask in masks.items()}
    assert list(rename_masks(wrapped, masks)) == list(masks)
    for other in (masks, {"8.weight": masks["8.weight"]}):
        assert rename_masks(other, wrapped) is other, "nothing is left out, and what fits no name stays"


def test_a_list_in_the_networks_order_is_all_that_order_needs(net: nn.Module, masks: Masks, tmp_path: Path) -> None:
    ordered = [masks[f"{layer}.weight"] for layer in LAYERS]
    for dtype in DTYPES:
        torch.save([mask.to(dtype) for mask in ordered], tmp_path / "f")
        assert_close(fit_masks(read_masks(tmp_path / "f", True)[0], net, match="order"), masks, rtol=0, atol=0)
    torch.save([ordered[0], torch.tensor([1, 1, 0, 1, 1, 1]), *ordered[1:]], tmp_path / "f")
    with pytest.raises(ValueError, match="the file prunes '1', which is not in the prunable set conv\\+linear"):
        fit_masks(read_masks(tmp_path / "f", True)[0], net, match="order")


@pytest.mark.parametrize("match", ["name", "order"])
def test_a_pruned_batch_norm_is_an_error(match: str, net: nn.Module, masks: Masks) -> None:
    names = {layer: layer if match == "name" else f"l{layer}" for layer in LAYERS}
    theirs = {f"{names[layer]}.weight": masks[f"{layer}.weight"] for layer in LAYERS}
    fit_masks({**theirs, "1.weight": torch.ones(6).bool()}, net, match=match)
    with pytest.raises(ValueError, match=r"the file prunes '1\.weight', which is not in the prunable set"):
        fit_masks({**theirs, "1.weight": torch.zeros(6).bool()}, net, match=match)


def npz(arrays: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


NUMPY: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "a pickled list": lambda arrays, path: path.write_bytes(pickle.dumps(list(arrays.values()))) and None,
    "a pickled dict": lambda arrays, path: path.write_bytes(pickle.dumps(arrays)) and None,
    "a list": lambda arrays, path: torch.save(list(arrays.values()), path),
    "a state dict": lambda arrays, path: torch.save({"state_dict": arrays, "epoch": 3}, path),
    "npz": npz,
    "a whole model": lambda _, path: torch.save({"model": copy.deepcopy(pruned_net(path))}, path),
}


def pruned_net(_: Path) -> nn.Module:
    net = small_net().eval()
    apply_masks(net, find_masks(magnitude, net, 60))
    return net


@pytest.mark.parametrize("form", NUMPY)
def test_the_lines_that_a_refusal_gives_convert_the_file(
    form: str, masks: Masks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    NUMPY[form]({f"{layer}.weight": masks[f"{layer}.weight"].numpy().astype("uint8") for layer in LAYERS}, Path("f"))
    with pytest.raises(ValueError, match="convert it:") as refused:
        read_masks(Path("f"))
    space: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in str(refused.value).splitlines()[1:]), space)  # noqa: S102
    getattr(space["found"], "close", lambda: None)()
    found = read_masks(Path("masks.pt"), ordered=True)[0]
    assert_close(fit_masks(found, small_net(), match="order"), masks, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS_WRITTEN)
def test_what_is_written_is_read_back(form: str, net: nn.Module, masks: Masks, tmp_path: Path) -> None:
    apply_masks(net, masks)
    write_masks(masks, tmp_path / "f", form, dict(net.state_dict()))
    assert_close(fit_masks(read_masks(tmp_path / "f")[0], net), masks, rtol=0, atol=0)
    if form in ("prune", "zeros"):
        with pytest.raises(ValueError, match="needs the weights along with the masks"):
            write_masks(masks, tmp_path / "g", form, {n: m.to(torch.uint8) for n, m in masks.items()})
