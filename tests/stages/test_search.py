"""The search as one call: what it proposes, keeps and writes; killed or shared out, it ends the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from compresskit import tracking
from compresskit.data import bundled, vocabulary
from compresskit.evaluation import latency
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM, CompactBertModel, checkpoints, elastic
from compresskit.search import arch_text, files, predictor
from compresskit.search.select import obeys_fast_rule
from compresskit.search.spaces import columns_of
from compresskit.stages import candidates, latency_predictor, search
from compresskit.stages.search import SearchParams

TASKS = {
    "score_on": ["sst2"],
    "max_rows": 260,
    "max_steps": 4,
    "recipes": {"sst2": {"max_seq_len": 24, "eval_every": 2, "learning_rate": 1e-3}},
}
TWO = {"generations": ["random", "evolved"], "generation_size": 3, "threads": 1, "corpus_rows": 32,
       "max_seq_len": 24, "max_timed": 60}  # fmt: skip


def cost_ms(config: CompactBertConfig) -> float:
    """A latency that is a function of the shape."""
    return config.num_hidden_layers * (1 + config.hidden_size / 32 + config.brief("intermediate_size") / 128)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A supernet of 3 layers on disk, its config, a short corpus, and tasks."""
    folder = tmp_path_factory.mktemp("given")
    data = bundled.write(folder / "data")
    lines = (data / "corpus.txt").read_text().splitlines()[:2000]
    (folder / "corpus.txt").write_text("\n".join(lines[:200]) + "\n")
    tokenizer = vocabulary.train_wordpiece(lines, 800)
    config = CompactBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64
    )
    torch.manual_seed(0)
    model = CompactBertForMaskedLM(config).eval()
    checkpoints.save(model, folder / "supernet", tokenizer)
    own = {"supernet": str(folder / "supernet"), "corpus": str(folder / "corpus.txt"), "data_dir": str(data)}
    return SimpleNamespace(model=model, config=config, own=own, supernet=own["supernet"], folder=folder)


@pytest.fixture
def made(given: SimpleNamespace, store: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The same in a project of this test, on a machine whose times depend on nothing but the shape."""

    def measure(contestants, batch, **settings):
        return [SimpleNamespace(name=name, latency_p50_ms=cost_ms(m.config)) for name, m in contestants.items()]

    monkeypatch.setattr(latency, "measure", measure)
    return given


def run(made, **changes) -> tuple[search.Search, pd.DataFrame, pd.Series]:
    stage = search.open(SearchParams(**{**made.own, **TWO, "speedup": 2, **changes}))
    table = stage.run()
    return stage, table, stage.finish().iloc[0]


def test_every_candidate_keeps_all_limits_and_no_two_are_the_same(made):
    limit = 5.0
    stage, table, result = run(made, max_latency_ms=limit, max_parameters=40_000, max_gflops=0.01, max_model_mb=0.15)
    assert len(table) == 6
    assert sorted(table["generation"]) == [1, 1, 1, 2, 2, 2]
    assert table.duplicated(["num_hidden_layers", "hidden_size", "intermediate_size", "qkv_size"]).sum() == 0
    assert table["latency_ms"].between(0.85 * limit, limit).all()
    assert table["parameters"].between(1, 150_000 / 4).all()
    assert table["score"].is_monotonic_decreasing
    assert list(stage.describe().index) == [
        "parameters", "flops", "model_bytes", "latency_ms", "architectures that keep the limits"
    ]  # fmt: skip
    for _, row in table.iterrows():
        own = CompactBertModel(made.config.changed(**{name: int(row[name]) for name in elastic_sizes()}))
        assert row["parameters"] == own.num_parameters()
        assert row["latency_ms"] == pytest.approx(cost_ms(own.config))
    assert result["limits_ms"] == [0.85 * limit, limit]


def elastic_sizes() -> list[str]:
    return ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "qkv_size"]


def test_the_winner_is_the_slice_itself_with_the_vocabulary_and_the_files_of_the_original(made):
    stage, table, result = run(made, register_as="found")
    best = table.iloc[0]
    assert best["chosen"]
    assert table["chosen"].sum() == 1
    assert result["score"] == best["score"] == table["score"].max()
    folder = tracking.resolve(result["model"])
    found = checkpoints.load(CompactBertForMaskedLM, folder)
    expected = elastic.extract(made.model, arch_text.parse(result["architecture"], made.config))
    assert all(tensor.equal(found.state_dict()[name]) for name, tensor in expected.state_dict().items())
    assert vocabulary.load_tokenizer(folder).get_vocab() == stage.tokenizer.get_vocab()
    assert tracking.resolve("models:/found@latest") == folder
    assert result["layer_mapping"][-1] == 3
    assert len(result["layer_mapping"]) == best["num_hidden_layers"]
    written = files.read_candidates(tracking.resolve(result["files"]) / "candidates.txt", made.config)
    assert {config.key() for config in written} == {tried.trial.config.key() for tried in stage.tried}
    assert not stage.session.folder.exists()


def test_the_fast_generation_obeys_its_rule_and_a_seed_gives_the_same_search(made):
    _, first, _ = run(made, generations=["fast", "evolved"])
    _, again, _ = run(made, generations=["fast", "evolved"], register_as="another-task")
    _, other, _ = run(made, generations=["fast", "evolved"], seed=7)
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    shapes = first[first["generation"] == 1][elastic_sizes()].astype(int)
    configs = [made.config.changed(**row) for row in shapes.to_dict("records")]
    assert obeys_fast_rule(columns_of(configs)).all()


def test_mlm_drops_heads_and_kd_narrows_them(made):
    _, mlm, _ = run(made, flavour="mlm")
    assert (mlm["qkv_size"] == 8 * mlm["num_attention_heads"]).all()
    _, kd, _ = run(made, flavour="kd")
    assert (kd["num_attention_heads"] == 4).all()


def test_a_stopped_search_goes_on_to_the_same_result_and_fine_tunes_nothing_twice(made, monkeypatch):
    _, straight, whole = run(made, **TASKS, halvings=1)
    work, done = candidates.Evaluator.__call__, []

    def counted(self, job):
        if len(done) in stops:
            stops.remove(len(done))
            raise KeyboardInterrupt
        done.append(job)
        return work(self, job)

    stops = {2, 7}
    monkeypatch.setattr(candidates.Evaluator, "__call__", counted)
    params = {**TASKS, "halvings": 1, "register_as": "another-task"}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(made, **params)
    stage, table, result = run(made, **params)
    assert len(done) == 2 * (3 + 2)  # each generation: three, then the better two
    pd.testing.assert_frame_equal(table, straight)
    assert result["architecture"] == whole["architecture"]
    assert tracking.store.client().get_run(stage.session.run.run_id).data.tags["attempts"] == "3"


def test_several_processes_find_what_one_finds(made):
    _, one, _ = run(made, **TASKS)
    _, two, _ = run(made, **TASKS, workers=2)
    pd.testing.assert_frame_equal(one, two)


def test_the_results_file_feeds_another_search(made):
    stage, table, result = run(made, **TASKS, generations=["random"])
    scores = files.fitness(files.read_results(tracking.resolve(result["files"]) / "subbert.results"))
    assert sorted(scores.values()) == pytest.approx(sorted(100 * table["sst2"]), abs=1e-4)
    again, _, _ = run(made, **TASKS, generations=["evolved"], previous=result["files"])
    assert {t.trial.config.key() for t in again.tried}.isdisjoint(t.trial.config.key() for t in stage.tried)
    assert [score for _, score in again.earlier] == pytest.approx([t.trial.score for t in stage.tried], abs=1e-6)


def test_candidates_that_are_stopped_early_never_win(made):
    _, table, _ = run(made, **TASKS, generation_size=4, halvings=1)
    assert table.groupby("generation")["share"].apply(sorted).tolist() == [[0.5, 0.5, 1, 1]] * 2
    assert (table["share"].iloc[:4] == 1).all()
    for _, rows in table.groupby("generation"):
        assert len(rows) == 4
    assert table["chosen"].iloc[0]


def test_the_best_finalist_that_keeps_the_limit_when_measured_wins(made, monkeypatch):
    params = SearchParams(**made.own, **TWO, speedup=2)
    stage = search.open(params)
    over = {}

    def measure(configs, conditions, rounds):
        over["of"] = next(iter(configs))
        return {name: 99.0 if name == over["of"] else 1.0 for name in configs}

    monkeypatch.setattr(search, "measure", measure)
    table = stage.run()
    assert table["chosen"].tolist() == [False, True, False, False, False, False]
    assert table["measured_ms"].tolist()[:5] == [99.0, 1.0, 1.0, 1.0, 1.0]
    assert pd.isna(table["measured_ms"].iloc[5])
    finalists = stage.finalists()
    assert finalists["name"].tolist() == ["1", "2", "3", "4", "5"]
    assert finalists["chosen"].tolist() == [False, True, False, False, False]


def test_comparisons_are_the_median_of_the_first_generation_and_a_uniform_network_as_slow_as_the_winner(made):
    stage, table, result = run(made, comparisons=True, generation_size=5)
    first = table[table["generation"] == 1].reset_index(drop=True)
    median = checkpoints.load(CompactBertForMaskedLM, tracking.resolve(result["median"])).config
    assert [getattr(median, name) for name in elastic_sizes()] == first.iloc[2][elastic_sizes()].tolist()
    uniform = checkpoints.load(CompactBertForMaskedLM, tracking.resolve(result["uniform"])).config
    assert abs(uniform.qkv_size - uniform.hidden_size) <= 3  # a value of the grid, in steps of the 4 heads
    assert uniform.intermediate_size == min(64, 4 * uniform.hidden_size)
    wide = [(h, min(64, 4 * h)) for h in range(5, 33)]
    depth = uniform.num_hidden_layers
    others = [
        cost_ms(made.config.changed(num_hidden_layers=depth, hidden_size=h, intermediate_size=f)) for h, f in wide
    ]
    nearest = min(abs(cost - result["latency_ms"]) for cost in others)
    assert abs(cost_ms(uniform) - result["latency_ms"]) == pytest.approx(nearest)
    assert stage.finalists()["name"].tolist() == ["1", "2", "3", "4", "5", "median", "uniform"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"generations": []}, "generations names none"),
        ({"generations": ["evolved"]}, "the first of generations is evolved, but there are no parents"),
        ({"score_on": ["masked_lm", "sst2"]}, "take masked_lm alone"),
        ({"score_on": ["sst2"], "recipes": {"mrpc": {"max_seq_len": 9}}}, "recipes names mrpc, which is not in"),
        ({"score_on": ["sst3"]}, "unknown task 'sst3'; did you mean 'sst2'"),
        ({"score_on": ["sst2"], "recipes": {"sst2": {"epochs": 9}}}, "recipes.sst2: 'epochs' is no parameter"),
        ({"score_on": ["sst2"], "recipes": {"sst2": {"max_seq_len": 600}}}, "600 tokens, the supernet takes 512; set"),
        ({"max_latency_ms": 0.5}, r"none of 60 timed .* takes 0.425 to 0.5 ms: they take 1.* change the limit"),
        ({"max_parameters": 10}, "none of .* architectures keeps parameters from 0 to 10 .the space has"),
        ({"generation_size": 500}, "architectures keep the limits, 500 are wanted; ask for fewer"),
        ({"predictor": "nowhere"}, "nowhere"),
        ({"space": "released"}, "exceeds the supernet's"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_in_one_sentence(made, changes, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        run(made, **changes)


def test_a_supernet_without_a_head_is_scored_on_tasks_and_its_projection_goes_along(made):
    tokenizer, projection = vocabulary.load_tokenizer(made.supernet), torch.randn(48, 32)
    bare = made.folder / "bare"
    checkpoints.save(CompactBertModel(made.config), bare, tokenizer, {"dense_fit.weight": projection})
    with pytest.raises(ValueError, match="has no head for masked words; score_on tasks instead"):
        run(made, supernet=str(bare))
    _, table, result = run(made, supernet=str(bare), **TASKS, generations=["random"])
    kept = checkpoints.read(tracking.resolve(result["model"])).training_only["dense_fit.weight"]
    assert kept.equal(projection[:, : table["hidden_size"].iloc[0]])


@pytest.mark.parametrize("over", ["supernet", "bert-base"])
def test_a_predictor_says_the_limit_and_under_which_conditions_it_holds(made, over):
    choose_float32_matmul()
    conditions = latency_predictor.conditions("kd", 1, 1, 32, "wall")
    line = predictor.FlopsLine(1.0, 1e-6, 32)
    own = line.predict(columns_of([made.config]))[0]
    references = {"bert-base": 2 * own, "supernet": 9 * own}  # as if taken on a busy machine
    predictor.LatencyPredictor(line, conditions, [], 1.0, references).save(made.folder / "predictor")
    given = {"predictor": str(made.folder / "predictor"), "speedup_over": over, "generations": ["random"]}
    stage, table, result = run(made, **given, speedup=1.5 if over == "supernet" else 3)
    assert result["limits_ms"] == pytest.approx([0.85 * own / 1.5, 1.1 * own / 1.5])
    columns = {name: table[name].to_numpy() for name in elastic_sizes()}
    assert table["latency_ms"].tolist() == pytest.approx(line.predict(columns).tolist())
    assert stage.conditions == conditions
    for differs in ("mlm", "flavour"):
        with pytest.raises(ValueError, match=f"the latencies were measured with .*{differs}"):
            run(made, **given, flavour="mlm")
