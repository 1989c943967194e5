# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Finetune — how good is this network on the task with labels alone?
#
# The usual training on a task's labels: it makes teachers, and the baselines that every compressed model has to beat.
#
# **In:** a pre-trained model, a task. **Out:** a task model, chosen by its score on rows held back from training.
# **Time:** seconds on the bundled data, minutes on real tasks; a stopped run goes on where it was.

# %% tags=["parameters"]
task: str = "sst2"  # cola, sst2, mrpc, stsb, qqp, mnli, mnli_mm, qnli, rte, wnli, squad1, squad2
model: str = "models:/demo-encoder@latest"  # a run, a registered model, a folder or a hub id
data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
augmented: str = ""  # what the stage augment made of train: a run's, or a folder; empty: train alone
max_seq_len: int = 128  # longer texts are cut, in tokens
doc_stride: int = 128  # SQuAD: tokens from the start of one window to the next
max_query_length: int = 64  # SQuAD: longer questions are cut, in tokens
batch_size: int = 32  # examples per optimizer step
learning_rate: float = 5e-5  # peak, reached after the warm-up
warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises
num_train_epochs: float = 3.0  # passes over the training rows
evals_per_epoch: int = 2  # how often the selection rows are scored
patience: int = 0  # stop after this many evaluations without a better score; 0: never
select_on: str = "selection"  # rows that choose the checkpoint; dev reproduces the papers
max_steps: int = 0  # stop earlier, for smoke tests; 0: no limit
max_rows: int = 0  # keep this many rows of each split, for smoke tests; 0: all
threads: int = 0  # of torch; 0: all cores
register_as: str = ""  # name in the model registry; empty: not registered
seed: int = 42  # of data order, masks, dropout and new weights

# %%
from compresskit.evaluation import figures
from compresskit.stages import finetune

params = finetune.FinetuneParams.take(globals())
stage = finetune.open(params)
stage.data.describe()

# %%
history = stage.train()

# %% [markdown]
# Look for the point where the training loss still falls while the selection score no longer rises: from there on the model
# learns its rows by heart. The checkpoint with the highest selection score is kept. A score that stays at the share of the
# larger class means that nothing is learned: check labels and learning rate.

# %%
figures.learning_curve(history, ["train/loss", "select/score"])

# %% [markdown]
# This score chose the checkpoint, so it flatters a little. Dev rows are read by the stage `evaluate` alone.

# %%
stage.finish()
