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
# Architectures that keep the limits are proposed, scored, and bred from the best ones, generation by generation. A score is
# either the masked-word loss of a subnet in place, which takes seconds, or what its slice of the supernet's weights reaches
# when it is fine-tuned on tasks, on rows held back from train. The finalists are timed; the best that keeps the limit is cut
# out and handed on, to distillation or further training.
#
# **In:** a supernet from the stage `pretrain`; a predictor from the stage `latency_predictor`, or none: then architectures are
# timed. **Out:** the winner as a model of its own; tables of all candidates, also as AutoTinyBERT's files.
# **Time:** seconds per candidate in place; fine-tuning takes a candidate as long as a training of its size, several at a time
# with `workers`. A stopped run goes on with what it has.

# %% tags=["parameters"]
supernet: str = "models:/demo-supernet@latest"  # a supernet of the stage pretrain: a run, a registered model, a folder
flavour: str = "kd"  # kd: all heads stay, each gets narrower; mlm: heads go, their size stays
space: str = "supernet"  # what pretrain samples, or "released": the coarser grid of AutoTinyBERT's searcher
generations: list = ["fast"]  # how each proposes: random, fast (AutoTinyBERT's proportions), evolved
generation_size: int = 12  # architectures in each
parents: int = 25  # of the evolved ones: so many of the best so far
crossover: float = 0.0  # probability that an evolved one mixes two parents; published: 0
previous: str = ""  # results of an earlier search as first parents: a run's files, or the original's file
speedup: float = 3.0  # limit: 0.85 to 1.10 times the base's latency divided by this
speedup_over: str = "supernet"  # the base: the whole supernet, or bert-base
max_latency_ms: float = 0.0  # the limit itself, used to 85 % at least, which then counts alone; 0: by speedup
max_parameters: int = 0  # embeddings included; 0: no limit, here and below
max_gflops: float = 0.0  # of the encoder for one example; a multiply-add is two
max_model_mb: float = 0.0  # the weights in float32
predictor: str = ""  # of the stage latency_predictor: a run's, or a folder; empty: architectures are timed
max_timed: int = 200  # without a predictor: architectures that are timed before any is scored
latency_batch_size: int = 1  # of timed calls, here and below; with a predictor its own conditions count
latency_seq_len: int = 128  # tokens per example
latency_threads: int = 1  # of torch
latency_clock: str = "wall"  # cpu: time of this process alone, where others use the machine too
score_on: list = ["masked_lm"]  # masked_lm: subnets in place; else tasks on which their slices are fine-tuned
fitness: str = "arithmetic"  # mean over the tasks: arithmetic, geometric or harmonic
seeds: int = 1  # fine-tunings of a candidate on a task; their mean counts
halvings: int = 0  # h: all get 1/2^h of the training, the better half twice as much, and so on
recipes: dict = {}  # what differs from AutoTinyBERT's recipe of a task: {sst2: {num_train_epochs: 1}}
select_on: str = "selection"  # rows that score; dev reproduces the paper
data_dir: str = "bundled"  # of the tasks: a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
max_steps: int = 0  # of a fine-tuning, at most; 0: no limit
max_rows: int = 0  # keep this many rows of each split, for smoke tests; 0: all
corpus: str = "bundled"  # masked_lm: rows that score; a text file, one sentence per line
corpus_rows: int = 512  # masked_lm: rows that score a candidate
max_seq_len: int = 64  # masked_lm: longer texts are cut, in tokens
workers: int = 1  # processes that fine-tune candidates; the result does not depend on it
threads: int = 0  # of torch, in each of them; 0: all cores, shared out evenly
finalists: int = 5  # best candidates that are timed by turns; the best one that keeps the limit wins
comparisons: bool = False  # also keep the median of the first generation, and BERT's proportions at the same latency
register_as: str = ""  # name in the model registry; empty: none
seed: int = 42  # of proposals, data order, masks, dropout and new weights

# %%
from compresskit.stages import search

params = search.SearchParams.take(globals())
stage = search.open(params)
stage.describe()

# %%
stage.run()

# %% [markdown]
# In place the score is minus the masked-word loss; on tasks it is their mean score. A useful supernet shows a trend: slower
# candidates score better. A cloud without any trend means that it has not been trained enough for its subnets to be told
# apart. The line is the front: candidates that no other one beats in both.

# %%
stage.front()

# %% [markdown]
# Where the candidates lie: grey is the whole space, the band is what the limit allows. Candidates of one latency differ in
# parameters, mostly because the word vectors cost memory and no time.

# %%
stage.cloud()

# %% [markdown]
# What evolution is worth: the best score so far should rise with the generations, and their medians too. When only the
# medians rise, more generations are unlikely to help.

# %%
stage.evolution()

# %% [markdown]
# Whether the prediction can be trusted: the finalists were timed by turns, on this machine. Lines much longer than the width
# of the band mean that the predictor was made under other conditions, or on a busy machine.

# %%
stage.agreement()

# %%
stage.finish()
