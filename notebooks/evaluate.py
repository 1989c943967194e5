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
# # Evaluate — what did each step cost?
#
# Every model is loaded again from where it was saved, scored on all dev rows, measured and timed by turns with the others.
# Each becomes one row of the task's leaderboard.
#
# **In:** finished models by name, `<system>-<variant>`. **Out:** leaderboard rows, predictions per row, raw timings.
# **Time:** seconds per model, plus the dev rows.

# %% tags=["parameters"]
task: str = "sst2"  # cola, sst2, mrpc, stsb, qqp, mnli, mnli_mm, qnli, rte, wnli, squad1, squad2
models: dict[str, str] = {"baseline-teacher": "models:/demo-teacher@latest"}  # source by <system>-<variant>
baseline: str = ""  # the model that speed-ups refer to; empty: the first
data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
max_seq_len: int = 128  # longer texts are cut, in tokens
doc_stride: int = 128  # SQuAD: tokens from the start of one window to the next
max_query_length: int = 64  # SQuAD: longer questions are cut, in tokens
latency_batch_size: int = 1  # examples per timed call
latency_seq_len: int = 128  # tokens per example of timed calls
latency_threads: int = 1  # of timed calls
latency_rounds: int = 30  # timed calls per model, taken by turns
max_rows: int = 0  # keep this many rows of each split, for smoke tests; 0: all
seed: int = 42  # of data order, masks, dropout and new weights

# %%
from compresskit.stages import evaluate

params = evaluate.EvaluateParams.take(globals())
stage = evaluate.open(params)
stage.score()

# %% [markdown]
# Intervals are 95 %. Two models whose intervals overlap are a tie on these rows, however their order looks.

# %%
stage.time()

# %% [markdown]
# `relative_iqr` above 0.1 says that the machine was busy: repeat before believing a ratio. The plot shows the front as a line;
# a model below it is beaten by one that is both faster and better.

# %%
stage.pareto()

# %%
stage.finish()
