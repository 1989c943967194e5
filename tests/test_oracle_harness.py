"""The oracle tests fail where they should: what is missing, left out, skipped or wrong, and count what was compared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.oracle_cases import EXACT, Case, Tolerance, claimed_cases, is_given_array, oracle

ROOT = Path(__file__).parent.parent

TAKES_FORWARD = """
    import pytest
    from tests.oracle_cases import oracle

    @pytest.mark.oracle
    @pytest.mark.parametrize("case", oracle("tinybert", "forward"), ids=str)
    def test_doubles(case):
        case.check("out/y", 2 * case["in/x"])
        case.check_value("loss", got=0.5)
"""


def write_case(folder: Path, name: str = "forward", system: str = "tinybert", **changes) -> Path:
    """A case whose program doubles x, and its path."""
    arrays = {"in/x": np.arange(3.0, dtype=np.float32), "out/y": 2 * np.arange(3.0, dtype=np.float32)}
    arrays = {name: array for name, array in {**arrays, **changes.pop("arrays", {})}.items() if array is not None}
    shapes = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in arrays.items()}
    record = {"what": "doubling", "loss": 0.5, "tolerance": {"rtol": 0, "atol": 1e-6}, "arrays": shapes, **changes}
    path = folder / system / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    np.savez(path.with_suffix(".npz"), **arrays)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COMPRESSKIT_ORACLES", str(tmp_path / "oracles"))
    return tmp_path / "oracles"


@pytest.fixture
def run(pytester, monkeypatch):
    """Run a made test file with the plugin and nothing else of this suite."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # loading all of them takes 2 s each time

    def run_file(source: str, *options: str) -> pytest.RunResult:
        pytester.makeini("[pytest]\nmarkers = oracle")
        pytester.makepyfile(test_made=source)
        return pytester.runpytest("-p", "tests.oracle_plugin", "-p", "no:cacheprovider", *options)

    return run_file


def cases_taken(tests: Path) -> set[str]:
    """system/case of every case that a test below `tests` takes, as collected by pytest from test_*oracle*.py."""
    files = [str(path) for path in sorted(tests.rglob("test_*oracle*.py"))]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "oracle", "-o", "addopts=", *files]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), clean.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env={**clean, **path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"\[(\w+/[^\]]+)\]$", done.stdout, flags=re.MULTILINE))


# The suite as a whole


@pytest.mark.oracle
def test_every_case_of_a_claimed_kind_is_taken_by_a_test():
    forgotten = claimed_cases() - cases_taken(ROOT / "tests")
    assert not forgotten, f"claimed, but taken by no test in a file named test_*oracle*.py: {sorted(forgotten)}"


def test_a_claimed_kind_that_no_test_takes_is_noticed(tmp_path, folder):
    write_case(folder)
    write_case(folder, "superbert_kd_2", system="autotinybert")
    (tmp_path / "test_made_oracle.py").write_text("\n".join(line[4:] for line in TAKES_FORWARD.splitlines()))
    forgotten = claimed_cases() - cases_taken(tmp_path)
    assert "autotinybert/superbert_kd_2" in forgotten
    assert "tinybert/forward" not in forgotten


def test_a_kind_that_is_tested_but_not_claimed_is_refused():
    with pytest.raises(ValueError, match="tinybert/unheard_of is tested but not in CLAIMED"):
        oracle("tinybert", "unheard_of")


# Which cases a test gets


@pytest.mark.parametrize("state", ["no folder", "empty folder", "folder without the kind"])
def test_a_kind_without_cases_fails_and_is_not_skipped(run, folder, state):
    if state != "no folder":
        (folder / "tinybert").mkdir(parents=True)
    if state == "folder without the kind":
        write_case(folder, "tokenizer")
    result = run(TAKES_FORWARD)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no forward[*].json in *tinybert; COMPRESSKIT_ORACLES must name*"])


def test_a_case_dropped_into_the_folder_is_tested_under_system_and_name(run, folder):
    write_case(folder)
    write_case(folder, "forward_wide", arrays={"in/x": np.ones(5, np.float32), "out/y": 2 * np.ones(5, np.float32)})
    write_case(folder, "nobodys_forward")
    result = run(TAKES_FORWARD, "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*[[]tinybert/forward] PASSED*", "*[[]tinybert/forward_wide] PASSED*"])
    result.stdout.fnmatch_lines(["in the folder, but of no claimed kind: tinybert/nobodys_forward"])


def test_a_case_belongs_to_the_longest_claimed_kind_that_its_name_begins_with(folder, monkeypatch):
    monkeypatch.setattr("tests.oracle_cases.CLAIMED", {"tinybert": ("train", "train_SST-2")})
    for name in ("train", "train_2", "train_SST-2_prediction"):
        write_case(folder, name)
    assert list(map(str, oracle("tinybert", "train"))) == ["tinybert/train", "tinybert/train_2"]
    assert list(map(str, oracle("tinybert", "train_SST-2"))) == ["tinybert/train_SST-2_prediction"]


# What fails a test that took a case


def test_a_result_array_that_nothing_compared_fails(run, folder):
    write_case(folder, arrays={"grad/w": np.zeros(2, np.float32), "student_saved/w": np.zeros(2, np.float32)})
    result = run(TAKES_FORWARD)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*nothing compared grad/w, student_saved/w (2 of its results)*"])


def test_a_result_value_in_the_json_that_nothing_compared_fails(run, folder):
    write_case(folder, archs=[{"arch": {"layers": 2}, "mlm_loss": 4.5, "rows": [0, 1]}])
    result = run(TAKES_FORWARD)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*nothing compared archs/0/mlm_loss, archs/0/rows/0, archs/0/rows/1 (3 of its results)*"]
    )


def test_a_case_of_which_nothing_is_compared_fails(run, folder):
    path = write_case(folder, arrays={"out/y": None})
    record = json.loads(path.read_text())
    del record["loss"]
    path.write_text(json.dumps(record))
    result = run(TAKES_FORWARD.split("        case.check")[0] + "        pass\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*nothing compared any result at all*"])


def test_a_wrong_number_fails_with_its_place_and_the_allowed_difference(run, folder):
    write_case(folder, arrays={"out/y": np.array([0, 2, 4.001], np.float32)})
    result = run(TAKES_FORWARD)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*tinybert/forward: out/y: 1 of 3 numbers differ; the worst, entry 2, is 4, *"])


@pytest.mark.parametrize("mark", ["skip", "xfail"])
def test_a_case_may_be_neither_skipped_nor_expected_to_fail(run, folder, mark):
    write_case(folder, arrays={"out/y": np.zeros(3, np.float32)})
    result = run(TAKES_FORWARD.replace("@pytest.mark.oracle", f"@pytest.mark.oracle\n    @pytest.mark.{mark}"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*a recorded case may be neither skipped nor xfailed*"])


def test_a_test_that_takes_cases_without_the_marker_is_refused(run, folder):
    write_case(folder)
    result = run(TAKES_FORWARD.replace("@pytest.mark.oracle", ""))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*must be marked `@pytest.mark.oracle`*"])


def test_the_summary_counts_cases_arrays_and_values_per_system_also_of_parallel_workers(
    run, folder, pytester, monkeypatch
):
    write_case(folder)
    write_case(folder, "forward_2")
    write_case(folder, "forward_wrong", loss=0.6)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    expected = "tinybert: 2 of 3 cases passed, 3 arrays and 2 recorded values compared"
    run(TAKES_FORWARD).stdout.fnmatch_lines([expected])
    parallel = pytester.runpytest_subprocess("-p", "tests.oracle_plugin", "-p", "xdist", "-n", "2")
    parallel.assert_outcomes(passed=2, failed=1)
    parallel.stdout.fnmatch_lines([expected])


# What a case compares, and how closely


@pytest.mark.parametrize(
    ("got", "complaint"),
    [
        ([0, 2, float("nan")], "entry 2, is nan"),
        ([0, 2], "has shape"),
        ([[0, 2, 4]], "has shape"),
        ([0, 2, 4.000002], "difference"),
    ],
)
def test_check_refuses_nan_another_shape_and_more_than_the_tolerance(folder, got, complaint):
    case = Case(write_case(folder))
    with pytest.raises(AssertionError, match=complaint):
        case.check("out/y", torch.tensor(got, dtype=torch.float64))
    assert case.left_over() == ["out/y", "loss"]


def test_a_recorded_nan_is_matched_by_nothing(folder):
    case = Case(write_case(folder, arrays={"out/y": np.array([np.nan], np.float32)}))
    with pytest.raises(AssertionError, match="1 of 1 numbers differ"):
        case.check("out/y", torch.tensor([float("nan")]))


def test_a_recorded_nan_is_matched_by_a_nan_alone_where_the_test_says_so(folder):
    case = Case(write_case(folder, arrays={"out/y": np.array([np.nan, 1], np.float32)}))
    case.check("out/y", torch.tensor([float("nan"), 1]), equal_nan=True)
    for wrong in ([0.0, 1.0], [float("nan"), float("nan")], [float("nan"), 2.0]):
        with pytest.raises(AssertionError, match="1 of 2 numbers differ"):
            case.check("out/y", torch.tensor(wrong), equal_nan=True)


def test_a_field_may_be_an_input_in_one_kind_and_a_result_in_another(folder):
    processors, corpus = (
        Case(write_case(folder, name, files={"a": "b"})) for name in ("glue_processors", "pregenerate")
    )
    with pytest.raises(ValueError, match="files was handed in"):
        processors.check_value("files", got={"a": "b"})
    assert "files/a" in corpus.left_over()
    assert "files/a" not in processors.left_over()
    corpus.check_value("files", got={"a": "b"})


def test_integers_are_compared_exactly_and_not_with_floats(folder):
    case = Case(write_case(folder, arrays={"out/y": np.array([10**9, 1])}, tolerance="1"))
    with pytest.raises(AssertionError, match="differs in 1 of 2"):
        case.check("out/y", torch.tensor([10**9 + 1, 1]))
    with pytest.raises(AssertionError, match="float64"):
        case.check("out/y", torch.tensor([1e9, 1], dtype=torch.float64))
    case.check("out/y", torch.tensor([10**9, 1], dtype=torch.int32))


@pytest.mark.parametrize(
    ("recorded", "got"),
    [
        (0.5, 0.51),
        (0.5, float("nan")),
        (0.5, "0.5"),
        (3, 3.0),
        (1, True),
        ([1, 2], [1]),
        ([], [1]),
        ([], {}),
        ({"a": 1}, {"b": 1}),
        ("text", "Text"),
        (None, 0),
    ],
)
def test_check_value_refuses_what_is_not_the_recorded_value(folder, recorded, got):
    with pytest.raises(AssertionError):
        Case(write_case(folder, loss=recorded)).check_value("loss", got=got)


def test_check_value_covers_all_that_lies_below(folder):
    case = Case(write_case(folder, loss={"per_step": [0.5, 1.0], "names": ["a"], "none": []}))
    case.check_value("loss", got={"per_step": [0.5 + 1e-7, 1], "names": ["a"], "none": []})
    assert case.left_over() == ["out/y"]


def test_what_was_handed_in_cannot_be_compared_with_itself(folder):
    case = Case(write_case(folder))
    with pytest.raises(ValueError, match="in/x was handed in"):
        case.check("in/x", case["in/x"])
    with pytest.raises(ValueError, match="tolerance/atol was handed in"):
        case.check_value("tolerance", "atol", got=1e-6)


def test_a_test_cannot_change_what_was_recorded(folder):
    case = Case(write_case(folder))
    case["out/y"].zero_()
    case.arrays("out/")["y"].zero_()
    case.value("tolerance")["atol"] = 1.0
    assert case["out/y"].tolist() == [0, 2, 4]
    assert case.tolerance() == Tolerance(atol=1e-6)


def test_an_archive_that_does_not_hold_the_declared_arrays_is_refused(folder):
    path = write_case(folder)
    np.savez(path.with_suffix(".npz"), **{"in/x": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="differs from the field 'arrays' in out/y"):
        Case(path).check("out/y", torch.zeros(3))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"rtol": 2e-4, "atol": 3e-5}, Tolerance(atol=3e-5, rtol=2e-4)),
        ("abs 1e-5", Tolerance(atol=1e-5)),
        ("1e-12", Tolerance(atol=1e-12)),
        ("exact", EXACT),
        ("abs 1e-5 float32; masked scores near -1e4: rel 1e-6", Tolerance(atol=1e-5, masked_rtol=1e-6)),
    ],
)
def test_a_tolerance_is_read_as_it_is_written(folder, written, read):
    assert Case(write_case(folder, tolerance=written)).tolerance() == read


def test_a_tolerance_of_several_clauses_has_to_be_given_by_the_test(folder):
    case = Case(write_case(folder, tolerance="losses rel 1e-4, weights abs 2e-5"))
    with pytest.raises(ValueError, match="hand `tolerance` to check"):
        case.check("out/y", torch.zeros(3))
    case.check("out/y", torch.tensor([0, 2, 4.00001]), tolerance=Tolerance(atol=2e-5))


def test_masked_scores_have_their_own_bound_and_the_others_do_not(folder):
    case = Case(write_case(folder, arrays={"out/y": np.array([-10000.0, 1.0], np.float32)}))
    bound = Tolerance(atol=1e-5, masked_rtol=1e-6)
    case.check("out/y", torch.tensor([-10000.008, 1.000009]), tolerance=bound)
    for wrong in ([-10000.02, 1.0], [-10000.0, 1.00002]):
        with pytest.raises(AssertionError, match="1 of 2"):
            case.check("out/y", torch.tensor(wrong), tolerance=bound)


GIVEN = "in/input_ids in.x batch_3/labels sd.w teacher_sd.w super_sd.w teacher/w student/w student_init/w masked_lm/w"
GIVEN += " tiny_pretraining/w model/w init/w update_7/w gw_0 gb_10 w_init b_init"
RESULTS = "out/logits out.0.sd.w grad.0.w grad_step0/w w_3 b_10 mask_w1_t/w mask_final/w w1_2 student_saved/w"
RESULTS += " student_final/w student_after_all_steps/w len1/logits layer2/hidden_0 emb_norm sst-2/input_ids"


def test_arrays_are_results_unless_they_were_handed_in():
    assert [name for name in GIVEN.split() if not is_given_array(name)] == []
    assert [name for name in RESULTS.split() if is_given_array(name)] == []
