"""The run folder: which one a compile works in, who may, and what is in it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cuecard.compiler.run_folder import RunFolder, fingerprint, open_run
from cuecard.errors import InputError, RunError


def begun(root: Path, name: str, print_of: str, status: str = "running", *, fresh: bool = False) -> RunFolder:
    """Open a run and write what a compile would."""
    folder = open_run(root, name, print_of, fresh=fresh)
    folder.write({"fingerprint": print_of, "status": status})
    return folder


# ---- which folder


def test_the_first_run_is_number_1(tmp_path: Path) -> None:
    folder = open_run(tmp_path / "deep" / "runs", "triage", "a")
    assert folder.path == tmp_path / "deep" / "runs" / "triage-1"
    assert folder.path.is_dir()
    assert not folder.resumed


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_an_unfinished_run_of_the_same_fingerprint_is_taken_up(status: str, tmp_path: Path) -> None:
    begun(tmp_path, "triage", "a", status)
    again = open_run(tmp_path, "triage", "a")
    assert again.path.name == "triage-1"
    assert again.resumed


@pytest.mark.parametrize(
    ("print_of", "status", "fresh"), [("b", "running", False), ("a", "finished", False), ("a", "running", True)]
)
def test_anything_else_is_a_new_run(print_of: str, status: str, fresh: bool, tmp_path: Path) -> None:
    begun(tmp_path, "triage", "a", status)
    again = open_run(tmp_path, "triage", print_of, fresh=fresh)
    assert again.path.name == "triage-2"
    assert not again.resumed


def test_only_the_last_run_is_taken_up(tmp_path: Path) -> None:
    begun(tmp_path, "triage", "a")
    begun(tmp_path, "triage", "b")
    assert open_run(tmp_path, "triage", "a").path.name == "triage-3"


def test_numbers_are_counted_as_numbers_and_gaps_stay(tmp_path: Path) -> None:
    for number in (2, 9, 10):
        (tmp_path / f"triage-{number}").mkdir()
    assert open_run(tmp_path, "triage", "a").path.name == "triage-11"


def test_names_that_begin_alike_are_kept_apart(tmp_path: Path) -> None:
    begun(tmp_path, "triage", "a")
    begun(tmp_path, "triage-2", "a")
    (tmp_path / "triage.x-7").mkdir()
    (tmp_path / "triage-old").mkdir()
    assert open_run(tmp_path, "triage", "b").path.name == "triage-2"
    assert open_run(tmp_path, "triage-2", "b").path.name == "triage-2-2"


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', '{"status": "running"}', "\xff"])
def test_a_run_that_wrote_nothing_sensible_is_not_taken_up(content: str, tmp_path: Path) -> None:
    folder = open_run(tmp_path, "triage", "a")
    folder.run.write_bytes(content.encode("latin-1"))
    assert open_run(tmp_path, "triage", "a").path.name == "triage-2"
    assert folder.read() == (json.loads(content) if content.startswith("{") and len(content) > 1 else {})


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RunError, match="can't make the run's folder"):
        open_run(tmp_path / "runs", "triage", "a")


# ---- one at a time


def test_a_run_is_worked_in_by_one_at_a_time(tmp_path: Path) -> None:
    folder = begun(tmp_path, "triage", "a")
    with folder:
        with (
            pytest.raises(InputError, match="another process is working in this run") as caught,
            RunFolder(folder.path, resumed=True),
        ):
            pass
        assert caught.value.path == str(folder.path)
    with RunFolder(folder.path, resumed=True):
        pass


def test_a_process_that_was_killed_locks_nobody_out(tmp_path: Path) -> None:
    folder = begun(tmp_path, "triage", "a")
    script = textwrap.dedent(
        """
        import os, signal, sys
        from filelock import FileLock
        FileLock(sys.argv[1]).acquire()
        print("locked", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder.path / ".lock")], stdout=subprocess.PIPE, timeout=60
    )
    assert (done.stdout, done.returncode) == (b"locked\n", -9)
    with folder:
        pass


def test_the_lock_is_let_go_when_the_work_fails(tmp_path: Path) -> None:
    folder = begun(tmp_path, "triage", "a")
    with pytest.raises(ZeroDivisionError), folder:
        raise ZeroDivisionError
    with folder:
        pass


# ---- what is in it


def test_run_json_is_written_whole_and_read_back(tmp_path: Path) -> None:
    folder = open_run(tmp_path, "triage", "a")
    assert folder.read() == {}
    folder.write({"name": "Ünï", "scores": [0.5]})
    assert folder.read() == {"name": "Ünï", "scores": [0.5]}
    assert "Ünï" in folder.run.read_text(encoding="utf-8")
    assert sorted(path.name for path in folder.path.iterdir()) == ["run.json"]


def test_a_new_life_begins_without_the_last_ones_trials_and_keeps_the_calls(tmp_path: Path) -> None:
    folder = open_run(tmp_path, "triage", "a")
    folder.append_trial({"trial": 0})
    folder.append_trial({"trial": 1})
    assert [json.loads(line)["trial"] for line in folder.trials.read_text().splitlines()] == [0, 1]
    for path in (folder.study, Path(f"{folder.study}-journal"), folder.calls):
        path.write_text("x")
    folder.write({"status": "running"})
    folder.begin()
    assert sorted(path.name for path in folder.path.iterdir()) == ["calls.jsonl", "run.json"]
    folder.begin()


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    folder = open_run(tmp_path, "triage", "a")
    folder.trials.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"can't write: No space left on device.*\n.*Make room") as caught:
        folder.append_trial({"trial": 0})
    assert isinstance(caught.value.__cause__, OSError)


# ---- the fingerprint


def test_a_fingerprint_depends_on_what_is_in_it_and_not_on_order() -> None:
    parts: dict[str, Any] = {"seed": 0, "data": [["a"], ["b"]], "metric": {"x": 1, "y": None}}
    same = {"metric": {"y": None, "x": 1}, "data": [["a"], ["b"]], "seed": 0}
    assert fingerprint(parts) == fingerprint(same)
    for change in ({"seed": 1}, {"data": [["a", "b"]]}, {"metric": None}):
        assert fingerprint({**parts, **change}) != fingerprint(parts)
