"""The tokenizer against the pieces that TinyBERT's own one gives."""

from __future__ import annotations

import json
import re

import pytest

from compresskit.data import vocabulary
from tests.oracle_cases import oracle

SPECIAL = "|".join(map(re.escape, vocabulary.SPECIAL_TOKENS))
ALONE = re.compile(rf"(?<!\S)({SPECIAL})(?!\S)")  # the original keeps a special token whole only between spaces


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("tinybert", "tokenizer"), ids=str)
def test_words_pieces_and_ids_are_those_of_the_original_tokenizer(case, tmp_path):
    tokenizers = {}
    for name, lower in (("lower", True), ("cased", False)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "vocab.txt").write_text("\n".join(case.value("vocab")) + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        tokenizers[name] = vocabulary.load_tokenizer(folder)

    for number, recorded in enumerate(case.value("cases")):
        text = recorded["text"]
        for field in recorded.keys() - {"text"}:
            what, name = field.split("_")
            tokenizer = tokenizers[name]
            tokens = {"basic": words, "tokens": pieces, "ids": pieces}[what](tokenizer, text)
            got = tokenizer.convert_tokens_to_ids(tokens) if what == "ids" else tokens
            case.check_value("cases", number, field, got=got)
            if what == "ids" and not re.search(SPECIAL, ALONE.sub("", text)):  # as every reader here calls it
                case.check_value("cases", number, field, got=tokenizer(text, add_special_tokens=False)["input_ids"])


def pieces(tokenizer, text: str) -> list[str]:
    """With `split_special_tokens`, the original's rule: here a special token is otherwise known in any place."""
    parts = ([part] if ALONE.fullmatch(part) else tokenizer.tokenize(part, split_special_tokens=True)
             for part in ALONE.split(text))  # fmt: skip
    return [piece for part in parts for piece in part]


def words(tokenizer, text: str) -> list[str]:
    """Basic tokens: what the normaliser and the splitter at spaces and punctuation leave."""
    normalizer, splitter = tokenizer.backend_tokenizer.normalizer, tokenizer.backend_tokenizer.pre_tokenizer
    found: list[str] = []
    for part in ALONE.split(text):
        split = splitter.pre_tokenize_str(normalizer.normalize_str(part))
        found += [part] if ALONE.fullmatch(part) else [word for word, _ in split]
    return found


def test_a_special_token_is_known_in_any_place_unless_it_is_to_be_split(tokenizer):
    """Where the original would cut "[MASK]." into four pieces; `split_special_tokens` gives its rule."""
    assert tokenizer.tokenize("a [MASK].") == ["a", "[MASK]", "."]
    assert "[MASK]" not in tokenizer.tokenize("a [MASK].", split_special_tokens=True)
