"""One step of a training once more: its exact weights and batch, and where numbers in it stop being finite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from harness.errors import UserError
from harness.train.debugging import Say
from harness.train.loop import Enough, Watcher, train
from harness.train.order import Order
from harness.train.run import Training, step_seed
from harness.train.training import find_checkpoint, prepare, resume, state_tensors

SHOWN = 5


class Until(Watcher):
    """A watcher that ends the loop where so many steps are done, an epoch's evaluation included."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, training: Training, due: Callable[[], None]) -> None:
        """See a step done."""
        due()  # a divergence on the way is raised where it is
        if training.done == self.step and training.position.step < training.steps:
            raise Enough

    def after_epoch(self, training: Training) -> None:
        """See an epoch done."""
        if training.done == self.step:
            raise Enough


def reach(order: Order, epoch: int, step: int, say: Say) -> Training:
    """Return a training as it stands before a step, from the furthest checkpoint before that.

    `epoch` and `step` count from 1; with epoch 0 the step is counted from the start of training. Raises UserError where
    there is no such step, and Diverged where it breaks down before.
    """
    run = prepare(order)
    first, total = run.done, run.steps * run.until
    if epoch and step > run.steps:
        raise UserError(f"--replay: an epoch of this training has {run.steps} steps, not {step}")
    step += max(epoch - 1, 0) * run.steps - 1
    if not first <= step < total:
        raise UserError(
            f"--replay: this training has steps {first + 1} to {total}, {run.steps} an epoch; not {step + 1}"
        )
    if found := find_checkpoint(order, run, most=step):
        resume(run, *found)
    say(f"from the checkpoint after step {run.done}" if found else "from the start: there is no checkpoint before it")
    if run.done < step or run.position.step == run.steps:  # a checkpoint may lie between an epoch's end and the next
        with contextlib.suppress(Enough):
            train(run, Until(step))
    run.model.train()
    run.go_to(run.done)
    return run


def batch(run: Training) -> tuple[Tensor, Tensor]:
    """Return the images [N, C, H, W] and labels [N] of the step that a training stands before."""
    at = run.position
    _, images, labels = next(run.images.epoch(run.seed, at.epoch, run.batch, at.step))
    return images, labels


def keep(run: Training, images: Tensor, labels: Tensor, file: Path) -> None:
    """Write weights, optimizer state, masks and batch of a step: `model/NAME`, `optimizer/...`, `images`, `labels`."""
    tensors = {**state_tensors(run), "images": images, "labels": labels}
    tensors |= {f"masks/{name}": mask.to(torch.uint8) for name, mask in run.masks(run.done).items()}
    file.write_bytes(save({name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}))


def examine(run: Training, images: Tensor, labels: Tensor) -> list[str]:
    """Do a step's forward and backward pass, but not its update; return what is not finite, and what is large."""
    weights = dict(run.model.named_parameters())
    lines = [f"weights: {_told(weights)}", f"images: {_told({'the batch': images})}; {len(labels)} labels"]
    run.model.zero_grad(set_to_none=True)
    torch.manual_seed(step_seed(run))
    with _outputs(run.model) as outputs, torch.autograd.set_detect_anomaly(True), run.autocast():
        logits = run.logits(images)
        loss = run.whole_criterion()(logits, labels)
    lines += [f"outputs, in order: {_told(outputs)}", f"loss: {float(loss.detach()):.6g}"]
    try:
        with torch.autograd.set_detect_anomaly(True):
            run.group.backward(loss, len(labels))
    except RuntimeError as error:
        if "returned nan values" not in str(error):
            raise
        # anomaly detection, which has printed where the forward pass was
        lines.append(f"backward: {str(error).splitlines()[0]}")
    gradients = {name: p.grad for name, p in reversed(weights.items()) if p.grad is not None}
    return [*lines, f"gradients, last layer first: {_told(gradients)}"]


@contextlib.contextmanager
def _outputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collect what the innermost modules put out, in the order in which they are called."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, given: object, output: object) -> None:
            if isinstance(output, Tensor):
                found[name] = output.detach()

        return hook

    inner = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    hooks = [module.register_forward_hook(note(name or "the network")) for name, module in inner]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _told(tensors: Mapping[str, Tensor]) -> str:
    """Say which tensors hold what is no finite number, the first few by name, and which holds the largest that is."""
    bad, largest, where = [], 0.0, ""
    for name, tensor in tensors.items():
        values = tensor.detach().float()
        finite = values.isfinite()
        if not bool(finite.all()):
            bad.append(f"{name} ({int((~finite).sum()):,} of {values.numel():,})")
        most = float(values[finite].abs().max()) if bool(finite.any()) else 0.0
        if most >= largest:
            largest, where = most, name
    said = f"all {len(tensors)} finite" if len(tensors) != 1 else "finite"
    if bad:
        said = "not finite: " + ", ".join(bad[:SHOWN]) + (f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
    return f"{said}; largest {largest:.4g}" + (f" in {where}" if len(tensors) > 1 else "")
