import pytest

from compresskit.data import vocabulary

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e f g h i the plot is not dull grand ##s ##er . , ? ' un".split()  # noqa: SIM905


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab_file):
    """30 pieces; the letters a to i are words of one piece."""
    return vocabulary.load_tokenizer(vocab_file)
