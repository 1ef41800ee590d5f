"""What a run's fingerprint knows of a program: the constraints of its fields, and nothing that another process lacks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, Optional

import dspy
import pytest
from fakes import FakeEngine, fake_target
from pydantic import AfterValidator, Field

import cuecard
from cuecard.compiler.api import _identity_of, _signature_text
from cuecard.compiler.judging import JudgeMetric
from cuecard.compiler.run_folder import fingerprint
from cuecard.compiler.task import Task
from cuecard.metrics.calibration import CalibrationError
from cuecard.optimizers.principles import brief
from cuecard.optimizers.space import readouts_for
from cuecard.programs.spans import copied_from


def written(type_: Any, **declared: Any) -> str:
    return _signature_text(
        dspy.Signature({"ticket": (str, dspy.InputField()), "queue": (type_, dspy.OutputField(**declared))})
    )


@pytest.mark.parametrize(
    ("type_", "declared"),
    [
        (str, {"pattern": "^[a-z]+$"}),
        (str, {"max_length": 9}),
        (Annotated[str, Field(pattern="^[a-z]+$")], {}),
        (Annotated[str, Field(pattern="^[A-Z]+$")], {}),
        (Optional[Annotated[str, Field(pattern="^[A-Z]+$")]], {}),  # noqa: UP045
        (str, {"desc": "another"}),
        (int, {}),
        (int, {"ge": 0}),
        (int, {"ge": 1}),
    ],
)
def test_other_fields_are_another_program(type_: Any, declared: dict[str, Any]) -> None:
    assert written(type_, **declared) == written(type_, **declared)
    others = [written(str), written(str, pattern="^[0-9]+$"), written(int, ge=2)]
    assert written(type_, **declared) not in others


def test_a_function_goes_by_its_name() -> None:
    def made() -> Any:
        def shout(text: str) -> str:
            return text.upper()

        return Annotated[str, AfterValidator(shout)]

    first, second = made(), made()  # kept, so that the second does not get the first's address
    assert written(first) == written(second)
    assert "shout" in written(first)


def test_text_with_constraints_is_no_plain_text_to_the_search() -> None:
    plain, typed = (
        cuecard.signature(f"ticket -> code: {kind}") for kind in ("str", "Annotated[str, Field(min_length=2)]")
    )
    assert readouts_for(plain, copied=True) == ("text", "span")
    assert readouts_for(cuecard.signature("ticket -> code: str | None"), copied=True) == (
        "text",
        "span+batch",
        "constrained",
    )
    assert readouts_for(typed) == ("text", "constrained")
    rows = [{"ticket": f"It is AB{n}, I think.", "code": f"AB{n}"} for n in range(9)]
    assert copied_from(plain, rows) == ("ticket",)
    assert copied_from(typed, rows) == ()
    assert brief("Find it.", typed) is None
    assert "few words" in (brief("Find it.", plain) or "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (JudgeMetric("How kind is it?"), JudgeMetric("How short is it?")),
        (CalibrationError(bins=5), CalibrationError(bins=20)),
        (["f1", {"metric": CalibrationError(bins=5)}], ["f1", {"metric": CalibrationError(bins=20)}]),
    ],
)
def test_another_metric_of_the_same_name_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: Any, other: Any
) -> None:
    opened: list[str] = []

    def compile_task(task: Task, *, metric_source: Any, **_: Any) -> None:
        opened.append(fingerprint(_identity_of(task, metric_source)))

    monkeypatch.setattr("cuecard.compiler.api.compile_task", compile_task)
    rows = [dspy.Example(ticket=f"t{n}", queue="billing").with_inputs("ticket") for n in range(8)]
    program = dspy.Predict("ticket -> queue: Literal['billing', 'account']")
    for metric in (one, other, copy.deepcopy(one)):
        cuecard.compile(program, devset=rows, metric=metric, target=fake_target(FakeEngine()), runs=tmp_path)
    first, second, again = opened
    assert first == again != second
