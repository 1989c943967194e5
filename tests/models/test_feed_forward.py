"""The formula language: text to tree and back, what it refuses, and what a layer then computes."""

from __future__ import annotations

from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.models import CompactBertConfig, CompactBertModel, feed_forward, presets
from compresskit.models.elastic import check_fits, extract, keep_layers
from compresskit.models.feed_forward import ARITY, BINARY, Formula, parse, parse_all, plain, prepare, print_all, refusal

MUL = "linear1_2(relu(mul(linear1_2(x,wb1),x)),wb2)"
MAX = "linear2_2(gelu(linear2_2(max(x,tanh(x)),wb1)),wb2)"

LONG = "linear1_1(gelu(linear1_1(add(add(mul(x,tanh(x)),max(x,elu(x))),mul(max(x,tanh(x)),add(x,elu(x)))),wb1)),wb2)"


def drawn(rng: Random, height: int) -> list[str]:
    """A random tree, of right or wrong kinds."""
    if not height or rng.random() < 0.2:
        return [rng.choice(["x", "wb1", "wb2"])]
    node = rng.choice([name for name in ARITY if ARITY[name]])
    return [node, *(part for _ in range(ARITY[node]) for part in drawn(rng, height - 1))]


def well_formed(rng: Random, weights: list[str], height: int) -> list[str]:
    """A random tensor expression that uses these weights, in this order, each once."""
    if not height:
        below = ["x"]
        for name in weights:
            below = ["linear1_2", *below, name]
        return below
    node = rng.choice(["gelu", "tanh", "elu", "add", "mul", "max", *(["linear1_2"] if weights else [])])
    if node.startswith("linear"):
        return [node, *well_formed(rng, weights[:-1], height - 1), weights[-1]]
    if node in BINARY:
        cut = rng.randint(0, len(weights))
        parts = (weights[:cut], weights[cut:])
        return [node, *(word for part in parts for word in well_formed(rng, part, height - 1))]
    return [node, *well_formed(rng, weights, height - 1)]


# --- text and tree


def test_a_tree_is_printed_and_read_again_whatever_it_is():
    rng = Random(0)
    for _ in range(500):
        formula = Formula(tuple(drawn(rng, rng.randint(0, 6))))
        assert parse(str(formula)) == formula
        assert parse(str(formula).replace(",", " ,\n ").replace("(", " ( ")) == formula
    several = [Formula(tuple(drawn(rng, 3))) for _ in range(5)]
    assert parse_all(print_all(several)) == several


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: the formula ends where a name is expected"),
        ("add(x", r"column 6: the formula ends where , or \) is expected"),
        ("add(x,)", r"column 7: '\)' where a name is expected"),
        ("add(x,x,x)", "column 8: add takes 2 arguments, not more"),
        ("add(x)", r"column 6: add has 1 arguments; it takes 2"),
        ("gelu x", r"column 6: 'x' where \( is expected"),
        ("x)", r"column 2: '\)' where nothing is expected"),
        ("(x)", r"column 1: '\(' where a name is expected"),
        ("relu(y)", "column 6: unknown 'y'; a formula has linear1_1"),
        ("linear5_1(x,wb1)", "column 1: unknown 'linear5_1'"),
        ("__import__('os')", r"column 1: unknown '__import__'"),
        ("x.__class__", r"column 2: '\.__class__' is no part of a formula"),
        ("relu(" * 200 + "x" + ")" * 200, "more than 100 parentheses inside one another"),
    ],
)
def test_what_is_no_formula_is_refused_by_column(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (("add", "x"), "no whole tree: 1 arguments are missing"),
        (("x", "x"), "more than one tree"),
        (("y",), "knows no 'y'"),
        ((), "1 arguments are missing"),
    ],
)
def test_nodes_that_are_no_tree_are_refused(nodes, message):
    with pytest.raises(ValueError, match=message):
        Formula(nodes)


def test_subtrees_are_slices_and_can_be_replaced():
    formula = parse(MUL)
    assert [formula.text(start) for start in formula.arguments(2)] == ["linear1_2(x,wb1)", "x"]
    assert formula.nodes[formula.subtree(3)] == ("linear1_2", "x", "wb1")
    swapped = formula.replaced(formula.subtree(6), ("tanh", "x"))
    assert str(swapped) == "linear1_2(relu(mul(linear1_2(x,wb1),tanh(x))),wb2)"
    assert (formula.height, formula.size_index) == (4, "1_2")
    assert str(formula.resized("4_1")) == MUL.replace("1_2", "4_1")
    assert formula.resized(None).resized("1_2") == formula
    assert formula.resized(None).size_index is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (MUL, None),
        (MAX, None),
        ("wb1", "it is wb1 alone, weights and no tensor"),
        ("linear1_1(gelu(linear1_1(x,x)),wb2)", "argument 2 of linear1_1 is x; expected wb1 or wb2"),
        ("tanh(linear1_1(gelu(linear1_1(wb1,wb1)),wb2))", "argument 1 of linear1_1 is wb1; expected a tensor"),
        ("linear1_1(gelu(linear1_1(x,wb1)),wb1)", "it uses wb1 2 times; expected once"),
        ("tanh(sigmoid(linear1_1(x,wb1)))", "it uses wb2 0 times; expected once"),
        ("linear1_1(gelu(linear1_1(x,wb2)),wb1)", "wb2 stands before wb1"),
        ("linear1_1(gelu(linear1_2(x,wb1)),wb2)", "its linears are linear1_1 and linear1_2; expected one name"),
        ("add(linear1_1(x,wb1),linear1_1(x,wb2))", "its height is 2; expected 3 to 7"),
        ("tanh(linear1_1(relu(elu(linear1_1(x,wb1))),wb2))", "relu is applied to elu, an activation to an activation"),
        ("tanh(linear1_1(linear1_1(gelu(x),wb1),wb2))", "a linear is applied to a linear"),
        ("linear1_1(gelu(linear1_1(add(x,x),wb1)),wb2)", "both arguments of add are x"),
        (
            "linear1_1(gelu(linear1_1(mul(add(x,tanh(x)),add(x,tanh(x))),wb1)),wb2)",
            "both arguments of mul are add(x,tanh(x))",
        ),
        (
            LONG,
            "it has 24 nodes; at most 20 can be encoded",
        ),
    ],
)  # fmt: skip
def test_a_search_hears_why_it_must_not_choose_a_formula(text, reason):
    assert refusal(parse(text)) == reason


def test_faithful_overlooks_what_the_original_overlooks():
    equal = parse("linear1_1(gelu(linear1_1(mul(add(x,tanh(x)),add(x,tanh(x))),wb1)),wb2)")
    long = parse(LONG)
    assert refusal(equal, faithful=True) is refusal(long, faithful=True) is None
    assert (
        refusal(parse("linear1_1(gelu(linear1_1(add(x,x),wb1)),wb2)"), faithful=True) == "both arguments of add are x"
    )
    assert len(feed_forward.encode([long, long], 1, faithful=True)) == 48
    with pytest.raises(ValueError, match="layer 0: 24 nodes; at most 20 are encoded"):
        feed_forward.encode([long], 1)


def test_the_vectors_of_the_three_stages():
    assert feed_forward.encode([plain(2, 3)], 1) == [6, 19, 6, 26, 27, 28] + [-1] * 14
    assert feed_forward.encode([plain().resized(None)], 2) == [0, 4, 0, 11, 12, 13] + [-1] * 14
    assert feed_forward.encode([plain(1, 1), plain(4, 4), plain(2, 3)], 3) == [0, 15, 6]
    with pytest.raises(ValueError, match="layer 0: linear has no number in stage 1"):
        feed_forward.encode([plain().resized(None)], 1)
    with pytest.raises(ValueError, match="has no size; stage 3 wants"):
        feed_forward.encode([plain().resized(None)], 3)


# --- arithmetic


def by_the_definition(formula: Formula, start: int, x: Tensor, weights: dict[str, tuple[Tensor, Tensor]], rule: str):
    """The tree walked in plain words; widths in mode "max" are filled up entry by entry."""
    node, places = formula.nodes[start], formula.arguments(start)
    if node == "x":
        return x
    first = by_the_definition(formula, places[0], x, weights, rule)
    if node.startswith("linear"):
        weight, bias = weights[formula.nodes[places[1]]]
        return first @ weight.T + bias
    if node in BINARY:
        second = by_the_definition(formula, places[1], x, weights, rule)
        wide, narrow = (first, second) if first.shape[-1] >= second.shape[-1] else (second, first)
        shared = narrow.shape[-1]
        made = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b, "max": torch.maximum}[node](
            wide[..., :shared], narrow
        )
        rest = wide[..., shared:]
        if node == "max" and rule == "max-faithful":
            rest = rest.clamp(min=-1e-10)
        return made if rule == "min" else torch.cat((made, rest), -1)
    return {
        "gelu": lambda t: 0.5 * t * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (t + 0.044715 * t**3))),
        "tanh": torch.tanh,
        "elu": lambda t: torch.where(t > 0, t, torch.expm1(t)),
    }[node](first)


@pytest.mark.parametrize("rule", ["min", "max", "max-faithful"])
def test_random_formulas_have_the_numbers_and_gradients_of_the_definition(rule):
    rng, seed = Random(1), torch.Generator().manual_seed(0)
    ran = 0
    for _ in range(200):
        formula = Formula(tuple(well_formed(rng, ["wb1", "wb2"], rng.randint(1, 5))))
        hidden, inner = rng.choice([(6, 6), (6, 4), (5, 8)])
        try:
            feed_forward.check_runs(formula, hidden, inner, rule)
        except ValueError:
            continue
        ran += 1
        shapes = {"wb1": (inner, hidden), "wb2": (hidden, inner)}
        weights = {
            name: (
                torch.randn(shape, dtype=torch.float64, generator=seed).requires_grad_(),
                torch.randn(shape[:1], dtype=torch.float64, generator=seed).requires_grad_(),
            )
            for name, shape in shapes.items()
        }
        x = torch.randn(2, 3, hidden, dtype=torch.float64, generator=seed).requires_grad_()
        wanted = by_the_definition(formula, 0, x, weights, rule)
        first, second = (lambda t, pair=pair: F.linear(t, *pair) for pair in weights.values())
        got = prepare(str(formula), rule).run(x, first, second)
        torch.testing.assert_close(got, wanted, msg=str(formula))
        given = [x, *(part for pair in weights.values() for part in pair)]
        grads = [
            torch.autograd.grad(out.square().sum(), given, allow_unused=True, materialize_grads=True)
            for out in (got, wanted)
        ]
        torch.testing.assert_close(*grads, msg=str(formula))
        with torch.no_grad():
            kept = x.clone()
            over = prepare(str(formula), rule, overwrite=True).run(x, first, second)
            torch.testing.assert_close(over, got, rtol=0, atol=0, msg=str(formula))
            assert torch.equal(x, kept)
        first, second = (lambda t, pair=pair: pair[0] @ t + pair[1][:, None] for pair in weights.values())
        turned = prepare(str(formula), rule, 0).run(x.flatten(0, 1).T, first, second)
        torch.testing.assert_close(turned.T.unflatten(0, (2, 3)), wanted, msg=str(formula))
    assert ran > 50


def test_a_narrower_maximum_never_wins_in_the_columns_it_lacks():
    wide, narrow = torch.tensor([[-5.0, -7.0]]), torch.tensor([[-9.0]])
    assert feed_forward.binary("max", "max")(narrow, wide).tolist() == [[-5.0, -7.0]]
    assert feed_forward.binary("max", "max-faithful")(wide, narrow)[0, 1] == pytest.approx(-1e-10)
    assert feed_forward.binary("max", "min")(wide, narrow).tolist() == [[-5.0]]


def test_a_model_in_bfloat16_and_under_autocast_stays_near_its_numbers():
    torch.manual_seed(0)
    config = small(feed_forward=[MAX, MUL], feed_forward_width="min")
    model = CompactBertModel(config).eval()
    ids = torch.randint(1, 50, (2, 9))
    exact = model(ids).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(ids).last_hidden_state
    half = model.to(torch.bfloat16)(ids).last_hidden_state
    assert half.dtype == torch.bfloat16
    assert (mixed - exact).abs().max() < 0.1  # after two normalised layers, values of order 1 with 8 bits
    assert (half - exact).abs().max() < 0.1


# --- inside a supernet


def small(**changes) -> CompactBertConfig:
    shape = {
        "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
        "max_position_embeddings": 20, "embedding": "trigram", "embedding_size": 8,
        "feed_forward": [str(plain(4))] * 2,
    }  # fmt: skip
    return CompactBertConfig(**{**shape, **changes})


def supernet(**changes) -> CompactBertModel:
    torch.manual_seed(0)
    model = CompactBertModel(small(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


SUBNETS = {
    "formulas": {"feed_forward": [MAX, MUL]},
    "narrower": {"feed_forward": [MAX, MUL], "hidden_size": 16, "intermediate_size": [20, 16], "qkv_size": 12},
    "one layer": {"num_hidden_layers": 1, "feed_forward": ["tanh(linear4_3(gelu(linear4_3(x,wb1)),wb2))"]},
    "fewer": {"feed_forward": [str(plain(1, 4)), str(plain(3, 1))], "num_attention_heads": 2, "qkv_size": 12},
}


@pytest.mark.parametrize("name", SUBNETS)
@torch.no_grad()
def test_formulas_in_place_and_taken_out_are_equal_bit_for_bit(name):
    model = supernet()
    subnet = model.config.changed(**SUBNETS[name])
    taken = extract(model, subnet)
    for rows, seq_len in ((1, 1), (3, 11)):
        ids = torch.randint(1, 50, (rows, seq_len))
        assert torch.equal(model(ids, subnet=subnet).last_hidden_state, taken(ids).last_hidden_state)
    held = [
        (len(layer.feed_forward), len(layer.feed_forward[0].intermediate["dense"].bias))
        for layer in taken.encoder.layer
    ]
    assert held == subnet.feed_forward_sizes()  # nothing that the formulas do not use
    assert taken.config.key() == subnet.key()


def test_a_subnet_trains_its_own_weights_and_no_others():
    model = supernet()
    subnet = model.config.changed(feed_forward=[MAX, MUL])
    model(torch.randint(1, 50, (2, 5)), subnet=subnet).last_hidden_state.square().sum().backward()
    first = model.encoder.layer[0].feed_forward
    assert [one.output.dense.bias.grad is not None for one in first] == [True, True, False, False]
    rows = first[0].intermediate["dense"].weight.grad.abs().sum(1) > 0
    assert rows.tolist() == [True] * 12 + [False] * 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"feed_forward": [str(plain(2))] * 2, "intermediate_size": 25},
            "layer 0: the subnet's inner width 25 exceeds",
        ),
        ({"feed_forward": [str(plain(2)), str(plain(3))]}, "layer 1: the subnet's stack of feed-forwards 3 exceeds"),
        ({"feed_forward": None}, "a network with formulas and one without are not inside one another"),
        ({"feed_forward_width": "max"}, "feed_forward_width 'max' is not the supernet's 'min'"),
        ({"embedding_size": 9}, "embedding_size 9 is not the supernet's 8"),
    ],
)
def test_a_subnet_with_more_than_there_is_is_refused(changes, message):
    config = small(feed_forward=[str(plain(2))] * 2)
    with pytest.raises(ValueError, match=message):
        check_fits(config, config.changed(**changes))


@torch.no_grad()
def test_chosen_layers_keep_their_formulas():
    model = supernet(feed_forward=[MAX, MUL])
    last = keep_layers(model, [2])
    assert last.config.feed_forward == [MUL]
    for name, tensor in last.encoder.layer[0].state_dict().items():
        assert torch.equal(tensor, model.encoder.layer[1].state_dict()[name])


def test_a_saved_model_with_formulas_is_the_same_again(tmp_path):
    model = supernet(feed_forward=[MAX, MUL])
    model.save_pretrained(tmp_path)
    again = CompactBertModel.from_pretrained(tmp_path).eval()
    ids = torch.randint(1, 50, (2, 7))
    assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)


def test_presets_run_and_hold_the_published_formulas():
    assert presets.config("efficientbert-plus").key() == presets.config("efficientbert").key()
    doubled = presets.config("efficientbert-plusplus").feed_forward
    assert doubled[::2] == doubled[1::2] == list(presets.EFFICIENTBERT)
    for name in presets.FIELDS:
        with torch.device("meta"):
            CompactBertModel(presets.config(name))
    assert presets.config("efficientbert-supernet", num_hidden_layers=2).feed_forward == [str(plain(4))] * 2
