"""What a notebook loads: cells of sweeps as a pandas frame, their learning curves, and masks. Nothing is written."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness.asked import FILES, reported
from harness.claims import Observer
from harness.errors import UserError
from harness.index import stand
from harness.mask_files import read_mask
from harness.planfile import SavedPlan, sweep_names
from harness.report.cells import cells_frame, curves_frame
from harness.report.frame import Frame, read_lines
from harness.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from tost.masks import Masks

Named = str | os.PathLike[str]


def load_results(*sweeps: Named, store: Named = "runs", data: Named | None = None) -> pd.DataFrame:
    """Return the cells of one or several sweeps as a pandas frame, a row each, in grid order.

    `sweeps`: names, as the store has them, or paths of sweep files, which are taken as they are now; cells that several
    have stand once, and a column `sweep` tells where each was found. `store`: the store's folder; `data`: the folder of
    data sets, where a file is given.

    Axes are ordered categoricals (in grid order, sparsities by size), numeric where all values are numbers; seeds are
    Int64. `sparsity_share` is the share of weights removed as the grid asks for it, `density` the share of weights kept
    as it was counted, both in 0 .. 1; accuracies are in percent, `accuracy` in the column that the protocol reports;
    `seconds` are of the last attempt, `finished` is UTC. A cell without a result is a row too: its `state` is not
    `done` but missing, running, failed, diverged and so on, its `cause` what the stage that holds it back died of, its
    numbers are missing. A metric that bears an axis's name is called NAME_measured. `cells.parquet` of a sweep's report
    holds the same frame.

    Raises UserError for a sweep that the store does not know, naming those it has, and for a faulty file. The store is
    only read.
    """
    return cells_frame(_frame(sweeps, store, data))


def load_curves(*sweeps: Named, store: Named = "runs", data: Named | None = None) -> pd.DataFrame:
    """Return the learning curves of sweeps as a pandas frame, a row for every cell and epoch.

    Arguments, axes and errors are those of load_results; the column `key` is the same, to join by. `epoch` counts
    from 1; losses are means of the epoch, accuracies are in percent, all to six significant digits and missing where
    none was measured; `ghosts` tells whether the network held something then that the plain one does not.
    """
    return curves_frame(_frame(sweeps, store, data))


def load_mask(source: Named, store: Named = "runs") -> Masks:
    """Return a mask: boolean tensors of the weights' shapes by parameter name, True where a weight is kept.

    `source`: a file in any form that `tost.read_masks` knows, or the first six or more digits of the key of a mask or
    of a training. Raises UserError where that is no mask, or not one.
    """
    return read_mask(os.fspath(source), Path(store))[0]


def _frame(sweeps: tuple[Named, ...], store: Named, data: Named | None) -> Frame:
    place = Store(Path(store))
    if stores := [os.fspath(given) for given in sweeps if (Path(given) / "stages").is_dir()]:
        raise UserError(f"{stores[0]} is a store; name its sweeps: {_example(Store(Path(stores[0])))}")
    if not sweeps:
        raise UserError(f"name a sweep, for example: {_example(place)}")
    plans = [_plan(os.fspath(given), place, Path(data) if data is not None else None) for given in sweeps]
    lines = []
    for saved in plans:
        standing = stand(saved.plan, place, Observer(), keep=False)
        lines += read_lines(saved, standing, place, keep=False)
    return Frame.of(lines)


def _example(store: Store) -> str:
    there = sweep_names(store) or ["quickstart"]
    more = f" (there are {', '.join(there)})" if len(there) > 1 else ""
    return f"load_results({there[0]!r}, store={os.fspath(store.root)!r}){more}"


def _plan(given: str, store: Store, data: Path | None) -> SavedPlan:
    """Return the plan of a sweep; of a file, one made beside the store, from a copy of what planning remembers."""
    if not given.endswith(FILES):
        return reported(given, store)
    with tempfile.TemporaryDirectory() as folder:
        for notes in ("content", "probes"):
            if (store.root / "cache" / notes).is_dir():
                shutil.copytree(store.root / "cache" / notes, Path(folder) / "cache" / notes)
        return reported(given, Store(Path(folder)), data)
