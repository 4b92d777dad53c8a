"""Several processes: every rank finds the same mask, and pruned weights stay zero under DistributedDataParallel."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


def train_on(rank: int, folder: str) -> None:
    """Find a mask on a rank, train under DDP with momentum, weight decay and bf16, and write both down."""
    from tests.tost.nets import offers, small_net
    from tost.masks import apply_masks, find_masks
    from tost.masks.scores import snip
    from tost.recipe.ghost_skips import GhostSkips

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    net = small_net()
    masks = find_masks(snip, net, 90, offered=offers())
    apply_masks(net, masks)
    part = GhostSkips((0.2, 0.6), "authors", shape=(3, 8, 8))
    part.attach(net)
    wrapped = DistributedDataParallel(net, broadcast_buffers=False)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    draws = torch.Generator().manual_seed(rank)
    for step in range(6):
        part.step(step / 6)
        images = torch.randn(8, 3, 8, 8, generator=draws)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(wrapped(images), torch.arange(8) % 4)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        apply_masks(net, masks)
    part.detach()
    torch.save({"masks": masks, "weights": dict(net.state_dict())}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_every_rank_has_the_same_mask_and_pruned_weights_stay_zero(tmp_path: Path) -> None:
    mp.spawn(train_on, (str(tmp_path),), nprocs=WORLD)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(WORLD))
    for name, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][name])
        assert bool((first["weights"][name][~mask] == 0).all())
        assert bool((first["weights"][name][mask] != 0).any())
        assert torch.equal(first["weights"][name], second["weights"][name])
    assert sum(int(mask.sum()) for mask in first["masks"].values()) == 90
