"""The leaderboard of a task as a table and a plot, and checks on it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from compresskit import tracking
from compresskit.evaluation import figures
from compresskit.evaluation.pareto import front

SHOWN = [
    "name", "score_pct", "score_low_pct", "score_high_pct", "rows", "latency_p50_ms", "latency_p95_ms", "speedup_x",
    "params_m", "disk_mb", "gflops", "sparsity_pct", "sparse_latency_p50_ms", "front",
]  # fmt: skip


def pareto_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Leaderboard rows as the Pareto plot takes them."""
    return rows.rename(columns={"score_low_pct": "low_pct", "score_high_pct": "high_pct"})


def leaderboard(task: str) -> pd.DataFrame:
    """The newest row of each model with a column `front`: no other is both better and faster; best score first.

    Rows scored on other data than the newest one are left out: they cannot be compared. Raises ValueError where there
    are no rows.
    """
    rows = tracking.leaderboard_table(task)
    newest = rows["data_digest"].to_numpy()[rows["end_time"].to_numpy().argmax()]
    rows = rows[rows["data_digest"] == newest].copy()
    rows["model"] = rows["system"] + "-" + rows["variant"]
    rows["front"] = front(rows[["latency_p50_ms", "score_pct"]].to_numpy())
    return rows.sort_values("score_pct", ascending=False, ignore_index=True)


def compare(task: str, at_least: dict[str, float], out: Path) -> pd.DataFrame:
    """Print the leaderboard of a task, save its Pareto plot as `out`, check it.

    at_least: lower bounds by name, of MEASURES. Raises ValueError with every bound that does not hold.
    """
    rows = leaderboard(task)
    with pd.option_context("display.width", 200, "display.max_columns", 30, "display.float_format", "{:.2f}".format):
        print(rows[[name for name in SHOWN if name in rows]].to_string(index=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    figures.pareto_plot(pareto_rows(rows)).savefig(out)
    print(f"\nPareto plot: {out}\nin MLflow (make ui): {tracking.view_url(task)}")
    check(rows, at_least)
    return rows


MEASURES = {
    "models": lambda rows: len(rows),
    "front": lambda rows: int(rows["front"].sum()),
    "points_over_majority": lambda rows: rows["score_pct"].max() - rows["majority_pct"].max(),
    "latency_ratio": lambda rows: rows["latency_p50_ms"].max() / rows["latency_p50_ms"].min(),
    "traceable": lambda rows: float((rows["model_digest"] == rows["model_uri"].map(tracking.model_digest)).mean()),
}


def check(rows: pd.DataFrame, at_least: dict[str, float]) -> None:
    """Hold lower bounds against the rows: their number, those on the front, points of the best score over the majority
    class, slowest over fastest, and the share whose saved model is still the one that was evaluated.
    """
    unknown = sorted(set(at_least) - set(MEASURES))
    if unknown:
        raise ValueError(f"--at-least {unknown[0]}: unknown; known are {', '.join(MEASURES)}")
    found = {name: MEASURES[name](rows) for name in at_least}
    missed = [f"{name} is {found[name]:.4g}, wanted at least {bound:g}" for name, bound in at_least.items()
              if not found[name] >= bound]  # fmt: skip
    if missed:
        raise ValueError("; ".join(missed))
    if found:
        print("checked: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
