"""Readers of data sets: each decodes its files once into uint8 arrays.

CIFAR's files are read by torchvision, which checks their md5. Its MNIST takes no gzipped files and prefers
`processed/*.pt`, which no key knows of; its image loader reads 16-bit and floating-point images clipped to 8 bits, and
files of any size in any of Pillow's formats.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from harness.errors import UserError
from harness.imagefolder import list_imagefolder
from harness.words import count

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What an image may be inside, whatever its name: others Pillow would hand to programs such as Ghostscript."""
MOST_PIXELS = 2**26
"""Pixels of an image: a file of some kilobytes can say that it holds billions."""
MOST_BYTES = 2**28
"""Bytes of an image's file."""
EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
MOST_NAMED = 3
"""Classes that a note names."""
MOST_IDX = 2**30
"""Bytes of an idx file: MNIST's largest has 47 million."""


@dataclass(frozen=True)
class Decoded:
    """Images [N, H, W, C] in uint8 and labels [N], of both splits."""

    train_images: Pixels
    train_labels: Labels
    test_images: Pixels
    test_labels: Labels
    classes: tuple[str, ...]
    note: str = ""
    """What a reader of a table must know of the splits."""


def resize(images: Pixels, size: int) -> Pixels:
    """Resize [N, H, W, C] images to size x size, bilinear."""
    if images.shape[1:3] == (size, size):
        return images
    out = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for index, image in enumerate(images):
        scaled = Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else image).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        out[index] = np.asarray(scaled).reshape(size, size, -1)
    return out


def stratified(labels: Labels, share: float, salt: str) -> npt.NDArray[np.bool_]:
    """Mark a share of every class, at least one each; which ones follows from the salt alone."""
    chosen = np.zeros(len(labels), bool)
    seed = int.from_bytes(hashlib.sha256(f"split/{salt}".encode()).digest()[:8], "big")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    for label in np.unique(labels):
        mine = order[labels[order] == label]
        chosen[mine[: max(1, round(share * len(mine)))]] = True
    return chosen


def digits(path: Path, size: int) -> Decoded:
    """scikit-learn's 1,797 handwritten digits, 8x8; with no official test split, a fixed stratified fifth is it."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    test = stratified(labels, 0.2, "digits test")
    return Decoded(
        images[~test],
        labels[~test],
        images[test],
        labels[test],
        tuple(map(str, range(10))),
        "test is a fixed stratified fifth of scikit-learn's digits",
    )


def _cifar(name: str, path: Path) -> Decoded:
    import torchvision

    try:
        sets = [getattr(torchvision.datasets, name)(path, train=train, download=False) for train in (True, False)]
    except (RuntimeError, OSError):
        raise UserError(
            f"{path}: the {name} files differ from the official ones (md5); fetch them anew, "
            "or use other versions of the images as imagefolder:PATH"
        ) from None
    arrays = [(s.data, np.asarray(s.targets, np.int64)) for s in sets]
    return Decoded(*arrays[0], *arrays[1], tuple(sets[0].classes))


def cifar10(path: Path, size: int) -> Decoded:
    """CIFAR-10 (Krizhevsky, 2009), official batches, their md5 checked by torchvision."""
    return _cifar("CIFAR10", path)


def cifar100(path: Path, size: int) -> Decoded:
    """CIFAR-100 (Krizhevsky, 2009), official batches, their md5 checked by torchvision."""
    return _cifar("CIFAR100", path)


def mnist(path: Path, size: int) -> Decoded:
    """MNIST (LeCun et al., 1998), the four idx files, gzipped or not."""
    return _idx(path / "MNIST" / "raw")


def fashion_mnist(path: Path, size: int) -> Decoded:
    """Fashion-MNIST (Xiao et al., 2017), the four idx files, gzipped or not."""
    return _idx(path / "FashionMNIST" / "raw")


def _idx(path: Path) -> Decoded:
    arrays = [
        _read_idx(path, f"{split}-{what}")
        for split in ("train", "t10k")
        for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    names = tuple(map(str, range(int(arrays[1].max()) + 1)))
    return Decoded(
        arrays[0][..., None], arrays[1].astype(np.int64), arrays[2][..., None], arrays[3].astype(np.int64), names
    )


def _read_idx(folder: Path, name: str) -> Pixels:
    path = folder / name
    dimensions = int(name.partition("-idx")[2][0])
    try:
        with path.open("rb") if path.exists() else gzip.open(folder / f"{name}.gz") as file:
            head = file.read(4 + 4 * dimensions)
            shape = [int.from_bytes(head[at : at + 4], "big") for at in range(4, 4 + 4 * dimensions, 4)]
            size = math.prod(shape)
            data = file.read(size + 1) if size <= MOST_IDX else b""  # no more than it says it holds: a gzip bomb
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the file anew") from None
    if head[:4] != bytes((0, 0, 8, dimensions)) or len(data) != size or not size:
        raise UserError(f"{path}: not an idx file of bytes, or cut short; fetch the file anew")
    return np.frombuffer(data, np.uint8).reshape(shape)


class Picture(NamedTuple):
    """An image as torchvision's `default_loader` reads it: as it is stored, in RGB, whatever EXIF or alpha say."""

    image: Image.Image
    turned: bool
    """EXIF asks viewers to turn or mirror it."""
    clear: bool
    """Some of its pixels are not opaque."""


def _open(file: Path) -> Picture:
    try:
        if (size := file.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{size:,} bytes; at most {MOST_BYTES:,} are allowed")
        held = io.BytesIO(file.read_bytes())  # a file would take memory for as many bytes as its content claims to have
        with warnings.catch_warnings(action="ignore"), Image.open(held, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height} pixels; at most {MOST_PIXELS:,} are allowed")
            if image.mode not in EIGHT_BITS:
                raise ValueError(f"its mode is {image.mode}, which 8 bits a channel cannot hold")
            image.load()
            return Picture(image.convert("RGB"), _turned(image), _clear(image))
    except MemoryError:
        raise
    except Exception as error:  # junk raises anything: struct.error, IndexError, zlib.error
        raise UserError(f"{file}: not a readable image ({error}); mend or remove it") from None


def _turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # what EXIF says changes no pixel, so that junk there is no fault
        return False


def _clear(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


class Loaded(NamedTuple):
    """Images [N, H, W, 3], how many of them EXIF would turn, and how many are not opaque."""

    pixels: Pixels
    turned: int
    clear: int


def _load(files: Sequence[Path], size: int) -> Loaded:
    first = _open(files[0]).image
    shape = (size, size) if size else (first.height, first.width)
    out = np.empty((len(files), *shape, 3), np.uint8)
    turned = clear = 0
    for index, file in enumerate(files):
        picture = _open(file)
        image, turned, clear = picture.image, turned + picture.turned, clear + picture.clear
        if size:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        elif (image.height, image.width) != shape:
            raise UserError(
                f"{file}: {image.width}x{image.height} pixels where {files[0].name} has {first.width}x{first.height}; "
                "set resize: 32 (or another size) in the protocol"
            )
        out[index] = np.asarray(image)
    return Loaded(out, turned, clear)


def imagefolder(path: Path, size: int) -> Decoded:
    """Read PATH/train/CLASS/** and PATH/test/CLASS/** (or val/, which then is the test split)."""
    found = list_imagefolder(path)
    splits = [found.files[split] for split in ("train", found.test)]
    train, tests = (_load([file for file, _ in split], size) for split in splits)
    if train.pixels.shape[1:] != tests.pixels.shape[1:]:
        raise UserError(
            f"{path}: train/ and {found.test}/ hold images of different sizes; "
            "set resize: 32 (or another) in the protocol"
        )
    decoded = Decoded(train.pixels, _labels(splits[0]), tests.pixels, _labels(splits[1]), found.classes)
    turned, clear = train.turned + tests.turned, train.clear + tests.clear
    notes = ["val/ is the test split"] if found.test == "val" else []
    notes += _oddities(decoded)
    notes += [f"EXIF orientation ignored: {count(turned, 'image')}"] if turned else []
    notes += [f"alpha dropped: {count(clear, 'image')} with transparent pixels"] if clear else []
    return replace(decoded, note="; ".join(notes))


def _labels(split: Sequence[tuple[Path, int]]) -> Labels:
    return np.asarray([label for _, label in split], np.int64)


def _oddities(decoded: Decoded) -> list[str]:
    """Return what makes a test accuracy say less than it seems to: images in both splits, or with several labels."""
    said = []
    tested = np.bincount(decoded.test_labels, minlength=len(decoded.classes))
    if bare := [name for name, number in zip(decoded.classes, tested, strict=True) if not number]:
        more = f" and {len(bare) - MOST_NAMED} more" if len(bare) > MOST_NAMED else ""
        said.append(f"no test image of {len(bare)} of {len(tested)} classes ({', '.join(bare[:MOST_NAMED])}{more})")
    labels: dict[bytes, set[int]] = {}
    trained = [_digest(image) for image in decoded.train_images]
    for pixels, label in zip(trained, decoded.train_labels.tolist(), strict=True):
        labels.setdefault(pixels, set()).add(label)
    if unclear := sum(len(labels[pixels]) > 1 for pixels in trained):
        said.append(f"{unclear:,} of {len(trained):,} training images are in several classes, pixel by pixel")
    if known := sum(_digest(image) in labels for image in decoded.test_images):
        said.append(f"{known:,} of {len(decoded.test_images):,} test images are training images too, pixel by pixel")
    return said


def _digest(image: Pixels) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def tinyimagenet(path: Path, size: int) -> Decoded:
    """Tiny-ImageNet (Stanford CS231n), official layout; the official validation split is the test split."""
    root = path / "tiny-imagenet-200"
    lists = (root / "wnids.txt", root / "val" / "val_annotations.txt")
    try:
        classes = tuple(lists[0].read_text().split())
        number = {name: label for label, name in enumerate(classes)}
        lines = [line.split("\t") for line in lists[1].read_text().splitlines()]
        if odd := [name for name in (*classes, *(line[0] for line in lines)) if _hidden(name)]:
            raise ValueError(f"{odd[0]!r} is no plain name of a folder or file")
        test = [(root / "val" / "images" / line[0], number[line[1]]) for line in lines]
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"{lists[1]} and {lists[0].name} cannot be used ({error}); unpack the official zip anew"
        ) from None
    train = [
        (file, number[name])
        for name in classes
        for file in sorted((root / "train" / name / "images").glob("*.JPEG"))
        if not _hidden(file.name)
    ]
    if not train or not test:
        raise UserError(f"{root}: holds no images; unpack the official zip anew")
    arrays = [(_load([file for file, _ in split], size).pixels, _labels(split)) for split in (train, test)]
    return Decoded(*arrays[0], *arrays[1], classes, "the official validation split is the test split")


def _hidden(name: str) -> bool:
    """Return whether a name leads to what the key leaves out: a hidden file, or one elsewhere."""
    return name.startswith(".") or Path(name).name != name


def fetch_tinyimagenet(root: str, train: bool, download: bool) -> None:
    """Download Tiny-ImageNet into a folder, with torchvision's own downloader."""
    from torchvision.datasets.utils import download_and_extract_archive

    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    if download and train:
        download_and_extract_archive(url, root, md5="90528d7ca1a48142e341f4ef8d21d0de", remove_finished=True)


def stand_in(channels: int, size: int, train: int, test: int, classes: int) -> Decoded:
    """Return noise in the shape of a data set, for a sweep's miniature: uint8 [N, size, size, channels]."""
    draws = np.random.default_rng(0)
    images = [draws.integers(0, 256, (count, size, size, channels), dtype=np.uint8) for count in (train, test)]
    labels = [np.arange(count, dtype=np.int64) % classes for count in (train, test)]
    note = "the images are noise: these numbers mean nothing"
    return Decoded(images[0], labels[0], images[1], labels[1], tuple(map(str, range(classes))), note)
