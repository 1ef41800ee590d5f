"""The order in which nodes run, and the circles that leave them without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def running_order(needs: Mapping[str, Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The names in an order in which each comes after all that it needs, and the circles among the names left over.

    Wherever there is a choice, the mapping's order decides. A circle `[a, b, a]` reads: a needs b, which needs a; it
    starts at its first name in the mapping. Needs that are no names of the mapping are not waited for.

    >>> running_order({"route": ["summary"], "summary": []})
    (['summary', 'route'], [])
    """
    order: list[str] = []
    waiting = {name: [need for need in needed if need in needs] for name, needed in needs.items()}
    while waiting:
        ready = next((name for name, needed in waiting.items() if not set(needed) & set(waiting)), None)
        if ready is None:
            break
        order.append(ready)
        del waiting[ready]
    return order, _circles({name: [n for n in needed if n in waiting] for name, needed in waiting.items()})


def _circles(waiting: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """One circle for each group of names that wait for each other. Each name needs at least one other."""
    found: list[list[str]] = []
    seen: set[str] = set()
    for start in waiting:
        path: list[str] = []
        name = start
        while name not in seen:
            seen.add(name)
            path.append(name)
            name = waiting[name][0]
        if name in path:
            circle = path[path.index(name) :]
            first = circle.index(min(circle, key=list(waiting).index))
            circle = circle[first:] + circle[:first]
            found.append([*circle, circle[0]])
    return found
