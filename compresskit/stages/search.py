"""One-shot search: subnets of a trained supernet that keep a latency limit on this machine, scored in place."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from pydantic import Field

from compresskit.data import corpora, masking
from compresskit.data.batching import Batches
from compresskit.evaluation import figures, latency
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM, CompactBertModel, checkpoints, elastic
from compresskit.search.select import RULES, Candidate, choose
from compresskit.search.spaces import SPACES
from compresskit.stages.inputs import corpus_file, tokenizer_for
from compresskit.stages.params import Params
from compresskit.stages.pretrain import masked_lm_loss
from compresskit.stages.session import Session, model_folder, on_device


class SearchParams(Params):
    """Parameters of the stage `search`."""

    results: ClassVar[tuple[str, ...]] = ("run_id", "model", "layer_mapping")

    supernet: str = (
        "models:/demo-supernet@latest"  # a supernet of the stage pretrain: a run, a registered model, a folder
    )
    flavour: Literal["mlm", "kd"] = "kd"  # kd: all heads stay, each gets narrower; mlm: heads go, their size stays
    rule: Literal["random", "fast"] = "fast"  # fast: AutoTinyBERT's proportions of feed-forward and q/k/v
    speedup: float = Field(3.0, gt=1)  # limit: the whole supernet's latency divided by this
    max_latency_ms: float = Field(0.0, ge=0)  # the limit itself, which then counts alone; 0: by speedup
    candidates: int = Field(12, ge=1)
    max_timed: int = Field(200, ge=1)
    corpus: str = "bundled"  # rows that score: a text file, one sentence per line
    corpus_rows: int = Field(512, ge=1)
    latency_seq_len: int = Field(128, ge=8)
    latency_threads: int = Field(1, ge=1)
    max_seq_len: int = Field(64, ge=8)
    seed: int = 42


@dataclass
class Search:
    """The opened stage."""

    params: SearchParams
    session: Session
    tokenizer: Any
    supernet: CompactBertForMaskedLM
    rows: Batches
    max_latency_ms: float
    candidates: list[Candidate]

    def run(self) -> pd.DataFrame:
        """Draw, time and score; returns the candidates, best first."""
        params = self.params
        space = SPACES[params.flavour].within(self.supernet.config)
        self.candidates = choose(
            lambda rng: space.sample(self.supernet.config, rng),
            self.latency_ms,
            self.score,
            max_latency_ms=self.max_latency_ms,
            count=params.candidates,
            rng=Random(params.seed),
            rule=RULES[params.rule],
            max_timed=params.max_timed,
        )
        return self.table()

    def latency_ms(self, config: CompactBertConfig) -> float:
        """Median time of the subnet's encoder, cut out so that nothing of the supernet is paid for."""
        return _latency_ms(on_device(CompactBertModel(config)), self.params)

    def score(self, config: CompactBertConfig) -> float:
        """Minus the masked-word loss of the subnet with the supernet's weights, in place."""
        return -masked_lm_loss(self.supernet, self.rows, self.mask, config)

    def mask(self, batch: dict[str, torch.Tensor], step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same masks for every candidate."""
        generator = torch.Generator().manual_seed(self.params.seed * 1_000_003 + step)
        return masking.mask_tokens(batch["input_ids"], batch["attention_mask"], self.tokenizer, generator)

    def table(self) -> pd.DataFrame:
        """The candidates with shape, latency and score."""
        names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "qkv_size", "intermediate_size")
        return pd.DataFrame(
            [
                {
                    "chosen": rank == 0,
                    **{name: found.config.brief(name) for name in names},
                    "latency_ms": found.latency_ms,
                    "score": found.score,
                }
                for rank, found in enumerate(self.candidates)
            ]
        )

    def scatter(self) -> Figure:
        """Score against latency of all candidates."""
        return figures.search_scatter(self.table(), self.max_latency_ms)

    def finish(self) -> pd.DataFrame:
        """Keep the winner, cut out with the supernet's weights; returns the row of results."""
        best = self.candidates[0]
        self.session.run.table("candidates", self.table())
        self.session.run.figure("candidates", self.scatter())
        result = {
            "max_latency_ms": self.max_latency_ms,
            "latency_ms": best.latency_ms,
            "score": best.score,
            "num_hidden_layers": best.config.num_hidden_layers,
            "hidden_size": best.config.hidden_size,
            "layer_mapping": nearest_layers(best.config.num_hidden_layers, self.supernet.config.num_hidden_layers),
        }
        winner = elastic.extract(self.supernet, best.config)
        model = self.session.keep(winner, self.tokenizer, {"stage": "search", **result})
        return self.session.finish({"model": model, **result})


def nearest_layers(student_layers: int, teacher_layers: int) -> list[int]:
    """For each layer of a found network the teacher layer at the same relative depth, for its later distillation."""
    return [round((layer + 1) * teacher_layers / student_layers) for layer in range(student_layers)]


def _latency_ms(model: CompactBertModel, params: SearchParams) -> float:
    batch = latency.random_batch(model.config.vocab_size, 1, params.latency_seq_len)
    return latency.measure({"subnet": model}, batch, threads=params.latency_threads, rounds=11)[0].latency_p50_ms


def open(params: SearchParams) -> Search:
    """Load the supernet, time it whole, start the run."""
    session = Session(
        "search", params, experiment="search", name=f"search-{params.rule}-{params.seed}", seed=params.seed
    )
    folder = model_folder(params.supernet)
    supernet = on_device(checkpoints.load(CompactBertForMaskedLM, folder))
    tokenizer = tokenizer_for(folder, supernet.config.vocab_size)
    rows = corpora.encode(corpus_file(params.corpus), tokenizer, params.max_seq_len).shuffle(seed=params.seed)
    batches = Batches(
        rows.select(range(min(params.corpus_rows, len(rows)))), 32, params.seed, tokenizer.pad_token_id, shuffle=False
    )
    limit = params.max_latency_ms or _latency_ms(supernet.bert, params) / params.speedup
    return Search(params, session, tokenizer, supernet, batches, limit, [])
