"""A small made-up English: its words, built from syllables, and sentences whose meaning is known because it was chosen.

Function words, word order, agreement, voice and negation are English; nouns, verbs and adjectives are invented, so that
nothing about them can be known but what the sentences show.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

ONSETS = "b br c cl d dr f fl g gl gr h j k l m n p pl pr r s sk sl st t tr v w z".split()  # noqa: SIM905
NUCLEI = ("a", "e", "i", "o", "u", "ai", "ea", "oo")
CODAS = ("l", "m", "n", "r", "t", "nd", "st", "rk", "lt")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")

T = TypeVar("T")


@dataclass(frozen=True)
class Lexicon:
    """Words by role; plurals add -s, past forms -ed. Praise and blame share their endings: spelling tells nothing."""

    names: list[str]
    places: list[str]
    people: list[str]
    things: list[str]  # what is judged
    plain: list[str]  # adjectives without a verdict
    good: list[str]
    bad: list[str]
    actions: list[str]  # what people do to people and things
    animals: list[str]  # these and the following occur in events only
    goods: list[str]
    deeds: list[str]


def lexicon(share: float = 1.0) -> Lexicon:
    """The same words always, some 1,500 stems and 2,500 forms: one vocabulary fits the sentences of every seed.

    `share` cuts the names, the places, the nouns, and the verbs of events to their first ones.
    """
    rng = Random("words of the bundled language, version 1")
    used: set[str] = set()

    def words(count: int, endings: str, used_share: float = 1.0) -> list[str]:
        made: list[str] = []
        while len(made) < count:
            word = rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS) + rng.choice(endings.split(","))
            if word not in used:
                used.add(word)
                made.append(word)
        return made[: round(count * used_share)]

    adjective = "ous,ful,ive,ic,al,y"
    return Lexicon(
        names=[name.capitalize() for name in words(200, "o,a,is,e", share)],
        places=[place.capitalize() for place in words(80, "burg,ton,ia,field", share)],
        people=words(160, "er,ist,ian", share),
        things=words(200, ",,,et,age", share),
        plain=words(120, adjective),
        good=words(24, adjective),
        bad=words(24, adjective),
        actions=words(120, ",,ish", share),
        animals=words(160, ",,en,ow", share),
        goods=words(240, ",,in,ock", share),
        deeds=words(120, ",,ify", share),
    )


# One judgement in the other's words: praise is a good word affirmed or a bad one denied
AFFIRMATIVE = ("", "", "truly ", "always ", "nothing but ")
NEGATIVE = ("not ", "never ", "hardly ", "nowhere near ", "anything but ")
# Signs of the judgements in a sentence, relative to its verdict, which is that of their majority
MAJORITIES = ((1,), (1,), (1,), (1, 1), (1, 1, -1), (1, 1, -1), (1, 1, -1))
# An aside has a judgement, too, but does not count
ASIDES = (
    "{said}, although {aside}",
    "although {aside}, {said}",
    "even if {aside}, {said}",
    "{said}, even if {aside}",
)
INTRODUCTIONS = (
    "in {place}, ",
    "as {name} wrote, ",
    "after {number} visits to {place}, ",
    "according to {name} of {place}, ",
    "in the words of the {people} from {place}, ",
    "last year {name} told the {people} of {place} that ",
    "{name} and the {number} {people} agree that ",
)


@dataclass(frozen=True)
class Phrase:
    """Who or what takes part in an event: a name, or a noun with its article or number."""

    text: str
    plural: bool


@dataclass(frozen=True)
class Event:
    """Who did what to whom, where and when; or did not."""

    agent: Phrase
    action: str
    patient: Phrase
    place: str
    year: int
    negated: bool = False

    def swapped(self) -> "Event":
        return replace(self, agent=self.patient, patient=self.agent)


class Speaker:
    """Makes sentences; all chance comes from `rng`. `share` of the words are in use, whatever the chance.

    The probabilities were tuned, not derived: with them a 4-layer encoder learns `verdict` in a minute on one core,
    while counting words gives little more than chance (tests/data/test_bundled.py holds both).
    """

    def __init__(self, rng: Random, share: float = 1.0):
        self.rng = rng
        self.words = lexicon(share)
        self.actors = self.words.people + self.words.animals
        self.verbs = self.words.actions + self.words.deeds

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.random() * len(options))]

    def maybe(self, probability: float = 0.5) -> bool:
        return self.rng.random() < probability

    def noun(self, nouns: Sequence[str], plural: bool) -> str:
        modifier = self.pick(self.words.plain) + " " if self.maybe(0.25) else ""
        return modifier + self.pick(nouns) + ("s" if plural else "")

    # --- opinions: a sign of +1 praises, −1 pans

    def judgement(self, sign: int, elliptic: bool = False) -> str:
        """One clause about one thing; `elliptic` leaves out a verb that the clause before had."""
        plural = self.maybe()
        topic = "the " + self.noun(self.words.things, plural)
        negated = self.maybe(0.3)
        adjective = self.pick(self.words.good if (sign > 0) != negated else self.words.bad)
        be = "" if elliptic else " are" if plural else " is"
        return f"{topic}{be} {self.pick(NEGATIVE if negated else AFFIRMATIVE)}{adjective}"

    def verdict(self, sign: int) -> str:
        """A sentence of one to three judgements, of which most have the `sign`, and what people say around them."""
        signs = [sign * relative for relative in self.pick(MAJORITIES)]
        self.rng.shuffle(signs)
        clauses = [self.judgement(s, elliptic=position > 0) for position, s in enumerate(signs)]
        text = ", ".join(clauses[:-1]) + (" and " if len(clauses) > 1 else "") + clauses[-1]
        if self.maybe(0.25):
            text = self.pick(ASIDES).format(said=text, aside=self.judgement(1 if self.maybe() else -1))
        return _sentence((self.introduction() if self.maybe(0.4) else "") + text)

    def introduction(self) -> str:
        return self.pick(INTRODUCTIONS).format(
            name=self.pick(self.words.names),
            place=self.pick(self.words.places),
            people=self.noun(self.words.people, plural=True),
            number=self.pick(NUMBERS),
        )

    # --- events

    def phrase(self, nouns: Sequence[str], name: float = 0.4) -> Phrase:
        if self.maybe(name):
            return Phrase(self.pick(self.words.names), False)
        if self.maybe(0.4):
            return Phrase(f"{self.pick(NUMBERS)} {self.noun(nouns, True)}", True)
        plural = self.maybe()
        return Phrase("the " + self.noun(nouns, plural), plural)

    def event(self) -> Event:
        agent = patient = self.phrase(self.actors)
        while patient.text == agent.text:
            patient = self.phrase(self.actors if self.maybe(0.4) else self.words.goods)
        year = 1700 + int(self.rng.random() * 320)
        return Event(agent, self.pick(self.verbs), patient, self.pick(self.words.places), year)

    def tell(self, event: Event, passive: bool | None = None) -> str:
        """The event in a sentence: active or passive (None: either), place and year in front or at the end."""
        if self.maybe() if passive is None else passive:
            be = "were" if event.patient.plural else "was"
            text = f"{event.patient.text} {be} {'not ' if event.negated else ''}{event.action}ed by {event.agent.text}"
        else:
            verb = f"did not {event.action}" if event.negated else f"{event.action}ed"
            text = f"{event.agent.text} {verb} {event.patient.text}"
        place, year = f"in {event.place}", f"in {event.year}"
        if self.maybe(0.3):
            return _sentence(f"{year}, {text} {place}")
        if self.maybe(0.3):
            return _sentence(f"{place}, {text} {year}")
        return _sentence(f"{text} {place} {year}")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
