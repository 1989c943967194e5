"""Sentences and windows against those of EfficientBERT's code."""

from __future__ import annotations

import json

import numpy as np
import pytest
from datasets import Dataset, Features, Value

from compresskit.data import glue, squad, squad_features, vocabulary
from compresskit.data.batching import Batches
from compresskit.data.glue import PAIR
from tests.oracle_cases import oracle

NAMES = {"sst-2": "sst2", "sts-b": "stsb", "mnli-mm": "mnli_mm"}  # where ours differ from theirs


@pytest.fixture
def tokenizer_of(tmp_path):
    def load(case):
        (tmp_path / "vocab.txt").write_text("\n".join(case.value("vocab")) + "\n", encoding="utf-8")
        return vocabulary.load_tokenizer(tmp_path / "vocab.txt")

    return load


def features_of(encoded, length: int) -> list[dict[str, list[int]]]:
    """Each row as the original has it: padded to `length`, the mask 1 on padding."""
    (batch,) = Batches(encoded, len(encoded), 0, 0, False, length_buckets=False, pad_to=length)
    names = {"token_ids": batch["input_ids"], "segment_ids": batch["token_type_ids"],
             "attn_mask": 1 - batch["attention_mask"]}  # fmt: skip
    rows = [{name: tensor[row].tolist() for name, tensor in names.items()} for row in range(len(encoded))]
    return [{**row, "position_ids": list(range(length))} for row in rows]  # of our model: always these


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "tokenize_glue"), ids=str)
def test_sentences_and_pairs_are_encoded_as_by_the_original(case, tokenizer_of):
    tokenizer = tokenizer_of(case)
    for number, recorded in enumerate(case.value("rows")):
        texts = {name: recorded[f"text_{end}"] for name, end in zip(PAIR, "ab", strict=True)}
        texts = {name: [text] for name, text in texts.items() if text is not None}
        features = Features({**{name: Value("string") for name in texts}, "label": Value("int64")})
        rows = glue.encode(Dataset.from_dict({**texts, "label": [0]}, features), tokenizer, recorded["max_seq_len"])
        got = features_of(rows, recorded["max_seq_len"])[0]
        got |= {f"tokens_{end}": None for end in "ab"}
        got |= {f"tokens_{end}": tokenizer.tokenize(text) for (text,), end in zip(texts.values(), "ab", strict=False)}
        for field in got:
            case.check_value("rows", number, field, got=got[field])


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "squad_windows"), ids=str)
def test_windows_are_those_of_the_original(case, tokenizer_of, tmp_path):
    """`doc_stride` is its stride, and its longest question counts [CLS] and [SEP]."""
    tokenizer = tokenizer_of(case)
    for number, recorded in enumerate(case.value("rows")):
        paragraph = {"context": recorded["context"], "qas": recorded["qas"]}
        file = tmp_path / "squad.json"
        file.write_text(json.dumps({"data": [{"title": "", "paragraphs": [paragraph]}]}), encoding="utf-8")
        sizes = (recorded["max_seq_len"], recorded["trunc_stride"], recorded["max_query_len"] - 2)
        training = recorded["split"] == "train"  # the original looks for no answer in dev
        encoded = squad_features.encode(squad.read(file), tokenizer, *sizes, training=training)
        padded = features_of(encoded, recorded["max_seq_len"])
        got = [
            window_of(row, features, recorded, tokenizer, place, encoded["example"][:place].count(row["example"]))
            for place, (row, features) in enumerate(zip(encoded, padded, strict=True))
        ]
        case.check_value("rows", number, "windows", got=got)


def window_of(row, features, recorded, tokenizer, place: int, of_question: int) -> dict:
    """A window of ours in the form of the original; its number in all, and among those of its question."""
    begin, pieces = row["context_start"], len(row["words"])
    start, end = (row.get(f"{side}_positions", 0) for side in ("start", "end"))
    allowed = np.ones(recorded["max_seq_len"], dtype=int)  # 1: no answer begins here
    allowed[[0, *range(begin, begin + pieces)]] = 0
    return {
        **features,
        "tokens": tokenizer.convert_ids_to_tokens(row["input_ids"]),
        "start_position": start,
        "end_position": end,
        "is_impossible": recorded["split"] == "train" and start == 0,
        "example_index": row["example"],
        "unique_id": 1_000_000_000 + place,
        "context_len": pieces,
        "context_start_position": of_question * recorded["trunc_stride"],
        "context_subtok_to_tok_idx": {str(begin + i): word for i, word in enumerate(row["words"])},
        "is_max_context_token": {str(begin + i): bool(best) for i, best in enumerate(row["max_context"])},
        "cls_index": 0,
        "p_mask": allowed.tolist(),
    }
