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
# # Length search — how many tokens does each layer need?
#
# A layer passes on the tokens that received the most attention. How many it may drop is searched here for a finished model:
# nothing is trained. The result is a front of score against cost that travels with the model: `model.at(speedup=2)` takes from
# it what is fast enough on the machine that serves.
#
# **In:** a model with a head for the task, best one from the stage `lengthdrop`. **Out:** the same model with its front; the
# front as JSON, CSV and Parquet, everything tried in the files of the original.
# **Time:** a pass over `score_rows` for each config; several at a time with `workers`. A stopped run goes on with what it has.

# %% tags=["parameters"]
task: str = "sst2"  # cola, sst2, mrpc, stsb, qqp, mnli, mnli_mm, qnli, rte, wnli, squad1, squad2
model: str = "models:/demo-teacher@latest"  # trained for the task: a run, a registered model, a folder or a hub id
search: str = "evolution"  # evolution, tpe (best score within max_cost), nsga2 (whole front)
cost: str = "macs"  # multiply-adds by formula, or latency: each config is timed while no other process works
iterations: int = 30  # evolution: rounds of mutations and crossovers
population_size: int = 20  # evolution: constant ratios to start with
mutations: int = 30  # evolution: new ones in each round
crossovers: int = 30  # evolution: new ones in each round
mutation_probability: float = 0.5  # evolution: of each layer of a mutant
max_attempts: int = 1000  # evolution: in a round, for the mutations and as many for the crossovers
trials: int = 150  # tpe, nsga2: configs
trials_at_once: int = 4  # tpe, nsga2: configs that are proposed together; the result depends on it, not on workers
max_cost: float = 0.5  # tpe: the budget, as a share of the cost at full length
max_drop: float = 0.2  # evolution: ratio of the smallest config; tpe, nsga2: most that any layer drops
shortest: int = 2  # tokens that every layer keeps
faithful: bool = False  # evolution: start with the ratios of 12 layers and 384 tokens, front as released
data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
max_seq_len: int = 128  # longer texts are cut, in tokens; the lengths are of that many
doc_stride: int = 128  # SQuAD: tokens from the start of one window to the next
max_query_length: int = 64  # SQuAD: longer questions are cut, in tokens
score_rows: int = 1000  # of the rows held back from train, that score each config
max_rows: int = 0  # as in training, as which rows were held back depends on it; 0: all
latency_batch_size: int = 1  # inputs per timed call
latency_threads: int = 1  # of timed calls
latency_rounds: int = 20  # timed calls of each config of the front, taken by turns
workers: int = 1  # processes that score configs; the result does not depend on it
threads: int = 0  # of torch, in each of them; 0: all cores, shared out evenly
register_as: str = ""  # name in the model registry; empty: not registered
seed: int = 42  # of proposals, and of the rows held back: the same as in training

# %%
from compresskit.stages import length_search

params = length_search.LengthSearchParams.take(globals())
stage = length_search.open(params)
stage.describe()

# %%
stage.run()

# %% [markdown]
# Each point is a config. The front is a step curve that leaves the full length to the left; where it falls off at once, the
# model has not learned to do without tokens, see the stage `lengthdrop`. Scores are from few rows: differences of a point are
# noise.

# %%
stage.by_macs()

# %% [markdown]
# The same against measured time. What saves multiply-adds does not always save time: short inputs use the machine less well.

# %%
stage.by_latency()

# %%
stage.front_table()

# %% [markdown]
# Tokens that each layer keeps. Early layers usually keep most: what a token means is found there.

# %%
stage.kept()

# %% [markdown]
# One of the texts, at the lengths that lose at most 1 % of the score, as shares of this text: dark tokens reach the last layer.

# %%
stage.survivors()

# %%
stage.finish()
