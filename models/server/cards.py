"""Reading `/v1/models`: which of the served models is meant, and what its card says."""

from __future__ import annotations

from typing import Any

from ...errors import InputError, nearest


def card_of(cards: list[dict[str, Any]], model: str | None, url: str) -> dict[str, Any]:
    """The card of `model`; without a name, of the only model that is no adapter of another.

    A server that lists none is taken to serve what is named. Raises `InputError` when the model is not there, or
    several are and none is named.
    """
    by_name = {str(card["id"]): card for card in cards}
    if model is not None:
        if model in by_name:
            return by_name[model]
        if not by_name:
            return {"id": model}
        raise InputError(
            f"the server at {url} does not serve {model!r}",
            expected=f"one of {', '.join(sorted(by_name))}",
            nearest=nearest(model, by_name),
        )
    own = [card for card in cards if not card.get("parent")]
    if len(own) == 1:
        return own[0]
    if not by_name:
        raise InputError(f"the server at {url} lists no model", hint="Name the model that it serves.")
    raise InputError(
        f"the server at {url} serves {len(by_name)} models, and none is named",
        expected=f"one of {', '.join(sorted(by_name))}",
    )


def window_of(value: Any) -> int | None:
    """A context window that a server states; None for anything else than a positive number."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
