"""What is installed is the package and nothing else, and importing it is light."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OUTSIDE = {"tests", "examples", "benchmarks", "docs", "build", "dist"}


def top_folders() -> list[Path]:
    """The folders of the package, which stand at the root among others."""
    return [path for path in ROOT.iterdir() if (path / "__init__.py").is_file() and path.name not in OUTSIDE]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel built from a copy of the sources, so that the build leaves nothing in them."""
    copy = tmp_path_factory.mktemp("sources") / "any-name"
    kept = {"pyproject.toml", "LICENSE", "README.md", "py.typed", *(path.name for path in top_folders())}
    kept |= {path.name for path in ROOT.glob("*.py")} | {"tests", "examples", "benchmarks"}
    skip = shutil.ignore_patterns("__pycache__", ".*")
    copy.mkdir()
    for name in sorted(kept):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=skip)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
    ]
    done = subprocess.run([*command, "wheels"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "wheels").glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_module_and_no_other_python(wheel: zipfile.ZipFile) -> None:
    sources = [*ROOT.glob("*.py"), *(path for folder in top_folders() for path in folder.rglob("*.py"))]
    expected = {f"cuecard/{path.relative_to(ROOT).as_posix()}" for path in sources}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == expected


def test_the_wheel_holds_package_data_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    others = {name for name in wheel.namelist() if not name.endswith(".py") and ".dist-info/" not in name}
    data = {*(ROOT / "programs").glob("*.json"), *(ROOT / "compiler").glob("*.j2"), ROOT / "py.typed"}
    assert others == {f"cuecard/{path.relative_to(ROOT).as_posix()}" for path in data}


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    facts = email.message_from_bytes(wheel.read("cuecard-0.1.0.dist-info/METADATA"))
    assert (facts["Name"], facts["Version"], facts["Requires-Python"]) == ("cuecard", "0.1.0", ">=3.11")
    assert facts["License-Expression"] == "Apache-2.0"
    assert "cuecard-0.1.0.dist-info/licenses/LICENSE" in wheel.namelist()
    scripts = wheel.read("cuecard-0.1.0.dist-info/entry_points.txt").decode()
    assert "cuecard = cuecard.compiler.cli:main" in scripts


def test_every_dependency_is_pinned() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), f"{line!r} is no pin to a public version"
        name, version = line.split("==")
        pins[canonicalize_name(name)] = version
    extras = PROJECT["project"]["optional-dependencies"]
    for text in [*PROJECT["project"]["dependencies"], *extras["parquet"], *extras["dev"]]:
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        assert name in pins, f"{name} is not in constraints.txt"
        assert wanted.specifier.contains(pins[name]), f"{name}=={pins[name]} is not {wanted.specifier}"


@pytest.mark.parametrize("module", ["cuecard", "cuecard.errors", "cuecard.models.pull", "cuecard.models.catalogue"])
def test_importing_it_from_its_own_root_is_light(module: str) -> None:
    """Here `models`, `metrics` and the others lie in the working folder, and must not be taken for something else."""
    check = (
        f"import sys, {module}; heavy = {{'torch', 'transformers', 'dspy', 'optuna', 'scipy'}} & set(sys.modules);"
        f"sys.exit(f'{{heavy}} were imported' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_imported_package_is_this_one() -> None:
    import cuecard

    assert os.path.samefile(Path(str(cuecard.__file__)).parent, ROOT)
