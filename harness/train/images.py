"""Images as tensors on the device: the data stage's artifact, its splits, and batches drawn by seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
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
            raise UserError(f"the data set's {split} labels lie outside its {len(decoded.classes)} classes")
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
    """Images [N, C, H, W] in uint8 and labels [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


class Images:
    """A data set on a device: train, dev and test splits, and how pixels are scaled."""

    def __init__(self, path: Path, spec: Mapping[str, Any], device: torch.device) -> None:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            about = json.loads(file.metadata()["about"])
        labels = tensors["train.labels"].numpy()
        held = _held_out(spec["dev"], labels, about["content"])
        mean, std = (about["mean"], about["std"]) if spec["normalize"] == "measured" else spec["normalize"]
        channels = tensors["train.images"].shape[1]
        self.device = device
        self.classes = len(about["classes"])
        self.shape = tuple(tensors["train.images"].shape[1:])
        self.mean = torch.tensor(mean, device=device).view(1, channels, 1, 1) * 255
        self.std = torch.tensor(std, device=device).view(1, channels, 1, 1) * 255
        self.train = Split(tensors["train.images"][~held].to(device), tensors["train.labels"][~held].to(device))
        self.dev = Split(tensors["train.images"][held].to(device), tensors["train.labels"][held].to(device))
        self.test = Split(tensors["test.images"].to(device), tensors["test.labels"].to(device))
        augment = spec.get("augment") or {"pad": 0, "flip": False}
        self.pad, self.flip = int(augment["pad"]), bool(augment["flip"])
        self.padded = torch.nn.functional.pad(self.train.images, [self.pad] * 4) if self.pad else self.train.images

    def scaled(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels into normalised float32."""
        return (images.float() - self.mean) / self.std

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
        count, device = len(self.train), self.device
        order = torch.randperm(count, generator=stream(seed, "order", epoch)).to(device)
        draws = stream(seed, "augment", epoch)
        shifts = torch.randint(2 * self.pad + 1, (2, count), generator=draws).to(device)
        flips = torch.randint(2, (count,), generator=draws).to(device)
        for step in range(first, self.steps(batch)):
            chosen = part(order[step * batch : (step + 1) * batch])
            yield step, self.scaled(self._crop(chosen, shifts, flips)), self.train.labels[chosen]

    def _crop(self, chosen: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
        if not self.pad and not self.flip:
            return self.train.images[chosen]
        channels, height, width = self.shape
        rows = shifts[0, chosen, None] + torch.arange(height, device=self.device)
        columns = torch.arange(width, device=self.device).expand(len(chosen), width)
        if self.flip:
            columns = torch.where(flips[chosen, None] == 1, columns.flip(1), columns)
        columns = shifts[1, chosen, None] + columns
        planes = torch.arange(channels, device=self.device)
        return self.padded[
            chosen[:, None, None, None], planes[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
        ]

    def size(self, step: int, batch: int) -> int:
        """Return how many images a step of an epoch has."""
        return min(batch, len(self.train) - step * batch)

    def batches(self, split: Split, start: int = 0, stride: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield a split in order, unaugmented; or every so manieth batch of it from one on."""
        for first in range(start * EVAL_BATCH, len(split), stride * EVAL_BATCH):
            yield self.scaled(split.images[first : first + EVAL_BATCH]), split.labels[first : first + EVAL_BATCH]

    def per_class(self, seed: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return `count` unaugmented training images of every class, none of dev, in equal batches of at most 50.

        A class with fewer gives all it has. Fifty, because GraSP's double backward holds a batch's maps three times.
        """
        order = torch.randperm(len(self.train), generator=stream(seed, "scoring"))
        labels = self.train.labels.cpu()[order]
        chosen = torch.cat([order[(labels == label).nonzero()[:count, 0]] for label in range(self.classes)])
        chosen = chosen[torch.randperm(len(chosen), generator=stream(seed, "scoring order"))].to(self.device)
        parts = torch.tensor_split(chosen, -(-len(chosen) // SCORING_BATCH))
        return [(self.scaled(self.train.images[part]), self.train.labels[part]) for part in parts]


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
