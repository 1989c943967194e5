"""Running text to sentences, by rules: a terminator, a space, and a word that can begin a sentence.

The abbreviations are English; Chinese, Japanese, Hindi and Arabic terminators are known as well.
"""

import re

CANDIDATE = re.compile(r"(?<![.!?…؟۔।])[.!?…؟۔।]+[\"'”’)\]»]*(?:\s+|$)|[。！？｡]+[\"'”’」』）]*\s*")
BEGINS = re.compile(r"[\"'“‘(\[«¿¡「『（–—-]*\s?(\w*)")
WORD_BEFORE = re.compile(r"[\w.&]+$")
AFTER_INITIAL = re.compile(r"\b[A-Z]\.\s?$")  # there an I is an initial, too
ENDS = re.compile(r"[.!?…؟۔।。！？｡][\"'”’)\]»」』）]*$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A full stop after these ends no sentence.
TITLES = _words(
    "mr mrs ms dr prof st ste mt ft gen gens brig col lt capt cpt maj sgt cpl pvt cmdr adm rev fr hon gov sen rep pres "
    "messrs mme mlle v vs viz cf e.g i.e ed eds trans approx ca mons esp incl dept univ assn"
)
# Nor after these, or a single small letter, before a number: no. 5, pp. 3–4, c. 1900.
NUMBERED = _words("no nos vol vols pp fig figs ch chap art sec op nr")
# After these, initials and dotted acronyms (U.S.) it does if a word follows that mostly begins sentences.
DOUBTFUL = _words("jr sr inc ltd co corp bros etc al esq jan feb mar apr jun jul aug sep sept oct nov dec")
STARTERS = _words(
    "the a an it its this that these those there he she they we his her their our in on at by for from with when while "
    "where after before since although though however but and as if so then thus some many most all both each other "
    "another one such no not during under until according because despite among unlike instead also"
)


def split(text: str) -> list[str]:
    """The sentences of a paragraph, in order and without surrounding spaces; nothing is left out."""
    sentences, start = [], 0
    for candidate in CANDIDATE.finditer(text):
        if _is_end(text, candidate):
            sentences.append(text[start : candidate.end()].strip())
            start = candidate.end()
    rest = text[start:].strip()
    return [*sentences, rest] if rest else sentences


def _is_end(text: str, candidate: re.Match[str]) -> bool:
    following = BEGINS.match(text, candidate.end())
    word = following[1] if following else ""
    if (word and word[0].islower()) or text.startswith(".", candidate.end()):  # the latter in a spaced . . .
        return False
    if not candidate[0].rstrip().startswith(".") or candidate[0].startswith(".."):
        return True
    before = WORD_BEFORE.search(text, max(0, candidate.start() - 30), candidate.start())
    if before is None or candidate.end() == len(text):
        return True
    token = before[0].lower()
    at = before.start()
    initial = len(token) == 1 and before[0].isupper()
    if token == "i":
        initial = AFTER_INITIAL.search(text, max(0, at - 4), at) is not None
    if token in TITLES and not initial:
        return False
    if token in NUMBERED or (len(token) == 1 and before[0].islower()):
        return not word[:1].isdigit()
    if token in DOUBTFUL or "." in token or initial:
        return word.lower() in STARTERS
    return True


def ended(sentence: str) -> bool:
    """Whether it ends as a sentence does; headings, captions and lines that introduce a list do not."""
    return ENDS.search(sentence) is not None


def whole(sentence: str) -> bool:
    """Whether it reads as a sentence of an article: it has a beginning, an end, and more than two words."""
    if not ended(sentence) or sentence[0].islower() or sentence.isupper():
        return False
    words = sentence.split()
    letters = sum(character.isalpha() for character in sentence)
    if 2 * letters < sum(map(len, words)):
        return False
    return len(words) > 2 or (letters > 5 and not sentence.isascii())  # Chinese and Japanese write without spaces
