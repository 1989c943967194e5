"""Float32 products through oneDNN ("medium") against torch's default ("highest"), forward and backward:

    python -m benchmarks.float32_matmul

A linear layer of BERT-base's size, and TinyBERT-4 whole, with torch's fused attention and with explicit scores, and
transformers' eager model beside it as the peer. The error of each is that of its outputs and gradients against float64.
The fused attention multiplies small blocks, for which "medium" is slow: look at both ways before choosing one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from benchmarks.harness import Goal, as_float64, measure, publish, ratios
from compresskit.kernels.float32 import choose_float32_matmul
from compresskit.models import CompactBertConfig, CompactBertModel

LINEAR = "linear 768-3072, 1024 tokens"
ENCODER = "TinyBERT-4, 8 x 128"
TINYBERT_4: dict[str, Any] = {
    "hidden_size": 312,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "intermediate_size": 1200,
    "initializer_range": 0.05,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
EAGER: dict[str, Any] = {**TINYBERT_4, "attn_implementation": "eager"}
# The gradients whose true value is not zero; a key bias has none under a softmax, so its noise says nothing.
GRADIENTS = ("word_embeddings.weight", "query.weight", "intermediate.dense.weight", "output.dense.weight")

GOALS = {  # the gain depends on the CPU: 1.9 for the linear layer where AVX-512 is 512 bits wide, 1.2 where it is 256
    f"medium {LINEAR}": Goal(floor=1.0, aim=1.9),
    f"medium, explicit attention {ENCODER}": Goal(floor=0.95, aim=1.6),
    f"transformers, highest {ENCODER}": Goal(at_most=1.1, aim=1.0),  # the peer is no more than 10 % slower than it
    f"error of medium / of highest, {LINEAR}": Goal(at_most=4.0, aim=2.0),
    f"error of medium / of highest, {ENCODER}": Goal(at_most=4.0, aim=2.0),
}


def at(precision: str, step: Callable[..., Any]) -> Callable[..., Any]:
    """The step with torch's float32 products at this precision."""

    def run(*given: Any) -> Any:
        torch.set_float32_matmul_precision(precision)
        return step(*given)

    return run


def linear_step(x: Tensor, weight: Tensor, bias: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output and gradients of a linear layer: x (T, in), weight (out, in), bias (out,), upstream gradient (T, out)."""
    output = F.linear(x, weight, bias)
    return [output, *torch.autograd.grad(output, [x, weight, bias], upstream)]


def encoder_step(model: nn.Module) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Last hidden state, mean square and gradients of an encoder for input_ids and attention_mask, (B, S)."""
    weights = [parameter for name, parameter in model.named_parameters() if name.endswith(GRADIENTS)]

    def step(input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        states = model(input_ids, attention_mask=attention_mask).last_hidden_state
        loss = (states[:, 0] * states[:, 1]).mean()
        return [states, loss, *torch.autograd.grad(loss, weights)]

    return step


def linear_inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((1024, 768), (3072, 768), (3072,), (1024, 3072))
    x, weight, bias, upstream = (torch.randn(*shape, generator=generator) for shape in shapes)
    return [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), upstream]


def encoders() -> tuple[nn.Module, nn.Module, nn.Module]:
    """TinyBERT-4 with fused attention, with explicit attention, and as transformers' eager model; equal weights."""
    torch.manual_seed(0)
    fused = CompactBertModel(CompactBertConfig(**TINYBERT_4), add_pooling_layer=False)
    explicit = CompactBertModel(CompactBertConfig(**EAGER), add_pooling_layer=False)
    theirs = BertModel(BertConfig(**EAGER), add_pooling_layer=False)
    for other in (explicit, theirs):
        other.load_state_dict(fused.state_dict())
    return fused.eval(), explicit.eval(), theirs.eval()


if __name__ == "__main__":
    choice = choose_float32_matmul()
    print(choice.reason)
    timings = measure(
        {precision: at(precision, linear_step) for precision in ("highest", "medium")},
        {LINEAR: linear_inputs()},
        baseline="highest",
        max_error=2e-6,
    )
    fused, explicit, theirs = encoders()
    ids = torch.randint(1, 30522, (8, 128), generator=torch.Generator().manual_seed(1))
    timings += measure(
        {
            "highest": at("highest", encoder_step(fused)),
            "medium": at("medium", encoder_step(fused)),
            "highest, explicit attention": at("highest", encoder_step(explicit)),
            "medium, explicit attention": at("medium", encoder_step(explicit)),
            "transformers, highest": at("highest", encoder_step(theirs)),
        },
        {ENCODER: [ids, torch.ones_like(ids)]},
        baseline="highest",
        reference=encoder_step(as_float64(fused)),
        max_error=1e-5,
    )
    errors = {(timing.contestant, timing.input): timing.error for timing in timings}
    compared = {
        f"error of medium / of highest, {where}": errors["medium", where] / errors["highest", where]
        for where in (LINEAR, ENCODER)
    }
    publish("float32_matmul", timings, ratios(timings, "highest") | compared, GOALS, notes={"choice": asdict(choice)})
