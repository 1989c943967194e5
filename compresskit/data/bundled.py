"""The small data set that ships with compresskit: made by a seeded generator, written in the official layouts.

    SST-2/train.tsv dev.tsv    praise or blame: negation, the majority of judgements, asides that do not count
    MRPC/train.tsv dev.tsv     the same event in other words, or another one: voice, swapped roles, negation, numbers
    STS-B/train.tsv dev.tsv    how much two events have in common, 0 to 5
    squad/train-v1.1.json dev-v1.1.json     who, whom, where, when, in paragraphs of similar events
    corpus.txt                 reviews and stories in the same language, one sentence per line

No single word tells a label, classes are balanced, no dev row stands in train or in the corpus.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from compresskit.data.grammar import NUMBERS, Event, Phrase, Speaker

VERSION = 3
STAMP = "bundled.json"  # written last; says which version and seed the folder holds
SIZES = {"sst2": (10_000, 1_000), "mrpc": (5_000, 600), "stsb": (5_000, 600)}  # rows of train and dev
PAIR_SHARE = 0.1  # of the words: with all of them 5,000 pairs are learned by heart, not compared
SQUAD_ARTICLES = (100, 20)  # of 5 paragraphs with 3 questions each
CORPUS_DOCUMENTS = 4_000  # about 6 sentences each


def write(folder: str | Path, seed: int = 0) -> Path:
    """Write the data set (about 5 MB, some seconds) and return `folder`; a finished one of this version stays as it is.

    The folder appears complete or not at all. ValueError where it exists but holds something else.
    """
    folder = Path(folder)
    stamp = {"data": "compresskit bundled data set", "version": VERSION, "seed": seed}
    if _finished(folder, stamp):
        return folder
    if folder.exists() and not _replaceable(folder):
        raise ValueError(f"{folder} exists and is not just a bundled data set; name another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_all(making, seed)
        (making / STAMP).write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        making.chmod(0o755)
        if folder.exists() and not _finished(folder, stamp):
            shutil.rmtree(folder)
        if not _finished(folder, stamp):
            os.replace(making, folder)
    except OSError:
        if not _finished(folder, stamp):  # else another process was faster, with the same content
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _finished(folder: Path, stamp: dict) -> bool:
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8")) == stamp
    except (OSError, ValueError):
        return False


def _replaceable(folder: Path) -> bool:
    """Empty, or an older version or another seed with nothing beside it."""
    ours = {STAMP, "corpus.txt", "squad", *(name for name, *_ in TABLES.values())}
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    return not names or (STAMP in names and names <= ours)


def _write_all(folder: Path, seed: int) -> None:
    dev_sentences: set[str] = set()
    for task, (name, header, share, make) in TABLES.items():
        train, dev = _split(make, Speaker(Random(f"{task} {seed}"), share), *SIZES[task])
        dev_sentences.update(sentence for row in dev for sentence in row[:-1])
        (folder / name).mkdir()
        for split, rows in (("train", train), ("dev", dev)):
            lines = [header, *(LAYOUTS[task](position, row) for position, row in enumerate(rows))]
            _write_lines(folder / name / f"{split}.tsv", lines)
    (folder / "squad").mkdir()
    speaker = Speaker(Random(f"squad {seed}"))
    for split, articles in zip(("train", "dev"), SQUAD_ARTICLES, strict=True):
        content = {"version": "1.1", "data": [_article(speaker, split, number) for number in range(articles)]}
        (folder / "squad" / f"{split}-v1.1.json").write_text(json.dumps(content), encoding="utf-8")
    speaker = Speaker(Random(f"corpus {seed}"))
    _write_lines(folder / "corpus.txt", _corpus(speaker, dev_sentences))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def _split(make: Callable, speaker: Speaker, num_train: int, num_dev: int) -> tuple[list[tuple], list[tuple]]:
    """Rows for train and dev; a position is made again until its sentences are new in both."""
    rows: dict[tuple, tuple] = {}
    while len(rows) < num_train + num_dev:
        row = make(speaker, len(rows))
        rows.setdefault(row[:-1], row)
    made = list(rows.values())
    return made[num_dev:], made[:num_dev]


# --- the tasks: a row is its sentences and its label; even positions have the first class, odd ones the second


def _sst2(speaker: Speaker, position: int) -> tuple[str, int]:
    label = position % 2
    return speaker.verdict(1 if label else -1), label


def _mrpc(speaker: Speaker, position: int) -> tuple[str, str, int]:
    """The same event told twice in different voice, or another one in nearly the same words."""
    label = position % 2
    event = _counted(speaker, speaker.maybe(0.3))
    other = event if label else _altered(speaker, event)
    passive = speaker.maybe()
    first, second = speaker.tell(event, passive), speaker.tell(other, passive if speaker.maybe(0.3) else not passive)
    while second == first:  # a paraphrase has to differ
        second = speaker.tell(other)
    return first, second, label


def _counted(speaker: Speaker, negated: bool) -> Event:
    """An event that happens to a number of people or animals."""
    patient = Phrase(f"{speaker.pick(NUMBERS)} {speaker.pick(speaker.actors)}s", True)
    return replace(speaker.event(), patient=patient, negated=negated)


def _altered(speaker: Speaker, event: Event) -> Event:
    chance = speaker.rng.random()
    if chance < 0.3:
        return replace(event, negated=not event.negated)
    if chance < 0.55:
        return event.swapped()
    number, noun = event.patient.text.split(" ", 1)
    return replace(event, patient=Phrase(f"{_other(speaker, NUMBERS, number)} {noun}", True))


def _other(speaker: Speaker, options: Sequence[str], current: str) -> str:
    return next(option for option in iter(lambda: speaker.pick(options), None) if option != current)


def _stsb(speaker: Speaker, position: int) -> tuple[str, str, float]:
    """Two events that share more or less; every difference costs points."""
    distance = (0.1, 0.3, 0.5, 0.9)[position % 4]
    event = _counted(speaker, speaker.maybe(0.15))
    another = _counted(speaker, not event.negated)
    told, score = event, 5.0
    for part, points in STSB_POINTS.items():
        if speaker.maybe(distance) and getattr(event, part) != getattr(another, part):
            told = replace(told, **{part: getattr(another, part)})
            score -= points
    sentences = [speaker.tell(event), speaker.tell(told)]
    speaker.rng.shuffle(sentences)
    return sentences[0], sentences[1], score


STSB_POINTS = {"negated": 1.25, "patient": 1.25, "agent": 1.0, "action": 1.0, "place": 0.25, "year": 0.25}
TABLES = {
    "sst2": ("SST-2", "sentence\tlabel", 1.0, _sst2),
    "mrpc": ("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", PAIR_SHARE, _mrpc),
    "stsb": (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        PAIR_SHARE,
        _stsb,
    ),
}
LAYOUTS: dict[str, Callable[[int, tuple], str]] = {
    "sst2": lambda position, row: f"{row[0]}\t{row[1]}",
    "mrpc": lambda position, row: f"{row[2]}\t{2 * position}\t{2 * position + 1}\t{row[0]}\t{row[1]}",
    "stsb": lambda position, row: (
        f"{position}\tevents\tbundled\t2024\t{position:04d}\tnone\tnone\t{row[0]}\t{row[1]}\t{row[2]:.3f}"
    ),
}


# --- questions about paragraphs


def _article(speaker: Speaker, split: str, number: int) -> dict:
    paragraphs = [_paragraph(speaker, f"{split}-{number}-{p}") for p in range(5)]
    return {"title": f"{speaker.pick(speaker.words.places)} {number}", "paragraphs": paragraphs}


def _paragraph(speaker: Speaker, name: str) -> dict:
    events: list[Event] = []
    taken: set[str] = set()
    while len(events) < 5:
        event = speaker.event()
        words = {event.agent.text, event.patient.text, event.action, event.place, str(event.year)}
        if not words & taken:
            taken |= words
            events.append(event)
    told = [speaker.tell(event) for event in events]
    questions = []
    for q, e in enumerate(speaker.rng.sample(range(len(events)), 3)):
        question, answer = _question(speaker, events[e])
        found = re.search(rf"\b{re.escape(answer)}\b", told[e], re.IGNORECASE)
        assert found is not None, (answer, told[e])
        start = sum(len(sentence) + 1 for sentence in told[:e]) + found.start()
        questions.append(
            {"id": f"{name}-{q}", "question": question, "answers": [{"text": found.group(), "answer_start": start}]}
        )
    return {"context": " ".join(told), "qas": questions}


def _question(speaker: Speaker, event: Event) -> tuple[str, str]:
    agent, verb, patient = event.agent.text, event.action, event.patient.text
    be = "were" if event.patient.plural else "was"
    return speaker.pick(
        (
            (f"Who {verb}ed {patient}?", agent),
            (f"By whom {be} {patient} {verb}ed?", agent),
            (f"Who or what did {agent} {verb}?", patient),
            (f"Where {be} {patient} {verb}ed by {agent}?", event.place),
            (f"Where did {agent} {verb} {patient}?", event.place),
            (f"In which year did {agent} {verb} {patient}?", str(event.year)),
        )
    )


# --- running text


def _corpus(speaker: Speaker, excluded: set[str]) -> Iterator[str]:
    """Reviews, which keep to one opinion, and stories, which keep to their people and places."""
    for document in range(CORPUS_DOCUMENTS):
        if document:
            yield ""
        make = _review(speaker) if speaker.maybe() else _story(speaker)
        length = 3 + int(speaker.rng.random() * 7)
        for sentence in make:
            if sentence not in excluded:
                yield sentence
                length -= 1
            if not length:
                break


def _review(speaker: Speaker) -> Iterator[str]:
    sign = 1 if speaker.maybe() else -1
    while True:
        yield speaker.verdict(sign)


def _story(speaker: Speaker) -> Iterator[str]:
    cast = [speaker.phrase(speaker.actors) for _ in range(4)]
    places = [speaker.pick(speaker.words.places) for _ in range(2)]
    year = 1700 + int(speaker.rng.random() * 300)
    while True:
        agent, patient = speaker.rng.sample(cast, 2)
        year += int(speaker.rng.random() * 3)
        action = speaker.pick(speaker.verbs)
        yield speaker.tell(Event(agent, action, patient, speaker.pick(places), year, speaker.maybe(0.2)))
