"""Feature-major residual sum and normalisation against torch's row-major one in float64."""

import pytest
import torch
import torch.nn.functional as F

from compresskit.kernels import layer_norm


@pytest.mark.parametrize("name", sorted(layer_norm.IMPLEMENTATIONS))
@pytest.mark.parametrize(("features", "tokens"), [(1, 1), (5, 3), (768, 64), (33, 130), (312, 1)])
def test_states_are_those_of_torchs_layer_norm(monkeypatch, name, features, tokens):
    monkeypatch.setenv("COMPRESSKIT_KERNELS", name)
    generator = torch.Generator().manual_seed(features)
    x, residual = (torch.randn(features, tokens, generator=generator) * 3 + 1 for _ in range(2))
    weight, bias = torch.randn(2, features, generator=generator)
    before = x.clone(), residual.clone()
    found = layer_norm.add_and_norm(x, residual, weight, bias, 1e-12)
    exact = F.layer_norm((x + residual).double().T, (features,), weight.double(), bias.double(), 1e-12).T
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=2e-5)  # sums of up to 768 in float32
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
