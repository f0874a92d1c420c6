"""`convo up` with stand-in workers: `run_up.py FOLDER WORKERS [PLAN]`, settings by environment."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from infra.settings import Settings
from services.up import up

STAND_IN = Path(__file__).with_name("stand_in_worker.py")

if __name__ == "__main__":
    folder, workers, *plan = sys.argv[1:]
    worker = (sys.executable, str(STAND_IN), folder, *plan)
    sys.exit(asyncio.run(up(Settings(), workers=int(workers), worker=worker, beside={})))
