"""A whole report: sweeps read from the store, their tables built, everything written."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.asked import sweep_file
from harness.claims import Observer
from harness.declared import Table
from harness.errors import UserError
from harness.foreign import Foreign
from harness.index import Standing, stand
from harness.planfile import SavedPlan
from harness.report.claims import Judged, judge
from harness.report.claims_table import as_grid, replaced_claims
from harness.report.drawing import write_figures
from harness.report.figures import Figure, figures_of
from harness.report.frame import Frame, anonymous, read_foreigners, read_lines, without_folders
from harness.report.grids import Grid
from harness.report.overlaps import Overlaps
from harness.report.site import page
from harness.report.tables import build
from harness.report.writers import forget_files, write_cells, write_files, write_tables
from harness.store import Store
from harness.terminal import store_option
from harness.words import count
from tost.catalog import nearest


@dataclass
class Report:
    """What was read and built."""

    name: str
    store: Store
    plans: Sequence[SavedPlan]
    standings: Sequence[Standing]
    frame: Frame
    tables: Sequence[Table]
    claims: Sequence[Judged] = ()
    hidden: bool = False
    grids: list[Grid] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Return how many cells have a result."""
        return sum(line.measured is not None for line in self.frame.lines)

    @property
    def summary(self) -> str:
        """Return in one line how much of it is done."""
        found = Counter(line.reason for line in self.frame.lines if line.reason)
        holes = "".join(f", {number} {reason}" for reason, number in found.most_common())
        return f"{self.done} of {count(len(self.frame.lines), 'cell')} done{holes}"

    @property
    def unplaced(self) -> str:
        """Return what is to be said of foreign numbers that stand in no table; nothing where all do."""
        placed = {id(entry.foreign) for grid in self.grids for entry in grid.entries.values() if entry.foreign}
        left = [row for row in self.frame.foreign if id(row) not in placed]
        if not left or not self.tables:
            return ""
        where = f"the first in {left[0].file}, line {left[0].line}"
        return f"{count(len(left), 'foreign number')} of axes or values that no table has: {where}"


def make_report(
    store: Store,
    plans: Sequence[SavedPlan],
    foreign: Sequence[Foreign] = (),
    mix: Sequence[str] = (),
    rebuild: bool = False,
    whole: bool = True,
    hidden: bool = False,
) -> Report:
    """Read some sweeps and lay out their tables. Nothing but the store is read.

    Claims are judged of `whole` sweeps, and their analyses kept; so are caches. With `hidden`, nothing in the
    report tells who made it, or where.
    """
    standings = [stand(saved.plan, store, Observer(), rebuild) for saved in plans]
    of_each = [read_lines(saved, found, store, rebuild) for saved, found in zip(plans, standings, strict=True)]
    every = [line for some in of_each for line in some]
    names = without_folders(label for line in every for label in line.labels.values()) if hidden else {}
    lines = [anonymous(line, names) if hidden else line for line in every]
    claims = [c for saved, some in zip(plans, of_each, strict=True) if whole for c in judge(saved, some, store)]
    baselines = {path: sha256 for saved in plans for path, sha256 in saved.declared.baselines.items()}
    frame = Frame.of(lines, [*read_foreigners(store, baselines), *foreign])
    known = {*frame.axes, *(name for line in lines[:1] for name in line.facts.protocol)}
    for row in frame.foreign:
        if unknown := [axis for axis in row.labels if axis not in known]:
            said = f"{unknown[0]!r} is no axis; there are {', '.join(frame.axes)}{nearest(unknown[0], known)}"
            raise UserError(f"{row.file}: column {said}")
    tables = list({table.name: table for saved in reversed(plans) for table in saved.declared.tables}.values())
    for at, table in enumerate(tables):
        baseline = table.baseline
        if isinstance(baseline, dict):
            baseline = {axis: names.get(str(label), label) for axis, label in baseline.items()}
        tables[at] = table.model_copy(update={"mix": tuple(dict.fromkeys([*table.mix, *mix])), "baseline": baseline})
    name = "+".join(saved.plan.name for saved in plans)
    report = Report(name, store, plans, standings, frame, tables, claims, hidden)
    before = [said for saved in plans if whole for said in replaced_claims(saved, store)]
    report.grids = [as_grid(claims, before)] if claims or before else []
    for grid in report.grids:
        for label in sorted(names, key=len, reverse=True):
            grid.caption = grid.caption.replace(label, names[label])
    overlaps = Overlaps(store)
    wanted = list(dict.fromkeys(kind for saved in plans for kind in saved.declared.figures))
    compared = next((table.baseline for table in tables if isinstance(table.baseline, str)), "default")
    report.figures = figures_of(frame, wanted, compared, overlaps)
    overlaps.keep()
    report.grids += [grid for table in tables for grid in build(table, frame)]
    for grid in report.grids:
        grid.report = name
    return report


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write all of it into a folder, and remove what an earlier report wrote there and this one has no more."""
    drawn = write_figures(folder / "figures", report.figures)
    svgs = [(figure.title, path.read_bytes()) for figure, path in zip(report.figures, drawn[1::2], strict=True)]
    files = {saved.plan.name: sweep_file(saved, report.store) for saved in report.plans}
    files = {name: Path(file).name for name, file in files.items()} if report.hidden else files
    files = {name: shlex.quote(file) for name, file in files.items()}
    option = "" if report.hidden else store_option(report.store.root)
    text = page(report.name, report.summary, report.grids, report.frame, svgs, report.store, files, option)
    files_now = [*write_files(folder, {"report.html": text.encode()}), *write_tables(folder, report.grids)]
    files_now += write_cells(folder, report.frame)
    forget_files(folder, files_now)
    return [*files_now, *drawn]
