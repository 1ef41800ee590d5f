"""The command line: `cuecard VERB ...`, one file per verb."""

from .app import main

__all__ = ["main"]
