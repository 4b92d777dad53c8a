"""What the harness offers beside tost's tables: data sets, optimizers, schedules, losses, presets, launchers.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tost.catalog import Entry


@dataclass(frozen=True)
class Dataset(Entry):
    """A data set: its reader, the files under the data folder it is made of, and how its images are treated.

    `zipped`: each file may also end in .gz; `pad`: pixels of zero padding for the random crop; `flip`: horizontal flips
    keep the label's meaning, which is known of a data set, never of a folder; `dev`: how the dev split is cut
    (`first:N` training images in official order, or `stratified:SHARE` of every class).
    `mean` and `std` are per channel, of pixels in 0 .. 1; empty means measured on the training images.
    """

    files: tuple[str, ...] = ()
    zipped: bool = False
    hint: str = ""
    fetch: str = ""
    pad: int = 4
    flip: bool = False
    dev: str = "stratified:0.1"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: int = 3
    upsample: int = 0
    """For networks of more than three halvings, the size to upsample to; 0 where the images are large enough."""


_CIFAR10 = "cifar-10-batches-py"
_CIFAR100 = "cifar-100-python"
_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

DATASETS: Mapping[str, Dataset] = {
    "digits": Dataset("harness.train.decode:digits", pad=1, channels=1, upsample=16),
    "cifar10": Dataset(
        "harness.train.decode:cifar10",
        files=tuple(
            f"{_CIFAR10}/{name}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
        ),
        hint="the official cifar-10-python.tar.gz, unpacked",
        fetch="torchvision.datasets:CIFAR10",
        flip=True,
        dev="first:5000",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
    "cifar100": Dataset(
        "harness.train.decode:cifar100",
        files=tuple(f"{_CIFAR100}/{name}" for name in ("train", "test", "meta")),
        hint="the official cifar-100-python.tar.gz, unpacked",
        fetch="torchvision.datasets:CIFAR100",
        flip=True,
        dev="first:5000",
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "mnist": Dataset(
        "harness.train.decode:mnist",
        files=tuple(f"MNIST/raw/{name}" for name in _IDX),
        zipped=True,
        hint="the four idx files, gzipped or not",
        channels=1,
        fetch="torchvision.datasets:MNIST",
        pad=2,
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "fashion_mnist": Dataset(
        "harness.train.decode:fashion_mnist",
        files=tuple(f"FashionMNIST/raw/{name}" for name in _IDX),
        zipped=True,
        hint="the four idx files, gzipped or not",
        channels=1,
        fetch="torchvision.datasets:FashionMNIST",
        pad=2,
        flip=True,
        mean=(0.2860,),
        std=(0.3530,),
    ),
    "tinyimagenet": Dataset(
        "harness.train.decode:tinyimagenet",
        files=("tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/train", "tiny-imagenet-200/val"),
        hint="the official tiny-imagenet-200.zip, unpacked",
        fetch="harness.train.decode:fetch_tinyimagenet",
        flip=True,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
    ),
    "imagefolder": Dataset(
        "harness.train.decode:imagefolder",
        version=2,  # 1 read hidden files that the key left out, left out linked folders of the key, flipped all images
        hint="PATH/train/CLASS/*.png|jpg|webp and PATH/test/CLASS/* (or PATH/val)",
    ),
}
CATALOGUED = frozenset(DATASETS) - {"imagefolder"}
"""Data sets whose channels and augmentation are known beforehand; the other name is any folder's."""


@dataclass(frozen=True)
class Setting(Entry):
    """A builder together with the protocol fields it reads; fields that nothing reads are no part of a key."""

    fields: tuple[str, ...] = ()


OPTIMIZERS: Mapping[str, Setting] = {
    "sgd": Setting("harness.train.optimizers:sgd", fields=("lr", "momentum", "nesterov", "weight_decay")),
    "adamw": Setting("harness.train.optimizers:adamw", fields=("lr", "beta1", "beta2", "weight_decay")),
}

SCHEDULES: Mapping[str, Setting] = {
    "multistep": Setting("harness.train.schedules:multistep", fields=("milestones", "gamma", "warmup")),
    "cosine": Setting("harness.train.schedules:cosine", fields=("warmup",)),
}

LOSSES: Mapping[str, Setting] = {"cross_entropy": Setting("torch.nn.functional:cross_entropy")}

METRICS: Mapping[str, str] = {
    "accuracy": "accuracy",  # the column that the protocol reports
    "test@last": "accuracy",
    "test@best-dev": "accuracy",
    "dev_accuracy": "accuracy",
    "best_epoch": "count",
    "epochs": "count",
    "parameters": "count",
    "parameters_kept": "count",
    "kept": "count",
    "prunable": "count",
    "density": "share",
    "density_with_ghosts": "share",
    "inference_flops": "count",
    "inference_flops_dense": "count",
    "training_flops": "count",
    "training_flops_dense": "count",
    "ghost_operations": "count",
    "rescale_operations": "count",
    "ghost_parameters": "count",
    "empty_layers": "count",
    "dead_filters": "count",
    "near_zero": "share",
    "silent_channels": "count",
}
"""What a table may show of a training, and what kind of number it is."""
MEANINGS: Mapping[str, str] = {
    "accuracy": "the accuracy in the column that the protocol's `report` names",
    "test@last": "accuracy on the test images after the last epoch",
    "test@best-dev": "accuracy on the test images after the epoch with the best accuracy on the dev split",
    "dev_accuracy": "accuracy on the dev split after the last epoch",
    "best_epoch": "the epoch with the best accuracy on the dev split",
    "epochs": "epochs trained",
    "parameters": "parameters of the tested network, biases and batch norm included, pruned ones too",
    "parameters_kept": "the same, without pruned weights",
    "kept": "weights that the mask keeps",
    "prunable": "weights that the mask speaks of",
    "density": "weights kept, of all convolutional and linear ones, ghosts left out",
    "density_with_ghosts": "the same, the weights of ghosts that stay added to those kept",
    "inference_flops": "operations for one image, zeros left out: two for every multiply-add with a weight of any "
    "layer, ghosts that stay among them",
    "inference_flops_dense": "the same, zeros counted",
    "training_flops": "operations of all epochs of this training, zeros left out, a backward pass counted as two "
    "forward passes; what its ticket took is not counted",
    "training_flops_dense": "the same, zeros counted",
    "ghost_operations": "operations that a recipe's parts add to the steps of training while they live",
    "rescale_operations": "operations of LRsI before training, every iteration at its dearer kind",
    "ghost_parameters": "parameters of ghosts that stay to the end",
    "empty_layers": "layers of which the mask keeps nothing",
    "dead_filters": "filters, and rows of linear layers, of which the mask keeps nothing",
    "near_zero": "activations behind a ReLU of at most 0.001, of 512 images of the dev split",
    "silent_channels": "channels behind a ReLU that are near zero for all of these images",
}
"""What each of them means, in words for its row in a glossary."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The ToST authors' settings (commit 2b5bac2): 182 epochs, x0.1 at 90 and 135, weight decay on everything.
    "tost": {},
    # The precedent of GraSP (Wang et al., 2020) for Tiny-ImageNet: x0.1 at half and three quarters.
    "tiny": {"epochs": 300, "milestones": (150.0, 225.0), "weight_decay": 1e-4},
    # For trying things out in minutes: one cycle of the same shape, warmed up because it is so short.
    "quick": {"epochs": 8, "milestones": (4.0, 6.0), "batch": 64, "warmup": 1.0, "weight_decay": 5e-4},
}

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Devices of torch that trainings may run on."""
HERE = ("local", "debug", "ray")
"""Launchers whose workers live and die with the command; what else `--via` names is a profile."""
