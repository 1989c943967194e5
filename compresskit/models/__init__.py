"""The one encoder. Importing this room registers its classes with transformers' Auto classes."""

from .bert import CompactBertModel
from .config import CompactBertConfig
from .heads import (
    CompactBertForMaskedLM,
    CompactBertForNextSentencePrediction,
    CompactBertForPreTraining,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
)

__all__ = [
    "CompactBertConfig",
    "CompactBertForMaskedLM",
    "CompactBertForNextSentencePrediction",
    "CompactBertForPreTraining",
    "CompactBertForQuestionAnswering",
    "CompactBertForSequenceClassification",
    "CompactBertModel",
]
