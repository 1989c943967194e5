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
# # Augment — what else could these sentences have said?
#
# TinyBERT's data augmentation: copies of each training text in which words are replaced. A word of one piece gets candidates
# from a masked LM that reads the text twice, with the word masked and as it is; a word of several pieces gets the nearest words
# of a table of word vectors. A student that is distilled on the copies sees more of what its teacher knows.
#
# **In:** a GLUE task; a masked LM, a text file of word vectors in GloVe's format, or both. **Out:** `train_aug.tsv` with the
# rows of train and their copies, and a card that says which row each copy comes from, so that rows which choose a checkpoint
# are left out together with their copies. **Time:** on one core about 60 ms per word with BERT-base, 30 ms in bfloat16 where
# the CPU has it; seconds with word vectors only. A stopped run goes on where it was.

# %% tags=["parameters"]
task: str = "sst2"  # one of the nine GLUE tasks
data_dir: str = "bundled"  # a folder or hub id; "bundled"; empty: $COMPRESSKIT_DATA
masked_lm: str = "models:/demo-encoder@latest"  # a run, a registered model, a folder or a hub id; empty: none
embeddings: str = ""  # a text file of word vectors in GloVe's format; empty: none
copies: int = 0  # of each text, at most; 0: as many as TinyBERT made for the task
num_candidates: int = 15  # per word
probability: float = 0.4  # that a word of a copy is replaced
precision: str = "float32"  # of the masked LM; or bfloat16
batch_tokens: int = 1024  # per forward pass; a GPU wants more
faithful: bool = False  # the original's file byte for byte, with what it gets wrong
max_rows: int = 0  # augment this many rows of train, for smoke tests; 0: all
threads: int = 0  # of torch; 0: all cores
seed: int = 42  # of the draws

# %%
from compresskit.stages import augment

params = augment.AugmentParams.take(globals())
stage = augment.open(params)
stage.describe()

# %% [markdown]
# `candidates` names where replacements come from. *word vectors only* gives every word its nearest neighbours, whatever stands
# around it; opposites such as good and bad are often near, so that such copies may contradict their label. *masked LM only*
# leaves words of several pieces as they are.

# %%
stage.propose()

# %% [markdown]
# Candidates should fit their place, not mean the same: the teacher labels the copies anew while it teaches. The same list for
# every word, or one full of odd names, comes from a masked LM that has not learned much; look at its held-out loss.

# %%
stage.examples()

# %% [markdown]
# Short texts have fewer different copies than were asked for. `words_without` counts the words that nothing can replace.

# %%
stage.write()

# %%
stage.finish()
