# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Distill — how much of the teacher survives in the student?
#
# TinyBERT's two steps. First the student learns what happens between the teacher's layers: attention and hidden states,
# no answers. Then it learns the teacher's answers, softened by the temperature. EfficientBERT learns both together:
# `joint_epochs` in the place of `intermediate_epochs` and `prediction_epochs`.
#
# **In:** a fine-tuned teacher; a student, or the teacher layers it begins as. **Out:** a smaller task model.
# **Time:** about the teacher's own fine-tuning; a stopped run goes on where it was.

# %% tags=["parameters"]
task: str = "sst2"  # cola, sst2, mrpc, stsb, qqp, mnli, mnli_mm, qnli, rte, wnli, squad1, squad2
teacher: str = "models:/demo-teacher@latest"  # a task model: a run, a registered model, a folder or a hub id
teacher_labels: list[str] = []  # names of the teacher's outputs in its order, where its config has none
student: str = ""  # the student's start; empty: layers of the teacher
student_layers: list[int] = []  # teacher layers, from 1, that the student begins as; empty: every second
architecture: str = ""  # published, a model's or a search's, which the student is cut to; empty: its own
layer_mapping: list[int] = []  # teacher layer for each student layer, from 1; empty: uniform
projection: str = "shared"  # from student to teacher width, where these differ; or per_layer
attention: str = "scores"  # what the first step compares: scores (TinyBERT) or probabilities (Dynamic-TinyBERT)
attention_distance: str = "mse"  # of probabilities: mse, or cosine over the keys of a query
attention_ratio: float = 1.0  # what they count for
state_distance: str = "mse"  # of hidden states, beside probabilities: mse, or cosine over the features
state_ratio: float = 1.0  # what they count for
partial_states: bool = False  # of them, compare the embedding's output and the last alone
teacher_dtype: str = "auto"  # while layers are learned; auto: bfloat16 if fast and changing the loss by less than 0.1 %
data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
augmented: str = ""  # what the stage augment made of train: a run's, or a folder; empty: train alone
max_seq_len: int = 128  # longer texts are cut, in tokens
doc_stride: int = 128  # SQuAD: tokens from the start of one window to the next
max_query_length: int = 64  # SQuAD: longer questions are cut, in tokens
batch_size: int = 32  # examples per optimizer step
intermediate_learning_rate: float = 5e-5  # of the first step
intermediate_epochs: float = 3.0  # 0: the prediction step alone
prediction_learning_rate: float = 3e-5  # of the second step
prediction_epochs: float = 3.0  # passes of the second step; 0: the intermediate step alone
joint_learning_rate: float = 5e-5  # of the joint step
joint_epochs: float = 0.0  # layers and answers together, as EfficientBERT; 0: not
hidden_ratio: float = 1.0  # of the layers' losses in the joint step
prediction_ratio: float = 1.0  # of the answers' loss in it
precision: str = "float32"  # of matrix products: float32, bfloat16, float16; auto: bfloat16 on a GPU that has it
warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises
temperature: float = 1.0  # of the softened answers
evals_per_epoch: int = 2  # how often the selection rows are scored
patience: int = 0  # stop after this many evaluations without a better score; 0: never
select_on: str = "selection"  # rows that choose the checkpoint; dev reproduces the papers
faithful: bool = False  # as TinyBERT's code, the joint step as EfficientBERT's: optimizer, padding that counts, …
max_steps: int = 0  # stop earlier, for smoke tests; 0: no limit
max_rows: int = 0  # keep this many rows of each split, for smoke tests; 0: all
threads: int = 0  # of torch; 0: all cores
register_as: str = ""  # name in the model registry; empty: not registered
seed: int = 42  # of data order, masks, dropout and new weights

# %%
from compresskit.evaluation import figures
from compresskit.stages import distill

params = distill.DistillParams.take(globals())
stage = distill.open(params)
stage.shapes()

# %%
stage.data.describe()

# %%
history = stage.train()

# %% [markdown]
# A warning above that the teacher is near chance means that there is nothing to learn from it: it was not fine-tuned on this
# task, or its labels stand in another order.
#
# **First step.** Both parts should fall together. If the attention loss stays far above the hidden loss, the student cannot
# imitate the teacher's heads: look at the mapping above, or give it more layers.

# %%
first = [key for key in history["key"].unique() if "intermediate" in key and "loss" in key]
figures.learning_curve(history, first) if first else print("no intermediate step")

# %% [markdown]
# **Second step, or both together.** The loss is a soft cross-entropy with the mean over classes: it does not reach zero, its floor is the
# entropy of the teacher's answers. What counts is the selection score.

# %%
second = [key for key in ("train/loss", "train/prediction_loss", "select/score") if key in set(history["key"])]
figures.learning_curve(history, second) if second else print("no prediction step")

# %%
stage.finish()
