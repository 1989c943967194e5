"""A search killed while several processes fine-tune its candidates ends, called again, as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from compresskit.data import bundled, vocabulary
from compresskit.models import CompactBertConfig, CompactBertForMaskedLM, checkpoints

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long

SCRIPT = """
import sys
from types import SimpleNamespace
from compresskit.evaluation import latency
from compresskit.stages import search

def measure(contestants, batch, **settings):
    cost = lambda c: c.num_hidden_layers * (1 + c.hidden_size / 32 + c.brief("intermediate_size") / 128)
    return [SimpleNamespace(name=name, latency_p50_ms=cost(m.config)) for name, m in contestants.items()]

if __name__ == "__main__":
    latency.measure = measure
    recipes = {"sst2": {"max_seq_len": 32, "eval_every": 20, "learning_rate": 1e-3}}
    params = search.SearchParams(
        supernet=sys.argv[1], generations=["random", "evolved"], generation_size=4, speedup=2, max_timed=60, halvings=1,
        score_on=["sst2"], recipes=recipes, max_rows=600, max_steps=60, workers=2, threads=1,
    )
    stage = search.open(params)
    table = stage.run()
    print("TABLE", table.to_json(orient="records"))
    print("RESULT", stage.finish()["architecture"].iloc[0])
"""


def told(output: str, what: str) -> str:
    return next(line.partition(" ")[2] for line in output.splitlines() if line.startswith(what))


def test_a_killed_search_goes_on_to_the_same_table_and_leaves_no_process_behind(store, tmp_path):
    corpus = bundled.write(store / ".cache" / "bundled") / "corpus.txt"
    tokenizer = vocabulary.train_wordpiece(corpus.read_text().splitlines()[:2000], 800)
    config = CompactBertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128
    )
    torch.manual_seed(0)
    checkpoints.save(CompactBertForMaskedLM(config), tmp_path / "supernet", tokenizer)
    (tmp_path / "go.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "go.py"), str(tmp_path / "supernet")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COMPRESSKIT_HEADLESS": "1", "PYTHONPATH": str(ROOT)}

    def go(stop_after: int = 0) -> str:
        """The output of a whole run, or the end of one that is killed after so many scores."""
        with open(tmp_path / "out", "w") as out:
            process = psutil.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
            while process.poll() is None:
                if stop_after and scores(store) >= stop_after:
                    children = process.children(recursive=True)
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    assert children
                    assert not psutil.wait_procs(children, timeout=60)[1], "a process outlived the search"
                    return ""
                time.sleep(0.05)
        assert process.wait() == 0, (tmp_path / "out").read_text()
        return (tmp_path / "out").read_text()

    straight = go()
    assert scores(store) == 0  # the work folder is gone
    for stop_after in (1, 4, 7, 11):
        go(stop_after)
        assert scores(store) >= stop_after
    again = go()
    assert json.loads(told(again, "TABLE")) == json.loads(told(straight, "TABLE"))
    assert told(again, "RESULT") == told(straight, "RESULT")


def scores(store: Path) -> int:
    """Fine-tunings that the unfinished search has written down."""
    lines = [line for path in store.glob("mlruns/unfinished/*/journal.jsonl") for line in path.read_text().splitlines()]
    return sum('["sst2, seed' in line for line in lines)
