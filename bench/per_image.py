"""CIFAR-10's training batches as released research code makes them: an image at a time, by workers of a DataLoader."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class PerImage(Dataset[tuple[Tensor, int]]):
    """Images as torchvision.datasets.CIFAR10 gives them: each made a PIL image, then transformed."""

    def __init__(self, images: Tensor, transform: transforms.Compose) -> None:
        """Take uint8 images [N, H, W, 3]; labels 0 to 9 are given to them in turn."""
        self.pixels, self.transform = images.numpy(), transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[number])), number % 10


def loader(images: Tensor, batch: int, workers: int) -> DataLoader[tuple[Tensor, int]]:
    """Return a loader of uint8 images [N, H, W, 3], shuffled, cropped, flipped and normalised."""
    transform = transforms.Compose(
        [
            transforms.RandomCrop(images.shape[1], padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return DataLoader(
        PerImage(images, transform),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
