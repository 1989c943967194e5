"""Pre-training by masked words or by a teacher's last layer: a model, or a supernet whose subnets learn by turns."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, cast

import pandas as pd
import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel

from compresskit.data import corpora, masking, vocabulary
from compresskit.data.batching import Batches
from compresskit.data.corpus import prepared
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM, CompactBertModel, checkpoints
from compresskit.models.heads import labelled_loss
from compresskit.search.spaces import space_of
from compresskit.stages import distilling
from compresskit.stages.inputs import corpus_file, tokenizer_for
from compresskit.stages.params import Params
from compresskit.stages.session import Precision, Session, autocast_dtype, model_folder, on_device, steps
from compresskit.training import distill, distributed
from compresskit.training.loop import Batch, Pieces, fit
from compresskit.training.optim import (
    BertAdam,
    Warmup,
    adamw,
    adaptive_warmup,
    bert_schedule,
    decay_groups,
    linear_schedule,
)
from compresskit.training.pretrain import (
    DenseFit,
    Masked,
    check_last_heads,
    dense_fit,
    last_layer,
    masked_lm,
    released_form,
    whole_network,
)

logger = logging.getLogger(__name__)

HELD_OUT = 0.02  # share of the corpus kept for the loss that is reported


class PretrainParams(Params):
    """Parameters of the stage `pretrain`."""

    corpus: str = "bundled"  # a text, one sentence per line, blank line between documents; or of the stage corpus
    vocabulary: str = ""  # a folder or vocab.txt; empty: the teacher's, or a WordPiece one trained on the corpus
    vocab_size: int = Field(4000, ge=100)
    teacher: str = ""  # learn this encoder's last layer, as AutoTinyBERT's kd flavour; empty: masked words
    teacher_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    model: str = ""  # start from this model; empty: a new one of the sizes below
    num_hidden_layers: int = Field(4, ge=1)
    hidden_size: int = Field(128, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    intermediate_size: int = Field(512, ge=1)
    max_position_embeddings: int = Field(0, ge=0)  # of a new model; 0: max_seq_len, 128 at least
    dropout: float = Field(0.1, ge=0, lt=1)  # of a new model's states and attention; 0 suits short runs
    initializer_range: float = Field(0.02, gt=0)  # of a new model
    supernet: Literal["", "mlm", "kd"] = ""  # subnets of this search space learn; mlm drops heads, kd narrows them
    subnets_per_step: int = Field(1, ge=1)
    sandwich: bool = True  # the whole network learns at each step too
    max_seq_len: int = Field(64, ge=8)
    batch_size: int = Field(32, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)  # parts a batch is computed in, one after the other
    precision: Precision = "auto"
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: int = Field(0, ge=0)  # 0, or more than the run has: warmup_ratio
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    num_train_epochs: float = Field(1.0, gt=0)
    faithful: bool = False
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
    model: PreTrainedModel
    teacher: PreTrainedModel | None
    project: DenseFit | None  # to the teacher's width
    head_given: bool  # whether what is learned through came with the model: the masked-word head, or the projection
    train_batches: Batches
    held_out: Batches
    held_out_losses: dict[str, float] = field(default_factory=dict)  # after training

    def describe(self) -> pd.DataFrame:
        """Sequences, tokens, parameters, steps, and how the learning rate rises."""
        warmup = self.warmup()
        return pd.DataFrame(
            {
                "training sequences": [len(self.train_batches.lengths)],
                "training tokens": [int(self.train_batches.lengths.sum())],
                "held-out sequences": [len(self.held_out.lengths)],
                "vocabulary": [len(self.tokenizer)],
                "parameters": [self.model.num_parameters()],
                "masked-word head" if self.project is None else "dense_fit": [
                    "came with the model" if self.head_given else "starts at random"
                ],
                "steps": [self.num_steps()],
                "warm-up steps": [warmup.steps],
                "warm-up by": [warmup.rule],
            },
            index=["corpus and model"],
        ).T

    def num_steps(self) -> int:
        """Optimizer steps of this run."""
        return steps(self.params.num_train_epochs, len(self.train_batches), self.params.max_steps)

    def warmup(self) -> Warmup:
        """Over which steps the learning rate rises, and by which rule."""
        return adaptive_warmup(self.num_steps(), self.params.warmup_steps, self.params.warmup_ratio)

    def train(self) -> pd.DataFrame:
        """Pre-train; goes on where a stopped run of the same parameters ended. Returns step, key, value."""
        params, model, warmup = self.params, self.model, self.warmup()
        print(f"warm-up by {warmup.rule}: ratio {warmup.ratio:.4g}, {warmup.steps} steps", flush=True)
        self.session.run.tag({"warmup_steps": warmup.steps, "warmup_rule": warmup.rule})
        num_steps = self.num_steps()
        optimizer, scheduler = self.optimizer(num_steps, warmup.ratio)
        fit(
            model,
            self.batches(),
            self.losses(self.subnets if params.supernet else whole_network, self.teacher_as_asked()),
            optimizer,
            scheduler,
            num_steps,
            label="pretrain",
            state=self.session.state(),
            parts={} if self.project is None else {"projection": self.project},
            planned_steps=steps(params.num_train_epochs, len(self.train_batches), 0),
            autocast=autocast_dtype(params.precision),
            observe=self.session.observe,
        )
        self.held_out_losses = self.judged()
        self.session.observe(num_steps, {f"eval/{name}": value for name, value in self.held_out_losses.items()})
        return self.session.run.history()

    def judged(self) -> dict[str, float]:
        """The losses of the whole network on text that is held out, with masks fixed by the number of the batch."""
        if self.teacher is not None:
            return distill.mean_losses(self.model, self.losses(whole_network, self.teacher), self.held_out)
        return {"loss": masked_lm_loss(cast(CompactBertForMaskedLM, self.model), self.held_out, self.mask)}

    def batches(self) -> Batches | Masked:
        """What is learned from; a teacher is shown whole sentences (faithful: with one word masked)."""
        unmasked = self.teacher is not None and not self.params.faithful
        return self.train_batches if unmasked else Masked(self.train_batches, self.mask)

    def losses(self, subnets: Any, teacher: PreTrainedModel | None) -> Pieces:
        """What is minimised; teacher: the one there is, or another form of it."""
        params, parts = self.params, self.params.gradient_accumulation_steps
        if teacher is None or self.project is None:
            return masked_lm(self.model, labelled_loss, subnets, parts, params.faithful)
        return last_layer(self.model, teacher, self.project, subnets, parts, params.faithful)

    def teacher_as_asked(self) -> PreTrainedModel | None:
        """The teacher, in bfloat16 where that is faster and changes the loss by less than 0.1 %."""
        if self.teacher is None:
            return None
        sample = self.batches().from_step(0, min(2, self.num_steps()))
        return distilling.teacher_as_asked(
            self.params, self.session, self.teacher, self.model, lambda t: self.losses(whole_network, t), sample
        )

    def optimizer(self, num_steps: int, warmup_ratio: float) -> tuple[Optimizer, LRScheduler]:
        """AdamW with warm-up and linear decay; faithful: BertAdam, which clips each tensor after the whole gradient."""
        modules: list[nn.Module] = [self.model] if self.project is None else [self.model, self.project]
        if self.params.faithful:
            bert_adam = BertAdam(decay_groups(modules, 0.01), lr=self.params.learning_rate, eps=1e-8)
            return bert_adam, bert_schedule(bert_adam, num_steps, "warmup_linear", warmup_ratio, first_step=1)
        adam = adamw(modules, self.params.learning_rate)
        return adam, linear_schedule(adam, num_steps, warmup_ratio)

    def mask(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks that depend on seed and step alone, so that a resumed run draws the same."""
        generator = torch.Generator().manual_seed(self.params.seed * 1_000_003 + step)
        probability = 0.0 if self.teacher else 0.15
        given = (batch["input_ids"], batch["attention_mask"], self.tokenizer, generator)
        return masking.mask_tokens(*given, probability, at_least_one=True)

    def subnets(self, step: int) -> list[CompactBertConfig | None]:
        """The subnets drawn for a step, counted from 1, and before them the whole network where `sandwich` says so.

        Each draw has a seed of its own that follows from step and number, so all processes draw the same. faithful:
        AutoTinyBERT's seeds, by which the architectures depend on the number of processes, and not on `seed`.
        """
        params, config = self.params, cast(CompactBertConfig, self.model.config)
        space = space_of(params.supernet, config)
        if params.faithful:
            first = (step - 1) * distributed.size()
        else:
            first = params.seed * 1_000_003 + (step - 1) * params.subnets_per_step
        drawn = [space.sample(config, Random(first + number)) for number in range(params.subnets_per_step)]
        return [None, *drawn] if params.sandwich else [*drawn]

    def finish(self) -> pd.DataFrame:
        """Keep the model, its projection beside it; returns the row of results."""
        loss = self.held_out_losses["loss"]
        card = {"stage": "pretrain", "held_out_loss": loss, "supernet": self.params.supernet}
        model = self.session.keep(
            self.model,
            self.tokenizer,
            card,
            self.params.register_as or None,
            training_only={} if self.project is None else released_form(self.project),
        )
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
    """Read the corpus, build or load model and teacher, start the run.

    Raises FileNotFoundError or ValueError where the corpus is missing or has another vocabulary than the model, and
    where model and teacher do not go together.
    """
    corpus = corpus_file(params.corpus)
    instances = prepared.load(corpus) if corpus.is_dir() else None
    given, taught = (_read(source) if source else None for source in (params.model, params.teacher))
    if params.teacher and params.supernet == "mlm":
        raise ValueError(
            "subnets of the flavour mlm have fewer heads than the teacher; take supernet kd, or no teacher"
        )
    named = given or taught
    if named is not None:
        tokenizer = named[1]
    elif params.vocabulary:
        tokenizer = vocabulary.load_tokenizer(params.vocabulary)
    elif instances:
        tokenizer = instances.tokenizer
    else:
        sentences = (line for document in corpora.read_documents(corpus) for line in document)
        tokenizer = vocabulary.train_wordpiece(sentences, params.vocab_size)
    if instances:
        instances.check_fits(tokenizer, params.max_seq_len)
    config = new_config(params, len(tokenizer)) if given is None else given[0].architecture()
    _check_length(params, "model", config)
    if taught is not None:
        distilling.check_vocabularies(tokenizer, taught[1])
        _check_length(params, "teacher", taught[0].architecture())
        check_last_heads(config, taught[0].architecture())
    rows = instances.epochs[0] if instances else corpora.encode(corpus, tokenizer, params.max_seq_len)
    if len(rows) < 2:
        raise ValueError(
            f"{corpus} gives {len(rows)} sequence of up to {params.max_seq_len} tokens; at least 2 are needed"
        )
    split = rows.train_test_split(test_size=HELD_OUT, seed=params.seed, shuffle=True)

    session = Session(
        "pretrain",
        params,
        experiment="pretrain",
        name=f"pretrain-{params.supernet or 'model'}-{params.seed}",
        seed=params.seed,
        threads=params.threads,
    )
    model_class = CompactBertModel if taught else CompactBertForMaskedLM
    model = on_device(model_class(config) if given is None else given[0].model(model_class))
    teacher = project = None
    head_given = given is not None and "cls.predictions.transform.dense.weight" in given[0].weights
    if taught is not None:
        teacher = on_device(taught[0].model(lambda config: CompactBertModel(config, add_pooling_layer=False)))
        widths = (config.hidden_size, teacher.config.hidden_size)
        project, head_given = dense_fit(
            *widths, config.initializer_range, {} if given is None else given[0].training_only
        )
        if given is not None and not head_given:
            logger.warning("%s has no projection from %d to %d: dense_fit starts at random", params.model, *widths)
        on_device(project)
    order = distilling.batch_order(params)
    train = Batches(split["train"], params.batch_size, params.seed, tokenizer.pad_token_id, **order)
    held_out = Batches(split["test"], params.batch_size, params.seed, tokenizer.pad_token_id, shuffle=False)
    return Pretrain(params, session, tokenizer, model, teacher, project, head_given, train, held_out)


def _read(source: str) -> tuple[checkpoints.Checkpoint, Any]:
    """A model's weights and its tokenizer."""
    folder = model_folder(source)
    found = checkpoints.read(folder)
    return found, tokenizer_for(folder, found.architecture().vocab_size)


def _check_length(params: PretrainParams, who: str, config: CompactBertConfig) -> None:
    most = config.max_position_embeddings
    if params.max_seq_len > most:
        raise ValueError(f"max_seq_len is {params.max_seq_len}, the {who} takes {most} tokens; lower max_seq_len")


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
        max_position_embeddings=params.max_position_embeddings or max(128, params.max_seq_len),
    )
