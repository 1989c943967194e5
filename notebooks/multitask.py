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
# # Multitask — one encoder that learns from the teachers of several tasks
#
# EfficientBERT's multi-task distillation. The tasks take turns, a batch is of one of them, and each has a teacher and a head of
# its own; attention scores, hidden states and answers are learned together. With `random_sizes` other feed-forward sizes learn
# at each step: such a supernet scores every size of its formulas without further training, which is the third stage of
# EfficientBERT's search. A model without it is the start of EfficientBERT+.
#
# **In:** a general student, a fine-tuned teacher for each task. **Out:** one model with a head per task; `distill` and
# `finetune` take the head of their task from it.
# **Time:** an epoch has the rows of all tasks; a stopped run goes on where it was.

# %% tags=["parameters"]
teachers: dict[str, str] = {"sst2": "models:/demo-teacher@latest"}  # by task: each gets a head
student: str = "models:/demo-encoder@latest"  # the start: an encoder, or a multi-task model
architecture: str = ""  # published, or a model's or a search's, which the student is cut to; empty: the student's own
random_sizes: bool = False  # at each step other feed-forward sizes learn, the architecture's or any of the 16
layer_mapping: list[int] = []  # teacher layer for each student layer, from 1; empty: uniform
projection: str = "shared"  # from student to teacher width, where these differ; or per_layer
teacher_dtype: str = "auto"  # auto: bfloat16 if it is fast and changes the loss by less than 0.1 %
precision: str = "float32"  # of matrix products: float32, bfloat16, float16; auto: bfloat16 on a GPU that has it
data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
max_seq_len: int = 128  # longer texts are cut, in tokens
batch_size: int = 32  # examples per optimizer step, all of one task
learning_rate: float = 4e-4  # peak, reached after the warm-up
warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises
num_train_epochs: float = 10.0  # passes over the rows of all tasks
hidden_ratio: float = 1.0  # of the layers' losses
prediction_ratio: float = 1.0  # of the answers' loss
temperature: float = 1.0  # of the softened answers
faithful: bool = False  # as EfficientBERT's code: batches of neighbouring rows, padding to max_seq_len that counts
max_steps: int = 0  # stop earlier, for smoke tests; 0: no limit
max_rows: int = 0  # keep this many rows of each split, for smoke tests; 0: all
threads: int = 0  # of torch; 0: all cores
register_as: str = ""  # name in the model registry; empty: not registered
seed: int = 42  # of data order, drawn sizes, dropout and new weights

# %%
from compresskit.evaluation import figures
from compresskit.stages import multitask

params = multitask.MultitaskParams.take(globals())
stage = multitask.open(params)
stage.shapes()

# %%
stage.describe()

# %%
history = stage.train()

# %% [markdown]
# The losses of the tasks follow each other in one curve, so it is as restless as the tasks are unlike; a task of grades (STS-B)
# has larger answers' losses than one of classes. What counts is that the curve falls over whole epochs.

# %%
figures.learning_curve(history, ["train/attention_loss", "train/hidden_loss", "train/prediction_loss"])

# %% [markdown]
# Scores on rows held back from each task's training set. A supernet of random sizes is scored here at its full width.

# %%
stage.table()

# %%
stage.finish()
