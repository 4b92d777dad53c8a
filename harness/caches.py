"""Where libraries keep what they build: on the machine's own disk where there is one, not in a crowded home."""

from __future__ import annotations

import os
from pathlib import Path

FOLDERS = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TORCH_HOME": "torch",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
    "WANDB_CACHE_DIR": "wandb",
    "WANDB_DATA_DIR": "wandb",
    "WANDB_CONFIG_DIR": "wandb",
}


def point_caches(scratch: str) -> None:
    """Point the caches of torch, triton, matplotlib and wandb into a scratch folder; what is set already stays.

    Every person has a folder of their own there: a node's scratch may be shared.
    """
    if not scratch:
        return
    root = Path(scratch) / f"caches-{os.getuid()}"
    for variable, name in FOLDERS.items():
        os.environ.setdefault(variable, str(root / name))
