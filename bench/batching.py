"""Seeds as one stacked network (an experiment): images a second of several small networks trained in one step.

Every layer's weights of all networks are stacked, and `vmap` turns their convolutions into grouped ones; masks, images
and learning rates could differ, shapes could not. The figures say whether the trainer should ever do this: beside them
stands what as many processes do on the same device (section `packing`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from bench.figures import Given, Row, spread
from bench.training import BATCH, SIZE
from harness.train.process import prepare_process
from tost.catalog import MODELS, resolve
from tost.masks import prunable

NETWORKS = ("resnet20", "resnet32")
COUNTS = {"cpu": (2, 4), "cuda": (2, 4, 8, 16)}
DENSITY = 0.05
WARM_UP = 3
LR, MOMENTUM, DECAY = 0.1, 0.9, 2e-4


def measure(given: Given) -> Iterator[Row]:
    """Yield a row for one network trained as usual, and for several stacked."""
    prepare_process()
    torch.set_num_threads(given.threads)
    kind = "cuda" if given.device.startswith("cuda") else "cpu"
    batch = 4 if given.small else BATCH
    for network in NETWORKS[:1] if given.small else NETWORKS:
        for precision in ("fp32", "bf16") if kind == "cuda" else ("fp32",):  # CPU autocast has no grouped gradients
            alone = 0.0
            for count in (1, *COUNTS[kind]):
                models = [_network(network, seed, given.device) for seed in range(count)]
                images = torch.randn(count, batch, 3, SIZE, SIZE, device=given.device)
                labels = torch.randint(10, (count, batch), device=given.device)
                step = _stacked(models) if count > 1 else _plain(models[0])
                speeds = [count * batch / one for one in _seconds(step, images, labels, precision, given)]
                alone = alone or statistics.median(speeds)
                yield {
                    "network": network,
                    "precision": precision,
                    "networks in one step": count,
                    "images/s together": spread(speeds),
                    "times one": statistics.median(speeds) / alone,
                }


def _network(name: str, seed: int, device: str) -> nn.Module:
    """Return a pruned network whose batch norms keep no statistics: stacked ones could not update them in place."""
    torch.manual_seed(seed)
    model: nn.Module = resolve(MODELS[name].path)(10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
            module.num_batches_tracked = None
    with torch.no_grad():
        for weight in prunable(model).values():
            weight.mul_(torch.rand_like(weight) < DENSITY)
    return model.to(device).train()


Step = Callable[[Tensor, Tensor], None]


def _plain(model: nn.Module) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=DECAY, fused=True)
    gone = [(weight, weight == 0) for weight in prunable(model).values()]

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images[0]), labels[0]).backward()
        optimizer.step()
        with torch.no_grad():
            for weight, pruned in gone:
                weight.masked_fill_(pruned, 0)

    return step


def _stacked(models: list[nn.Module]) -> Step:
    parameters, _ = stack_module_state(models)  # type: ignore[arg-type] # it takes a list of modules
    weights = {name: value.detach() for name, value in parameters.items()}
    gone = {name: weights[name] == 0 for name in prunable(models[0])}
    optimizer = torch.optim.SGD(list(weights.values()), LR, MOMENTUM, weight_decay=DECAY, fused=True)

    def loss(of: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(models[0], of, (images,)), labels)

    gradients = vmap(grad_and_value(loss), randomness="error")

    def step(images: Tensor, labels: Tensor) -> None:
        found, _ = gradients(weights, images, labels)
        for name, weight in weights.items():
            weight.grad = found[name].contiguous()
        optimizer.step()
        for name, pruned in gone.items():
            weights[name].masked_fill_(pruned, 0)

    return step


def _seconds(step: Step, images: Tensor, labels: Tensor, precision: str, given: Given) -> list[float]:
    wait = torch.cuda.synchronize if images.is_cuda else lambda: None
    taken = []
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(WARM_UP):
            step(images, labels)
        for _ in range(given.repeats):
            wait()
            began, steps = time.perf_counter(), 0
            while steps < 1 or time.perf_counter() - began < given.seconds:
                step(images, labels)
                steps += 1
                if images.is_cuda and steps % 10 == 0:
                    wait()
            wait()
            taken.append((time.perf_counter() - began) / steps)
    return taken
