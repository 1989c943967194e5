"""Wiki markup to the paragraphs of prose an article shows: no lists, tables, captions, headings, notes or formulas.

Every pass is linear in the length of the page, also for markup that is broken or made to be slow.
"""

import html
import re
from collections.abc import Callable

HOLE = "\ufffc"  # stands for something that cannot be read aloud; sentences with one are left out
HIDDEN_NAMESPACES = frozenset({"file", "image", "media", "category"})  # links to these are not shown in the text
MAX_DEPTH = 60  # of nested templates and links; deeper markup is no text

# Elements dropped with all that is in them, and what stays in their place: a formula leaves a hole in its sentence.
DROPPED = {
    name: left
    for left, names in {
        "": "ref references gallery table timeline imagemap score templatestyles indicator section graph mapframe "
        "inputbox noinclude includeonly",
        HOLE: "math chem ce code source syntaxhighlight pre hiero tt",
    }.items()
    for name in names.split()
}
DROPPED_TAG = re.compile(rf"<(/?)({'|'.join(DROPPED)})\b([^<>]*)>", re.IGNORECASE)
BLOCK_TAG = re.compile(r"</?(?:p|div|blockquote|center|poem|ul|ol|li|dl|dd|dt|h\d|hr)\b[^<>]*>", re.IGNORECASE)
POWER = re.compile(r"(?<=[\w)])<sup>\s*([-−+]?\d+)\s*</sup>", re.IGNORECASE)
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
NOWIKI = re.compile(r"<nowiki\s*>", re.IGNORECASE)
NOWIKI_END = re.compile(r"</nowiki\s*>", re.IGNORECASE)

BRACKETS = re.compile(r"\{\{|\}\}|\[\[|\]\]")
OPENING = {"}}": "{{", "]]": "[["}
LANGUAGE_LINK = re.compile(r"[a-z]{2,3}(-[a-z]+)*:")
NAMED_ARGUMENT = re.compile(r"[\w\s-]+=")

EXTERNAL_LINK = re.compile(r"\[(?:https?:|ftp:|mailto:|//)[^\s\[\]]*(?:[ \t]+([^\[\]\n]*))?\]")
BARE_LINK = re.compile(r"\b(?:https?|ftp)://\S+")
QUOTES = re.compile(r"''+")
MAGIC_WORD = re.compile(r"__[A-Z]+__")
HEADING = re.compile(r"=.*=\s*$")
NO_PROSE = (*"*#:;|! ", "----")  # what a line begins with that is a list, a table row or preformatted

# Templates that show one of their unnamed arguments, by its number.
SHOWN = {
    name: number
    for number, names in {
        0: "nowrap, nobr, nobreak, abbr, small, smaller, big, larger, em, strong, nobold, smallcaps, sc, nihongo, "
        "flag, flagcountry, sortname, as of, quote, cquote, blockquote, bquote, visible anchor, vanchor, usd, sic, "
        "not a typo, proper name, linktext, ill, interlanguage link, link-interwiki, tooltip, unicode, keypress, iast, "
        "angbr, angle bracket, nq, val",
        1: "lang, hover title, color, script",
        -1: "zh, transl, transliteration",
    }.items()
    for name in names.split(", ")
}
LITERAL = {
    **{"'": "'", "'s": "'s", "!": "|", "=": "=", "·": "·", "-": " ", "nbsp": " ", "spaces": " ", "ampersand": "&"},
    **{"ndash": "–", "en dash": "–", "spaced ndash": " – ", "snd": " – ", "spnd": " – ", "dash": " – "},
    **{"mdash": "—", "em dash": "—", "spaced mdash": " — ", "bull": "•", "circa": "c. ", "c.": "c. ", "ca": "c. "},
}
# Templates that mark, note or cite; they show nothing a reader would read.
SILENT = re.compile(
    r"cit(e|ation)\b|cn$|fact\b|sfn|harv|efn|refn|r$|rp$|notetag|note|#tag|ref|verif|failed|clarif|dubious|vague|when|"
    r"where|who|which|why|how|by whom|according to whom|page needed|update|dead link|specify|better|original research|"
    r"synth|pov|weasel|peacock|disput|contradict|nonspecific|anchor|clear|br$|coord|audio|listen|use |"
    r"main|see also|further|flagicon|portal|commons|wikt|defaultsort|inflation-fn|good|needs|tone|undue|full"
)


def paragraphs(markup: str, hidden: frozenset[str] = HIDDEN_NAMESPACES) -> list[str]:
    """The paragraphs of an article, each one line of plain text.

    hidden: lower-case names of the namespaces whose links are not shown (files and categories, in the wiki's language).
    A paragraph may contain HOLE where a formula or an unknown template stood.
    """
    text = _without_comments(markup)
    text = _without_dropped(_without_nowiki(text))
    text = _brackets_shown(text, hidden)
    text = EXTERNAL_LINK.sub(lambda found: found[1] or "", text)
    text = BARE_LINK.sub(HOLE, text)
    text = BLOCK_TAG.sub("\n\n", POWER.sub(r"^\1", text))
    text = QUOTES.sub("", TAG.sub("", re.sub(r"<br\b[^<>]*>", " ", text, flags=re.IGNORECASE)))
    text = MAGIC_WORD.sub("", text)
    return [tidy for block in _blocks(text) if (tidy := _tidy(html.unescape(block)))]


def readable(sentence: str) -> bool:
    """Whether nothing is missing from a sentence, and no markup is left in it."""
    return not any(mark in sentence for mark in (HOLE, "[[", "]]", "{{", "}}", "{|", "|}", "||", "</", "/>"))


def _without_comments(text: str) -> str:
    first, *pieces = text.split("<!--")
    return first + "".join(piece.partition("-->")[2] for piece in pieces)


def _without_nowiki(text: str) -> str:
    """Between <nowiki> and </nowiki> brackets, quotes and the like become HTML entities: they are no markup there."""
    first, *pieces = NOWIKI.split(text)
    kept = [first]
    for piece in pieces:
        inside, *after = NOWIKI_END.split(piece, maxsplit=1)
        escaped = re.sub(r"[\[\]{}|'*#:;=]", lambda found: f"&#{ord(found[0])};", inside) if after else inside
        kept += [escaped, *after]
    return "".join(kept)


def _without_dropped(text: str) -> str:
    """Cut out the elements of DROPPED; one that is never closed ends with its line."""
    kept, position, opened = [], 0, None
    for tag in DROPPED_TAG.finditer(text):
        closing, name, inside = tag[1], tag[2].lower(), tag[3]
        if opened is None:
            kept.append(text[position : tag.start()])
            position = tag.end()
            if not closing and not inside.endswith("/"):
                opened = (name, tag.end())
            else:
                kept.append("" if closing else DROPPED[name])
        elif closing and name == opened[0]:
            kept.append(DROPPED[name])
            position, opened = tag.end(), None
    if opened is not None:
        end = text.find("\n", opened[1])
        position = len(text) if end < 0 else end
    return "".join(kept) + text[position:]


def _brackets_shown(text: str, hidden: frozenset[str]) -> str:
    """Replace every [[link]] and {{template}} by what it shows, the inner ones first; unclosed ones stay."""
    frames: list[tuple[str, list[str]]] = [("", [])]  # opening bracket, and the parts since
    show: dict[str, Callable[[str, str], str]] = {
        "[[": lambda inside, before: _link(inside, hidden),
        "{{": lambda inside, before: _template(inside, before),
    }
    position, depth = 0, {"{{": 0, "[[": 0}
    for found in BRACKETS.finditer(text):
        bracket = found[0]
        if found.start() > position:
            frames[-1][1].append(text[position : found.start()])
        position = found.end()
        if bracket in depth and len(frames) < MAX_DEPTH:
            frames.append((bracket, []))
            depth[bracket] += 1
        elif depth.get(OPENING.get(bracket, ""), 0):
            while frames[-1][0] != OPENING[bracket]:
                _give_up(frames, depth)
            opening, parts = frames.pop()
            depth[opening] -= 1
            around = frames[-1][1]  # holds no empty part
            if shown := show[opening]("".join(parts), around[-1][-1] if around else "\n"):
                around.append(shown)
        else:
            frames[-1][1].append(bracket)
    frames[-1][1].append(text[position:])
    while len(frames) > 1:
        _give_up(frames, depth)
    return "".join(frames[0][1])


def _give_up(frames: list[tuple[str, list[str]]], depth: dict[str, int]) -> None:
    """Take the innermost bracket, which is not closed, as plain text."""
    opening, parts = frames.pop()
    depth[opening] -= 1
    frames[-1][1].extend([opening, *parts])


def _link(inside: str, hidden: frozenset[str]) -> str:
    target, bar, rest = inside.partition("|")
    namespace, colon, _ = target.partition(":")
    if colon and namespace.strip().lower() in hidden:
        return ""
    if bar:
        return rest.rpartition("|")[2] if rest.strip() else target
    return "" if LANGUAGE_LINK.match(target) else target.lstrip(":").replace("_", " ")


def _template(inside: str, before: str) -> str:
    """What a template shows. before: the character in front of it."""
    name, *arguments = inside.split("|")
    name = " ".join(name.replace("_", " ").lower().split())
    unnamed = [argument for argument in arguments if not NAMED_ARGUMENT.match(argument)]
    if name in ("convert", "cvt"):
        return _quantity(unnamed)
    if name == "chem":
        return "".join(unnamed)
    if name in LITERAL:
        return LITERAL[name] + (unnamed[0] if unnamed and name in ("circa", "c.", "ca") else "")
    if name in SHOWN or name.startswith("lang-"):
        number = SHOWN.get(name, 0)
        named = [argument.partition("=")[2] for argument in arguments if re.match(r"\s*(1|2|text|quote)\s*=", argument)]
        shown = unnamed or named
        return shown[min(number, len(shown) - 1)].strip() if shown else ""
    if before in "\n(.,;:!?\"'”)]" or not before.isspace() or SILENT.match(name):
        return ""  # a box, a note after a word, a pronunciation in brackets
    return HOLE


def _quantity(arguments: list[str]) -> str:
    """{{convert|5|km|mi}}: 5 km; {{convert|5|to|6|km}}: 5 to 6 km."""
    words = {"-": "–", "–": "–", "to": " to ", "and": " and ", "or": " or ", "x": " by ", "by": " by "}
    if len(arguments) > 3 and arguments[1].strip() in words:
        return f"{arguments[0].strip()}{words[arguments[1].strip()]}{arguments[2].strip()} {arguments[3].strip()}"
    return " ".join(argument.strip() for argument in arguments[:2]) if len(arguments) > 1 else HOLE


def _blocks(text: str) -> list[str]:
    """Runs of lines of prose, each joined to one line. A heading also ends a table that was not closed."""
    blocks: list[list[str]] = [[]]
    tables = 0
    for line in text.split("\n"):
        bare = line.lstrip(" :*#")
        if HEADING.match(line):
            tables = 0
        elif bare.startswith("{|"):
            tables += 1
        elif bare.startswith("|}") and tables:
            tables -= 1
        elif not tables and line.strip() and not line.startswith(NO_PROSE):
            blocks[-1].append(line.strip())
            continue
        blocks.append([])
    return [" ".join(block) for block in blocks if block]


SPACES = re.compile(r"[\s\u200b\u200e\u200f\ufeff\u00ad]+")
IN_BRACKETS = re.compile(r"\(([^()]*)\)")
TIDIED = [
    (re.compile(r"\(\s*(?:[,;:–—/-]|\bor\b|\band\b|\s)+(?=[^\s,;:–—/-])"), "("),  # what a dropped template left behind
    (re.compile(r"(?<![,;:\s–—])[,;:\s–—]+\)"), ")"),
    (re.compile(r"\(\s*\)|\[\s*\]"), ""),
    (re.compile(r"\s+([,;:.!?)\]])(?!\d)"), r"\1"),
    (re.compile(r"([,;])(?:\s*[,;])+"), r"\1"),
    (re.compile(r"\s{2,}"), " "),
]


def _tidy(text: str) -> str:
    text = IN_BRACKETS.sub(_without_hole, SPACES.sub(" ", text.replace("\u00ad", "")))
    for pattern, replacement in TIDIED:
        text = pattern.sub(replacement, text)
    return text.strip()


def _without_hole(found: re.Match[str]) -> str:
    """A remark in brackets without those of its parts that have a hole: pronunciations, sums in today's money."""
    if HOLE not in found[1]:
        return found[0]
    parts = [part.strip() for part in re.split(r"[;,]", found[1]) if HOLE not in part]
    return f"({', '.join(parts)})"
