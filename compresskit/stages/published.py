"""What others have published, as it stands beside our own results."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One line of a table: who, measured on what, and points by task."""

    who: str
    measured_on: str
    points: dict[str, float]
    verified: bool  # whether the figure was compared with its source


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

PUBLISHED = {"tinybert-ablation": (TINYBERT, NOT_COMPARABLE)}  # by pipeline: the lines, and what to make of them
