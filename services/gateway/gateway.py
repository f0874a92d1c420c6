"""What the handlers of a gateway stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from infra.settings import Settings
from services.gateway.examination import Examination
from services.gateway.identity import Authority
from services.gateway.ledger import Ledger
from services.gateway.live import Live


@dataclass(frozen=True, slots=True)
class Gateway:
    """One process's: its settings, the ledger it asks, what happens there, and who may ask."""

    settings: Settings
    ledger: Ledger
    live: Live
    authority: Authority
    examination: Examination


async def _of(connection: HTTPConnection) -> Gateway:
    gateway: Gateway = connection.app.state.gateway
    return gateway


Ours = Annotated[Gateway, Depends(_of)]
"""The gateway, as a parameter of a handler."""
