"""Vocabularies: trained the same everywhere, loaded from whatever a folder holds, checked against an embedding."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models

from compresskit.data import vocabulary

LINES = ["The lowest plots were lower than the newest, wider plots.", "Naïve CAFÉ owners plot widely!"] * 3


def test_training_gives_the_same_vocabulary_in_every_process():
    code = (
        "import sys, json; from compresskit.data import vocabulary;"
        f"print(json.dumps(vocabulary.train_wordpiece({LINES!r}, 60).get_vocab(), sort_keys=True))"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert runs == {(json.dumps(vocabulary.train_wordpiece(LINES, 60).get_vocab(), sort_keys=True) + "\n").encode()}


def test_training_lower_cases_strips_accents_and_learns_frequent_words():
    tokenizer = vocabulary.train_wordpiece(LINES, 90)
    assert len(tokenizer) <= 90
    assert tokenizer.tokenize("PLOTS, Café") == tokenizer.tokenize("plots, cafe")
    assert tokenizer.tokenize("plots") == ["plots"]
    assert "[UNK]" not in tokenizer.tokenize("the widest owner")
    assert [tokenizer.convert_tokens_to_ids(t) for t in vocabulary.SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.model_max_length == 512


def test_rare_characters_of_a_big_alphabet_become_unknown():
    common = [chr(0x4E00 + offset) for offset in range(1000)]
    tokenizer = vocabulary.train_wordpiece([*common, *common, "\u6b00"], 2000)
    assert tokenizer.tokenize(common[999]) == [common[999]]
    assert tokenizer.tokenize("\u6b00") == ["[UNK]"]


def test_training_without_text_or_room_is_refused():
    with pytest.raises(ValueError, match="the lines contain no text"):
        vocabulary.train_wordpiece(["", "  "], 100)
    with pytest.raises(ValueError, match="vocab_size 10 does not hold the"):
        vocabulary.train_wordpiece(LINES, 10)


def test_saving_and_loading_keeps_every_id(tmp_path):
    trained = vocabulary.train_wordpiece(LINES, 90)
    trained.save_pretrained(tmp_path)
    loaded = vocabulary.load_tokenizer(tmp_path)
    assert loaded.get_vocab() == trained.get_vocab()
    assert loaded("naïve plots", "lower")["input_ids"] == trained("naïve plots", "lower")["input_ids"]
    assert loaded("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert loaded.model_max_length == 512


def test_a_folder_with_vocab_txt_alone_suffices_and_no_network_is_used(vocab_file, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a local folder needs no network"))
    shutil.copy(vocab_file, tmp_path)
    tokenizer = vocabulary.load_tokenizer(tmp_path)
    assert tokenizer.tokenize("The plots") == ["the", "plot", "##s"]
    assert tokenizer.model_max_length == 512
    tokenizer.save_pretrained(tmp_path / "saved")
    assert vocabulary.load_tokenizer(tmp_path / "saved").get_vocab() == tokenizer.get_vocab()


def test_settings_beside_vocab_txt_count(vocab_file, tmp_path):
    shutil.copy(vocab_file, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 128}')
    tokenizer = vocabulary.load_tokenizer(tmp_path)
    assert tokenizer.tokenize("The plot") == ["[UNK]", "plot"]
    assert tokenizer.model_max_length == 128


def test_a_folder_without_vocabulary_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no vocabulary; copy the vocab.txt or tokenizer.json"):
        vocabulary.load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        vocabulary.load_tokenizer(tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", r"\[MASK\] missing; expected a BERT vocabulary"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", "line 8: 'a' is already on line 6"),
        (b"[PAD]\n\xff\xfe\n", "line 2: not UTF-8"),
    ],
)
def test_a_broken_vocab_txt_is_named_with_its_line(content, message, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        vocabulary.load_tokenizer(tmp_path)


def test_other_kinds_of_tokenizer_are_refused(tmp_path):
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="a BPE tokenizer; BERT models need WordPiece"):
        vocabulary.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json: broken JSON"):
        vocabulary.load_tokenizer(tmp_path)


def test_the_vocabulary_has_to_fit_the_embedding(tokenizer):
    size = len(tokenizer)
    for fitting in (size, size + 1, size + 127):
        vocabulary.check_vocabulary(tokenizer, fitting, "model")
    with pytest.raises(
        ValueError, match=f"model: the vocabulary has ids up to {size - 1}, the embedding only {size - 1}"
    ):
        vocabulary.check_vocabulary(tokenizer, size - 1, "model")
    with pytest.raises(ValueError, match=f"the vocabulary has {size} entries, the embedding {size + 128} rows"):
        vocabulary.check_vocabulary(tokenizer, size + 128, "model")
