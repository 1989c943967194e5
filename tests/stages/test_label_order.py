"""Models from elsewhere: their labels are put in the task's order, or refused, and a teacher near chance is noticed."""

from __future__ import annotations

import itertools
import json
import logging

import pytest
import torch

from compresskit.data import glue
from compresskit.data.vocabulary import train_wordpiece
from compresskit.evaluation.scores import Score
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, checkpoints
from compresskit.stages import distill
from compresskit.stages.classifiers import label_order, open_classifier

MNLI = glue.task_named("mnli")
WORDS = {"contradiction": "never", "entailment": "surely", "neutral": "perhaps"}


@pytest.mark.parametrize("theirs", itertools.permutations(MNLI.labels), ids=lambda names: " ".join(n[0] for n in names))
@pytest.mark.parametrize("spelled", [str, str.upper, str.title])
def test_any_order_and_letter_case_of_mnlis_labels_is_mapped(theirs, spelled):
    order = label_order([spelled(name) for name in theirs], MNLI)
    assert [theirs[place] for place in order] == list(MNLI.labels)


@pytest.mark.parametrize(
    ("task", "theirs", "order"),
    [
        ("sst2", ["POSITIVE", "NEGATIVE"], [1, 0]),
        ("sst2", ["0", "1"], [0, 1]),
        ("rte", ["not_entailment", "entailment"], [1, 0]),
        ("qnli", ["Entailment", "not entailment"], [0, 1]),
        ("wnli", ["entailment", "not-entailment"], [1, 0]),
        ("mnli", [], [0, 1, 2]),
        ("stsb", ["similarity"], [0]),
        ("mnli", ["entailment", "not_entailment", "neutral"], None),
        ("mnli", ["neutral", "neutral", "entailment"], None),
        ("sst2", ["entailment", "neutral"], None),
    ],
)
def test_names_decide_the_order_of_other_tasks_too(task, theirs, order):
    assert label_order(theirs, glue.task_named(task)) == order


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model that looks for the word of each label and answers in the hub's order: entailment, neutral, contradiction.

    Its config has no names; `named` gives a copy with some.
    """
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = train_wordpiece(["it is so never surely perhaps"] * 5, 100)
    config = CompactBertConfig(
        vocab_size=len(tokenizer), hidden_size=12, num_hidden_layers=1, num_attention_heads=1, intermediate_size=12,
        max_position_embeddings=32, num_labels=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = CompactBertForSequenceClassification(config)
    with torch.no_grad():  # attention averages all tokens, the pooler passes on the three words' own directions
        for parameter in model.parameters():
            parameter.zero_()
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.weight.fill_(1.0)
        layer = model.bert.encoder.layer[0]
        for linear in (layer.attention.self.value, layer.attention.output.dense, model.bert.pooler.dense):
            linear.weight.copy_(torch.eye(12))
        for place, label in enumerate(("entailment", "neutral", "contradiction")):
            word = tokenizer.convert_tokens_to_ids(WORDS[label])
            model.bert.embeddings.word_embeddings.weight[word, place] = 10.0
            model.classifier.weight[place, place] = 10.0
    checkpoints.save(model, folder, tokenizer)
    return folder


@pytest.fixture
def named(teacher, tmp_path):
    def copy(names: list[str] | None):
        folder = tmp_path / "named"
        folder.mkdir(exist_ok=True)
        for file in teacher.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        fields = json.loads((folder / "config.json").read_text())
        fields.pop("id2label", None)
        fields.pop("label2id", None)
        if names is not None:
            fields["id2label"] = {str(i): name for i, name in enumerate(names)}
        (folder / "config.json").write_text(json.dumps(fields))
        return str(folder)

    return copy


@pytest.fixture
def data(tmp_path):
    """MNLI rows whose label a single word tells."""
    folder = tmp_path / "data/MNLI"
    folder.mkdir(parents=True)
    names = ["index"] + [f"column {i}" for i in range(7)] + ["sentence1", "sentence2", "gold_label"]
    for file in ("train.tsv", "dev_matched.tsv"):
        lines = ["\t".join(names)]
        for row in range(300):
            label = MNLI.labels[row % 3]
            lines.append("\t".join([str(row), *"-" * 7, "it is", f"{WORDS[label]} so", label]))
        (folder / file).write_text("\n".join(lines) + "\n")
    return folder.parent


def opened(teacher: str, data, **changes) -> distill.Distill:
    params = {"student_layers": [1], "max_seq_len": 16, "max_steps": 1, "batch_size": 8, **changes}
    return distill.open(distill.DistillParams(task="mnli", teacher=teacher, data_dir=str(data), **params))


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["entailment", "neutral", "contradiction"], []),
        (["ENTAILMENT", "Neutral", "contradiction"], []),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["entailment", "neutral", "contradiction"]),
        (None, ["Entailment", "Neutral", "Contradiction"]),
    ],
)
def test_a_hub_teacher_is_right_once_its_labels_are_in_order(store, named, data, names, labels, caplog):
    stage = opened(named(names), data, teacher_labels=labels)
    with caplog.at_level(logging.WARNING, "compresskit.stages.distill"):
        stage.check_teacher()
    assert stage.data.score(stage.teacher, "selection").value == 1.0
    assert not caplog.records


@pytest.mark.parametrize("names", [None, ["LABEL_0", "LABEL_1", "LABEL_2"]])
def test_a_teacher_in_another_order_is_noticed_before_training(store, named, data, names, caplog):
    stage = opened(named(names), data)
    with caplog.at_level(logging.WARNING, "compresskit.stages.distill"):
        history = stage.train()
    (record,) = caplog.records
    assert record.getMessage().startswith("the teacher scores 0.")
    assert "near the 0.3" in record.getMessage()
    assert "(teacher_labels)" in record.getMessage()
    told = history[history["key"] == "select/teacher_score"]
    assert told["step"].tolist() == [0]
    assert told["value"].item() < 0.4


def test_foreign_names_are_refused_for_a_teacher_and_the_remedies_named(store, named, data):
    folder = named(["yes", "maybe", "no"])
    with pytest.raises(ValueError, match=r"calls its outputs yes, maybe, no; expected the labels of mnli.*er_labels"):
        opened(folder, data)
    with pytest.raises(ValueError, match="calls its outputs yes, no, perhaps"):
        opened(folder, data, teacher_labels=["yes", "no", "perhaps"])
    open_classifier(folder, MNLI)  # as a start for fine-tuning any head will do


def test_an_id2label_that_numbers_nothing_is_refused(named):
    folder = named(["entailment", "neutral", "contradiction"])
    path = f"{folder}/config.json"
    fields = json.loads(open(path).read()) | {"id2label": ["entailment", "neutral", "contradiction"]}  # noqa: SIM115
    with open(path, "w") as file:
        json.dump(fields, file)
    with pytest.raises(ValueError, match="expected names by number, from 0"):
        open_classifier(folder, MNLI, trained=True)


@pytest.mark.parametrize(
    ("value", "low", "majority", "near"),
    [(0.33, 0.30, 0.35, True), (0.54, 0.48, 0.50, True), (0.80, 0.75, 0.50, False), (0.57, 0.49, 0.50, True),
     (0.54, 0.53, 0.50, True), (0.30, 0.25, 0.0, False)],
)  # fmt: skip
def test_near_chance_is_less_than_5_points_above_guessing_or_within_the_interval(value, low, majority, near):
    assert Score({}, value, low, 1.0, "", 100, majority).near_chance is near
