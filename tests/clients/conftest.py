"""The gateway under test, as tests/services/gateway has it."""

from __future__ import annotations

from tests.services.gateway.conftest import gateway, site, talking

__all__ = ["gateway", "site", "talking"]
