"""The recipes in params/: every pipeline is whole, those of a paper have its numbers, and each runs at two steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from transformers import BertTokenizer

from compresskit import running, tracking
from compresskit.data import bundled, glue
from compresskit.data.vocabulary import train_wordpiece
from compresskit.models import (
    CompactBertConfig,
    CompactBertForMaskedLM,
    CompactBertForSequenceClassification,
    CompactBertModel,
    checkpoints,
    elastic,
    presets,
)
from compresskit.models.feed_forward import plain
from compresskit.running.plan import read_plan
from compresskit.stages import lengths_page, study
from compresskit.stages.params import Params, params_class
from compresskit.tracking.store import client

ROOT = Path(__file__).parents[1]
PIPELINES = sorted(path.name for path in (ROOT / "params/pipelines").glob("*.yaml"))
TINYBERT = {"cola": (50, 64), "mnli": (5, 128), "mrpc": (20, 128), "sst2": (10, 64), "stsb": (20, 128), "qqp": (5, 128),
            "qnli": (10, 128), "rte": (20, 128), "squad1": (10, 384)}  # fmt: skip
EFFICIENTBERT = {"cola": 50, **dict.fromkeys(("mnli", "qqp", "qnli", "sst2", "stsb", "mrpc", "rte", "wnli"), 10)}


@pytest.fixture
def project(store) -> Path:
    """A project with the notebooks and params of this one."""
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, store / folder, dirs_exist_ok=True)
    return store


def given(name: str, **values: object) -> list[str]:
    """`--set` changes: a value for every variable that needs one, and those named."""
    variables = yaml.safe_load((ROOT / "params/pipelines" / name).read_text()).get("vars", {})
    needed = {variable: "somewhere" for variable, value in variables.items() if value is None}
    return [f"{variable}={value}" for variable, value in {**needed, **values}.items()]


def steps(name: str, **values: object) -> dict[str, Params]:
    """The parameters of each step, with a stand-in for what an earlier step returns."""
    plan = read_plan(f"params/pipelines/{name}", given(name, **values))
    results = {step.id: {key: f"{step.id}'s {key}" for key in step.params_class.results} for step in plan.steps}
    return {step.id: step.params(results) for step in plan.steps}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_dry_run_prints_every_step_of_a_pipeline_and_runs_none(project, name, capsys):
    results = running.run_pipeline(f"params/pipelines/{name}", given(name), dry_run=True)
    out = capsys.readouterr().out
    described = yaml.safe_load((ROOT / "params/pipelines" / name).read_text())
    for number, step in enumerate(described["steps"], start=1):
        assert f"{number:>3} {step['id']} ({step['stage']}): time unknown\n" in out
    assert out.endswith(f"estimated: 0.00 hours, and {len(described['steps'])} steps that have not run yet\n")
    assert not results
    assert len(client().search_runs([e.experiment_id for e in client().search_experiments()])) == 0


@pytest.mark.parametrize("task", TINYBERT)
def test_a_recipe_has_tinyberts_numbers(task):
    params = params_class("distill").load(ROOT / f"params/distill-tinybert-{task}.yaml")
    assert (params.task, params.intermediate_epochs, params.max_seq_len) == (task, *TINYBERT[task])
    assert (params.intermediate_learning_rate, params.prediction_learning_rate) == (5e-5, 3e-5)
    assert (params.prediction_epochs, params.batch_size, params.data_dir) == (3, 32, "")


@pytest.mark.parametrize(
    ("size", "shape"),
    [("tinybert4", (4, 312, 12, 1200)), ("tinybert6", (6, 768, 12, 3072))],
    ids=lambda value: str(value),
)
def test_the_general_students_have_the_released_sizes(size, shape):
    params = params_class("general_distill").load(ROOT / f"params/general_distill-{size}.yaml")
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    assert tuple(getattr(params, name) for name in names) == shape
    assert (params.learning_rate, params.num_train_epochs, params.max_seq_len) == (5e-5, 3, 128)
    assert (params.batch_size, params.warmup_ratio) == (256, 0.1)


def test_sst2_has_the_numbers_of_the_accelerator_variant_and_hands_its_student_on(project):
    found = steps("tinybert-sst2.yaml", max_steps=1000)
    layers, answers, copies = found["layers"], found["answers"], found["copies"]
    for step in (layers, answers):
        assert (step.task, step.max_seq_len, step.batch_size) == ("sst2", 64, 32)
        assert (step.teacher, step.augmented) == ("teacher's model", "copies's augmented")
        assert (step.max_steps, step.seed) == (1000, found["teacher"].seed)
    assert (layers.intermediate_epochs, layers.intermediate_learning_rate, layers.prediction_epochs) == (10, 5e-5, 0)
    assert (answers.prediction_epochs, answers.prediction_learning_rate, answers.intermediate_epochs) == (3, 3e-5, 0)
    assert answers.student == "layers's model"
    assert (copies.masked_lm, copies.embeddings, copies.copies, copies.probability) == ("", "somewhere", 0, 0.4)
    assert (found["models"].max_rows, found["models"].task) == (0, "sst2")  # all dev rows
    assert found["models"].models == {"baseline-teacher": "teacher's model", "tinybert-student": "answers's model"}


def test_the_transfer_trains_layers_only(project):
    (step,) = steps("tinybert-mnli-transfer.yaml").values()
    assert (step.task, step.max_seq_len, step.batch_size, step.augmented) == ("mnli", 64, 32, "")
    assert (step.intermediate_epochs, step.prediction_epochs, step.intermediate_learning_rate) == (10, 0, 5e-5)


def test_the_variants_of_the_ablation_differ_in_what_they_learn_from_and_train_equally_long(project):
    plan = read_plan("params/pipelines/tinybert-ablation.yaml", given("tinybert-ablation.yaml", task="mrpc"))
    assert plan.experiment == "tinybert/mrpc"
    found = steps("tinybert-ablation.yaml", task="mrpc", max_steps=50, max_steps_at_once=100)
    answers, layers, augmented = (found[name].model_dump() for name in ("answers", "layers", "augmented"))
    lengths = {"intermediate_epochs", "prediction_epochs", "max_steps"}
    assert {name for name in layers if answers[name] != layers[name]} == lengths
    assert {name for name in layers if augmented[name] != layers[name]} == {"augmented", "evals_per_epoch"}
    assert (answers["intermediate_epochs"], answers["prediction_epochs"], answers["max_steps"]) == (0, 6, 100)
    assert (layers["intermediate_epochs"], layers["prediction_epochs"], layers["max_steps"]) == (3, 3, 50)
    labels = found["labels"]
    assert (labels.model, labels.num_train_epochs, labels.max_steps) == ("somewhere", 6, 100)
    assert (labels.learning_rate, labels.seed) == (layers["prediction_learning_rate"], layers["seed"])
    assert len(found["models"].models) == 5


@pytest.mark.parametrize(("task", "epochs"), [("mrpc", 12), ("qnli", 5)])
def test_sparsebert_has_its_numbers_and_prunes_the_pretrained_encoder_on_augmented_rows(project, task, epochs):
    recipe = params_class("prune").load(ROOT / f"params/prune-sparsebert-{task}.yaml")
    assert (recipe.task, recipe.num_train_epochs, recipe.model) == (task, epochs, "google-bert/bert-base-uncased")
    assert (recipe.sparsity, recipe.learning_rate, recipe.batch_size, recipe.max_seq_len) == (0.95, 3e-5, 32, 128)
    assert (recipe.threshold, recipe.pattern, recipe.matrices, recipe.frequency) == ("matrix", "unstructured", [], 0)
    found = steps(f"sparsebert-{task}.yaml", given="somebody's", encoder="bert", seed=3)
    assert list(found) == ["teacher", "copies", "before", "pruned", "after", "zeros"]
    same = {"model": "bert", "teacher": "teacher's model", "augmented": "copies's augmented", "seed": 3}
    assert found["pruned"].model_dump() == recipe.model_dump() | same | {
        "data_dir": "somewhere",
        "register_as": f"sparsebert-{task}",
    }
    assert (found["teacher"].model, found["teacher"].task, found["teacher"].learning_rate) == ("bert", task, 2e-5)
    assert (found["copies"].task, found["copies"].copies, found["copies"].embeddings) == (task, 0, "somewhere")
    assert found["before"].models == {"baseline-teacher": "teacher's model", "sparsebert-given": "somebody's"}
    assert found["after"].models == {"baseline-teacher": "teacher's model", "sparsebert-pruned": "pruned's model"}
    for name in ("before", "after"):
        assert (found[name].task, found[name].max_rows, found[name].seed) == (task, 0, 3)  # all dev rows
    assert found["zeros"].model == "pruned's model"


def test_the_variants_of_sparseberts_ablation_have_one_start_and_as_many_updates(project):
    plan = read_plan("params/pipelines/sparsebert-ablation.yaml", given("sparsebert-ablation.yaml", task="mrpc"))
    assert plan.experiment == "sparsebert/mrpc"
    found = steps("sparsebert-ablation.yaml", task="mrpc", student="start", teacher="dense", max_steps=50)
    full = found["to_95"].model_dump()
    assert (full["model"], full["teacher"], full["max_steps"], full["sparsity"]) == ("start", "dense", 50, 0.95)
    models = found.pop("models").models
    unlike = {
        name: {key: value for key, value in step.model_dump().items() if full[key] != value}
        for name, step in found.items()
    }
    ways = {"to": {}, "labels": {"learn_from": "labels"}, "at_once": {"pruning_share": 0}}
    assert unlike == {
        f"{way}_{percent}": {**changed, **({"sparsity": percent / 100} if percent < 95 else {})}
        for way, changed in ways.items()
        for percent in (80, 90, 95)
    }
    assert len(models) == 10
    assert set(study.NEEDED) <= set(plan.vars)
    alone = steps("sparsebert-95.yaml", task="mrpc", student="start", teacher="dense", max_steps=50)
    assert alone["to_95"] == found["to_95"]
    assert alone["models"].models == {name: models[name] for name in ("baseline-teacher", "sparsebert-95")}


@pytest.mark.parametrize("flavour", ["kd", "mlm"])
def test_autotinybert_searches_the_released_grid_with_the_published_numbers(project, flavour):
    found = steps(f"autotinybert-{flavour}.yaml", speedup=4.6)
    assert {step.data_dir for step in found.values() if hasattr(step, "data_dir")} == {"somewhere"}
    assert list(found) == ["text", "supernet", "timed", "found", "further", "mnli", "squad", "on_mnli", "on_squad"]
    supernet, search, further = found["supernet"], found["found"], found["further"]
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    assert tuple(getattr(supernet, name) for name in names) == (8, 768, 12, 3072)
    assert (supernet.supernet, supernet.learning_rate, supernet.warmup_steps) == (flavour, 1e-4, 10000)
    assert supernet.max_position_embeddings >= found["squad"].max_seq_len == 384
    assert supernet.teacher == ("google/electra-base-discriminator" if flavour == "kd" else "")
    assert (search.space, search.generation_size, search.parents, search.score_on) == (
        "released",
        25,
        25,
        ["mnli", "squad1"],
    )
    assert (search.speedup, search.speedup_over, search.flavour) == (4.6, "bert-base", flavour)
    assert (search.generations[0], set(search.generations[1:])) == ("fast", {"evolved"})
    assert (search.predictor, found["timed"].flavour) == ("timed's predictor", flavour)
    assert (further.model, further.supernet, further.teacher) == ("found's model", "", supernet.teacher)
    assert found["mnli"].model == found["squad"].model == "further's model"


def test_the_networks_that_are_compared_are_trained_alike(project):
    quick, found = steps("autotinybert-quick.yaml"), steps("autotinybert-compare.yaml", task="mrpc", seed=7)
    more = {name: step.model_dump() for name, step in quick.items() if name.endswith("_more")}
    tuned = {name: step.model_dump() for name, step in found.items() if name != "models"}
    assert len(more) == len(tuned) == 6
    for steps_alike, own in ((more, {"model", "register_as"}), (tuned, {"model"})):
        first = next(iter(steps_alike.values()))
        assert all({k for k in step if step[k] != first[k]} <= own for step in steps_alike.values())
    assert (more["slow_more"]["model"], more["fast_uniform_more"]["model"]) == ("slow's model", "fast's uniform")
    assert len({step["model"] for step in more.values()}) == 6
    registered = {f"models:/{step['register_as']}@latest" for step in more.values()}
    assert len(registered) == 6
    assert {step["model"] for step in tuned.values()} == registered
    assert (tuned["fast_median"]["model"], tuned["fast_median"]["seed"]) == (
        "models:/autotinybert-quick-fast-median@latest",
        7,
    )
    plan = read_plan("params/pipelines/autotinybert-compare.yaml", given("autotinybert-compare.yaml", task="mrpc"))
    assert set(study.NEEDED) <= set(plan.vars)


@pytest.mark.parametrize("task", [*EFFICIENTBERT, "squad1", "squad2"])
def test_a_recipe_has_efficientberts_numbers(task):
    params = params_class("distill").load(ROOT / f"params/distill-efficientbert-{task}.yaml")
    squad = task.startswith("squad")
    epochs, rate = (10, 1e-4) if squad else (EFFICIENTBERT[task], 5e-5)
    assert (params.task, params.joint_epochs, params.joint_learning_rate, params.batch_size) == (task, epochs, rate, 32)
    assert (params.intermediate_epochs, params.prediction_epochs, params.max_seq_len) == (0, 0, 128)
    assert (params.hidden_ratio, params.prediction_ratio, params.temperature, params.warmup_ratio) == (1, 1, 1, 0.1)
    assert (params.augmented, params.teacher) == ("", f"models:/efficientbert-teacher-{task}@latest")
    teacher = params_class("finetune").load(ROOT / f"params/finetune-efficientbert-{task if squad else 'glue'}.yaml")
    assert (teacher.learning_rate, teacher.num_train_epochs, teacher.batch_size) == (3e-5, 3, 32)
    if squad:
        for step in (params, teacher):
            assert (step.max_seq_len, step.max_query_length, step.doc_stride) == (128, 62, 32)


def test_every_task_of_efficientbert_has_a_teacher_and_a_student_that_is_evaluated(project):
    tasks = [*EFFICIENTBERT, "squad1", "squad2"]
    teachers = steps("efficientbert-teachers.yaml", encoder="bert")
    assert {step.task for step in teachers.values()} == set(tasks)
    assert {step.register_as for step in teachers.values()} == {f"efficientbert-teacher-{task}" for task in tasks}
    found = steps("efficientbert-tasks.yaml", student="tiny", called="efficientbert-tiny", architecture="cut", seed=3)
    for task in tasks:
        student, judged = found[task], found[f"on_{task}"]
        assert (student.task, student.student, student.architecture, student.seed) == (task, "tiny", "cut", 3)
        assert student.teacher == f"models:/efficientbert-teacher-{task}@latest"
        assert (judged.task, judged.models) == (task, {"efficientbert-tiny": f"{task}'s model"})
        assert judged.doc_stride == student.doc_stride
    together = params_class("multitask").load(ROOT / "params/multitask-efficientbert.yaml")
    assert together.teachers == {
        task: f"models:/efficientbert-teacher-{task}@latest" for task in EFFICIENTBERT if task != "wnli"
    }
    assert (together.learning_rate, together.num_train_epochs, together.batch_size) == (4e-4, 10, 128)


def test_the_supernet_learns_plain_feed_forwards_before_the_sizes_of_the_second_stage(project):
    found = steps("efficientbert-supernet.yaml", wiki="dump", books="folder")
    text, supernet, sizes = found.values()
    assert (text.sources, text.joined, text.epochs, text.max_seq_len) == (
        {"wiki": "dump", "books": "folder"},
        True,
        5,
        128,
    )
    for step in (supernet, sizes):
        assert (step.learning_rate, step.num_train_epochs, step.batch_size, step.original) == (
            1e-4,
            10,
            256,
            "efficientbert",
        )
    assert (supernet.architecture, supernet.student, supernet.random_sizes) == ("efficientbert-supernet", "", False)
    assert (sizes.architecture, sizes.student, sizes.random_sizes) == ("efficientbert-stage2", "supernet's model", True)


@pytest.mark.parametrize(
    ("name", "architecture", "epochs"),
    [("tiny", "efficientbert-tiny", 10), ("base", "efficientbert", 10), ("plusplus", "efficientbert-plusplus", 10),
     ("transfer", "efficientbert-tinybert6", 3), ("plus", "efficientbert-stage2", 10)],
)  # fmt: skip
def test_the_published_networks_begin_as_the_paper_says(project, name, architecture, epochs):
    found = steps(f"efficientbert-{name}.yaml")
    first = found["together" if name == "plus" else "general"]
    assert (first.architecture, first.num_train_epochs) == (architecture, epochs)
    assert first.student == ("" if name == "transfer" else "models:/efficientbert-sizes@latest")
    assert first.random_sizes == (name == "plus")
    assert first.learning_rate == (4e-4 if name == "plus" else 1e-4)
    for task in ("mnli", "squad"):
        assert found[task].student == f"{'together' if name == 'plus' else 'general'}'s model"
        assert found[task].architecture == ("efficientbert" if name == "plus" else "")
        assert found[f"on_{task}"].models == {f"efficientbert-{name}": f"{task}'s model"}


def test_dynamic_tinybert_has_its_numbers_and_hands_on_the_right_checkpoints(project):
    found = steps("dynamic-tinybert.yaml", student="general", seed=3)
    teacher, layers, answers, adaptive = (found[name] for name in ("teacher", "layers", "answers", "adaptive"))
    trained = {"teacher": teacher, "layers": layers, "answers": answers, "adaptive": adaptive}
    for step in trained.values():
        sizes = (step.task, step.data_dir, step.max_seq_len, step.doc_stride, step.max_query_length)
        assert sizes == ("squad1", "somewhere", 384, 128, 64)
        assert (step.seed, step.warmup_ratio, step.max_rows, step.max_steps) == (3, 0, 0, 0)
    assert {name: step.batch_size for name, step in trained.items()} == {
        "teacher": 8, "layers": 16, "answers": 16, "adaptive": 16,
    }  # fmt: skip
    assert (teacher.learning_rate, teacher.num_train_epochs) == (3e-5, 2)
    assert (layers.student, layers.teacher, layers.attention) == ("general", "teacher's model", "probabilities")
    assert (layers.attention_distance, layers.state_ratio, layers.attention_ratio) == ("mse", 1, 1)
    assert (layers.intermediate_learning_rate, layers.intermediate_epochs, layers.prediction_epochs) == (5e-5, 20, 0)
    assert (answers.student, answers.teacher) == ("layers's model", "teacher's model")
    assert (answers.prediction_learning_rate, answers.intermediate_epochs, answers.prediction_epochs) == (3e-5, 0, 10)
    assert (adaptive.model, adaptive.teacher) == ("answers's model", "teacher's model")
    assert (adaptive.learning_rate, adaptive.num_train_epochs, adaptive.num_sandwich) == (2e-5, 10, 2)
    assert (adaptive.length_ratio, adaptive.layer_probability, adaptive.temperature) == (0.2, 0.2, 1)
    for name, model in {"plain_lengths": "answers's model", "lengths": "adaptive's model"}.items():
        step = found[name]
        assert (step.model, step.search, step.cost, step.max_drop) == (model, "evolution", "macs", 0.2)
        assert (step.iterations, step.population_size, step.mutations, step.crossovers) == (30, 20, 30, 30)
        assert (step.mutation_probability, step.max_seq_len, step.seed) == (0.5, 384, 3)
    assert found["models"].models["dynamic_tinybert-student-within1"] == "plain_lengths's model?lengths=within1%"


def test_the_length_adaptive_recipe_for_glue_learns_from_labels(project):
    found = steps("length-adaptive-glue.yaml", task="mrpc")
    teacher, adaptive = found["teacher"], found["adaptive"]
    for step in (teacher, adaptive):
        assert (step.task, step.data_dir, step.max_seq_len, step.batch_size) == ("mrpc", "somewhere", 128, 32)
        assert (step.learning_rate, step.warmup_ratio) == (2e-5, 0)
    assert (teacher.num_train_epochs, adaptive.num_train_epochs) == (3, 5)
    assert (adaptive.model, adaptive.teacher, adaptive.layer_probability) == ("teacher's model", "", 0.2)


# ---- at two steps


def test_efficientberts_search_has_the_published_numbers_and_each_stage_feeds_the_next(project):
    found = steps("efficientbert-search.yaml", first_trials="/shared/first.log")
    first, second, third = (found[name] for name in ("first", "second", "third"))
    assert [step.search_stage for step in (first, second, third)] == [1, 2, 3]
    assert (second.previous, third.previous) == ("first's found", "second's found")
    assert (first.supernet, second.supernet, third.supernet) == (
        "supernet's model",
        "supernet's model",
        "tasks's model",
    )
    assert (first.distill_learning_rate, first.learning_rate, first.batch_size) == (1e-4, 4e-4, 128)
    assert (first.corpus_share, first.distill_epochs, first.train_share, first.num_train_epochs) == (0.02, 1, 0.1, 3)
    assert (first.initial_trials, first.refit_every, first.min_height, first.max_height) == (80, 10, 3, 7)
    assert (first.max_parameters - first.min_parameters, first.exploration, first.task) == (10**6, 0, "mnli")
    assert first.min_parameters + 540 * 768 + 768 == 15_000_000  # the paper counts the projection to 768
    assert (first.storage, second.storage) == ("/shared/first.log", "")
    sizes, tasks = found["sizes"], found["tasks"]
    assert (sizes.student, sizes.architecture, sizes.random_sizes) == ("plain's model", "second's model", True)
    assert (tasks.student, tasks.architecture, tasks.random_sizes) == ("sizes's model", "second's model", True)
    assert list(tasks.teachers) == ["mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte"]


def test_what_the_quick_search_is_compared_with_differs_in_nothing_but_its_formulas(project):
    found = steps("efficientbert-quick.yaml")
    full = found["found"].model_dump()
    assert (full["student"], full["architecture"]) == ("supernet's model", "third's model")
    for name in ("plain", "random", "uniform"):
        other = found[name].model_dump()
        assert {key for key in full if full[key] != other[key]} == {"architecture", "register_as"}
        assert other["architecture"] == f"third's {name}"
    tuned = steps("efficientbert-compare.yaml", seed=43)
    full = tuned["found"].model_dump()
    for name in ("plain", "random", "uniform"):
        other = tuned[name].model_dump()
        assert {key for key in full if full[key] != other[key]} == {"student"}
    assert (full["intermediate_epochs"], full["prediction_epochs"], full["joint_epochs"], full["seed"]) == (0, 0, 1, 43)


@pytest.fixture
def made(project):
    """An encoder of 6 layers with 12 heads and a masked LM, word vectors, MNLI, and a task model for it."""
    folder = project / "made"
    text = (bundled.write(project / ".cache/bundled") / "corpus.txt").read_text().splitlines()
    tokenizer = train_wordpiece(text, 1000)
    shape = {"hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 24}
    config = CompactBertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **shape)
    torch.manual_seed(0)
    checkpoints.save(CompactBertForMaskedLM(config), folder / "encoder", tokenizer)
    labels = ["entailment", "neutral", "contradiction"]
    tuned = config.changed(id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)})
    checkpoints.save(CompactBertForSequenceClassification(tuned), folder / "mnli", tokenizer)
    rng = Random(0)
    words = sorted({word for line in text[:2000] for word in line.lower().split() if word.isalpha()})
    lines = [f"{word} {' '.join(f'{rng.gauss(0, 1):.3f}' for _ in range(8))}" for word in words]
    (folder / "vectors.txt").write_text("\n".join(lines) + "\n")
    (folder / "MNLI").mkdir()
    header = "\t".join(["index", *(f"column {i}" for i in range(7)), "sentence1", "sentence2", "gold_label"])
    rows = ["\t".join([str(i), *"-" * 7, text[i], text[i + 1], labels[i % 3]]) for i in range(400)]
    for file in ("train.tsv", "dev_matched.tsv"):
        (folder / "MNLI" / file).write_text("\n".join([header, *rows]) + "\n")
    return folder


def run(project: Path, name: str, **values: object) -> str:
    changes = [part for change in given(name, **values) for part in ("--set", change)]
    command = [sys.executable, "-m", "compresskit.cli", "pipeline", f"params/pipelines/{name}", *changes]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
def test_tinyberts_pipelines_run_at_two_steps_and_hand_their_students_on(project, made):
    short = {"max_steps": 2, "max_rows": 420, "data_dir": "bundled", "encoder": made / "encoder"}
    out = run(project, "tinybert-sst2.yaml", student='""', teacher_steps=2, embeddings=made / "vectors.txt", **short)
    assert "[5/5] models" in out
    out = run(
        project, "tinybert-general.yaml", text="bundled", num_hidden_layers=2, hidden_size=12, intermediate_size=24,
        general_seq_len=32, general_epochs=1, general_batch_size=16, **short,
    )  # fmt: skip
    assert "[5/5] models" in out
    rows = tracking.leaderboard_table("sst2-bundled").set_index("name")
    assert set(rows.index) == {"baseline-teacher-42", "tinybert-student-42"}
    dev = bundled.write(project / ".cache/bundled") / "SST-2/dev.tsv"
    assert rows["rows"].tolist() == [len(dev.read_text().splitlines()) - 1] * 2

    taught = {"teacher": "models:/teacher-sst2@latest", "student": "models:/general-tinybert4@latest"}
    short = {"max_steps": 2, "max_steps_at_once": 4, "max_rows": 420, "data_dir": "bundled", "copies": 2}
    run(project, "tinybert-ablation.yaml", task="sst2", embeddings=made / "vectors.txt", **taught, **short)
    rows = tracking.leaderboard_table("sst2-bundled")
    assert (rows["system"] == "tinybert").sum() == 1 + 3
    assert set(rows["layers"]) == {"6", "2"}

    run(project, "tinybert-mnli-transfer.yaml", teacher=made / "mnli", data_dir=made, max_steps=2, max_rows=300)
    before, after = (checkpoints.read(tracking.resolve(f"models:/tinybert-{task}@latest")) for task in ("sst2", "mnli"))
    assert (len(before.weights["classifier.weight"]), len(after.weights["classifier.weight"])) == (2, 3)
    assert list(after.config["id2label"].values()) == ["contradiction", "entailment", "neutral"]


@pytest.mark.long
def test_sparseberts_pipelines_run_at_two_steps_and_can_be_studied(project, made):
    tasks = {"mrpc": ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t1\t2\t{a}\t{b}", "01"),
             "qnli": ("QNLI", "index\tquestion\tsentence\tlabel", "{i}\t{a}\t{b}\t{label}",
                      ("entailment", "not_entailment"))}  # fmt: skip
    text = (bundled.write(project / ".cache/bundled") / "corpus.txt").read_text().splitlines()
    short = {"encoder": made / "encoder", "embeddings": made / "vectors.txt", "data_dir": made, "max_rows": 300,
             "teacher_steps": 2, "max_steps": 2}  # fmt: skip
    for task, (folder, header, row, labels) in tasks.items():
        (made / folder).mkdir()
        rows = [row.format(i=i, a=text[i], b=text[i + 1], label=labels[i % 2]) for i in range(320)]
        for file in ("train.tsv", "dev.tsv"):
            (made / folder / file).write_text("\n".join([header, *rows]) + "\n")
        out = run(project, f"sparsebert-{task}.yaml", **short)
        assert "[6/6] zeros" in out
        board = tracking.leaderboard_table(task).set_index("name")
        assert set(board.index) == {"baseline-teacher-42", "sparsebert-pruned-42"}
        assert board["rows"].tolist() == [320, 320]  # all dev rows
        assert board.loc["sparsebert-pruned-42", "sparsity_pct"] == pytest.approx(95, abs=0.2)

    variables = {"task": "mrpc", "teacher": "models:/teacher-mrpc@latest", "student": made / "encoder"}
    run(project, "sparsebert-ablation.yaml", **variables, data_dir=made, max_rows=300, max_steps=2)
    run(project, "sparsebert-95.yaml", **variables, data_dir=made, max_rows=300, max_steps=2, seed=43)
    study.study("sparsebert-ablation", ["sparsebert-95"], project / "page.md", "as in the test", also=["sparsebert-95"])
    page = (project / "page.md").read_text()
    ways = ["sparsebert", "sparsebert-prune-then-distil", "baseline-labels-only"]
    for name in [*(f"{way}-{percent}" for way in ways for percent in (80, 90, 95)), "baseline-teacher"]:
        assert f"\n| {name} | " in page
    assert "| mrpc | 42, 43 |" in page
    assert "zeros, %" in page
    assert "Each step of a training stops after" in page


@pytest.mark.long
@pytest.mark.parametrize("name", ["sst2.yaml", "sst2-full.yaml"])
def test_the_pipelines_on_sst2_run_at_a_step_of_each_stage(project, made, name):
    out = run(project, name, encoder=made / "encoder", data_dir="bundled", epochs=0.001, student_epochs=0.001)
    assert "[7/7] latency" in out
    assert len(tracking.leaderboard_table("sst2-bundled")) == 4


@pytest.mark.long
def test_autotinyberts_pipelines_run_at_two_steps_and_can_be_studied(project, made):
    shutil.copytree(bundled.write(project / ".cache/bundled") / "squad", made / "squad")
    (made / "MRPC").mkdir()
    text = (bundled.write(project / ".cache/bundled") / "corpus.txt").read_text().splitlines()
    rows = ["\t".join([str(i % 2), "1", "2", text[i], text[i + 1]]) for i in range(320)]
    for file in ("train.tsv", "dev.tsv"):
        (made / "MRPC" / file).write_text("\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows]) + "\n")
    shutil.copytree(bundled.write(project / ".cache/bundled") / "SST-2", made / "SST-2")
    sizes = {"num_hidden_layers": 3, "hidden_size": 24, "num_attention_heads": 12, "intermediate_size": 48}
    short = {**sizes, "generation_size": 2, "architectures": 10, "max_rows": 300, "pretrain_seq_len": 32}
    paper = {
        "text": "bundled",
        "data_dir": made,
        "space": "supernet",
        "generations": "[random, evolved]",
        "max_steps": 2,
        "speedup_over": "supernet",
        "clock": "cpu",
    }
    for flavour, encoder in (("kd", "teacher"), ("mlm", "vocabulary")):
        own = {encoder: made / "encoder", "speedup": 1.05}
        out = run(project, f"autotinybert-{flavour}.yaml", **short, **paper, **own)
        assert "[9/9] on_squad" in out

    quick = {"text": "bundled", "encoder": made / "encoder", "data_dir": made, "clock": "cpu", "candidate_steps": 2}
    steps_alike = {"pretrain_steps": 2, "further_steps": 2, "max_steps": 2}
    run(project, "autotinybert-quick.yaml", **short, **quick, **steps_alike, slow=1.05, fast=1.06)
    stages = {}
    for found in client().search_runs([e.experiment_id for e in client().search_experiments()]):
        stages.setdefault(found.data.tags.get("stage"), []).append(found)
    fast, slow = (found.info.run_id for found in stages["search"][:2])  # newest first
    variables = {"task": "mrpc", "slow": f"runs:/{slow}", "fast": f"runs:/{fast}", "max_steps": 2}
    run(project, "autotinybert-compare.yaml", **variables, data_dir=made, max_rows=300)
    study.study("autotinybert-compare", ["baseline-slow-uniform"], project / "page.md", "as in the test")
    page = (project / "page.md").read_text()
    for name in ("autotinybert-slow", "baseline-slow-median", "autotinybert-fast", "baseline-fast-uniform"):
        assert f"\n| {name} | " in page


@pytest.mark.long
def test_efficientberts_searches_run_at_a_few_steps_and_can_be_studied(project, made):
    shutil.copytree(bundled.write(project / ".cache/bundled") / "SST-2", made / "SST-2")
    tiny = {"text": "bundled", "encoder": made / "encoder", "data_dir": made, "max_rows": 300, "workers": 1,
            "num_hidden_layers": 3, "hidden_size": 24, "intermediate_size": 24, "embedding_size": 8,
            "min_parameters": 0, "max_parameters": 0, "text_seq_len": 32, "max_seq_len": 32, "trials": 4,
            "initial_trials": 3, "refit_every": 1, "size_trials": 4} | {
        f"{name}_steps": 2 for name in ("pretrain", "teacher", "distill", "candidate", "size", "further")
    }  # fmt: skip
    out = run(project, "efficientbert-quick.yaml", **tiny)
    assert "[12/12] uniform" in out
    experiments = [e.experiment_id for e in client().search_experiments()]
    stages = [r for r in client().search_runs(experiments) if r.data.tags.get("stage") == "formula_search"]
    named = {name: f"runs:/{r.info.run_id}" for name, r in zip(("third", "second", "first"), stages, strict=True)}
    run(project, "efficientbert-compare.yaml", data_dir=made, max_rows=300, max_steps=2, max_seq_len=32, **named)
    study.study("efficientbert-compare", ["baseline-plain", "baseline-random"], project / "page.md", "as in the test")
    page = (project / "page.md").read_text()
    for name in ("efficientbert-found", "baseline-plain", "baseline-random", "baseline-uniform"):
        assert f"\n| {name} | " in page


def glue_files(folder: Path) -> None:
    """Each task's files with 240 rows of the bundled text, some with folders of the same names, and SQuAD's."""
    text = (bundled.write(folder / "source") / "corpus.txt").read_text().splitlines()
    shutil.copytree(folder / "source/squad", folder / "squad")
    for version in ("train", "dev"):
        shutil.copy(folder / f"squad/{version}-v1.1.json", folder / f"squad/{version}-v2.0.json")
    for task in glue.TASKS.values():
        columns = max((*task.text_columns, task.label_column, 1)) + (2 if task.label_column < 0 else 1)
        rows = []
        for number in range(240):
            row = ["-"] * columns
            for place, column in enumerate(task.text_columns):
                row[column] = text[number + place]
            row[task.label_column] = task.labels[number % len(task.labels)] if task.labels else f"{number % 6}.000"
            rows.append("\t".join(row))
        header = ["-"] * columns
        for name, column in zip(task.header, (*task.text_columns, task.label_column), strict=True):
            header[column] = name
        lines = ["\t".join(header), *rows] if task.has_header else rows
        (folder / task.folder).mkdir(exist_ok=True)
        for file in (task.train_file, task.dev_file):
            (folder / task.folder / file).write_text("\n".join(lines) + "\n")


@pytest.mark.long
def test_efficientberts_pipelines_run_at_two_steps_from_text_to_every_task(project, made):
    data = project / "data"
    glue_files(data)
    short = {"data_dir": data, "max_rows": 240, "max_steps": 2}
    out = run(project, "efficientbert-teachers.yaml", encoder=made / "encoder", batch_size=8, **short)
    assert "[11/11] squad2" in out

    vocab = checkpoints.read(made / "encoder").architecture().vocab_size
    shape = {"vocab_size": vocab, "num_attention_heads": 12, "max_position_embeddings": 128}
    trigram = {"embedding": "trigram", "embedding_size": 8}
    formulas = presets.EFFICIENTBERT[:3]
    for name, width, fields in (
        ("supernet", 24, {**trigram, "feed_forward": [str(plain(4))] * 3}),
        ("formulas", 24, {**trigram, "feed_forward": list(formulas)}),
        ("narrow", 12, {**trigram, "feed_forward": list(formulas)}),
        ("deep", 12, {**trigram, "feed_forward": [text for text in formulas for _ in range(2)]}),
        ("transfer", 24, {"feed_forward": list(formulas), "feed_forward_width": "max", "intermediate_size": 96}),
    ):
        config = CompactBertConfig(**{**shape, "hidden_size": width, "num_hidden_layers": len(fields["feed_forward"]),
                                      "intermediate_size": width, **fields})  # fmt: skip
        checkpoints.save(config, made / name)
    learned = {"teacher": made / "encoder", "max_seq_len": 32, "batch_size": 8, "epochs": 1}
    out = run(
        project, "efficientbert-supernet.yaml", wiki="bundled", books="bundled", corpus_epochs=1, max_steps=2,
        supernet=made / "supernet", formulas=made / "formulas", **learned,
    )  # fmt: skip
    assert "[3/3] sizes" in out
    experiments = [e.experiment_id for e in client().search_experiments()]
    corpus = next(r for r in client().search_runs(experiments) if r.data.tags.get("stage") == "corpus")
    folder = tracking.read_json(corpus.info.run_id, "result.json")["corpus"]
    for name, architecture in (("base", "formulas"), ("tiny", "narrow"), ("plusplus", "deep")):
        own = {"architecture": made / architecture, "corpus": folder}
        assert "[5/5] on_squad" in run(project, f"efficientbert-{name}.yaml", **own, **learned, **short)
        wanted = checkpoints.Checkpoint.of(checkpoints.read_config(made / architecture), {}).architecture()
        found = checkpoints.read(tracking.resolve(f"models:/efficientbert-{name}@latest"))
        assert found.architecture().key() == wanted.key()
        with torch.device("meta"):
            size = CompactBertModel(wanted).num_parameters()
        assert sum(tensor.numel() for tensor in found.weights.values()) == size  # no more than it uses
    own = {"wiki": "bundled", "architecture": made / "transfer", "corpus_epochs": 1}
    assert "[6/6] on_squad" in run(project, "efficientbert-transfer.yaml", **own, **learned, **short)
    own = {"formulas": made / "formulas", "architecture": made / "formulas", "batch_size": 8, "max_seq_len": 32}
    assert "[5/5] on_squad" in run(project, "efficientbert-plus.yaml", **own, epochs=1, **short)
    student = {"student": "models:/efficientbert-multitask@latest", "architecture": made / "formulas"}
    out = run(project, "efficientbert-tasks.yaml", **student, called="efficientbert-plus-all", **short)
    assert "[22/22] on_squad2" in out
    for task in ("wnli", "stsb", "squad2"):
        assert "efficientbert-plus-all-42" in set(tracking.leaderboard_table(task)["name"])


@pytest.mark.long
def test_dynamic_tinyberts_pipelines_run_at_two_steps(project, made):
    short = {"max_steps": 2, "data_dir": "bundled", "encoder": made / "encoder"}
    sizes = {"max_seq_len": 96, "doc_stride": 24, "max_rows": 120, "score_rows": 20}
    search = {"rounds": 1, "population_size": 1, "mutations": 1, "crossovers": 0}
    student = elastic.keep_layers(checkpoints.load(CompactBertForMaskedLM, made / "encoder"), [1, 4, 6])
    checkpoints.save(student, made / "student", BertTokenizer.from_pretrained(made / "encoder"))
    out = run(project, "dynamic-tinybert.yaml", student=made / "student", **short, **sizes, **search)
    assert "models" in out
    rows = tracking.leaderboard_table("squad1-bundled").set_index("name")
    assert {"dynamic_tinybert-student-42", "dynamic_tinybert-adaptive-42"} <= set(rows.index)
    run(project, "length-adaptive-glue.yaml", task="sst2", max_rows=420, **short, **search)
    assert "dynamic_tinybert-adaptive-42" in set(tracking.leaderboard_table("sst2-bundled")["name"])


@pytest.mark.long
def test_dynamic_tinyberts_quick_pipeline_ends_in_a_page(project, made, tmp_path):
    steps = {f"{part}_steps": 2 for part in ("teacher", "intermediate", "prediction", "lengthdrop")}
    sizes = {"max_seq_len": 96, "doc_stride": 32, "max_query_length": 24, "max_rows": 260, "dev_rows": 40}
    search = {"rounds": 1, "population_size": 2, "mutations": 2, "crossovers": 1, "score_rows": 20, "workers": 1}
    run(
        project, "dynamic-tinybert-quick.yaml", data_dir="bundled", encoder=made / "encoder", **steps, **sizes, **search
    )  # fmt: skip
    out = tmp_path / "lengths.md"
    lengths_page.study("dynamic-tinybert-quick", out, "a command")
    data = json.loads(out.with_suffix(".json").read_text())
    assert out.read_text() == lengths_page.page(data, "lengths")
    rows, board = lengths_page.rows(data).set_index("name"), tracking.leaderboard_table("squad1-bundled")
    assert len(rows) == len(board) == 7
    for _, row in board.iterrows():
        mine = rows.loc[f"{row['system']}-{row['variant']}"]
        assert mine["score_pct"] == pytest.approx(row["f1_pct"], abs=0.01)
        assert mine["exact_pct"] == pytest.approx(row["exact_match_pct"], abs=0.01)
        assert mine["latency_p50_ms"] == pytest.approx(row["latency_p50_ms"], abs=1e-3)
    assert len(data["searches"]) in (1, 2)  # a choice of the full length hides its search
    assert "88.71" in out.read_text()
