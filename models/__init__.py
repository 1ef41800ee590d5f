"""The target: models found, loaded and held ready, and the engine that runs them."""

from . import threads as threads
