"""Outputs drawn at temperature 1 over every kind of output type, through every format: which of them are read back.

Each draw is what the read-out `constrained` does: the format's prompt, its grammar of the whole answer, one sample with
a seed of its own, and the format's reader. There are no demos, so that the model is far from sure of what it should
write. What bounds itself has room for its longest answer; what is open (a text without a length) is cut off where
`max_tokens` ends, and counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, Optional

import dspy
from pydantic import BaseModel, Field

from cuecard.errors import ReadError
from cuecard.models.engine import Decoding, Engine, Failure, GenerateRequest, Generation
from cuecard.programs.formats import Format, format_named, names
from cuecard.programs.prompt import render
from cuecard.signatures import type_name

TEXTS = (
    "On 3 May 2024 Maria Lopez ordered two lamps for 39.90 each; one came broken, and she wants her money back.",
    "The app has stopped with error E-4411 every morning since the update, says Jonas Weber of Basel.",
    "Please change my address to 12 Mill Lane, York. I am 67 and have been a customer since 1998.",
    "Nothing arrived.",
    "Three of the five sensors read 21.5, 21.7 and 48.2 degrees at 14:05; the other two are silent.",
    "Invoice 2024-0113 names 1,250.00 as its total, but we agreed on 1,125.00, due by the end of the month.",
    "Could you tell me whether the shop in Leeds is open on Sundays, and until when?",
    'She wrote: "It\'s \u00e9patant!", {and} [more] \\ of that / kind.',
)


class Urgency(Enum):
    LOW = "low"
    HIGH = "high"
    ASAP = "as soon as possible"


Short = Annotated[str, Field(max_length=16)]
Code = Annotated[str, Field(pattern=r"^[A-Z]{2}-[0-9]{3,5}$")]


class Address(BaseModel):
    """A place."""

    street: Short
    postcode: Annotated[str, Field(pattern=r"^[0-9]{5}$")]
    country: Literal["UK", "ES", "DE"]


class Item(BaseModel):
    """One line of an order."""

    name: Short
    count: Annotated[int, Field(ge=1, le=99)]
    price: Annotated[Decimal, Field(ge=0, le=9999, decimal_places=2)]


class Order(BaseModel):
    """An order, with records inside records."""

    customer: Short
    address: Address | None
    items: Annotated[list[Item], Field(min_length=1, max_length=2)]
    placed: date
    paid: bool
    urgency: Urgency


class Note(BaseModel):
    """A record whose texts have no length."""

    title: str
    lines: list[str]


@dataclass(frozen=True)
class Kind:
    """An output type. room: `max_tokens`; open: whether an answer may be longer than any room."""

    name: str
    type_: Any
    room: int = 48
    open: bool = False


KINDS = (
    Kind("choice", Literal["billing", "technical", "account"]),
    Kind("choice, numbers and prefixes", Literal["New York", "New York City", "York", 7]),
    Kind("choice, Enum", Urgency),
    Kind("bool", bool),
    Kind("regex", Code),
    Kind("regex, bounded repeats", Annotated[str, Field(pattern=r"^([a-z]{2,6} ){0,3}(ok|ko)$")]),
    Kind("text, bounded", Annotated[str, Field(min_length=2, max_length=24)], 160),
    Kind("int", int),
    Kind("int, bounded", Annotated[int, Field(ge=0, le=100)]),
    Kind("int, multiple", Annotated[int, Field(gt=-50, lt=50, multiple_of=5)]),
    Kind("float", float, 64),
    Kind("float, bounded", Annotated[float, Field(gt=0, lt=1)], 64),
    Kind("decimal, bounded", Annotated[Decimal, Field(ge=0, le=10_000, decimal_places=2)], 64),
    Kind("date", date),
    Kind("date, bounded", Annotated[date, Field(ge=date(2020, 2, 28), le=date(2024, 3, 1))]),
    Kind("datetime", datetime, 64),
    Kind("time", time, 64),
    Kind("optional int", Optional[Annotated[int, Field(ge=1, le=5)]]),  # noqa: UP045 - spelled as people spell it
    Kind("optional date", date | None),
    Kind("optional text", Annotated[str, Field(max_length=16)] | None, 128),
    Kind("optional choice", Literal["yes", "no"] | None),
    Kind("list of choices", Annotated[list[Literal["red", "green", "blue"]], Field(max_length=4)], 96),
    Kind(
        "list of numbers", Annotated[list[Annotated[int, Field(ge=0, le=999)]], Field(min_length=1, max_length=5)], 96
    ),
    Kind("list of texts", Annotated[list[Short], Field(max_length=3)], 320),
    Kind("list of dates", Annotated[list[date], Field(max_length=3)], 128),
    Kind("list of optionals", Annotated[list[bool | None], Field(max_length=4)], 96),
    Kind("record", Address, 256),
    Kind("record, nested", Order, 768),
    Kind("text, open", str, 64, open=True),
    Kind("list of texts, open", list[str], 192, open=True),
    Kind("record, open", Note, 256, open=True),
)


@dataclass(frozen=True)
class Draw:
    """One output to draw."""

    kind: Kind
    format: Format
    signature: type[dspy.Signature]
    text: str
    seed: int

    def request(self, engine: Engine) -> GenerateRequest:
        """What the read-out `constrained` asks."""
        prompt = render(engine, self.format, self.signature, (), {"text": self.text}, room=self.kind.room)
        decoding = Decoding(max_tokens=self.kind.room, temperature=1.0, seed=self.seed)
        return GenerateRequest(prompt.ids, decoding, self.format.grammar(self.signature))


@dataclass
class Tally:
    """What came of some draws. cut: ended by `max_tokens` and not readable; masked: probability ruled out, summed."""

    drawn: int = 0
    parsed: int = 0
    cut: int = 0
    masked: float = 0.0


@dataclass
class Typed:
    """What came of all draws, by type and by format; failures: told, the first of them."""

    by_kind: dict[str, Tally] = field(default_factory=dict)
    by_format: dict[str, Tally] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def bounded(self) -> Tally:
        """The sum over the types that bound themselves."""
        tallies = [self.by_kind[kind.name] for kind in KINDS if not kind.open and kind.name in self.by_kind]
        return Tally(sum(t.drawn for t in tallies), sum(t.parsed for t in tallies), sum(t.cut for t in tallies))


def draws(count: int, kinds: Sequence[Kind], formats: Sequence[str], seed: int = 0) -> list[Draw]:
    """`count` draws, seeds from `seed` on, spread evenly over types, formats and texts; a type's stand together."""
    made = [format_named(name) for name in formats]
    signatures = {kind.name: signature_of(kind) for kind in kinds}
    found = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        turn = number // len(kinds)
        text = TEXTS[turn // len(made) % len(TEXTS)]
        found.append(Draw(kind, made[turn % len(made)], signatures[kind.name], text, seed + number))
    return sorted(found, key=lambda draw: (kinds.index(draw.kind), draw.format.name, draw.text, draw.seed))


def signature_of(kind: Kind) -> type[dspy.Signature]:
    """`text -> answer` with the type as its output's."""
    fields = {
        "text": (str, dspy.InputField()),
        "answer": (kind.type_, dspy.OutputField(desc=f"the {kind.name.partition(',')[0]} that fits best")),
    }
    return dspy.Signature(fields, "Read the message and answer in the form that is asked for.")


def run(
    engine: Engine, drawn: Sequence[Draw], batch: int, most: int, told: Callable[[int], None] = lambda done: None
) -> Typed:
    """Draw all, `batch` at a time, and read what comes out. most: failures to tell; told: hears how many are done."""
    found = Typed({draw.kind.name: Tally() for draw in drawn}, {draw.format.name: Tally() for draw in drawn})
    done = 0
    for part in _parts(drawn, batch):
        for draw, result in zip(part, engine.generate([draw.request(engine) for draw in part]), strict=True):
            _count(draw, result, found, most)
        done += len(part)
        told(done)
    return found


def _parts(drawn: Sequence[Draw], batch: int) -> Iterator[Sequence[Draw]]:
    for first in range(0, len(drawn), batch):
        yield drawn[first : first + batch]


def _count(draw: Draw, result: Generation | Failure, found: Typed, most: int) -> None:
    why = _why_not(draw, result)
    cut = isinstance(result, Generation) and result.samples[0].finish == "length" and why is not None
    masked = result.samples[0].masked if isinstance(result, Generation) else 0.0
    tallies = [found.by_kind[draw.kind.name]]
    if not draw.kind.open:
        tallies.append(found.by_format[draw.format.name])
    for tally in tallies:
        tally.drawn += 1
        tally.parsed += why is None
        tally.cut += cut
        tally.masked += masked
    if why is not None and len(found.failures) < most and not (cut and draw.kind.open):
        found.failures.append(
            f"{draw.kind.name} ({type_name(draw.kind.type_)}), {draw.format.name}, {draw.seed}: {why}"
        )


def _why_not(draw: Draw, result: Generation | Failure) -> str | None:
    """Why an output is not read; None when it is."""
    if isinstance(result, Failure):
        return result.error
    (sample,) = result.samples
    try:
        draw.format.parse(draw.signature, sample.text)
    except ReadError as error:
        return f"{error}; the text, which ended by {sample.finish!r}, is {sample.text!r}"
    return None


def all_formats() -> tuple[str, ...]:
    """The names of the formats that can be drawn in."""
    return names()
