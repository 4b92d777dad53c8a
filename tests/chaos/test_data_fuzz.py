"""Bad input: images and data sets that are broken, endless or of the wrong form are named; nothing hangs or swells."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torchvision

from harness.catalog import DATASETS
from harness.errors import UserError
from harness.names import Choice
from harness.sources import find_source
from harness.train import decode
from harness.train.images import encode
from tests.chaos.limited import outcomes
from tests.chaos.test_masks_fuzz import READ, SAID, made_wrong, planted
from tests.chaos.wrong_data import FOLDERS, a_pipe, cifar, folder_of, names_of_bytes, picture, wrong_idx, wrong_images
from tests.conftest import GRID, run_sweep, write_project

pytestmark = pytest.mark.chaos

LOADED = torchvision.__version__
"""Loaded before a process's memory is limited."""


def data_set(root: Path) -> str:
    """Look for a data set and decode it, as a plan and a data stage do; return what is said."""
    name = next((name for name, place in PLACES.items() if (root / place).exists()), "imagefolder")
    choice = Choice(name, (), str(root) if name == "imagefolder" else "")
    try:
        source = find_source(choice, DATASETS[name], root, root.parent.parent / "cache")
        if source.missing:
            return f"{SAID}{source.missing}"
        tensors, _ = encode(getattr(decode, name)(source.path, 0), 0, source.content)
        return f"{READ}{list(tensors['train.images'].shape)}"
    except UserError as error:
        return f"{SAID}{error}"


def image(file: Path) -> str:
    """Decode one image; return its size, or what is said."""
    try:
        found = decode._open(file).image
    except UserError as error:
        return f"{SAID}{error}"
    return f"{READ}{found.size} {found.mode}"


PLACES = {"mnist": "MNIST", "cifar10": "cifar-10-batches-py"}


def test_bad_data_sets_are_named_in_bounded_time_and_memory(tmp_path: Path) -> None:
    wanted: dict[str, str] = {}
    (root := tmp_path / "sets").mkdir()
    for name, (data, said) in wrong_images().items():
        (folder_of(root / name) / "train" / "b" / name).write_bytes(data)
        wanted[name] = f"{SAID}*{said}" if said else ""
    for spoil, said in FOLDERS.items():
        spoil(folder_of(root / spoil.__name__))
        wanted[spoil.__name__] = said
    for name, files in wrong_idx().items():
        (root / name / "MNIST" / "raw").mkdir(parents=True)
        for file, data in files.items():
            (root / name / "MNIST" / "raw" / file).write_bytes(data)
        wanted[name] = SAID
    raw = root / "idx-pipe" / "MNIST" / "raw"
    shutil.copytree(root / "idx-cut" / "MNIST" / "raw", raw)
    (raw / "train-images-idx3-ubyte").unlink()
    os.mkfifo(raw / "train-images-idx3-ubyte")
    wanted["idx-pipe"] = f"{SAID}*is missing"
    cifar(root / "cifar", tmp_path)
    wanted["cifar"] = f"{SAID}*differ from the official ones"
    found = outcomes("tests.chaos.test_data_fuzz:data_set", root)
    other = {name: found[name] for name, said in wanted.items() if not _as_wanted(found[name], said)}
    ran = planted(tmp_path)
    assert not other
    assert not ran


def _as_wanted(found: str, wanted: str) -> bool:
    parts = wanted.split("*") if wanted else [""]
    return found.startswith(parts[0] or (SAID, READ)) and parts[-1] in found


def test_changed_bytes_of_an_image_end_in_an_image_or_a_sentence(tmp_path: Path) -> None:
    (files := tmp_path / "files").mkdir()
    draws, count = random.Random(5), 60
    forms = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "WEBP": "webp", "PPM": "ppm"}
    sources = [(picture(form=form, size=40), ending) for form, ending in forms.items()]
    for number in range(count):
        source, ending = sources[number % len(sources)]
        data = bytearray(source)
        for _ in range(draws.randrange(1, 6)):
            at = draws.randrange(min(len(data), 300) if draws.randrange(3) else len(data))
            data[at : at + draws.randrange(3)] = draws.randbytes(draws.randrange(1, 4))
        (files / f"{number:05d}.{ending}").write_bytes(data)
    found = outcomes("tests.chaos.test_data_fuzz:image", files)
    faults = [said for said in found.values() if not said.startswith((SAID, READ))]
    assert len(found) == count
    assert not faults, faults[0]
    assert {said.partition(" ")[0] for said in found.values()} == {"said:", "read:"}


def test_a_sweep_over_bad_folders_and_masks_says_so_and_makes_the_rest(tmp_path: Path) -> None:
    write_project(tmp_path)
    images, masks = wrong_images(), made_wrong(tmp_path)
    bad = ["bomb.png", "cut-2.jpg"]
    files = ["pickle-system.pkl", "shape", "bomb"]
    for name in bad:
        (folder_of(tmp_path / f"set-{name}") / "train" / "b" / name).write_bytes(images[name][0])
    a_pipe(folder_of(tmp_path / "good"))
    names_of_bytes(tmp_path / "good")
    for name in files:
        (tmp_path / name).write_bytes(masks[name][0])
    sets = [f"imagefolder:{name}" for name in ("good", *(f"set-{name}" for name in bad))]
    also = {"dataset": "imagefolder:good", "mask": [f"file:{name}" for name in files]}
    text = GRID.replace("dataset: digits", f"dataset: {json.dumps(sets)}").replace("[random, lth]", "random")
    text = text.replace("seed: 0..1", "seed: 0").replace("[default, ls]", "default").replace("2}", "2, dev: none}")
    text = text.replace("also:", f"launch: {{workers: 1}}\nalso:\n  - {json.dumps(also)}")
    (tmp_path / "tiny.yaml").write_text(text)
    refused = run_sweep(tmp_path, "tiny.yaml")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert all(f"/{name}: " in refused.stderr for name in files), refused.stderr
    done = run_sweep(tmp_path, "tiny.yaml", "--only", "mask=random,mask=dense")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr + refused.stderr
    ends = [json.loads(path.read_text()) for path in tmp_path.glob("runs/stages/*/*/*/attempt-*/end.json")]
    told = [end for end in ends if end["outcome"] == "failed" and end["cause"] == "input"]
    made = list(tmp_path.glob("runs/stages/train/*/*/result-*.json"))
    assert len(told) == len(bad), ends
    assert len(made) == 2
    assert not planted(tmp_path)
