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
from harness.check import load_sweep
from harness.errors import UserError
from harness.names import Choice
from harness.planfile import keep_methods
from harness.planner import make_plan
from harness.sources import Source, find_source
from harness.store import Store
from harness.train import decode, loop
from harness.train.decode import Decoded
from harness.train.images import encode
from harness.train.order import Order
from harness.train.stages import run_stage
from tests.conftest import SHARED


class Watcher(loop.Watcher):
    """Sees nothing."""


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


# What is hashed is what is decoded ------------------------------------------------------------------------------------


def ppm(path: Path, number: int) -> None:
    """Write an image whose last byte is a pixel's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    path.write_bytes(b"P6 4 3 255\n" + pixels.tobytes())


READ = (
    *(f"train/{label}/{name}" for label in ("a", "b") for name in ("0.ppm", "deep/er/1.PPM", "b.png/2.jpg")),
    *("train/a.b/0.ppm", "train/a.b/1.ppm", "test/a/0.ppm", "test/a.b/0.ppm"),
)
LEFT_OUT = (
    *("train/a/.0.ppm", "train/a/._0.ppm", "train/b/.ipynb_checkpoints/0-checkpoint.ppm", "train/b/deep/.x/y/0.ppm"),
    *("train/.c/0.ppm", "test/.ipynb_checkpoints/0.ppm", "train/loose.ppm", "test/loose.ppm", "other/a/0.ppm"),
    *("val/a/0.ppm", "__MACOSX/train/a/0.ppm", "train/a/Thumbs.db", "train/a/README", "train/a/0.ppm.txt"),
)


def folders(root: Path, reverse: bool = False) -> list[Path]:
    """Write an image folder with all that lies in one, and links; return its files and those elsewhere."""
    away = root.with_name(f"{root.name}-away")
    files = [*(root / name for name in (*READ, *LEFT_OUT)), *(away / f"{n}.ppm" for n in range(3)), away / ".h.ppm"]
    for number, file in list(enumerate(files))[:: -1 if reverse else 1]:
        ppm(file, number)
    links = {
        root / "train" / "a" / "more": away,
        root / "train" / "b" / "more": away,
        root / "train" / "linked": away,
        root / "train" / "a" / "one.ppm": away / "0.ppm",
        root / "train" / "a" / "deep" / "up": root / "train" / "a",
        root / "train" / "a" / "ring": root / "train",
        root / "test" / "b": root / "train" / "a" / "b.png",
    }
    for link, target in list(links.items())[:: -1 if reverse else 1]:
        link.symlink_to(target, target_is_directory=target.is_dir())
    return files


def tiny_files(root: Path) -> list[Path]:
    """Write Tiny-ImageNet's layout, with hidden files."""
    tiny = root / "tiny-imagenet-200"
    names = [f"train/{n}/images/{h}{n}_{i}.JPEG" for n in ("n1", "n2") for i in range(2) for h in ("", ".", "._")]
    images = [tiny / name for name in [*names, "val/images/val_0.JPEG", "val/images/.val_0.JPEG"]]
    for number, file in enumerate(images):
        ppm(file, number)
    (tiny / "wnids.txt").write_text("n1\nn2\n")
    (tiny / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn2\t0\t0\t9\t9\n")
    (tiny / "train" / "n1" / "n1_boxes.txt").write_text("n1_0.JPEG\t0\t0\t9\t9\n")
    return [file for file in tiny.rglob("*") if file.is_file()]


def idx_files(root: Path) -> list[Path]:
    """Write MNIST's four files, one of them gzipped, and one both ways."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(
            bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, *range(8)))
        )
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1, 0, 0, 0, 2, 1, 0)))
    labels = raw / "t10k-labels-idx1-ubyte"
    labels.with_name(f"{labels.name}.gz").write_bytes(gzip.compress(labels.read_bytes()))
    labels.unlink()
    images = raw / "t10k-images-idx3-ubyte"
    images.with_name(f"{images.name}.gz").write_bytes(gzip.compress(images.read_bytes()))
    return list(raw.iterdir())


def own_files(root: Path) -> list[Path]:
    """Write a folder for a function of one's own, with a hidden file."""
    for number, name in enumerate(("a.ppm", "deep/b.ppm", ".hidden/c.ppm", ".d")):
        ppm(root / name, number)
    return [file for file in root.rglob("*") if file.is_file()]


def own_reader(folder: Path, size: int) -> Decoded:
    """Read whatever is there, as a function of one's own may."""
    images = np.stack([np.frombuffer(f.read_bytes()[-36:], np.uint8) for f in sorted(folder.rglob("*")) if f.is_file()])
    labels = np.arange(len(images))
    return Decoded(images, labels, images, labels, tuple(map(str, labels)))


KINDS: dict[str, tuple[Callable[[Path], list[Path]], Callable[[Path, int], Decoded]]] = {
    "imagefolder": (folders, decode.imagefolder),
    "tinyimagenet": (tiny_files, decode.tinyimagenet),
    "mnist": (idx_files, decode.mnist),
    "own": (own_files, own_reader),
}


def seen(kind: str, root: Path, cache: Path) -> tuple[str, object]:
    """Return what the key holds of a data set, and what its reader makes of it."""
    choice = Choice(kind, (), str(root) if kind in ("imagefolder", "own") else "")
    found = find_source(choice, DATASETS.get(kind), root, cache)
    assert not found.missing
    try:
        read = KINDS[kind][1](found.path, 0)
    except UserError as error:
        return found.content, str(error)
    return found.content, [
        bytes(part) for part in (read.train_images, read.train_labels, read.test_images, read.test_labels)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_changes_the_images_changes_the_key(kind: str, tmp_path: Path) -> None:
    """Every file in turn, one bit of it: of a folder of images, the key changes where the images do, and only there."""
    files = KINDS[kind][0](tmp_path / "set")
    content, images = seen(kind, tmp_path / "set", tmp_path / "cache" / "before")
    assert not isinstance(images, str)
    changed = {}
    for number, file in enumerate(files):
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        after = seen(kind, tmp_path / "set", tmp_path / "cache" / str(number))
        changed[file.relative_to(tmp_path).as_posix()] = (after[0] != content, after[1] != images)
        file.write_bytes(data)
    assert [name for name, (key, pixels) in changed.items() if pixels and not key] == []
    if kind == "imagefolder":
        assert [name for name, (key, pixels) in changed.items() if key and not pixels] == []
        read = {*(f"set/{name}" for name in READ), *(f"set-away/{n}.ppm" for n in range(3))}
        assert {name for name, (key, _) in changed.items() if key} == read


def test_an_image_folder_is_read_by_names_through_links_and_never_twice_round(tmp_path: Path) -> None:
    folders(tmp_path / "set")
    found = decode.imagefolder(tmp_path / "set", 0)
    assert found.classes == ("a", "a.b", "b", "linked")
    assert np.bincount(found.train_labels).tolist() == [3 + 1 + 3, 2, 3 + 3, 3]
    assert np.bincount(found.test_labels, minlength=4).tolist() == [1, 1, 1, 0]
    assert found.note == (
        "no test image of 1 of 4 classes (linked); 10 of 18 training images are in several classes, pixel by pixel; "
        "1 of 3 test images are training images too, pixel by pixel"
    )


def test_the_order_in_which_a_folder_was_written_is_of_no_consequence(tmp_path: Path) -> None:
    for name, reverse in (("one", False), ("other", True)):
        folders(tmp_path / name / "set", reverse)
    one, other = (seen("imagefolder", tmp_path / name / "set", tmp_path / "cache") for name in ("one", "other"))
    assert one == other


def test_torchvision_reads_the_same_images(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    files = {f"train/{label}/{name}": 1 for label in ("b", "a-b", "a") for name in ("x", "x/y", "x-y", ".")}
    root = tree(tmp_path / "x", files | {"test/a": 1}, mode="RGBA")
    (root / "train" / "a" / "more").symlink_to(root / "train" / "b" / "x", target_is_directory=True)
    turn = Image.Exif()
    turn[0x0112] = 6
    Image.fromarray(np.arange(432, dtype=np.uint8).reshape(12, 12, 3)).save(root / "train" / "a" / "t.jpg", exif=turn)
    theirs = ImageFolder(str(root / "train"))
    ours = decode.imagefolder(root, 0)
    assert ours.classes == tuple(theirs.classes)
    pairs = sorted((label, np.asarray(image).tobytes()) for image, label in theirs)
    assert (
        sorted((label, image.tobytes()) for label, image in zip(ours.train_labels, ours.train_images, strict=True))
        == pairs
    )


@pytest.mark.parametrize("name", [name for name, entry in DATASETS.items() if entry.files])
def test_only_what_a_reader_unzips_is_there_when_it_is_zipped(name: str, tmp_path: Path) -> None:
    for file in DATASETS[name].files:
        (tmp_path / f"{file}.gz").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(b"x"))
    found = find_source(Choice(name), DATASETS[name], tmp_path, tmp_path / "cache")
    assert bool(found.missing) == (name not in ("mnist", "fashion_mnist"))


def test_a_hidden_name_counts_below_the_folder_and_not_above_it(tmp_path: Path) -> None:
    folders(tmp_path / "set")
    plain = seen("imagefolder", tmp_path / "set", tmp_path / "cache")
    (tmp_path / ".hidden").symlink_to(tmp_path / "set", target_is_directory=True)
    assert seen("imagefolder", tmp_path / ".hidden", tmp_path / "cache") == plain


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    for place in ("train/a/9.png", "train/a/deep", "test/b"):
        root = tree(tmp_path / place.replace("/", "-"), {"train/a": 1, "train/b": 1, "test/a": 1})
        (root / place).symlink_to("gone")
        assert f"{place}: is a link to nothing (gone)" in source(root, tmp_path / "cache").missing


OWN = """
import numpy as np

def load(folder):
    split = np.zeros((2, 8, 8), np.uint8), [0, 1]
    return split, split
"""


@pytest.mark.parametrize("name", ["'imagefolder:./set'", "{mine: {folder: ./set}}"])
def test_files_that_changed_since_they_were_planned_with_are_refused(name: str, tmp_path: Path) -> None:
    """The key says what is read, also where a worker waited for days."""
    tree(tmp_path / "set", {"train/a": 1, "train/b": 1, "test/a": 1})
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "x.yaml").write_text(
        f"name: x\nprotocol: quick\nuse: {{mine: './mine.py:load'}}\n"
        f"grid: {{dataset: {name}, arch: resnet20, mask: dense}}\n"
    )
    store = Store(tmp_path / "runs")
    plan = make_plan(load_sweep(tmp_path / "x.yaml"), store, tmp_path)
    keep_methods(plan, store)
    stage = next(stage for stage in plan.stages.values() if stage.kind == "data")
    order = Order(stage.key, stage.kind, stage.spec, str(store.root), str(tmp_path), (), {}, stage.place)
    kept = run_stage(order, Watcher()).draft.read_bytes()
    assert run_stage(order, Watcher()).draft.read_bytes() == kept
    shutil.copy(tmp_path / "set" / "train" / "a" / "0.png", tmp_path / "set" / "train" / "b" / "9.png")
    with pytest.raises(UserError, match=r"the files at .*set are not those that were planned with; give the sweep"):
        run_stage(order, Watcher())
    shutil.rmtree(tmp_path / "set" / "test")
    with pytest.raises(UserError, match=r"needs train/ and test/|are not those that were planned with"):
        run_stage(order, Watcher())


# Splits that disagree -------------------------------------------------------------------------------------------------

ACCENT, APART = "b\u00e9b\u00e9", "be\u0301be\u0301"
"""The same name in Unicode's composed and decomposed form."""


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        (
            {"test/Bee": 2},
            r"'Bee' \(2 images\) of test/ is no class of train/, which has 'bee' for 'Bee'; .*/test/Bee .*/test/bee",
        ),
        ({f"train/{ACCENT}": 1, f"test/{APART}": 1}, "in another Unicode form; rename it: mv"),
        ({f"train/{ACCENT}": 1, f"train/{APART}": 1}, "two Unicode forms; unite the folders"),
        (
            {"test/yak": 3, "test/gnu": 1},
            r"'gnu' \(1 image\), 'yak' \(3 images\) of test/ are no class of train/; name",
        ),
        ({"train/cow": 0}, "train/cow: holds no image; fill or remove the class"),
    ],
)
def test_splits_of_other_classes_are_refused_by_the_plan_and_the_reader(
    counts: dict[str, int], said: str, tmp_path: Path
) -> None:
    root = tree(tmp_path / "x", {"train/ant": 1, "train/bee": 1, "test/ant": 1, **counts})
    with pytest.raises(UserError, match=said) as refused:
        decode.imagefolder(root, 0)
    assert source(root, tmp_path / "cache").missing == f"imagefolder: {refused.value}"


def test_an_empty_or_hidden_folder_of_another_name_in_test_is_no_fault(tmp_path: Path) -> None:
    root = tree(tmp_path / "x", {"train/a": 1, "train/A": 1, "test/A": 1, "test/B": 0, "test/.c": 1})
    assert decode.imagefolder(root, 0).classes == ("A", "a"), "letters of both cases are classes of their own"


def test_what_a_reader_must_know_of_images_is_counted(tmp_path: Path) -> None:
    root = tree(tmp_path / "x", {"train/a": 3, "train/b": 3, "val/b": 2}, mode="RGBA")
    clean = decode.imagefolder(root, 0)
    assert clean.note == "val/ is the test split; no test image of 1 of 2 classes (a)", "opaque alpha is no matter"
    shutil.copy(root / "train" / "a" / "0.png", root / "train" / "b" / "again.png")
    shutil.copy(root / "train" / "a" / "1.png", root / "val" / "b" / "known.png")
    turn = Image.Exif()
    turn[0x0112] = 6
    plain = np.arange(432, dtype=np.uint8).reshape(12, 12, 3)
    Image.fromarray(plain).save(root / "train" / "a" / "turned.jpg", exif=turn)
    Image.fromarray(np.dstack([plain, plain[..., 0]])).save(root / "val" / "b" / "clear.png")
    found = decode.imagefolder(root, 0)
    assert found.note == (
        "val/ is the test split; no test image of 1 of 2 classes (a); 2 of 8 training images are in several classes, "
        "pixel by pixel; 1 of 4 test images are training images too, pixel by pixel; EXIF orientation ignored: "
        "1 image; alpha dropped: 1 image with transparent pixels"
    )
    assert np.array_equal(found.test_images[2], plain), "hidden colours are as they are stored"


def test_an_image_folder_is_read_and_val_is_test_and_said_so(tmp_path: Path) -> None:
    root = tree(tmp_path / "x", {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1}, mode="L")
    found = decode.imagefolder(root, 0)
    assert found.train_images.shape == (5, 12, 12, 3)
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1]
    assert found.classes == ("cat", "dog")
    assert "val/ is the test split" in found.note
    assert decode.imagefolder(root, 8).test_images.shape == (2, 8, 8, 3)


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
