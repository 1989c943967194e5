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
# # Explore — which variant would you take?
#
# The leaderboard's front against any cost, and the curves of any run. In JupyterLab the controls below redraw the pictures;
# run headless, the same pictures appear once.
#
# **In:** a task with leaderboard rows. **Out:** nothing is written.

# %% tags=["parameters"]
task: str = "sst2-bundled"  # a leaderboard: a task, or <task>-bundled for the bundled data
cost: str = "latency_p50_ms"  # one of latency_p50_ms, latency_p95_ms, params_m, disk_mb, gflops

# %%
from compresskit.stages import explore

params = explore.ExploreParams.take(globals())
stage = explore.open(params)
stage.rows

# %% [markdown]
# Read the plot from the left: how much score does the next faster model give up? A flat stretch of the front is free speed.

# %%
stage.show()
