"""The SuperBERT spaces: every drawn architecture fits its supernet, and the same seed draws the same ones."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.models import CompactBertConfig, CompactBertModel
from compresskit.models.elastic import check_fits
from compresskit.search.spaces import (
    DIMENSIONS,
    RELEASED_GRIDS,
    SPACES,
    SuperBertKdSpace,
    SuperBertMlmSpace,
    columns_of,
    config_at,
    grid,
    grid_size,
    joined,
    rows,
    space_of,
)


@st.composite
def supernets(draw) -> CompactBertConfig:
    """Supernets of any even shape, q/k/v narrower or wider than the hidden axis."""
    heads = draw(st.integers(1, 16))
    return CompactBertConfig(
        vocab_size=30,
        hidden_size=draw(st.integers(1, 800)),
        num_hidden_layers=draw(st.integers(1, 12)),
        num_attention_heads=heads,
        qkv_size=heads * draw(st.integers(1, 64)),
        intermediate_size=draw(st.integers(1, 3072)),
    )


@settings(max_examples=150, deadline=None)
@given(supernet=supernets(), flavour=st.sampled_from(sorted(SPACES)), seed=st.integers(0, 2**32))
def test_every_draw_of_both_spaces_stays_inside_the_supernet(supernet, flavour, seed):
    space = SPACES[flavour].within(supernet)
    subnet = space.sample(supernet, Random(seed))
    check_fits(supernet, subnet)
    if flavour == "kd":  # the heads stay, each gets shorter
        assert subnet.num_attention_heads == supernet.num_attention_heads
    else:  # heads go, their size stays
        size = supernet.per_layer("qkv_size")[0] // supernet.num_attention_heads
        assert subnet.qkv_size == subnet.num_attention_heads * size


@settings(max_examples=100, deadline=None)
@given(supernet=supernets(), flavour=st.sampled_from(sorted(SPACES)))
def test_the_whole_supernet_is_a_point_of_its_space_and_the_least_point_is_not_empty(supernet, flavour):
    space = SPACES[flavour].within(supernet)
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", *(["qkv_size"] if flavour == "kd" else [])):
        values = list(getattr(space, name))
        whole = supernet.per_layer(name)[0] if name != "num_hidden_layers" else supernet.num_hidden_layers
        if name == "hidden_size":
            whole = supernet.hidden_size
        assert values[-1] == whole
        assert values[0] >= 1
        assert values == sorted(set(values))


@pytest.mark.parametrize("flavour", SPACES)
def test_the_same_seed_draws_the_same_architectures_and_another_seed_others(flavour):
    supernet = CompactBertConfig()
    space = SPACES[flavour]()
    draws = [[space.sample(supernet, rng).key() for _ in range(5)] for rng in (Random(1), Random(1), Random(2))]
    assert draws[0] == draws[1]
    assert not set(draws[0]) & set(draws[2])


@pytest.mark.parametrize(("space", "points"), [(SuperBertKdSpace(), 47_462_800), (SuperBertMlmSpace(), 11_391_072)])
def test_the_spaces_of_the_paper_have_as_many_points_as_its_code(space, points):
    product = 1
    for values in vars(space).values():
        product *= len(values)
    assert product == points


def test_draws_are_uniform_over_each_dimension():
    space, supernet, rng = SuperBertMlmSpace(num_hidden_layers=[1, 2, 4]), CompactBertConfig(), Random(0)
    depths = [space.sample(supernet, rng).num_hidden_layers for _ in range(900)]
    assert all(abs(depths.count(depth) - 300) < 60 for depth in (1, 2, 4))  # four standard deviations


@pytest.mark.parametrize("flavour", SPACES)
def test_drawn_subnets_run_in_the_supernet_and_keep_its_other_settings(flavour):
    config = CompactBertConfig(
        vocab_size=30, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, qkv_size=64, intermediate_size=96,
        max_position_embeddings=16, layer_norm_eps=1e-5, hidden_act="relu", num_labels=4,
    )  # fmt: skip
    model, space, rng = CompactBertModel(config).eval(), SPACES[flavour].within(config), Random(0)
    ids = torch.ones(2, 5, dtype=torch.long)
    for _ in range(20):
        subnet = space.sample(config, rng)
        assert model(ids, subnet=subnet).last_hidden_state.shape == (2, 5, subnet.hidden_size)
        assert (subnet.num_labels, subnet.hidden_act, subnet.vocab_size) == (4, "relu", 30)


@pytest.mark.parametrize("flavour", SPACES)
def test_an_uneven_supernet_is_refused_by_field(flavour):
    uneven = CompactBertConfig(num_hidden_layers=2, intermediate_size=[100, 200])
    with pytest.raises(ValueError, match=r"intermediate_size of the supernet is \[100, 200\]; expected one number"):
        SPACES[flavour].within(uneven)


# Whole grids


def tuples(columns) -> list[tuple[int, ...]]:
    return list(zip(*(columns[name].tolist() for name in DIMENSIONS), strict=True))


def test_a_grid_has_every_point_in_the_order_of_the_originals_loops():
    supernet = CompactBertConfig(num_hidden_layers=8)
    kd = SuperBertKdSpace(range(2, 4), range(128, 161, 16), range(128, 193, 32), range(180, 205, 12))
    loops = [
        (l, h, f, 12, q)
        for l in kd.num_hidden_layers for h in kd.hidden_size for f in kd.intermediate_size for q in kd.qkv_size
    ]  # fmt: skip
    assert tuples(joined(list(grid(kd, supernet)))) == loops
    mlm = SuperBertMlmSpace(range(2, 4), range(1, 4), range(128, 161, 16), range(128, 193, 32))
    loops = [
        (l, h, f, n, 64 * n)
        for l in mlm.num_hidden_layers for n in mlm.num_attention_heads
        for h in mlm.hidden_size for f in mlm.intermediate_size
    ]  # fmt: skip
    assert tuples(joined(list(grid(mlm, supernet)))) == loops
    assert len(loops) == grid_size(mlm)


@pytest.mark.parametrize(("flavour", "points"), [("kd", 1_525_200), ("mlm", 366_048)])
def test_the_released_grids_have_the_searchers_size(flavour, points):
    space = RELEASED_GRIDS[flavour]
    parts = list(grid(space, CompactBertConfig()))
    assert grid_size(space) == sum(len(part["hidden_size"]) for part in parts) == points
    first, last = (tuples(rows(part, [i]))[0] for part, i in ((parts[0], 0), (parts[-1], -1)))
    assert first == ((1, 128, 128, 12, 180) if flavour == "kd" else (1, 128, 128, 1, 64))
    assert last == (8, 768, 3072, 12, 768)


def test_a_point_of_the_columns_is_a_subnet_and_back():
    supernet = CompactBertConfig(num_hidden_layers=8, vocab_size=40, hidden_act="relu")
    rng = Random(0)
    drawn = [space().sample(supernet, rng) for space in (SuperBertKdSpace, SuperBertMlmSpace) for _ in range(5)]
    columns = columns_of(drawn)
    assert [config_at(columns, n, supernet).key() for n in range(10)] == [config.key() for config in drawn]
    uneven = columns_of([CompactBertConfig(num_hidden_layers=2, intermediate_size=[100, 201])])
    assert uneven["intermediate_size"].tolist() == [150.5]


@pytest.mark.parametrize("flavour", SPACES)
def test_a_supernet_as_wide_as_the_published_one_has_the_published_values(flavour):
    for layers in (8, 12):
        assert space_of(flavour, CompactBertConfig(num_hidden_layers=layers)) == SPACES[flavour]()
    for other in (CompactBertConfig(num_hidden_layers=7), CompactBertConfig(hidden_size=384, num_attention_heads=12)):
        assert space_of(flavour, other) == SPACES[flavour].within(other)
