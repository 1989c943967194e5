"""General distillation: a small encoder, or a supernet of feed-forward sizes, learns the layers of a pre-trained one
from plain text (TinyBERT's first stage, EfficientBERT's pre-training).
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from datasets import Dataset
from pydantic import Field
from torch import Tensor

from compresskit.data import corpora
from compresskit.data.batching import Batches, Epochs
from compresskit.data.corpus import prepared
from compresskit.models import CompactBertConfig, CompactBertModel, checkpoints, efficientbert, elastic
from compresskit.models.feed_forward import plain
from compresskit.stages import distilling
from compresskit.stages.inputs import corpus_file, tokenizer_for
from compresskit.stages.params import Params
from compresskit.stages.session import Precision, Session, autocast_dtype, model_folder, on_device
from compresskit.training import distill

logger = logging.getLogger(__name__)

HELD_OUT = 0.02  # share of the corpus kept for the losses that are reported
HELD_OUT_ROWS = 2000  # and no more than these


class GeneralDistillParams(Params):
    """Parameters of the stage `general_distill`."""

    corpus: str = "bundled"  # a folder of the stage corpus; or a text, one sentence per line
    teacher: str = "models:/demo-encoder@latest"  # a pre-trained encoder: a run, a registered model, a folder or hub id
    student: str = ""  # go on with this general student; empty: a new one
    student_layers: list[int] = []  # teacher layers, from 1, that a new one begins as; empty: random, of these sizes
    architecture: str = ""  # published, or a model's or a search's; a student is cut to it; empty: the sizes below
    random_sizes: bool = False  # at each step other feed-forward sizes learn, the architecture's or any of the 16
    num_hidden_layers: int = Field(2, ge=1)
    hidden_size: int = Field(64, ge=1)
    num_attention_heads: int = Field(4, ge=1)  # as many as the teacher has
    intermediate_size: int = Field(256, ge=1)
    embedding_size: int = Field(0, ge=0)  # of a trigram embedding; 0: BERT's
    formulas: bool = False  # a new student is a supernet whose formulas can be searched: four feed-forwards per layer
    dropout: float = Field(0.1, ge=0, lt=1)  # of states and attention of one that starts at random
    initializer_range: float = Field(0.02, gt=0)  # of a new student
    layer_mapping: list[int] = []  # teacher layer for each student layer, from 1; empty: uniform
    projection: Literal["shared", "per_layer"] = "shared"  # from student to teacher width, where these differ
    teacher_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    precision: Precision = "float32"
    max_seq_len: int = Field(128, ge=8)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(5e-5, gt=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    num_train_epochs: float = Field(3.0, gt=0)
    faithful: bool = False
    original: distilling.Original = "tinybert"  # whose code faithful follows
    max_steps: int = Field(0, ge=0)  # stop earlier, for smoke tests; 0: no limit
    threads: int = Field(0, ge=0)  # of torch; 0: all cores
    register_as: str = ""
    seed: int = 42


@dataclass
class GeneralDistill:
    """The opened stage."""

    params: GeneralDistillParams
    session: Session
    tokenizer: Any
    layers: distilling.Layers
    train_batches: Epochs
    held_out: Batches
    losses: dict[str, dict[str, float]] = field(default_factory=dict)  # held out, "before" and "after" training

    def shapes(self) -> pd.DataFrame:
        """Teacher and student side by side, and which teacher layer each student layer learns from."""
        return distilling.shapes(self.layers.teacher, self.layers.student, self.layers.mapping)

    def describe(self) -> pd.DataFrame:
        """Rows and tokens of each epoch's text, and of what is held out."""
        parts = {f"epoch {number}": epoch for number, epoch in enumerate(self.train_batches.epochs)}
        lengths = {name: pd.Series(part.lengths) for name, part in {**parts, "held out": self.held_out}.items()}
        table = pd.DataFrame(
            {name: {"rows": len(n), "tokens": n.sum(), "tokens (median)": n.median()} for name, n in lengths.items()}
        )
        return table.T.astype(int)

    def train(self) -> pd.DataFrame:
        """Distil; goes on where a stopped run of the same parameters ended. Returns step, key, value."""
        params = self.params
        wanted = self.train_batches.num_steps(params.num_train_epochs)
        num_steps = min(wanted, params.max_steps) if params.max_steps else wanted
        self.losses["before"] = self.held_out_losses()
        self.layers.learn(
            self.session,
            self.train_batches,
            learning_rate=params.learning_rate,
            num_steps=num_steps,
            planned_steps=wanted,
            schedule="warmup_linear",
            schedule_steps=self.schedule_steps(num_steps),
            label="general distillation",
            state=self.session.state(),
            observe=self.session.observe,
            original=params.original,
            autocast=autocast_dtype(params.precision),
        )
        self.losses["after"] = self.held_out_losses()
        for step, when in ((0, "before"), (num_steps, "after")):
            self.session.observe(step, {f"eval/{name}": value for name, value in self.losses[when].items()})
        return self.session.run.history()

    def schedule_steps(self, num_steps: int) -> int:
        """Steps until the learning rate is 0; faithful: also those that the incomplete batches would have been."""
        params, epochs = self.params, self.train_batches.epochs
        if not params.faithful or params.max_steps:
            return num_steps
        used = (epochs[epoch % len(epochs)] for epoch in range(math.ceil(params.num_train_epochs)))
        return max(num_steps, sum(len(epoch.lengths) for epoch in used) // params.batch_size)

    def held_out_losses(self) -> dict[str, float]:
        """loss, attention_loss and hidden_loss on the text that is held out."""
        return distill.mean_losses(self.layers.student, self.layers.losses(), self.held_out)

    def comparison(self) -> pd.DataFrame:
        """The losses on the text that is held out, before and after."""
        return pd.DataFrame(self.losses)

    def finish(self) -> pd.DataFrame:
        """Keep the student, its projection beside it; returns the row of results, whose losses are of held-out text."""
        before, after = self.losses["before"], self.losses["after"]
        result = {
            "held_out_rows": len(self.held_out.lengths),
            **{f"{name}_before": value for name, value in before.items()},
            **after,
            "parameters": self.layers.student.num_parameters(),
        }
        card = {"stage": "general_distill", "learns_from": self.layers.mapping, **result}
        model = self.session.keep(
            self.layers.student,
            self.tokenizer,
            card,
            self.params.register_as or None,
            training_only=self.layers.released_form(),
        )
        return self.session.finish({"model": model, **result})


def open(params: GeneralDistillParams) -> GeneralDistill:
    """Open the corpus, load the teacher, build or load the student, start the run.

    Raises FileNotFoundError or ValueError where the corpus is missing or has another vocabulary than the teacher, and
    where student and teacher do not go together.
    """
    corpus = corpus_file(params.corpus)
    instances = prepared.load(corpus) if corpus.is_dir() else None
    folder = model_folder(params.teacher)
    found = checkpoints.read(folder)
    teacher = found.model(lambda config: CompactBertModel(config, add_pooling_layer=False))
    tokenizer = tokenizer_for(folder, teacher.config.vocab_size)
    if instances:
        instances.check_fits(tokenizer, params.max_seq_len)
    session = Session(
        "general_distill",
        params,
        experiment="general_distill",
        name=f"general_distill-{params.seed}",
        seed=params.seed,
        threads=params.threads,
    )
    if not {"classifier.weight", "qa_outputs.weight"}.isdisjoint(found.weights):
        logger.warning("%s was fine-tuned on a task; a general student wants a teacher that was not", params.teacher)
    student, network, released = _student(params, found, teacher.config, tokenizer)
    for who, config in (("teacher", teacher.config), ("student", student.config)):
        if params.max_seq_len > config.max_position_embeddings:
            raise ValueError(
                f"max_seq_len is {params.max_seq_len}, the {who} takes {config.max_position_embeddings} tokens; lower "
                "max_seq_len"
            )
    layers = distilling.Layers.of(params, on_device(teacher), on_device(student), released, network)

    rows = instances.epochs if instances else [corpora.encode(corpus, tokenizer, params.max_seq_len)]
    identity = hashlib.sha256((corpus / prepared.MANIFEST).read_bytes()).hexdigest() if instances else rows[0]
    session.run.input("corpus", corpus, identity)
    sizes = [instances.source_sizes(epoch) for epoch in range(len(rows))] if instances else [[len(rows[0])]]
    divided = [prepared.hold_out(*epoch, HELD_OUT, HELD_OUT_ROWS) for epoch in zip(rows, sizes, strict=True)]

    def batches(part: Dataset, **order: Any) -> Batches:
        return Batches(part, params.batch_size, params.seed, tokenizer.pad_token_id, **order)

    train = Epochs([batches(part, **distilling.batch_order(params)) for part, _ in divided])
    pad_to = params.max_seq_len if params.faithful else None
    held_out = batches(divided[0][1], shuffle=False, pad_to=pad_to)
    return GeneralDistill(params, session, tokenizer, layers, train, held_out)


def _student(
    params: GeneralDistillParams, found: checkpoints.Checkpoint, teacher: CompactBertConfig, tokenizer: Any
) -> tuple[CompactBertModel, distill.Network, dict[str, Tensor]]:
    """A new student for that teacher, or the one to go on with; which network inside it learns at a step; and the
    projection that came with it.
    """
    if params.student and params.student_layers:
        raise ValueError("the student's start is named twice; give student, or student_layers of the teacher")
    wanted = distilling.architecture(params.architecture) if params.architecture else None
    released: dict[str, Tensor] = {}
    if params.student_layers:
        student = elastic.keep_layers(found.model(CompactBertModel), params.student_layers)
    elif params.student:
        folder = model_folder(params.student)
        given = checkpoints.read(folder)
        distilling.check_vocabularies(tokenizer_for(folder, given.architecture().vocab_size), tokenizer)
        if wanted is not None:
            given = _shrunk(given, wanted)
        student, released = given.model(CompactBertModel), given.training_only
    else:
        config = new_config(params, teacher, wanted)
        student = CompactBertModel(distilling.widest(config) if params.random_sizes else config)
    return *distilling.cut(student, wanted, params.random_sizes, params.seed), released


def _shrunk(given: checkpoints.Checkpoint, wanted: CompactBertConfig) -> checkpoints.Checkpoint:
    """A student cut to a narrower architecture, or to one with every layer several times; others as they are."""
    own = given.architecture()
    copies, rest = divmod(wanted.num_hidden_layers, own.num_hidden_layers)
    if (copies, wanted.hidden_size) == (1, own.hidden_size) or rest or wanted.hidden_size > own.hidden_size:
        return given
    return efficientbert.shrink(given, wanted.hidden_size, copies)


def new_config(
    params: GeneralDistillParams, teacher: CompactBertConfig, wanted: CompactBertConfig | None = None
) -> CompactBertConfig:
    """The config of a student that starts at random; what is no size is the teacher's, or that of `wanted`."""
    inherited = ["vocab_size", "type_vocab_size", "max_position_embeddings", "pad_token_id"]
    settings: dict[str, Any] = {
        "hidden_dropout_prob": params.dropout,
        "attention_probs_dropout_prob": params.dropout,
        "initializer_range": params.initializer_range,
    }
    if wanted is not None:
        return wanted.changed(**{name: getattr(teacher, name) for name in inherited}, **settings)
    if params.embedding_size:
        settings |= {"embedding": "trigram", "embedding_size": params.embedding_size}
    if params.formulas:
        settings["feed_forward"] = [str(plain(4))] * params.num_hidden_layers
    return CompactBertConfig(
        **{name: getattr(teacher, name) for name in (*inherited, "hidden_act", "layer_norm_eps")},
        num_hidden_layers=params.num_hidden_layers,
        hidden_size=params.hidden_size,
        num_attention_heads=params.num_attention_heads,
        intermediate_size=params.intermediate_size,
        **settings,
    )
