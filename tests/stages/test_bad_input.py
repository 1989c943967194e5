"""Bad input gets one sentence that names the place and the remedy, before anything is trained."""

import json
import shutil

import pytest
from transformers import BertConfig, BertModel

from compresskit.data.vocabulary import train_wordpiece
from compresskit.stages import distill, evaluate, finetune, inputs, pretrain, prune

ROWS = [f"a {word} film\t{i % 2}" for i, word in enumerate(["good", "bad"] * 250)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A BERT folder with its vocabulary."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_wordpiece(ROWS, 200)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=64)  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """A well-formed SST-2 folder."""
    folder = tmp_path / "SST-2"
    folder.mkdir()
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join(["sentence\tlabel", *ROWS]) + "\n")
    return tmp_path


def opened(encoder, data, **changes):
    return finetune.open(finetune.FinetuneParams(model=str(encoder), data_dir=str(data), max_seq_len=16, **changes))


def test_good_input_opens(store, encoder, data):
    assert len(opened(encoder, data).data.dev) == 500


def test_missing_column_names_file_and_columns(store, encoder, data):
    (data / "SST-2/train.tsv").write_text("sentence\n" + "a film\n" * 500)
    with pytest.raises(ValueError, match=r"train\.tsv.*label"):
        opened(encoder, data)


def test_wrong_label_names_file_line_and_labels(store, encoder, data):
    rows = ["sentence\tlabel", *ROWS]
    rows[16] = "a good film\tpositiv"
    (data / "SST-2/train.tsv").write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=r"train\.tsv line 17.*positiv.*0.*1"):
        opened(encoder, data)


def test_empty_file_is_named(store, encoder, data):
    (data / "SST-2/dev.tsv").write_text("")
    with pytest.raises(ValueError, match=r"dev\.tsv.*empty"):
        opened(encoder, data)


def test_unknown_task_suggests_the_near_one(store, encoder, data):
    with pytest.raises(ValueError, match="sst2"):
        opened(encoder, data, task="sst-2x")


def test_missing_task_folder_names_where_it_looked(store, encoder, tmp_path):
    (tmp_path / "glue").mkdir()
    with pytest.raises(FileNotFoundError, match=r"glue.*SST-2"):
        opened(encoder, tmp_path / "glue")


def test_no_data_named_says_how_to_name_it(store, encoder, monkeypatch):
    monkeypatch.delenv(inputs.DATA, raising=False)
    with pytest.raises(ValueError, match="COMPRESSKIT_DATA"):
        opened(encoder, "")


def test_model_folder_without_vocabulary(store, encoder, data, tmp_path):
    bare = shutil.copytree(encoder, tmp_path / "bare", ignore=shutil.ignore_patterns("vocab*", "tokenizer*"))
    with pytest.raises(FileNotFoundError, match=r"bare.*vocab"):
        opened(bare, data)


def test_vocabulary_that_does_not_match_the_embedding(store, encoder, data, tmp_path):
    other = shutil.copytree(encoder, tmp_path / "other")
    train_wordpiece((f"{word}{i} {i}" for i in range(3000) for word in ("ka", "lo", "mi")), 1500).save_pretrained(other)
    with pytest.raises(ValueError, match="vocab"):
        opened(other, data)


def test_broken_config_names_file_line_and_column(store, encoder, data, tmp_path):
    broken = shutil.copytree(encoder, tmp_path / "broken")
    (broken / "config.json").write_text('{"hidden_size": 16,\n "num_hidden_layers" 2}')
    with pytest.raises(ValueError, match=r"config\.json.*line 2"):
        opened(broken, data)


def test_weights_that_do_not_fit_their_config(store, encoder, data, tmp_path):
    wrong = shutil.copytree(encoder, tmp_path / "wrong")
    fields = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**fields, "hidden_size": 32}))
    with pytest.raises(ValueError, match=r"config\.json and weights do not belong together"):
        opened(wrong, data)


def test_unknown_model_names_what_was_looked_for(store, data):
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        finetune.open(finetune.FinetuneParams(model="no/such/folder", data_dir=str(data)))
    with pytest.raises(FileNotFoundError, match="registered"):
        finetune.open(finetune.FinetuneParams(model="models:/nothing@latest", data_dir=str(data)))


def test_an_untrained_teacher_is_refused(store, encoder, data):
    params = distill.DistillParams(teacher=str(encoder), data_dir=str(data))
    with pytest.raises(ValueError, match="fine-tune it on sst2 first"):
        distill.open(params)
    with pytest.raises(ValueError, match="fine-tune it on sst2 first"):
        prune.open(prune.PruneParams(model=str(encoder), data_dir=str(data)))


def test_models_to_evaluate_need_a_system_and_a_variant(store, encoder, data):
    with pytest.raises(ValueError, match=r"'teacher' is no <system>-<variant>"):
        evaluate.open(evaluate.EvaluateParams(models={"teacher": str(encoder)}, data_dir=str(data)))


def test_missing_corpus(store, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"corpus\.txt"):
        pretrain.open(pretrain.PretrainParams(corpus=str(tmp_path / "corpus.txt")))


def test_the_right_order_of_labels_is_restored(store, encoder, data, tmp_path):
    """A model whose outputs stand in another order answers as if they stood in the task's."""
    stage = opened(encoder, data)
    turned = tmp_path / "turned"
    stage.model.config.id2label, stage.model.config.label2id = {0: "1", 1: "0"}, {"1": 0, "0": 1}
    stage.model.save_pretrained(turned)
    stage.data.tokenizer.save_pretrained(turned)
    again = finetune.open(finetune.FinetuneParams(model=str(turned), data_dir=str(data), max_seq_len=16))
    assert again.model.classifier.weight.equal(stage.model.classifier.weight.flip(0))
    assert again.model.config.id2label == {0: "0", 1: "1"}
