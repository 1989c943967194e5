"""Does a model answer the same to the same input, bit for bit? From the command line."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from compresskit.models import CompactBertConfig, CompactBertForSequenceClassification, checkpoints
from compresskit.stages.session import DEVICE, model_folder, on_device

SEQ_LEN = 64
RUNS = 20


def demo(source: str, seed: int = 42) -> bool:
    """Run the task model that `source` names 20 times on one random input and print its logits.

    Returns whether all runs agree bit for bit. Raises ValueError for a model without labels.
    """
    found = checkpoints.read(model_folder(source))
    if "classifier.weight" not in found.weights:
        raise ValueError(f"{source} has no classifier, so it has no logits to show; name a model of the stage finetune")
    model = on_device(found.model(CompactBertForSequenceClassification))
    batch = random_input(model.config, seed)
    real = int(batch["attention_mask"].sum())
    print(f"{source} on {DEVICE}: one random input of {SEQ_LEN} tokens, {real} of them real, seed {seed}")
    model.eval()
    with torch.inference_mode():
        answers = [model(**batch).logits[0] for _ in range(RUNS)]
    equal = [same_bits(before, after) for before, after in pairwise(answers)]
    for number, logits in enumerate(answers, 1):
        told = (
            "" if number == 1 else "  equal to the run before" if equal[number - 2] else "  NOT equal to the run before"
        )
        print(f"run {number:2}: {', '.join(f'{value:.9g}' for value in logits.tolist())}{told}")
    print(f"{RUNS} runs: " + ("all equal, bit for bit" if all(equal) else f"{equal.count(False)} differ"))
    return all(equal)


def random_input(config: CompactBertConfig, seed: int) -> dict[str, Tensor]:
    """One row of ids, token types and a mask with holes, at least one token of it real; each (1, 64)."""
    if config.max_position_embeddings < SEQ_LEN:
        raise ValueError(f"the model takes {config.max_position_embeddings} tokens, the demo gives it {SEQ_LEN}")
    rng = torch.Generator().manual_seed(seed)
    ids, types, mask = (
        torch.randint(upper, (1, SEQ_LEN), generator=rng) for upper in (config.vocab_size, config.type_vocab_size, 2)
    )
    mask[0, 0] = 1
    batch = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of one shape and type hold the same bits: NaN equals itself, 0 differs from -0."""
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))
