"""The ticket triage without YAML: an ordinary DSPy program, compiled for the local model.

    python examples/ticket_triage/in_python.py

It writes triage.compiled.yaml into the current folder, and routes one ticket with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import dspy

import cuecard

DATA = Path(__file__).parent / "data"
Queue = Literal["billing", "technical", "account", "shipping", "feedback"]


class Summarise(dspy.Signature):
    """Say in one short sentence what the customer wants."""

    ticket: str = dspy.InputField()
    summary: str = dspy.OutputField()


class Route(dspy.Signature):
    """Decide which queue the support ticket belongs to."""

    ticket: str = dspy.InputField()
    summary: str = dspy.InputField()
    queue: Queue = dspy.OutputField()


class Triage(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.summarise = dspy.Predict(Summarise)
        self.route = dspy.Predict(Route)

    def forward(self, ticket: str) -> dspy.Prediction:
        summary = self.summarise(ticket=ticket).summary
        return dspy.Prediction(queue=self.route(ticket=ticket, summary=summary).queue)


def read(split: str) -> list[dspy.Example]:
    lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [dspy.Example(json.loads(line)).with_inputs("ticket") for line in lines]


def main() -> None:
    target = cuecard.target("smollm2-135m")
    compiled = cuecard.compile(
        Triage(),
        trainset=read("train"),
        devset=read("dev"),
        testset=read("test"),
        metric={"metric": "exact_match", "field": "queue"},
        target=target,
        budget={"metric_calls": 1200},
        search={"instructions": 2},
        name="triage",
    )
    for split in ("dev", "test"):
        before, after = compiled.compilation.baseline[split], compiled.compilation.compiled[split]
        print(f"{split}: {before.value:.2f} before, {after.value:.2f} [{after.low:.2f}, {after.high:.2f}] after")
    print("written:", compiled.write("triage.compiled.yaml"))

    loaded = cuecard.load("triage.compiled.yaml", program=Triage(), target=target)
    print(loaded(ticket="The courier left someone else's box at my door.").queue)


if __name__ == "__main__":
    main()
