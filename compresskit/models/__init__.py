"""The one encoder. Importing this room registers its classes with transformers' Auto classes."""

from compresskit.models.bert import CompactBertModel
from compresskit.models.config import CompactBertConfig
from compresskit.models.heads import (
    CompactBertForMaskedLM,
    CompactBertForMultitask,
    CompactBertForNextSentencePrediction,
    CompactBertForPreTraining,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
)

__all__ = [
    "CompactBertConfig",
    "CompactBertForMaskedLM",
    "CompactBertForMultitask",
    "CompactBertForNextSentencePrediction",
    "CompactBertForPreTraining",
    "CompactBertForQuestionAnswering",
    "CompactBertForSequenceClassification",
    "CompactBertModel",
]
