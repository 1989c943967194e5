"""EfficientBERT's search for feed-forward formulas, one of its three stages at a time; the winner is cut out."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from compresskit import tracking
from compresskit.evaluation import figures, formula_figures
from compresskit.models import checkpoints, elastic
from compresskit.models.bert import CompactBertPreTrainedModel
from compresskit.models.feed_forward import SIZES, plain
from compresskit.search import classifier_tree, found
from compresskit.search.classifier_tree import Node
from compresskit.search.progressive import (
    Candidate,
    FormulasAndSizes,
    FormulasOfSizes,
    Proposer,
    Rules,
    SizesOfFormulas,
    Space,
    plain_of,
    random_of,
)
from compresskit.stages import extract
from compresskit.stages.formula_pictures import KINDS, effects, tree_of
from compresskit.stages.formula_trials import InPlace, Job, Trained
from compresskit.stages.inputs import tokenizer_for
from compresskit.stages.params import Params
from compresskit.stages.session import Precision, Session, model_folder
from compresskit.stages.tasks import task_named
from compresskit.stages.trials import Trials
from compresskit.stages.workers import Workers
from compresskit.training.progress import Progress

NO_PART_OF_THE_SEARCH = {"max_trials", "max_minutes", "storage", "workers", "threads", "comparisons", "register_as"}
WAIT_SECONDS = 1.0  # between two looks at what other machines have finished


class FormulaSearchParams(Params):
    """Parameters of the stage `formula_search`."""

    results: ClassVar[tuple[str, ...]] = (
        "run_id", "model", "found", "plain", "random", "uniform", "score", "parameters",
    )  # fmt: skip

    search_stage: Literal[1, 2, 3] = 1  # formulas and sizes; formulas of frozen sizes; sizes of frozen formulas
    supernet: str = "models:/efficientbert-quick-supernet@latest"  # stage 3: one that has learned the task
    previous: str = ""  # what the stage before has found: a run's, or a file; stages 2 and 3 begin with it
    encoder: str = "models:/demo-encoder@latest"  # stages 1 and 2: candidates first learn its layers, from text
    teacher: str = "models:/demo-teacher@latest"  # stages 1 and 2: then this task model's layers and answers
    min_parameters: int = Field(0, ge=0)  # of the encoder without pooler; 0: no limit, here and below
    max_parameters: int = Field(0, ge=0)
    min_height: int = Field(3, ge=1)  # of a formula's tree
    max_height: int = Field(7, ge=1)
    max_trials: int = Field(100, ge=1)
    max_minutes: float = Field(0.0, ge=0)  # of work, on this machine; 0: no limit
    initial_trials: int = Field(80, ge=1)  # that are drawn at random
    refit_every: int = Field(10, ge=1)  # trials of a round, drawn by what was found before it
    exploration: float = Field(0.0, ge=0)  # of the classifiers' tree; published: 0, always its better half
    max_rejections: int = Field(500, ge=0)  # draws that the classifiers may refuse for a trial
    task: str = "sst2"
    data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
    corpus: str = "bundled"  # a folder of the stage corpus; or a text, one sentence per line
    corpus_share: float = Field(0.02, gt=0, le=1)  # the first part of it
    corpus_seq_len: int = Field(128, ge=8)  # of a text
    distill_epochs: float = Field(1.0, ge=0)  # on text; 0: none
    distill_learning_rate: float = Field(1e-4, gt=0)
    max_distill_steps: int = Field(0, ge=0)  # 0: no limit
    train_share: float = Field(0.1, gt=0, le=1)  # the first part of the task's training rows
    num_train_epochs: float = Field(3.0, gt=0)  # on them
    learning_rate: float = Field(4e-4, gt=0)
    max_steps: int = Field(0, ge=0)  # on the task, at most; 0: no limit
    eval_every: int = Field(50, ge=1)  # steps; the best score counts
    hidden_ratio: float = Field(1.0, ge=0)  # weight of the layers' part of the loss on the task
    batch_size: int = Field(32, ge=1)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    precision: Precision = "auto"
    max_seq_len: int = Field(128, ge=8)
    doc_stride: int = Field(128, ge=1)
    max_query_length: int = Field(64, ge=1)
    max_rows: int = Field(0, ge=0)  # keep this many rows of each split, for smoke tests; 0: all
    select_on: Literal["selection", "dev"] = "selection"  # rows that score candidates
    faithful: bool = False  # the original's rules of a formula and its test for duplicates
    storage: str = ""  # an Optuna journal file that several machines share; empty: one of this run alone
    workers: int = Field(1, ge=1)  # processes that train candidates
    threads: int = Field(0, ge=0)  # of torch, in each; 0: the cores shared out evenly
    comparisons: bool = False  # also keep plain and random formulas of the same size
    register_as: str = ""
    seed: int = 42

    @model_validator(mode="after")
    def _possible(self) -> FormulaSearchParams:
        """Refuse what would fail only after hours."""
        if self.search_stage > 1 and not self.previous:
            before = self.search_stage - 1
            raise ValueError(
                f"search_stage {self.search_stage} begins with what stage {before} has found; set previous"
            )
        if self.max_parameters and self.min_parameters > self.max_parameters:
            raise ValueError(f"min_parameters {self.min_parameters} exceeds max_parameters {self.max_parameters}")
        if self.min_height > self.max_height:
            raise ValueError(f"min_height {self.min_height} exceeds max_height {self.max_height}")
        return self


@dataclass
class FormulaSearch:
    """The opened stage."""

    params: FormulaSearchParams
    session: Session
    checkpoint: checkpoints.Checkpoint
    supernet: CompactBertPreTrainedModel
    tokenizer: Any
    rules: Rules
    proposer: Proposer
    trials: Trials
    workers: Workers
    began: Candidate | None  # the winner of the stage before
    candidates: list[Candidate] = field(default_factory=list)  # by trial number
    proposals: dict[int, dict[str, Any]] = field(default_factory=dict)  # what it took to draw them
    results: dict[int, dict[str, Any]] = field(default_factory=dict)  # of finished trials

    def describe(self) -> pd.DataFrame:
        """What is searched, and within which bounds."""
        params, rules = self.params, self.rules
        own = (str(plain()),) * rules.supernet.num_hidden_layers
        what = {1: "formulas and sizes", 2: "formulas of frozen sizes", 3: "sizes of frozen formulas"}
        limits = f"{rules.low:,.0f} to {rules.high:,.0f}" if params.max_parameters else f"from {rules.low:,.0f}"
        rows = {
            "searched": what[params.search_stage],
            "layers": rules.supernet.num_hidden_layers,
            "parameters allowed": "those of the stage before" if params.search_stage == 2 else limits,
            "parameters with BERT's own feed-forwards": f"{rules.parameters(own):,}",
            "begins with": "\n".join(self.began or own),
            "trials finished before": len(self.trials.finished()),
        }
        return pd.DataFrame(rows, index=["search"]).T

    # ---- the search

    def run(self) -> pd.DataFrame:
        """Draw, score, learn from the scores, and so on; returns the candidates, best first.

        Goes on where a stopped search of the same parameters ended, and to the same result, if trials limit it.
        """
        params, first = self.params, 0
        with self.trials, self.workers, Progress(f"stage {params.search_stage}", params.max_trials) as progress:
            while first < params.max_trials and not self.out_of_time():
                mine = self.proposer.round_of(first)
                mine = range(mine.start, min(mine.stop, params.max_trials))
                while not self.out_of_time() and self.missing(mine):
                    for name, result in self.workers.results(self.claimed(mine)):
                        self.keep(int(name.removeprefix("trial ")) - 1, result)
                        progress.at(len(self.results), score=self.best()[1]["score"])
                    if not self.out_of_time() and self.missing(mine):  # others work on these
                        time.sleep(WAIT_SECONDS)
                first = mine.stop
            self.missing(range(params.max_trials))
        if not self.results:
            raise ValueError(f"no trial was finished within max_minutes {params.max_minutes:g}; raise it")
        return self.table()

    def missing(self, numbers: range) -> list[int]:
        """Which of these trials nobody has finished; the others are read in."""
        for number, result in sorted(self.trials.finished().items()):
            if number not in self.results and number < self.params.max_trials:
                self.results[number] = result
                scores = [self.results[done]["score"] for done in self.results]
                self.session.observe(number + 1, {"search/score": result["score"], "search/best_score": max(scores)})
        return [number for number in numbers if number not in self.results]

    def claimed(self, numbers: range) -> Iterator[tuple[str, Job]]:
        """Those trials that are ours to do, one after the other as processes are free."""
        for number in self.missing(numbers):
            if self.out_of_time():
                return
            if self.trials.claim(number):
                folder = self.session.folder / "trials" / str(number)
                yield f"trial {number + 1}", Job(self.candidate(number), folder)

    def candidate(self, number: int) -> Candidate:
        """Trial `number`'s, which other machines draw alike."""
        while len(self.candidates) <= number:
            new, began = len(self.candidates), time.monotonic()
            if new in self.results:
                self.candidates.append(tuple(self.results[new]["formulas"]))
                continue
            scores = {done: result["score"] for done, result in self.results.items()}
            proposal = self.proposer.propose(new, self.candidates, scores)
            self.candidates.append(proposal.candidate)
            self.proposals[new] = {
                "duplicates": proposal.duplicates,
                "rejected": proposal.rejected,
                "free": proposal.free,
                "drawing_seconds": time.monotonic() - began,
            }
        return self.candidates[number]

    def keep(self, number: int, result: dict[str, Any]) -> None:
        """Write down the result of a trial."""
        candidate = self.candidates[number]
        if result["reason"]:
            print(f"trial {number + 1} scores 0: {result['reason']}", flush=True)
        shown = {"formulas": list(candidate), "parameters": self.rules.parameters(candidate)}
        self.trials.finish(number, {**shown, **result, **self.proposals[number], "host": socket.gethostname()})
        shutil.rmtree(self.session.folder / "trials" / str(number), ignore_errors=True)
        self.missing(range(0))

    def out_of_time(self) -> bool:
        """Whether this machine has worked for max_minutes, in all attempts together."""
        return 0 < self.params.max_minutes <= self.minutes()

    def minutes(self) -> float:
        """That this machine has worked: drawing, and training in all of its processes at a time."""
        own = [result for result in self.results.values() if result["host"] == socket.gethostname()]
        seconds = sum(result["seconds"] / self.params.workers + result["drawing_seconds"] for result in own)
        return seconds / 60

    def best(self) -> tuple[int, dict[str, Any]]:
        """Number and result of the best trial; of equals the one found first."""
        return max(self.results.items(), key=lambda item: (item[1]["score"], -item[0]))

    # ---- what was found, as tables and pictures

    def table(self) -> pd.DataFrame:
        """The trials, best first; numbers count from 1."""
        best = self.best()[0]
        rows = [
            {
                "trial": number + 1,
                "chosen": number == best,
                "round": self.round_number(number),
                "score": result["score"],
                "parameters": result["parameters"],
                "formulas": ", ".join(result["formulas"]),
                **{name: result[name] for name in ("reason", "seconds", "duplicates", "rejected", "free", "host")},
            }
            for number, result in sorted(self.results.items(), key=lambda item: (-item[1]["score"], item[0]))
        ]
        return pd.DataFrame(rows)

    def round_number(self, number: int) -> int:
        """In which round a trial was drawn; 0: at random."""
        start = self.proposer.round_of(number).start
        return 0 if not start else 1 + (start - self.params.initial_trials) // self.params.refit_every

    def counts(self) -> pd.DataFrame:
        """Trials, duplicates that were skipped, draws that the classifiers refused, trials per minute."""
        results = list(self.results.values())
        drawn = sum(r["duplicates"] + r["rejected"] + 1 for r in results)
        own = sum(r["host"] == socket.gethostname() for r in results)
        return pd.DataFrame(
            {
                "trials": len(results),
                "failed": sum(bool(r["reason"]) for r in results),
                "drawn": drawn,
                "duplicates skipped": sum(r["duplicates"] for r in results),
                "refused by classifiers": sum(r["rejected"] for r in results),
                "trials per minute": round(own / max(self.minutes(), 1e-9), 2),
            },
            index=["count"],
        ).T

    def trees(self) -> Figure:
        """The winner's expression trees, one for each layer."""
        trees = {f"layer {layer}": tree_of(text) for layer, text in enumerate(self.winner, start=1)}
        return formula_figures.formula_trees(trees, KINDS)

    def sizes(self) -> Figure:
        """Score against parameters of all trials."""
        return formula_figures.formula_scores(self.table())

    def course(self) -> Figure:
        """Scores of each round."""
        table = self.table()
        method = np.where(table["round"] == 0, "random", "classified")
        return figures.search_generations(table.assign(generation=table["round"], method=method, share=1), "round")

    @property
    def winner(self) -> Candidate:
        """The formulas of the best trial."""
        return tuple(self.best()[1]["formulas"])

    def tree(self) -> tuple[Node, np.ndarray, np.ndarray]:
        """Classifiers grown on all that was found, with the encodings and scores that they were grown on."""
        numbers = sorted(self.results)
        encoded = [self.proposer.space.encode(tuple(self.results[number]["formulas"])) for number in numbers]
        encodings, scores = np.array(encoded), np.array([self.results[number]["score"] for number in numbers])
        return classifier_tree.grow(encodings, scores, self.params.seed), encodings, scores

    def classifiers(self) -> pd.DataFrame:
        """Of each node of the tree: its candidates, their median, and the accuracy on candidates held out."""
        root, _, _ = self.tree()
        rows = [
            {
                "node": "/".join(["root", *("better" if side else "worse" for side in path)]),
                "candidates": node.size,
                "median score": node.median,
                "held-out accuracy": node.accuracy,
            }
            for path, node in classifier_tree.nodes(root)
        ]
        return pd.DataFrame(rows).set_index("node")

    def learned(self) -> Figure:
        """What the root's classifier goes by: layers, and mean scores of candidates by what a layer has."""
        root, encodings, scores = self.tree()
        layers = self.rules.supernet.num_hidden_layers
        lost = classifier_tree.importance(root, encodings, scores, layers, self.params.seed)
        return formula_figures.formula_effects(effects(self.table(), self.params.search_stage), lost)

    # ---- what is kept

    def finish(self) -> pd.DataFrame:
        """Keep the winner, cut out with the supernet's weights, tables, pictures and files; returns the results."""
        run, params = self.session.run, self.params
        best, counts = self.best()[1], self.counts()["count"]
        run.table("candidates", self.table())
        run.table("classifiers", self.classifiers().reset_index())
        for name, figure in {"trees": self.trees, "sizes": self.sizes, "course": self.course,
                             "learned": self.learned}.items():  # fmt: skip
            run.figure(name, figure())
        folder = self.session.folder / "found"
        scored = [found.Scored(tuple(r["formulas"]), r["score"], r["parameters"]) for _, r in self.ranked()]
        found.write(
            folder / found.FILE, params.search_stage, scored, {"task": params.task, "select_on": params.select_on}
        )
        run.artifact(folder, "found")
        others = {"found": f"runs:/{run.run_id}/found"}
        for name, candidate in self.compared().items():
            self._save(candidate, self.session.folder / name)
            run.artifact(self.session.folder / name, name)
            others[name] = f"runs:/{run.run_id}/{name}"
        result = {
            "score": best["score"],
            "parameters": best["parameters"],
            "formulas": best["formulas"],
            "trials": len(self.results),
            "duplicates": int(counts["duplicates skipped"]),
            "trials_per_minute": float(counts["trials per minute"]),
        }
        model = self.session.keep(
            self._cut(self.winner),
            self.tokenizer,
            {"stage": "formula_search", "search_stage": params.search_stage, **result},
            params.register_as or None,
            extract.projections(self.checkpoint, self.rules.supernet),
        )
        return self.session.finish({"model": model, **result, **others})

    def ranked(self) -> list[tuple[int, dict[str, Any]]]:
        """Numbers and results, best first."""
        return sorted(self.results.items(), key=lambda item: (-item[1]["score"], item[0]))

    def compared(self) -> dict[str, Candidate]:
        """What the winner is compared with: BERT's own and random feed-forwards of its sizes, and BERT's own of one
        size for all layers, of the sixteen that which comes nearest in parameters.
        """
        if not self.params.comparisons:
            return {}
        winner, parameters = self.winner, self.rules.parameters
        uniform = [(str(plain().resized(size)),) * len(winner) for size in SIZES]
        return {
            "plain": plain_of(winner),
            "random": random_of(winner, self.rules, Random(f"{self.params.seed} comparison")),
            "uniform": min(uniform, key=lambda same: abs(parameters(same) - parameters(winner))),
        }

    def _cut(self, candidate: Candidate) -> CompactBertPreTrainedModel:
        return elastic.extract(self.supernet, self.supernet.config.changed(feed_forward=list(candidate)))

    def _save(self, candidate: Candidate, folder: Path) -> None:
        projections = extract.projections(self.checkpoint, self.rules.supernet)
        checkpoints.save(self._cut(candidate), folder, self.tokenizer, projections)


def open(params: FormulaSearchParams) -> FormulaSearch:
    """Load the supernet, what the stage before has found, and the trials so far; start the run."""
    task_named(params.task)
    session = Session(
        "formula_search",
        params,
        experiment="formula_search",
        name=f"formula_search-{params.search_stage}-{params.seed}",
        seed=params.seed,
        threads=params.threads if params.workers == 1 else 0,
    )
    folder = Path(checkpoints.local_folder(model_folder(params.supernet)))
    checkpoint = checkpoints.read(folder).for_task(params.task)
    supernet = extract.whole_model(checkpoint, heads=True)
    config = supernet.config
    if config.feed_forward is None:
        raise ValueError(f"{params.supernet} has no formulas; take a supernet whose config names its feed_forward")
    rules = Rules(
        config,
        params.min_parameters,
        params.max_parameters or float("inf"),
        (params.min_height, params.max_height),
        params.faithful,
    )
    began = None
    if params.search_stage > 1:
        began = found.read_winner(found_file(params.previous), config.num_hidden_layers)
    proposer = Proposer(
        space_of(params.search_stage, rules, began),
        params.seed,
        params.initial_trials,
        params.refit_every,
        params.exploration,
        params.max_rejections,
    )
    make: Any
    if params.search_stage == 3:
        make = partial(InPlace, params, folder)
    else:
        encoder, teacher = (
            Path(checkpoints.local_folder(model_folder(name))) for name in (params.encoder, params.teacher)
        )
        make = partial(Trained, params, folder, encoder, teacher)
    path = Path(params.storage).expanduser() if params.storage else session.folder / "trials.log"
    trials = Trials(path, study_name(params, folder, began))
    workers = Workers(params.workers, params.threads, make)
    tokenizer = tokenizer_for(folder, config.vocab_size)
    return FormulaSearch(
        params, session, checkpoint, supernet, tokenizer, rules, proposer, trials, workers, began
    )  # fmt: skip


def space_of(search_stage: int, rules: Rules, began: Candidate | None) -> Space:
    """What a stage draws from."""
    if began is None:
        return FormulasAndSizes(rules)
    return FormulasOfSizes(rules, began) if search_stage == 2 else SizesOfFormulas(rules, began)


def found_file(previous: str) -> Path:
    """The file with what an earlier stage has found: a run's (runs:/<id>/found), a folder's, or the file itself."""
    path = Path(tracking.resolve(previous)) if ":/" in previous else Path(previous).expanduser()
    return path / found.FILE if path.is_dir() else path


def study_name(params: FormulaSearchParams, supernet: Path, began: Candidate | None) -> str:
    """Equal where trials mean the same: the same search from the same weights, under any names, on any machine."""
    names = {"supernet", "previous", "encoder", "teacher", "corpus", "data_dir"} | NO_PART_OF_THE_SEARCH
    weights = hashlib.sha256()
    for file in sorted(supernet.glob("*.safetensors")):
        weights.update(file.read_bytes())
    told = params.model_dump(mode="json", exclude=names)
    text = json.dumps([told, weights.hexdigest(), began], sort_keys=True)
    return f"formula_search-{params.search_stage}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
