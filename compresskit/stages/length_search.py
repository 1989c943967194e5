"""Search for how many tokens each layer keeps: a front of score against cost, kept with the model to be served from."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, cast

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from compresskit.evaluation import flops, latency, length_figures
from compresskit.evaluation.pareto import front as on_front
from compresskit.models import checkpoints
from compresskit.models.length_front import with_lengths
from compresskit.search import length_files as files
from compresskit.search import length_study
from compresskit.search.lengths import Entry, Evolution, Lengths
from compresskit.stages.inputs import board
from compresskit.stages.journal import Journal
from compresskit.stages.length_choice import cheapest_within
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder
from compresskit.stages.tasks import SpanTask, Split, TaskData, TaskModel, task_named
from compresskit.stages.workers import Workers
from compresskit.training.progress import Progress

TIMED_ROUNDS = 11  # of a config, where the cost is its latency
WITHIN = 0.01  # of the score at full length, as in the published comparison
FRONT_JSON, FRONT_PARQUET = "length_front.json", "length_front.parquet"


class LengthSearchParams(Params):
    """Parameters of the stage `length_search`."""

    results: ClassVar[tuple[str, ...]] = ("run_id", "model", "files", "length_config", "speedup")

    task: str = "sst2"
    model: str = "models:/demo-teacher@latest"  # trained for the task: a run, a registered model, a folder, a hub id
    search: Literal["evolution", "tpe", "nsga2"] = "evolution"
    cost: Literal["macs", "latency"] = "macs"  # latency: each config is timed while no other process works
    iterations: int = Field(30, ge=0)  # evolution: rounds
    population_size: int = Field(20, ge=0)  # evolution: constant ratios to start with
    mutations: int = Field(30, ge=0)  # evolution: of each round
    crossovers: int = Field(30, ge=0)
    mutation_probability: float = Field(0.5, ge=0, le=1)  # of each layer
    max_attempts: int = Field(1000, ge=1)  # in a round, for the mutations and for the crossovers
    trials: int = Field(150, ge=1)  # tpe, nsga2
    trials_at_once: int = Field(4, ge=1)
    max_cost: float = Field(0.5, gt=0, le=1)  # tpe: budget, as a share of the cost at full length
    max_drop: float = Field(0.2, ge=0, lt=1)  # evolution: ratio of the smallest config; tpe, nsga2: of any layer
    shortest: int = Field(2, ge=1)  # tokens that every layer keeps
    faithful: bool = False  # evolution: start and front as released
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    max_seq_len: int = Field(128, ge=8)
    doc_stride: int = Field(128, ge=1)  # SQuAD: tokens from the start of one window to the next
    max_query_length: int = Field(64, ge=1)  # SQuAD: longer questions are cut, in tokens
    score_rows: int = Field(1000, ge=1)  # of the rows held back from train, that score a config
    max_rows: int = Field(0, ge=0)  # as in training: which rows were held back depends on it; 0: all
    latency_batch_size: int = Field(1, ge=1)
    latency_threads: int = Field(1, ge=1)
    latency_rounds: int = Field(20, ge=10)  # of the front, in the end
    workers: int = Field(1, ge=1)
    threads: int = Field(0, ge=0)  # of torch, in each worker; 0: the cores shared out evenly
    register_as: str = ""
    seed: int = 42

    @model_validator(mode="after")
    def _possible(self) -> LengthSearchParams:
        """Refuse what would fail only after hours."""
        if self.shortest > self.max_seq_len:
            raise ValueError(f"shortest {self.shortest} is more than max_seq_len {self.max_seq_len}")
        return self


@dataclass
class Scorer:
    """Scores length configs of one model on rows held back from train; the model and the rows are read once."""

    params: LengthSearchParams
    model: TaskModel | None = None
    data: TaskData | None = None

    def __call__(self, lengths: Lengths) -> dict[str, Any]:
        """The metrics as shares, `score`, `rows` and the `seconds` that they took."""
        if self.model is None or self.data is None:
            self.model, self.data = open_model(self.params)
        start = time.perf_counter()
        score = self.data.score(with_lengths(self.model, lengths), "selection")
        metrics = {name.rpartition("/")[2]: value for name, value in score.metrics.items()}
        return {
            "score": score.value, "rows": score.rows, "seconds": time.perf_counter() - start, "metrics": metrics
        }  # fmt: skip


def open_model(params: LengthSearchParams) -> tuple[TaskModel, TaskData]:
    """The model, and the rows that score: as many as wanted, evenly from those held back from train. No dev row."""
    task = task_named(params.task)
    model, tokenizer = task.open_model(params.model, trained=True)
    source = task.source(params.data_dir)
    rows = cast(Any, task).divide(task.read(source, "train", params.max_rows), params.seed)[1]
    count = min(params.score_rows, len(rows))
    places = [index * len(rows) // count for index in range(count)]
    rows = rows.select(places) if hasattr(rows, "select") else [rows[place] for place in places]
    splits = {"selection": Split(rows, cast(Any, task).encode(rows, tokenizer, params), tokenizer)}
    return model, TaskData(task, tokenizer, splits, str(source), 1, params.max_seq_len, params.seed)


@dataclass
class LengthSearch:
    """The opened stage."""

    params: LengthSearchParams
    session: Session
    model: TaskModel
    data: TaskData
    journal: Journal
    workers: Workers
    files: Path
    loaded: dict[Lengths, Entry]
    evolution: Evolution | None = None
    tried: dict[Lengths, Entry] = field(default_factory=dict)
    front: dict[str, Any] = field(default_factory=dict)

    # ---- cost and score

    @property
    def full(self) -> Lengths:
        """Nothing dropped."""
        return (self.params.max_seq_len,) * self.model.config.num_hidden_layers

    def macs(self, lengths: Lengths) -> int:
        """Multiply-adds of one input of max_seq_len tokens."""
        head = "question_answering" if isinstance(self.data.task, SpanTask) else "sequence_classification"
        return flops.macs(self.model.config, self.params.max_seq_len, cast(Any, head), lengths)

    def latency_ms(self, lengths: Lengths) -> float:
        """Median of one call, timed now unless it is known."""
        return self.journal.once(f"latency, {lengths}", lambda: self._time([lengths], TIMED_ROUNDS)[lengths])

    def cost(self, lengths: Lengths) -> float:
        """What the search keeps low."""
        return self.macs(lengths) if self.params.cost == "macs" else self.latency_ms(lengths)

    def scores(self, many: Sequence[Lengths]) -> list[float]:
        """Per cent of the task's metric, as the original's files have it."""
        missing = {key(lengths): lengths for lengths in many if key(lengths) not in self.journal}
        done = len(many) - len(missing)
        with Progress("score length configs", len(many), done) as progress:
            for name, found in self.workers.results(missing):
                self.journal[name] = found
                done += 1
                progress.at(done, score=found["score"])
        return [100 * self.journal[key(lengths)]["score"] for lengths in many]

    def _time(self, many: Sequence[Lengths], rounds: int) -> dict[Lengths, float]:
        """Median milliseconds of each, taken by turns, on random tokens without padding."""
        params = self.params
        batch = latency.random_batch(self.model.config.vocab_size, params.latency_batch_size, params.max_seq_len)
        results = latency.measure(
            {str(lengths): with_lengths(self.model, None if lengths == self.full else lengths) for lengths in many},
            batch,
            threads=params.latency_threads,
            rounds=rounds,
            seed=params.seed,
        )
        return {lengths: result.latency_p50_ms for lengths, result in zip(many, results, strict=True)}

    # ---- the search

    def describe(self) -> pd.DataFrame:
        """The rows that score, and the costs between which is searched."""
        return self.data.describe().assign(
            **{"MACs at full length": self.macs(self.full), "tokens": self.params.max_seq_len}
        )

    def run(self) -> pd.DataFrame:
        """Search, then time the front; returns what was tried, cheapest first.

        Goes on where a stopped run of the same parameters ended, and to the same result.
        """
        with self.workers:
            if self.params.search == "evolution":
                self._evolve()
            else:
                self._study()
            if self.full not in self.tried:
                self.tried[self.full] = Entry(self.cost(self.full), self.scores([self.full])[0])
        self._time_front()
        return self.table()

    def _evolve(self) -> None:
        params = self.params
        evolution = self.evolution = Evolution(
            params.max_seq_len, len(self.full), self.cost, self.scores,
            max_drop=params.max_drop, shortest=params.shortest, faithful=params.faithful,
        )  # fmt: skip
        evolution.load({lengths: (self.cost(lengths), entry.score) for lengths, entry in self.loaded.items()})
        evolution.start(params.population_size)
        rounds = evolution.run(
            params.iterations,
            lambda number: Random(f"{params.seed} round {number}"),
            mutations=params.mutations,
            crossovers=params.crossovers,
            probability=params.mutation_probability,
            max_attempts=params.max_attempts,
        )
        for found in rounds:
            if found.notice:
                print(found.notice, flush=True)
            files.write_generation(self.files, found.number, evolution.store, evolution.population, found.hull)
            numbers = {"search/area": found.area, "search/front": len(evolution.population)}
            self.session.observe(found.number, {**numbers, "search/tried": len(evolution.store)})
        self.tried = dict(evolution.store)

    def _study(self) -> None:
        params = self.params
        budget = params.max_cost * self.cost(self.full) if params.search == "tpe" else float("inf")
        batches = length_study.search(
            cast(length_study.Kind, params.search), self.session.folder / "optuna.journal", params.max_seq_len,
            len(self.full), self.cost, self.scores, trials=params.trials, at_once=params.trials_at_once,
            max_drop=params.max_drop, shortest=params.shortest, budget=budget, seed=params.seed,
        )  # fmt: skip
        for number, batch in enumerate(batches, start=1):
            scores = self.scores(batch)
            self.tried |= {n: Entry(self.cost(n), score) for n, score in zip(batch, scores, strict=True)}
            within = [entry.score for entry in self.tried.values() if entry.cost <= budget]
            best = {"search/best_score": max(within)} if within else {}
            self.session.observe(number, {"search/tried": len(self.tried), **best})

    def _time_front(self) -> None:
        """Time what no other config beats in score and cost; where the cost is the latency, judge by these times."""
        lengths = [n for n in self._unbeaten({n: e.cost for n, e in self.tried.items()}) if n != self.full]
        timed = self.journal.once(
            "front",
            lambda: [[n, ms] for n, ms in self._time([self.full, *lengths], self.params.latency_rounds).items()],
        )
        times = {tuple(n): ms for n, ms in timed}
        if self.params.cost == "latency":
            lengths = [n for n in self._unbeaten(times) if n != self.full]

        def numbers(n: Lengths) -> dict[str, float]:
            return {"score": self.tried[n].score / 100, "macs": self.macs(n), "latency_ms": times[n]}

        points = [{"length_config": list(n), **numbers(n)} for n in sorted(lengths, key=self.macs)]
        self.front = {"seq_len": self.params.max_seq_len, "full": numbers(self.full), "points": points}

    def _unbeaten(self, costs: dict[Lengths, float]) -> list[Lengths]:
        """Of the configs with a cost, those that no other one beats in cost and score."""
        kept = on_front([[cost, self.tried[n].score] for n, cost in costs.items()])
        return [n for n, unbeaten in zip(costs, kept, strict=True) if unbeaten]

    # ---- what was found, as tables and pictures

    def table(self) -> pd.DataFrame:
        """Everything tried, cheapest first; latency_ms where it was timed."""
        points = {tuple(p["length_config"]): p for p in self.front["points"]} | {self.full: self.front["full"]}
        rows = [
            {
                "length_config": str(lengths),
                "score": entry.score / 100,
                "macs": self.macs(lengths),
                "latency_ms": points.get(lengths, {}).get("latency_ms")
                or self.journal.values.get(f"latency, {lengths}"),
                "front": lengths in points and (lengths != self.full or self._full_is_unbeaten()),
                "method": ["initial", "mutation", "crossover"][entry.method]
                if self.params.search == "evolution"
                else self.params.search,
            }
            for lengths, entry in self.tried.items()
        ]
        return pd.DataFrame(rows).sort_values(["macs", "score"], ignore_index=True)

    def _full_is_unbeaten(self) -> bool:
        return all(point["score"] < self.front["full"]["score"] for point in self.front["points"])

    def front_table(self) -> pd.DataFrame:
        """The front, cheapest first, and the full length: score, costs, and what is saved."""
        points = [*self.front["points"], {"length_config": list(self.full), **self.front["full"]}]
        table = pd.DataFrame(points)
        full = self.front["full"]
        table["speedup"] = full["latency_ms"] / table["latency_ms"]
        table["macs_share"] = table["macs"] / full["macs"]
        return table

    def by_macs(self) -> Figure:
        """Score against multiply-adds of everything tried, and the front."""
        return length_figures.length_scatter(self.table(), "macs", self.front["full"])

    def by_latency(self) -> Figure:
        """Score against measured latency of the front."""
        return length_figures.length_scatter(self.table(), "latency_ms", self.front["full"])

    def kept(self) -> Figure:
        """Tokens that each layer keeps, a line for every config of the front."""
        return length_figures.tokens_kept(self.front_table())

    def survivors(self) -> Figure:
        """The first row that scores: which of its tokens reach which layer, at the recommended lengths."""
        inputs = self.data.splits["selection"].encoded[0]
        ids = torch.tensor([inputs["input_ids"]], device=self.model.device)
        config = self.recommended() or list(self.full)
        with torch.inference_mode():
            self.model.eval()
            shares = [min(1.0, length / self.params.max_seq_len) for length in config]
            found = self.model(ids, token_type_ids=torch.tensor([inputs["token_type_ids"]], device=ids.device),
                               length_config=shares)  # fmt: skip
        passed = [0] * ids.shape[1]
        for layer, positions in enumerate(found.kept_positions, start=1):
            for position in positions[0].tolist():
                if position < len(passed):
                    passed[position] = layer
        words = self.data.tokenizer.convert_ids_to_tokens(inputs["input_ids"])
        return length_figures.surviving_tokens(words, passed, len(config))

    def recommended(self) -> list[int] | None:
        """The cheapest config that loses at most 1 % of the score at full length; None: full length."""
        return cheapest_within(self.front, WITHIN)

    # ---- what is kept

    def finish(self) -> pd.DataFrame:
        """Keep the model with its front, the files of the search, tables and pictures; returns the results."""
        assert self.front, "run() comes first"
        params, run = self.params, self.session.run
        run.table("tried", self.table())
        run.table("front", self.front_table())
        for name, figure in {"front-macs": self.by_macs, "front-latency": self.by_latency, "tokens-kept": self.kept,
                             "survivors": self.survivors}.items():  # fmt: skip
            run.figure(name, figure())
        self._write_files()
        run.artifact(self.files, "files")
        config = self.recommended()
        chosen = next((p for p in self.front["points"] if p["length_config"] == config), self.front["full"])
        result = {
            "task": params.task,
            "length_config": config or list(self.full),
            "selection_score": chosen["score"],
            "full_selection_score": self.front["full"]["score"],
            "selection_rows": self.journal[key(self.full)]["rows"] if key(self.full) in self.journal else 0,
            "speedup": self.front["full"]["latency_ms"] / chosen["latency_ms"],
            "macs": chosen["macs"],
            "full_macs": self.front["full"]["macs"],
            "front": len(self.front["points"]),
            "tried": len(self.tried),
        }
        self.model.config.length_front = self.front
        beside = {name: self.files / name for name in (files.STORE, FRONT_JSON, files.FRONT_CSV, FRONT_PARQUET)}
        model = self.session.keep(
            self.model, self.data.tokenizer, {"stage": "length_search", **result}, params.register_as or None,
            beside=list(beside.values()),
        )  # fmt: skip
        return self.session.finish({"model": model, "files": f"runs:/{run.run_id}/files", **result})

    def _write_files(self) -> None:
        """Store, front and log of the evaluations, in the originals' layouts and as JSON and Parquet."""
        self.files.mkdir(parents=True, exist_ok=True)
        by_macs = sorted((self.macs(n), n) for n in self.tried)
        files.write_whole(
            self.files / files.STORE, files.store_text((n, self.tried[n]._replace(cost=macs)) for macs, n in by_macs)
        )
        files.write_whole(self.files / FRONT_JSON, json.dumps(self.front, indent=1) + "\n")
        points = [
            files.FrontPoint(tuple(row["length_config"]), 100 * row["score"], row["latency_ms"] / 1000)
            for row in self.front_table().to_dict("records")
        ]
        files.write_whole(self.files / files.FRONT_CSV, files.front_csv(points))
        files.write_whole(self.files / files.FRONT_LOG, files.front_log(points))
        self.front_table().to_parquet(self.files / FRONT_PARQUET, index=False)
        lines = []
        for lengths in self.tried:
            if key(lengths) in self.journal:
                found = self.journal[key(lengths)]
                results = {name: 100 * value for name, value in found["metrics"].items()} | {"total": found["rows"]}
                rate = files.PLAIN if lengths == self.full else files.SEARCHED
                lines.append(
                    files.metrics_line(results, eval_time=found["seconds"], model=self.params.model,
                                       macs=self.macs(lengths), rate=rate)
                )  # fmt: skip
        files.write_whole(self.files / files.METRICS_LOG, "".join(lines))


def key(lengths: Lengths) -> str:
    """A config's name in the journal."""
    return f"score, {lengths}"


def open(params: LengthSearchParams) -> LengthSearch:
    """Load the model and the rows that score, read a store beside the model, start the run.

    Raises ValueError for a model without a head for the task, for one that takes fewer tokens, and for a store of
    another model.
    """
    session = Session(
        "length_search",
        params,
        experiment=board(params.task, params.data_dir),
        name=f"length_search-{params.task}-{params.seed}",
        seed=params.seed,
        threads=params.threads if params.workers == 1 else 0,
    )
    model, data = open_model(params)
    if params.max_seq_len > (most := model.config.max_position_embeddings):
        raise ValueError(f"max_seq_len {params.max_seq_len} exceeds the model's {most} positions; lower it")
    model.config.length_front = None  # what is found now takes its place
    model = with_lengths(model, None)
    session.run.input(params.task, data.source, data.splits["selection"].encoded)
    journal = Journal(session.folder / "journal.jsonl")
    scorer = partial(Scorer, params) if params.workers > 1 else partial(Scorer, params, model, data)
    stage = LengthSearch(
        params, session, model, data, journal, Workers(params.workers, params.threads, scorer),
        session.folder / "files", {},
    )  # fmt: skip
    stage.loaded = _stored(Path(checkpoints.local_folder(model_folder(params.model))) / files.STORE, stage)
    return stage


def _stored(path: Path, stage: LengthSearch) -> dict[Lengths, Entry]:
    """What store.tsv in the model's folder knows; nothing where there is none."""
    found = files.read_store(path) if path.is_file() and stage.params.search == "evolution" else {}
    for number, (lengths, entry) in enumerate(found.items(), start=1):
        fits = len(lengths) == len(stage.full) and max(lengths) <= stage.params.max_seq_len
        if not fits or stage.macs(lengths) != entry.cost:
            raise ValueError(
                f"{path}, line {number}: {lengths} with {entry.cost:g} multiply-adds is of another model or "
                "max_seq_len; remove the file to search from the start"
            )
    return found
