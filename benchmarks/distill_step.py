"""One step of TinyBERT's distillation, BERT-base to TinyBERT-4, against the way of its first code:

    python -m benchmarks.distill_step [--data GLUE_FOLDER --vocabulary VOCAB] [--only NAME ...]

Both do a whole step: forward passes of both models, losses, backward, optimizer (learning rate 0, so that every round
finds the same weights). The original's way pads to 128 tokens, builds all maps and writes gelu, LayerNorm and optimizer
out in elementary operations, through torch's default matrix product ("MKL") or through oneDNN. Text lengths are those
of SST-2's training file, read from GLUE_FOLDER or from the histogram beside this file. Every contestant's loss and one
gradient are compared with the original's way in float64; over real tokens only where the lengths are bucketed. Dropout
is 0. Each part runs in a process of its own: memory that an earlier part has freed is quickly had again, which would
spare the original's way most of the cost of its maps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmarks import augmentation, mlm_labelled_positions, score_mse
from benchmarks.harness import Goal, Timing, as_float64, measure, publish, ratios
from benchmarks.tinybert_original import Original, intermediate_loss, prediction_loss
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification
from compresskit.training import distill
from compresskit.training.optim import BertAdam, adamw, decay_groups

MAPPING = [0, 3, 6, 9, 12]
NO_DROPOUT: dict[str, Any] = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pooler_relu": True,
    "num_labels": 2,
}
BERT_BASE = CompactBertConfig(**NO_DROPOUT)
TINYBERT_4 = CompactBertConfig(hidden_size=312, num_hidden_layers=4, intermediate_size=1200, **NO_DROPOUT)
GRADIENT = "encoder.layer.0.intermediate.dense.weight"  # of the student, compared in every round's check
BATCH, PAD = 32, 128
Batch = dict[str, Tensor]
Step = Callable[..., list[Tensor]]

GOALS = {
    "same loss, pad 128": Goal(floor=2.1, aim=2.4),
    "buckets, fp32": Goal(floor=8.0, aim=12.0),
    "buckets, bf16 teacher": Goal(floor=13.0, aim=20.0),
    "prediction, cached logits, buckets": Goal(floor=10.0, aim=13.0),
    "memory at 8 x 512, share of the original's": Goal(at_most=0.55, aim=0.45),
    "transformers eager, fused ops, 8 x 128": Goal(at_most=1.1, aim=1.0),
    **score_mse.GOALS,
    **mlm_labelled_positions.GOALS,
    **augmentation.GOALS,
}


# ---- models and batches


def models() -> tuple[CompactBertForSequenceClassification, CompactBertForSequenceClassification, nn.Linear]:
    """Teacher, student and projection with random weights."""
    torch.manual_seed(0)
    teacher, student = (CompactBertForSequenceClassification(config) for config in (BERT_BASE, TINYBERT_4))
    return teacher, student, nn.Linear(312, 768)


def original(model: CompactBertForSequenceClassification, fused: bool = False) -> Original:
    """The same encoder the original's way."""
    made = Original(model.config, fused)
    made.load_state_dict(model.bert.state_dict())
    return made


def batch_of(lengths: Sequence[int], pad_to: int, seed: int = 1) -> Batch:
    """Random tokens of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(pad_to) < torch.as_tensor(lengths)[:, None]).long()
    ids = torch.randint(1000, 30000, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def sst2_lengths(data: Path | None, vocabulary: Path | None) -> list[int]:
    """Tokens of every training row, at most 64."""
    if data and vocabulary:
        from compresskit.data import glue
        from compresskit.data.vocabulary import load_tokenizer

        rows = glue.encode(glue.read("sst2", data, "train"), load_tokenizer(vocabulary), 64)
        return [len(ids) for ids in rows["input_ids"]]
    histogram = json.loads((Path(__file__).parent / "sst2_lengths.json").read_text())
    return [int(length) for length, count in histogram.items() for _ in range(count)]


def bucketed(lengths: Sequence[int], batches: int) -> list[Batch]:
    """Batches as training sees them: evenly spaced ones of a pool of 50 that is sorted by length."""
    pool = np.sort(np.random.default_rng(0).choice(lengths, 50 * BATCH, replace=False)).reshape(50, BATCH)
    chosen = pool[[round((i + 0.5) * 50 / batches - 0.5) for i in range(batches)]]
    return [batch_of(rows, int(rows.max()), seed=n) for n, rows in enumerate(chosen)]


# ---- steps


def at(precision: str, step: Step) -> Step:
    """The step with torch's float32 products at this precision."""

    def run(*given: Any) -> list[Tensor]:
        torch.set_float32_matmul_precision(precision)
        return step(*given)

    return run


def optimized(parts: Sequence[nn.Module], optimizer: Any, loss_of: Callable[[Batch], Tensor], clip: bool) -> Step:
    """A whole optimizer step; gives the loss and one gradient."""
    parameters = [p for part in parts for p in part.parameters()]
    watched = dict(parts[0].named_parameters())
    name = next(name for name in watched if name.endswith(GRADIENT))

    def step(*batches: Batch) -> list[Tensor]:
        outputs = []
        for batch in batches:
            loss = loss_of(batch)
            loss.backward()
            gradient = watched[name].grad
            assert gradient is not None
            outputs += [loss.detach(), gradient.clone()]
            if clip:
                nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return outputs

    return step


def originals_intermediate(teacher: Original, student: Original, project: nn.Linear) -> Step:
    """The first step the original's way."""
    optimizer = BertAdam(decay_groups([student, project], 0.01), lr=0.0)
    return optimized(
        [student, project], optimizer, lambda batch: intermediate_loss(student, teacher, project, MAPPING, batch), False
    )


def ours_intermediate(teacher: Any, student: Any, project: nn.Linear, padded: bool) -> Step:
    """The first step as the stage `distill` does it."""
    losses = distill.intermediate(student, teacher, MAPPING, project, padded)
    student.train()
    return optimized(
        [student, project], adamw([student, project], 0.0), lambda batch: losses(batch, 1)["loss"], clip=True
    )


def over_real_tokens(teacher: Original, student: Original, project: nn.Linear) -> Step:
    """The first step by maps in float64, each row alone and unpadded: the definition of the loss over real tokens."""

    def loss_of(batch: Batch) -> Tensor:
        attention, hidden = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        lengths = batch["attention_mask"].sum(1)
        for row, length in enumerate(lengths):
            inputs = [batch[n][row : row + 1, :length] for n in ("input_ids", "attention_mask", "token_type_ids")]
            with torch.no_grad():
                scores, states, _ = teacher(*inputs)
            own_scores, own_states, _ = student(*inputs)
            for own, target in zip(own_scores, MAPPING[1:], strict=True):
                attention = attention + (own - scores[target - 1]).square().sum()
            for own, target in zip(own_states, MAPPING, strict=True):
                hidden = hidden + (project(own) - states[target]).square().sum()
        return attention / (12 * lengths.square().sum()) + hidden / (768 * lengths.sum())

    return optimized([student, project], BertAdam(student.parameters(), lr=0.0), loss_of, False)


# ---- measures


def same_loss(timings: list[Timing], measures: dict[str, float]) -> None:
    """Pad 128, the loss over all elements: only the way of computing differs."""
    teacher, student, project = models()
    parts = original(teacher), original(student), project
    label = "8 x 128"
    found = measure(
        {
            "original, MKL": at("highest", originals_intermediate(*parts)),
            "original, oneDNN": at("medium", originals_intermediate(*parts)),
            "ours": at("medium", ours_intermediate(teacher, student, project, padded=True)),
        },
        {label: [batch_of([128, 60, 40, 24, 20, 16, 10, 7], PAD)]},
        baseline="original, MKL",
        reference=originals_intermediate(*(as_float64(part) for part in parts)),
        max_error=(1e-5, 1e-4),
    )
    timings += found
    measures["same loss, pad 128"] = ratios(found, "original, MKL")[f"ours {label}"]
    measures["same loss, pad 128, against oneDNN"] = ratios(found, "original, oneDNN")[f"ours {label}"]


def is_the_peer_fair(timings: list[Timing], measures: dict[str, float]) -> None:
    """With torch's own gelu and LayerNorm the peer's encoder is no slower than transformers' eager one."""
    torch.manual_seed(0)
    fields = {n: getattr(BERT_BASE, n) for n in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
    eager: dict[str, Any] = {**fields, "attn_implementation": "eager"}
    theirs = BertModel(BertConfig(**eager)).eval()
    peer = Original(theirs.config, fused=True)
    peer.load_state_dict(theirs.state_dict())
    batch = batch_of([PAD] * 8, PAD)
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")]
    found = measure(
        {
            "original, fused ops": at("highest", torch.no_grad()(lambda *given: [peer(*given)[1][-1]])),
            "transformers eager": at("highest", torch.no_grad()(lambda *given: [theirs(*given).last_hidden_state])),
        },
        {"8 x 128": inputs},
        baseline="original, fused ops",
        max_error=1e-4,
        reference=lambda *given: [as_float64(peer)(*given)[1][-1]],
    )
    timings += found
    measures["transformers eager, fused ops, 8 x 128"] = ratios(found, "original, fused ops")[
        "transformers eager 8 x 128"
    ]


def judged(step: Step, given: Sequence[Batch], expected: Sequence[Tensor]) -> Step:
    """The step on `given`, whatever it is called with; its outputs as 1 plus their relative errors, for losses and for
    gradients. So contestants with batches of their own can race.
    """

    def run(*_: Any) -> list[Tensor]:
        errors = [
            1 + (found.double() - right).norm() / right.norm()
            for found, right in zip(step(*given), (tensor.double() for tensor in expected), strict=True)
        ]
        return [torch.stack(errors[0::2]), torch.stack(errors[1::2])]

    return run


def race(
    label: str, contestants: dict[str, tuple[Step, Sequence[Batch], Sequence[Tensor]]], baseline: str
) -> dict[str, Timing]:
    """Contestants (step, batches, right outputs) by turns; milliseconds per batch. Losses are held to 0.1 %."""
    with_batches = {name: judged(*entry) for name, entry in contestants.items()}
    ones = {name: len(given) for name, (_, given, _) in contestants.items()}
    longest = max(ones.values())

    def padded(step: Step, count: int) -> Step:  # every contestant's answer has the same shape: missing batches are 1
        return lambda *_: [torch.cat([part, part.new_ones(longest - count)]) for part in step()]

    found = measure(
        {name: padded(step, ones[name]) for name, step in with_batches.items()},
        {label: []},
        baseline=baseline,
        reference=lambda: [torch.ones(longest, dtype=torch.float64)] * 2,
        max_error=(1e-3, 2e-2),
    )
    return {timing.contestant: timing for timing in found}


def per_batch(timings: dict[str, Timing], batches: dict[str, int], ours: str, peer: str) -> float:
    """How many times faster `ours` is than `peer`, batch by batch."""
    mine, theirs = (timings[name].median_ms / batches[name] for name in (ours, peer))
    return theirs / mine


def buckets(lengths: Sequence[int], timings: list[Timing], measures: dict[str, float]) -> None:
    """Real lengths: the original pads every batch to 128, ours are sorted by length."""
    teacher, student, project = models()
    peers = original(teacher), original(student), project
    exact = [as_float64(part) for part in peers]
    half = type(teacher)(teacher.config).eval()
    half.load_state_dict(teacher.state_dict())
    half.to(torch.bfloat16)
    small = bucketed(lengths, 4)
    padded = [batch_of(np.random.default_rng(1).choice(lengths, BATCH).tolist(), PAD)]
    right, right_padded = over_real_tokens(*exact)(*small), originals_intermediate(*exact)(*padded)
    contestants: dict[str, tuple[Step, Sequence[Batch], Sequence[Tensor]]] = {
        "original, MKL": (at("highest", originals_intermediate(*peers)), padded, right_padded),
        "original, oneDNN": (at("medium", originals_intermediate(*peers)), padded, right_padded),
        "fp32": (at("medium", ours_intermediate(teacher, student, project, padded=False)), small, right),
        "bf16 teacher": (at("medium", ours_intermediate(half, student, project, padded=False)), small, right),
    }
    found = race("intermediate, SST-2 lengths, 32 rows", contestants, "original, MKL")
    counts = {name: len(given) for name, (_, given, _) in contestants.items()}
    timings += found.values()
    for mine in ("fp32", "bf16 teacher"):
        measures[f"buckets, {mine}"] = per_batch(found, counts, mine, "original, MKL")
        measures[f"buckets, {mine}, against oneDNN"] = per_batch(found, counts, mine, "original, oneDNN")


def prediction(lengths: Sequence[int], timings: list[Timing], measures: dict[str, float]) -> None:
    """The second step: the teacher's answers read from memory, rows sorted by length."""
    teacher, student, _ = models()
    peers, heads = (original(teacher), original(student)), (student.classifier, teacher.classifier)
    small = bucketed(lengths, 4)
    padded = [batch_of(np.random.default_rng(1).choice(lengths, BATCH).tolist(), PAD)]
    with torch.no_grad():
        known = [{**batch, "teacher_logits": teacher.eval()(**batch).logits} for batch in small]

    def originals(big: Original, little: Original, classifiers: Sequence[nn.Linear]) -> Step:
        optimizer = BertAdam(decay_groups([little, classifiers[0]], 0.01), lr=0.0)
        return optimized(
            [little, classifiers[0]], optimizer, lambda batch: prediction_loss(little, big, classifiers, batch), False
        )

    losses = distill.prediction(student, teacher, teacher_logits=lambda batch: batch["teacher_logits"])
    student.train()
    ours = optimized([student], adamw([student], 0.0), lambda batch: losses(batch, 1)["loss"], clip=True)
    exact = originals(as_float64(peers[0]), as_float64(peers[1]), [as_float64(head) for head in heads])
    contestants: dict[str, tuple[Step, Sequence[Batch], Sequence[Tensor]]] = {
        "original, MKL": (at("highest", originals(peers[0], peers[1], heads)), padded, exact(*padded)),
        "original, oneDNN": (at("medium", originals(peers[0], peers[1], heads)), padded, exact(*padded)),
        "cached logits": (at("medium", ours), known, exact(*small)),
    }
    found = race("prediction, SST-2 lengths, 32 rows", contestants, "original, MKL")
    counts = {name: len(given) for name, (_, given, _) in contestants.items()}
    timings += found.values()
    measures["prediction, cached logits, buckets"] = per_batch(found, counts, "cached logits", "original, MKL")
    measures["prediction, against oneDNN"] = per_batch(found, counts, "cached logits", "original, oneDNN")


def memory(measures: dict[str, float]) -> None:
    """Peak resident memory of a process that does one step of 8 x 512 tokens."""
    peaks = {}
    for who in ("original", "ours"):
        command = [sys.executable, "-m", "benchmarks.distill_step", "--peak-of", who]
        peaks[who] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    measures["memory at 8 x 512, share of the original's"] = peaks["ours"] / peaks["original"]


def peak_bytes(who: str) -> int:
    """Peak resident memory of this process after two steps, from /proc: `ru_maxrss` would count the parent's too."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    teacher, student, project = models()
    if who == "ours":
        step = ours_intermediate(teacher, student, project, padded=True)
    else:
        step = originals_intermediate(original(teacher), original(student), project)
        del teacher, student
    for _ in range(2):
        step(batch_of([512] * 8, 512))
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024


def main() -> None:
    """Measure everything, or what --only names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="parts: " + ", ".join(PARTS))
    parser.add_argument("--part", choices=PARTS, help="this one, here; prints what was measured")
    parser.add_argument("--peak-of", choices=("original", "ours"))
    given = parser.parse_args()
    if given.peak_of:
        print(peak_bytes(given.peak_of))
        return
    choice = choose_float32_matmul()
    lengths = sst2_lengths(given.data, given.vocabulary)
    timings: list[Timing] = []
    measures: dict[str, float] = {}
    if given.part:
        PARTS[given.part](lengths, timings, measures)
        print(json.dumps({"timings": [asdict(timing) for timing in timings], "measures": measures}))
        return
    for name in given.only or PARTS:
        print(f"{name} …", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.distill_step", *sys.argv[1:], "--part", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        timings += [Timing(**timing) for timing in found["timings"]]
        measures |= found["measures"]
    goals = {name: goal for name, goal in GOALS.items() if name in measures}
    notes = {"matmul": asdict(choice), "mean_length": float(np.mean(lengths)), "parts": given.only or list(PARTS)}
    publish("distill_step", timings, measures, goals, notes=notes)


def elsewhere(module: Any) -> Callable[[Sequence[int], list[Timing], dict[str, float]], None]:
    """The measures of another benchmark of the step's parts."""

    def run(lengths: Sequence[int], timings: list[Timing], measures: dict[str, float]) -> None:
        found, ratio = module.race()
        timings += found
        measures |= ratio

    return run


PARTS: dict[str, Callable[[Sequence[int], list[Timing], dict[str, float]], None]] = {
    "same-loss": lambda lengths, timings, measures: same_loss(timings, measures),
    "peer": lambda lengths, timings, measures: is_the_peer_fair(timings, measures),
    "buckets": buckets,
    "score-mse": elsewhere(score_mse),
    "memory": lambda lengths, timings, measures: memory(measures),
    "prediction": prediction,
    "masked-lm": elsewhere(mlm_labelled_positions),
    "augmentation": elsewhere(augmentation),
}

if __name__ == "__main__":
    main()
