"""AutoTinyBERT's corpus step against the files its original program wrote."""

from __future__ import annotations

import json

import pytest

from compresskit.data import vocabulary
from compresskit.data.corpus import chunks, documents, shards, token_files
from tests.oracle_cases import Case, oracle


def tokenizer_of(case: Case, folder):
    (folder / "vocab.txt").write_text("\n".join(case.value("vocab")) + "\n", encoding="utf-8")
    return vocabulary.load_tokenizer(folder / "vocab.txt")


def lines_of(folder) -> dict[str, list[list[str]]]:
    """The token lists of the files that are not empty, by name."""
    found = {path.name: [json.loads(line)["tokens"] for line in path.open()] for path in token_files.files(folder)}
    return {name: lines for name, lines in found.items() if lines}


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "generate_data"), ids=str)
def test_faithful_chunks_are_dealt_to_the_files_of_the_original_program(case, tmp_path):
    tokenizer = tokenizer_of(case, tmp_path)
    (tmp_path / "corpus.txt").write_text(case.value("corpus"), encoding="utf-8")
    read = documents.store(tmp_path / "store", documents.Source("corpus", tmp_path / "corpus.txt"), tokenizer)
    found = documents.Documents([tmp_path / "store"])
    max_seq_len = case.value("max_seq_len")
    counts = chunks.write(tmp_path / "epoch_0", found, {"corpus": read.documents}, max_seq_len, faithful=True)

    made = [list(chunks.document_chunks(found[n], max_seq_len, faithful=True)) for n in range(len(found))]
    token_files.write(tmp_path / "files", made, counts["corpus"].instances, tokenizer, faithful=True)
    case.check_value("files", got=lines_of(tmp_path / "files"))
    case.check_value("n_files", got=len(token_files.files(tmp_path / "files")))
    rows = shards.dataset(tmp_path / "epoch_0")["input_ids"][:]
    assert rows == [chunk for document in made for chunk in document]

    wanted = {len(sentence) for n in range(len(found)) for sentence in found[n] if len(sentence) > max_seq_len}
    ours = [chunk for n in range(len(found)) for chunk in chunks.document_chunks(found[n], max_seq_len)]
    assert all(chunks.MIN_TOKENS <= len(chunk) <= max_seq_len for chunk in ours)
    assert max(map(len, rows)) > max_seq_len if wanted else sorted(ours) == sorted(row for row in rows if len(row) > 2)


@pytest.mark.oracle
@pytest.mark.parametrize("case", oracle("autotinybert", "generate_data"), ids=str)
def test_files_of_the_original_program_are_read_as_they_stand(case, tmp_path):
    tokenizer = tokenizer_of(case, tmp_path)
    (tmp_path / "files").mkdir()
    for number in range(case.value("n_files")):
        name = f"train_doc_tokens_ngrams_{number}.json"
        lines = case.value("files").get(name, [])
        (tmp_path / "files" / name).write_text("".join(json.dumps({"tokens": tokens}) + "\n" for tokens in lines))
    source = documents.Source("old", tmp_path / "files")
    assert source.kind == "token lists"
    documents.store(tmp_path / "store", source, tokenizer)
    found = documents.Documents([tmp_path / "store"])
    read = [tokenizer.convert_ids_to_tokens(found[n][0]) for n in range(len(found))]
    by_number = sorted(case.value("files").items(), key=lambda file: int(token_files.NAME.fullmatch(file[0])[1]))
    assert read == [tokens for _, lines in by_number for tokens in lines if tokens]
    case.check_value("files", got=lines_of(tmp_path / "files"))
    case.check_value("n_files", got=len(source.files()))
