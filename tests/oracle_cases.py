"""Recorded numbers of the original programs, as cases that a test takes whole.

A case is <folder>/<system>/<case>.json, with <case>.npz beside it where it has arrays. <folder> is COMPRESSKIT_ORACLES,
or tests/oracles; a case dropped in there is found by its name. A test asks for a kind and gets every case of it:

    @pytest.mark.oracle
    @pytest.mark.parametrize("case", oracle("tinybert", "forward"), ids=str)
    def test_the_classifier_gives_the_numbers_of_the_original(case):
        model = ...(case.config("teacher"), case.arrays("teacher/"))
        case.check("out/teacher/logits", model(case["in/input_ids"]).logits)

One test takes a whole case: what was recorded as a result and not compared fails it (oracle_plugin.py does the asking).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# The kinds that have a test. A kind is how the names of its cases begin; an issue adds its own until a system is whole.
CLAIMED = {
    "tinybert": (
        "forward",
        "pretraining_forward",
        "bertadam",
        "general_distill",
        "train_",
        "pregenerate",
        "tokenizer",
        "glue_processors",
        "glue_metrics",
        "augmentation",
    ),
    "autotinybert": (
        "superbert_mlm",
        "superbert_kd",
        "superbert_classifier",
        "teacher_bert",
        "extract_mlm",
        "extract_kd",
        "latency_predictor",
        "searcher",
        "arch_perfs",
        "generate_data",
        "bertadam",
        "adaptive_warmup",
        "mask_counts",
        "arch_sampling",
    ),
    "sparsebert": ("schedule", "prune_train", "sparsity_report"),
    "dynamic_tinybert": (
        "qa_forward",
        "cls_forward",
        "tiny_qa_student_forward",
        "distill_",
        "train_lengthdrop",
        "sampling",
        "macs",
        "evolution",
        "search_runs",
        "squad_v",
    ),
    "efficientbert": (
        "genotype",
        "invalid_arch",
        "operators",
        "param_counts",
        "embedding_trigram",
        "autobert_single",
        "autotinybert_single",
        "candidates_share_weights",
        "supernet_single",
        "slice_supernet",
        "checkpoint_key_map",
        "distil_",
        "multitask",
        "schedule",
        "glue_metrics",
        "tokenize_glue",
        "squad_windows",
    ),
}

# Everything else in a case is a result. Arrays by the first part of their name: inputs, batches, initial weights, and
# gradients or updates that were handed in.
GIVEN_ARRAYS = re.compile(
    r"in|batch_\d+|update_\d+|g[wb]_\d+|init|[wb]_init|student_init"
    r"|start_logits|end_logits"  # of made answers
    r"|(teacher_|super_)?sd|teacher|student|masked_lm|tiny_pretraining|model"
)
# JSON by the name of the field, with all that is below it: what ran, on which network, within which tolerance.
GIVEN_FIELDS = re.compile(
    r"case|system|ran|what|note|seed|(.+_)?config|arch|num_labels|fit_size|tolerance(_.+)?|arrays"
    r"|argv|hyper|student_saved"  # of a training run; student_saved says in words which weights were kept
    r"|lr|warmup|t_total|schedule|b1|b2|eps|weight_decay|max_grad_norm"  # of an optimizer
)
# And those that are inputs in the cases of one kind; in another the same name may be a result.
GIVEN_FIELDS_OF_KIND = {
    "pregenerate": re.compile(r"corpus|args|vocab"),
    "generate_data": re.compile(r"corpus|max_seq_len|vocab"),
    "tokenizer": re.compile(r"vocab|text"),
    "glue_processors": re.compile(r"files|vocab|max_seq_length"),
    "glue_metrics": re.compile(r"task|preds|labels|batch"),
    "tokenize_glue": re.compile(r"vocab|task|text_[ab]|max_seq_len"),
    "squad_windows": re.compile(r"vocab|context|qas|split|max_seq_len|max_query_len|trunc_stride"),
    "distil_": re.compile(r"hidden_ratio|pred_ratio|student|task|temperature"),
    "augmentation": re.compile(r"vocab|M|N|p|glove_lines|glove_vocab_size|sentence|train_tsv|python_random_seed"),
    "schedule": re.compile(r"params|log_fields|total|type"),
    "prune_train": re.compile(r"task|prune_args|per_step_fields"),
    "latency_predictor": re.compile(r"split_sizes"),  # of the original's training; ours holds out by folds
    "searcher": re.compile(r"args|space|model|base_latency|latency_constraint"),
    "arch_perfs": re.compile(r"file"),
    "bertadam": re.compile(r"steps"),
    "qa_forward": re.compile(r"length_config|layer_config"),
    "cls_forward": re.compile(r"length_config|layer_config"),
    "distill_": re.compile(r"args|returned"),  # "returned": steps, and a mean that the original gets wrong
    "train_lengthdrop": re.compile(r"args|returned"),
    "sampling": re.compile(r"fn|T|L|length_drop_.+|layer_dropout.*|layer_config"),
    "macs": re.compile(r"layers|hidden|heads|intermediate|T|task|length_config|formula"),
    "adaptive_warmup": re.compile(r"total_steps|warmup_steps|warmup_proportion"),
    "squad_v": re.compile(
        r"vocab|dataset|max_seq_length|doc_stride|max_query_length|do_lower_case"
        r"|n_best_size|max_answer_length|null_score_diff_threshold"
    ),
    "mask_counts": re.compile(r"len|prob|max_predictions"),
    "evolution": re.compile(r"T|L|mutation_prob|population_size|population_in"),
    "search_runs": re.compile(r"experiment_definition"),  # what a remote service was asked; ours are local
    "genotype": re.compile(r"expr|stage"),
    "invalid_arch": re.compile(r"expr|sel_min"),
    "param_counts": re.compile(r"name|model_name|hidden|ffn_hidden|layers"),
    "autobert_single": re.compile(r"f32_vs_f64_max_abs_diff_last"),  # of the original with itself
    "autotinybert_single": re.compile(r"f32_vs_f64_max_abs_diff_last"),
    "candidates_share_weights": re.compile(r"archs"),
}

# The forms of a written tolerance: "exact", "abs 1e-5", "1e-6", "abs 1e-5 float32; masked scores near -1e4: rel 1e-6".
WRITTEN_TOLERANCE = re.compile(r"exact|(?:abs )?(\S+?)(?: float32)?(?:; masked scores near -1e4: rel (\S+))?")
MASKED = 5e3  # |score| from here on carries the mask's -1e4


@dataclass(frozen=True)
class Tolerance:
    """Passes where |got - recorded| <= atol + rtol |recorded|, and never at NaN.

    masked_rtol: the relative bound that replaces both at attention scores that carry the mask's -1e4, where
    neighbouring float32 numbers already lie 1e-3 apart.
    """

    atol: float = 0.0
    rtol: float = 0.0
    masked_rtol: float | None = None

    def allowed(self, recorded: Tensor) -> Tensor:
        """The largest difference that passes, for each number of `recorded`."""
        allowed = self.atol + self.rtol * recorded.abs()
        if self.masked_rtol is None:
            return allowed
        return torch.where(recorded.abs() > MASKED, self.masked_rtol * recorded.abs(), allowed)


EXACT = Tolerance()
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def folder() -> Path:
    """Where the cases lie: COMPRESSKIT_ORACLES, or tests/oracles."""
    return Path(os.environ.get("COMPRESSKIT_ORACLES") or Path(__file__).parent / "oracles")


def kind_of(system: str, name: str) -> str | None:
    """The claimed kind a case belongs to by its name, the longest where several fit; None where nobody claimed it."""
    return max((kind for kind in CLAIMED.get(system, ()) if name.startswith(kind)), key=len, default=None)


def oracle(system: str, kind: str) -> list[Case | MissingCase]:
    """Every case of a kind, ordered by name; where there is none, a stand-in that fails the test it is given to."""
    if kind not in CLAIMED.get(system, ()):
        raise ValueError(f"{system}/{kind} is tested but not in CLAIMED of {__name__}; add it there")
    cases = [Case(path) for path in sorted((folder() / system).glob("*.json")) if kind_of(system, path.stem) == kind]
    return list(cases) or [MissingCase(system, kind)]


def claimed_cases() -> set[str]:
    """system/case of everything in the folder whose kind is claimed; a claimed kind without a case is named itself."""
    return {str(case) for system, kinds in CLAIMED.items() for kind in kinds for case in oracle(system, kind)}


def unclaimed_cases() -> list[str]:
    """system/case of everything in the folder that waits for the issue which claims its kind."""
    paths = sorted(folder().glob("*/*.json"))
    return [f"{path.parent.name}/{path.stem}" for path in paths if not kind_of(path.parent.name, path.stem)]


@dataclass(frozen=True)
class MissingCase:
    """Stands for a claimed kind of which the folder has no case."""

    system: str
    kind: str

    def __str__(self) -> str:
        return f"{self.system}/{self.kind}"

    @property
    def problem(self) -> str:
        return (
            f"no {self.kind}*.json in {folder() / self.system}; COMPRESSKIT_ORACLES must name a folder with its cases"
        )


class Case:
    """One recorded run: configs, weights and inputs to start from, and results to be compared, every one of them."""

    def __init__(self, path: Path):
        self.path, self.system, self.name = path, path.parent.name, path.stem
        self.start()

    def __str__(self) -> str:
        return f"{self.system}/{self.name}"

    def start(self) -> None:
        """Forget what was compared: a test that takes the case begins."""
        self.compared_arrays: set[str] = set()
        self.compared_values: set[tuple] = set()

    @cached_property
    def record(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def _arrays(self) -> dict[str, Tensor]:
        declared = self.record.get("arrays", {})
        stored = {}
        if declared or self.path.with_suffix(".npz").exists():
            with np.load(self.path.with_suffix(".npz"), allow_pickle=False) as archive:
                stored = {name: archive[name] for name in archive.files}
        found = {name: {"shape": list(array.shape), "dtype": str(array.dtype)} for name, array in stored.items()}
        if found != declared:
            wrong = sorted(n for n in found.keys() | declared.keys() if found.get(n) != declared.get(n))
            raise ValueError(f"{self.path}: its .npz differs from the field 'arrays' in {', '.join(wrong)}")
        return {name: torch.from_numpy(array) for name, array in stored.items()}

    # What a test starts from

    def config(self, owner: str | None = None) -> dict[str, Any]:
        """The field `config`, or `<owner>_config`."""
        return self.value(f"{owner}_config" if owner else "config")

    def value(self, *path: str | int) -> Any:
        """The JSON value at a path, such as value("archs", 0, "arch")."""
        value = self.record
        for step in path:
            value = value[step]  # type: ignore[index]
        return deepcopy(value)

    def __getitem__(self, name: str) -> Tensor:
        return self._arrays[name].clone()

    def arrays(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose names begin with `prefix`, by the rest of their names."""
        found = {n.removeprefix(prefix): array.clone() for n, array in self._arrays.items() if n.startswith(prefix)}
        if not found:
            raise KeyError(f"{self.path}: no array begins with {prefix!r}")
        return found

    def names(self, pattern: str) -> list[re.Match[str]]:
        """The names of arrays that match a regular expression whole, as matches with their groups."""
        return [match for name in self._arrays if (match := re.fullmatch(pattern, name))]

    def tolerance(self, field: str = "tolerance") -> Tolerance:
        """The case's own tolerance, written as {rtol, atol} or in one of the forms of WRITTEN_TOLERANCE."""
        written = self.value(field)
        if isinstance(written, dict):
            return Tolerance(**written)
        read = WRITTEN_TOLERANCE.fullmatch(written)
        try:
            bounds = [None if bound is None else float(bound) for bound in read.groups()]  # type: ignore[union-attr]
        except (AttributeError, ValueError):
            raise ValueError(
                f"{self.path}: the {field} {written!r} does not say one bound for everything; hand `tolerance` to check"
            ) from None
        return Tolerance(atol=bounds[0] or 0.0, masked_rtol=bounds[1])

    # Comparing

    def check(self, name: str, got: Tensor, *, tolerance: Tolerance | None = None, equal_nan: bool = False) -> None:
        """Compare a recorded array with ours, within the case's own tolerance if none is given; integers exactly.

        equal_nan: a recorded NaN wants a NaN, where one is the right answer; else NaN equals nothing.
        """
        if is_given_array(name):
            raise ValueError(f"{self}: {name} was handed in; there is nothing to compare")
        recorded, got = self._arrays[name], torch.as_tensor(got).detach()
        if got.shape != recorded.shape:
            raise AssertionError(f"{self}: {name} has shape {tuple(got.shape)}, recorded {tuple(recorded.shape)}")
        if got.is_floating_point() != recorded.is_floating_point():
            raise AssertionError(f"{self}: {name} is of {got.dtype}, recorded {recorded.dtype}")
        if recorded.is_floating_point():
            same = got.isnan() & recorded.isnan() if equal_nan else torch.zeros_like(recorded, dtype=torch.bool)
            ours, theirs = (tensor.double().masked_fill(same, 0) for tensor in (got, recorded))
            compare(f"{self}: {name}", ours, theirs, tolerance or self.tolerance())
        elif not torch.equal(got.to(recorded.dtype), recorded):
            raise AssertionError(f"{self}: {name} differs in {int((got != recorded).sum())} of {got.numel()} entries")
        self.compared_arrays.add(name)

    def check_value(self, *path: str | int, got: Any, tolerance: Tolerance | None = None) -> None:
        """Compare the JSON value at a path, and all below it: floats within the tolerance, everything else exactly."""
        if self.is_given_value(path):
            raise ValueError(f"{self}: {spelled(path)} was handed in; there is nothing to compare")
        recorded = self.value(*path)
        recorded_leaves, got_leaves = dict(leaves(recorded)), dict(leaves(got))
        if recorded_leaves.keys() != got_leaves.keys():
            raise AssertionError(f"{self}: {spelled(path)} is {got!r}, recorded {recorded!r}")
        for below, expected in recorded_leaves.items():
            name, ours = f"{self}: {spelled((*path, *below))}", got_leaves[below]
            if isinstance(expected, float) and isinstance(ours, (int, float)) and not isinstance(ours, bool):
                pair = torch.tensor([ours, expected], dtype=torch.float64)
                compare(name, pair[0], pair[1], tolerance or self.tolerance())
            elif type(ours) is not type(expected) or ours != expected:
                raise AssertionError(f"{name} is {ours!r}, recorded {expected!r}")
        self.compared_values.update((*path, *below) for below in recorded_leaves)

    def check_text(self, *path: str | int, got: str, tolerance: Tolerance | None = None) -> None:
        """Compare a recorded text: its numbers within the tolerance, all between them exactly."""
        recorded = self.value(*path)
        (words, numbers), (our_words, ours) = ((NUMBER.split(t), NUMBER.findall(t)) for t in (recorded, got))
        if our_words != words:
            raise AssertionError(f"{self}: {spelled(path)} reads {got!r}, recorded {recorded!r}")
        for n, (our, right) in enumerate(zip(ours, numbers, strict=True), 1):
            pair = torch.tensor([float(our), float(right)], dtype=torch.float64)
            compare(f"{self}: number {n} of {spelled(path)}", pair[0], pair[1], tolerance or self.tolerance())
        self.compared_values.add(path)

    # Whether all was compared

    def is_given_value(self, path: tuple) -> bool:
        """Whether the JSON value at a path was handed to the original program, rather than computed by it."""
        of_kind = GIVEN_FIELDS_OF_KIND.get(kind_of(self.system, self.name) or "")
        return any(p.fullmatch(str(step)) for p in (GIVEN_FIELDS, of_kind) if p for step in path)

    def left_over(self) -> list[str]:
        """The recorded results, arrays and JSON values, that no check has compared since start(); a case has some."""
        arrays = [n for n in self._arrays if not is_given_array(n) and n not in self.compared_arrays]
        values = [path for path, _ in leaves(self.record) if not self.is_given_value(path)]
        left = arrays + [spelled(path) for path in values if path not in self.compared_values]
        if not left and not self.compared_arrays and not self.compared_values:
            return ["any result at all"]
        return left


def compare(name: str, got: Tensor, recorded: Tensor, tolerance: Tolerance) -> None:
    """AssertionError with the worst entry where float64 `got` is further from `recorded` than the tolerance allows."""
    difference, allowed = (got - recorded).abs(), tolerance.allowed(recorded)
    wrong = ~(difference <= allowed)  # NaN compares false, so it is wrong
    if wrong.any():
        excess = torch.where(difference.isnan(), math.inf, difference - allowed)
        worst = int(excess.argmax())
        ours, theirs, bound = (float(tensor.flatten()[worst]) for tensor in (got, recorded, allowed))
        raise AssertionError(
            f"{name}: {int(wrong.sum())} of {wrong.numel()} numbers differ; the worst, entry {worst}, is {ours:.9g}, "
            f"recorded {theirs:.9g}, difference {abs(ours - theirs):.3g}, allowed {bound:.3g}"
        )


def is_given_array(name: str) -> bool:
    """Whether an array was handed to the original program, rather than computed by it."""
    return bool(GIVEN_ARRAYS.fullmatch(re.split(r"[./]", name)[0]))


def leaves(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(path, value) of everything in a JSON value that has nothing below it; an empty list or object has nothing."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    empty = True
    for step, child in below:
        empty = False
        yield from leaves(child, (*path, step))
    if empty:
        yield path, type(value)() if isinstance(value, (dict, list)) else value


def spelled(path: tuple) -> str:
    return "/".join(map(str, path))
