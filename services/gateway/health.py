"""`GET /health`: 200 when a write would be taken, 503 when it would fail; without credentials."""

from __future__ import annotations

from fastapi import APIRouter, Response

from services.gateway.examination import Health
from services.gateway.gateway import Ours

router = APIRouter(tags=["health"])


@router.get("/health", responses={503: {"model": Health, "description": "A write would fail"}})
async def health(ours: Ours, response: Response) -> Health:
    """Whether a write would be taken; for load balancers and people, without credentials."""
    found = await ours.examination.health()
    if found.status == "down":
        response.status_code = 503
    return found
