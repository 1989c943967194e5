"""Files of the length searches: what is written is read again, what is wrong is named by its line."""

from __future__ import annotations

import pytest

from compresskit.search import length_files as files
from compresskit.search.lengths import Entry

STORE = {
    (32, 20, 10): Entry(98430, 81.5, 0, None),
    (40, 40, 40): Entry(166400, 88.25, 2, ((32, 20, 10), (41, 40, 39))),
    (36, 30, 25): Entry(130000, 84.0, 1, ((40, 40, 40),)),
}


def test_a_round_is_three_files_and_each_is_read_again(tmp_path):
    files.write_generation(tmp_path, 7, STORE, [(36, 30, 25), (40, 40, 40)], [(32, 20, 10)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "parents-iter7.tsv", "population-iter7.tsv", "store-iter7.tsv"
    ]  # fmt: skip
    assert list(files.read_store(tmp_path / "store-iter7.tsv").items()) == sorted(
        STORE.items(), key=lambda item: item[1].cost
    )
    assert list(files.read_store(tmp_path / "population-iter7.tsv")) == [(36, 30, 25), (40, 40, 40)]
    assert files.read_store(tmp_path / "parents-iter7.tsv") == {(32, 20, 10): STORE[(32, 20, 10)]}


def test_a_store_needs_no_method_and_no_parents(tmp_path):
    (tmp_path / "store.tsv").write_text("(3, 2)\t100\t50.5\n")
    assert files.read_store(tmp_path / "store.tsv") == {(3, 2): Entry(100, 50.5)}


@pytest.mark.parametrize(
    "line",
    [
        "(3, 2)\t100", "__import__('os').getcwd()\t1\t2", "[3, 2]\t1\t2", "(3, 2)\tmany\t2", "(3, 0)\t1\t2",
        "(3, 2)\t1\t2\t0\t(5,)", "(True, 2)\t1\t2", "(3, 2)\t1\t2\t0", "(" * 300 + "\t1\t2", "",
    ],
)  # fmt: skip
def test_a_broken_store_is_refused_with_its_line(tmp_path, line):
    (tmp_path / "store.tsv").write_text(f"(3, 2)\t100\t50.5\n{line}\n")
    with pytest.raises(ValueError, match=r"store\.tsv, line 2: expected lengths, cost, score"):
        files.read_store(tmp_path / "store.tsv")


def test_a_front_of_any_depth_goes_to_csv_and_back(tmp_path):
    (tmp_path / "optuna.log").write_text(
        '{"hlayer_0": 300, "hlayer_1": 200, "f1": 80.5, "evalTime": 1.5}\n'
        '{"hlayer_0": 200, "hlayer_1": 91, "f1": 70.0, "evalTime": 1.0}\n'
    )
    files.convert_front(tmp_path / "optuna.log", tmp_path / "front.csv")
    assert (tmp_path / "front.csv").read_text() == "x0,x1,f1,evalTime\n300,200,80.5,1.5\n200,91,70.0,1.0\n"
    points = files.read_front_csv(tmp_path / "front.csv")
    assert [point.rounded() for point in points] == [(300, 200), (200, 91)]
    assert points[1] == files.FrontPoint((200.0, 91.0), 70.0, 1.0)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"x0": 3, "x2": 2, "f1": 1, "evalTime": 1}', r"the layers \[0, 2\]"),
        ('{"x0": 3, "f1": 1}', "'evalTime'"),
        ('{"x0": "3", "f1": 1, "evalTime": 1}', "'3' is no number"),
        ('{"x0": NaN, "f1": 1, "evalTime": 1}', "nan is no number"),
        ("[1]", "no object"),
        ("{", "no JSON object"),
    ],
)
def test_a_broken_front_is_refused_with_its_line(tmp_path, line, found):
    (tmp_path / "front.log").write_text(f'{{"x0": 3, "f1": 1, "evalTime": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=f"front.log, line 2: .*{found}"):
        files.read_front_log(tmp_path / "front.log")


def test_an_empty_front_and_a_wrong_table_are_refused(tmp_path):
    (tmp_path / "front.log").write_text("")
    with pytest.raises(ValueError, match="holds no point"):
        files.convert_front(tmp_path / "front.log", tmp_path / "front.csv")
    (tmp_path / "front.csv").write_text("x0,x1,f1,evalTime\n3,many,1,1\n")
    with pytest.raises(ValueError, match=r"line 2: .*many"):
        files.read_front_csv(tmp_path / "front.csv")


def test_metrics_are_sorted_before_what_tells_of_the_evaluation(tmp_path):
    line = files.metrics_line({"total": 7, "f1": 3.5, "exact": 1.0}, eval_time=0.5, model="m", macs=9, rate=0.2)
    assert line == ('{"exact": 1.0, "f1": 3.5, "total": 7, "eval_time": 0.5, "model": "m", "macs": 9, "rate": 0.2}\n')
    (tmp_path / "metrics.log").write_text(line + '{"f1": 2.0}\n')
    with pytest.raises(ValueError, match="line 2: no eval_time"):
        files.read_metrics_log(tmp_path / "metrics.log")
