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
# # Sparsity report — where are the zeros, and out of how many?
#
# "95 % sparse" means nothing without its denominator. Zeros are counted in the saved weights, over the prunable matrices,
# over the encoder, and over the whole model; `size` is the denominator of each line.
#
# **In:** any saved model. **Out:** tables per matrix, kind and layer, totals, a map, the speed-up to hope for and the one measured.
# **Time:** seconds.

# %% tags=["parameters"]
model: str = "models:/demo-pruned@latest"  # a run, a registered model, a folder or a hub id
seq_len: int = 128  # tokens of the sequence whose operations are counted and whose time is measured
threads: int = 1  # of timed calls

# %%
from compresskit.stages import sparsity_report

params = sparsity_report.SparsityReportParams.take(globals())
stage = sparsity_report.open(params)
stage.totals()

# %% [markdown]
# `sparse_bytes` is what compressed rows would take (values, 16-bit column indices, row pointers); it beats the dense size only
# above roughly one third of zeros. `compresskit export --format sparse` writes such a model; until then it is dense on disk.

# %%
stage.heatmap()

# %% [markdown]
# With a threshold per matrix the map is even. A darker or lighter cell means that a matrix had zeros before, or was left out.

# %%
stage.kinds()

# %%
stage.layers()

# %% [markdown]
# What is left to multiply when every product with a zero is skipped. It is what a perfect kernel would gain: a real one also
# reads indices, and the attention products stay dense.

# %%
stage.speed

# %% [markdown]
# What this machine gains: the encoder as it is saved, and with every layer that gains stored by its nonzero weights.

# %%
stage.measure()

# %%
stage.matrices()

# %%
stage.finish()
