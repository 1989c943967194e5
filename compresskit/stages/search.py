"""Search of a supernet under limits: architectures are proposed, scored, and evolved; the winner is cut out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import Field, model_validator

from compresskit import tracking
from compresskit.evaluation import figures
from compresskit.evaluation.latency import Clock
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM, checkpoints, elastic, presets
from compresskit.models.bert import CompactBertPreTrainedModel
from compresskit.search import arch_text, files, select
from compresskit.search.costs import Flops, Parameters
from compresskit.search.halving import Trial, successive_halving
from compresskit.search.predictor import Conditions, Predictor
from compresskit.search.select import Constraint
from compresskit.search.spaces import DIMENSIONS, Columns, Space, columns_of, rows
from compresskit.search.uniform import uniform_near
from compresskit.stages import candidates, extract, limits
from compresskit.stages.inputs import tokenizer_for
from compresskit.stages.journal import Journal
from compresskit.stages.params import Params
from compresskit.stages.scoring import MASKED_LM, FineTuned, InPlace, Scoring, masked_lm_score, name_of
from compresskit.stages.session import Session, model_folder, on_device
from compresskit.stages.timing import Timed, measure, timed_candidates
from compresskit.stages.workers import Workers

CLOUD = 3000  # points of the space that are drawn behind the candidates
FINALIST_ROUNDS = 30
RESULTS_FILE, CANDIDATES_FILE = "subbert.results", "candidates.txt"


class SearchParams(Params):
    """Parameters of the stage `search`."""

    results: ClassVar[tuple[str, ...]] = (
        "run_id", "model", "layer_mapping", "architecture", "latency_ms", "files", "median", "uniform",
    )  # fmt: skip

    supernet: str = (
        "models:/demo-supernet@latest"  # a supernet of the stage pretrain: a run, a registered model, a folder
    )
    flavour: Literal["mlm", "kd"] = "kd"  # kd: all heads stay, each gets narrower; mlm: heads go, their size stays
    space: Literal["supernet", "released"] = "supernet"  # what pretrain samples, or the searcher's grid
    generations: list[Literal["random", "fast", "evolved"]] = ["fast"]  # how each proposes its architectures
    generation_size: int = Field(12, ge=1)  # architectures of each
    parents: int = Field(25, ge=1)  # the best so far, from which an evolved generation descends
    crossover: float = Field(0.0, ge=0, le=1)  # share of the mutants that have two parents
    previous: str = ""  # results of earlier searches, ours or the original's file, as first parents
    speedup: float = Field(3.0, gt=1)  # limit: 0.85 to 1.10 times the base's latency divided by this
    speedup_over: Literal["supernet", "bert-base"] = "supernet"
    max_latency_ms: float = Field(0.0, ge=0)  # the limit itself, which then counts alone; 0: by speedup
    max_parameters: int = Field(0, ge=0)  # further limits on what is found; 0: none
    max_gflops: float = Field(0.0, ge=0)
    max_model_mb: float = Field(0.0, ge=0)
    predictor: str = ""  # of the stage latency_predictor: a run's, or a folder; empty: architectures are timed
    max_timed: int = Field(200, ge=1)  # architectures, where there is no predictor
    latency_batch_size: int = Field(1, ge=1)  # these four are the predictor's where there is one
    latency_seq_len: int = Field(128, ge=8)
    latency_threads: int = Field(1, ge=1)
    latency_clock: Clock = "wall"
    score_on: list[str] = [MASKED_LM]  # masked_lm: the subnet in place; else tasks on which its slice is fine-tuned
    fitness: Literal["arithmetic", "geometric", "harmonic"] = "arithmetic"  # mean over the tasks
    seeds: int = Field(1, ge=1)  # trainings of a candidate on each task, whose mean counts
    halvings: int = Field(0, ge=0)  # how often the worse half of a generation stops early
    recipes: dict[str, dict[str, float]] = {}  # by task: what differs from the published one (stages/candidates.py)
    select_on: Literal["selection", "dev"] = "selection"  # rows that score candidates; dev reproduces the paper
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    max_steps: int = Field(0, ge=0)  # of a candidate's training on a task, at most; 0: no limit
    max_rows: int = Field(0, ge=0)  # keep this many rows of each split, for smoke tests; 0: all
    corpus: str = "bundled"  # text that scores subnets in place: one sentence per line
    corpus_rows: int = Field(512, ge=1)
    max_seq_len: int = Field(64, ge=8)
    workers: int = Field(1, ge=1)  # processes that train candidates
    threads: int = Field(0, ge=0)  # of torch, in each; 0: the cores shared out evenly
    finalists: int = Field(5, ge=1)  # the best candidates, which are timed by turns
    comparisons: bool = False  # also keep the median of the first generation, and BERT's proportions as fast
    register_as: str = ""
    seed: int = 42

    @model_validator(mode="after")
    def _possible(self) -> SearchParams:
        """Refuse what would fail only after hours."""
        if not self.generations:
            raise ValueError("generations names none; take random or fast, then evolved")
        if self.generations[0] == "evolved" and not self.previous:
            raise ValueError("the first of generations is evolved, but there are no parents; begin with random or fast")
        if not self.score_on or (MASKED_LM in self.score_on and len(self.score_on) > 1):
            raise ValueError(f"score_on is {self.score_on}; take {MASKED_LM} alone, or one or several tasks")
        if unused := set(self.recipes) - set(self.score_on):
            raise ValueError(f"recipes names {min(unused)}, which is not in score_on")
        return self


@dataclass(frozen=True)
class Tried:
    """An architecture that was scored, and in which generation (from 1)."""

    generation: int
    method: str
    trial: Trial


@dataclass
class Search:
    """The opened stage."""

    params: SearchParams
    session: Session
    checkpoint: checkpoints.Checkpoint
    supernet: CompactBertPreTrainedModel
    tokenizer: Any
    space: Space
    latency: Predictor
    conditions: Conditions
    constraints: list[Constraint]  # of latency the last
    journal: Journal
    scoring: Scoring
    workers: Workers
    found: Columns
    earlier: list[tuple[CompactBertConfig, float]]  # of previous searches
    tried: list[Tried] = field(default_factory=list)
    measured_ms: dict[str, float] = field(default_factory=dict)  # of finalists, by their names
    winner: Tried | None = None
    comparisons: dict[str, CompactBertConfig] = field(default_factory=dict)

    def describe(self) -> pd.DataFrame:
        """The limits, and how many architectures keep them."""
        allowed = {
            constraint.name: f"{constraint.low:.6g} to {constraint.high:.6g}"
            if constraint.low
            else f"up to {constraint.high:.6g}"
            for constraint in self.constraints
        }
        what = "of those that were timed" if isinstance(self.latency, Timed) else "of the whole space"
        allowed["architectures that keep the limits"] = f"{len(self.found['hidden_size'])} {what}"
        return pd.DataFrame(allowed, index=["limits"]).T

    def run(self) -> pd.DataFrame:
        """Propose, score, and so on, then time the finalists; returns the candidates, best first.

        Goes on where a stopped run of the same parameters ended, and to the same result.
        """
        with self.workers:
            for number, method in enumerate(self.params.generations, start=1):
                scores = partial(self.scoring.scores, label=f"generation {number} ({method})")
                trials = successive_halving(self.propose(number, method), scores, self.params.halvings)
                self.scoring.forget()
                self.tried += [Tried(number, method, trial) for trial in trials]
                whole = [trial.score for trial in trials if trial.share == 1]
                numbers = {"search/best_score": max(whole), "search/median_score": float(np.median(whole))}
                self.session.observe(number, numbers)
        self._time_finalists()
        return self.table()

    def propose(self, number: int, method: str) -> list[CompactBertConfig]:
        """The architectures of a generation: a function of the seed, its number, and the scores so far."""
        params, supernet = self.params, self.supernet.config
        rng = Random(f"{params.seed} generation {number}")
        scored = [*self.earlier, *((tried.trial.config, tried.trial.score) for tried in self.tried)]
        if method == "evolved":
            return select.evolve(
                scored,
                self.found,
                self.space,
                supernet,
                self.constraints,
                rng,
                children=params.generation_size,
                parents=params.parents,
                crossover=params.crossover,
            )
        unseen = rows(self.found, ~_among(self.found, [config for config, _ in scored]))
        return select.draw(unseen, supernet, params.generation_size, rng, rule=method)

    def ranked(self) -> list[Tried]:
        """Everything tried, the best first: those that got their whole training come before those that were stopped."""
        return sorted(self.tried, key=lambda tried: (-tried.trial.share, -tried.trial.score))

    def _time_finalists(self) -> None:
        """Choose the best of the finalists that keeps the limit when measured; of equals the one found first."""
        params, limit = self.params, self.constraints[-1].high
        finalists = [tried for tried in self.ranked() if tried.trial.share == 1][: params.finalists]
        shapes = {name_of(tried.trial.config): tried.trial.config for tried in finalists}
        self.measured_ms = self.journal.once("finalists", lambda: measure(shapes, self.conditions, FINALIST_ROUNDS))
        kept = [tried for tried in finalists if self.measured_ms[name_of(tried.trial.config)] <= limit]
        if not kept:
            print(f"none of {len(finalists)} finalists was measured at or below {limit:.4g} ms; the best one wins")
        self.winner = (kept or finalists)[0]
        if params.comparisons:
            self._compare(self.winner.trial.config)

    def _compare(self, winner: CompactBertConfig) -> None:
        """The median of the first generation, and the uniform network whose measured latency is nearest."""
        first = [tried for tried in self.ranked() if tried.generation == 1]
        self.comparisons["median"] = first[len(first) // 2].trial.config
        predicted = float(self.latency.predict(columns_of([winner]))[0])
        nearest = uniform_near(self.space, self.supernet.config, self.latency.predict, predicted, 5)
        shapes = {name_of(config): config for config in [winner, self.comparisons["median"], *nearest]}
        times = self.journal.once("comparisons", lambda: measure(shapes, self.conditions, FINALIST_ROUNDS))
        own = times[name_of(winner)]
        self.comparisons["uniform"] = min(nearest, key=lambda config: abs(times[name_of(config)] - own))
        self.measured_ms = times | self.measured_ms

    # ---- what was found, as tables and pictures

    def table(self) -> pd.DataFrame:
        """The candidates, best first."""
        ranked = self.ranked()
        columns = columns_of([tried.trial.config for tried in ranked])
        numbers = pd.DataFrame(columns)[list(DIMENSIONS)].astype(int)
        numbers["latency_ms"] = self.latency.predict(columns)
        numbers["measured_ms"] = [self.measured_ms.get(name_of(tried.trial.config)) for tried in ranked]
        numbers["parameters"] = Parameters(self.supernet.config).predict(columns).astype(int)
        numbers["gflops"] = Flops(self.conditions.seq_len).predict(columns) / 1e9
        told = pd.DataFrame(
            [
                {
                    "chosen": tried is self.winner,
                    "generation": tried.generation,
                    "method": tried.method,
                    "share": tried.trial.share,
                    "score": tried.trial.score,
                    **self.scoring.by_task(tried.trial.config, tried.trial.share),
                }
                for tried in ranked
            ]
        )
        return pd.concat([told, numbers], axis=1)

    def finalists(self) -> pd.DataFrame:
        """Predicted and measured latency of the finalists, and of what the winner is compared with."""
        timed = (
            tried.trial.config for tried in self.ranked() if name_of(tried.trial.config) in self.journal["finalists"]
        )
        configs = {str(rank): config for rank, config in enumerate(timed, start=1)} | self.comparisons
        predicted = self.latency.predict(columns_of(list(configs.values())))
        table = pd.DataFrame(
            {
                "name": list(configs),
                "architecture": [presets.notation(config) for config in configs.values()],
                "predicted_ms": predicted,
                "measured_ms": [self.measured_ms[name_of(config)] for config in configs.values()],
            }
        )
        assert self.winner is not None
        table["chosen"] = [config is self.winner.trial.config for config in configs.values()]
        table["error_pct"] = (table["predicted_ms"] / table["measured_ms"] - 1) * 100
        return table

    def cloud(self) -> Figure:
        """The space, the candidates of each generation and the winner, by latency and parameters."""
        return figures.search_cloud(self._space_points(), self.table(), *self.limits_ms)

    def evolution(self) -> Figure:
        """Scores of each generation."""
        return figures.search_generations(self.table())

    def front(self) -> Figure:
        """Score against latency of all candidates, and the front."""
        return figures.search_scatter(self.table(), self.limits_ms[1])

    def agreement(self) -> Figure:
        """Predicted against measured latency of the finalists."""
        return figures.finalists_plot(self.finalists(), *self.limits_ms)

    @property
    def limits_ms(self) -> tuple[float, float]:
        """Lowest and highest latency in ms that were allowed."""
        return self.constraints[-1].low, self.constraints[-1].high

    def _space_points(self) -> pd.DataFrame:
        """Latency and parameters of points of the space; where latency is timed, of those that were."""
        supernet, rng = self.supernet.config, Random(self.params.seed)
        if isinstance(self.latency, Timed):
            known = self.latency.known()
            columns, latencies = columns_of([config for config, _ in known]), [ms for _, ms in known]
        else:
            columns = columns_of([self.space.sample(supernet, rng) for _ in range(CLOUD)])
            latencies = self.latency.predict(columns).tolist()
        return pd.DataFrame({"latency_ms": latencies, "parameters": Parameters(supernet).predict(columns)})

    # ---- what is kept

    def finish(self) -> pd.DataFrame:
        """Keep the winner, cut out with the supernet's weights, tables, pictures and files; returns the results."""
        assert self.winner is not None, "run() comes first"
        best, run = self.winner.trial, self.session.run
        table = self.table()
        run.table("candidates", table)
        run.table("finalists", self.finalists())
        for name, figure in {"cloud": self.cloud, "generations": self.evolution, "front": self.front,
                             "finalists": self.agreement}.items():  # fmt: skip
            run.figure(name, figure())
        run.artifact(self._write_files(), "files")
        depth = self.supernet.config.num_hidden_layers
        predicted = float(self.latency.predict(columns_of([best.config]))[0])
        result = {
            "architecture": name_of(best.config),
            "score": best.score,
            "latency_ms": self.measured_ms[name_of(best.config)],
            "predicted_ms": predicted,
            "limits_ms": list(self.limits_ms),
            "num_hidden_layers": best.config.num_hidden_layers,
            "hidden_size": best.config.hidden_size,
            "layer_mapping": nearest_layers(best.config.num_hidden_layers, depth),
        }
        for name, config in self.comparisons.items():
            folder = self.session.folder / name
            checkpoints.save(
                elastic.extract(self.supernet, config),
                folder,
                self.tokenizer,
                extract.projections(self.checkpoint, config),
            )
            run.artifact(folder, name)
        others = {name: f"runs:/{run.run_id}/{name}" for name in ("files", *self.comparisons)}
        model = self.session.keep(
            elastic.extract(self.supernet, best.config),
            self.tokenizer,
            {"stage": "search", **result},
            self.params.register_as or None,
            extract.projections(self.checkpoint, best.config),
        )
        return self.session.finish({"model": model, **result, **others})

    def _write_files(self) -> Path:
        """A folder with the original's files: all scored architectures, and their results."""
        folder = self.session.folder / "files"
        files.write_candidates(folder / CANDIDATES_FILE, [t.trial.config for t in self.tried], self.params.flavour)
        if self.params.score_on != [MASKED_LM]:
            files.write_results(folder / RESULTS_FILE, [r for tried in self.tried for r in self._results(tried.trial)])
        return folder

    def _results(self, trial: Trial) -> list[files.Result]:
        columns = columns_of([trial.config])
        weights, ms = int(Parameters(self.supernet.config).predict(columns)[0]), self.latency.predict(columns)[0]
        return [
            files.Result(task, name_of(trial.config), weights, f"{max(score, 0):.6f}", float(ms), 1)
            for task, score in self.scoring.by_task(trial.config, trial.share).items()
        ]


def nearest_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """For each layer of a found network the teacher layer at the same relative depth, for its later distillation."""
    return [round((layer + 1) * teacher_layers / student_layers) for layer in range(student_layers)]


def _among(columns: Columns, configs: Sequence[CompactBertConfig]) -> NDArray[np.bool_]:
    """Which of the columns' points are these architectures."""
    found = np.zeros(len(columns["hidden_size"]), dtype=bool)
    for config in configs:
        shape = dict(zip(DIMENSIONS, select.shape_of(config), strict=True))
        found |= np.logical_and.reduce([columns[name] == shape[name] for name in DIMENSIONS])
    return found


def open(params: SearchParams) -> Search:
    """Load the supernet, find what keeps the limits, start the run.  Raises ValueError where nothing does."""
    common = {name: getattr(params, name) for name in ("data_dir", "select_on", "max_steps", "max_rows", "seed")}
    tasks = [task for task in params.score_on if task != MASKED_LM]
    recipes = {task: candidates.recipe(task, params.recipes.get(task, {}), **common) for task in tasks}
    session = Session(
        "search",
        params,
        experiment="search",
        name=f"search-{params.flavour}-{params.seed}",
        seed=params.seed,
        threads=params.threads if params.workers == 1 else 0,
    )
    folder = Path(checkpoints.local_folder(model_folder(params.supernet)))
    checkpoint = checkpoints.read(folder)
    if not tasks and "cls.predictions.transform.dense.weight" not in checkpoint.weights:
        raise ValueError(f"{params.supernet} has no head for masked words; score_on tasks instead")
    supernet = on_device(extract.whole_model(checkpoint, heads=True))
    tokenizer = tokenizer_for(folder, supernet.config.vocab_size)
    for task, recipe in recipes.items():
        if recipe.max_seq_len > (most := supernet.config.max_position_embeddings):
            raise ValueError(
                f"{task} is fine-tuned on {recipe.max_seq_len} tokens, the supernet takes {most}; set "
                f"recipes.{task} to {{max_seq_len: {most}}} or less"
            )
    space = limits.space_for(params, supernet.config)
    journal = Journal(session.folder / "journal.jsonl")
    latency, known, base_ms = limits.latency_for(params, supernet.config, journal)
    constraints = limits.constraints_for(params, supernet.config, latency, known.seq_len, base_ms)
    if isinstance(latency, Timed):
        fast = "random" not in params.generations
        found = timed_candidates(space, latency, constraints, params.max_timed, fast_only=fast, seed=params.seed)
    else:
        found = select.candidates(space, supernet.config, constraints)
    workers = Workers(params.workers if tasks else 1, params.threads, partial(candidates.Evaluator, folder, recipes))
    scoring: Scoring
    if tasks:
        seeds = range(params.seed, params.seed + params.seeds)
        scoring = FineTuned(tasks, seeds, params.fitness, workers, journal, session.folder / "candidates")
    else:
        scoring = InPlace(masked_lm_score(params, cast(CompactBertForMaskedLM, supernet), tokenizer), journal)
    earlier = _earlier(params.previous, supernet.config)
    return Search(
        params,
        session,
        checkpoint,
        supernet,
        tokenizer,
        space,
        latency,
        known,
        constraints,
        journal,
        scoring,
        workers,
        found,
        earlier,
    )


def _earlier(previous: str, supernet: CompactBertConfig) -> list[tuple[CompactBertConfig, float]]:
    """Architectures of a results file and their fitness as shares of 1."""
    if not previous:
        return []
    path = Path(previous).expanduser()
    path = path if path.is_file() else Path(tracking.resolve(previous)) / RESULTS_FILE
    found = files.fitness(files.read_results(path))
    return [(arch_text.parse(text, supernet), percent / 100) for text, percent in found.items()]
