"""The family streams (contract section 11)."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(tags=["streams"])
