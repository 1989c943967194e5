"""The ready-made view of a leaderboard, in MLflow's own pages: a person sees there what the tracking API says.

The view is a tag whose format MLflow does not document, so only a browser can tell whether it still works.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from compresskit import tracking

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs the programs chromium and chromedriver"),
]
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip
PATIENCE = 120  # seconds for a page or a server, on a machine that is busy with other things

TASK = "sst2-bundled"
MODELS = [  # system, variant, layers, score, median latency in ms; made, and not in the order of their scores
    ("tinybert", "uniform-3l", 3, 0.8711, 10.5513),
    ("sparsebert", "pruned-3l", 3, 0.8609, 10.61),
    ("autotinybert", "searched-2ms", 3, 0.8123, 2.0625),
    ("baseline", "teacher-6l", 6, 0.8941, 20.42),
    ("dynamic_tinybert", "length-64", 4, 0.8654, 7.3),
    ("efficientbert", "formula-a", 5, 0.8476, 6.75),
    ("tinybert", "explicit-4l", 4, 0.88259, 13.875),
]
METRICS = ["score_pct", "latency_p50_ms", "latency_p95_ms", "speedup_x"]
METRICS += ["params_m", "disk_mb", "gflops", "sparsity_pct"]
PARAMS = ["layers", "hidden", "ffn", "heads"]


def enter_models(folder: Path) -> None:
    """A leaderboard of MODELS, as evaluations would write it; no two numbers of it are equal."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for place, (system, variant, layers, score, latency) in enumerate(MODELS):
        parameters = 1e6 * (4.1234 + 1.75 * layers + 0.31 * place)
        tracking.leaderboard(
            TASK,
            system=system,
            variant=variant,
            seed=42,
            measured={
                "score": score,
                "score_low": score - 0.021,
                "score_high": score + 0.019,
                "rows": 741,
                "latency_p50_ms": latency,
                "latency_p95_ms": 1.09 * latency,
                "speedup": 20.42 / latency,
                "parameters": parameters,
                "model_bytes": 4.01 * parameters,
                "flops": 1.1e8 * latency,
                "sparsity": 0.08 * place,
            },
            params={"layers": layers, "hidden": 256 + 16 * place, "ffn": 1024 + 64 * place, "heads": [12, 6, place]},
            source=str(folder),
            folder=folder,
            evaluated_by="made",
            data_digest="made",
        )


@contextmanager
def serving(command: list[str], path: str, log: Path) -> Iterator[SimpleNamespace]:
    """A server on a free port of this machine, once its `path` answers: .address, .port, .processes.

    command: its arguments, with PORT for the port.  log: takes what it prints.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *(str(port) if word == "PORT" else word for word in command)]
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    address, deadline, processes = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE, [psutil.Process(server.pid)]
    try:
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, f"{address} does not answer\n{log.read_text()}"
            with suppress(OSError):
                urllib.request.urlopen(address + path, timeout=5)
                break
            time.sleep(0.5)
        processes += processes[0].children(recursive=True)
        yield SimpleNamespace(address=address, port=port, processes=processes)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        for left in psutil.wait_procs(processes, timeout=20)[1]:
            left.kill()


@contextmanager
def chromium(profile: Path, width: int, height: int) -> Iterator[webdriver.Chrome]:
    """A browser without a screen, with a new profile and a window of that many pixels."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="module")
def ui(store_template, tmp_path_factory):
    """`compresskit ui` on a store with MODELS, and a browser that can show a whole view: .server, .browser, .rows."""
    folder = tmp_path_factory.mktemp("leaderboard")
    shutil.copytree(store_template, folder / "project" / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("COMPRESSKIT_PARENT_RUN", raising=False)
        patch.setenv("COMPRESSKIT_HOME", str(folder / "project"))
        enter_models(folder / "project" / "saved")
        rows = tracking.leaderboard_table(TASK)
        command = ["compresskit.cli", "ui", "--port", "PORT"]
        with serving(command, "/health", folder / "server.log") as server:
            with chromium(folder / "profile", 3600, 1600) as browser:
                yield SimpleNamespace(server=server, browser=browser, rows=rows)


TABLE = """
const cells = {};
for (const cell of document.querySelectorAll('.ag-row .ag-cell')) {
    const row = cell.closest('.ag-row').getAttribute('row-index');
    (cells[row] ??= {})[cell.getAttribute('col-id')] = cell.innerText.trim().split('\\n').pop();
}
const names = [...document.querySelectorAll('.ag-row [col-id*="Run Name"] a, .ag-row [col-id*="Run Name"] a *')];
return {
    headers: [...document.querySelectorAll('.ag-header-cell')]
        .map(cell => [cell.getBoundingClientRect().left, cell.getAttribute('col-id'), cell.innerText.trim()]),
    rows: Object.keys(cells).sort((a, b) => a - b).map(row => cells[row]),
    cut: names.filter(e => e.clientWidth > 0 && e.scrollWidth > e.clientWidth).map(e => e.innerText),
};
"""
CHARTS = """
return [...document.querySelectorAll('.js-plotly-plot')].filter(plot => plot.data).map(plot => ({
    kind: plot.data[0].type,
    title: plot.closest('[data-testid="experiment-view-compare-runs-card"]')?.innerText ?? '',
    x: Array.from(plot.data[0].x),
    y: Array.from(plot.data[0].y),
}));
"""


def shown(browser: webdriver.Chrome, script: str, ready) -> object:
    """What the script finds in the page, once that is `ready`."""
    found = []

    def look(browser):
        found.append(browser.execute_script(script))
        return ready(found[-1])

    WebDriverWait(browser, PATIENCE, poll_frequency=0.5).until(look)
    return found[-1]


def as_shown(value: object) -> str:
    """A number as JavaScript writes it (80, not 80.0); texts as they are."""
    return str(value).removesuffix(".0")


def test_the_ui_is_light_and_answers_on_this_machine_only(ui):
    assert len(ui.server.processes) <= 3
    listening = [
        connection.laddr
        for process in ui.server.processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {(at.ip, at.port) for at in listening} == {("127.0.0.1", ui.server.port)}


def test_the_view_shows_the_columns_and_values_of_the_tracking_api_best_score_first(ui, tmp_path):
    ui.browser.get(tracking.view_url(TASK, ui.server.address))
    wanted = [f"metrics.`{key}`" for key in METRICS] + [f"params.`{key}`" for key in PARAMS] + ["tags.`system`"]
    table = shown(
        ui.browser,
        TABLE,
        lambda table: len(table["rows"]) >= len(MODELS) and all(set(wanted) <= set(row) for row in table["rows"]),
    )
    ui.browser.save_screenshot(str(tmp_path / "view.png"))

    ours = [(column, text) for _, column, text in sorted(table["headers"]) if column in wanted]
    assert ours == list(zip(wanted, [*METRICS, *PARAMS, "system"], strict=True))
    assert [row["attributes.`Run Name`"] for row in table["rows"]] == list(ui.rows["name"])
    best_first = sorted((100 * score for _, _, _, score, _ in MODELS), reverse=True)
    assert list(ui.rows["score_pct"]) == pytest.approx(best_first, abs=1e-4)
    assert len(table["rows"]) >= 6
    for row, (_, expected) in zip(table["rows"], ui.rows.iterrows(), strict=True):
        assert {column: row[column] for column in wanted} == {
            column: as_shown(expected[column.split("`")[1]]) for column in wanted
        }
    assert not table["cut"], "colours repeat in the UI, so a name has to be readable in full"


def test_the_charts_show_every_model_with_score_against_latency_first(ui, tmp_path):
    ui.browser.get("about:blank")  # the two views differ after the # only, which alone loads nothing
    ui.browser.get(tracking.view_url(TASK, ui.server.address) + "&compareRunsMode=CHART")
    charts = shown(ui.browser, CHARTS, lambda charts: len(charts) >= 7)
    ui.browser.save_screenshot(str(tmp_path / "charts.png"))

    pairs = [("latency_p50_ms", "score_pct"), ("params_m", "score_pct"), ("gflops", "latency_p50_ms")]
    for chart, (x, y) in zip(charts[:3], pairs, strict=True):
        assert chart["kind"] == "scatter"
        assert f"{x} vs. {y}" in chart["title"]
        points = sorted(zip(chart["x"], chart["y"], strict=True))
        assert points == sorted(zip(ui.rows[x], ui.rows[y], strict=True))
    for chart, key in zip(charts[3:], ["score_pct", "latency_p50_ms", "speedup_x", "disk_mb"], strict=True):
        assert chart["kind"] == "bar"
        assert key in chart["title"]
        assert sorted(chart["x"]) == sorted(ui.rows[key])
