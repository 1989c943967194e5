"""The same model in every engine: its numbers, its dynamic shapes, and clear words where an engine is not there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import get_args

import pytest
import torch

from compresskit.evaluation import engines, latency
from compresskit.models import CompactBertConfig, CompactBertModel, export

CLOSE = {"onnxruntime": 1e-4, "openvino": 1e-4, "openvino-bf16": 0.05, "onnxruntime-int8": 0.15, "openvino-int8": 0.3}


def network() -> CompactBertModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return CompactBertModel(CompactBertConfig(vocab_size=60, max_position_embeddings=32, **shape)).eval()


def test_the_engines_are_those_that_params_may_name():
    assert get_args(engines.Engine) == engines.ENGINES
    assert [name for name in engines.ENGINES if not engines.uses_onnx(name)] == [
        "torch",
        "torch-default",
        "torch-sparse",
    ]


def test_torchs_default_products_are_in_force_during_the_call_only():
    seen = []

    class Watched(torch.nn.Module):
        def forward(self, fail: bool = False) -> None:
            seen.append(torch.get_float32_matmul_precision())
            if fail:
                raise RuntimeError("broken")

    torch.set_float32_matmul_precision("medium")
    try:
        wrapped = engines.prepare("torch-default", Watched(), None, {}, 1)
        assert isinstance(wrapped, torch.nn.Module)
        wrapped()
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(RuntimeError, match="broken"):
            wrapped(fail=True)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == ["highest", "highest"]


def test_an_engine_that_is_not_installed_is_named_with_the_remedy(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r"openvino-int8 needs nncf; install .*compresskit\[export\]"):
        engines.check_installed("openvino-int8")
    engines.check_installed("torch")


def test_an_engine_without_its_graph_is_refused():
    with pytest.raises(ValueError, match="openvino runs an ONNX graph; give its file"):
        engines.prepare("openvino", network(), None, {}, 1)


@pytest.mark.long
def test_every_engine_gives_the_models_numbers_at_the_shape_it_is_timed_at(tmp_path):
    model, graph = network(), tmp_path / "model.onnx"
    export.to_onnx(model, graph)
    errors, int8_files = {}, set()
    for batch_size, seq_len in ((1, 16), (3, 7)):
        batch = latency.random_batch(60, batch_size, seq_len, seed=seq_len)
        with torch.no_grad():
            expected = model(**batch).last_hidden_state
        for name in engines.ENGINES:
            if not engines.uses_onnx(name):
                continue
            for path in graph.parent.glob("*.int8.*"):
                int8_files.add(path.name)
            output = engines.prepare(name, model, graph, batch, 1)(batch)
            found = torch.as_tensor(output[0])
            error = ((found - expected).norm() / expected.norm()).item()
            errors[name] = max(errors.get(name, 0.0), error)
    assert int8_files == {"model.int8.onnx", "model.int8.xml", "model.int8.bin"}
    assert all(errors[name] <= bound for name, bound in CLOSE.items()), errors
    assert errors["openvino-bf16"] > errors["openvino"], "bfloat16 was not in force"
    assert errors["onnxruntime-int8"] > errors["onnxruntime"], "nothing was quantised"


@pytest.mark.long
def test_quantising_reports_to_nobody():
    """nncf's telemetry is a stub once engines has imported it (pytest itself would make it one, hence a process)."""
    pytest.importorskip("nncf")
    code = (
        "import tempfile, pathlib, torch\n"
        "from tests.evaluation.test_engines import network, engines, latency, export\n"
        "graph = pathlib.Path(tempfile.mkdtemp()) / 'm.onnx'\n"
        "model = network(); export.to_onnx(model, graph)\n"
        "import sys; sys.modules.pop('pytest', None)\n"
        "engines.prepare('openvino-int8', model, graph, latency.random_batch(60, 1, 8), 1)\n"
        "from nncf.telemetry.wrapper import telemetry\n"
        "print(type(telemetry).__name__)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("NNCF_CI", "NNCF_DEV", "CI")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "MagicMock"
