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
# # Search — which network inside the supernet is best for this latency?
#
# Architectures are drawn, timed on this machine, and those that keep the limit are scored with the supernet's own weights:
# nothing is trained here. The winner is cut out and handed on, usually to distillation.
#
# **In:** a supernet from the stage `pretrain`. **Out:** the winner as a model of its own; a table of all candidates.
# **Time:** a few seconds per candidate.

# %% tags=["parameters"]
supernet: str = "models:/demo-supernet@latest"  # a supernet of the stage pretrain: a run, a registered model, a folder
flavour: str = "kd"  # kd: all heads stay, each gets narrower; mlm: heads go, their size stays
rule: str = "fast"  # fast: AutoTinyBERT's proportions of feed-forward and q/k/v
speedup: float = 3.0  # limit: the whole supernet's latency divided by this
max_latency_ms: float = 0.0  # the limit itself, which then counts alone; 0: by speedup
candidates: int = 12  # architectures that keep the limit and are scored
max_timed: int = 200  # give up after timing this many
corpus: str = "bundled"  # rows that score: a text file, one sentence per line
corpus_rows: int = 512  # rows that score a candidate
latency_seq_len: int = 128  # tokens per example of timed calls
latency_threads: int = 1  # of timed calls
max_seq_len: int = 64  # longer texts are cut, in tokens
seed: int = 42  # of data order, masks, dropout and new weights

# %%
from compresskit.stages import search

params = search.SearchParams.take(globals())
stage = search.open(params)
print(f"limit: {stage.max_latency_ms:.2f} ms for one example of {params.latency_seq_len} tokens")

# %%
stage.run()

# %% [markdown]
# The score is minus the masked-word loss, so higher is better. A useful supernet shows a trend: slower candidates score
# better. A cloud without any trend means that it has not been trained enough for its subnets to be told apart. Points on the
# right edge use the whole budget; if the winner is far from it, more candidates may help.

# %%
stage.scatter()

# %%
stage.finish()
