"""What others have published, as it stands beside our own results."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """One line of a table: who, measured on what, and points by task."""

    who: str
    measured_on: str
    points: dict[str, float]
    verified: bool  # whether the figure was compared with its source


@dataclass(frozen=True)
class Comparison:
    """What stands below a pipeline's own results."""

    published: tuple[Published, ...]
    text: str  # what to make of it
    metrics: dict[str, str] = field(default_factory=dict)  # by task, where not the task's main one
    ours: tuple[str, ...] = ()  # our models that are shown in the same measure


GLUE_TEST = "GLUE test server"
TINYBERT = (
    Published("TinyBERT, 4 layers (paper)", GLUE_TEST, {"mrpc": 86.4, "rte": 66.6, "stsb": 80.4, "sst2": 92.6}, False),
    Published("TinyBERT, 6 layers (paper)", GLUE_TEST, {"mrpc": 87.3, "rte": 70.0, "stsb": 83.7, "sst2": 93.1}, False),
    Published("TinyBERT, 4 layers, on a GPU (accelerator variant's README)", "SST-2 dev", {"sst2": 91.63}, True),
    Published("TinyBERT, 4 layers, on 8 GPUs (the same)", "SST-2 dev", {"sst2": 90.94}, True),
    Published("TinyBERT, 4 layers, on the accelerator (the same)", "SST-2 dev", {"sst2": 90.85}, True),
    Published("what that README asks for", "SST-2 dev", {"sst2": 87.6}, True),
)
NOT_COMPARABLE = """\
These are not comparable with the table above: they come from other students (4 or 6 layers, 312 or 768 wide), a
BERT-base teacher, a general distillation over all of Wikipedia, up to twenty passes over up to sixty times the rows,
and mostly from the hidden test rows, with F1 for MRPC and Spearman's correlation for STS-B where the table above has
accuracy and the mean of both correlations. What can be compared is the order of the variants within our own table."""

SPARSEBERT = (
    Published("SparseBERT, BERT-base fine-tuned", "dev", {"mrpc": 90.78, "qnli": 91.36}, True),
    Published("SparseBERT, BERT-base at 95 %", "dev", {"mrpc": 90.54, "qnli": 90.21}, True),
)
SPARSEBERT_COMPARABLE = """\
Theirs is BERT-base with 85 million weights in its 72 matrices; the 5 % that stay, 4.2 million, are a third of what
MiniLM's 36 matrices hold before pruning (10.6 million, 0.5 after). It learned from all rows and many copies of each,
for 12 passes (MRPC) and 5 (QNLI), and its checkpoint was chosen on the dev rows that the score is from. So the levels
are not comparable; what can be set side by side is the loss from dense to 95 %."""

DYNAMIC_TINYBERT = (  # SQuAD 1.1 dev: F1, and the best speed-up within 1 % of BERT's, on 24 threads with batches of 16
    ("BERT-base", 88.5, 1.0),
    ("DistilBERT", 85.8, None),
    ("TinyBERT, 6 layers", 87.5, 2.0),
    ("Dynamic-TinyBERT", 88.71, 3.3),
)
DYNAMIC_TINYBERT_COMPARABLE = """\
Theirs is a BERT-base teacher with a student of six layers as wide, 384 tokens, all rows and up to 40 passes over them;
the best configuration was picked on the dev rows that its score is from, and the time is that of a whole evaluation, in
which the published 2x of six layers is that of its multiply-adds. Ours are a fraction of that size and training, with
shorter inputs, lengths picked on held-back rows, and a single input on one thread. So neither the level of F1 nor the
factor is comparable; what can be set side by side is how much of the factor comes from fewer layers and how much from
fewer tokens, and whether LengthDrop was needed for it (the paper found no significant gain)."""

PUBLISHED = {  # by pipeline
    "tinybert-ablation": Comparison(TINYBERT, NOT_COMPARABLE),
    "sparsebert-ablation": Comparison(
        SPARSEBERT, SPARSEBERT_COMPARABLE, {"mrpc": "f1"}, ("baseline-teacher", "sparsebert-95")
    ),
}
