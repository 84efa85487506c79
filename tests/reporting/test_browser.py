"""Pages as a person sees them: our reports and those of MLflow, in a real browser; screenshots are left for people.

Needs `pip install -e '.[browser]'` and a Chromium (Debian's package `chromium`); skipped, visibly, without either.
The screenshots go to PTQ_EXP_SCREENSHOTS, or to pytest's temporary folder.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from example_records import job, layer, result
from stores import all_runs, finish, free_port, server

from ptq_exp.reporting.html.comparison import comparison
from ptq_exp.reporting.html.content import Results, report, sweep_results
from ptq_exp.reporting.html.pictures import images
from ptq_exp.reporting.plots.overall import draw_sweep
from ptq_exp.results.records import SweepRecord

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(900),
]
SECONDS = 60_000  # milliseconds that a page may take on a busy machine


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with two sweeps: 4 and 8 bits, and two methods at three bit widths each."""
    folder = tmp_path_factory.mktemp("site")
    with server(folder, free_port()) as uri:
        for swept in (["quant.bits=4,8"], ["quant=notebook,mse", "quant.bits=[2,4,8]"]):
            command = [sys.executable, str(ROOT / "run.py"), *TINY, *swept, "-m", f"tracking.uri={uri}"]
            job = subprocess.Popen(
                [*command, f"cache_dir={folder / 'cache'}"],
                cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            finish(job)
        yield uri


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1700, "height": 900})
        browser.close()


@pytest.fixture
def shoot(page: Any, tmp_path: Path) -> Callable[[str], None]:
    """Keep what the page shows as a PNG."""
    folder = Path(os.environ.get("PTQ_EXP_SCREENSHOTS", tmp_path))

    def keep(name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(folder / f"{name}.png"))

    return keep


def see(page: Any, text: str) -> None:
    """Wait until `text` is visible somewhere."""
    page.get_by_text(re.compile(text)).first.wait_for(state="visible", timeout=SECONDS)


def unfold(page: Any, name: str) -> None:
    """Click on the plus sign before a run's name."""
    row = page.locator(".ag-row", has_text=name).first
    row.wait_for(state="visible", timeout=SECONDS)
    row.locator("button", has=page.locator("svg")).first.click()


def test_the_runs_page_shows_a_sweep_as_a_row_that_unfolds(site: str, page: Any, shoot: Callable[[str], None]) -> None:
    page.goto(f"{site}/#/experiments/1/runs?viewStateShareKey=ptq_exp")
    see(page, "sweep quant.bits=4,8")
    assert page.get_by_text("w4 notebook").count() == 0  # folded
    unfold(page, "sweep quant.bits=4,8")
    see(page, "w4 notebook")
    see(page, "w8 notebook")
    header = page.locator(".ag-header").inner_text()
    assert "top1" in header
    assert "quant.bits" in header
    by_bits = {
        run.data.params["quant.bits"]: run.data.metrics["top1"] for run in all_runs(site) if "top1" in run.data.metrics
    }
    for bits in ("4", "8"):
        row = page.locator(".ag-center-cols-container .ag-row").filter(has=page.get_by_text(bits, exact=True)).first
        assert f"{by_bits[bits]:.2f}"[:4] in row.inner_text()
    shoot("runs")


def test_the_chart_view_lays_two_methods_over_each_other(site: str, page: Any, shoot: Callable[[str], None]) -> None:
    page.goto(f"{site}/#/experiments/1/runs?viewStateShareKey=ptq_exp&compareRunsMode=CHART")
    unfold(page, "sweep quant=notebook,mse")
    see(page, "w2,4,8 mse")
    see(page, "top1_vs_bits")
    page.locator(".js-plotly-plot .scatterlayer .trace").nth(1).wait_for(state="attached", timeout=SECONDS)
    lines = page.locator(".js-plotly-plot").first.locator(".scatterlayer .trace")
    shoot("chart")
    assert lines.count() >= 2


def test_the_compare_page_of_two_jobs_shows_bits_and_top1(site: str, page: Any, shoot: Callable[[str], None]) -> None:
    jobs = [run.info.run_id for run in all_runs(site) if run.data.params.get("quant.bits") in ("4", "8")]
    assert len(jobs) == 2
    page.goto(f'{site}/#/compare-runs?runs=["{jobs[0]}","{jobs[1]}"]&experiments=["1"]')
    see(page, "Comparing 2 Runs")
    see(page, r"quant\.bits")
    see(page, r"^top1$")
    shoot("compare")


def test_the_parents_page_has_the_result_table(site: str, page: Any, shoot: Callable[[str], None]) -> None:
    parent = next(run for run in all_runs(site) if run.info.run_name == "sweep quant.bits=4,8")
    page.goto(f"{site}/#/experiments/1/runs/{parent.info.run_id}")
    see(page, "agreement %")
    table = page.locator("table", has_text="agreement %").first
    assert table.locator("tr").count() == 4  # headings, float, 4 and 8 bits
    shoot("parent")


def test_a_page_that_compares_two_sweeps_fits_1400_pixels(
    page: Any, tmp_path: Path, shoot: Callable[[str], None]
) -> None:
    """Also with long names, seeds and all columns: no table of it has to be scrolled."""
    swept = "quant.reconstruction.distill_steps"
    jobs = tuple(
        job(
            result(4, 71.23, bits_mean=5.0, top1_drop_ci_low=-17.72, top1_drop_ci_high=32.77, size_bytes=12_345_678),
            overrides=f"quant={method} {swept}={steps} seed={seed}",
            method=(method, f"reconstruction.distill_steps={steps}"),
            params={"seed": seed, "data.root": "a/very/long/path/" * 8}, command=("quant=best",),
        )
        for method in ("notebook", "best") for steps in (100, 2500) for seed in (0, 1)
    )  # fmt: skip
    title = f"sweep quant=notebook,best {swept}=100,2500 seed=0,1"
    first, second = Results(title, jobs, ("seed=0,1",)), Results(title, jobs[:4], ("seed=0,1",))
    (tmp_path / "page.html").write_text(comparison(first, second), encoding="utf-8")
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(f"file://{tmp_path}/page.html")
    widths = page.eval_on_selector_all(".scroll", "parts => parts.map(part => [part.scrollWidth, part.clientWidth])")
    shoot("comparison")
    assert len(widths) == 4  # the differences, two sides, the settings
    assert [needed for needed, there in widths if needed > there] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400


def test_a_report_of_eight_jobs_begins_with_one_screen(page: Any, tmp_path: Path, shoot: Callable[[str], None]) -> None:
    layers = (layer(), layer(layer="conv2", sqnr_db=9.5), layer(layer="fc", sqnr_db=31))
    jobs = tuple(
        job(
            result(bits, 80.0 + bits, layers=layers),
            overrides=f"quant={method}", method=(method,), params={"model.name": "resnet20", "data.used": "cifar10"},
            folder=tmp_path / f"{method}{bits}",
        )
        for method in ("notebook", "best") for bits in (2, 3, 4, 8)
    )  # fmt: skip
    sweep = SweepRecord("sweep quant=notebook,best quant.bits=2,3,4,8", tmp_path, ("quant.bits=2,3,4,8",), jobs, ())
    draw_sweep(sweep)
    content = report(sweep_results(sweep), images(sweep.figures))
    (tmp_path / "page.html").write_text(content, encoding="utf-8")
    page.set_viewport_size({"width": 1400, "height": 900})
    page.goto(f"file://{tmp_path}/page.html")
    shoot("report")
    contents = page.locator("nav").bounding_box()
    assert contents["y"] + contents["height"] <= 900  # question, answer, table and figure are above it
    page.get_by_role("link", name="Methods, layers").click()
    method = page.locator("details.method").first
    method.locator("summary").first.click()
    method.locator("details summary").first.click()
    heading = method.locator("table.sort button", has_text=re.compile("^SQNR dB"))
    heading.click()
    assert method.locator("table.sort tbody tr").first.inner_text().startswith("conv2")
    heading.click()
    assert method.locator("table.sort tbody tr").first.inner_text().startswith("fc")


def test_on_a_phone_a_table_says_that_it_has_more_columns(page: Any, tmp_path: Path) -> None:
    one = job(result(4, layers=(layer(),)), params={"model.name": "resnet20"}, folder=tmp_path)
    (tmp_path / "page.html").write_text(report(Results.of_job(one), {}), encoding="utf-8")
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(f"file://{tmp_path}/page.html")
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    tables = page.eval_on_selector_all(
        ".scroll",
        "parts => parts.map(part => [part.scrollWidth > part.clientWidth + 4, "
        "getComputedStyle(part, '::before').content.includes('More columns')])",
    )
    assert any(wide for wide, _ in tables)
    assert [cue for wide, cue in tables if wide != cue] == []
