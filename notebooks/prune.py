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
# # Prune — how many weights does the model really need?
#
# The smallest weights of the encoder's matrices are set to zero, more and more of them along a cubic curve, while the model
# learns from a dense teacher: hidden states, attention scores and answers all at once (SparseBERT), or from labels alone.
#
# **In:** a fine-tuned model; or a pre-trained one and a fine-tuned `teacher` of its shape. **Out:** the same shape with
# `sparsity` of its encoder matrices zero. **Time:** about three fine-tunings; a stopped run goes on where it was.

# %% tags=["parameters"]
task: str = "sst2"  # cola, sst2, mrpc, stsb, qqp, mnli, mnli_mm, qnli, rte, wnli, squad1, squad2
model: str = "models:/demo-teacher@latest"  # what is pruned: a run, a registered model, a folder or a hub id
teacher: str = ""  # a task model of the same shape; empty: the model as it is before pruning
learn_from: str = "teacher"  # teacher, or labels: no teacher is asked
sparsity: float = 0.95  # share of zeros at the end among the matrices that are pruned
matrices: list[str] = []  # query, key, value, attention_output, intermediate, output; empty: all of these
threshold: str = "matrix"  # matrix: each reaches the sparsity; global: all of them together
pattern: str = "unstructured"  # 4x1, 8x1, 16x1, 1x2, 1x4: weights (outputs x inputs) that go together; or 2:4
begin_share: float = 0.0  # part of the steps before the sparsity rises
pruning_share: float = 0.7  # part in which it rises, then it is held; 0: at once; faithful: up to the last step
frequency: int = 0  # steps between two updates of the masks; 0: about 100 updates
restore_sparsity: bool = False  # go on from the zeros that the model has
fix_sparsity: bool = False  # keep exactly the zeros that the model has; sparsity and its schedule do not count
data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
augmented: str = ""  # what the stage augment made of train: a run's, or a folder; empty: train alone
max_seq_len: int = 128  # longer texts are cut, in tokens
doc_stride: int = 128  # SQuAD: tokens from the start of one window to the next
max_query_length: int = 64  # SQuAD: longer questions are cut, in tokens
batch_size: int = 32  # examples per optimizer step
learning_rate: float = 3e-5  # peak, reached after the warm-up
warmup_ratio: float = 0.1  # share of the steps in which the learning rate rises
num_train_epochs: float = 3.0  # passes over the training rows
temperature: float = 1.0  # of the softened answers
evals_per_epoch: int = 2  # how often the selection rows are scored
checkpoint: str = "best"  # best: of those at the final sparsity; last
select_on: str = "selection"  # rows that choose the checkpoint; dev reproduces the papers
faithful: bool = False  # as SparseBERT's code: BertAdam, constant rate, padding counts, its updates of the masks
max_steps: int = 0  # stop earlier, for smoke tests; 0: no limit
max_rows: int = 0  # keep this many rows of each split, for smoke tests; 0: all
threads: int = 0  # of torch; 0: all cores
register_as: str = ""  # name in the model registry; empty: not registered
seed: int = 42  # of data order, masks, dropout and new weights

# %%
from compresskit.evaluation import figures
from compresskit.stages import prune

params = prune.PruneParams.take(globals())
stage = prune.open(params)
stage.data.describe()

# %%
history = stage.train()

# %% [markdown]
# The loss rises while weights go and should come down again once the sparsity is held. If it does not, the pruning came too
# fast: more epochs, or a smaller `pruning_share`, which leaves more steps at the final sparsity. Only checkpoints there compete.

# %%
figures.learning_curve(history, ["train/loss", "train/sparsity", "select/score"])

# %%
stage.finish()
