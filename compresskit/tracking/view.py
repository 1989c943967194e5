"""The view the UI opens on a leaderboard: columns chosen, best score first, score against latency as the first chart.

Without it the run list has no metric columns.  MLflow keeps a saved view as a tag of the experiment, undocumented; the
names below are those of its page (3.17), held by a test in the browser.
"""

import base64
import json
import logging
import time
import zlib
from typing import Any

from compresskit.tracking.store import client

VIEW = "leaderboard"
TAG = f"mlflow.sharedViewState.{VIEW}"
METRICS = [
    "score_pct",
    "latency_p50_ms",
    "latency_p95_ms",
    "speedup_x",
    "params_m",
    "disk_mb",
    "gflops",
    "sparsity_pct",
    "sparse_latency_p50_ms",
    "sparse_disk_mb",
]
PAIRS = [("latency_p50_ms", "score_pct"), ("params_m", "score_pct"), ("gflops", "latency_p50_ms")]
BARS = ["score_pct", "latency_p50_ms", "speedup_x", "disk_mb"]
NAME = "attributes.`Run Name`"


def install_view(experiment_id: str) -> None:
    """Save the view with the experiment, once.  Results do without it, so no error of it stops one."""
    try:
        if TAG in client().get_experiment(experiment_id).tags:
            return
        packed = zlib.compress(json.dumps(view_state()).encode(), 9)
        now = int(time.time() * 1000)
        saved = {"name": "Score and cost", "createdAt": now, "updatedAt": now}
        saved["state"] = "deflate;" + base64.b64encode(packed).decode()
        client().set_experiment_tag(experiment_id, TAG, json.dumps(saved))
    except Exception as error:
        logging.getLogger(__name__).info("no ready-made view: %s", error)


def view_state() -> dict[str, Any]:
    """What the run page reads: its search, its columns, its charts."""
    columns = [f"metrics.`{key}`" for key in METRICS]
    columns += [f"params.`{key}`" for key in ("layers", "hidden", "ffn", "heads")] + ["tags.`system`"]
    charts = [
        _chart("SCATTER", f"{y} against {x}", xaxis={"key": x, "type": "METRIC"}, yaxis={"key": y, "type": "METRIC"})
        for x, y in PAIRS
    ]
    charts += [_chart("BAR", key, metricKey=key) for key in BARS]
    sections = [{"uuid": "ours", "name": "Score and cost"}, {"uuid": "all", "name": "Model metrics"}]
    return {
        "searchFilter": "",
        "orderByKey": "metrics.`score_pct`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": [*columns, NAME],  # the name is pinned to the left; only columns listed here get their width
        "columnWidths": {column: 125 for column in columns} | {NAME: 280},  # pixels; 190 cut names of 27 letters
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [s | {"display": True, "isReordered": True, "deleted": False} for s in sections],
        "isAccordionReordered": True,
    }


def _chart(kind: str, name: str, **settings: Any) -> dict[str, Any]:
    fixed = {"uuid": name, "type": kind, "metricSectionId": "ours", "deleted": False, "isGenerated": False}
    return fixed | {"runsCountToCompare": 100, "displayName": name} | settings
