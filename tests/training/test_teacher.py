"""What the teacher says: remembered by row, kept under its key, and in bfloat16 only where the loss allows it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification
from compresskit.training.distill import intermediate
from compresskit.training.teacher import TeacherLogits, in_bfloat16, model_digest


def model(seed: int = 0, **fields) -> CompactBertForSequenceClassification:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = CompactBertConfig(vocab_size=50, max_position_embeddings=16, num_labels=3, **{**shape, **fields})
    return CompactBertForSequenceClassification(config)


def batch(*rows: int) -> dict[str, torch.Tensor]:
    ids = torch.stack([torch.arange(row + 2, row + 8) for row in rows])
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": mask * 0, "index": torch.tensor(rows)}


class Counted(CompactBertForSequenceClassification):
    rows = 0

    def forward(self, input_ids, *given, **more):
        self.rows += len(input_ids)
        return super().forward(input_ids, *given, **more)


def counted() -> Counted:
    made = Counted(model().config)
    made.load_state_dict(model().state_dict())
    return made


def test_each_row_is_asked_once_and_answered_in_its_place():
    teacher = counted().train()
    remembered = TeacherLogits(teacher, 10)
    with torch.no_grad():
        expected = {
            row: model().eval()(**{k: v for k, v in batch(row).items() if k != "index"}).logits[0] for row in range(6)
        }
    for rows in ((3, 1), (1, 0, 5), (5, 3)):
        answers = remembered(batch(*rows))
        torch.testing.assert_close(answers, torch.stack([expected[row] for row in rows]), rtol=0, atol=1e-6)
    assert teacher.rows == 4


def test_the_answers_survive_in_a_training_state():
    remembered, teacher = TeacherLogits(counted(), 10), counted()
    first = remembered(batch(3, 1))
    restored = TeacherLogits(teacher, 10)
    restored.load_state_dict(remembered.state_dict())
    assert torch.equal(restored(batch(1, 3)), first.flip(0))
    assert teacher.rows == 0


def test_a_file_serves_a_later_run_with_the_same_key_and_no_other(tmp_path):
    path = tmp_path / "deep" / "logits.safetensors"
    first = TeacherLogits(counted(), 10, path, "a")
    first(batch(3, 1))
    first.keep()
    assert [file.name for file in path.parent.iterdir()] == ["logits.safetensors"]
    for key, rows, asked in (("a", 10, 0), ("b", 10, 2), ("a", 11, 2)):
        teacher = counted()
        TeacherLogits(teacher, rows, path, key)(batch(3, 1))
        assert teacher.rows == asked, (key, rows)


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_broken_or_foreign_file_is_not_used(tmp_path, content):
    path = tmp_path / "logits.safetensors"
    if content is None:
        save_file(
            {"logits": torch.zeros(10, 2), "known": torch.ones(10, dtype=torch.bool)}, path, metadata={"key": "a"}
        )
    else:
        path.write_bytes(content)
    teacher = counted()
    TeacherLogits(teacher, 10, path, "a")(batch(3))
    assert teacher.rows == 1


def test_the_digest_follows_every_weight_and_what_the_config_does_with_them():
    first, same, other = model(), model(), model()
    with torch.no_grad():
        other.classifier.bias[1] += 1e-6
    assert model_digest(first) == model_digest(same) != model_digest(other)
    same.config.pooler_relu = not same.config.pooler_relu
    assert model_digest(first) != model_digest(same)


def test_a_bfloat16_teacher_is_a_copy_and_its_change_of_the_loss_is_the_measured_one():
    teacher, student = model(), model(1, num_hidden_layers=1).train()
    state = torch.get_rng_state()
    losses = lambda asked: intermediate(student, asked, [0, 2], None)  # noqa: E731
    half, change = in_bfloat16(teacher, student, losses, [batch(1, 2, 3), batch(4, 5)])
    assert half.dtype == torch.bfloat16
    assert teacher.dtype == torch.float32
    assert student.training
    assert torch.equal(torch.get_rng_state(), state)
    assert 0 < change < 0.05
