"""Images as tensors on the device: the data stage's artifact, its splits, and batches drawn by seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from harness.errors import UserError
from harness.train.decode import Decoded, resize, stratified
from harness.train.draws import stream

EVAL_BATCH = 512
SCORING_BATCH = 50
MOST_OF_DEVICE = 0.25
"""Share of a device's free memory for a data set: network, activations and other trainings there come after it."""


def encode(decoded: Decoded, size: int, content: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Turn decoded arrays into the artifact's tensors (images [N, C, H, W]) and its text metadata.

    Raises UserError where the arrays are not a labelled image set.
    """
    tensors = {}
    for split in ("train", "test"):
        images, labels = (
            np.asarray(getattr(decoded, f"{split}_images")),
            np.asarray(getattr(decoded, f"{split}_labels")),
        )
        if images.ndim == 3:
            images = images[..., None]
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] not in (1, 3)
            or len(images) != len(labels)
            or not len(images)
        ):
            raise UserError(
                f"the data set's {split} split has images {images.dtype}{list(images.shape)} and {len(labels)} labels; "
                "it needs uint8 [N, H, W] or [N, H, W, 1 or 3] and as many labels"
            )
        if labels.min() < 0 or labels.max() >= len(decoded.classes):
            raise UserError(
                f"the data set's {split} labels lie outside its {len(decoded.classes)} classes; number them from 0 on"
            )
        counts = np.bincount(labels, minlength=len(decoded.classes))
        if split == "train" and counts.min() == 0:
            raise UserError(f"the data set has no training image of label {int(counts.argmin())}; labels run from 0 on")
        if size:
            images = resize(images, size)
        tensors[f"{split}.images"] = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        tensors[f"{split}.labels"] = torch.from_numpy(labels.astype(np.int64, copy=True))
    if tensors["train.images"].shape[1:] != tensors["test.images"].shape[1:]:
        raise UserError(
            f"train images are {list(tensors['train.images'].shape[1:])}, test images "
            f"{list(tensors['test.images'].shape[1:])} [C, H, W]; set resize: 32 (or another size) in the protocol"
        )
    mean, std = _moments(tensors["train.images"].numpy())
    about = {
        "classes": list(decoded.classes),
        "mean": mean,
        "std": std,
        "content": content,
        "note": decoded.note,
    }
    # One entry only: safetensors writes several in an order that changes from process to process.
    metadata = {"about": json.dumps(about, sort_keys=True)}
    return tensors, metadata


def _moments(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation by channel of images [N, C, H, W], in 0 .. 1, summed as whole numbers."""
    count = pixels.size / pixels.shape[1]
    sums = pixels.sum((0, 2, 3), dtype=np.uint64).astype(float)
    squares = [int(np.square(pixels[:, c], dtype=np.uint32).sum(dtype=np.uint64)) for c in range(pixels.shape[1])]
    mean = sums / count
    std = np.sqrt(np.maximum(np.array(squares, float) / count - mean**2, 1.0))
    return [round(m / 255, 8) for m in mean.tolist()], [round(s / 255, 8) for s in std.tolist()]


@dataclass(frozen=True)
class Split:
    """Labels [N] and images [N, C, H, W] in uint8: all that are stored, or only some rows of them."""

    stored: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """Return the images; a copy, where they are only some rows of what is stored."""
        return self.stored if self.rows is None else self.stored.index_select(0, self.rows)

    def pick(self, numbers: Tensor) -> Tensor:
        """Return images by their number in the split."""
        return self.stored.index_select(0, numbers if self.rows is None else self.rows[numbers])

    def cut(self, part: slice) -> Tensor:
        """Return images that follow each other."""
        return self.stored[part] if self.rows is None else self.stored.index_select(0, self.rows[part])


def fits(size: int, free: int | None) -> bool:
    """Say whether images of so many bytes are kept on a device with so many bytes free; None: it is the host itself."""
    return free is None or size <= MOST_OF_DEVICE * free


def _free(device: torch.device) -> int | None:
    """Return the bytes that tensors can still take on a device, None for the host."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # an earlier stage's, let go
    return int(torch.cuda.mem_get_info(device)[0]) + cached


class Images:
    """A data set for a device: train, dev and test splits, and how pixels are scaled.

    Images too large for the device stay in the mapped artifact, whose pages all processes of a node share; each batch
    is sent. `resident` decides it in place of their size.
    """

    def __init__(self, path: Path, spec: Mapping[str, Any], device: torch.device, resident: bool | None = None) -> None:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            about = json.loads(file.metadata()["about"])
        pixels, tests = tensors["train.images"], tensors["test.images"]
        labels = tensors["train.labels"]
        held = _held_out(spec["dev"], labels.numpy(), about["content"])
        mean, std = (about["mean"], about["std"]) if spec["normalize"] == "measured" else spec["normalize"]
        self.device = device
        self.classes = len(about["classes"])
        self.shape = tuple(pixels.shape[1:])
        self.mean = torch.tensor(mean, device=device).view(1, self.shape[0], 1, 1) * 255
        self.std = torch.tensor(std, device=device).view(1, self.shape[0], 1, 1) * 255
        if fits(pixels.numel() + tests.numel(), _free(device)) if resident is None else resident:
            self.train, self.dev = (Split(pixels[part].to(device), labels[part].to(device)) for part in (~held, held))
            self.test = Split(tests.to(device), tensors["test.labels"].to(device))
        else:
            self.train, self.dev = (
                Split(pixels, labels[part].to(device), None if part.all() else part.nonzero()[:, 0])
                for part in (~held, held)
            )
            self.test = Split(tests, tensors["test.labels"].to(device))
        augment = spec.get("augment") or {"pad": 0, "flip": False}
        self.pad, self.flip = int(augment["pad"]), bool(augment["flip"])

    def scaled(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels into normalised float32."""
        return images.to(self.mean.dtype).sub_(self.mean).div_(self.std)

    def steps(self, batch: int) -> int:
        """Return the batches in an epoch, the smaller last one included."""
        return -(-len(self.train) // batch)

    def epoch(
        self,
        seed: int | str,
        epoch: int,
        batch: int,
        first: int,
        part: Callable[[Tensor], Tensor] = lambda chosen: chosen,
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (step, images, labels) of an epoch from step `first` on; order, crops, flips follow from the seed.

        `part` takes a process's own share of each batch's numbers.
        """
        count = len(self.train)
        order = torch.randperm(count, generator=stream(seed, "order", epoch))
        draws = stream(seed, "augment", epoch)
        shifts = torch.randint(2 * self.pad + 1, (2, count), generator=draws)
        flips = torch.randint(2, (count,), generator=draws) * self.flip
        windows = None
        if self.pad or self.flip:
            windows = Windows(self.shape, self.pad, min(batch, count), shifts, flips, self.device)
        stored, order = order.to(self.train.stored.device), order.to(self.device)
        for step in range(first, self.steps(batch)):
            whole = slice(step * batch, (step + 1) * batch)
            chosen, images = part(order[whole]), self._sent(self.train.pick(part(stored[whole])))
            if windows:
                images = windows.of(images, chosen)
            yield step, self.scaled(images), self.train.labels[chosen]

    def _sent(self, pixels: Tensor) -> Tensor:
        """Return pixels on the device; from the host they are on their way there while this process goes on."""
        if pixels.device.type == self.device.type:
            return pixels
        return (pixels.pin_memory() if self.device.type == "cuda" else pixels).to(self.device, non_blocking=True)

    def size(self, step: int, batch: int) -> int:
        """Return how many images a step of an epoch has."""
        return min(batch, len(self.train) - step * batch)

    def batches(self, split: Split, start: int = 0, stride: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a split in order, unaugmented; or every so manieth batch of it from one on."""
        for first in range(start * EVAL_BATCH, len(split), stride * EVAL_BATCH):
            part = slice(first, first + EVAL_BATCH)
            yield self.scaled(self._sent(split.cut(part))), split.labels[part]

    def per_class(self, seed: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return `count` unaugmented training images of every class, none of dev, in equal batches of at most 50.

        A class with fewer gives all it has. Fifty, because GraSP's double backward holds a batch's maps three times.
        """
        order = torch.randperm(len(self.train), generator=stream(seed, "scoring"))
        labels = self.train.labels.cpu()
        ordered = labels[order]
        chosen = torch.cat([order[(ordered == label).nonzero()[:count, 0]] for label in range(self.classes)])
        chosen = chosen[torch.randperm(len(chosen), generator=stream(seed, "scoring order"))]
        stored = self.train.stored.device
        return [
            (self.scaled(self._sent(self.train.pick(part.to(stored)))), labels[part].to(self.device))
            for part in torch.tensor_split(chosen, -(-len(chosen) // SCORING_BATCH))
        ]


class Windows:
    """An epoch's random crops and flips: every row of a crop is a run of bytes in a batch padded with zeros.

    A flipped crop is one of the mirrored batch, which lies after the other; so one selection of rows, that of the crop
    of each image, does it all. Indexing each pixel took about 20 times as long (batches of 128, on one core).
    """

    def __init__(
        self, shape: Sequence[int], pad: int, batch: int, shifts: Tensor, flips: Tensor, device: torch.device
    ) -> None:
        """Take shifts [2, N] down and to the right, from 0 to twice the padding, and flips [N], 0 or 1."""
        channels, self.height, self.width = shape
        self.pad, self.sides = pad, 2 if flips.any() else 1
        tall, wide = self.height + 2 * pad, self.width + 2 * pad
        self.padded = torch.zeros(self.sides, batch, channels, tall, wide, dtype=torch.uint8, device=device)
        self.runs = self.padded.view(-1).as_strided((self.padded.numel() - self.width + 1, self.width), (1, 1))
        columns = torch.where(flips == 1, 2 * pad - shifts[1], shifts[1])
        self.offsets = (flips * (batch * channels * tall * wide) + shifts[0] * wide + columns).to(device)
        planes = torch.arange(batch * channels, device=device) * (tall * wide)
        self.rows = (planes[:, None] + torch.arange(self.height, device=device) * wide).view(batch, -1)

    def of(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Return the crop of each image, flipped or not; `chosen`: their places in what was drawn."""
        count = len(images)
        inner = self.padded[..., self.pad : self.pad + self.height, self.pad : self.pad + self.width]
        inner[0, :count] = images
        if self.sides == 2:
            inner[1, :count] = images.flip(3)
        starts = self.offsets[chosen, None] + self.rows[:count]
        return self.runs.index_select(0, starts.view(-1)).view(images.shape)


def _held_out(dev: str, labels: np.ndarray[Any, np.dtype[np.int64]], content: str) -> Tensor:
    kind, _, amount = dev.partition(":")
    if kind == "none":
        return torch.zeros(len(labels), dtype=torch.bool)
    if kind == "first":
        if int(amount) >= len(labels):
            raise UserError(
                f"dev: {dev} takes all of the {len(labels)} training images; write for example stratified:0.1"
            )
        return torch.arange(len(labels)) < int(amount)
    return torch.from_numpy(stratified(labels, float(amount), content))
