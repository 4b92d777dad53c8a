"""The documentation site: built without a warning, asking nothing of another host, its reference complete."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.main import get_command

from harness.catalog import DATASETS, METRICS
from harness.cli import app
from harness.form import SweepFile
from harness.launch.profiles import Profile
from reference.commands import section, walk
from reference.fields import SWEEP, rows
from tost.catalog import MASKS, MODELS, PARTS

ROOT = Path(__file__).parents[1]
ASSETS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
WRITTEN = ("canonical", "prev", "next")
"""Relations of a link that a browser does not load."""


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Build the site as `make docs` does. Its warnings are counted only where they are printed: never with --quiet."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site."""
    folder = tmp_path_factory.mktemp("site")
    done = build("--site-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_a_link_to_nowhere_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / "results.md").open("a") as page:
        page.write("\n[nowhere](nowhere.md), [elsewhere](../nowhere.md), [no such place](tutorial.md#nowhere)\n")
    paths = f"docs_dir: {tmp_path / 'docs'}\nhooks: [{ROOT / 'reference' / 'hooks.py'}]\n"
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\n{paths}")
    done = build("--config-file", str(tmp_path / "mkdocs.yml"), "--site-dir", str(tmp_path / "site"))
    assert done.returncode == 1
    assert done.stderr.count("WARNING") == 3, done.stderr


class Loaded(HTMLParser):
    """What a browser loads for a page, and its links."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.mermaid = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        has = dict(attrs)
        if tag in ASSETS:
            self.found.append(has.get(ASSETS[tag]) or "")
        if tag == "link" and has.get("rel") not in WRITTEN:
            self.found.append(has.get("href") or "")
        self.mermaid |= "mermaid" in (has.get("class") or "").split()


def test_no_page_asks_anything_of_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.found, page
        for address in filter(None, loaded.found):
            assert not re.match(r"(\w+:)?//", address), f"{page.name}: {address}"
            assert (page.parent / address).exists() or page.name == "404.html", f"{page.name}: {address}"
        assert not loaded.mermaid, f"{page.name}: the theme would fetch mermaid for it"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_no_marker_is_left(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert "generated:" not in text, page
        assert "--8&lt;--" not in text, page


def _plain(site: Path, name: str) -> str:
    return re.sub(r"<[^>]*>", "", (site / "reference" / f"{name}.html").read_text())


@pytest.mark.parametrize(("page", "models"), [("sweep-file", list(SWEEP.values())), ("profile", [Profile])])
def test_every_field_is_there_with_a_meaning(site: Path, page: str, models: list[type[BaseModel]]) -> None:
    rows = re.findall(
        r"<tr>\s*<td><code>([^<]*)</code></td>(.*?)</tr>", (site / f"reference/{page}.html").read_text(), re.S
    )
    said = {name for name, rest in rows if re.findall(r"<td[^>]*>(.*?)</td>", rest, re.S)[-1].strip()}
    for model in models:
        for name, field in model.model_fields.items():
            assert (field.alias or name) in said, f"{model.__name__}.{name}"


def test_the_schema_says_of_every_field_what_it_means() -> None:
    schema = SweepFile.model_json_schema()
    forms = {"": schema, **schema["$defs"]}
    assert {"Table", "Claim", "Search"} <= forms.keys()
    for name, form in forms.items():
        for field, said in form.get("properties", {}).items():
            assert said.get("description"), f"{name}.{field}"


def test_every_command_and_option_is_there(site: Path) -> None:
    whole = (site / "reference" / "command-line.html").read_text()
    sections = {text.partition("<")[0]: text for text in re.split(r"<h2[^>]*>", whole)}
    for name, command in walk("harness", get_command(app)):
        found = sections[name]
        for one in command.params:
            if one.param_type_name == "option" and not one.hidden and "--help" not in one.opts:
                assert one.opts[0] in found, f"{name} {one.opts[0]}"
                assert one.help, f"{name} {one.opts[0]}"


def test_every_name_of_the_catalog_and_every_metric_is_there(site: Path) -> None:
    catalog, metrics = _plain(site, "catalog"), _plain(site, "metrics")
    assert all(re.search(rf"^{re.escape(name)}$", catalog, re.M) for name in [*MODELS, *MASKS, *PARTS, *DATASETS])
    assert all(re.search(rf"^{re.escape(name)}$", metrics, re.M) for name in METRICS)


def test_a_command_by_hand() -> None:
    tried = typer.Typer(add_completion=False)

    @tried.command(epilog="\b\nExamples:\n  tried a 3")
    def main(
        file: Annotated[Path, typer.Argument(help="A file.")],
        count: Annotated[int, typer.Option(help="How many, 1 | 2.", min=1, envvar="COUNT")] = 2,
        loud: Annotated[bool, typer.Option("--loud", help="Say so.")] = False,
        secret: Annotated[str, typer.Option(hidden=True)] = "",
    ) -> None:
        """Try it.

        Exit codes: 0.
        """

    assert section("tried", get_command(tried)).splitlines() == [
        *("## tried", "", "`tried FILE [OPTIONS]`", "", "Try it.", "", "Exit codes: 0.", ""),
        "| argument or option | default | meaning |",
        "| --- | --- | --- |",
        "| `FILE` | to be given | A file. |",
        "| `--count <int>` | `2` | How many, 1 \\| 2. Also `$COUNT`. |",
        "| `--loud` |  | Say so. |",
        *("", "```text", "Examples:", "tried a 3", "```"),
    ]


def test_fields_by_hand() -> None:
    class Some(BaseModel, use_attribute_docstrings=True):
        """Some fields."""

        name: str
        """What it
        is called."""
        share: float | None = Field(None, gt=0, le=0.5)
        ways: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
        pair: tuple[int, int] = (1, 2)
        parts: list[str] = Field(default_factory=list, min_length=1)
        on: bool = True

    assert rows(Some).splitlines()[2:] == [
        "| `name` | text | to be given | What it is called. |",
        "| `share` | number, above 0 to 0.5 | none |  |",
        "| `ways` | whole number, from 1 or `auto` | `auto` |  |",
        "| `pair` | list of 2 values | `[1, 2]` |  |",
        "| `parts` | list of text, at least 1 | none |  |",
        "| `on` | `true` or `false` | `true` |  |",
    ]


def test_a_page_that_is_missing_is_a_fault_unless_it_comes_later(tmp_path: Path) -> None:
    """Only pages under `extra: optional` may be absent; the navigation has a place for each."""
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"))
    named = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1])
    assert set(config.extra["optional"]) <= set(named)
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {name for name in named if not name.startswith("project/")} - there <= set(config.extra["optional"])
    assert there <= set(named)
