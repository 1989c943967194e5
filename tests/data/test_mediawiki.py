"""A MediaWiki dump: which pages are read, what is left of their markup, and how damage is reported."""

import bz2
import gc
import time
import tracemalloc
from html import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresskit.data.corpus import mediawiki, wikitext

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="de">
  <siteinfo><sitename>W</sitename><namespaces><namespace key="0" case="first-letter" />
    <namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace></namespaces></siteinfo>
"""


def page(title: str, text: str, ns: int = 0, extra: str = "", model: str = "wikitext") -> str:
    return f"""<page><title>{escape(title)}</title><ns>{ns}</ns><id>1</id>{extra}<revision><id>2</id><contributor>
      <username>x</username></contributor><comment>a [[b]]</comment><model>{model}</model><format>text/x-wiki</format>
      <text xml:space="preserve">{escape(text)}</text><sha1>0</sha1></revision></page>\n"""


def dump(tmp_path, *pages: str, name: str = "pages-articles.xml.bz2"):
    path = tmp_path / name
    xml = (HEAD + "".join(pages) + "</mediawiki>\n").encode()
    path.write_bytes(bz2.compress(xml) if name.endswith("bz2") else xml)
    return path


PAGES = [
    page("Old name", "#REDIRECT [[New name]]", extra='<redirect title="New name" />'),
    page("Older name", "#redirect [[New name]]"),
    page(
        "New name",
        "'''It''' is a [[town|small town]].{{cite book|x}} It has\nan old wall.\n\n== History ==\nIt burned.",
    ),
    page("Talk:New name", "I like this town very much.", ns=1),
    page("Code", "return 1", model="Scribunto"),
    page("List", "* one\n* two"),
    page("Café", "[[Datei:x.jpg|thumb|The [[Eiffel|tower]] at night.]]A café sells coffee.[[Kategorie:Drink]]"),
]


@pytest.mark.parametrize("name", ["pages-articles.xml.bz2", "pages-articles.xml"])
def test_articles_are_documents_and_redirects_and_other_namespaces_are_not_read(tmp_path, name):
    documents = list(mediawiki.read_documents(dump(tmp_path, *PAGES, name=name)))
    assert [document.sentences for document in documents] == [
        ["It is a small town.", "It has an old wall."],
        [],
        ["A café sells coffee."],
    ]
    titles = [found.title for found in mediawiki.read_pages(dump(tmp_path, *PAGES))]
    assert titles == ["New name", "List", "Café"]


def test_several_bz2_streams_in_one_file_are_one_dump(tmp_path):
    path = dump(tmp_path, *PAGES)
    whole = list(mediawiki.read_pages(path))
    xml = bz2.decompress(path.read_bytes())
    path.write_bytes(bz2.compress(xml[:700]) + bz2.compress(xml[700:]))
    assert [found[:2] for found in mediawiki.read_pages(path)] == [found[:2] for found in whole]


def test_reading_from_a_later_article_gives_the_rest(tmp_path):
    path = dump(tmp_path, *PAGES)
    everything = list(mediawiki.read_documents(path))
    assert [list(mediawiki.read_documents(path, start)) for start in range(4)] == [everything[n:] for n in range(4)]


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ("a '''bold''' and ''italic'' word", "a bold and italic word"),
        ("[[bus]]es, [[a|b]], [[:Category:C]], [[A (x)|]]", "buses, b, Category:C, A (x)"),
        ("x [[File:a.png|thumb|[[b]] and [[c|d]]]] y", "x y"),
        ("[[fr:Ville]]x [[Category:Towns]]", "x"),
        ("see [http://a.b/c the site] or [http://a.b]", "see the site or"),
        ("so<ref name=a>{{cite|b}} [[c]]</ref> it is<ref name=a/>.", "so it is."),
        ("a<!-- b <ref> --> c", "a c"),
        ("{{Infobox|a={{b|c}}\n|d=[[e|f]]}}\ng", "g"),
        ("{|class=x\n|-\n|a\n{|\n|b\n|}\n|}\nc", "c"),
        ("{| unclosed\n|a\n== H ==\nb", "b"),
        ("5 {{convert|10|km|mi|0}} and {{convert|2|-|3|m|ft}}", "5 10 km and 2–3 m"),
        ("{{lang|fr|mot}} {{nowrap|a b}} 1{{ndash}}2 {{lang-de|Wort}}", "mot a b 1–2 Wort"),
        ("Paris ({{IPA-fr|paʁi}}; {{audio|x.ogg}}) is", "Paris is"),
        ("Paul ({{IPA|x}}; born 1 May 1900) was", "Paul (born 1 May 1900) was"),
        ("E = mc<sup>2</sup>, H<sub>2</sub>O, the 5<sup>th</sup>", "E = mc^2, H2O, the 5th"),
        ("a&nbsp;b &amp; c &lt;d&gt; &mdash;e", "a b & c <d> —e"),
        ("a <nowiki>[[b]] ''c''</nowiki> d", "a [[b]] ''c'' d"),
        ("__NOTOC__a<br/>b <small>c</small>", "a b c"),
        ("a {{citation needed|date=x}} b", "a b"),
        ("dogs {{and|{{unknown}}", "dogs {{and|"),
    ],
)
def test_markup_becomes_the_text_a_reader_sees(markup, shown):
    assert wikitext.paragraphs(markup) == [shown]


def test_headings_lists_and_tables_leave_no_paragraph_and_divide_others():
    markup = "a\nb\n\n== H ==\n* l\n# m\n: n\n;o\n|p\n q\n----\nc<blockquote>d</blockquote>e"
    assert wikitext.paragraphs(markup) == ["a b", "c", "d", "e"]


@pytest.mark.parametrize(
    "sentence",
    [
        "The area is <math>x^2</math> here.",
        "It costs {{unknown|5}} today.",
        "See http://a.b/c for it.",
        "Open {{and stay.",
    ],
)
def test_a_sentence_with_a_hole_or_rest_of_markup_is_left_out(sentence):
    assert mediawiki.article_sentences(f"It is so. {sentence} It was so.") == ["It is so.", "It was so."]


SLOW = ["{{", "[[", "{{a|", "[[a|", "{{a| ", "<ref>", "<!--", "<math>", "{|\n", "'''", "[http://a ", "http://",
        "<nowiki>", "( ", "(", "}}", "&#", ",", "; ", ".", ".'", "<sup> ", "=", "= ", "a ", "\n", "{{unknown}} ",
        "(<math/>", "[[File:", "<math/>", "{{cn}}"]  # fmt: skip


@pytest.mark.parametrize("piece", SLOW)
def test_markup_made_to_be_slow_is_read_in_linear_time(piece):
    def seconds(times: int) -> float:
        began = time.process_time()
        mediawiki.article_sentences(piece * times + "\nIt is so.")
        return time.process_time() - began

    seconds(100)
    assert seconds(200_000 // len(piece)) < 4  # quadratic: minutes


TOKENS = (
    "{{ }} [[ ]] {| |} | <ref> </ref> <ref/> <math> </math> <!-- --> '' == * a ( ) [http://a ] &lt; convert lang| ="
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*TOKENS.split(), " ", "\n", "It is so."]), max_size=40).map("".join))
def test_any_markup_gives_lines_of_text(markup):
    for line in wikitext.paragraphs(markup):
        assert line == line.strip() != ""
        assert "\n" not in line


# Damage


def test_a_missing_dump_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.xml\.bz2: no such file; expected a MediaWiki dump"):
        list(mediawiki.read_documents(tmp_path / "none.xml.bz2"))


@pytest.mark.parametrize("cut", [0.5, 0.99])
def test_a_dump_cut_short_is_named_with_its_place(tmp_path, cut):
    path = dump(tmp_path, *PAGES)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    with pytest.raises(ValueError, match=r"articles\.xml\.bz2: damaged or cut short near byte \d+.*fetch it again"):
        list(mediawiki.read_documents(path))


def test_a_damaged_byte_is_found(tmp_path):
    path = dump(tmp_path, *PAGES)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or cut short"):
        list(mediawiki.read_documents(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Once upon a time.\n", "line 1: syntax error; expected a whole MediaWiki dump"),
        (b"", "no element found; expected a whole MediaWiki dump"),
        (b"<html><body/></html>", "the first element is <html>; a MediaWiki dump begins with <mediawiki>"),
        (b"<mediawiki><page><title>a</title>", "no element found"),
        (b"<mediawiki><page></title></page></mediawiki>", "line 1: mismatched tag"),
        (b"<mediawiki><page><title>caf\xe9</title></page></mediawiki>", "not well-formed"),
    ],
)
@pytest.mark.parametrize("name", ["a.xml", "a.xml.bz2"])
def test_what_is_no_dump_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(bz2.compress(content) if name.endswith("bz2") else content)
    with pytest.raises(ValueError, match=message):
        list(mediawiki.read_documents(path))


def test_entities_cannot_unfold_a_small_file_into_a_large_one(tmp_path):
    declared = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "ha"}">' for n in range(10))
    path = tmp_path / "bomb.xml"
    path.write_text(f"<!DOCTYPE mediawiki [{declared}]><mediawiki><page><text>&e9;</text></page></mediawiki>")
    with pytest.raises(ValueError, match="declares a document type 'mediawiki', which a MediaWiki dump never does"):
        list(mediawiki.read_documents(path))


def test_a_page_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mediawiki, "MAX_PAGE_CHARACTERS", 1000)
    with pytest.raises(ValueError, match=r"<text> has more than 1000 characters; no wiki stores such a page"):
        list(mediawiki.read_documents(dump(tmp_path, page("a", "b " * 1000))))


def test_memory_is_that_of_a_page_not_of_the_dump(tmp_path, monkeypatch):
    monkeypatch.setattr(mediawiki, "BLOCK_BYTES", 1 << 13)

    def peak(pages: int) -> int:
        path = dump(tmp_path, *(page(f"{n}", f"Number {n} is a number. " * 10) for n in range(pages)))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        assert sum(len(document.sentences) for document in mediawiki.read_documents(path)) == 10 * pages
        return tracemalloc.get_traced_memory()[1] - before

    gc.freeze()  # beside all that other tests have left, cycles would be collected less often
    tracemalloc.start()
    try:
        peak(10)
        small, large = peak(100), peak(1000)
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert large < 1.2 * small
