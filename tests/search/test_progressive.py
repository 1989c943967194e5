"""The three stages: what they draw keeps rules and bounds, and a trial is a function of what came before it."""

from __future__ import annotations

from random import Random

import pytest

from compresskit.models import CompactBertConfig, CompactBertModel
from compresskit.models.feed_forward import IDS, SIZES, encode, parse, plain, refusal
from compresskit.search import classifier_tree, found
from compresskit.search.progressive import (
    FormulasAndSizes,
    FormulasOfSizes,
    Proposer,
    Rules,
    SizesOfFormulas,
    plain_of,
    random_of,
)

SUPERNET = CompactBertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
                             intermediate_size=24, max_position_embeddings=16,
                             feed_forward=[str(plain(4, 1))] * 3)  # fmt: skip
WINNER = (
    "tanh(linear4_2(gelu(linear4_2(x,wb1)),wb2))",
    "linear2_2(gelu(linear2_2(max(x,tanh(x)),wb1)),wb2)",
    "linear1_2(relu(mul(linear1_2(x,wb1),x)),wb2)",
)
PLAIN = (str(plain()),) * 3


@pytest.fixture(autouse=True)
def _fast_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier_tree, "ROUNDS", 15)
    monkeypatch.setattr(classifier_tree, "TUNING_TRIALS", 3)


def exact(candidate: tuple[str, ...]) -> int:
    """Weights of the network itself."""
    return CompactBertModel(SUPERNET.changed(feed_forward=list(candidate)), add_pooling_layer=False).num_parameters()


def test_parameters_are_those_of_the_network():
    rules = Rules(SUPERNET)
    for candidate in (PLAIN, WINNER, tuple(SUPERNET.feed_forward)):
        assert rules.parameters(candidate) == exact(candidate)


@pytest.mark.parametrize("seed", range(4))
def test_stage_1_draws_valid_formulas_within_the_bounds(seed):
    middle = exact(PLAIN)
    space = FormulasAndSizes(Rules(SUPERNET, 0.95 * middle, 1.05 * middle))
    assert space.initial() == [PLAIN]
    drawn = [space.draw(Random(seed * 10 + i)) for i in range(5)]
    for candidate in drawn:
        assert 0.95 * middle <= exact(candidate) <= 1.05 * middle
        assert all(refusal(parse(text)) is None for text in candidate)
        assert len(space.encode(candidate)) == 3 * (20 + 29)
    assert len(set(drawn)) == 5
    assert FormulasAndSizes(Rules(SUPERNET, 2 * middle)).initial() == []


@pytest.mark.parametrize("seed", range(4))
def test_stage_2_keeps_the_sizes_and_stage_3_the_formulas(seed):
    second, third = FormulasOfSizes(Rules(SUPERNET), WINNER), SizesOfFormulas(Rules(SUPERNET, 0, 20_000), WINNER)
    assert second.initial() == [WINNER, plain_of(WINNER)]
    for number in range(5):
        candidate = second.draw(Random(seed * 10 + number))
        assert [parse(text).size_index for text in candidate] == ["4_2", "2_2", "1_2"]
        assert all(refusal(parse(text)) is None for text in candidate)
        assert exact(candidate) == exact(WINNER)
        encoded, nodes = second.encode(candidate), parse(candidate[0]).nodes
        assert encoded[:20] == encode([parse(candidate[0]).resized(None)], 2)
        assert encoded[20:34] == [2 * (name == "linear") or nodes.count(name) for name in IDS[2]]
        assert FormulasOfSizes(Rules(SUPERNET, faithful=True), WINNER).encode(candidate) == [
            number for layer in range(3) for number in encoded[34 * layer : 34 * layer + 20]
        ]
        sized = third.draw(Random(seed * 10 + number))
        assert [parse(text).resized(None) for text in sized] == [parse(text).resized(None) for text in WINNER]
        assert exact(sized) <= 20_000
        assert third.encode(sized) == [SIZES.index(parse(text).size_index) for text in sized]
    random = random_of(WINNER, Rules(SUPERNET), Random(seed))
    assert exact(random) == exact(WINNER)
    assert random not in (WINNER, plain_of(WINNER))


def test_stage_3_draws_the_winners_size_twice_as_often_as_others():
    space, rng = SizesOfFormulas(Rules(SUPERNET), WINNER), Random(0)
    drawn = [parse(space.draw(rng)[0]).size_index for _ in range(3400)]
    counts = [drawn.count(size) for size in SIZES]
    assert counts[SIZES.index("4_2")] == pytest.approx(400, abs=70)
    assert all(count == pytest.approx(200, abs=50) for size, count in zip(SIZES, counts, strict=True) if size != "4_2")


def test_formulas_that_do_not_fit_the_widths_are_not_drawn():
    wide = SUPERNET.changed(intermediate_size=48)
    rules = Rules(wide)
    assert not rules.is_valid(parse("linear1_1(add(linear1_1(x,wb1),x),wb2)"))  # cut to 24, wb2 takes 48
    assert rules.is_valid(parse("linear1_2(add(linear1_2(x,wb1),x),wb2)"))


def test_bounds_that_nothing_keeps_are_named_with_what_there_is():
    rules = Rules(SUPERNET, 1, 5, max_draws=20)
    with pytest.raises(ValueError, match=r"none of 20 drawn networks has 1 to 5 parameters: they have 1\d,\d+ to"):
        FormulasAndSizes(rules).draw(Random(0))


def fake_score(candidate: tuple[str, ...]) -> float:
    """Something to learn: a first layer with max or tanh is good."""
    return 0.5 + 0.3 * ("tanh" in candidate[0]) + 0.01 * (len(candidate[1]) % 7)


def run(proposer: Proposer, count: int) -> tuple[list, dict[int, float]]:
    candidates, scores, proposals = [], {}, []
    for number in range(count):
        proposals.append(proposer.propose(number, candidates, scores))
        candidates.append(proposals[-1].candidate)
        scores[number] = fake_score(candidates[-1])
    return proposals, scores


def proposer(seed: int = 0, **changes) -> Proposer:
    return Proposer(
        FormulasOfSizes(Rules(SUPERNET), WINNER), seed, **{"initial_trials": 30, "refit_every": 6, **changes}
    )


def test_trials_repeat_from_a_seed_and_no_two_behave_the_same():
    own = proposer()
    proposals, scores = run(own, 42)
    keys = {own.space.behaviour(proposal.candidate) for proposal in proposals}
    assert len(keys) == 42
    assert proposals[0].candidate == WINNER
    assert proposals[1].candidate == plain_of(WINNER)
    assert [own.round_of(n) for n in (0, 29, 30, 35, 36)] == [range(30)] * 2 + [range(30, 36)] * 2 + [range(36, 42)]
    # a trial needs no more than the candidates before it and the scores of earlier rounds
    fresh = proposer()
    candidates = [proposal.candidate for proposal in proposals]
    earlier = {number: scores[number] for number in range(36)}
    assert fresh.propose(39, candidates[:39], earlier) == proposals[39]
    assert run(proposer(1), 4)[0] != proposals[:4]


def test_the_classifiers_raise_the_scores_of_what_is_drawn():
    proposals, scores = run(proposer(), 42)
    assert sum(p.rejected for p in proposals[:30]) == 0 < sum(p.rejected for p in proposals[30:])
    random = [scores[number] for number in range(2, 30)]
    classified = [scores[number] for number in range(30, 42)]
    assert sum(classified) / len(classified) > sum(random) / len(random) + 0.04


def test_refusals_are_bounded():
    class Picky:
        def __init__(self, space):
            self.space = space

        def __getattr__(self, name):
            return getattr(self.space, name)

        def encode(self, candidate):  # only what has been scored looks good or bad
            return self.space.encode(candidate) if candidate in known else [99] * 102

    own = proposer(max_rejections=3)
    proposals, scores = run(own, 30)
    known = {proposal.candidate for proposal in proposals}
    candidates = [proposal.candidate for proposal in proposals]
    picky = Proposer(Picky(own.space), 0, 30, 6, max_rejections=3)
    tree = picky.tree(30, candidates, scores)
    side = bool(tree.classifier.predict([[99] * 102])[0])
    drawn = picky.propose(30, candidates, scores)
    assert (drawn.rejected, drawn.free) == ((0, False) if side else (3, True))


def test_a_space_with_nothing_new_says_so():
    space = SizesOfFormulas(Rules(SUPERNET, exact(WINNER), exact(WINNER)), WINNER)
    own = Proposer(space, 0, initial_trials=100, max_duplicates=30)
    candidates: list = []

    def draw_all() -> None:
        while len(candidates) < 100:
            candidates.append(own.propose(len(candidates), candidates, {}).candidate)

    with pytest.raises(ValueError, match=r"trial \d+: 30 draws in a row behave as one of the \d+ networks before"):
        draw_all()


def test_what_was_found_is_read_again_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "out" / found.FILE
    found.write(path, 1, [found.Scored(WINNER, 0.9, 7), found.Scored(PLAIN, 0.8, 9)], {"task": "sst2"})
    assert found.read_winner(path, 3) == WINNER
    with pytest.raises(ValueError, match="has 3 formulas, the supernet 6 layers"):
        found.read_winner(path, 6)
    path.write_text(path.read_text().replace("gelu", "glue", 1))
    with pytest.raises(ValueError, match=r"found.json is no file of found formulas: .*unknown 'glue'"):
        found.read_winner(path, 3)
    with pytest.raises(FileNotFoundError, match="previous names"):
        found.read_winner(tmp_path / "none.json", 3)
