"""A data set of one's own: bars that lie or stand, in noise.

In this folder:  python -m harness.sweep own_dataset.yaml

A data set is a function that returns ((images, labels), (images, labels)) of train and test: uint8 of shape [N, H, W]
or [N, H, W, C], and whole numbers from 0 on. Parameters with plain defaults are knobs. One called `folder` comes as a
pathlib.Path, and what lies in it is part of the key; this one needs no files.
"""

import numpy as np

Split = tuple[np.ndarray, np.ndarray]


def load(count: int = 400, noise: float = 60.0) -> tuple[Split, Split]:
    """Return `count` images for training and half as many for the test, 12x12, with noise of a standard deviation."""
    draw = np.random.default_rng(0)
    return _split(draw, count, noise), _split(draw, count // 2, noise)


def _split(draw: np.random.Generator, count: int, noise: float) -> Split:
    labels = np.arange(count) % 2
    images = draw.normal(80, noise, (count, 12, 12))
    for image, label, place in zip(images, labels, draw.integers(1, 10, count), strict=True):
        bar = image if label else image.T  # a view: what is added to it is added to the image
        bar[place : place + 2, 2:10] += 90
    return images.clip(0, 255).astype(np.uint8), labels
