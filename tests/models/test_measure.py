"""Measured rates: which texts are timed, and what is divided by what."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_kinds import build_kind

from cuecard.compiler.cli import main
from cuecard.errors import InputError, RunError
from cuecard.models import measure as measure_module
from cuecard.models.engine import Failure
from cuecard.models.engine_base import Capacity
from cuecard.models.limits import Limits
from cuecard.models.measure import measure

from .helpers import engine_over, random_model
from .test_plain import model_of, plain_over


def ticking() -> Callable[[], float]:
    """A clock on which what is timed takes 1 second, then 2, then 1, ..."""
    times = itertools.accumulate(itertools.cycle([1.0, 0.0, 2.0, 0.0]))
    return lambda: next(times)


def test_rates_are_tokens_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "ROUNDS", 1)
    engine = engine_over(random_model("llama"), ends=())
    asked: list[tuple[int, int, int]] = []
    generate = engine.generate

    def watched(requests: list[measure_module.GenerateRequest]) -> object:
        asked.append((len(requests), len(requests[0].prompt), requests[0].decoding.max_tokens))
        return generate(requests)

    monkeypatch.setattr(engine, "generate", watched)
    rates = measure(engine, clock=lambda: float(sum(tokens for _, _, tokens in asked)))
    assert asked == [(4, 256, 24), (4, 256, 1), (1, 32, 1), (1, 32, 24), (32, 32, 1), (32, 32, 24)]
    assert rates == measure_module.Rates(4 * 256 / 1, 23 / 23, 32 * 23 / 23, 32)
    assert engine.ledger.reused_tokens == 0


def test_a_text_that_ends_by_itself_is_counted_as_long_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_module, "ROUNDS", 1)
    engine = engine_over(random_model("llama"), ends=tuple(range(512)))
    rates = measure(engine, clock=ticking())
    assert rates.alone == rates.side_by_side == 0
    assert rates.prefill > 0


def test_padded_batches_are_measured_too() -> None:
    engine = plain_over(model_of("bloom"))
    rates = measure(engine)
    assert min(rates.prefill, rates.alone, rates.side_by_side) > 0
    assert engine.capacity.rows == 128


def test_the_largest_batch_is_that_of_the_limits() -> None:
    assert engine_over(random_model("llama"), Limits(tokens=700, rows=9)).capacity == Capacity(700, 9)


def test_an_engine_that_fails_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_over(random_model("llama"))
    monkeypatch.setattr(engine, "generate", lambda requests: [Failure("out of tea") for _ in requests])
    with pytest.raises(RunError, match="can't be measured: out of tea"):
        measure(engine)
    monkeypatch.setattr(engine, "_context", 2)
    with pytest.raises(InputError, match="a context window of 2 tokens"):
        measure(engine)


# On the command line


def info(capsys: pytest.CaptureFixture[str], folder: Path) -> dict[str, str]:
    assert main(["models", "info", str(folder), "--device", "cpu", "--dtype", "float32", "--measure"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name: value.strip() for name, value in (line.split("  ", 1) for line in lines)}


@pytest.mark.usefixtures("cuecard_home")
@pytest.mark.parametrize(("kind", "cached"), [("t5", True), ("mamba", False)])
def test_models_info_measures(kind: str, cached: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    facts = info(capsys, build_kind(tmp_path / kind, kind))
    assert facts.get("KV cache, dtypes") == ("float32 512, bfloat16 256, float16 256 bytes a token" if cached else None)
    assert facts["largest batch"].endswith(" 128 texts side by side")
    assert ("of KV cache)" in facts["largest batch"]) == cached
    assert facts["prefill"].endswith(" tokens a second")
    assert facts["decode"].endswith(" for 32 texts side by side")


def test_a_server_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "info", "http://localhost:9", "--measure"]) == 2
    assert "found --measure for a model server" in capsys.readouterr().err
