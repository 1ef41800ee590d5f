"""Model servers as targets: vLLM, SGLang, llama.cpp, Ollama, and plain OpenAI."""

from .engine import ServerEngine
from .opening import DIALECTS, server_target

__all__ = ["DIALECTS", "ServerEngine", "server_target"]
