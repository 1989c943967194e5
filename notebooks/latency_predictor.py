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
# # Latency predictor — how long will an architecture take that nobody has timed?
#
# A search asks for millions of times. A random sample of the supernet's subnets is timed here, by turns; predictors are fitted to
# it, and the one with the least error on architectures that it has not seen is kept.
#
# **In:** the shape of a supernet; its weights are not needed. **Out:** a folder that the stage `search` takes, with predictor,
# measured data, and the conditions that they hold for. **Time:** seconds per architecture. A run that is stopped goes on.

# %% tags=["parameters"]
supernet: str = "superbert"  # whose subnets are timed: a run, a registered model, a folder, or a preset's name
flavour: str = "kd"  # kd: all heads stay, each gets narrower; mlm: heads go, their size stays
architectures: int = 80  # that are drawn at random and timed
repeats: int = 8  # of these are timed again at the end, for the noise of the machine
group: int = 8  # architectures that are timed by turns, and in memory together
rounds: int = 15  # calls per architecture
batch_size: int = 1  # examples per timed call
seq_len: int = 128  # tokens per example
threads: int = 1  # of timed calls
clock: str = "wall"  # cpu: time of this process alone, where others use the machine too; one thread only
predictors: list[str] = ["physical", "flops", "mlp"]  # that are compared; mlp is the published one
mlp_width: int = 400  # of its hidden layers; the published scripts use 2000
mlp_steps: int = 5000  # optimizer steps of its training
folds: int = 5  # parts of the data, of which each is held out once
seed: int = 0  # of the sample, the order of calls, the folds and the mlp

# %%
from compresskit.stages import latency_predictor

params = latency_predictor.LatencyPredictorParams.take(globals())
stage = latency_predictor.open(params)
stage.measure()

# %% [markdown]
# `relative_iqr`, the distance of the quartiles over the median, is the first thing to look at: above 0.1 other work was running.
# Then wait for a quiet moment, or take the clock `cpu`.

# %%
stage.fit()

# %% [markdown]
# Errors are those on architectures that a predictor has not seen. `repeat_noise_pct` is how far two measurements of the same
# architecture lie apart: no predictor can be better, and one within twice that is good enough to search with.

# %%
stage.scatter()

# %%
stage.finish()
