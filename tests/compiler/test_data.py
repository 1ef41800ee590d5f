"""Examples: every format gives the same rows, and everything that can be wrong with a row is told with its line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.compiler.data import Examples, check_disjoint, from_dspy, load_examples, split
from cuecard.errors import InputError

QUEUE = Literal["billing", "technical"]
INPUTS = {"ticket": str}
OUTPUTS: dict[str, Any] = {"queue": QUEUE}

ROWS: list[dict[str, Any]] = [
    {"ticket": "I paid\ntwice, twice", "count": 2, "queue": "billing", "paid": True, "source": "mail"},
    {"ticket": 'It says "no"', "count": 0, "queue": "technical", "paid": False, "source": "chat"},
]
TYPED: dict[str, Any] = {"inputs": {"ticket": str, "count": int}, "outputs": {"queue": QUEUE, "paid": bool}}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def load(path: Path, **options: Any) -> Examples:
    return load_examples(path, **{"inputs": INPUTS, "outputs": OUTPUTS, **options})


def message(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        load(path, **options)
    return str(raised.value).replace(f"{path.parent}/", "")


FILES = {
    "rows.jsonl": "".join(json.dumps(row) + "\n\n" for row in ROWS),
    "rows.json": json.dumps(ROWS, indent=1),
    "rows.csv": (
        'ticket,count,queue,paid,source\r\n"I paid\ntwice, twice",2,billing,true,mail\r\n'
        '"It says ""no""",0,technical,false,chat\r\n'
    ),
    "rows.tsv": (
        'ticket\tcount\tqueue\tpaid\tsource\n"I paid\ntwice, twice"\t2\tbilling\ttrue\tmail\n\n'
        '"It says ""no"""\t0\ttechnical\tfalse\tchat\n'
    ),
    "rows.yaml": (
        '- {ticket: "I paid\\ntwice, twice", count: 2, queue: billing, paid: true, source: mail}\n'
        "- ticket: 'It says \"no\"'\n  count: 0\n  queue: technical\n  paid: false\n  source: chat\n"
    ),
}
LINES = {"rows.jsonl": [1, 3], "rows.json": [2, 9], "rows.csv": [2, 4], "rows.tsv": [2, 5], "rows.yaml": [1, 2]}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    examples = load(write(tmp_path, name, FILES[name]), **TYPED)
    reference = load(write(tmp_path, "reference.jsonl", FILES["rows.jsonl"]), **TYPED)
    assert [dict(example.row) for example in examples] == ROWS
    assert examples.sha256 == reference.sha256
    assert [example.line for example in examples] == LINES[name]
    assert [example.id for example in examples] == [0, 1]
    assert examples.unused == ("source",)
    assert examples.path == str(tmp_path / name)


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    examples = load(tmp_path / "rows.parquet", **TYPED)
    assert [dict(example.row) for example in examples] == ROWS
    assert message(tmp_path / "rows.parquet", outputs={"queue": Literal["billing"]}) == (
        "rows.parquet: row 2: queue: found 'technical'; expected one of: billing"
    )
    assert message(write(tmp_path, "bad.parquet", b"PAR1 nothing")).startswith("bad.parquet: not valid Parquet: ")


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert message(write(tmp_path, "rows.parquet", b"")) == (
        "rows.parquet: reading Parquet needs the package pyarrow\n  Install pyarrow, or convert the file to JSON Lines."
    )


def test_columns_go_where_they_belong(tmp_path: Path) -> None:
    row = {"ticket": "x", "queue": "billing", "summary": "s", "entities": [1]}
    (example,) = load(write(tmp_path, "a.jsonl", json.dumps(row)), extra={"summary": str, "reasoning": str})
    assert (example.inputs, example.labels, example.extra) == (
        {"ticket": "x"},
        {"queue": "billing", "summary": "s"},
        {"entities": [1]},
    )
    theirs = example.to_dspy()
    assert theirs.inputs().toDict() == {"ticket": "x"}
    assert theirs.labels().toDict() == {"queue": "billing", "summary": "s"}


def test_a_list_for_a_text_is_several_references(tmp_path: Path) -> None:
    rows = '{"a": "x", "b": ["one", "two"], "c": ["p", "q"]}\n{"a": "y", "b": "one", "c": []}\n{"a": "z", "b": [], "c": []}'
    examples = load(write(tmp_path, "a.jsonl", rows), inputs={"a": str}, outputs={"b": str, "c": list[str]})
    assert [example.labels["b"] for example in examples] == [["one", "two"], "one", []]
    assert [example.demo() for example in examples] == [
        {"a": "x", "b": "one", "c": ["p", "q"]},
        {"a": "y", "b": "one", "c": []},
        {"a": "z", "c": []},
    ]
    wrong = write(tmp_path, "b.jsonl", '{"a": ["x"], "b": ["one", 2]}')
    assert message(wrong, inputs={"a": str}, outputs={"b": str}) == (
        "b.jsonl:1: a: found ['x'] (list); expected text\n  Put it in quotes, or declare another type.\n"
        "b.jsonl:1: b[1]: found 2 (int); expected text\n  Put it in quotes, or declare another type."
    )


def test_outputs_may_be_left_out_when_allowed(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.jsonl", '{"ticket": "x"}\n{"ticket": "y", "queue": null}\n{"ticket": "z", "queue": "billing"}'
    )
    assert [dict(example.labels) for example in load(path, require_outputs=False)] == [{}, {}, {"queue": "billing"}]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "x", "a.txt: found the ending '.txt'; expected one of .jsonl, .ndjson, .json, .csv, .tsv, .yaml, "
         ".yml, .parquet"),
        ("a.jsonl", "", "a.jsonl: the file has no rows"),
        ("a.json", "[]", "a.json: the file has no rows"),
        ("a.csv", "ticket,queue\n", "a.csv: the file has no rows"),
        ("a.yaml", "[]", "a.yaml: the file has no rows"),
        ("a.json", '{"rows": []}', "a.json:1: the file does not hold a list; expected a list of rows, [{...}, ...]"),
        ("a.yaml", "rows: []", "a.yaml:1: the file does not hold a list; expected a list of rows, each '- {...}'"),
        ("a.jsonl", '{"ticket": "x", "queue": "billing"}\n{"ticket": }\n',
         "a.jsonl:2: not valid JSON: Expecting value, at column 12"),
        ("a.jsonl", '{"ticket": NaN, "queue": "billing"}', "a.jsonl:1: not valid JSON: NaN is no JSON value"),
        ("a.jsonl", '{"ticket": "x", "ticket": "y", "queue": "billing"}',
         "a.jsonl:1: not valid JSON: the key 'ticket' stands twice in one mapping"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: not valid JSON: nested too deep"),
        ("a.json", '[\n{"ticket": "x",\n "queue": "billing",}\n]', "a.json:3: not valid JSON: "),
        ("a.json", '[\n{"ticket": "x", "queue": "billing"}\n{}]', "a.json:3: not valid JSON: ',' or ']' is missing"),
        ("a.json", '[\n{"ticket": "x", "queue": "billing"},\n]', "a.json:3: not valid JSON: Expecting value, at column 1"),
        ("a.json", '[{"ticket": "x", "queue": "billing"}]\n[]', "a.json:2: not valid JSON: something follows the list"),
        ("a.json", '[{"ticket": "x", "queue": "billing"}', "a.json:1: not valid JSON: ',' or ']' is missing"),
        ("a.csv", 'ticket,queue\n"x\ny",billing\nz\n', "a.csv:4: found 1 cells; expected 2, as in the first line"),
        ("a.csv", 'ticket,queue\nx,billing\n"y,billing\n', "a.csv:3: not valid CSV: unexpected end of data"),
        ("a.csv", "ticket,queue,ticket\nx,billing,y\n", "a.csv:1: the column 'ticket' stands twice"),
        ("a.jsonl", '["x"]\n"y"', "a.jsonl:1: found a list; expected a mapping of columns to values\n"
         "a.jsonl:2: found 'y'; expected a mapping of columns to values"),
        ("a.jsonl", '{"ticket": "x", "queue": "biling"}',
         "a.jsonl:1: queue: found 'biling'; expected one of: billing, technical (did you mean 'billing'?)"),
        ("a.csv", "ticket,queue\nx,billing\n\ny,biling\n",
         "a.csv:4: queue: found 'biling'; expected one of: billing, technical (did you mean 'billing'?)"),
        ("a.jsonl", '{"ticket": 3, "queue": "billing"}',
         "a.jsonl:1: ticket: found 3 (int); expected text\n  Put it in quotes, or declare another type."),
        ("a.jsonl", '{"ticket": null, "queue": "billing"}', "a.jsonl:1: ticket: found null; expected text"),
        ("a.jsonl", '{"ticket": "x", "queue": "billing"}\n{"ticket": "y", "quue": "billing"}',
         "a.jsonl:2: the field 'queue' is missing (did you mean 'quue'?)"),
        ("a.jsonl", '{"text": "x", "label": "billing"}\n{"text": "y", "label": "billing"}',
         "a.jsonl: no row has the field 'ticket' (did you mean 'text'?)\n"
         "a.jsonl: no row has the field 'queue'; expected the columns ticket, queue"),
        ("a.jsonl", '{"ticket": "\\ud83d", "queue": "billing"}',
         "a.jsonl:1: holds half of a surrogate pair, which is no character"),
    ],
)  # fmt: skip
def test_a_bad_file(tmp_path: Path, name: str, content: str, expected: str) -> None:
    found = message(write(tmp_path, name, content))
    assert found.startswith(expected) if expected.endswith(": ") else found == expected


def test_the_first_ten_errors_are_told(tmp_path: Path) -> None:
    rows = '{"ticket": "x", "queue": "billing"}\n' + '{"ticket": "x", "queue": "a"}\n' * 12 + "{\n"
    lines = message(write(tmp_path, "a.jsonl", rows)).splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == [f"a.jsonl:{number}" for number in range(2, 12)]
    assert lines[-1] == "... and 3 more"


def test_a_set_is_a_sequence(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"ticket": str(i), "queue": "billing"}) + "\n" for i in range(5))
    examples = load(write(tmp_path, "a.jsonl", rows))
    assert (len(examples), examples[1].inputs["ticket"], [e.id for e in examples[2:4]]) == (5, "1", [2, 3])
    assert isinstance(examples[2:4], Examples) and examples[2:4].path == examples.path
    assert len({examples.sha256, examples[:4].sha256, Examples(examples.items[::-1]).sha256}) == 3
    with pytest.raises(AttributeError):
        examples.items = ()  # type: ignore[misc]


def test_examples_from_dspy() -> None:
    theirs = [dspy.Example(q="x", a="yes", note=1).with_inputs("q"), dspy.Example(q="y", a="no").with_inputs("q")]
    plain = from_dspy(theirs)
    assert [(e.inputs, e.labels, e.id) for e in plain] == [
        ({"q": "x"}, {"a": "yes", "note": 1}, 0),
        ({"q": "y"}, {"a": "no"}, 1),
    ]
    assert plain.to_dspy() == theirs
    typed = from_dspy(theirs, inputs={"q": str}, outputs={"a": Literal["yes", "no"]})
    assert [dict(e.labels) for e in typed] == [{"a": "yes"}, {"a": "no"}]
    assert (typed[0].extra, typed.unused) == ({"note": 1}, ("note",))


def test_examples_from_dspy_are_checked() -> None:
    with pytest.raises(InputError) as raised:
        from_dspy([dspy.Example(q="x", a="yes").with_inputs("q"), dspy.Example(q="x")])
    assert str(raised.value) == (
        "example 2: the example does not say which fields are inputs\n"
        "  Mark them with example.with_inputs('question', ...)."
    )
    with pytest.raises(InputError) as raised:
        from_dspy([dspy.Example(q="x", a="yse").with_inputs("q")], inputs={"q": str}, outputs={"a": Literal["yes"]})
    assert str(raised.value) == "example 1: a: found 'yse'; expected one of: yes (did you mean 'yes'?)"
    with pytest.raises(InputError, match="there are no examples"):
        from_dspy([])
    with pytest.raises(InputError, match="example 1: holds a value that JSON has no form for"):
        from_dspy([dspy.Example(q=object()).with_inputs("q")])


def numbered(inputs: list[int]) -> Examples:
    return from_dspy([dspy.Example(q=str(n), a=str(i)).with_inputs("q") for i, n in enumerate(inputs)])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(0, 5), st.tuples(*[st.integers(0, 5)] * 3))
def test_a_split_deals_out_every_row_once(inputs: list[int], seed: int, shares: tuple[int, int, int]) -> None:
    examples = numbered(inputs)
    different, wanted = len(set(inputs)), sum(share > 0 for share in shares)
    if not wanted or different < wanted:
        with pytest.raises(InputError):
            split(examples, seed, shares)
        return
    parts = split(examples, seed, shares)
    assert sorted(example.id for part in parts for example in part) == list(range(len(inputs)))
    assert [[e.id for e in part] for part in parts] == [sorted(e.id for e in part) for part in parts]
    assert [len(part) > 0 for part in parts] == [share > 0 for share in shares]
    check_disjoint(train=parts[0], dev=parts[1], test=parts[2])
    for part, share in zip(parts, shares, strict=True):
        assert abs(len({e.key for e in part}) - different * share / sum(shares)) <= wanted
    # The same rows in another order are dealt the same way.
    again = split(numbered(inputs[::-1]), seed, shares)
    assert [{e.key for e in part} for part in again] == [{e.key for e in part} for part in parts]


def test_the_seed_decides_the_split() -> None:
    examples = numbered(list(range(100)))
    first, second = split(examples, 0), split(examples, 1)
    assert [len(part) for part in first] == [50, 25, 25]
    assert {e.id for e in first[0]} != {e.id for e in second[0]}
    assert [e.id for e in split(numbered(list(range(12))), 0)[2]] == [0, 5, 8]


def test_too_few_rows_and_wrong_fractions() -> None:
    with pytest.raises(InputError) as raised:
        split(numbered([1, 1, 2]), 0)
    assert str(raised.value) == "2 different rows cannot be split 3 ways; expected at least 3"
    with pytest.raises(InputError) as raised:
        split(numbered([1, 2, 3]), 0, (0.5, -0.5))
    assert str(raised.value) == ("found the fractions (0.5, -0.5); expected numbers not below 0, one of them above")


def test_a_row_in_two_splits_is_refused(tmp_path: Path) -> None:
    train = load(write(tmp_path, "train.jsonl", FILES["rows.jsonl"]), **TYPED)
    other = FILES["rows.jsonl"].replace("I paid", "I did not pay").replace('"billing"', '"technical"')
    dev = load(write(tmp_path, "dev.jsonl", other), **TYPED)
    check_disjoint(train=train, dev=train[:0])
    with pytest.raises(InputError) as raised:
        check_disjoint(train=train, dev=dev)
    assert str(raised.value).replace(f"{tmp_path}/", "") == (
        "dev.jsonl:3: this row of dev has the same inputs as train.jsonl:3 of train\n"
        "  A row may stand in one split only."
    )
    with pytest.raises(InputError) as raised:
        check_disjoint(train=numbered([1, 2]), test=numbered([3, 2]))
    assert str(raised.value) == (
        "row 2: this row of test has the same inputs as row 2 of train\n  A row may stand in one split only."
    )
