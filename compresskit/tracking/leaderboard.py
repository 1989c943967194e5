"""Results that are compared: one flat run per final model in `leaderboard/<task>`, one per timing in `latency/<host>`.

The only place where shares become percent, bytes MB and FLOPs GFLOPs: bar labels in the UI have two decimals, and runs
nested below a pipeline are missing from its charts.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compresskit.tracking import machine
from compresskit.tracking.lookup import LONGEST_TAG, search
from compresskit.tracking.models import folder_digest, run_of
from compresskit.tracking.store import client, experiment_id
from compresskit.tracking.view import VIEW, install_view

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "leaderboard/"
SYSTEMS = ("tinybert", "autotinybert", "efficientbert", "sparsebert", "dynamic_tinybert", "combined", "baseline")
UNITS = {  # name in `measured` -> key on the leaderboard, factor; MB are 10^6 bytes
    "score": ("score_pct", 100),
    "latency_p50_ms": ("latency_p50_ms", 1),
    "latency_p95_ms": ("latency_p95_ms", 1),
    "parameters": ("params_m", 1e-6),
    "model_bytes": ("disk_mb", 1e-6),
    "flops": ("gflops", 1e-9),
    "sparsity": ("sparsity_pct", 100),
    "speedup": ("speedup_x", 1),
    "score_low": ("score_low_pct", 100),
    "score_high": ("score_high_pct", 100),
    "rows": ("rows", 1),
}
OPTIONAL_UNITS = {
    "majority": ("majority_pct", 100),
    "model_sparsity": ("model_sparsity_pct", 100),
    "sparse_latency_p50_ms": ("sparse_latency_p50_ms", 1),  # of a pruned model, by its nonzero weights
    "sparse_model_bytes": ("sparse_disk_mb", 1e-6),
}
TAGS = ["system", "variant", "seed", "pipeline_run_id", "model_run_id", "model_uri", "model.digest", "evaluated_from"]
TAGS += ["evaluated_by", "data.digest", "git.commit", "dirty", "hardware"]


def leaderboard(
    task: str,
    *,
    system: str,
    variant: str,
    seed: int,
    measured: Mapping[str, Any],
    params: Mapping[str, Any],
    source: str,
    folder: Path,
    evaluated_by: str,
    data_digest: str,
) -> str:
    """Enter one model, as `<system>-<variant>-<seed>`, and return its run id.  A row of the same name and pipeline run
    is replaced.

    measured: the names of UNITS in natural units (shares from 0 to 1, bytes, FLOPs per example); `metrics` by name, as
    shares; other names are left out.  params: what differs between rows (layers, hidden, ffn, heads, dtype, engine,
    batch, seq, threads).  source: what named the model; folder: where it was loaded from; evaluated_by: the run that
    measured it; data_digest: of the rows.
    """
    if system not in SYSTEMS:
        raise ValueError(f"system {system!r} is none of {', '.join(SYSTEMS)}")
    if missing := sorted(set(UNITS) - set(measured)):
        raise ValueError(f"a row of the leaderboard needs {', '.join(missing)}")
    values = {
        key: round(factor * float(measured[name]), 4)  # the UI shows every digit there is
        for name, (key, factor) in (UNITS | OPTIONAL_UNITS).items()
        if measured.get(name) is not None
    }
    for metric, value in measured.get("metrics", {}).items():
        short = metric.rpartition("/")[2]  # eval/accuracy -> accuracy_pct; a loss is no share
        values |= {short: float(value)} if short == "loss" else {f"{short}_pct": round(100 * float(value), 4)}
    name, place = f"{system}-{variant}-{seed}", experiment_id(PREFIX + task)
    tags = {
        "system": system,
        "variant": variant,
        "seed": seed,
        "stage": "final",
        "task": task,
        "pipeline_run_id": os.environ.get("COMPRESSKIT_PARENT_RUN"),
        "model_run_id": run_of(source),
        "model_uri": source,
        "model.digest": folder_digest(folder),
        "evaluated_from": folder,
        "evaluated_by": evaluated_by,
        "data.digest": data_digest,
    }
    same = [
        run
        for run in search(place, "tags.stage = 'final'")
        if run.info.run_name == name and run.data.tags.get("pipeline_run_id") == tags["pipeline_run_id"]
    ]
    run_id = _record(place, name, values, params, tags, model_type=system)
    for run in same:
        client().delete_run(run.info.run_id)
        if old := run.data.tags.get("model_id"):
            client().delete_logged_model(old)
    install_view(place)
    return run_id


def log_latency(host: str, measured: Mapping[str, Any], source: str) -> str:
    """Enter one timing of one model, in the experiment `latency/<host>`; raw samples become a table.

    measured: name, latency_p50_ms, latency_p95_ms, iqr_ms, relative_iqr, rounds, threads, batch_size, seq_len,
    samples_ms, and optionally engine.  Returns the run id.
    """
    import pandas as pd

    settings = {"batch": measured["batch_size"], "seq": measured["seq_len"], "threads": measured["threads"]}
    settings |= {"model": measured["name"], "engine": measured.get("engine", "torch")}
    numbers = ("latency_p50_ms", "latency_p95_ms", "iqr_ms", "relative_iqr", "rounds")
    name = "{model}-{engine}-b{batch}-s{seq}-t{threads}".format(**settings)
    tags = {"stage": "latency", "model_uri": source, "pipeline_run_id": os.environ.get("COMPRESSKIT_PARENT_RUN")}
    run_id = _record(experiment_id(f"latency/{host}"), name, {n: float(measured[n]) for n in numbers}, settings, tags)
    samples = pd.DataFrame({"round": range(len(measured["samples_ms"])), "ms": measured["samples_ms"]})
    client().log_text(run_id, samples.to_json(orient="split", index=False), "tables/samples.json")
    return run_id


def leaderboard_tasks() -> list[str]:
    """The tasks with a leaderboard."""
    found = client().search_experiments(filter_string=f"name LIKE '{PREFIX}%'")
    return sorted(e.name.removeprefix(PREFIX) for e in found)


def leaderboard_table(task: str, pipeline_run_id: str | None = None) -> "pd.DataFrame":
    """The newest row of each name (of one pipeline run, when given), best score first.

    Columns: name, the metrics, the params, TAGS with _ for their dots, run_id, end_time (ms).
    Raises ValueError when there is no row.
    """
    import pandas as pd

    found = client().get_experiment_by_name(PREFIX + task)
    condition = "tags.stage = 'final' and attributes.status = 'FINISHED'"
    newest = {
        run.info.run_name: run
        for run in reversed(list(search(found.experiment_id, condition)) if found else [])
        if pipeline_run_id is None or run.data.tags.get("pipeline_run_id") == pipeline_run_id
    }
    if not newest:
        others = ", ".join(leaderboard_tasks()) or "none"
        raise ValueError(
            f"no results for task {task!r} (there are leaderboards for: {others}); run a pipeline or the stage evaluate"
        )
    rows = [
        {"name": name, **run.data.metrics, **run.data.params, "run_id": run.info.run_id, "end_time": run.info.end_time}
        | {key.replace(".", "_"): run.data.tags.get(key) for key in TAGS}
        for name, run in newest.items()
    ]
    table = pd.DataFrame(rows)
    first = ["name", *(key for key, _ in UNITS.values())]
    table = table[first + [column for column in table if column not in first]]
    return table.sort_values("score_pct", ascending=False, ignore_index=True)


def view_url(task: str, server: str = "http://127.0.0.1:5000") -> str:
    """The ready-made view of a task's leaderboard on a running `compresskit ui`."""
    return f"{server}/#/experiments/{experiment_id(PREFIX + task)}/runs?viewStateShareKey={VIEW}"


def _record(
    place: str,
    name: str,
    values: Mapping[str, float],
    params: Mapping[str, Any],
    tags: Mapping[str, Any],
    model_type: str | None = None,
) -> str:
    """One finished run; with a model_type also a model in the UI's list of models, to which the metrics belong."""
    from mlflow.entities import LoggedModelOutput, Metric, Param

    c, now = client(), int(time.time() * 1000)
    texts = {k: str(v)[:LONGEST_TAG] for k, v in (machine.tags() | dict(tags)).items() if v is not None}
    settings = {key: str(value) for key, value in params.items()}
    run_id = c.create_run(place, run_name=name, tags=texts).info.run_id
    model_id = None
    if model_type is not None:
        known = {key: texts[key] for key in TAGS if key in texts}
        model_id = c.create_logged_model(place, name, run_id, known, settings, model_type).model_id
        c.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
        c.set_tag(run_id, "model_id", model_id)
    metrics = [Metric(key, value, now, 0, model_id=model_id) for key, value in values.items()]
    c.log_batch(run_id, metrics, [Param(key, value) for key, value in settings.items()])
    if model_id is not None:
        c.finalize_logged_model(model_id, "READY")
    c.set_terminated(run_id)
    return run_id
