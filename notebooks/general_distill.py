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
# # General distillation — a small encoder that knows the language before it knows any task
#
# TinyBERT's first stage, and EfficientBERT's pre-training. A student that starts at random, or as layers of its teacher, imitates on plain text what happens
# between the layers of a pre-trained teacher: its attention scores and hidden states. No words are masked and no labels are
# asked for. Every task student that begins as the result learns faster than one that begins at random. With `random_sizes`
# it is a supernet: at each step a network of other feed-forward sizes learns.
#
# **In:** a corpus (a folder made by the stage `corpus`, or a text with one sentence per line), a pre-trained encoder that no
# task has changed, sizes. **Out:** a general student that `distill` and `finetune` take as `student` and `model`, its
# projection to the teacher's width beside it.
# **Time:** about a minute on the bundled corpus; days on Wikipedia, where a GPU is the place. A stopped run goes on where it
# was.

# %% tags=["parameters"]
corpus: str = "bundled"  # a folder of the stage corpus; or a text, one sentence per line
teacher: str = "models:/demo-encoder@latest"  # a pre-trained encoder: a run, a registered model, a folder or hub id
student: str = ""  # go on with this general student; empty: a new one
student_layers: list[int] = []  # teacher layers, from 1, that a new one begins as; empty: random, of these sizes
architecture: str = ""  # published, or a model's or a search's; a student is cut to it; empty: the sizes below
random_sizes: bool = False  # at each step other feed-forward sizes learn, the architecture's or any of the 16
num_hidden_layers: int = 2  # of a new student
hidden_size: int = 64  # of a new student
num_attention_heads: int = 4  # of a new student; as many as the teacher has
intermediate_size: int = 256  # of a new student
embedding_size: int = 0  # of a new student's trigram embedding, as EfficientBERT has; 0: BERT's embedding
formulas: bool = False  # a new student is a supernet whose formulas can be searched: four feed-forwards in each layer
dropout: float = 0.1  # of states and attention of one that starts at random
initializer_range: float = 0.02  # of a new student
layer_mapping: list[int] = []  # teacher layer for each student layer, from 1; empty: uniform
projection: str = "shared"  # from student to teacher width, where these differ; or per_layer
teacher_dtype: str = "auto"  # auto: bfloat16 if it is fast and changes the loss by less than 0.1 %
precision: str = "float32"  # of matrix products: float32, bfloat16, float16; auto: bfloat16 on a GPU that has it
max_seq_len: int = 128  # tokens of the longest row
batch_size: int = 32  # rows per optimizer step
learning_rate: float = 5e-5  # peak, reached after the warm-up
warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises
num_train_epochs: float = 3.0  # passes over the text; a prepared corpus cuts it anew for each
faithful: bool = False  # as the original's code: its optimizer and schedule, padding to max_seq_len that counts
original: str = "tinybert"  # whose code faithful follows; or efficientbert
max_steps: int = 0  # stop earlier, for smoke tests; 0: no limit
threads: int = 0  # of torch; 0: all cores
register_as: str = ""  # name in the model registry; empty: not registered
seed: int = 42  # of data order, dropout and new weights

# %%
from compresskit.evaluation import figures
from compresskit.stages import general_distill

params = general_distill.GeneralDistillParams.take(globals())
stage = general_distill.open(params)
stage.shapes()

# %%
stage.describe()

# %%
history = stage.train()

# %% [markdown]
# The loss is the sum of both parts, each itself a sum over layers. TinyBERT's authors saw the attention loss fall from 28.8 to
# 7.7 and the hidden loss from 2.0 to 1.1 in two passes over Wikipedia, with BERT-base as teacher; other teachers have other
# scales, but both parts should fall together. Hidden losses that fall while attention stands still point to a wrong mapping.

# %%
figures.learning_curve(history, ["train/attention_loss", "train/hidden_loss"])

# %% [markdown]
# The same losses on text that was held out, before and after. A drop in training that does not show here is learned by heart.

# %%
stage.comparison()

# %%
stage.finish()
