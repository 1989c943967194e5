"""Sentence borders in running text."""

import pytest

from compresskit.data.corpus import sentences


@pytest.mark.parametrize(
    "text",
    [
        "He came.|She left.|Did it rain?|It did!",
        "Mr. and Mrs. J. R. Smith met Dr. Who at St. Mary's on Jan. 5.|Nobody else came.",
        "It lies in the U.S. Virgin Islands.|He moved to the U.S.|The rest stayed.",
        "Pigs, goats, etc. are kept.|They sell hay, straw, etc.|The market is large.",
        "See no. 5 and pp. 3–4, c. 1900.|He said no.|Then he left.",
        "“Go!” he said.|“Why?”|“Because.”",
        'She asked "Why?"|Nobody knew... but one did.',
        "In Brown v. Board of Education it held so (see below).|(It did.)|Yes.",
        "At 5 p.m. Carl ate 3.5 kg of 2.0 pears.|100 were left.",
        "He hid . . . then ran.|What . . . .|No one saw.",
        "He is P. I. Tchaikovsky.|It was I.|He and I.|Then came Z. Brown Jr. with Acme Inc. of Ohio.",
        "天気がいい。|散歩に行く！|本当？",
        "यह एक है।|वह दो है।",
        "No end",
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text):
    expected = text.split("|")
    space = "" if "。" in text else " "
    assert sentences.split(space.join(expected)) == expected


def test_nothing_is_left_out():
    text = "A b. C d!  E? «F.» ... g H.I. (j) K"
    assert "".join("".join(sentences.split(text)).split()) == "".join(text.split())


@pytest.mark.parametrize("text", ["History", "These are:", "and so on.", "Yes.", "12 34 56 78.", "A of", "G. W. B."])
def test_a_fragment_is_no_whole_sentence(text):
    assert not sentences.whole(text)


@pytest.mark.parametrize(
    "text",
    [
        "It is so.",
        "“It is so!”",
        "In 1961, UTC began.",
        "(It rained again.)",
        "东京是日本的首都。",
        "Ça va très bien ?",
    ],
)
def test_a_sentence_with_beginning_and_end_is_whole(text):
    assert sentences.whole(text)
