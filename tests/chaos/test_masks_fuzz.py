"""Bad input: files of masks that are cut short, lie about their size or hold code are refused, and nothing is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from tests.chaos.limited import outcomes
from tests.tost.nets import small_net
from tost.masks import Masks, find_masks
from tost.masks.files import fit_masks, read_masks
from tost.masks.scores import magnitude

pytestmark = pytest.mark.chaos

PLANTED = "planted"
SAID, READ = "said: ", "read: "


def answer(path: Path) -> str:
    """Read a file as an import does, and as `harness mask show` does; return what is said."""
    from typer.testing import CliRunner

    from harness.masks import app

    try:
        fit_masks(read_masks(path)[0], small_net())
        said = READ
    except ValueError as error:
        said = f"{SAID}{error}"
    shown = CliRunner().invoke(app, ["show", str(path)])
    if shown.exit_code not in (0, 2):
        raise AssertionError(shown.output) from shown.exception
    if any(ord(c) < 32 and c != "\n" for c in shown.output):
        raise AssertionError(f"a control character on the terminal: {shown.output!r}")
    return said


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, folder: Path, way: str) -> None:
        self.folder, self.way = folder, way

    def __reduce__(self) -> tuple[Any, ...]:
        planted = str(self.folder / f"{PLANTED}-{self.way}")
        match self.way:
            case "system":
                return os.system, (f"touch '{planted}'",)
            case "exec":
                return exec, (f"import pathlib; pathlib.Path({planted!r}).touch()",)
            case "write":
                return Path.write_text, (Path(planted), "x")
            case _:
                return Path.touch, (Path(planted),)


WAYS = ("system", "exec", "write", "touch")


def masks() -> Masks:
    return find_masks(magnitude, small_net(), 60)


def good() -> dict[str, bytes]:
    """Return files that are right, one of every form."""
    net, found = small_net(), masks()
    entries = {f"{name}_mask": mask.float() for name, mask in found.items()}
    zeros = {name: torch.where(found[name], w, 0) if name in found else w for name, w in net.state_dict().items()}
    return {
        "ours.safetensors": save({name: mask.to(torch.uint8) for name, mask in found.items()}),
        "entries.pt": saved({"state_dict": {**net.state_dict(), **entries}, "epoch": 3}),
        "old.pth": saved(entries, new=False),
        "zeros.pt": saved({"model": zeros}),
    }


def saved(value: object, new: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def tensors(head: object, data: bytes = b"\1" * 64, size: int | None = None) -> bytes:
    """Return a safetensors file with any header, which may say that it is of another size."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def one(dtype: str = "U8", shape: object = (8, 8), offsets: object = (0, 64)) -> dict[str, Any]:
    return {"0.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def packed(size: int) -> bytes:
    """Return a file of torch.save whose only tensor is packed: some kilobytes that unpack to `size` bytes."""
    plain, buffer = zipfile.ZipFile(io.BytesIO(saved({"a_mask": torch.zeros(8, dtype=torch.uint8)}))), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name in plain.namelist():
            out.writestr(name, b"\0" * size if name.endswith("/data/0") else plain.read(name))
    return buffer.getvalue()


def itself() -> dict[str, Any]:
    ring: dict[str, Any] = {}
    ring["model"] = ring
    return ring


def npz(value: Any, write: Callable[..., None] = np.savez) -> bytes:
    buffer = io.BytesIO()
    write(buffer, mask=value)
    return buffer.getvalue()


def masked(tensor: Tensor) -> bytes:
    return saved({"0.weight_mask": tensor})


def made_wrong(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Return files that are wrong in ways that were thought of, with what must be said of each."""
    ours = good()["ours.safetensors"]
    unread, junk = "not a readable safetensors file", "neither safetensors nor"
    overlap = {f"{n}.weight": one(offsets=(0, 64))["0.weight"] for n in (0, 3)}
    twice = (
        b'{"a":{"dtype":"U8","shape":[64],"data_offsets":[0,64]},"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}'
    )
    cases = {
        "header-of-exabytes": (tensors(one(), size=2**62), unread),
        "header-of-gigabytes": (tensors(one(), size=2**32), unread),
        "header-of-100-megabytes": (tensors(one(), size=10**8), unread),
        "sizes-of-terabytes": (tensors(one(shape=(2**20, 2**20), offsets=(0, 2**40))), unread),
        "sizes-beyond-numbers": (tensors(one(shape=(2**33, 2**33), offsets=(0, 64))), unread),
        "sizes-beyond-and-none": (tensors(one(shape=(2**62, 2**62, 0), offsets=(0, 0)), b""), ""),
        "shape-of-texts": (tensors(one(shape=("8", 8))), unread),
        "below-zero": (tensors(one(shape=(-8, -8))), unread),
        "overlapping": (tensors(overlap), unread),
        "backwards": (tensors(one(offsets=(64, 0))), unread),
        "name-twice": (tensors(twice), ""),
        "header-deep": (tensors(b'{"a":' + b"[" * 100_000), unread),
        "header-no-json": (tensors(b"{nonsense"), unread),
        "unknown-type": (tensors(one(dtype="Q7")), unread),
        "eight-bit-floats": (tensors(one(dtype="F8_E4M3")), ""),
        "complex": (masked(torch.ones(6, 3, 3, 3, dtype=torch.complex64)), "is no mask; it is torch.complex64"),
        "shape": (saved({**masks(), "0.weight": torch.ones(6, 3, 3).bool()}), "has shape [6, 3, 3]; the weight has"),
        "scalar": (masked(torch.ones(())), "is no mask"),
        "empty": (masked(torch.ones(0, 3)), "is no mask"),
        "stretched": (masked(torch.ones(1).expand(10**5, 10**6)), "stretched over fewer numbers"),
        "stretched-within": (saved({"x": {"a.mask": torch.ones(1).expand(10**5, 10**6)}}), "stretched over fewer"),
        "meta-within": (saved({"x": [torch.ones(10**6, 10**6, device="meta")]}), "is no plain tensor"),
        "sparse": (
            masked(
                torch.sparse_coo_tensor(
                    torch.zeros(2, 1, dtype=torch.long), [1.0], (10**6, 10**6), check_invariants=False
                )
            ),
            "",
        ),
        "meta": (masked(torch.ones(10**6, 10**6, device="meta")), ""),
        "in-itself": (saved(itself()), "holds no state dict"),
        "escapes": (save({"\x1b[2J\x07evil\r": torch.ones(2, 2, dtype=torch.uint8)}), "no mask for"),
        "npz": (npz(np.ones((6, 3, 3, 3))), junk),
        "npz-packed": (npz(np.ones((600, 300)), np.savez_compressed), "torch.save writes none that is packed"),
        "npz-object": (npz(np.array([Evil(folder, "touch")], dtype=object)), junk),
        "bomb": (packed(2**28), "torch.save writes none that is packed"),
    }
    for way in WAYS:
        evil = Evil(folder, way)
        cases[f"pickle-{way}.pkl"] = (pickle.dumps({"0.weight_mask": evil}), junk)
    for size in (0, 1, 7, 8, 9, 40, len(ours) // 2, len(ours) - 1):
        cases[f"cut-{size}.safetensors"] = (ours[:size], "safetensors")
    return cases


def planted(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(f"{PLANTED}*"))


def test_files_of_code_are_code(tmp_path: Path) -> None:
    """What is planted would be there if anybody unpickled it."""
    for way in WAYS:
        pickle.loads(pickle.dumps(Evil(tmp_path, way)))  # noqa: S301
    assert len(planted(tmp_path)) == len(WAYS)


def test_what_is_no_mask_is_refused_and_no_code_of_it_is_run(tmp_path: Path) -> None:
    (files := tmp_path / "files").mkdir()
    cases = made_wrong(tmp_path)
    for name, (data, _) in cases.items():
        (files / name).write_bytes(data)
    for name, data in good().items():
        (files / name).write_bytes(data)
    found = outcomes("tests.chaos.test_masks_fuzz:answer", files)
    assert {found[name] for name in good()} == {READ}
    assert max(map(len, found.values())) < 10_000
    unsaid = {n: found[n] for n, (_, said) in cases.items() if not found[n].startswith(SAID) or said not in found[n]}
    ran = planted(tmp_path)
    assert not unsaid
    assert not ran


def test_changed_bytes_of_a_mask_end_in_a_mask_or_a_sentence(tmp_path: Path) -> None:
    draws, count = random.Random(3), 60
    sources = [*good().values(), saved({"0.weight_mask": Evil(tmp_path, "touch")}, new=False)]
    for number in range(count):
        data = bytearray(sources[number % len(sources)])
        for _ in range(draws.randrange(1, 8)):
            at = draws.randrange(min(len(data), 3000) if draws.randrange(3) else len(data))
            match draws.randrange(4):
                case 0:
                    data[at] ^= 1 << draws.randrange(8)
                case 1:
                    data[at] = draws.randrange(256)
                case 2:
                    del data[at : at + draws.randrange(1, 64)]
                case _:
                    data[at:at] = data[at : at + draws.randrange(1, 64)]
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{number:05d}").write_bytes(data)
    found = outcomes("tests.chaos.test_masks_fuzz:answer", tmp_path / "files")
    faults = [said for said in found.values() if not said.startswith((SAID, READ))]
    ran = planted(tmp_path)
    assert len(found) == count
    assert not faults, faults[0]
    assert not ran
    assert any(said.startswith(SAID) for said in found.values())
