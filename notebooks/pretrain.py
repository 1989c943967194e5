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
# Masked words, or a teacher's last layer, teach the network the language before any task does. The result is the start of a
# teacher or of a student; with `supernet` set, smaller networks inside it learn by turns, so that a later search can score
# them without training each of them. A network that was found is trained further in the same way: name it as `model`.
#
# **In:** a corpus (one sentence per line, or a folder made by the stage `corpus`), sizes or a model, perhaps a teacher.
# **Out:** a model folder with its vocabulary, as an artifact of the run; learned from a teacher, with the projection to the
# teacher's width beside it.
# **Time:** about 1 minute with the bundled corpus; a stopped run goes on where it was.

# %% tags=["parameters"]
corpus: str = "bundled"  # a text, one sentence per line, blank line between documents; or of the stage corpus
vocabulary: str = ""  # a folder or vocab.txt; empty: the model's or teacher's, or one trained on the corpus
vocab_size: int = 4000  # size of a vocabulary that is trained
teacher: str = ""  # learn this encoder's last layer, as AutoTinyBERT's kd flavour; empty: masked words
teacher_dtype: str = "auto"  # auto: bfloat16 where that is fast and changes the loss by less than 0.1 %
model: str = ""  # start from this model; empty: a new one of the sizes below
num_hidden_layers: int = 4  # of a new model
hidden_size: int = 128  # of a new model
num_attention_heads: int = 4  # of a new model; with a teacher as many as it has
intermediate_size: int = 512  # of a new model
max_position_embeddings: int = 0  # longest input of a new model, in tokens; 0: max_seq_len, 128 at least
dropout: float = 0.1  # of a new model's states and attention; 0 suits short runs
initializer_range: float = 0.02  # of a new model
supernet: str = ""  # subnets of this search space learn; mlm drops heads, kd narrows them; empty: the model alone
subnets_per_step: int = 1  # drawn at each step, from the seed and the step alone
sandwich: bool = True  # the whole network learns at each step too
max_seq_len: int = 64  # longer texts are cut, in tokens
batch_size: int = 32  # examples per optimizer step
gradient_accumulation_steps: int = 1  # parts a batch is computed in, one after the other, to save memory
precision: str = "auto"  # of matrix products: float32, bfloat16, float16; auto: bfloat16 on a GPU that has it
learning_rate: float = 5e-4  # peak, reached after the warm-up
warmup_steps: int = 0  # in which the learning rate rises; 0, or more than the run has: warmup_ratio
warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises
num_train_epochs: float = 1.0  # passes over the training rows
faithful: bool = False  # as AutoTinyBERT's programs: optimizer, padding, mask and token types in each other's place
max_steps: int = 0  # stop earlier, for smoke tests; 0: no limit
threads: int = 0  # of torch; 0: all cores
register_as: str = ""  # name in the model registry; empty: not registered
seed: int = 42  # of data order, masks, subnets, dropout and new weights

# %%
from compresskit.evaluation import figures
from compresskit.stages import pretrain

params = pretrain.PretrainParams.take(globals())
stage = pretrain.open(params)
stage.describe()

# %% [markdown]
# The table says where weights start that are not the encoder's, and by which rule the learning rate rises: `warmup_steps`
# if the run has so many, else `warmup_ratio`. A warm-up longer than the run would leave it without a single full step.

# %%
history = stage.train()

# %% [markdown]
# The loss of masked words starts near the logarithm of the vocabulary size and should fall quickly at first, then slowly. A
# flat curve from the start points to a learning rate that is far too low; a curve that jumps upwards, to one that is too
# high. Of a supernet `loss_whole` is the loss of the full network and `loss_subnets` that of the drawn ones, which rises and
# falls with their sizes and should lie above it in the mean; far above it, the subnets have not been trained enough to be
# compared. With a teacher `attention_loss` and `hidden_loss` are the two parts of the loss.

# %%
figures.learning_curve(history, [key for key in history["key"].unique() if "loss" in key and key.startswith("train/")])

# %% [markdown]
# The held-out loss is of the whole network, measured on sequences it never trained on, with fixed masks: compare runs by it.

# %%
stage.finish()
