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
# # Corpus — what will the network read before any task?
#
# Documents become pairs of segments, [CLS] A [SEP] B [SEP]: B follows A, or comes from another document. Or, with
# `packing: chunks`, they become plain chunks of sentences, as AutoTinyBERT reads them; with `packing: articles` each document
# gives one pair, of its middle and another one, which is what EfficientBERT's code makes of it. A source is a Wikipedia dump
# (`pages-articles`, .xml.bz2 as it is downloaded), a text of one sentence per line with a blank line between documents, the raw
# text of WikiText, a folder with a .txt per book, or AutoTinyBERT's own files of token lists.
#
# **In:** the sources by name. **Out:** a folder that `pretrain` and general distillation take as their `corpus`.
# **Time:** seconds with the bundled text; on one core about 15 minutes per GB of text, and 5 for each epoch. Memory does not
# grow with the corpus; a stopped run goes on where it was.

# %% tags=["parameters"]
sources: dict[str, str] = {"bundled": "bundled"}  # by name: a dump (.xml.bz2, .xml), a text, or a folder of books
joined: bool = True  # one corpus, B may come from any source; false: one corpus for each
vocabulary: str = ""  # a model, a folder or vocab.txt; empty: a WordPiece vocabulary is trained on the sources
vocab_size: int = 4000  # size of a vocabulary that is trained
packing: str = "pairs"  # pairs: segments A and B; articles: one pair of each; chunks: as many sentences as fit
max_seq_len: int = 128  # tokens of an instance, special ones included
short_seq_prob: float = 0.1  # share of the documents cut into shorter instances
one_seq: bool = False  # B always follows A
masked_lm_prob: float = 0.0  # share of the tokens masked here once and for all; pretrain masks anew at each step
max_predictions_per_seq: int = 20  # masked tokens of an instance, at most
whole_word_mask: bool = False  # mask all pieces of a word together
faithful: bool = False  # as released. pairs: one token is always masked; chunks: over-long and empty ones are kept
epochs: int = 3  # different cuts into pairs, for training epochs to take in turn; chunks are always the same
json_lines: bool = False  # also write the files that TinyBERT's or AutoTinyBERT's code reads
out: str = ""  # a new folder; empty: below mlruns/corpora
seed: int = 42  # of cuts, partners and masks

# %%
from compresskit.stages import corpus

params = corpus.CorpusParams.take(globals())
stage = corpus.open(params)
stage.describe()

# %%
stage.read()

# %% [markdown]
# A document should have many sentences (an encyclopaedia's 10 to 100, a book's thousands) and a sentence 15 to 30 tokens. One
# sentence per document means that the blank lines stand in the wrong places; hundreds of tokens per sentence, that the text has
# more than one sentence per line.

# %%
stage.pack()

# %% [markdown]
# Somewhat more than half of the pairs have a random B, since a rest of one sentence has nothing that follows it. Instances
# much shorter than `max_seq_len` come from short documents: they train, but a step then sees little text. Chunks of fewer than
# 3 tokens are dropped; a share of dropped tokens above a thousandth says that documents or sentences end in the wrong places.

# %%
stage.examples()

# %% [markdown]
# Read them: is A a piece of plain text, without markup, and does B follow it where it says `next`?

# %%
stage.finish()
