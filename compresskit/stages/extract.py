"""A network inside a supernet as a model of its own, from the command line."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from compresskit.models import CompactBertConfig, CompactBertModel, checkpoints, efficientbert, elastic, presets
from compresskit.models import heads as ours
from compresskit.models.bert import CompactBertPreTrainedModel
from compresskit.models.feed_forward import parse_all
from compresskit.search import arch_text
from compresskit.stages.inputs import tokenizer_for
from compresskit.stages.session import model_folder

HEADS = (  # what tells a class: a weight of its head
    ("cls.seq_relationship.weight", ours.CompactBertForPreTraining),
    ("cls.predictions.transform.dense.weight", ours.CompactBertForMaskedLM),
    ("classifier.weight", ours.CompactBertForSequenceClassification),
    ("qa_outputs.weight", ours.CompactBertForQuestionAnswering),
)


def extract(
    source: str,
    out: Path,
    arch: str,
    preset: str,
    sizes: dict[str, int],
    heads: bool,
    shrink: str = "",
    vocab_source: str = "",
) -> str:
    """Write the network that `arch` (AutoTinyBERT's text, or formulas), a preset or sizes describe, with its
    vocabulary, to `out`.

    Without any of them the whole network is written: a released checkpoint becomes a folder of ours. source: also a
    file of the original EfficientBERT, whose vocabulary lies beside it or is named by vocab_source. heads: those that
    `source` has come along, and the projection to a teacher's width, both as narrow as the network. shrink: "6x360",
    layers and hidden_size to which EfficientBERT's supernet is cut first, its layers once or several times in a row.
    Returns what was written, in a line. Raises ValueError where the description is none, or does not fit into the
    model.
    """
    if bool(arch) + bool(preset) + bool(sizes) > 1:
        raise ValueError("the network is described twice; give --arch, --preset, or sizes")
    file = Path(source).expanduser()
    folder = file.parent if file.is_file() else Path(checkpoints.local_folder(model_folder(source)))
    if out.expanduser().resolve() == folder.resolve():
        raise ValueError(f"{out} is the model itself; name another folder")
    found = efficientbert.read(file) if file.is_file() else checkpoints.read(folder)
    if shrink:
        found = shrunk(found, shrink)
    model = whole_model(found, heads)
    tokenizer = tokenizer_for(vocab_source or folder, model.config.vocab_size)
    if arch.lstrip()[:1].isalpha():
        subnet = model.config.changed(feed_forward=[str(formula) for formula in parse_all(arch)])
    elif arch:
        subnet = arch_text.parse(arch, model.config)
    elif preset:
        subnet = model.config.changed(**presets.sizes(preset))
    else:
        subnet = model.config.changed(**sizes)
    small = elastic.extract(model, subnet)
    checkpoints.save(small, out, tokenizer, projections(found, subnet) if heads else None)
    return f"{presets.notation(subnet)}, {small.num_parameters():,} parameters"


def shrunk(found: checkpoints.Checkpoint, shape: str) -> checkpoints.Checkpoint:
    """EfficientBERT's cut by its shape, such as 6x360. Raises ValueError for another text, and as `shrink` does."""
    layers, _, width = shape.lower().partition("x")
    if not (layers.isdecimal() and width.isdecimal() and int(layers)):
        raise ValueError(f"--shrink {shape}: expected layers and hidden size, as in 6x360")
    copies, rest = divmod(int(layers), found.architecture().num_hidden_layers)
    if rest:
        have = found.architecture().num_hidden_layers
        raise ValueError(f"--shrink {shape}: {layers} is no multiple of the model's {have} layers")
    return efficientbert.shrink(found, int(width), copies)


def whole_model(found: checkpoints.Checkpoint, heads: bool) -> CompactBertPreTrainedModel:
    """The checkpoint with its heads, or the encoder alone, with the pooler if it has one."""
    kinds = [kind for weight, kind in HEADS if weight in found.weights]
    if heads and kinds:
        return found.model(kinds[0])
    return found.model(
        lambda config: CompactBertModel(config, add_pooling_layer="pooler.dense.weight" in found.weights)
    )


def projections(found: checkpoints.Checkpoint, subnet: CompactBertConfig) -> dict[str, Tensor]:
    """What only a trainer wants of a checkpoint, as narrow as the subnet: maps to a teacher's width."""
    return {
        name: tensor[:, : subnet.hidden_size] if name.endswith("weight") else tensor
        for name, tensor in found.training_only.items()
    }
