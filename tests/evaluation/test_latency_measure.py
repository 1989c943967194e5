import gc
import time

import numpy as np
import pytest
import torch
from torch import nn

from compresskit.evaluation import latency
from compresskit.evaluation.latency import measure, random_batch, table

BATCH = random_batch(30, 2, 5)


def test_a_contestant_that_sleeps_20_ms_reads_20_ms_whoever_runs_beside_it():
    slow, fast = measure(
        {"slow": lambda batch: time.sleep(0.02), "fast": lambda batch: time.sleep(0.002)}, BATCH, rounds=15
    )
    assert (slow.name, fast.name) == ("slow", "fast")
    assert 20 <= slow.latency_p50_ms < 35  # sleeping on a busy machine ends late, never early
    assert 2 <= fast.latency_p50_ms < 15


def test_every_round_runs_every_contestant_once_in_changing_order_after_the_warm_up():
    calls: list[str] = []
    results = measure({name: lambda batch, n=name: calls.append(n) for name in "abc"}, BATCH, rounds=20, warmup=2)
    assert len(calls) == 3 * (20 + 2)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert rounds[:2] == ["abc", "abc"]
    assert len(set(rounds[2:])) > 3
    assert [len(result.samples_ms) for result in results] == [20, 20, 20]


def test_the_same_seed_gives_the_same_order():
    def order(seed):
        calls: list[str] = []
        measure({name: lambda batch, n=name: calls.append(n) for name in "abcd"}, BATCH, rounds=10, seed=seed)
        return calls

    assert order(1) == order(1) != order(2)


def test_the_first_slow_calls_are_not_counted():
    waits = iter([0.3, 0.3, 0.3])
    result = measure({"lazy": lambda batch: time.sleep(next(waits, 0))}, BATCH, rounds=10, warmup=3)[0]
    assert max(result.samples_ms) < 300


def test_the_numbers_are_those_of_the_samples():
    result = measure({"f": lambda batch: time.sleep(0.001)}, BATCH, rounds=12)[0]
    q25, q50, q75, q95 = np.quantile(result.samples_ms, [0.25, 0.5, 0.75, 0.95])
    assert (result.latency_p50_ms, result.latency_p95_ms) == (q50, q95)
    assert result.iqr_ms == pytest.approx(q75 - q25)
    assert result.relative_iqr == pytest.approx((q75 - q25) / q50)
    assert (result.rounds, result.threads, result.batch_size, result.seq_len) == (12, 1, 2, 5)
    assert result.machine["torch"] == torch.__version__
    assert result.machine["float32_matmul_precision"] == torch.get_float32_matmul_precision()
    assert result.machine["cpu"]
    assert int(result.machine["cores"]) >= 1


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 10), (0.12, 12), (60.0, 30)])
def test_a_time_budget_ends_the_rounds_but_not_before_ten(budget_s, rounds):
    result = measure({"f": lambda batch: time.sleep(0.01)}, BATCH, rounds=30, budget_s=budget_s)[0]
    assert rounds - 2 <= result.rounds <= rounds
    assert result.rounds >= 10


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.seen: list[tuple] = []

    def forward(self, input_ids, token_type_ids, attention_mask):
        self.seen.append((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads(), gc.isenabled()))
        assert input_ids.shape == token_type_ids.shape == attention_mask.shape == (2, 5)


def test_modules_run_in_evaluation_and_inference_mode_with_the_threads_asked_for():
    model, found = Model().train(), torch.get_num_threads()
    measure({"model": model}, BATCH, threads=found + 1, rounds=10, warmup=0)
    assert model.seen == [(False, True, found + 1, False)] * 10
    assert model.training
    assert torch.get_num_threads() == found
    assert gc.isenabled()


def test_threads_modes_and_garbage_collection_are_restored_after_an_error():
    def fail(batch):
        raise RuntimeError("broken")

    model, found = Model().train(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken"):
        measure({"model": model, "fail": fail}, BATCH, threads=found + 1)
    assert torch.get_num_threads() == found
    assert model.training
    assert gc.isenabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_time_is_that_of_the_work_not_of_queueing_it():
    class Heavy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4096, 4096, device="cuda"))

        def forward(self, **batch):
            for _ in range(50):
                self.weight @ self.weight

    model = Heavy()
    result = measure({"heavy": model}, BATCH, rounds=10)[0]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    model()
    end.record()
    torch.cuda.synchronize()
    assert result.latency_p50_ms == pytest.approx(start.elapsed_time(end), rel=0.3)
    assert result.machine["gpu"]


def test_a_random_batch_is_full_and_seeded():
    batch = random_batch(1000, 4, 16, seed=3)
    assert batch["input_ids"].shape == (4, 16)
    assert int(batch["input_ids"].max()) < 1000
    assert bool((batch["attention_mask"] == 1).all())
    assert bool((batch["token_type_ids"] == 0).all())
    assert torch.equal(batch["input_ids"], random_batch(1000, 4, 16, seed=3)["input_ids"])
    assert not torch.equal(batch["input_ids"], random_batch(1000, 4, 16, seed=4)["input_ids"])


def test_the_table_has_the_fastest_on_top():
    results = measure({"b": lambda batch: time.sleep(0.004), "a": lambda batch: None}, BATCH, rounds=10)
    assert table(results)["name"].tolist() == ["a", "b"]
    assert table(results)["latency_p50_ms"].tolist() == [results[1].latency_p50_ms, results[0].latency_p50_ms]


@pytest.mark.parametrize(
    ("contestants", "settings", "message"),
    [
        ({}, {}, "no contestants"),
        ({"f": print}, {"rounds": 0}, "rounds >= 1.*got 0, 3, 1"),
        ({"f": print}, {"threads": 0}, "threads >= 1"),
        ({"f": print}, {"warmup": -1}, "warmup >= 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(contestants, settings, message):
    with pytest.raises(ValueError, match=message):
        measure(contestants, BATCH, **settings)


def test_the_processor_is_named_on_a_system_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(latency, "Path", lambda _: tmp_path / "missing")
    assert latency.describe_machine()["cpu"]


def test_the_clock_cpu_leaves_out_what_other_processes_take():
    def work(batch):
        end = time.process_time() + 0.004
        while time.process_time() < end:
            pass
        time.sleep(0.02)

    cpu, wall = (measure({"f": work}, BATCH, rounds=10, clock=clock)[0].latency_p50_ms for clock in ("cpu", "wall"))
    assert 4 <= cpu < 12
    assert wall >= 24
    with pytest.raises(ValueError, match="clock 'cpu' adds up 2 threads"):
        measure({"f": work}, BATCH, rounds=10, clock="cpu", threads=2)


def groups_of(built: list[str], *groups: str):
    def build(name):
        built.append(name)
        return lambda batch: None

    return [{name: lambda name=name: build(name) for name in group} for group in groups]


def test_groups_are_built_when_their_turn_comes_and_those_on_disk_are_not_timed_again(tmp_path):
    built: list[str] = []
    stopped = latency.measure_groups(groups_of(built, "ab", "cd", "e"), BATCH, tmp_path / "times", rounds=10)
    first = [next(stopped), next(stopped)]
    assert built == list("abcd")
    stopped.close()
    built.clear()
    again = list(latency.measure_groups(groups_of(built, "ab", "cd", "e"), BATCH, tmp_path / "times", rounds=10))
    assert built == ["e"]
    assert again[:2] == first
    assert [[result.name for result in group] for group in again] == [["a", "b"], ["c", "d"], ["e"]]
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(ValueError, match=r"group-0000\.json holds times of other contestants"):
        next(latency.measure_groups(groups_of(built, "xy"), BATCH, tmp_path / "times", rounds=10))
