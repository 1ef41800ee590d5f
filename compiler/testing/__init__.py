"""A spec's tests: cases with assertions on their outputs, and gates for a metric over a file of examples."""

from .answers import Answer, Recorder, Recording, read_recording
from .cases import Case
from .gates import Gate
from .kinds import KINDS, TYPES
from .reading import Suite, Test, find_suites, read_suite, read_tests
from .results import Check, Report, Result, Status
from .running import rescore, run_report, run_tests, runs_of
from .selection import read_last_failed, select, write_last_failed

__all__ = [
    "KINDS",
    "TYPES",
    "Answer",
    "Case",
    "Check",
    "Gate",
    "Recorder",
    "Recording",
    "Report",
    "Result",
    "Status",
    "Suite",
    "Test",
    "find_suites",
    "read_last_failed",
    "read_recording",
    "read_suite",
    "read_tests",
    "rescore",
    "run_report",
    "run_tests",
    "runs_of",
    "select",
    "write_last_failed",
]
