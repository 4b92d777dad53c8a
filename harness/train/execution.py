"""How a training runs its network: as it is (`eager`), compiled, or compiled and replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.train.order import Order
from harness.train.run import Training

EAGER = "eager"
COMPILED: Mapping[str, Mapping[str, Any]] = {"compiled": {}, "graphs": {"mode": "reduce-overhead"}}
"""What torch.compile is told for each execution but `eager`."""


def set_execution(order: Order, run: Training) -> None:
    """Let a training run its network as ordered: where this process trains it alone and, on a CPU, channels last.

    Else it stays eager: on a CPU torch's compiler lays every convolution channels last, which is wrong for some.
    """
    if run.group.world == 1 and (run.images.device.type != "cpu" or run.layout == torch.channels_last):
        run.execution = order.execution
        run.forward = forward_pass(run.model, run.execution)


def forward_pass(model: nn.Module, execution: str) -> Callable[[Tensor], Tensor]:
    """Return a network's forward pass under an execution: images [N, C, H, W] -> logits [N, classes]."""
    if execution == EAGER:
        return model
    torch.compiler.reset()  # a function is compiled a few times only, and networks of a kind share theirs
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False, **COMPILED[execution])

    def forward(images: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call] # a graph's outputs of the step before are no longer wanted
        try:
            return compiled(images)
        except Exception as error:
            error.add_note(f"The network was run {execution}; where it cannot be, write launch: {{execution: eager}}.")
            raise

    return forward
