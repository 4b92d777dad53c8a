"""Whether this machine's torch computes convolutions rightly: a set that trainings rely on, and one that they avoid.

docs/reference/channels-last.md tells of the fault that made it necessary. For processes that a wrong kernel may end.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PLAIN, LAST = torch.contiguous_format, torch.channels_last
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""The largest error that is taken for rounding, as a share of the largest value. Measured: below 5e-6 and 0.03."""
BATCH = 4
SECONDS = 120
"""Seconds after which a process that checks is ended by SIGPROF; it is the work of one."""
Convolve = Callable[..., Tensor]
"""Called as torch.nn.functional.conv2d is: images, kernel, stride=, padding=, groups=."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of square maps [BATCH, inputs, side, side] by a square kernel."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    side: int
    groups: int = 1
    layout: torch.memory_format = LAST
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        """Say which it is."""
        lying = "channels last" if self.layout == LAST else "channels first"
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        precision = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        return (
            f"{self.kernel}x{self.kernel} with stride {self.stride}, {self.inputs} to {self.outputs} channels{groups}, "
            f"maps of {self.side}x{self.side}, {lying}, {precision}"
        )


RELIED = (
    Convolution(3, 16, 3, 1, 32),
    Convolution(6, 8, 3, 2, 8),
    Convolution(16, 32, 3, 2, 32),
    Convolution(4, 8, 1, 1, 32),
    Convolution(16, 32, 1, 2, 16),
    Convolution(16, 32, 1, 2, 64),
    Convolution(32, 32, 3, 2, 16, groups=32),
    Convolution(16, 16, 3, 1, 16, dtype=torch.bfloat16),
    Convolution(4, 8, 1, 2, 16, layout=PLAIN),
    Convolution(8, 16, 1, 2, 64, layout=PLAIN),
    Convolution(8, 8, 3, 1, 16, layout=PLAIN),
)
"""Kinds of convolutions that trainings are made of."""
AVOIDED = tuple(Convolution(inputs, 16, 1, 2, side) for side in (16, 64) for inputs in (3, 4, 6, 8, 12, 15))
"""Those that no training computes so (layout.py)."""


def wrong(convolutions: Iterable[Convolution], threads: int, convolve: Convolve = F.conv2d) -> Iterator[str]:
    """Yield which convolutions differ from what channels first in float64 makes of them, and by how much."""
    torch.set_num_threads(threads)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # a hang in a kernel hears of nothing else; a suspended job is none
    for convolution in convolutions:
        if said := difference(convolution, convolve):
            yield f"{convolution}, {threads} thread{'s' * (threads > 1)}: {said}"
    signal.setitimer(signal.ITIMER_PROF, 0)


def difference(convolution: Convolution, convolve: Convolve = F.conv2d) -> str:
    """Return what is wrong with a convolution's output or gradients, nothing where they are right to rounding."""
    draws = torch.Generator().manual_seed(0)
    side, channels = convolution.side, convolution.inputs // convolution.groups
    images = torch.randn(BATCH, convolution.inputs, side, side, generator=draws)
    kernel = torch.randn(convolution.outputs, channels, convolution.kernel, convolution.kernel, generator=draws)
    found = _computed(convolution, images, kernel, convolution.dtype, convolution.layout, convolve)
    exact = [tensor.to(convolution.dtype) for tensor in (images, kernel)]
    truth = _computed(convolution, exact[0], exact[1], torch.float64, PLAIN, F.conv2d)
    for name, one, other in zip(
        ("output", "gradient of the input", "gradient of the weights"), found, truth, strict=True
    ):
        error = float((one - other).abs().max() / other.abs().max())
        if not error <= TOLERANCE[convolution.dtype]:  # what is not a number is wrong too
            return f"{name} wrong by {100 * error:.2g} %"
    return ""


def _computed(
    convolution: Convolution,
    images: Tensor,
    kernel: Tensor,
    dtype: torch.dtype,
    layout: torch.memory_format,
    convolve: Convolve,
) -> Sequence[Tensor]:
    """Return a convolution's output, and its gradients where the output's is the output, in float64."""
    weight = torch.nn.Parameter(kernel.to(dtype).to(memory_format=layout))
    given = images.to(dtype).to(memory_format=layout).requires_grad_()
    output = convolve(
        given, weight, stride=convolution.stride, padding=convolution.kernel // 2, groups=convolution.groups
    )
    gradients = torch.autograd.grad(output, (given, weight), output.detach())
    return [tensor.detach().double() for tensor in (output, *gradients)]


def tell() -> None:
    """Print what is wrong of each set as a line of JSON after the set's name; the process may end on the way."""
    threads = min(2, os.cpu_count() or 1)
    for name, convolutions in (("relied", RELIED), ("avoided", AVOIDED)):
        print(json.dumps(name), flush=True)  # noqa: T201 - the result of the process
        found = [said for number in range(1, threads + 1) for said in wrong(convolutions, number)]
        print(json.dumps(found), flush=True)  # noqa: T201
