"""The responder: answers user messages through a language model, and writes it as it comes."""

from .service import running

__all__ = ["running"]
