"""Laws of the batches that training sees: they are torchvision's crops and flips, and follow from the seed alone."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tv
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor
from torch.testing import assert_close
from torchvision import transforms

from harness.train.decode import Decoded
from harness.train.draws import stream
from harness.train.images import EVAL_BATCH, MOST_OF_DEVICE, Images, encode, fits

CPU = torch.device("cpu")
CIFAR = {"dev": "none", "normalize": "measured", "augment": {"pad": 4, "flip": True}}


def artifact(folder: Path, count: int, shape: tuple[int, int, int], same: int = 1) -> Path:
    """Write noise, [H, W, C] each and every picture `same` times in turn, as the data stage would."""
    draws = np.random.default_rng(0)
    train, test = (draws.integers(0, 256, (number, *shape), dtype=np.uint8) for number in (count // same, 40))
    decoded = Decoded(np.tile(train, (same, 1, 1, 1)), np.arange(count) % 4, test, np.arange(40) % 4, list("abcd"))
    tensors, about = encode(decoded, 0, "noise")
    save_file(tensors, folder / "data.safetensors", about)
    return folder / "data.safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return artifact(tmp_path, 300, (32, 32, 3))


def epoch(images: Images, seed: int = 0, number: int = 0, batch: int = 128, first: int = 0) -> list[tuple[Any, ...]]:
    return list(images.epoch(seed, number, batch, first))


def assert_same(one: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> None:
    """Demand the same steps, pixels and labels, to the bit."""
    for (step, x, y), (step2, x2, y2) in zip(one, other, strict=True):
        assert step == step2
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


# What torchvision does ------------------------------------------------------------------------------------------------


def outcomes(pixels: Tensor, mean: list[float], std: list[float]) -> list[bytes]:
    """Return torchvision's pad, crop, flip and normalise of an image for each of the 9 x 9 x 2 outcomes."""
    padded = tv.pad(pixels, [4, 4, 4, 4])
    cuts = (tv.crop(padded, row, column, 32, 32) for row, column in product(range(9), repeat=2))
    both = (image for cut in cuts for image in (cut, tv.hflip(cut)))
    return [tv.normalize(image.float(), mean, std).numpy().tobytes() for image in both]


def test_crops_and_flips_are_torchvisions_and_drawn_as_often(tmp_path: Path) -> None:
    """Every batch holds nothing but torchvision's outcomes, to the bit, and each of them equally often."""
    images = Images(artifact(tmp_path, 8000, (32, 32, 3), same=2000), CIFAR, CPU)
    mean, std = images.mean.flatten().tolist(), images.std.flatten().tolist()
    known = {}
    for number, picture in enumerate(images.train.images[:4]):
        known.update({pixels: (number, which) for which, pixels in enumerate(outcomes(picture, mean, std))})
    assert len(known) == 4 * 162

    ours = np.zeros((4, 162), int)
    for number in range(3):
        for _, batch, labels in images.epoch(7, number, 500, 0):
            for picture, label in zip(batch, labels.tolist(), strict=True):
                who, which = known[picture.numpy().tobytes()]
                assert who == label, "noise is as its label says: picture n has label n"
                ours[who, which] += 1
    assert ours.sum(1).tolist() == [6000] * 4
    for counts in (*ours, ours.sum(0)):
        assert stats.chisquare(counts).pvalue > 0.001
    for marginal in (ours.sum(0).reshape(9, 9, 2).sum(other) for other in ((1, 2), (0, 2), (0, 1))):
        assert stats.chisquare(marginal).pvalue > 0.001

    theirs = np.zeros(162, int)
    draw = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(5000):
            drawn = tv.normalize(draw(images.train.images[0]).float(), mean, std)
            theirs[known[drawn.numpy().tobytes()][1]] += 1
    assert stats.chi2_contingency(np.stack([ours.sum(0), theirs])).pvalue > 0.001


def test_pixels_are_those_of_to_tensor_and_normalize(path: Path) -> None:
    """Released code divides by 255 first: other roundings, the same numbers."""
    images = Images(path, {**CIFAR, "augment": None}, CPU)
    mean, std = (images.mean / 255).flatten().tolist(), (images.std / 255).flatten().tolist()
    expected = torch.stack([tv.normalize(tv.convert_image_dtype(x), mean, std) for x in images.test.images])
    assert_close(next(images.batches(images.test))[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("shape", [(8, 12, 3), (12, 8, 1)])
def test_every_pixel_is_the_one_that_the_draws_name(
    shape: tuple[int, int, int], pad: int, flip: bool, resident: bool, tmp_path: Path
) -> None:
    spec = {"dev": "stratified:0.1", "normalize": "measured", "augment": {"pad": pad, "flip": flip}}
    images = Images(artifact(tmp_path, 100, shape), spec, CPU, resident)
    count, (high, wide, _) = len(images.train), shape
    padded = torch.nn.functional.pad(images.train.images, [pad] * 4)
    order, draws = torch.randperm(count, generator=stream(5, "order", 2)), stream(5, "augment", 2)
    shifts = torch.randint(2 * pad + 1, (2, count), generator=draws)
    flips = torch.randint(2, (count,), generator=draws) if flip else torch.zeros(count)
    expected = []
    for n in order.tolist():
        cut = padded[n, :, shifts[0, n] : shifts[0, n] + high, shifts[1, n] : shifts[1, n] + wide]
        expected.append((torch.flip(cut, [2]).float() if flips[n] else cut.float()) - images.mean[0])
    for batch in (32, 1000):
        seen = epoch(images, 5, 2, batch)
        assert torch.equal(torch.cat([x for _, x, _ in seen]), torch.stack(expected) / images.std)
        assert torch.equal(torch.cat([y for _, _, y in seen]), images.train.labels[order])


# What the seed says ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resident", [True, False])
def test_batches_follow_from_seed_and_epoch_alone(path: Path, resident: bool) -> None:
    one, other = (Images(path, CIFAR, CPU, resident) for _ in range(2))
    list(other.epoch(1, 1, 64, 0))
    torch.manual_seed(5)
    assert_same(epoch(one, 3, 1), epoch(other, 3, 1))
    for seed, number in ((4, 1), (3, 2)):
        assert not torch.equal(epoch(one, 3, 1)[0][1], epoch(other, seed, number)[0][1])
        assert not torch.equal(epoch(one, 3, 1)[0][2], epoch(other, seed, number)[0][2])


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_an_epoch_from_a_later_step_is_the_rest_of_it(path: Path, first: int, resident: bool) -> None:
    images = Images(path, CIFAR, CPU, resident)
    assert_same(epoch(images)[first:], epoch(images, first=first))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("dev", ["none", "first:30", "stratified:0.2"])
def test_every_image_is_seen_once_an_epoch(path: Path, dev: str, resident: bool) -> None:
    images = Images(path, {**CIFAR, "dev": dev, "augment": None}, CPU, resident)
    for number in range(2):
        seen = torch.cat([x for _, x, _ in images.epoch(0, number, 64, 0)])
        known = images.scaled(images.train.images)
        assert sorted(x.numpy().tobytes() for x in seen) == sorted(x.numpy().tobytes() for x in known)


# Where the pixels are -------------------------------------------------------------------------------------------------


def everything(images: Images) -> list[tuple[Any, ...]]:
    """Return all the batches that stages ask for, of all splits."""
    shares = [*images.epoch(1, 0, 50, 0, lambda chosen: chosen.tensor_split(3)[1])]
    splits = [batch for split in (images.train, images.dev, images.test) for batch in images.batches(split)]
    plain = [*splits, *images.batches(images.train, 0, 2), *images.per_class(0, 20)]
    return [*epoch(images), *shares, *((0, *batch) for batch in plain)]


@pytest.mark.parametrize("dev", ["none", "first:30", "stratified:0.2"])
def test_images_on_the_host_give_the_batches_of_those_on_the_device(tmp_path: Path, dev: str) -> None:
    path, spec = artifact(tmp_path, EVAL_BATCH + 300, (32, 32, 3)), {**CIFAR, "dev": dev}
    near, far = Images(path, spec, CPU, resident=True), Images(path, spec, CPU, resident=False)
    assert_same(everything(near), everything(far))
    for name in ("train", "dev", "test"):
        assert torch.equal(getattr(near, name).images, getattr(far, name).images)


def test_images_on_the_host_are_not_copied(path: Path) -> None:
    images = Images(path, {**CIFAR, "dev": "first:30"}, CPU, resident=False)
    assert images.train.stored.data_ptr() == images.dev.stored.data_ptr()
    mapped = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if path.name in line
    ]
    for split in (images.train, images.test):
        assert any(int(low, 16) <= split.stored.data_ptr() < int(high, 16) for low, high in mapped)


def test_what_fits_a_device_is_a_matter_of_sizes() -> None:
    assert fits(10**15, None), "the host keeps its own"
    assert fits(int(MOST_OF_DEVICE * 80_000), 80_000)
    assert not fits(int(MOST_OF_DEVICE * 80_000) + 1, 80_000)
    cifar, gpu = 60_000 * 3 * 32 * 32, 80 * 2**30
    assert fits(cifar, gpu)
    assert not fits(1_280_000 * 3 * 224 * 224, gpu)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("resident", [True, False])
def test_batches_on_a_gpu_are_those_of_the_cpu(path: Path, resident: bool) -> None:
    spec = {**CIFAR, "dev": "first:30"}
    images = Images(path, spec, torch.device("cuda"), resident)
    found = everything(images)
    assert all(x.is_cuda and y.is_cuda for _, x, y in found)
    assert images.train.stored.is_cuda == resident
    assert_same(everything(Images(path, spec, CPU)), [(step, x.cpu(), y.cpu()) for step, x, y in found])
