import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel

from compresskit.models import CompactBertConfig, CompactBertModel
from compresskit.pruning import masks
from compresskit.pruning.masks import MagnitudePruner, kind_of, largest, magnitude_mask, prunable
from compresskit.pruning.patterns import GROUPS
from compresskit.pruning.schedule import cubic_sparsity

CONFIG = BertConfig(
    vocab_size=40,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=16,
)
KINDS = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


def bert(seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(CONFIG)


def zeros(model: nn.Module) -> dict[str, int]:
    return {name: int((p == 0).sum()) for name, p in model.named_parameters() if name in prunable([name])}


def disturb(model: nn.Module, step: int) -> None:
    """An optimizer step's stand-in that moves every weight, the pruned ones too."""
    noise = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=noise), alpha=0.01)


# ---- names


def test_a_layer_with_a_formula_has_two_matrices_in_each_of_its_feed_forwards():
    config = CompactBertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        feed_forward=["linear2_1(gelu(linear2_1(x,wb1)),wb2)"], embedding="trigram", embedding_size=4,
    )  # fmt: skip
    names = prunable(dict(CompactBertModel(config).named_parameters()))
    assert [name.removeprefix("encoder.layer.0.") for name in names[4:]] == [
        f"feed_forward.{number}.{part}.dense.weight" for number in range(2) for part in ("intermediate", "output")
    ]
    assert [kind_of(name) for name in names] == [*masks.KINDS, "intermediate", "output"]


@pytest.mark.parametrize(("model_class", "prefix"), [(BertModel, ""), (BertForMaskedLM, "bert.")])
def test_exactly_six_matrices_per_layer_with_and_without_the_prefix(model_class, prefix):
    names = prunable(model_class(CONFIG).state_dict())
    assert sorted(names) == sorted(f"{prefix}encoder.layer.{i}.{kind}.weight" for i in range(2) for kind in KINDS)


@pytest.mark.parametrize(
    "name",
    [
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
        "bert.encoder.layer.0.attention.self.query.bias",
        "bert.pooler.dense.weight",
        "classifier.weight",
        "fit_dense.weight",
        "teacher.bert.encoder.layer.0.output.dense.weight",
    ],
)
def test_nothing_else_is_prunable(name):
    assert prunable([name]) == []


def test_a_kind_has_one_name_and_selects_its_matrix_of_every_layer():
    names = list(BertModel(CONFIG).state_dict())
    found = {kind: prunable(names, [kind]) for kind in masks.KINDS}
    for theirs, (kind, matrices) in zip(KINDS, found.items(), strict=True):
        assert matrices == [f"encoder.layer.{i}.{theirs}.weight" for i in range(2)]
        assert {kind_of(name) for name in matrices} == {kind}
    assert kind_of("encoder.layer.0.output.dense.bias") is None


# ---- one mask


def test_the_largest_magnitudes_stay():
    weight = torch.tensor([[0.1, -5.0, 0.0], [3.0, -0.2, 1.0]])
    assert magnitude_mask(weight, 0.5).tolist() == [[False, True, False], [True, False, True]]


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=60),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_the_count_is_exact_with_ties_and_no_dropped_weight_is_larger_than_a_kept_one(values, sparsity, dtype):
    weight = torch.tensor(values, dtype=dtype)
    mask = magnitude_mask(weight, sparsity)
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == math.floor(len(values) * (1 - sparsity) + 1e-6)
    if mask.any() and not mask.all():
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


def test_among_equal_magnitudes_the_first_stay():
    assert magnitude_mask(torch.tensor([1.0, -1.0, 1.0, 2.0]), 0.5).tolist() == [True, False, False, True]


def test_rounding_of_one_minus_the_sparsity_costs_no_weight():
    assert math.floor(1000 * (1 - 0.9)) == 99  # the trap
    assert int(magnitude_mask(torch.randn(1000), 0.9).sum()) == 100


@pytest.mark.parametrize(
    ("weight", "sparsity", "message"),
    [
        (torch.ones(4), 1.2, "between 0 and 1, not 1.2"),
        (torch.tensor([1.0, float("nan")]), 0.5, "NaN or infinite: training has diverged"),
    ],
)
def test_nonsense_is_refused(weight, sparsity, message):
    with pytest.raises(ValueError, match=message):
        magnitude_mask(weight, sparsity)


def test_faithful_keeps_every_tie_and_the_rounding_error_of_one_minus_the_sparsity():
    assert largest(torch.tensor([1.0, 1.0, 1.0, 2.0]), 0.5, faithful=True).tolist() == [True] * 4
    assert largest(torch.tensor([0.0, 0.0, 0.0, 2.0]), 0.5, faithful=True).tolist() == [True] * 4  # the threshold is 0
    assert int(largest(torch.randn(1000), 0.9, faithful=True).sum()) == 99


# ---- groups


@pytest.mark.parametrize("pattern", [name for name, size in GROUPS.items() if size != (1, 1)])
def test_the_groups_of_largest_norm_stay_whole_and_their_count_is_exact(pattern):
    rows, columns = GROUPS[pattern]
    weight = torch.randn(16, 24, dtype=torch.float64)
    mask = magnitude_mask(weight, 0.7, pattern)
    kept, dropped = [], []
    for r in range(0, 16, rows):
        for c in range(0, 24, columns):
            part = slice(r, r + rows), slice(c, c + columns)
            assert mask[part].all() or not mask[part].any()
            (kept if mask[part].all() else dropped).append(float(weight[part].square().sum()))
    assert len(kept) == math.floor(len(kept + dropped) * 0.3)
    assert min(kept) > max(dropped)


def test_a_group_runs_over_outputs_of_one_input_or_over_inputs_of_one_output():
    weight = torch.zeros(4, 4)
    weight[1, 2] = 1.0
    assert magnitude_mask(weight, 0.75, "4x1").nonzero().tolist() == [[r, 2] for r in range(4)]
    assert magnitude_mask(weight, 0.75, "1x4").nonzero().tolist() == [[1, c] for c in range(4)]
    assert magnitude_mask(weight, 0.875, "1x2").nonzero().tolist() == [[1, 2], [1, 3]]


def test_two_of_every_four_inputs_stay_at_the_end_and_never_fewer_before_it():
    weight = torch.randn(6, 8)
    largest_two = weight.abs().view(6, 2, 4).topk(2).values.sum(-1)
    for sparsity in (0.2, 0.4, 0.5):
        mask = magnitude_mask(weight, sparsity, "2:4")
        assert int(mask.sum()) == math.floor(48 * (1 - sparsity) + 1e-6)
        assert int(mask.view(6, 2, 4).sum(-1).min()) >= 2
    fours = mask.view(6, 2, 4)
    assert bool((fours.sum(-1) == 2).all())
    torch.testing.assert_close((weight * mask).abs().view(6, 2, 4).sum(-1), largest_two)
    assert magnitude_mask(torch.ones(1, 4), 0.5, "2:4").tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("8x1", "query.weight has 12 rows, no multiple of 8, .* by the pattern 8x1; choose another pattern"),
        ("16x1", "query.weight has 12 rows, no multiple of 16"),
    ],
)
def test_a_pattern_that_does_not_divide_a_matrix_is_refused_by_name(pattern, message):
    with pytest.raises(ValueError, match=message):
        MagnitudePruner(bert(), 0.5, 0, 4, pattern=pattern)
    with pytest.raises(ValueError, match="has 6 columns, no multiple of 4"):
        magnitude_mask(torch.ones(4, 6), 0.5, "2:4")


@pytest.mark.parametrize("pattern", ["4x1", "1x2", "1x4", "2:4"])
@pytest.mark.parametrize("threshold", ["matrix", "global"])
def test_a_pruner_ends_at_whole_groups_and_the_exact_target(pattern, threshold):
    model, target = bert(), 0.5 if pattern == "2:4" else 0.85
    pruner = MagnitudePruner(model, target, 2, 12, 3, pattern=pattern, threshold=threshold)
    for step in range(1, 15):
        disturb(model, step)
        pruner.step(step)
    size = math.prod(GROUPS[pattern])
    kept = {name: int(weight.count_nonzero()) for name, weight in pruner.weights.items()}
    groups = {name: weight.numel() // size for name, weight in pruner.weights.items()}
    if threshold == "matrix" or pattern == "2:4":
        assert kept == {name: size * math.floor(n * (1 - target) + 1e-6) for name, n in groups.items()}
    assert sum(kept.values()) == size * (
        math.floor(sum(groups.values()) * (1 - target) + 1e-6)
        if threshold == "global"
        else sum(math.floor(n * (1 - target) + 1e-6) for n in groups.values())
    )
    for weight in pruner.weights.values():
        if pattern == "2:4":
            assert bool((weight.unflatten(1, (-1, 4)).count_nonzero(-1) == 2).all())
        else:
            rows, columns = GROUPS[pattern]
            inside = weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).count_nonzero(3).sum(1)
            assert set(inside.unique().tolist()) <= {0, size}


# ---- which matrices, and one threshold or many


def test_a_target_for_each_matrix_prunes_these_and_no_other():
    model, untouched = bert(), bert()
    targets = {name: 0.5 if "output" in name else 0.75 for name in prunable(model.state_dict(), ["query", "output"])}
    MagnitudePruner(model, targets, 0, 1).step(1)
    for (name, weight), before in zip(model.named_parameters(), untouched.parameters(), strict=True):
        if name in targets:
            assert int((weight == 0).sum()) == weight.numel() * targets[name]
        else:
            assert torch.equal(weight, before)


def test_a_global_threshold_takes_most_from_the_matrices_with_the_smallest_weights():
    model = bert()
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.mul_(100)
        model.encoder.layer[1].output.dense.weight.mul_(0.01)
    pruner = MagnitudePruner(model, 0.5, 0, 1, threshold="global")
    everything = torch.cat([weight.detach().abs().flatten() for weight in pruner.weights.values()])
    pruner.step(1)
    kept = torch.cat([mask.flatten() for mask in pruner.masks.values()])
    assert int(kept.sum()) == everything.numel() // 2
    assert everything[kept].min() >= everything[~kept].max()
    share = {name: float(mask.float().mean()) for name, mask in pruner.masks.items()}
    assert share["encoder.layer.0.output.dense.weight"] > 0.98
    assert share["encoder.layer.1.output.dense.weight"] == 0


# ---- the pruner


@pytest.mark.parametrize("frequency", [None, 1, 3, 7, 100])
def test_the_target_is_met_exactly_at_the_end_whatever_the_frequency_and_held_after_it(frequency):
    model = bert()
    pruner = MagnitudePruner(model, 0.95, begin=2, end=22, frequency=frequency)
    for step in range(1, 26):
        disturb(model, step)
        pruner.step(step)
        if step <= 2:
            assert pruner.sparsity() == 0.0
        if step >= 22:
            for name, weight in pruner.weights.items():
                assert zeros(model)[name] == weight.numel() - math.floor(weight.numel() * 0.05)


def test_masks_follow_the_cubic_at_every_update_and_stand_still_between():
    model = bert()
    pruner = MagnitudePruner(model, 0.8, begin=0, end=40, frequency=8)
    for step in range(1, 41):
        disturb(model, step)
        pruner.step(step)
        sparsity = cubic_sparsity(step // 8 * 8, 0, 40, 0.8)
        assert zeros(model) == {
            name: weight.numel() - math.floor(weight.numel() * (1 - sparsity) + 1e-6)
            for name, weight in pruner.weights.items()
        }


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 50), st.integers(0, 10), st.floats(0, 1))
def test_short_runs_reach_the_target_and_pruned_weights_never_come_back(length, begin, target):
    model = bert()
    pruner = MagnitudePruner(model, target, begin, begin + length)
    pruned = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in pruner.weights.items()}
    for step in range(1, begin + length + 2):
        disturb(model, step)
        pruner.step(step)
        for name, weight in pruner.weights.items():
            assert bool((weight[pruned[name]] == 0).all())
            pruned[name] = weight.detach() == 0
    kept = {name: math.floor(w.numel() * (1 - target) + 1e-6) for name, w in pruner.weights.items()}
    assert {name: int(w.count_nonzero()) for name, w in pruner.weights.items()} == kept


def test_only_the_prunable_matrices_change_and_in_place():
    model, untouched = bert(), bert()
    addresses = {name: p.data_ptr() for name, p in model.named_parameters()}
    MagnitudePruner(model, 0.5, 0, 1).step(1)
    changed = {
        name
        for (name, p), q in zip(model.named_parameters(), untouched.parameters(), strict=True)
        if not torch.equal(p, q)
    }
    assert changed == set(prunable(model.state_dict()))
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == addresses
    assert all(p.requires_grad and p.grad_fn is None for p in model.parameters())


def test_training_with_momentum_keeps_pruned_weights_at_zero():
    model = bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = MagnitudePruner(model, 0.6, 0, 3)
    for step in range(1, 7):
        model(torch.randint(0, 40, (2, 8))).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step(step)
    for name, weight in pruner.weights.items():
        assert int(weight.count_nonzero()) == math.floor(weight.numel() * 0.4 + 1e-6), name


OPTIONS = [
    {},
    {"threshold": "global", "pattern": "1x2"},
    {"faithful": True},
    {"restore_sparsity": True, "pattern": "4x1"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("stop", [1, 5, 6, 12, 13])
def test_a_resumed_run_has_the_same_weights_as_an_uninterrupted_one(stop, options):
    whole = bert()
    MagnitudePruner(whole, 0.25, 0, 1, pattern=options.get("pattern", "unstructured")).step(1)
    pruner = MagnitudePruner(whole, 0.9, 2, 12, 3, **options)
    for step in range(1, 15):
        disturb(whole, step)
        pruner.step(step)
        if step == stop:
            saved = copy.deepcopy((whole.state_dict(), pruner.state_dict()))

    resumed = bert(seed=9)
    resumed.load_state_dict(saved[0])
    again = MagnitudePruner(resumed, 0.9, 2, 12, 3, **options)
    again.load_state_dict(saved[1])
    for step in range(stop + 1, 15):
        disturb(resumed, step)
        again.step(step)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert all(torch.equal(again.masks[name], mask) for name, mask in pruner.masks.items())


def test_the_state_survives_a_file_that_holds_only_tensors_and_plain_values(tmp_path):
    pruner = MagnitudePruner(bert(), 0.9, 0, 4)
    pruner.step(2)
    torch.save(pruner.state_dict(), tmp_path / "state.pt")
    again = MagnitudePruner(bert(), 0.9, 0, 4)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.updated_at == 2
    assert all(torch.equal(again.masks[name], mask) for name, mask in pruner.masks.items())


def test_a_saved_state_is_a_copy_that_later_steps_leave_alone():
    pruner = MagnitudePruner(bert(), 0.9, 0, 4)
    pruner.step(1)
    state = pruner.state_dict()
    kept = {name: int(mask.sum()) for name, mask in state["masks"].items()}
    pruner.step(4)
    assert {name: int(mask.sum()) for name, mask in state["masks"].items()} == kept


def test_an_already_pruned_model_goes_on_from_its_own_zeros():
    model = bert()
    MagnitudePruner(model, 0.5, 0, 1).step(1)
    first = {name: p.detach() == 0 for name, p in model.named_parameters() if name in prunable([name])}
    pruner = MagnitudePruner(model, 0.9, 0, 10, 5, restore_sparsity=True)
    assert pruner.initial_sparsity == {name: pytest.approx(0.5) for name in first}

    disturb(model, 1)
    pruner.step(1)
    assert pruner.sparsity() == 0.5
    pruner.step(5)
    expected = 0.5 + (0.9 - 0.5) * (1 - 0.5**3)
    for weight in pruner.weights.values():
        assert int(weight.count_nonzero()) == math.floor(weight.numel() * (1 - expected) + 1e-6)
    pruner.step(10)
    for name, weight in pruner.weights.items():
        assert int(weight.count_nonzero()) == math.floor(weight.numel() * 0.1 + 1e-6)
        assert bool((weight[first[name]] == 0).all())


def test_a_matrix_beyond_the_target_keeps_its_own_sparsity():
    model = bert()
    MagnitudePruner(model, 0.75, 0, 1).step(1)
    pruner = MagnitudePruner(model, 0.25, 0, 4, 1, restore_sparsity=True)
    for step in range(1, 5):
        disturb(model, step)
        pruner.step(step)
    assert pruner.sparsity() == 0.75


def test_fixed_masks_are_those_of_the_start_and_applied_after_every_step():
    model = bert()
    MagnitudePruner(model, 0.75, 0, 1).step(1)
    zero = {name: weight == 0 for name, weight in model.named_parameters() if name in prunable([name])}
    pruner = MagnitudePruner(model, 0.95, 0, 4, restore_sparsity=True, fix_sparsity=True)
    assert pruner.final
    for step in range(1, 7):
        disturb(model, step)
        pruner.step(step)
        assert all(torch.equal(weight == 0, zero[name]) for name, weight in pruner.weights.items())
    assert pruner.sparsity() == 0.75


@pytest.mark.parametrize("frequency", [4, 7])
def test_the_masks_are_final_from_the_last_update_on(frequency):
    for faithful, last in ((False, 22), (True, 18 if frequency == 4 else 16)):
        model = bert()
        pruner = MagnitudePruner(model, 0.9, 2, 22, frequency, faithful=faithful)
        found = []
        for step in range(1, 25):
            disturb(model, step)
            pruner.step(step)
            found.append(pruner.final)
        assert found == [step >= last for step in range(1, 25)]


def test_faithful_falls_short_of_the_target_where_the_frequency_divides_the_steps():
    for steps, frequency, reached in ((20, 5, 0.8 * (1 - 1 / 4**3)), (21, 5, 0.8)):
        model = bert()
        pruner = MagnitudePruner(model, 0.8, 0, steps, frequency, faithful=True)
        for step in range(1, steps + 1):
            disturb(model, step)
            pruner.step(step)
        for weight in pruner.weights.values():
            assert int(weight.count_nonzero()) == math.floor(weight.numel() * (1 - reached))


def test_faithful_leads_a_matrix_beyond_the_target_back_to_it():
    model = bert()
    MagnitudePruner(model, 0.75, 0, 1).step(1)
    pruner = MagnitudePruner(model, 0.25, 0, 5, 2, restore_sparsity=True, faithful=True)
    for step in range(1, 6):
        pruner.step(step)
        if step == 2:
            assert all(bool(mask.all()) for mask in pruner.masks.values())  # a threshold of 0 keeps what is 0
        disturb(model, step)
    assert {int(mask.sum()) / mask.numel() for mask in pruner.masks.values()} == {0.75}


def test_restored_groups_that_are_partly_zero_count_as_weights_that_stay():
    model = bert()
    MagnitudePruner(model, 0.5, 0, 1).step(1)
    zero = {name: weight == 0 for name, weight in model.named_parameters() if name in prunable([name])}
    pruner = MagnitudePruner(model, 0.75, 0, 2, 1, restore_sparsity=True, pattern="1x4")
    for name, share in pruner.initial_sparsity.items():
        assert share == pytest.approx(float(zero[name].unflatten(1, (-1, 4)).all(-1).float().mean()))
    for step in (1, 2):
        disturb(model, step)
        pruner.step(step)
    for name, weight in pruner.weights.items():
        assert bool((weight[zero[name]] == 0).all())
        assert int(weight.unflatten(1, (-1, 4)).any(-1).sum()) == weight.numel() // 4 // 4


def test_a_zero_initialised_matrix_can_be_learned_unless_restored():
    model = bert()
    nn.init.zeros_(model.encoder.layer[0].output.dense.weight)
    pruner = MagnitudePruner(model, 0.5, 10, 20)
    disturb(model, 1)
    pruner.step(1)
    assert pruner.sparsity() == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_sparsity": 1.5}, "final_sparsity is a share of zeros between 0 and 1, not 1.5"),
        ({"begin": 9}, "from step 9 to step 9 is no interval"),
        ({"frequency": 0}, "at least 1, not 0"),
        ({"model": nn.Linear(2, 2)}, "Linear has no prunable matrix"),
        ({"final_sparsity": {"weight": 0.5}}, "BertModel has no parameter weight, for which there is a target"),
        ({"pattern": "2:4", "final_sparsity": 0.6}, "leaves 2 of every 4 weights; set the sparsity to 0.5"),
        (
            {"threshold": "global", "final_sparsity": {f"encoder.layer.{i}.output.dense.weight": i for i in (0, 1)}},
            "one target for all matrices",
        ),
    ],
)
def test_impossible_settings_are_refused(change, message):
    arguments = {"model": bert(), "final_sparsity": 0.5, "begin": 0, "end": 9} | change
    with pytest.raises(ValueError, match=message):
        MagnitudePruner(**arguments)


def test_a_state_of_another_schedule_or_model_is_refused():
    state = MagnitudePruner(bert(), 0.9, 0, 4).state_dict()
    with pytest.raises(ValueError, match=r"saved masks were made with final_sparsity 0\.9, not 0\.8"):
        MagnitudePruner(bert(), 0.8, 0, 4).load_state_dict(state)
    with pytest.raises(ValueError, match="made with threshold matrix, not global"):
        MagnitudePruner(bert(), 0.9, 0, 4, threshold="global").load_state_dict(state)
    narrow = BertModel(BertConfig(**(CONFIG.to_dict() | {"intermediate_size": 16})))
    with pytest.raises(ValueError, match=r"intermediate.dense.weight: the saved mask has shape \(20, 12\).*\(16, 12\)"):
        MagnitudePruner(narrow, 0.9, 0, 4).load_state_dict(state)
