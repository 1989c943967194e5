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
# # LengthDrop — can one model answer with any number of tokens?
#
# Layers pass on only the tokens that received the most attention. Each step trains the whole model, the smallest one and a
# few that are drawn at random: the whole one on the task, the others to answer as it does, so that a search can later pick
# lengths without training anything.
#
# **In:** a task model, and a teacher where there is one. **Out:** the same model, fit to be run at many lengths.
# **Time:** each epoch takes about three of fine-tuning; a stopped run goes on where it was.

# %% tags=["parameters"]
task: str = "sst2"  # cola, sst2, mrpc, stsb, qqp, mnli, mnli_mm, qnli, rte, wnli, squad1, squad2
model: str = "models:/demo-teacher@latest"  # what learns: a run, a registered model, a folder or a hub id
teacher: str = ""  # a task model whose answers the whole model learns; empty: labels
teacher_labels: list[str] = []  # names of the teacher's outputs in its order, where its config has none
num_sandwich: int = 2  # sub-models at random in each step, beside the whole one and the smallest
length_ratio: float = 0.2  # most of its tokens that a layer drops; the smallest drops as many
length_probability: float = 0.0  # drop each token at random with it; 0: lengths are uniform
layer_probability: float = 0.2  # leave out each layer with it; 0: see layer_bound
layer_bound: int = 0  # most layers that sub-models lack at the top, where layer_probability is 0
data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
augmented: str = ""  # what the stage augment made of train: a run's, or a folder; empty: train alone
max_seq_len: int = 128  # longer texts are cut, in tokens
doc_stride: int = 128  # SQuAD: tokens from the start of one window to the next
max_query_length: int = 64  # SQuAD: longer questions are cut, in tokens
batch_size: int = 32  # examples per optimizer step
learning_rate: float = 2e-5  # peak, reached after the warm-up
warmup_ratio: float = 0.0  # share of the steps in which the learning rate rises
num_train_epochs: float = 5.0  # passes over the training rows
temperature: float = 1.0  # of the softened answers
evals_per_epoch: int = 2  # how often the selection rows are scored
patience: int = 0  # stop after this many evaluations without a better score; 0: never
select_on: str = "selection"  # rows that choose the checkpoint; dev reproduces the papers
faithful: bool = False  # as the original's code: its AdamW, padding to max_seq_len that counts, maybe no layers
max_steps: int = 0  # stop earlier, for smoke tests; 0: no limit
max_rows: int = 0  # keep this many rows of each split, for smoke tests; 0: all
threads: int = 0  # of torch; 0: all cores
register_as: str = ""  # name in the model registry; empty: not registered
seed: int = 42  # of data order, sub-models, dropout and new weights

# %%
from compresskit.evaluation import figures
from compresskit.stages import lengthdrop

params = lengthdrop.LengthdropParams.take(globals())
stage = lengthdrop.open(params)
stage.data.describe()

# %%
stage.smallest()  # tokens that each layer keeps of max_seq_len in the smallest model

# %%
history = stage.train()

# %% [markdown]
# `train/divergence` is how far the sub-models' answers are from the whole model's; it should fall while `select/score`, of the
# whole model, stays. Where the score falls instead, take a smaller `length_ratio` or `learning_rate`.

# %%
figures.learning_curve(history, ["train/full_loss", "train/divergence", "select/score"])

# %%
stage.finish()
