"""WordPiece vocabularies: train one, load one, and check that it belongs to a model's embedding."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
MAX_ALPHABET = 1000  # rarer characters become [UNK], as in BERT's own vocabulary
MAX_LENGTH = 512  # where a tokenizer states none: BERT's number of positions
PADDING_MULTIPLE = 128  # embeddings are often padded up to a multiple of this


def train_wordpiece(lines: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing BERT tokenizer whose vocabulary of at most `vocab_size` pieces is learned from `lines`.

    The same lines give the same vocabulary, in any process. Raises ValueError where there is no text, or more different
    characters than `vocab_size` can hold.
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(line)))
    letters: Counter[str] = Counter()
    for word, count in counts.items():
        letters.update(dict.fromkeys(word, count))
    if not letters:
        raise ValueError("cannot train a vocabulary: the lines contain no text")
    alphabet = set(sorted(letters, key=lambda letter: (-letters[letter], letter))[:MAX_ALPHABET])
    words = {word: count for word, count in sorted(counts.items()) if alphabet.issuperset(word)}
    # The trainer numbers unlisted "##x" pieces in the order of a randomly seeded hash table, and breaks ties between
    # merges by these numbers: listed here as special tokens they have fixed ones.
    fixed = SPECIAL_TOKENS + sorted(alphabet) + sorted({f"##{letter}" for word in words for letter in word[1:]})
    if len(fixed) > vocab_size:
        raise ValueError(f"vocab_size {vocab_size} does not hold the {len(fixed)} special tokens and single characters")

    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=fixed, show_progress=False)
    trained.train_from_iterator((f"{word} " * count for word, count in words.items()), trainer)
    vocab = sorted(trained.get_vocab().items(), key=lambda entry: entry[1])
    return BertTokenizer(vocab=dict(vocab), model_max_length=MAX_LENGTH)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder (`tokenizer.json` or just `vocab.txt`), of a vocab.txt, or of a hub id.

    Local paths never touch the network. Raises FileNotFoundError where there is no vocabulary, ValueError where it is
    none of BERT's kind.
    """
    path = Path(source)
    tokenizer: Any
    if path.is_file():
        tokenizer = BertTokenizer(vocab=_read_vocab(path))
    elif path.is_dir():
        tokenizer = _from_folder(path)
    elif path.is_absolute() or len(path.parts) > 2 or path.parts[:1] in {(".",), ("..",)}:
        raise FileNotFoundError(f"{source}: no such file or folder; give a model folder, a vocab.txt or a hub id")
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise FileNotFoundError(f"{source}: no such folder, and no tokenizer on the hub: {reason}") from None
    if tokenizer.model_max_length > 1_000_000:  # the library's way of saying "not stated"
        tokenizer.model_max_length = MAX_LENGTH
    missing = [name for name in ("pad", "unk", "cls", "sep", "mask") if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise ValueError(f"{source}: the tokenizer has no {', '.join(missing)} token; a BERT vocabulary is needed")
    return tokenizer


def _from_folder(folder: Path) -> PreTrainedTokenizerFast:
    if (folder / "tokenizer.json").is_file():
        kind = _read_json(folder / "tokenizer.json").get("model", {}).get("type", "unknown")
        if kind != "WordPiece":
            raise ValueError(f"{folder / 'tokenizer.json'}: a {kind} tokenizer; BERT models need WordPiece")
        return BertTokenizer.from_pretrained(folder, local_files_only=True)
    if not (folder / "vocab.txt").is_file():
        raise FileNotFoundError(
            f"{folder}: no vocabulary; copy the vocab.txt or tokenizer.json of the model into this folder"
        )
    settings: dict[str, Any] = {
        "do_lower_case": True,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": None,
    }
    if (folder / "tokenizer_config.json").is_file():
        stated = _read_json(folder / "tokenizer_config.json")
        settings = {name: stated.get(name, default) for name, default in settings.items()}
    return BertTokenizer(vocab=_read_vocab(folder / "vocab.txt"), **settings)


def _read_vocab(path: Path) -> dict[str, int]:
    """One piece per line; the line's position is its id."""
    try:
        pieces = path.read_bytes().decode("utf-8-sig").rstrip("\r\n").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} line {line}: not UTF-8, so not a vocabulary of one piece per line") from None
    vocab: dict[str, int] = {}
    for number, piece in enumerate(pieces):
        piece = piece.removesuffix("\r")
        if piece in vocab:
            raise ValueError(f"{path} line {number + 1}: {piece!r} is already on line {vocab[piece] + 1}")
        vocab[piece] = number
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} missing; expected a BERT vocabulary, one piece per line")
    return vocab


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: broken JSON ({error})") from None


def check_vocabulary(tokenizer: Any, vocab_size: int, source: str | Path) -> None:
    """Raise ValueError unless an embedding of `vocab_size` rows fits: each id has a row, fewer than 128 rows are spare.

    `source` names the model in the message.
    """
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > vocab_size:
        problem = f"the vocabulary has ids up to {needed - 1}, the embedding only {vocab_size} rows"
    elif vocab_size - needed >= PADDING_MULTIPLE:
        problem = f"the vocabulary has {needed} entries, the embedding {vocab_size} rows"
    else:
        return
    raise ValueError(f"{source}: {problem}; use the vocabulary this model was trained with")
