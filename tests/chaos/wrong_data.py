"""Broken images and data sets, with what must be said of each."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.chaos.test_masks_fuzz import READ, SAID, Evil

Spoil = Callable[[Path], None]


def picture(mode: str = "RGB", size: int = 12, form: str = "PNG", number: int = 0) -> bytes:
    """Return noise as an image file."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, form)
    return buffer.getvalue()


def folder_of(root: Path) -> Path:
    """Write an image folder of two classes."""
    for number, place in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (root / place).mkdir(parents=True)
        for index in range(2):
            (root / place / f"{index}.png").write_bytes(picture(number=2 * number + index))
    return root


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", more: bytes = b"") -> bytes:
    """Return a PNG that says it is of some size, whatever it holds."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400).save(buffer, "PNG")
    return buffer.getvalue()


def wrong_images() -> dict[str, tuple[bytes, str]]:
    """Return files that are no images, or none for a data set, with what must be said of each."""
    jpeg, plain, no = picture(form="JPEG"), picture(), "not a readable image"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n(%pipe%touch planted-eps) (w) file\n%%EOF\n"
    text = zlib.compress(b"\0" * 2**26)
    cases = {
        "bomb.png": (png(50_000, 50_000), no),
        "bomb-below-pillows-limit.png": (png(12_000, 12_000, b"\0" * 1000), "at most 67,108,864 are allowed"),
        "bomb-of-a-line.png": (png(2**31 - 1, 1), no),
        "no-pixels.png": (png(0, 0), no),
        "text-bomb.png": (png(12, 12, b"\0" * 444, chunk(b"zTXt", b"k\0\0" + text)), ""),
        "says-2-GB.png": (plain.replace(plain[plain.index(b"IDAT") - 4 :][:4], struct.pack(">I", 2**31 - 1)), ""),
        "noise.png": (random.Random(1).randbytes(4000), no),
        "empty.png": (b"", no),
        "zeros.jpg": (b"\0" * 4000, no),
        "eps.png": (eps, no),
        "script.png": (b"#!/bin/sh\ntouch planted-sh\n", no),
        "huge.ppm": (b"P6 99999 99999 255\n" + b"\0" * 100, no),
        "huge.bmp": (
            b"BM" + struct.pack("<IHHIIiiHHIIIIII", 99, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
            no,
        ),
        "huge.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;", no),
        "ring.tif": (b"II*\0\x08\0\0\0" + b"\0\0" + b"\x08\0\0\0", no),
        "sixteen.png": (sixteen_bits(), "which 8 bits a channel cannot hold"),
        "floats.tif": (picture("F", form="TIFF"), "which 8 bits a channel cannot hold"),
        "integers.tif": (picture("I", form="TIFF"), "which 8 bits a channel cannot hold"),
    }
    for part in (2, 3, 10):
        cases[f"cut-{part}.jpg"] = (jpeg[: len(jpeg) - len(jpeg) // part], no)
        cases[f"cut-{part}.png"] = (plain[: len(plain) - len(plain) // part], no)
    return cases


def one_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "b")


def no_images_in_a_class(root: Path) -> None:
    for file in (root / "train" / "b").iterdir():
        file.write_text("") if file.suffix == ".txt" else file.unlink()


def no_test(root: Path) -> None:
    shutil.rmtree(root / "test")


def a_train_that_is_a_file(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").write_text("")


def sizes_that_differ(root: Path) -> None:
    (root / "train" / "b" / "1.png").write_bytes(picture(size=13))


def a_link_to_itself(root: Path) -> None:
    (root / "train" / "a" / "loop.png").symlink_to("loop.png")


def one_pixel(root: Path) -> None:
    for file in root.rglob("*.png"):
        file.write_bytes(picture(size=1))


def many_modes(root: Path) -> None:
    for number, mode in enumerate(("L", "RGBA", "P", "LA", "1", "RGB")):
        (root / "train" / "a" / f"m{number}.png").write_bytes(picture(mode))
    (root / "train" / "b" / "cmyk.jpg").write_bytes(picture("CMYK", form="JPEG"))


def a_ring_of_folders(root: Path) -> None:
    (root / "train" / "a" / "ring").symlink_to(root / "train", target_is_directory=True)
    (root / "train" / "b" / "up").symlink_to(root, target_is_directory=True)


def names_of_bytes(root: Path) -> None:
    shutil.copy(root / "train" / "a" / "0.png", os.fsencode(root / "train" / "a") + b"/\xff\xfe\n.png")
    for split in ("train", "test"):
        os.rename(root / split / "b", os.fsencode(root / split) + b"/b\xff")


def a_bad_image_of_bytes(root: Path) -> None:
    (root / "train" / "a" / os.fsdecode(b"\xff\x1b[31m.png")).write_bytes(b"none")


def a_pipe(root: Path) -> None:
    os.mkfifo(root / "train" / "a" / "pipe.png")


def endless_files(root: Path) -> None:
    (root / "train" / "a" / "zero.png").symlink_to("/dev/zero")
    (root / "train" / "a" / "folder.png").mkdir()


def a_file_larger_than_memory(root: Path) -> None:
    with (root / "train" / "a" / "hole.png").open("wb") as file:
        file.truncate(3 * 2**29)


FOLDERS: dict[Spoil, str] = {
    one_class: f"{SAID}*1 classes",
    no_images_in_a_class: f"{SAID}*holds no image",
    no_test: f"{SAID}*needs train/ and test/",
    a_train_that_is_a_file: f"{SAID}*needs train/ and test/",
    sizes_that_differ: f"{SAID}*set resize: 32",
    a_link_to_itself: f"{SAID}*Too many levels of symbolic links",
    one_pixel: f"{READ}[4, 3, 1, 1]",
    many_modes: f"{READ}[11, 3, 12, 12]",
    a_ring_of_folders: f"{READ}[4, 3, 12, 12]",
    names_of_bytes: READ,
    a_bad_image_of_bytes: f"{SAID}*not a readable image",
    a_pipe: f"{READ}[4, 3, 12, 12]",
    endless_files: f"{READ}[4, 3, 12, 12]",
    a_file_larger_than_memory: f"{SAID}*not a readable image",
}


def idx(shape: tuple[int, ...], data: bytes, head: bytes = b"") -> bytes:
    return (head or bytes((0, 0, 8, len(shape)))) + b"".join(struct.pack(">I", n) for n in shape) + data


def idx_files(images: bytes, labels: bytes | None = None) -> dict[str, bytes]:
    """Return the four files of MNIST, the training images and labels as told."""
    right = idx((4, 8, 8), bytes(256)), idx((4,), bytes((0, 1, 0, 1)))
    return {
        "train-images-idx3-ubyte": images,
        "train-labels-idx1-ubyte": right[1] if labels is None else labels,
        "t10k-images-idx3-ubyte": right[0],
        "t10k-labels-idx1-ubyte": right[1],
    }


def wrong_idx() -> dict[str, dict[str, bytes]]:
    """Return sets of idx files of which one is wrong; a name may end in .gz, a pipe has no bytes."""
    images, none = idx((4, 8, 8), bytes(256)), "train-images-idx3-ubyte"
    packed = gzip.compress(images)
    rest = {name: data for name, data in idx_files(images).items() if name != none}
    return {
        "idx-cut": idx_files(images[:-1]),
        "idx-head-cut": idx_files(images[:9]),
        "idx-empty": idx_files(b""),
        "idx-of-exabytes": idx_files(idx((2**32 - 1,) * 3, bytes(256))),
        "idx-of-none": idx_files(idx((0, 8, 8), b"")),
        "idx-of-many-dimensions": idx_files(idx((1,) * 200, bytes(1))),
        "idx-of-floats": idx_files(idx((4, 8, 8), bytes(256), b"\0\0\x0d\3")),
        "idx-labels-of-images": idx_files(images, images),
        "idx-fewer-labels": idx_files(images, idx((3,), bytes(3))),
        "idx-labels-with-a-hole": idx_files(images, idx((4,), bytes((0, 7, 0, 7)))),
        "idx-bomb": {f"{none}.gz": gzip.compress(idx((4, 8, 8), bytes(2**28)), 1), **rest},
        "idx-packed-cut": {f"{none}.gz": packed[:-12], **rest},
        "idx-packed-wrong": {f"{none}.gz": packed[:12] + b"\xff" * 9 + packed[21:], **rest},
        "idx-packed-none": {f"{none}.gz": b"none", **rest},
    }


def cifar(root: Path, folder: Path) -> None:
    """Write files of CIFAR-10's names that would run code if they were unpickled."""
    (root / "cifar-10-batches-py").mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (root / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Evil(folder, "touch")))
