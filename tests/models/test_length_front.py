"""A model serves with the lengths of its front that are fast enough, and is saved, loaded and exported with them."""

from __future__ import annotations

import pytest
import torch

from compresskit.evaluation import engines
from compresskit.models import (
    CompactBertConfig,
    CompactBertForQuestionAnswering,
    CompactBertForSequenceClassification,
    export,
    length_front,
)
from compresskit.models.length_front import with_lengths

SHAPE = dict(vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
SIZES = {
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}
POINTS = [
    {"length_config": [12, 8, 4], "score": 0.6, "macs": 100, "latency_ms": 1.0},
    {"length_config": [24, 16, 8], "score": 0.8, "macs": 200, "latency_ms": 2.0},
    {"length_config": [30, 28, 26], "score": 0.7, "macs": 300, "latency_ms": 3.0},
]
FRONT = {"seq_len": 32, "full": {"score": 0.9, "macs": 400, "latency_ms": 4.0}, "points": POINTS}
MACHINE = [8.0, 2.0, 5.0, 6.5]  # ms: full length, then the points


def model(head=CompactBertForQuestionAnswering, **changes):
    torch.manual_seed(0)
    return head(CompactBertConfig(**{**SHAPE, **SIZES, "length_front": FRONT, **changes})).eval()


def batch(rows=3, seq_len=32):
    ids = torch.randint(1, 99, (rows, seq_len), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(seq_len) < torch.tensor([seq_len, seq_len - 3, 5])[:rows, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


@pytest.fixture
def timed(monkeypatch):
    """A machine on which the full length takes 8 ms and the points 2, 5 and 6.5."""
    asked = []
    monkeypatch.setattr(length_front, "latencies", lambda *given: asked.append(given) or MACHINE)
    return asked


@pytest.mark.parametrize(
    ("wanted", "lengths"),
    [
        ({"speedup": 1}, None),
        ({"speedup": 1.2}, [24, 16, 8]),  # scores better than the one of 6.5 ms
        ({"speedup": 1.6}, [24, 16, 8]),
        ({"speedup": 2}, [12, 8, 4]),
        ({"max_latency_ms": 7.9}, [24, 16, 8]),
        ({"max_latency_ms": 2.0}, [12, 8, 4]),
        ({"max_latency_ms": 100}, None),
    ],
)
def test_the_best_score_that_is_fast_enough_is_chosen(timed, wanted, lengths):
    assert model().at(**wanted).config.length_config == lengths


@pytest.mark.parametrize("wanted", [{"speedup": 4.1}, {"max_latency_ms": 1.9}])
def test_what_nothing_keeps_is_refused_with_the_fastest(timed, wanted):
    with pytest.raises(ValueError, match=r"none of 4 length configs .*8 ms.*\[12, 8, 4\], 2 ms \(4.00 times as fast\)"):
        model().at(**wanted)


@pytest.mark.parametrize("wanted", [{}, {"speedup": 2, "max_latency_ms": 3}])
def test_one_limit_has_to_be_named(wanted):
    with pytest.raises(ValueError, match="say either"):
        model().at(**wanted)
    with pytest.raises(ValueError, match="speedup is -1"):
        model().at(speedup=-1)
    with pytest.raises(ValueError, match="no front"):
        model(length_front=None).at(speedup=2)


def test_the_chosen_model_shares_its_weights_and_leaves_the_first_one_as_it_was(timed):
    whole = model()
    chosen, inputs = whole.at(speedup=2), batch()
    expected = whole(**inputs, length_config=[12, 8, 4])
    torch.testing.assert_close(chosen(**inputs).start_logits, expected.start_logits, rtol=0, atol=0)
    assert whole.config.length_config is None
    assert not torch.equal(whole(**inputs).start_logits, expected.start_logits)
    pairs = zip(whole.parameters(), chosen.parameters(), strict=True)
    assert all(mine is theirs for mine, theirs in pairs)
    again = chosen.at(speedup=1.2)  # from the front, whatever is chosen now
    assert again.config.length_config == [24, 16, 8]


def test_the_machine_is_asked_once_with_the_conditions_of_the_call():
    length_front._measured.clear()
    served = model(max_position_embeddings=48)
    served.train()
    first = length_front.latencies(served, [None, [4, 3, 2]], 2, 32, 1)
    assert served.training
    assert length_front.latencies(served, [None, [4, 3, 2]], 2, 32, 1) is first
    assert length_front.latencies(served, [None, [4, 3, 2]], 1, 32, 1) is not first
    assert len(first) == 2
    assert min(first) > 0


def test_front_and_chosen_lengths_survive_saving(timed, tmp_path):
    whole = model(CompactBertForSequenceClassification)
    whole.save_pretrained(tmp_path / "whole")
    loaded = CompactBertForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    assert loaded.config.length_front == FRONT
    chosen = loaded.at(speedup=1.6)
    chosen.save_pretrained(tmp_path / "chosen")
    served, inputs = CompactBertForSequenceClassification.from_pretrained(tmp_path / "chosen").eval(), batch()
    assert served.config.length_config == [24, 16, 8]
    expected = whole(**inputs, length_config=[24, 16, 8]).logits
    torch.testing.assert_close(served(**inputs).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"points": [{**POINTS[0], "length_config": [12, 8]}]}, "2 lengths for 3 layers"),
        ({"points": [{**POINTS[0], "length_config": [8, 12, 4]}]}, "may only fall"),
        ({"points": [{"length_config": [12, 8, 4]}]}, "no front of length configs"),
        ({"seq_len": 65}, "seq_len is not as it should be"),
        ({"full": None}, "no front of length configs"),
    ],
)
def test_a_broken_front_is_refused_when_the_config_is_read(wrong, message):
    with pytest.raises(ValueError, match=message):
        CompactBertConfig(**SHAPE, max_position_embeddings=64, length_front={**FRONT, **wrong})


def test_a_network_of_another_shape_has_no_front():
    config = model().config
    assert config.changed(num_hidden_layers=2).length_front is None
    assert config.changed(intermediate_size=32).length_front is None
    assert config.changed(hidden_dropout_prob=0.5).length_front == FRONT


# Graphs


@pytest.mark.parametrize("head", [CompactBertForQuestionAnswering, CompactBertForSequenceClassification])
def test_a_graph_drops_the_tokens_that_torch_drops(tmp_path, head):
    chosen, inputs = with_lengths(model(head), [20, 9, 4]), batch()
    graph = tmp_path / "model.onnx"
    export.to_onnx(chosen, graph)
    with torch.no_grad():
        expected = [value for value in chosen(**inputs).values() if isinstance(value, torch.Tensor)]
    export.to_openvino(graph, tmp_path / "model.xml")
    real = inputs["attention_mask"].bool() if head is CompactBertForQuestionAnswering else slice(None)
    for engine, path in (("onnxruntime", graph), ("openvino", tmp_path / "model.xml")):
        found = engines.prepare(engine, chosen, path, inputs, 1)(inputs)
        found = list(found) if isinstance(found, list) else list(found.values())
        for ours, theirs in zip(expected, found, strict=True):
            torch.testing.assert_close(torch.as_tensor(theirs)[real], ours[real], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        full = next(iter(with_lengths(chosen, None)(**inputs).values()))
    assert not torch.allclose(full, expected[0], rtol=1e-3, atol=1e-4)  # the graph's lengths matter


def test_a_graph_needs_whole_lengths_and_one_length_of_inputs(tmp_path):
    with pytest.raises(ValueError, match="in shares of each input"):
        export.to_onnx(with_lengths(model(), [0.5, 0.5, 0.25]), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="give seq_len"):
        export.to_onnx(with_lengths(model(length_front=None), [9, 8, 7]), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
