"""Batches: every row once an epoch, little padding, and an order that a resumed run finds again."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from compresskit.data.batching import Batches, Epochs, Mixed


def rows(count: int, seed: int = 0, **columns) -> Dataset:
    """Row r has the single token r + 10, as often as it is long."""
    lengths = np.random.default_rng(seed).integers(1, 60, count)
    ids = [[row + 10] * int(length) for row, length in enumerate(lengths)]
    return Dataset.from_dict({"input_ids": ids, **columns})


def seen(batches) -> list[int]:
    return [int(row) for batch in batches for row in batch["input_ids"][:, 0] - 10]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("length_buckets", [True, False])
@pytest.mark.parametrize("count", [1, 32, 33, 5000])
def test_every_row_comes_once_an_epoch(count, length_buckets, shuffle):
    batches = Batches(rows(count), 32, seed=0, pad_token_id=0, shuffle=shuffle, length_buckets=length_buckets)
    assert len(batches) == -(-count // 32)
    assert len(list(batches)) == len(batches)
    assert sorted(seen(batches)) == list(range(count))


def test_a_batch_holds_the_rows_padded_to_the_longest():
    dataset = Dataset.from_dict(
        {
            "input_ids": [[2, 5, 6, 3], [2, 3]],
            "token_type_ids": [[0, 0, 1, 1], [0, 0]],
            "labels": [1, 0],
            "sentence": ["a", "b"],
        }
    )
    (batch,) = Batches(dataset, 2, 0, pad_token_id=9, shuffle=False, length_buckets=False)
    expected = {
        "input_ids": [[2, 5, 6, 3], [2, 3, 9, 9]],
        "token_type_ids": [[0, 0, 1, 1], [0, 0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "labels": [1, 0],
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_graded_labels_are_float32_and_spans_are_integers():
    graded = next(iter(Batches(rows(3, labels=[0.5, 1.0, 2.0]), 3, 0, 0, shuffle=False)))
    assert graded["labels"].dtype == torch.float32
    spans = next(iter(Batches(rows(2, start_positions=[1, 2], end_positions=[3, 4]), 2, 0, 0, length_buckets=False)))
    assert spans["end_positions"].dtype == torch.int64
    assert (spans["end_positions"] - spans["start_positions"]).tolist() == [2, 2]


def test_the_order_depends_on_seed_and_epoch_alone():
    dataset = rows(500)
    orders = [seen(Batches(dataset, 32, seed, 0).from_step(16 * epoch, 16 * epoch + 16)) for seed, epoch in
              ((0, 0), (0, 0), (0, 1), (1, 0))]  # fmt: skip
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


@pytest.mark.parametrize("step", [0, 1, 15, 16, 17, 40])
def test_a_run_resumed_at_any_step_sees_what_an_uninterrupted_one_would(step):
    batches = Batches(rows(500), 32, seed=3, pad_token_id=0)
    whole = list(batches.from_step(0, 48))
    resumed = list(batches.from_step(step, 48))
    assert len(resumed) == 48 - step
    for one, other in zip(whole[step:], resumed, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_buckets_leave_less_than_a_tenth_of_padding():
    def padding(length_buckets):
        masks = [batch["attention_mask"] for batch in Batches(rows(5000), 32, 0, 0, length_buckets=length_buckets)]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(length_buckets=False) > 0.4
    assert padding(length_buckets=True) < 0.1


def test_bucketed_batches_do_not_come_sorted():
    lengths = [batch["input_ids"].shape[1] for batch in Batches(rows(1600), 32, 0, 0)]
    assert abs(np.corrcoef(lengths, np.arange(len(lengths)))[0, 1]) < 0.4


def test_evaluation_order_can_be_restored_from_the_index():
    dataset = rows(100, labels=list(range(100)))
    labels = np.empty(100)
    for batch in Batches(dataset, 7, 0, 0, shuffle=False, with_index=True):
        labels[batch["index"]] = batch["labels"]
        assert batch["input_ids"][:, 0].tolist() == (batch["index"] + 10).tolist()
    assert labels.tolist() == list(range(100))


def test_dropping_the_last_batch_drops_other_rows_each_epoch():
    batches = Batches(rows(100), 32, seed=0, pad_token_id=0, drop_last=True)
    assert len(batches) == 3
    first, second = set(seen(batches.from_step(0, 3))), set(seen(batches.from_step(3, 6)))
    assert len(first) == len(second) == 96
    assert first != second


def test_a_fixed_width_pads_every_batch_alike():
    assert {b["input_ids"].shape[1] for b in Batches(rows(100), 10, 0, 0, pad_to=64)} == {64}
    with pytest.raises(ValueError, match="does not fit pad_to 8"):
        Batches(rows(100), 10, 0, 0, pad_to=8)


def test_no_rows_or_no_batch_is_refused():
    with pytest.raises(ValueError, match="0 rows do not fill one batch"):
        Batches(rows(1).select([]), 4, 0, 0)
    with pytest.raises(ValueError, match="3 rows do not fill one batch of 4; lower batch_size"):
        Batches(rows(3), 4, 0, 0, drop_last=True)
    with pytest.raises(ValueError, match="batch_size 0 is not positive"):
        Batches(rows(3), 0, 0, 0)


def test_a_selection_and_a_file_on_disk_give_the_same_batches(tmp_path):
    dataset = rows(200, labels=list(range(200)))
    dataset.save_to_disk(tmp_path / "rows")
    chosen = np.arange(0, 200, 3)
    one = Batches(dataset.select(chosen), 16, 0, 0)
    other = Batches(Dataset.load_from_disk(tmp_path / "rows").select(chosen), 16, 0, 0)
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_epochs_of_other_rows_follow_each_other_and_come_round_in_another_order():
    sizes = (70, 40, 55)
    parts = [Batches(rows(size), 10, seed=3, pad_token_id=0, drop_last=True) for size in sizes]
    epochs = Epochs(parts)
    assert [epochs.num_steps(n) for n in (0.01, 1, 3, 4.45)] == [1, 7, 16, 25]
    taken = seen(epochs.from_step(0, 25))
    assert [sorted(taken[a:b]) for a, b in ((0, 70), (70, 110))] == [list(range(70)), list(range(40))]
    assert sorted(taken[160:230]) == list(range(70))
    assert taken[160:230] != taken[:70]
    assert taken[70:110] == seen(parts[1].from_step(4, 8))  # the order of epoch 1, not of its rows' first use
    for step in range(26):
        assert seen(epochs.from_step(step, 25)) == taken[10 * step :]


def test_a_single_epoch_again_and_again_is_what_its_batches_give():
    batches = Batches(rows(33), 8, seed=1, pad_token_id=0)
    assert seen(Epochs([batches]).from_step(3, 12)) == seen(batches.from_step(3, 12))


def marked(first: int, rows: int) -> Dataset:
    """Rows of one token each, numbered from `first` on."""
    return Dataset.from_dict({"input_ids": [[first + i] for i in range(rows)]})


def mixed(seed=1, **order):
    parts = [Batches(marked(first, rows), 4, seed, 0, **order) for first, rows in ((0, 10), (100, 3), (200, 17))]
    return Mixed(parts, seed)


def test_batches_of_several_tasks_never_mix_and_an_epoch_has_every_row_once():
    batches = mixed()
    assert len(batches) == 3 + 1 + 5
    for epoch in range(2):
        seen = list(batches.from_step(9 * epoch, 9 * (epoch + 1)))
        for batch in seen:
            tasks = batch["input_ids"][:, 0] // 100
            assert batch["task"].tolist() == tasks.tolist() == [tasks[0]] * len(tasks)
        rows = sorted(row for batch in seen for row in batch["input_ids"][:, 0].tolist())
        assert rows == [*range(10), *range(100, 103), *range(200, 217)]


def order_of(batches, first, last):
    return [batch["input_ids"].tolist() for batch in batches.from_step(first, last)]


def test_the_order_of_mixed_batches_follows_from_seed_and_step():
    whole = order_of(mixed(), 0, 27)
    assert order_of(mixed(), 13, 27) == whole[13:]  # a resumed run sees what a whole one would
    assert order_of(mixed(seed=2), 0, 27) != whole
    assert [len(rows) for rows in whole[:9]] != [len(rows) for rows in whole[9:18]]  # epochs differ
    in_file_order = order_of(mixed(shuffle=False, length_buckets=False), 0, 9)
    assert [row for (row,) in (r for rows in in_file_order for r in rows) if row >= 200] == list(range(200, 217))
