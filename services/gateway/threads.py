"""The family threads (contract section 11)."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(tags=["threads"])
