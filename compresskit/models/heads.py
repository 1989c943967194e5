"""What stands on the encoder: masked LM, next sentence, classification and regression, question answering.

Shapes: B batch, S sequence, H hidden_size, V vocabulary, C classes. Keyword arguments of the encoder (`subnet`,
`output_hidden_states`, …) pass through every head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
)
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput, can_return_tuple

from compresskit.models.bert import CompactBertModel, CompactBertPreTrainedModel, EncoderOutput
from compresskit.models.config import CompactBertConfig
from compresskit.models.elastic import ElasticLayerNorm, ElasticLinear

TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


@dataclass
class HeadOutput(ModelOutput):
    """Logits: (B, S, V) masked LM, (B, 2) next sentence, (B, C) classification. The rest as in EncoderOutput."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    attention_scores: tuple[Tensor | None, ...] | None = None
    query_states: tuple[Tensor, ...] | None = None
    key_states: tuple[Tensor, ...] | None = None
    kept_positions: tuple[Tensor, ...] | None = None


@dataclass
class PreTrainingOutput(ModelOutput):
    """prediction_logits: (B, S, V); seq_relationship_logits: (B, 2). The rest as in EncoderOutput."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    attention_scores: tuple[Tensor | None, ...] | None = None
    query_states: tuple[Tensor, ...] | None = None
    key_states: tuple[Tensor, ...] | None = None
    kept_positions: tuple[Tensor, ...] | None = None


@dataclass
class QuestionAnsweringOutput(ModelOutput):
    """start_logits, end_logits: (B, S). The rest as in EncoderOutput."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    attention_scores: tuple[Tensor | None, ...] | None = None
    query_states: tuple[Tensor, ...] | None = None
    key_states: tuple[Tensor, ...] | None = None
    kept_positions: tuple[Tensor, ...] | None = None


class PredictionTransform(nn.Module):
    """Linear, activation and normalisation before the decoder; narrows to the token vectors of a trigram embedding."""

    def __init__(self, config: CompactBertConfig):
        super().__init__()
        self.embedding_size = config.embedding_size
        width = config.embedding_size or config.hidden_size
        self.dense = ElasticLinear(config.hidden_size, width)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = ElasticLayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (..., H).  Returns the same shape, or with a trigram embedding (..., embedding_size)."""
        return self.LayerNorm(self.activation(self.dense(hidden, self.embedding_size or hidden.shape[-1])))


class Predictions(nn.Module):
    """The masked-LM head; its decoder is the word embedding."""

    def __init__(self, config: CompactBertConfig):
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = ElasticLinear(config.embedding_size or config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(self.decoder.bias.detach().zero_())

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: (..., H), of all positions or of the labelled ones only.  Returns (..., V)."""
        return self.decoder(self.transform(hidden))


class PreTrainingHeads(nn.Module):
    """Masked LM and next sentence, those that are asked for."""

    predictions: Any  # None where not asked for
    seq_relationship: Any

    def __init__(self, config: CompactBertConfig, predictions: bool, next_sentence: bool):
        super().__init__()
        self.predictions = Predictions(config) if predictions else None
        self.seq_relationship = ElasticLinear(config.hidden_size, 2) if next_sentence else None


def labelled_loss(predictions: Predictions, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the labelled positions, with the decoder run on these only.

    hidden: (B, S, H); labels: (B, S), -100 where nothing is asked.  Returns a scalar: the mean over the labelled
    positions, equal to decoding every position and ignoring the others; 0 where none is labelled.
    """
    asked = labels != -100
    return F.cross_entropy(predictions(hidden[asked]), labels[asked], reduction="sum") / asked.sum().clamp(min=1)


def _rest(encoded: EncoderOutput) -> dict[str, Any]:
    names = ("hidden_states", "attentions", "attention_scores", "query_states", "key_states", "kept_positions")
    return {name: encoded.get(name) for name in names}


class CompactBertForPreTraining(CompactBertPreTrainedModel):
    """Masked LM and next sentence."""

    _tied_weights_keys = TIED

    def __init__(self, config: CompactBertConfig):
        super().__init__(config)
        self.bert = CompactBertModel(config)
        self.cls = PreTrainingHeads(config, predictions=True, next_sentence=True)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The decoder, tied to the word vectors."""
        return self.cls.predictions.decoder

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        **encoder: Any,
    ) -> PreTrainingOutput:
        """labels: (B, S), -100 where nothing is asked; next_sentence_label: (B,). The loss is the sum of both."""
        encoded = self.bert(input_ids, attention_mask, token_type_ids, **encoder)
        loss = None
        predictions = self.cls.predictions(encoded.last_hidden_state)
        relation = self.cls.seq_relationship(encoded.pooler_output)
        if labels is not None:
            loss = F.cross_entropy(predictions.flatten(0, 1), labels.flatten())
        if next_sentence_label is not None:
            next_loss = F.cross_entropy(relation, next_sentence_label)
            loss = next_loss if loss is None else loss + next_loss
        return PreTrainingOutput(loss, predictions, relation, **_rest(encoded))


class CompactBertForMaskedLM(CompactBertPreTrainedModel):
    """Masked LM alone; no pooler."""

    _tied_weights_keys = TIED

    def __init__(self, config: CompactBertConfig):
        super().__init__(config)
        self.bert = CompactBertModel(config, add_pooling_layer=False)
        self.cls = PreTrainingHeads(config, predictions=True, next_sentence=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The decoder, tied to the word vectors."""
        return self.cls.predictions.decoder

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **encoder: Any,
    ) -> HeadOutput:
        """labels: (B, S), -100 where nothing is asked."""
        encoded = self.bert(input_ids, attention_mask, token_type_ids, **encoder)
        logits = self.cls.predictions(encoded.last_hidden_state)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return HeadOutput(loss, logits, **_rest(encoded))


class CompactBertForNextSentencePrediction(CompactBertPreTrainedModel):
    """Does the second segment follow the first?"""

    def __init__(self, config: CompactBertConfig):
        super().__init__(config)
        self.bert = CompactBertModel(config)
        self.cls = PreTrainingHeads(config, predictions=False, next_sentence=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **encoder: Any,
    ) -> HeadOutput:
        """labels: (B,), 0 where the second segment follows."""
        encoded = self.bert(input_ids, attention_mask, token_type_ids, **encoder)
        logits = self.cls.seq_relationship(encoded.pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return HeadOutput(loss, logits, **_rest(encoded))


class CompactBertForSequenceClassification(CompactBertPreTrainedModel):
    """Classification, or with one label regression, on the pooled first token."""

    def __init__(self, config: CompactBertConfig):
        super().__init__(config)
        self.bert = CompactBertModel(config)
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(rate)
        self.classifier = ElasticLinear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **encoder: Any,
    ) -> HeadOutput:
        """labels: (B,), class indices, or scores where the config has one label (the loss is the squared error)."""
        encoded = self.bert(input_ids, attention_mask, token_type_ids, **encoder)
        pooled = encoded.pooler_output
        if self.config.pooler_relu:
            pooled = pooled.relu()
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None and self.config.num_labels == 1:
            loss = F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        return HeadOutput(loss, logits, **_rest(encoded))


class CompactBertForMultitask(CompactBertPreTrainedModel):
    """One encoder with a classification head for each of the config's `tasks`."""

    def __init__(self, config: CompactBertConfig):
        super().__init__(config)
        if not config.tasks:
            raise ValueError("a multi-task model needs `tasks`: the name of each head with its number of outputs")
        self.bert = CompactBertModel(config)
        rate = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(rate)
        self.classifiers = nn.ModuleDict(
            {task: ElasticLinear(config.hidden_size, size) for task, size in config.tasks.items()}
        )
        self.post_init()

    def for_task(self, task: str) -> CompactBertForSequenceClassification:
        """The model of one task; it shares the weights of the encoder and of that task's head."""
        config = self.config.changed(num_labels=dict(self.config.tasks or {})[task], tasks=None)
        with torch.device("meta"):  # nothing is allocated: every part is one of ours
            model = CompactBertForSequenceClassification(config)
        model.bert, model.dropout = self.bert, self.dropout
        model.classifier = self.classifiers[task]  # type: ignore[assignment]
        return model.train(self.training)


class CompactBertForQuestionAnswering(CompactBertPreTrainedModel):
    """Start and end of the answer; no pooler."""

    def __init__(self, config: CompactBertConfig):
        super().__init__(config)
        self.bert = CompactBertModel(config, add_pooling_layer=False)
        self.qa_outputs = ElasticLinear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **encoder: Any,
    ) -> QuestionAnsweringOutput:
        """start_positions, end_positions: (B,); a position at or beyond S counts as no label."""
        encoded = self.bert(input_ids, attention_mask, token_type_ids, **encoder)
        start, end = self.qa_outputs(encoded.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            outside = start.shape[1]
            start_loss, end_loss = (
                F.cross_entropy(logits, positions.clamp(0, outside), ignore_index=outside)
                for logits, positions in ((start, start_positions), (end, end_positions))
            )
            loss = (start_loss + end_loss) / 2
        return QuestionAnsweringOutput(loss, start, end, **_rest(encoded))


AutoConfig.register(CompactBertConfig.model_type, CompactBertConfig)
AutoModel.register(CompactBertConfig, CompactBertModel)
AutoModelForPreTraining.register(CompactBertConfig, CompactBertForPreTraining)
AutoModelForMaskedLM.register(CompactBertConfig, CompactBertForMaskedLM)
AutoModelForNextSentencePrediction.register(CompactBertConfig, CompactBertForNextSentencePrediction)
AutoModelForSequenceClassification.register(CompactBertConfig, CompactBertForSequenceClassification)
AutoModelForQuestionAnswering.register(CompactBertConfig, CompactBertForQuestionAnswering)
