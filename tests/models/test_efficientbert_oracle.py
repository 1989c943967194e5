"""Formulas, networks, counts and files against what was recorded from EfficientBERT's original code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compresskit.models import CompactBertModel, efficientbert, feed_forward, presets
from compresskit.models.bert import TrigramEmbeddings
from compresskit.models.checkpoints import Checkpoint
from compresskit.models.config import CompactBertConfig
from compresskit.models.elastic import extract
from compresskit.models.feed_forward import parse
from compresskit.search import costs
from tests.oracle_cases import EXACT, Case, Tolerance, oracle

ARGUMENTS = {"x": "ARG0", "wb1": "ARG1", "wb2": "ARG2"}
PRESETS = {
    "EfficientBERT-TINY": "efficientbert-tiny",
    "EfficientBERT": "efficientbert",
    "EfficientBERT+": "efficientbert-plus",
    "EfficientBERT++": "efficientbert-plusplus",
    "EfficientBERT (TinyBERT-6)": "efficientbert-tinybert6",
}
TABLES = {
    "auto_bert": "efficientbert",
    "auto_bert_12": "efficientbert-plusplus",
    "auto_bert_small": "efficientbert-tiny",
    "auto_tiny_bert": "efficientbert-tinybert6",
}


def encoder(config: CompactBertConfig) -> CompactBertModel:
    return CompactBertModel(config, add_pooling_layer=False)


def checkpoint(case: Case) -> Checkpoint:
    return efficientbert.checkpoint(case.arrays("sd."), case.config()["num_attn_heads"])


def inputs(case: Case) -> dict[str, Tensor]:
    """The original's mask is 1 on padding; its positions are those of every BERT."""
    ids = case["in.token_ids"]
    assert torch.equal(case["in.position_ids"], torch.arange(ids.shape[1]).expand_as(ids))
    return {"input_ids": ids, "attention_mask": 1 - case["in.attn_mask"], "token_type_ids": case["in.segment_ids"]}


def check_forward(case: Case, found: Checkpoint, output: Any) -> None:
    """Scores after the mask, states after the projection, and the last states as they are."""
    project = [found.training_only[f"fit_dense.{part}"] for part in ("weight", "bias")]
    for match in case.names(r"out\.attn_score\.(\d+)"):
        case.check(match[0], output.attention_scores[int(match[1])])
    for match in case.names(r"out\.hidden\.(\d+)"):
        case.check(match[0], F.linear(output.hidden_states[int(match[1])], *project))
    case.check("out.last", output.last_hidden_state)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "genotype"), ids=str)
def test_formulas_are_read_numbered_and_judged_as_by_the_original(case):
    case.check_value("linear_id_order", got=list(feed_forward.SIZES))
    for stage, ids in feed_forward.IDS.items():
        case.check_value("id_map", f"stage{stage}", got={ARGUMENTS.get(name, name): n for name, n in ids.items()})
    for number, row in enumerate(case.value("rows")):
        formula, stage = parse(row["expr"]), int(row["stage"].removeprefix("stage"))
        got = {
            "string": str(formula),
            "prefix_args": list(formula.nodes),
            "prefix": [ARGUMENTS.get(node, node) for node in formula.nodes],
            "length": len(formula.nodes),
            "height": formula.height,
            "linear_idx": formula.size_index,
            "ids": [feed_forward.IDS[stage][node] for node in formula.nodes],
            "ids_padded20": feed_forward.encode([formula], stage, faithful=True),
            "valid_3_7": feed_forward.refusal(formula, (3, 7), faithful=True) is None,
        }
        for name, value in got.items():
            case.check_value("rows", number, name, got=value)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "operators"), ids=str)
def test_operators_have_the_numbers_of_the_original(case):
    x, y, z = (case[f"in.{name}"] for name in "xyz")
    for match in case.names(r"out\.act\.(\w+)"):
        case.check(match[0], feed_forward.ACTIVATIONS[match[1]](z))
    for match in case.names(r"out\.(min|max)\.(\w+)_(xy|yx)"):
        rule = {"min": "min", "max": "max-faithful"}[match[1]]
        given = (x, y) if match[3] == "xy" else (y, x)
        case.check(match[0], feed_forward.binary(match[2], rule)(*given))
        turned = feed_forward.binary(match[2], rule, dim=0)(*(t.flatten(0, 1).T for t in given))
        case.check(match[0], turned.T.unflatten(0, x.shape[:2]))


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "invalid_arch"), ids=str)
def test_formulas_whose_widths_do_not_fit_are_refused(case):
    hidden, inner = (int(number) for number in re.findall(r"hidden (\d+)", case.value("ran"))[:2])
    for number, row in enumerate(case.value("rows")):
        shape = {"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": 1, "num_hidden_layers": 1}
        rule = "min" if row["sel_min"] else "max-faithful"
        refused = ""
        try:
            CompactBertConfig(feed_forward=[row["expr"]], feed_forward_width=rule, **shape)
        except ValueError as error:
            refused = str(error)
        assert not refused or "takes a width of" in refused
        case.check_value("rows", number, "ok", got=not refused)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "param_counts"), ids=str)
def test_sizes_are_those_of_the_original(case):
    def projection(config: CompactBertConfig) -> int:
        return 768 * config.hidden_size + 768

    totals = {"bert_base": ("bert-base", 0), "supernet": ("efficientbert-supernet", 1), "tiny_bert": ("tinybert-4", 1)}
    for name, (preset, projected) in totals.items():
        config = presets.config(preset)
        case.check_value("module_totals", name, got=costs.parameters(config) + projected * projection(config))
    for name, preset in TABLES.items():
        table = costs.size_table(presets.config(preset), faithful=True)
        case.check_value("param_lists", name, got=table, tolerance=EXACT)
    for number, row in enumerate(case.value("rows")):
        tiny_bert = row["model_name"] == "auto_tiny_bert"
        config = presets.config(
            "efficientbert-tinybert6" if tiny_bert else "efficientbert",
            hidden_size=row["hidden"],
            qkv_size=row["hidden"],
            intermediate_size=row["ffn_hidden"],
            num_hidden_layers=row["layers"],
            feed_forward=row["arch"],
        )
        assert config.key() == presets.config(PRESETS[row["name"]]).key()
        with torch.device("meta"):
            built = encoder(config)
        counted = {
            "derived_embedding": built.embeddings,
            "derived_attention_per_layer": built.encoder.layer[0].attention,
            "derived_total_without_fit_dense": built,
        }
        got: dict[str, Any] = {name: sum(p.numel() for p in part.parameters()) for name, part in counted.items()}
        got["derived_ffn_per_layer"] = [
            sum(p.numel() for p in layer.feed_forward.parameters()) for layer in built.encoder.layer
        ]
        got["derived_fit_dense"] = projection(config)
        assert costs.parameters(config) == got["derived_total_without_fit_dense"]
        got["derived_total_with_fit_dense"] = costs.parameters(config) + projection(config)
        whole = config.changed(feed_forward=[str(feed_forward.plain(4))] * row["layers"])
        got["super_module_params"] = costs.parameters(whole) + projection(whole)
        formulas = [parse(text) for text in row["arch"]]
        got["linear_idx"] = [formula.size_index for formula in formulas]
        for name, value in got.items():
            case.check_value("rows", number, name, got=value)
        table = costs.size_table(config, faithful=True)
        case.check_value(
            "rows", number, "param_list_M", got=costs.table_size(formulas, table), tolerance=Tolerance(atol=1e-9)
        )


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "embedding_trigram"), ids=str)
def test_the_trigram_embedding_has_the_numbers_of_the_original(case):
    theirs = case.config()
    embeddings = TrigramEmbeddings(
        CompactBertConfig(
            vocab_size=theirs["vocab_size"],
            hidden_size=theirs["hidden_size"],
            num_attention_heads=theirs["num_attn_heads"],
            embedding="trigram",
            embedding_size=theirs["embed_size"],
            max_position_embeddings=theirs["position_size"],
            type_vocab_size=theirs["segment_size"],
            layer_norm_eps=efficientbert.LAYER_NORM_EPS,
        )
    ).eval()
    named = Checkpoint.of({}, {f"embeddings.{name}": tensor for name, tensor in case.arrays("sd.").items()}).weights
    embeddings.load_state_dict({name.removeprefix("embeddings."): tensor for name, tensor in named.items()})
    given = inputs(case)
    got = embeddings(given["input_ids"], given["token_type_ids"], theirs["hidden_size"])
    case.check("out.embedding", got)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "case", [*oracle("efficientbert", "autobert_single"), *oracle("efficientbert", "autotinybert_single")], ids=str
)
def test_a_searched_network_has_the_numbers_of_the_original_in_place_and_taken_out(case):
    found = checkpoint(case)
    supernet = found.model(encoder)
    rule = "min" if supernet.config.feed_forward_width == "min" else "max-faithful"
    supernet.config.feed_forward_width = rule
    subnet = supernet.config.changed(feed_forward=case.value("arch"))
    asked = {"output_hidden_states": True, "output_attention_scores": True}
    with torch.no_grad():
        check_forward(case, found, supernet(**inputs(case), subnet=subnet, **asked))
        check_forward(case, found, extract(supernet, subnet)(**inputs(case), **asked))
    if "linear_idx" in case.record:
        case.check_value("linear_idx", got=[parse(text).size_index for text in subnet.feed_forward])


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "candidates_share_weights"), ids=str)
def test_candidates_share_the_weights_of_one_supernet(case):
    found = checkpoint(case)
    supernet = found.model(encoder)
    project = [found.training_only[f"fit_dense.{part}"] for part in ("weight", "bias")]
    for number, formulas in case.value("archs").items():
        subnet = supernet.config.changed(feed_forward=formulas)
        with torch.no_grad():
            output = supernet(**inputs(case), subnet=subnet, output_hidden_states=True)
        case.check(f"out.{number}.last", output.last_hidden_state)
        middle = output.hidden_states[len(output.hidden_states) // 2]
        case.check(f"out.{number}.hidden_mid", F.linear(middle, *project))


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "supernet_single"), ids=str)
def test_the_supernet_has_the_numbers_of_the_original_after_each_feed_forward(case):
    found = checkpoint(case)
    supernet = found.model(encoder)
    stacked: dict[str, Tensor] = {}
    for number, layer in enumerate(supernet.encoder.layer, 1):
        for j, one in enumerate(layer.feed_forward):
            one.register_forward_hook(
                lambda module, args, out, name=f"out.ffn_stack.{number}.{j}": stacked.update({name: out})
            )
    asked = {"output_hidden_states": True, "output_attention_scores": True}
    with torch.no_grad():
        output = supernet(**inputs(case), **asked)
        check_forward(case, found, output)
        same = supernet(
            **inputs(case), subnet=supernet.config.changed(feed_forward=case.value("same_as_arch")), **asked
        )
    for name, states in stacked.items():
        case.check(name, states)
    case.check_value("same_as_arch", got=supernet.config.feed_forward)
    distance = float((same.last_hidden_state - output.last_hidden_state).abs().max())
    case.check_value("max_abs_diff_to_autobert", got=distance, tolerance=EXACT)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "slice_supernet"), ids=str)
def test_a_supernet_is_cut_as_by_the_original(case):
    recorded = case.arrays("sd.")
    small, big = (case[f"{prefix}.embeddings.layernorm.weight"].numel() for prefix in ("out.same_depth", "sd"))
    shapes = case.value("all_shapes_same_depth")
    outer = ("embeddings.position_embeddings.weight", "fit_dense.weight")  # their first axis is another one

    def whole(name: str, shape: list[int]) -> list[int]:
        if name in outer:
            return [shape[0], big]
        return [big, shape[1]] if name == "embeddings.dense.weight" else [big] * len(shape)

    full = {name: recorded.get(name, torch.zeros(whole(name, shape))) for name, shape in shapes.items()}
    heads = next(heads for heads in (12, 6, 4, 2) if small % heads == big % heads == 0)
    found = efficientbert.checkpoint(full, heads)
    ours = {name: next(iter(every(name))) for name in full}
    for depth, copies in (("same", 1), ("double", 2)):
        made = efficientbert.shrink(found, small, copies)
        got = {**made.weights, **made.training_only}
        assert made.architecture().num_hidden_layers == copies * found.architecture().num_hidden_layers
        names = case.value(f"all_shapes_{depth}_depth")
        theirs = {next(iter(every(name))): name for name in names}
        assert theirs.keys() == got.keys()
        case.check_value(
            f"all_shapes_{depth}_depth", got={theirs[name]: list(tensor.shape) for name, tensor in got.items()}
        )
        for match in case.names(rf"out\.{depth}_depth\.(.+)"):
            case.check(match[0], got[next(iter(every(match[1])))], tolerance=EXACT)
    assert len(set(ours.values())) == len(ours)


def every(name: str) -> dict[str, Tensor]:
    """One weight of a file by our name; empty where it is left out."""
    found = Checkpoint.of({}, {name: torch.zeros(1)})
    return {**found.weights, **found.training_only}


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("efficientbert", "checkpoint_key_map"), ids=str)
def test_a_name_of_bert_and_its_name_in_the_original_are_one_to_us(case):
    recorded = case.value("map")
    theirs = {our: name for entry in recorded.values() if (name := entry["with_lm"]) for our in every(name)}
    for name in recorded:
        ours = next(iter(every(name)), None)
        with_lm = theirs.get(ours)
        no_lm = None if ours is not None and ours.startswith("cls.") else with_lm
        if ours is None:  # positions are counted, not read; the original keeps them, and then cannot load the file
            with_lm = no_lm = name.removeprefix("bert.")
        case.check_value("map", name, got={"no_lm": no_lm, "with_lm": with_lm})
