"""A network inside a supernet as a model of its own, from the command line."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from compresskit.models import CompactBertConfig, CompactBertModel, checkpoints, elastic, presets
from compresskit.models import heads as ours
from compresskit.models.bert import CompactBertPreTrainedModel
from compresskit.search import arch_text
from compresskit.stages.inputs import tokenizer_for
from compresskit.stages.session import model_folder

HEADS = (  # what tells a class: a weight of its head
    ("cls.seq_relationship.weight", ours.CompactBertForPreTraining),
    ("cls.predictions.transform.dense.weight", ours.CompactBertForMaskedLM),
    ("classifier.weight", ours.CompactBertForSequenceClassification),
    ("qa_outputs.weight", ours.CompactBertForQuestionAnswering),
)


def extract(source: str, out: Path, arch: str, preset: str, sizes: dict[str, int], heads: bool) -> str:
    """Write the network that `arch` (AutoTinyBERT's text), a preset or sizes describe, with its vocabulary, to `out`.

    Without any of them the whole network is written: a released checkpoint becomes a folder of ours. heads: those that
    `source` has come along, and the projection to a teacher's width, both as narrow as the network. Returns what was
    written, in a line. Raises ValueError where the description is none, or does not fit into the model.
    """
    if bool(arch) + bool(preset) + bool(sizes) > 1:
        raise ValueError("the network is described twice; give --arch, --preset, or sizes")
    folder = Path(checkpoints.local_folder(model_folder(source)))
    if out.expanduser().resolve() == folder.resolve():
        raise ValueError(f"{out} is the model itself; name another folder")
    found = checkpoints.read(folder)
    model = whole_model(found, heads)
    tokenizer = tokenizer_for(folder, model.config.vocab_size)
    if arch:
        subnet = arch_text.parse(arch, model.config)
    elif preset:
        subnet = model.config.changed(**presets.sizes(preset))
    else:
        subnet = model.config.changed(**sizes)
    small = elastic.extract(model, subnet)
    checkpoints.save(small, out, tokenizer, projections(found, subnet) if heads else None)
    return f"{presets.notation(subnet)}, {small.num_parameters():,} parameters"


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
