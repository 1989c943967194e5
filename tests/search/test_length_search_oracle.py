"""The length search against the original's numbers and files."""

from __future__ import annotations

import ast
import json
import re
from math import exp
from random import Random

import numpy as np
import pytest

from compresskit.evaluation import flops
from compresskit.models import CompactBertConfig
from compresskit.search import length_files as files
from compresskit.search import lengths
from compresskit.search.lengths import Entry, Evolution
from tests.oracle_cases import EXACT, Tolerance, oracle

CLOSE = Tolerance(atol=1e-9, rtol=1e-9)


class OriginalDraws:
    """What the original draws from: Python's global generator, and numpy's where a layer is to mutate."""

    def __init__(self, seed: int):
        python, self.numpy = Random(seed), np.random.RandomState(seed)
        self.choice, self.sample, self.randrange = python.choice, python.sample, python.randrange

    def random(self) -> float:
        return self.numpy.uniform()


def plain(value):
    """Tuples as lists, as JSON has them."""
    return json.loads(json.dumps(value))


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "evolution"), ids=str)
def test_the_evolution_goes_through_the_populations_of_the_original(case, tmp_path):
    length, depth = case.value("T"), case.value("L")

    def cost(gene):
        return sum(1000 * kept + kept * kept for kept in gene)

    def score(gene):
        weighted = sum((i + 1) * kept for i, kept in enumerate(gene))
        return 50 + 40 * (1 - exp(-weighted / (length * depth))) + ((7919 * sum(gene)) % 13) / 5

    evolution = Evolution(length, depth, cost, lambda genes: [score(gene) for gene in genes], faithful=True)
    size = case.value("init", "population_size")
    added = evolution.start(size)
    ratios = lengths.first_ratios(size, 0.2, lengths.PUBLISHED_LAYERS, lengths.PUBLISHED_SEQ_LEN)
    smallest, full = evolution.population[:2]
    start = {
        "lower_gene": smallest,
        "upper_gene": full,
        "lower": evolution.lower,
        "upper": evolution.upper,
        "ratios": ratios,
        "genes": [lengths.constant_ratio(length, depth, ratio) for ratio in ratios],
        "added": added,
    }
    for name, got in start.items():
        case.check_value("init", name, got=plain(got), tolerance=CLOSE)

    draws = OriginalDraws(case.value("seed"))
    for number, recorded in enumerate(case.value("iterations")):
        assert plain(evolution.population) == recorded["population_in"]
        area, hull = evolution.reduce()
        case.check_value("iterations", number, "frontier", got=plain(evolution.population))
        steps = []
        for step in recorded["ops"]:
            before = len(evolution.store)
            move = evolution.mutate if step["op"] == "m" else evolution.cross
            kwargs = {"probability": case.value("mutation_prob")} if step["op"] == "m" else {}
            accepted = move(draws, **kwargs)
            new = list(evolution.store)[before:]
            steps.append(
                {
                    "op": step["op"],
                    "accepted": accepted,
                    "new_in_store": new,
                    "population_len": len(evolution.population),
                }
            )
        evolution.score_new()
        case.check_value("iterations", number, "area", got=area, tolerance=CLOSE)
        case.check_value("iterations", number, "hull", got=plain(hull))
        case.check_value("iterations", number, "ops", got=plain(steps))

    by_cost = sorted(evolution.store.items(), key=lambda item: item[1].cost)
    case.check_text("store_tsv", got=files.store_text(by_cost), tolerance=CLOSE)
    population = [(gene, evolution.store[gene]) for gene in evolution.population]
    case.check_text("population_tsv", got=files.store_text(population), tolerance=CLOSE)
    case.check_value("store", got=plain(list(evolution.store.items())), tolerance=CLOSE)

    (tmp_path / files.STORE).write_text(case.value("store_tsv"))
    again = Evolution(length, depth, cost, lambda genes: [score(gene) for gene in genes])
    again.load({gene: entry[:2] for gene, entry in files.read_store(tmp_path / files.STORE).items()})
    first = list(again.store.items())[: len(case.value("loaded_first"))]
    case.check_value("loaded_first", got=plain(first), tolerance=CLOSE)
    gene, entry = first[0]
    padded = ", ".join(f"{kept:3d}" for kept in gene)
    told = f"({padded}): {entry.cost} MACs | score {entry.score} | method {entry.method}"
    case.check_text("store2str", got=told, tolerance=CLOSE)  # of the original's log; ours has tables

    for field, shape in (("approx_ratio", (12, 384)), ("approx_ratio_6_128", (6, 128))):
        got = [[ratio, lengths.share_left(ratio, *shape)] for ratio, _ in case.value(field)]
        case.check_value(field, got=got, tolerance=CLOSE)
    got = [[share, lengths.ratio_that_leaves(share, 12, 384)] for share, _ in case.value("inverse")]
    case.check_value("inverse", got=got, tolerance=CLOSE)

    made = case.value("synthetic")
    entries = {tuple(gene): Entry(*numbers) for gene, numbers in made["population"]}
    front = lengths.frontier(entries, faithful=True)
    got = {
        "population": made["population"],
        "lower": made["lower"],
        "upper": made["upper"],
        "frontier": front,
        "area": lengths.area(front, entries, made["lower"], made["upper"]),
        "hull": lengths.convex_hull(front, entries),
    }
    case.check_value("synthetic", got=plain(got), tolerance=CLOSE)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("dynamic_tinybert", "search_runs"), ids=str)
def test_files_names_macs_and_first_lengths_are_those_of_the_original_run(case, tmp_path):
    config, model = case.config(), tmp_path / "model.tsv"
    depth, whole = config["num_hidden_layers"], 384

    def macs(gene, seq_len):
        return flops.macs(CompactBertConfig(**config), seq_len, "question_answering", gene)

    # the ratios of measure_out.log: ours are the lengths, the MACs and the layout, theirs the scores of a random model
    blocks = re.findall(r"(\S+):\nsequences=.*\nmacs=.*\neval=(.*)\n", case.value("measure_out_log"))
    text = ""
    for ratio, results in blocks:
        gene = lengths.constant_ratio(whole, depth, float(ratio))
        text += files.measure_text(float(ratio), gene, macs(gene, whole), ast.literal_eval(results))
    case.check_text("measure_out_log", got=text, tolerance=EXACT)

    # the search: 48 tokens; scores as recorded
    (tmp_path / "front.log").write_text(case.value("pareto_log"))
    points = files.read_front_log(tmp_path / "front.log")
    case.check_text("pareto_log", got=files.front_log(points), tolerance=EXACT)
    files.convert_front(tmp_path / "front.log", tmp_path / "front.csv")
    case.check_text("pareto_csv", got=(tmp_path / "front.csv").read_text(), tolerance=EXACT)
    assert [tuple(point.keyed().values()) for point in files.read_front_csv(tmp_path / "front.csv")] == [
        tuple(point.keyed().values()) for point in points
    ]

    (tmp_path / "metrics.log").write_text(case.value("metrics_log"))
    evaluations, text = files.read_metrics_log(tmp_path / "metrics.log"), ""
    searched = iter(points)
    for record in evaluations:
        told = {name: record.pop(name) for name in ("eval_time", "model", "macs", "rate")}
        if told["rate"] == files.SEARCHED and (point := next(searched, None)):
            told["macs"] = macs(point.rounded(), whole)
        elif told["rate"] != files.SEARCHED and told["macs"]:
            told["macs"] = macs(lengths.constant_ratio(whole, depth, told["rate"]), whole)
        text += files.metrics_line(record, **told)
    case.check_text("metrics_log", got=text, tolerance=EXACT)

    read = {}
    for field in ("store_iter0_tsv", "population_iter2_tsv", "parents_iter2_tsv"):
        model.write_bytes(case.value(field).encode())
        read[field] = files.read_store(model)
        length = max(read["store_iter0_tsv"])[0]  # of the full configuration
        ours = [(gene, entry._replace(cost=macs(gene, length))) for gene, entry in read[field].items()]
        case.check_text(field, got=files.store_text(ours), tolerance=EXACT)
    known = read["store_iter0_tsv"]
    evolution = Evolution(
        length,
        depth,
        lambda gene: macs(gene, length),
        lambda genes: [known[gene].score for gene in genes],
        faithful=True,
    )
    evolution.start(len(known) - 2)
    assert sorted(evolution.store.items(), key=lambda item: item[1].cost) == list(known.items())
    last = read["population_iter2_tsv"]
    assert lengths.frontier(last, faithful=True) == list(last)
    assert lengths.convex_hull(list(last), last) == list(read["parents_iter2_tsv"])

    rounds = sorted(name for number in range(3) for name in files.generation_files(number).values())
    answers = [name.removeprefix("./") for name in case.value("eval_files")]
    assert answers == ["nbest_predictions.json", "predictions.json"]
    case.check_value("eval_files", got=[f"./{name}" for name in answers])
    case.check_value("search_files", got=sorted([*rounds, *answers]))
    folders = [name for name in case.value("files") if "." not in name]
    case.check_value("files", got=sorted([*folders, files.METRICS_LOG, files.FRONT_CSV, files.FRONT_LOG]))
