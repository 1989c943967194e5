"""AutoTinyBERT's search files: what is written reads back, what is broken is refused by file and line."""

from __future__ import annotations

import pytest

from compresskit.models import CompactBertConfig, presets
from compresskit.search import arch_text, files
from compresskit.search.files import Result

TEMPLATE = CompactBertConfig(vocab_size=100)
S1, KD_S1 = (presets.config(name, vocab_size=100) for name in ("autotinybert-s1", "autotinybert-kd-s1"))


def result(config: CompactBertConfig, task: str, best_acc: str, order: str = "mlm") -> Result:
    return Result(task, arch_text.text(config, order), 1000, best_acc, 3.1, 10)


def test_candidates_and_latencies_read_back(tmp_path):
    for order in ("mlm", "kd", "mutant"):
        files.write_candidates(tmp_path / "c", [S1, KD_S1], order)
        assert [c.key() for c in files.read_candidates(tmp_path / "c", TEMPLATE)] == [S1.key(), KD_S1.key()]
    files.write_latencies(tmp_path / "lat.tmp", [(S1, 81.31779432296753), (KD_S1, 0.1)])
    read = files.read_latencies(tmp_path / "lat.tmp", TEMPLATE)
    assert [(c.key(), ms) for c, ms in read] == [(S1.key(), 81.31779432296753), (KD_S1.key(), 0.1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "lat.tmp"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'sample_layer_num': 4}\t3.0\n", "line 1: .*'sample_hidden_size' is missing"),
        ("\n{arch}\n", "line 2: expected an architecture, a tab and its milliseconds"),
        ("{arch}\t3.0\n{arch}\tnan\n", "line 2: expected"),
        ("{arch}\t-3\n", "line 1: expected"),
        ("{arch}\t0\n", "line 1: expected"),
    ],
)
def test_a_broken_line_of_latencies_is_refused_by_its_number(tmp_path, text, message):
    (tmp_path / "lat").write_text(text.replace("{arch}", arch_text.text(S1, "mlm")))
    with pytest.raises(ValueError, match=f"lat, {message}"):
        files.read_latencies(tmp_path / "lat", TEMPLATE)


def test_a_broken_candidate_is_refused_by_its_line(tmp_path):
    (tmp_path / "c").write_text(f"{arch_text.text(S1, 'mlm')}\n__import__('os')\n")
    with pytest.raises(ValueError, match=r"c, line 2: .*is no architecture"):
        files.read_candidates(tmp_path / "c", TEMPLATE)


def test_results_read_back_and_follow_the_originals_text(tmp_path):
    written = [result(S1, "mnli", "0.8123"), result(S1, "squad1", "f1: 83.3123456; em: 75.1"), result(S1, "cola", "")]
    files.write_results(tmp_path / "r", written)
    assert files.read_results(tmp_path / "r") == written
    assert (tmp_path / "r").read_text().splitlines()[:9] == [
        "**************S*************",
        "task_name = mnli",
        f"architecture = {arch_text.text(S1, 'mlm')}",
        "parameter size = 1000",
        "best_acc = 0.8123",
        "time_per_batch_infer = 3.100 ms",
        "infer_cnt = 10",
        "**************E*************",
        "",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.rstrip().removesuffix(files.END), "the last result is cut off after line 7"),
        (lambda text: text.removeprefix(files.BEGIN + "\n"), r"line 1: expected \*+S\*+, which begins a result"),
        (lambda text: files.END + "\n" + text, "line 1: a result ends before it begins"),
        (lambda text: files.BEGIN + "\n" + text, "line 2: a result begins inside another"),
        (lambda text: text.replace("infer_cnt = 10\n", ""), "ends in line 7 has no infer_cnt"),
        (lambda text: text.replace("infer_cnt = 10", "infer_cnt = ten"), r"ends in line 8 cannot be read \(invalid"),
        (lambda text: text.replace("0.8", "good"), "ends in line 8 cannot be read"),
        (lambda text: text.replace("0.8", "nan"), "ends in line 8 cannot be read"),
        (lambda text: text.replace("infer_cnt", "count"), "line 7: expected one of task_name, architecture"),
    ],
)
def test_a_broken_results_file_is_refused_by_line(tmp_path, change, message):
    (tmp_path / "r").write_text(change(result(S1, "mnli", "0.8").block()))
    with pytest.raises(ValueError, match=f"/r(, |: ).*{message}|/r, {message}"):
        files.read_results(tmp_path / "r")


def test_fitness_is_the_mean_over_tasks_whatever_order_and_number_of_results():
    results = [
        result(S1, "mnli", "0.8"),
        result(KD_S1, "mnli", "0.5", "kd"),
        result(S1, "squad1", "f1: 5.5; em: 1.0", "mutant"),
        result(KD_S1, "squad1", "f1: 70.0; em: 1.0", "mutant"),
        result(S1, "mnli", "0.9"),
        result(S1, "cola", ""),
        result(KD_S1, "cola", "-0.1"),
    ]
    fitness = files.fitness(results)
    assert {arch_text.parse(text, TEMPLATE).key(): value for text, value in fitness.items()} == {
        S1.key(): pytest.approx((85 + 5.5 + 0) / 3),
        KD_S1.key(): pytest.approx((50 + 70 - 10) / 3),
    }


def test_an_architecture_that_is_not_finished_has_no_fitness():
    results = [result(S1, "mnli", "0.8"), result(S1, "cola", "0.5"), result(KD_S1, "mnli", "0.9")]
    assert list(files.fitness(results).values()) == [pytest.approx(65)]


def test_faithful_pairs_whatever_follows_and_fails_on_short_numbers():
    results = [result(S1, "mnli", "0.8"), result(KD_S1, "mnli", "0.6"), result(S1, "mnli", "0.1")]
    assert files.fitness(results, faithful=True) == {results[1].architecture: pytest.approx(70)}
    with pytest.raises(ValueError, match="could not convert"):
        files.fitness([result(S1, "squad1", "f1: 5.5; em: 1.0")] * 2, faithful=True)
