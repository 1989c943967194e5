"""The notebook `explore` in JupyterLab: its controls are there and redraw the pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from compresskit import tracking
from tests.browser.test_leaderboard_view import (
    CHROMIUM,
    DRIVER,
    MODELS,
    PATIENCE,
    TASK,
    chromium,
    enter_models,
    serving,
)

ROOT = Path(__file__).parents[2]
COSTS = ["latency_p50_ms", "latency_p95_ms", "params_m", "disk_mb", "gflops"]
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs the programs chromium and chromedriver"),
]


@pytest.fixture
def lab(store, tmp_path, monkeypatch) -> Iterator[webdriver.Chrome]:
    """The notebook, opened in JupyterLab, in a project with a leaderboard and two runs with curves."""
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, store / folder, dirs_exist_ok=True)
    enter_models(store / "saved")
    for name, last in (("short", 30), ("long", 90)):
        run = tracking.start("finetune", f"baseline/{TASK}", name, {"num_steps": last})
        for step in range(last):
            run.log(step, {"train/loss": 1 / (step + 1), "train/learning_rate": 1e-4 * (1 - step / last)})
        run.log(last, {"eval/accuracy": 0.8})
        run.finish()

    home = tmp_path / "jupyter"  # nothing of the person's own settings, and no question about news
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    monkeypatch.setenv("JUPYTERLAB_SETTINGS_DIR", str(home / "settings"))
    settings = home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    command = ["jupyterlab", "--no-browser", "--allow-root", "--ip", "127.0.0.1", "--port", "PORT"]
    command += ["--ServerApp.token=", "--notebook-dir", str(store)]
    with serving(command, "/api/status", tmp_path / "server.log") as server:
        with chromium(tmp_path / "profile", 1500, 2600) as browser:
            browser.get(f"{server.address}/lab/tree/notebooks/explore.ipynb")
            yield browser


def found(browser: webdriver.Chrome, selector: str) -> list:
    return browser.find_elements(By.CSS_SELECTOR, selector)


def wait(browser: webdriver.Chrome, condition, what: str) -> None:
    WebDriverWait(browser, PATIENCE, poll_frequency=0.2).until(lambda _: condition(), f"waited in vain for {what}")


def pictures(browser: webdriver.Chrome) -> list[str]:
    """The picture in each output area, as PNG in base64; an area without a picture is missing."""
    script = "return [...document.querySelectorAll('.widget-output img')].filter(i => i.naturalWidth).map(i => i.src)"
    return browser.execute_script(script)


def changed(browser: webdriver.Chrome, before: list[str], which: int) -> list[str]:
    """The pictures once number `which` is another than before, and only that one."""
    wait(browser, lambda: len(now := pictures(browser)) == 2 and now[which] != before[which], "a new picture")
    after = pictures(browser)
    assert after[1 - which] == before[1 - which]
    return after


def test_explore_shows_its_controls_and_redraws_what_they_are_for(lab, tmp_path):
    wait(lab, lambda: "Python 3 (ipykernel) | Idle" in lab.page_source, "a kernel that is ready")
    next(item for item in found(lab, ".lm-MenuBar-item") if item.text == "Run").click()
    wait(lab, lambda: found(lab, ".lm-Menu-item[data-command='runmenu:run-all']"), "the menu Run")
    found(lab, ".lm-Menu-item[data-command='runmenu:run-all']")[0].click()
    wait(lab, lambda: len(pictures(lab)) == 2, "a picture in each of the two output areas")
    lab.save_screenshot(str(tmp_path / "explore.png"))

    assert [label.text for label in found(lab, ".widget-dropdown .widget-label")] == ["cost", "curves of"]
    assert [label.text for label in found(lab, ".widget-select-multiple .widget-label")] == ["systems"]
    cost, run = (Select(element) for element in found(lab, ".widget-dropdown select"))
    systems = Select(found(lab, ".widget-select-multiple select")[0])
    assert [option.text for option in cost.options] == COSTS
    assert [option.text for option in systems.options] == sorted({system for system, *_ in MODELS})
    assert [option.text.split()[0] for option in run.options] == ["long", "short"]  # the newest first
    assert [len(found(area, "img")) for area in found(lab, ".widget-output")] == [1, 1]

    first = pictures(lab)
    cost.select_by_visible_text("params_m")
    by_size = changed(lab, first, 0)
    lab.save_screenshot(str(tmp_path / "by_size.png"))
    systems.select_by_visible_text("tinybert")
    one_system = changed(lab, by_size, 0)
    run.select_by_index(1)
    other_curves = changed(lab, one_system, 1)
    lab.save_screenshot(str(tmp_path / "one_system.png"))
    systems.deselect_by_visible_text("tinybert")
    assert changed(lab, other_curves, 0)[0] == by_size[0], "the picture depends on more than its controls"
    errors = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"
    assert [output.text for output in found(lab, errors)] == []
