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
# # Latency — how fast is each model, and under which conditions?
#
# Encoders are timed by turns in one process, so that a slow moment of the machine hits all alike. Medians, 95th percentiles
# and raw samples are kept; engine, thread count, batch size and length are stated with every number. Engines in 8 bits are
# timed here, not scored: what they cost on the task is another question.
#
# **In:** finished models. **Out:** one run per model, engine and condition in the experiment `latency/<host>`.
# **Time:** at most `budget_s` per condition.

# %% tags=["parameters"]
models: dict[str, str] = {"baseline-teacher": "models:/demo-teacher@latest"}  # source by <system>-<variant>
engines: list[str] = ["torch"]  # and torch-default, onnxruntime, onnxruntime-int8, openvino, openvino-bf16, …
batch_sizes: list[int] = [1, 8]  # examples per call
seq_lens: list[int] = [32, 128]  # tokens per example
threads: list[int] = [1]  # of timed calls
rounds: int = 20  # calls per model and condition, taken by turns
budget_s: float = 60.0  # per combination of batch size, length and threads
seed: int = 0  # of data order, masks, dropout and new weights

# %%
from compresskit.stages import latency

params = latency.LatencyParams.take(globals())
stage = latency.open(params)
stage.measure()

# %% [markdown]
# Bars are medians, whiskers reach to the 95th percentile. A long whisker is a busy machine, not a slow model. Ratios between
# models change with batch and length, for the parts that do not shrink (embedding, head, call overhead) weigh differently.

# %%
stage.bars(params.batch_sizes[0], params.seq_lens[0], params.threads[0])

# %%
stage.bars(params.batch_sizes[-1], params.seq_lens[-1], params.threads[-1])

# %%
stage.finish()
