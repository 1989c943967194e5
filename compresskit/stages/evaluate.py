"""Any finished models on a task's dev rows and on this machine: one leaderboard row each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from compresskit import tracking
from compresskit.evaluation import figures, latency, sparsity
from compresskit.evaluation.flops import flops
from compresskit.evaluation.scores import Score
from compresskit.models import checkpoints, sparse
from compresskit.stages import length_choice
from compresskit.stages.inputs import board
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder
from compresskit.stages.tasks import TaskData, TaskModel, task_data, task_named

logger = logging.getLogger(__name__)
SPARSE = ", sparse"  # after a model's name: its pruned layers by their nonzero weights


class EvaluateParams(Params):
    """Parameters of the stage `evaluate`."""

    task: str = "sst2"
    # <system>-<variant>; empty: left out; with a front of lengths also …/model?lengths=2x, see stages/length_choice.py
    models: dict[str, str] = {"baseline-teacher": "models:/demo-teacher@latest"}
    baseline: str = ""  # the model that speed-ups refer to; empty: the first
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    max_seq_len: int = Field(128, ge=8)
    doc_stride: int = Field(128, ge=1)  # SQuAD: tokens from the start of one window to the next
    max_query_length: int = Field(64, ge=1)  # SQuAD: longer questions are cut, in tokens
    latency_batch_size: int = Field(1, ge=1)
    latency_seq_len: int = Field(128, ge=8)
    latency_threads: int = Field(1, ge=1)
    latency_rounds: int = Field(30, ge=10)
    max_rows: int = Field(0, ge=0)  # keep this many rows of each split, for smoke tests; 0: all
    seed: int = 42


@dataclass
class Evaluate:
    """The opened stage."""

    params: EvaluateParams
    session: Session
    models: dict[str, TaskModel]
    data: dict[str, TaskData]
    scores: dict[str, Score]
    latencies: dict[str, latency.Latency]
    sparse_bytes: dict[str, int] = field(default_factory=dict)

    def score(self) -> pd.DataFrame:
        """Score every model on all dev rows; predictions per row become an artifact."""
        for name, model in self.models.items():
            data = self.data[name]
            record = data.predict(model, "dev", f"score {name}")
            self.scores[name] = data.task.score(record)
            for file, content in data.task.official_files(record).items():
                self.session.run.json(f"predictions/{name}/{file}", content)
            record.pop("n_best", None)  # stands in a file of its own
            self.session.run.json(f"predictions/{name}.json", record)
        return pd.DataFrame(
            {
                name: {
                    "score": score.value,
                    "low": score.low,
                    "high": score.high,
                    "rows": score.rows,
                    **score.metrics,
                }
                for name, score in self.scores.items()
            }
        ).T

    def time(self) -> pd.DataFrame:
        """Time all models by turns in this process, pruned ones also by their nonzero weights."""
        params = self.params
        sparse_forms = sparse_models(self.models)
        self.sparse_bytes = {name: saved_bytes(form) for name, form in sparse_forms.items()}
        batch = latency.random_batch(
            min(model.config.vocab_size for model in self.models.values()),
            params.latency_batch_size,
            params.latency_seq_len,
        )
        results = latency.measure(
            {**self.models, **{name + SPARSE: form for name, form in sparse_forms.items()}},
            batch,
            threads=params.latency_threads,
            rounds=params.latency_rounds,
            seed=params.seed,
        )
        self.latencies = {result.name: result for result in results}
        self.session.run.json("latency.json", [asdict(result) for result in results])
        return latency.table(results)

    def rows(self) -> pd.DataFrame:
        """Everything measured, one row per model."""
        return pd.DataFrame([self._row(name) for name in self.models])

    def pareto(self) -> Figure:
        """Score against measured latency, of pruned models in both forms."""
        rows = self.rows()
        sparse_forms = rows.dropna(subset="sparse_latency_p50_ms")
        sparse_forms = sparse_forms.assign(
            name=sparse_forms["name"] + SPARSE, latency_p50_ms=sparse_forms["sparse_latency_p50_ms"]
        )
        rows = pd.concat([rows, sparse_forms], ignore_index=True)
        points = pd.DataFrame(
            {
                "name": rows["name"],
                "system": rows["system"],
                "latency_p50_ms": rows["latency_p50_ms"],
                "score_pct": rows["score"] * 100,
                "low_pct": rows["score_low"] * 100,
                "high_pct": rows["score_high"] * 100,
            }
        )
        return figures.pareto_plot(points)

    def finish(self) -> pd.DataFrame:
        """Write the leaderboard rows; returns them."""
        rows = self.rows()
        self.session.run.table("models", rows)
        for row, (name, model) in zip(map(self._row, self.models), self.models.items(), strict=True):
            tracking.leaderboard(
                board(self.params.task, self.params.data_dir),
                system=row.pop("system"),
                variant=row.pop("variant"),
                seed=self.params.seed,
                measured=row,
                params=shape(model, self.params),
                source=length_choice.split(self.params.models[name])[0],
                folder=Path(model_folder(self.params.models[name])),
                evaluated_by=self.session.run.run_id,
                data_digest=tracking.digest(self.data[name].dev),
            )
        self.session.finish({"task": self.params.task, "models": len(rows)})
        return rows.drop(columns="metrics")

    def _row(self, name: str) -> dict[str, Any]:
        baseline = self.params.baseline or next(iter(self.models))
        model, score, timed = self.models[name], self.scores[name], self.latencies[name]
        system, _, variant = name.partition("-")
        zeros = sparsity.report(sparse.to_dense(model))
        as_sparse = self.latencies.get(name + SPARSE)
        return {
            "name": name,
            "system": system,
            "variant": variant,
            "score": score.value,
            "score_low": score.low,
            "score_high": score.high,
            "majority": score.majority,
            "metrics": score.metrics,
            "rows": score.rows,
            "latency_p50_ms": timed.latency_p50_ms,
            "latency_p95_ms": timed.latency_p95_ms,
            "speedup": self.latencies[baseline].latency_p50_ms / timed.latency_p50_ms,
            "parameters": model.num_parameters(),
            "model_bytes": model_bytes(Path(model_folder(self.params.models[name]))),
            "flops": flops(model.config, self.params.latency_seq_len),
            "sparsity": zeros.sparsity,
            "model_sparsity": zeros.model_sparsity,
            "sparse_latency_p50_ms": as_sparse.latency_p50_ms if as_sparse else None,
            "sparse_model_bytes": self.sparse_bytes.get(name),
        }


def sparse_models(models: Mapping[str, TaskModel]) -> dict[str, TaskModel]:
    """The pruned models on the CPU that are smaller and faster by their nonzero weights, in that form."""
    found = {}
    for name, model in models.items():
        if model.config.sparse or model.device.type != "cpu" or not sparsity.report(model).sparsity:
            continue
        try:
            found[name] = sparse.to_sparse(model)
        except ValueError as error:
            logger.warning("%s is timed dense only: %s", name, error)
    return found


def saved_bytes(model: TaskModel) -> int:
    """Bytes of the weight files that `save_pretrained` writes."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return model_bytes(Path(folder))


def model_bytes(folder: Path) -> int:
    """Bytes of the weight files of a saved model, without what only training needs."""
    files = [file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)]
    return sum(file.stat().st_size for file in files if file.name != checkpoints.TRAINING_FILE)


def shape(model: TaskModel, params: EvaluateParams) -> dict[str, Any]:
    """What differs between rows of the leaderboard."""
    config = model.config
    return {
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "heads": config.brief("num_attention_heads"),
        "qkv": config.brief("qkv_size"),
        "ffn": config.brief("intermediate_size"),
        "dtype": str(model.dtype).removeprefix("torch."),
        "engine": "torch",
        "batch": params.latency_batch_size,
        "seq": params.latency_seq_len,
        "threads": params.latency_threads,
        **({"lengths": config.length_config} if config.length_config else {}),
    }


def open(params: EvaluateParams) -> Evaluate:
    """Load every model from where it was saved, read the dev rows, start the run.

    Raises ValueError for models without a name of the form <system>-<variant> or without a head for the task.
    """
    task = task_named(params.task)
    sources = {name: source for name, source in params.models.items() if source}
    if not sources:
        raise ValueError("no models named; models maps <system>-<variant> to a run, a folder or a hub id")
    for name in sources:
        system, _, variant = name.partition("-")
        if system not in tracking.SYSTEMS or not variant:
            raise ValueError(
                f"models: {name!r} is no <system>-<variant> with a system of {', '.join(tracking.SYSTEMS)}"
            )
    if params.baseline and params.baseline not in sources:
        raise ValueError(f"baseline {params.baseline!r} is none of the models {', '.join(sources)}")
    session = Session(
        "evaluate",
        params,
        experiment=board(params.task, params.data_dir),
        name=f"evaluate-{params.task}",
        seed=params.seed,
    )
    models, data = {}, {}
    for name, source in sources.items():
        models[name], tokenizer = task.open_model(source, trained=True)
        data[name] = task_data(task, params, tokenizer, splits=("dev",))
    return Evaluate(params, session, models, data, {}, {})
