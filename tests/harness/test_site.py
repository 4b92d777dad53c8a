"""The page in a real browser: from a number to its cells, sorting, filtering, keys, and no word to the network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.report.assemble import make_report, write_report
from tests.harness.synthetic import write_fixture_store

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no browser (Debian: chromium, chromium-driver)"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SCREENSHOTS = os.environ.get("HARNESS_SCREENSHOTS", "")
"""A folder for pictures of the page, for a person to look at."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    store, saved = write_fixture_store(folder)
    write_report(make_report(store, [saved]), folder / "report")
    return folder / "report" / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1400,1000", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Any, page: Path) -> Any:
    chromium.get(page.as_uri())
    waiting(chromium)(lambda d: d.execute_script("return document.documentElement.dataset.ready") == "true")
    return chromium


def waiting(driver: Any) -> Callable[[Callable[[Any], Any]], Any]:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 20).until  # type: ignore[no-any-return]


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def find_all(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def number(browser: Any, table: str, row: list[str], column: int) -> Any:
    """Return the button of a number: of a table by its name, a row by its labels, a column from 0."""
    (section,) = [s for s in find_all(browser, "section.table") if s.find_element("css selector", "h2").text == table]
    for tr in section.find_elements("css selector", "tbody tr"):
        if [th.text for th in tr.find_elements("css selector", "th")] == row:
            return tr.find_elements("css selector", "td")[column].find_element("css selector", "button.number")
    raise AssertionError(f"no row {row}")


def picture(browser: Any, name: str) -> None:
    if SCREENSHOTS:
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def test_a_number_leads_to_its_cells_and_they_to_everything_known(browser: Any) -> None:
    picture(browser, "tables")
    number(browser, "any-mask, resnet20", ["snip", "tost"], 0).click()
    waiting(browser)(lambda d: find(d, "#panel").get_attribute("open") and find_all(d, "#panel-cell dl"))
    assert find(browser, "#panel-title").text == "any-mask, resnet20: snip tost, digits, 90%"
    listed = find_all(browser, "#panel-cells tr")
    assert len(listed) == 4 + 3, "four seeds, one of them diverged, and the three that the others are compared with"
    assert "the loss is not finite in epoch 3" in find(browser, "#panel-cell").text, "seed 0 diverged"
    find_all(browser, "#panel-cells button")[1].click()
    waiting(browser)(lambda d: "seed 1" in find(d, "#panel-cells tr[aria-current=true]").text)
    text = find(browser, "#panel-cell").text
    for word in ("test@last", "Protocol", "Stamp", "Provenance", "node", "--only dataset=digits,arch=resnet20"):
        assert word in text
    assert "harness status synthetic --why" in text
    assert len(find_all(browser, "#panel-cell svg path.first")) == 2
    assert find_all(browser, "#panel-cell svg rect.ghosts")
    picture(browser, "cell")


def test_what_failed_shows_its_log_as_text(browser: Any) -> None:
    box = find(browser, "#cell-filter")
    box.send_keys("failed RuntimeError")
    waiting(browser)(lambda d: find(d, "#cell-count").text.startswith("4 of 300"))
    find(browser, "#cell-table tbody button").click()
    waiting(browser)(lambda d: find_all(d, "#panel-cell pre.log"))
    assert "<script>alert(1)</script> & 50% of $x_1$" in find(browser, "#panel-cell pre.log").text
    assert "--retry all" in find(browser, "#panel-cell").text
    picture(browser, "failure")


def test_rows_are_sorted_by_their_numbers_and_back(browser: Any) -> None:
    section = find(browser, "#table-1")

    def column() -> list[float]:
        return [float(td.text.split()[0]) for td in section.find_elements("css selector", "tbody tr td:nth-of-type(1)")]

    before, head = column(), section.find_elements("css selector", "thead button.sort")[2]
    head.click()
    assert column() == sorted(before)
    assert head.get_attribute("aria-sort") == "ascending"
    head.click()
    assert column() == sorted(before, reverse=True)


def test_rows_and_cells_are_filtered(browser: Any) -> None:
    find(browser, "#filter").send_keys("lth tost any-mask")
    shown = [tr.text for tr in find_all(browser, "table[data-table] tbody tr") if tr.is_displayed()]
    assert len(shown) == 2
    assert all(text.startswith("lth tost") for text in shown)
    find(browser, "#cell-filter").send_keys("arch=resnet32 mask=snip seed=2")
    waiting(browser)(lambda d: find(d, "#cell-count").text == "12 of 300 cells")
    find_all(browser, "#cell-table thead button")[0].click()
    values = [button.text for button in find_all(browser, "#cell-table tbody button")]
    there = [float(value) for value in values if value != "–"]
    assert there == sorted(there)
    assert values[len(there) :] == ["–"] * (12 - len(there)), "holes stand last"


def test_the_keyboard_is_enough(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    def active() -> Any:
        return browser.switch_to.active_element

    find(browser, "#filter").click()
    for _ in range(60):
        active().send_keys(Keys.TAB)
        if active().get_attribute("data-entry"):
            break
    assert active().get_attribute("data-entry"), "a number is reached"
    came_from = active().get_attribute("data-entry")
    active().send_keys(Keys.ENTER)
    waiting(browser)(lambda d: find(d, "#panel").get_attribute("open"))
    active().send_keys(Keys.ESCAPE)
    waiting(browser)(lambda d: not find(d, "#panel").get_attribute("open"))
    assert active().get_attribute("data-entry") == came_from, "and one is back where one came from"


def test_light_and_dark(browser: Any) -> None:
    def paper() -> str:
        return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    before = paper()
    find(browser, "#theme").click()
    assert paper() != before
    picture(browser, "other-theme")
    find(browser, "#theme").click()
    assert paper() == before


def test_nothing_is_asked_of_the_network_and_no_error_is_told(chromium: Any, page: Path) -> None:
    chromium.get_log("browser")
    chromium.get_log("performance")
    chromium.get(page.as_uri())
    waiting(chromium)(lambda d: d.execute_script("return document.documentElement.dataset.ready") == "true")
    find(chromium, "section.table button.number").click()
    waiting(chromium)(lambda d: find_all(d, "#panel-cell dl"))
    chromium.execute_script("document.getElementById('panel').close(); scrollTo(0, document.body.scrollHeight)")
    waiting(chromium)(
        lambda d: all(d.execute_script("return arguments[0].complete", i) for i in find_all(d, "img")[:1])
    )
    assert [entry for entry in chromium.get_log("browser") if entry["level"] != "INFO"] == []
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked, "the page itself"
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert [url for url in asked if url.startswith("file:")] == [page.as_uri()]


def test_an_anonymous_page_tells_no_host_and_no_commit(page: Path, tmp_path: Path) -> None:
    import base64
    import gzip
    import re

    from harness.store import Store

    store = Store(page.parents[1] / "runs")
    from harness.planfile import find_plan, read_plan

    report = make_report(store, [read_plan(find_plan(store, "synthetic"))], hidden=True)
    write_report(report, tmp_path)

    def content(path: Path) -> str:
        packed = re.findall(r'id="(?:data|curves)">([^<]+)<', path.read_text())
        return path.read_text() + gzip.decompress(base64.b64decode(packed[0])).decode()

    for telling in ("node1", "node2", "1" * 10, "RuntimeError", str(page.parents[1])):
        assert telling in content(page)
        assert telling not in content(tmp_path / "report.html")
