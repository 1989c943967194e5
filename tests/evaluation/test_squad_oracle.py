"""SQuAD from file to score against the recorded run of the original program: examples, windows, answers, scores."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from compresskit.data import squad, squad_features, vocabulary
from compresskit.evaluation import squad as scores
from compresskit.evaluation import squad_answers
from tests.oracle_cases import Tolerance, oracle

CLOSE = Tolerance(atol=1e-6)  # the case's own, for floats; all else is exact


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "squad_v"), ids=str)
def test_examples_windows_answers_and_scores_are_those_of_the_original_program(case, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(case.value("vocab")) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": case.value("do_lower_case")}))
    (tmp_path / "squad.json").write_text(json.dumps(case.value("dataset")))
    tokenizer = vocabulary.load_tokenizer(tmp_path)
    examples = squad.read(tmp_path / "squad.json", strict=False)
    with_null = "2" in case.value("dataset", "version")

    sizes = [case.value(name) for name in ("max_seq_length", "doc_stride", "max_query_length")]
    for split in ("train", "dev"):
        case.check_value(f"{split}_examples", got=[record(example, split == "train") for example in examples])
        features = squad_features.encode(examples, tokenizer, *sizes, training=split == "train")
        records = squad_features.official_records(features, examples, tokenizer)
        case.check_value(f"{split}_features", got=json.loads(json.dumps(records)))
        for name, array in squad_features.padded_arrays(features, tokenizer, sizes[0]).items():
            case.check(f"{split}/{name}", torch.from_numpy(array))

    golds = {example.id: [text for text, _ in example.answers] for example in examples}
    for name, recorded in case.value("postprocess").items():
        found = squad_answers.answers(
            examples,
            features,
            case["start_logits"].numpy(),
            case["end_logits"].numpy(),
            tokenizer,
            null=with_null,
            n_best_size=recorded["n_best_size"],
            max_answer_length=recorded["max_answer_length"],
        )
        predictions = found.predictions(recorded["null_score_diff_threshold"])
        case.check_value("postprocess", name, "predictions", got=predictions)
        case.check_value("postprocess", name, "nbest", got=found.n_best, tolerance=CLOSE)
        case.check_value("postprocess", name, "null_odds", got=found.null_odds, tolerance=CLOSE)
        reports = {"evaluate": None, "evaluate_with_null_odds": found.null_odds}
        for report in reports.keys() & recorded.keys():
            got = scores.official_scores(predictions, golds, reports[report])
            case.check_value("postprocess", name, report, got=got, tolerance=CLOSE)

    case.check_value("normalize", got=[[text, scores.normalize(text)] for text, _ in case.value("normalize")])
    pairs = [(said, gold) for said, gold, *_ in case.value("f1_exact")]
    measured = [[said, gold, scores.f1(said, gold), int(scores.exact_match(said, gold))] for said, gold in pairs]
    case.check_value("f1_exact", got=measured, tolerance=CLOSE)
    basic = squad_answers.basic_tokens(tokenizer)
    aligned = [[said, text, squad_answers.align(said, text, basic(text))] for said, text, _ in case.value("final_text")]
    case.check_value("final_text", got=aligned)


def record(example: squad.SquadExample, training: bool) -> dict[str, Any]:
    """An example as the original program holds it: of the answers, training knows the first, as words."""
    text, start, end = None, 0, 0
    if training and example.answers:
        text, begin = example.answers[0]
        start, end = (word_at(example.context, place) for place in (begin, begin + len(text) - 1))
    return {
        "qas_id": example.id,
        "title": example.title,
        "is_impossible": not example.answers,
        "answer_text": text,
        "start_position": start,
        "end_position": end,
        "doc_tokens": squad_features.words(example.context),
        "answers": [] if training else [{"text": text, "answer_start": begin} for text, begin in example.answers],
    }


def word_at(context: str, place: int) -> int:
    """The word that a character belongs to, a space to the one before it."""
    return len(squad_features.words(context[: place + 1])) - 1
