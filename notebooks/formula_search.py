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
# # Formula search — which feed-forward is best in each layer?
#
# EfficientBERT writes what a layer computes between two linear maps as a formula, and searches for one per layer in three
# stages: formulas and sizes (1), formulas of the sizes found (2), sizes of the formulas found (3). Candidates are drawn at
# random, then by classifiers that have learned from the scores so far. In stages 1 and 2 a score is what a candidate's slice of
# the supernet reaches after a short distillation and a short training on the task, on rows held back from train; in stage 3 it
# is that of the subnet as it is, inside a supernet that has learned the task with all sizes by turns.
#
# **In:** a supernet with formulas (stage `general_distill` with `formulas`; for stage 3 of `multitask` with `random_sizes`), what
# the stage before has found, an encoder and a task model to learn from. **Out:** the winner as a model of its own, all
# candidates with their scores as `found.json`, which the next stage reads.
# **Time:** a short training for each candidate, several at a time with `workers`, or on several machines that share
# `storage`; stage 3 seconds. A stopped search goes on with what it has.

# %% tags=["parameters"]
search_stage: int = 1  # 1: formulas and sizes; 2: formulas of frozen sizes; 3: sizes of frozen formulas
supernet: str = "models:/efficientbert-quick-supernet@latest"  # stage 3: one that has learned the task
previous: str = ""  # what the stage before has found: a run's, or a file; stages 2 and 3 begin with it
encoder: str = "models:/demo-encoder@latest"  # stages 1 and 2: candidates first learn its layers, from text
teacher: str = "models:/demo-teacher@latest"  # stages 1 and 2: then this task model's layers and answers
min_parameters: int = 0  # of the encoder without pooler; 0: no limit, here and below
max_parameters: int = 0  # stage 2 keeps the size that stage 1 has found
min_height: int = 3  # of a formula's tree
max_height: int = 7  # of a formula's tree
max_trials: int = 100  # candidates that are scored
max_minutes: float = 0.0  # of work, on this machine; 0: no limit; the trials then decide alone
initial_trials: int = 80  # that are drawn at random
refit_every: int = 10  # trials of a later round, which are drawn by what was found before it
exploration: float = 0.0  # how much the classifiers' tree also looks where few have been; published: 0
max_rejections: int = 500  # draws that the classifiers may refuse for a trial; then a random one is taken
task: str = "sst2"  # that scores candidates
data_dir: str = "bundled"  # of the task: a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
corpus: str = "bundled"  # a folder of the stage corpus; or a text, one sentence per line
corpus_share: float = 0.02  # a candidate learns from the first part of it
corpus_seq_len: int = 128  # tokens of the longest row of a text; a prepared corpus has its own
distill_epochs: float = 1.0  # passes over that part; 0: none
distill_learning_rate: float = 1e-4  # peak, on text
max_distill_steps: int = 0  # of a candidate on text, at most; 0: no limit
train_share: float = 0.1  # the first part of the task's training rows
num_train_epochs: float = 3.0  # passes over them
learning_rate: float = 4e-4  # peak, on the task
max_steps: int = 0  # of a candidate on the task, at most; 0: no limit
eval_every: int = 50  # steps; a candidate's best score counts
hidden_ratio: float = 1.0  # weight of the layers' part of the loss on the task
batch_size: int = 32  # rows per optimizer step
warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises
precision: str = "auto"  # of matrix products: float32, bfloat16, float16; auto: bfloat16 on a GPU that has it
max_seq_len: int = 128  # longer inputs are cut, in tokens
doc_stride: int = 128  # SQuAD: tokens from the start of one window to the next
max_query_length: int = 64  # SQuAD: longer questions are cut, in tokens
max_rows: int = 0  # keep this many rows of each split, for smoke tests; 0: all
select_on: str = "selection"  # rows that score candidates: a seeded part of train, or dev
faithful: bool = False  # the original's rules of a formula and its test for duplicates
storage: str = ""  # an Optuna journal file that several machines share; empty: one of this run alone
workers: int = 1  # processes that score candidates; the result does not depend on it
threads: int = 0  # of torch, in each of them; 0: all cores, shared out evenly
comparisons: bool = False  # also keep plain and random formulas of the winner's sizes, and plain ones of one size
register_as: str = ""  # name in the model registry; empty: none
seed: int = 42  # of draws, data order, dropout and new weights

# %%
from compresskit.stages import formula_search

params = formula_search.FormulaSearchParams.take(globals())
stage = formula_search.open(params)
stage.describe()

# %%
stage.run()

# %% [markdown]
# How much was drawn for these trials: duplicates compute what a candidate before them computes, in other words; refused are
# those that the classifiers took for the worse half.

# %%
stage.counts()

# %% [markdown]
# The winner. A layer's tree is read from the bottom: x is the layer's input, wb1 and wb2 are the weights of the two linear
# maps, `linear2_3` says two feed-forwards one after the other, each with a third of the inner width.

# %%
stage.trees()

# %% [markdown]
# Score against size. Candidates that differ by less than the noise of a short training cannot be told apart: the same
# formulas with another seed move by about as much as the middle half of this cloud is high, if the search is of no use.

# %%
stage.sizes()

# %% [markdown]
# What the classifiers are worth: the rounds after the random ones (0) should have higher medians. When they do not, there was
# nothing to learn, or too little to learn it from.

# %%
stage.course()

# %% [markdown]
# What they have learned, of all trials: a node without an accuracy is a leaf, as no classifier was better than a guess on
# candidates held out from it.

# %%
stage.classifiers()

# %%
stage.learned()

# %%
stage.finish()
