"""Data sets: decoded once into uint8, keyed by content, bad files named."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.catalog import DATASETS
from harness.errors import UserError
from harness.names import Choice
from harness.sources import Source, find_source
from harness.train import decode
from harness.train.decode import Decoded
from harness.train.images import encode
from tests.conftest import SHARED

Run = Callable[..., subprocess.CompletedProcess[str]]


def tree(root: Path, counts: dict[str, int], size: int = 12, mode: str = "RGB", suffix: str = "png") -> Path:
    """An image folder of noise: {"train/a": 3, ...}."""
    for number, (place, count) in enumerate(counts.items()):
        (root / place).mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number)
        for index in range(count):
            pixels = noise.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(root / place / f"{index}.{suffix}")
    return root


def source(root: Path, cache: Path) -> Source:
    return find_source(Choice("imagefolder", (), str(root)), DATASETS["imagefolder"], root, cache)


def test_a_folders_content_is_its_names_sizes_and_bytes_and_never_its_path(tmp_path: Path) -> None:
    first = tree(tmp_path / "one", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    known = source(first, tmp_path / "cache").content
    shutil.copytree(first, tmp_path / "elsewhere" / "two")
    os.utime(tmp_path / "elsewhere" / "two" / "train" / "a" / "0.png", (1, 1))
    assert source(tmp_path / "elsewhere" / "two", tmp_path / "cache").content == known
    assert source(first, tmp_path / "cache").content == known
    (first / "train" / "a" / "0.png").rename(first / "train" / "b" / "9.png")
    assert source(first, tmp_path / "cache").content != known


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    root = tree(tmp_path / "one", {"train/a": 1, "train/b": 1, "test/a": 1})
    before = source(root, tmp_path / "cache").content
    (root / "train" / "a" / "again").symlink_to(root / "train", target_is_directory=True)
    assert len(source(root, tmp_path / "cache").content) == len(before)


@pytest.mark.parametrize(
    ("counts", "said"),
    [({"train/a": 1}, "needs train/ and test/"), ({"train/a": 0, "train/b": 0, "test/a": 0}, "holds no image")],
)
def test_a_folder_of_another_form_is_said(counts: dict[str, int], said: str, tmp_path: Path) -> None:
    assert said in source(tree(tmp_path / "x", counts), tmp_path / "cache").missing


def test_an_image_folder_is_read_and_val_is_test_and_said_so(tmp_path: Path) -> None:
    root = tree(tmp_path / "x", {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1}, mode="L")
    found = decode.imagefolder(root, 0)
    assert found.train_images.shape == (5, 12, 12, 3)
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1]
    assert found.classes == ("cat", "dog")
    assert "val/ is the test split" in found.note
    assert decode.imagefolder(root, 8).test_images.shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"train/a": 2, "test/a": 1}, "1 classes"),
        ({"train/a": 2, "train/b": 0, "test/a": 1}, "train/b: holds no image"),
    ],
)
def test_too_few_classes_or_images_are_refused(counts: dict[str, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        decode.imagefolder(tree(tmp_path / "x", counts), 0)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "x", {"train/a": 2, "train/b": 2, "test/a": 1})
    bad = root / "train" / "b" / "1.png"
    for content in (b"", b"not an image", bad.read_bytes()[:60]):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=r"b/1\.png: not a readable image"):
            decode.imagefolder(root, 0)


def test_images_of_several_sizes_ask_for_a_size(tmp_path: Path) -> None:
    root = tree(tmp_path / "x", {"train/a": 2, "train/b": 2, "test/a": 1})
    Image.new("RGB", (9, 12)).save(root / "train" / "b" / "0.png")
    with pytest.raises(UserError, match="set resize: 32"):
        decode.imagefolder(root, 0)
    assert decode.imagefolder(root, 10).train_images.shape == (4, 10, 10, 3)


def test_digits_are_the_1797_with_a_fixed_test_fifth() -> None:
    found = decode.digits(Path(), 0)
    assert len(found.train_labels) + len(found.test_labels) == 1797
    assert found.train_images.shape[1:] == (8, 8, 1)
    assert found.train_images.max() == 255
    assert np.array_equal(found.test_labels, decode.digits(Path(), 0).test_labels)


def test_upsampling_makes_sixteen_of_eight() -> None:
    tensors, _ = encode(decode.digits(Path(), 0), 16, "c")
    assert tensors["train.images"].shape[1:] == (1, 16, 16)


def test_measured_mean_and_deviation_are_those_of_the_pixels(tmp_path: Path) -> None:
    import json

    found = decode.imagefolder(tree(tmp_path / "x", {"train/a": 3, "train/b": 4, "test/a": 1}), 0)
    _, metadata = encode(found, 0, "c")
    about = json.loads(metadata["about"])
    pixels = found.train_images.astype(float) / 255
    assert about["mean"] == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-7)
    assert about["std"] == pytest.approx(pixels.std((0, 1, 2)), abs=1e-7)


@pytest.mark.parametrize("bad", ["float", "labels", "channels", "range"])
def test_a_data_set_that_is_no_labelled_images_is_refused(bad: str) -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1])
    if bad == "float":
        images = images.astype(float)  # type: ignore[assignment]
    elif bad == "channels":
        images = np.zeros((4, 8, 8, 2), np.uint8)
    elif bad == "labels":
        labels = labels[:3]
    elif bad == "range":
        labels = labels + 1
    with pytest.raises(UserError, match="the data set's train"):
        encode(Decoded(images, labels, images, labels, ("a", "b")), 0, "c")


def test_missing_data_says_which_file_goes_where(sweep: Run, project: Path) -> None:
    (project / "tiny.yaml").write_text(
        (project / "tiny.yaml").read_text().replace("dataset: digits", "dataset: [cifar10, mnist]")
    )
    done = sweep("tiny.yaml", "--data", "here")
    assert done.returncode == 2
    assert "cifar10: here/cifar-10-batches-py/data_batch_1 is missing; put there the official" in done.stderr
    assert "harness data fetch mnist --data here" in done.stderr
    plan = sweep("tiny.yaml", "--data", "here", "--plan")
    assert plan.returncode == 2
    assert "trainings:" in plan.stdout, "a plan is printed all the same"
    (project / "tiny.yaml").write_text(
        (project / "tiny.yaml").read_text().replace("[cifar10, mnist]", "[digits, mnist]")
    )
    there = sweep("tiny.yaml", "--data", "here", "--plan", "--only", "dataset=digits")
    assert there.returncode == 0, "what the chosen cells do not need may be missing"


def test_cifar_files_that_are_not_the_official_ones_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in DATASETS["cifar10"].files:
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(UserError, match="differ from the official ones"):
        decode.cifar10(tmp_path, 0)


def test_a_cut_idx_file_is_named(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    whole = b"\0\0\x08\x01" + (3).to_bytes(4, "big") + b"abc"
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        (raw / f"{name}.gz").write_bytes(gzip.compress(whole[:-1]))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte: not an idx file of bytes, or cut short"):
        decode.mnist(tmp_path, 0)


def test_several_processes_that_ask_at_once_decode_once(
    start: Callable[..., subprocess.Popen[bytes]], project: Path
) -> None:
    crew = [start("harness.sweep", "tiny.yaml", "--only", "mask=dense,seed=0", "--workers", "2") for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].decode() for process in crew]
    assert [process.returncode for process in crew] == [0, 0], outputs
    (data,) = (project / "runs" / "stages" / "data").glob("*/*")
    assert [p.name for p in data.glob("result-*")] == ["result-0001.json"]
    assert len(list(data.glob("*.safetensors"))) == 1


def test_a_data_set_of_ones_own_is_keyed_by_its_code_and_its_folder(sweep: Run, project: Path) -> None:
    (project / "mine.py").write_text(
        "import numpy as np\n\ndef load(folder):\n    images = np.load(folder / 'x.npy')\n"
        "    labels = np.arange(len(images)) % 2\n    return (images, labels), (images, labels)\n"
    )
    (project / "pixels").mkdir()
    np.save(project / "pixels" / "x.npy", np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8))
    text = (project / "tiny.yaml").read_text().replace("dataset: digits", "dataset: {mine: {folder: ./pixels}}")
    (project / "tiny.yaml").write_text(
        text.replace('thin: "./thin.py:build"', 'thin: "./thin.py:build", mine: "./mine.py:load"')
    )
    done = sweep("tiny.yaml", "--only", "mask=dense,seed=0")
    assert done.returncode == 0, done.stderr
    np.save(project / "pixels" / "x.npy", np.zeros((80, 8, 8), np.uint8))
    assert "0 todo" not in sweep("tiny.yaml", "--only", "mask=dense,seed=0", "--plan").stdout
    assert sweep("tiny.yaml", "--only", "mask=dense,seed=0", "--plan").stdout.count("to run       1") == 2


def test_a_data_set_that_is_made_by_code_alone_needs_no_folder(sweep: Run, project: Path) -> None:
    (project / "mine.py").write_text(
        "import numpy as np\n\ndef load():\n    images = np.arange(1024, dtype=np.uint8).reshape(16, 8, 8)\n"
        "    labels = np.arange(16) % 2\n    return (images, labels), (images, labels)\n"
    )
    text = (project / "tiny.yaml").read_text().replace("dataset: digits", "dataset: mine")
    (project / "tiny.yaml").write_text(
        text.replace('thin: "./thin.py:build"', 'thin: "./thin.py:build", mine: "./mine.py:load"')
    )
    assert not (project / "data").exists()
    done = sweep("tiny.yaml", "--only", "mask=dense,seed=0")
    assert done.returncode == 0, done.stderr


def test_fetching_says_what_it_knows() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "data", "fetch", "cifar"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "did you mean 'cifar10'?" in done.stderr


# Real images, where they are at hand ----------------------------------------------------------------------------------

needs_images = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the development images are not at {SHARED}")


def unpack(name: str, folder: Path, layout: str) -> None:
    subprocess.run(
        [sys.executable, str(SHARED / "unpack.py"), name, str(folder), "--as", layout], check=True, timeout=300
    )


@needs_images
def test_mnist_is_read_whole(tmp_path: Path) -> None:
    shutil.copytree(SHARED / "mnist", tmp_path / "MNIST" / "raw")
    found = decode.mnist(tmp_path, 0)
    assert found.train_images.shape == (60_000, 28, 28, 1)
    assert found.test_images.shape == (10_000, 28, 28, 1)
    assert np.bincount(found.train_labels)[:3].tolist() == [5923, 6742, 5958]
    located = find_source(Choice("mnist"), DATASETS["mnist"], tmp_path, tmp_path / "cache")
    assert not located.missing


@needs_images
def test_tiny_imagenet_is_read_in_its_official_layout(tmp_path: Path) -> None:
    unpack("tin20_500x50", tmp_path, "tiny")
    found = decode.tinyimagenet(tmp_path, 0)
    assert found.train_images.shape == (10_000, 64, 64, 3)
    assert found.test_images.shape == (1_000, 64, 64, 3)
    assert found.note == "the official validation split is the test split"
    assert set(np.bincount(found.test_labels)) == {50}


@needs_images
@pytest.mark.slow
def test_cifar_pictures_train_resnet18_for_an_epoch(sweep: Run, project: Path) -> None:
    unpack("cifar10_jpegq75", project / "all", "imagefolder")
    for split, each in (("train", 160), ("test", 40)):
        for folder in (project / "all" / split).iterdir():
            (project / "pictures" / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:each]:
                file.rename(project / "pictures" / split / folder.name / file.name)
    (project / "cifar.yaml").write_text(
        "name: cifar_jpeg\nprotocol: {preset: quick, epochs: 1, milestones: [], warmup: 0.5}\n"
        "grid: {dataset: 'imagefolder:./pictures', arch: resnet18, mask: random, sparsity: 90%}\ntables: [any-mask]\n"
    )
    done = sweep("cifar.yaml", timeout=560)
    assert done.returncode == 0, done.stderr
    assert "imagefolder:./pictures" in done.stdout
