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
# # Pretrain — a model, or a supernet, from plain text
#
# Masked words teach the network the language before any task does. The result is the start of a teacher; with `supernet`
# set, smaller networks inside it learn by turns, so that a later search can score them without training each of them.
#
# **In:** a corpus (one sentence per line, or a folder made by the stage `corpus`), sizes. **Out:** a model folder with its
# vocabulary, as an artifact of the run.
# **Time:** about 1 minute with the bundled corpus; a stopped run goes on where it was.

# %% tags=["parameters"]
corpus: str = "bundled"  # a text, one sentence per line, blank line between documents; or of the stage corpus
vocabulary: str = ""  # a folder or vocab.txt; empty: a WordPiece vocabulary is trained on the corpus
vocab_size: int = 4000  # size of a vocabulary that is trained
model: str = ""  # start from this model; empty: a new one of the sizes below
num_hidden_layers: int = 4  # of a new model
hidden_size: int = 128  # of a new model
num_attention_heads: int = 4  # of a new model
intermediate_size: int = 512  # of a new model
dropout: float = 0.1  # of a new model's states and attention; 0 suits short runs
initializer_range: float = 0.02  # of a new model
supernet: str = ""  # a search space of this flavour learns along with the whole network
max_seq_len: int = 64  # longer texts are cut, in tokens
batch_size: int = 32  # examples per optimizer step
learning_rate: float = 5e-4  # peak, reached after the warm-up
warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises
num_train_epochs: float = 1.0  # passes over the training rows
max_steps: int = 0  # stop earlier, for smoke tests; 0: no limit
threads: int = 0  # of torch; 0: all cores
register_as: str = ""  # name in the model registry; empty: not registered
seed: int = 42  # of data order, masks, dropout and new weights

# %%
from compresskit.evaluation import figures
from compresskit.stages import pretrain

params = pretrain.PretrainParams.take(globals())
stage = pretrain.open(params)
stage.describe()

# %%
history = stage.train()

# %% [markdown]
# The loss starts near the logarithm of the vocabulary size and should fall quickly at first, then slowly. A flat curve from
# the start points to a learning rate that is far too low; a curve that jumps upwards, to one that is too high. With a supernet
# `loss_whole` is the loss of the full network and should lie below the mean of both.

# %%
figures.learning_curve(history, [key for key in history["key"].unique() if "loss" in key])

# %% [markdown]
# The held-out loss is measured on sequences the model never trained on, with fixed masks: compare runs by it.

# %%
stage.finish()
