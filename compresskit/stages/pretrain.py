"""Pre-training with masked words: a model, or a supernet whose subnets learn by turns."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import Field

from compresskit.data import corpora, masking, vocabulary
from compresskit.data.batching import Batches
from compresskit.data.corpus import prepared
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM, checkpoints
from compresskit.models.heads import labelled_loss
from compresskit.search.spaces import SPACES
from compresskit.stages.inputs import corpus_file, tokenizer_for
from compresskit.stages.params import Params
from compresskit.stages.session import Session, model_folder, on_device, steps
from compresskit.training.loop import Batch, fit
from compresskit.training.optim import adamw, linear_schedule
from compresskit.training.pretrain import Masked, masked_lm, whole_network

HELD_OUT = 0.02  # share of the corpus kept for the loss that is reported


class PretrainParams(Params):
    """Parameters of the stage `pretrain`."""

    corpus: str = "bundled"  # a text, one sentence per line, blank line between documents; or of the stage corpus
    vocabulary: str = ""  # a folder or vocab.txt; empty: a WordPiece vocabulary is trained on the corpus
    vocab_size: int = Field(4000, ge=100)
    model: str = ""  # start from this model; empty: a new one of the sizes below
    num_hidden_layers: int = Field(4, ge=1)
    hidden_size: int = Field(128, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    intermediate_size: int = Field(512, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)  # of a new model's states and attention; 0 suits short runs
    initializer_range: float = Field(0.02, gt=0)  # of a new model
    supernet: Literal["", "mlm", "kd"] = ""  # a search space of this flavour learns along with the whole network
    max_seq_len: int = Field(64, ge=8)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: int = Field(0, ge=0)  # stop earlier, for smoke tests; 0: no limit
    threads: int = Field(0, ge=0)  # of torch; 0: all cores
    register_as: str = ""
    seed: int = 42


@dataclass
class Pretrain:
    """The opened stage."""

    params: PretrainParams
    session: Session
    tokenizer: Any
    model: CompactBertForMaskedLM
    train_batches: Batches
    held_out: Batches

    def describe(self) -> pd.DataFrame:
        """Sequences, tokens and parameters."""
        return pd.DataFrame(
            {
                "training sequences": [len(self.train_batches.lengths)],
                "training tokens": [int(self.train_batches.lengths.sum())],
                "held-out sequences": [len(self.held_out.lengths)],
                "vocabulary": [len(self.tokenizer)],
                "parameters": [self.model.num_parameters()],
            },
            index=["corpus and model"],
        ).T

    def train(self) -> pd.DataFrame:
        """Pre-train; goes on where a stopped run of the same parameters ended. Returns step, key, value."""
        params, model = self.params, self.model
        num_steps = steps(params.num_train_epochs, len(self.train_batches), params.max_steps)
        optimizer = adamw([model], params.learning_rate)
        fit(
            model,
            Masked(self.train_batches, self.mask),
            masked_lm(model, labelled_loss, self.subnets if params.supernet else whole_network),
            optimizer,
            linear_schedule(optimizer, num_steps, params.warmup_ratio),
            num_steps,
            label="pretrain",
            state=self.session.state(),
            planned_steps=steps(params.num_train_epochs, len(self.train_batches), 0),
            observe=self.session.observe,
        )
        return self.session.run.history()

    def mask(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks that depend on seed and step alone, so that a resumed run draws the same."""
        generator = torch.Generator().manual_seed(self.params.seed * 1_000_003 + step)
        return masking.mask_tokens(batch["input_ids"], batch["attention_mask"], self.tokenizer, generator)

    def subnets(self, step: int) -> list[CompactBertConfig | None]:
        """The whole network and one drawn subnet."""
        space = SPACES[self.params.supernet].within(self.model.config)
        return [None, space.sample(self.model.config, Random(self.params.seed * 1_000_003 + step))]

    def finish(self) -> pd.DataFrame:
        """Held-out loss, model and row of results."""
        loss = masked_lm_loss(self.model, self.held_out, self.mask)
        card = {"stage": "pretrain", "held_out_loss": loss, "supernet": self.params.supernet}
        model = self.session.keep(self.model, self.tokenizer, card, self.params.register_as or None)
        self.session.observe(0, {"eval/masked_lm_loss": loss})
        return self.session.finish({"model": model, "held_out_loss": loss})


@torch.inference_mode()
def masked_lm_loss(
    model: CompactBertForMaskedLM, batches: Batches, mask: Any, subnet: CompactBertConfig | None = None
) -> float:
    """Mean masked-word loss over `batches`, with masks fixed by their number; of a subnet run in place where given."""
    model.eval()
    total = words = 0.0
    for number, batch in enumerate(batches):
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        input_ids, labels = mask(batch, -1 - number)
        count = int((labels != -100).sum())
        if count:
            hidden = model.bert(
                input_ids, batch["attention_mask"], batch["token_type_ids"], subnet=subnet
            ).last_hidden_state
            total += float(labelled_loss(model.cls.predictions, hidden, labels)) * count
            words += count
    return total / max(words, 1)


def open(params: PretrainParams) -> Pretrain:
    """Read the corpus, build or load the model, start the run."""
    corpus = corpus_file(params.corpus)
    instances = prepared.load(corpus) if corpus.is_dir() else None
    if params.model:
        folder = model_folder(params.model)
        model = checkpoints.load(CompactBertForMaskedLM, folder)
        tokenizer = tokenizer_for(folder, model.config.vocab_size)
    elif params.vocabulary:
        tokenizer = vocabulary.load_tokenizer(params.vocabulary)
    elif instances:
        tokenizer = instances.tokenizer
    else:
        sentences = (line for document in corpora.read_documents(corpus) for line in document)
        tokenizer = vocabulary.train_wordpiece(sentences, params.vocab_size)
    if instances:
        instances.check_fits(tokenizer, params.max_seq_len)
    session = Session(
        "pretrain",
        params,
        experiment="pretrain",
        name=f"pretrain-{params.supernet or 'model'}-{params.seed}",
        seed=params.seed,
        threads=params.threads,
    )
    if not params.model:
        model = CompactBertForMaskedLM(new_config(params, len(tokenizer)))
    on_device(model)
    rows = instances.epochs[0] if instances else corpora.encode(corpus, tokenizer, params.max_seq_len)
    split = rows.train_test_split(test_size=HELD_OUT, seed=params.seed, shuffle=True)
    train, held_out = (
        Batches(part, params.batch_size, params.seed, tokenizer.pad_token_id, shuffle=shuffle)
        for part, shuffle in ((split["train"], True), (split["test"], False))
    )
    return Pretrain(params, session, tokenizer, model, train, held_out)


def new_config(params: PretrainParams, vocab_size: int) -> CompactBertConfig:
    """The config of a model that starts at random."""
    return CompactBertConfig(
        vocab_size=vocab_size,
        num_hidden_layers=params.num_hidden_layers,
        hidden_size=params.hidden_size,
        num_attention_heads=params.num_attention_heads,
        intermediate_size=params.intermediate_size,
        hidden_dropout_prob=params.dropout,
        attention_probs_dropout_prob=params.dropout,
        initializer_range=params.initializer_range,
        max_position_embeddings=max(128, params.max_seq_len),
    )
