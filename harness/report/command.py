"""`harness report`: tables, figures and a page of one or several sweeps, from the store alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from harness.asked import FILES, beside, edited, reported, sweep_file
from harness.completing import sweeps_here
from harness.declared import GUARDED
from harness.errors import UserError, printable
from harness.foreign import Foreign, foreign_bytes, foreign_copy, kept_foreign, read_foreign
from harness.report.assemble import Report, make_report, write_report
from harness.report.grids import Grid
from harness.report.latex import MARK
from harness.report.writers import on_terminal
from harness.store import Store, write_whole
from harness.terminal import STORE, answered, command, examples, note, out_console, short_path, show_tables, tell
from harness.words import count
from tost.catalog import nearest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
EXAMPLES = examples(
    "harness report quickstart",
    "harness report quickstart --out tables --quiet",
    "harness report quickstart --verify paper.tex",
)


def print_tables(report: Report) -> None:
    """Print all tables."""
    out = out_console()
    width = out.width
    for grid in report.grids:
        show_tables(*on_terminal(grid, width), out=out)
    if report.unplaced:
        typer.echo(printable(report.unplaced), err=True)


def _foreign(paths: list[Path], store: Store) -> list[Foreign]:
    """Read files of foreign numbers, and keep a copy of each in the store, so that a table's can be checked later."""
    found = []
    for path in paths:
        try:
            data = foreign_bytes(path)
            rows = read_foreign(data, str(path))
        except OSError as error:
            raise UserError(f"--baselines {path}: {error.strerror}; name a CSV file") from None
        except ValueError as error:
            raise UserError(f"--baselines {path}: {error}") from None
        copy = foreign_copy(store, rows[0].sha256)
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_whole(copy, data)
        found += rows
    return found


def _mixed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in GUARDED:
            raise UserError(f"--mix {name}: choose from {', '.join(GUARDED)}{nearest(name, GUARDED)}")
    return names


def _verify(paper: Path, make: Callable[..., Report], sweeps: list[str]) -> int:
    """Say what a paper's tables have right and wrong; return the exit code."""
    from harness.report.verify import verify

    def tables_of(named: str, hashes: Iterable[str]) -> list[Grid]:
        return make(sweeps or named.split("+"), hashes).grids

    found = verify(paper, tables_of)
    for finding in found.findings:
        tell(finding.text, 1000)
    if not found.numbers and not found.findings:
        raise UserError(f"{paper}: holds no table with numbers; those of this tool have a comment {MARK} behind each")
    right, wrong = count(found.numbers, "number"), len(found.findings)
    typer.echo(f"{right} as the store has them; {count(wrong, 'finding')}", err=True)
    return 1 if wrong else 0


@app.command(epilog=EXAMPLES)
def main(
    sweeps: Annotated[
        list[str],
        typer.Argument(help="Sweeps by name or file; several are joined by their axes.", autocompletion=sweeps_here),
    ] = [],  # noqa: B006
    store: Annotated[Path, typer.Option(help="The store's folder.")] = STORE,
    data: Annotated[Path | None, typer.Option(help="The folder of data sets, where a file is given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where files go; else beside the sweep's plan in the store.")] = None,
    baselines: Annotated[list[Path], typer.Option(help="A CSV file of numbers from elsewhere.")] = [],  # noqa: B006
    mix: Annotated[str, typer.Option(help=f"What tables may mix: some of {', '.join(GUARDED)}.")] = "",
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Believe no index: look at every stage.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no tables.")] = False,
    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous", help="Leave hosts, jobs, commits, folders and logs out of page, tables and figures."
        ),
    ] = False,
    verify: Annotated[
        Path | None, typer.Option(help="Check every number of the harness's tables in a LaTeX paper.", metavar="TEX")
    ] = None,
) -> None:
    """Write tables, figures and a page to browse, from the store alone; no result in it is changed.

    Exit codes: 0 written, or all verified; 1 a number of the paper is not what the store says; 2 a mistake on the
    command line; 3 the files cannot be written.
    """
    with answered(store):
        place, foreign, told = Store(store), _foreign(baselines, Store(store)), _mixed(mix)

        def make(names: list[str], hashes: Iterable[str] = ()) -> Report:
            plans = {name: reported(name, place, data) for name in names}
            for name, saved in plans.items():
                if name.endswith(FILES) and (there := beside(Path(name), saved.plan.name, store)):
                    note(there)
                if edited(name, saved, place):
                    file = sweep_file(saved, place)
                    now = command("report", file, store=store)
                    said = f"{file} was edited since its plan was made: `{now}` reports on it as it is"
                    typer.echo(said, err=True)
            had = {sha256 for saved in plans.values() for sha256 in saved.declared.baselines.values()}
            rows = [*foreign, *kept_foreign(place, sorted({*hashes} - had - {row.sha256 for row in foreign}))]
            believe_nothing = rebuild or verify is not None
            return make_report(place, list(plans.values()), rows, told, believe_nothing, hidden=anonymous)

        if verify is not None:
            raise typer.Exit(_verify(verify, make, sweeps))
        if not sweeps:
            raise UserError("name a sweep, for example: harness report quickstart")
        report = make(sweeps)
        own = place.sweep(report.name) if len(report.plans) == 1 else place.root / "reports" / report.name
        folder = out or (own / "report" if len(report.plans) == 1 else own)
        files = write_report(report, folder)
        if not quiet:
            print_tables(report)
        cells = f"{report.done} of {count(len(report.frame.lines), 'cell')} done"
        typer.echo(f"{cells}; {count(len(files), 'file')} in {short_path(folder)}", err=True)
