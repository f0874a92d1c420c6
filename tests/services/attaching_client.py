"""A DuckDB client of its own process: `attaching_client.py URI TOKEN`, statements on stdin.

Each line is one statement; its answer is a line of JSON: rows, or {"error"}.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path

import duckdb


def main() -> None:
    connection = duckdb.connect()
    for name in ("httpfs", "quack"):
        package = Path(str(files(f"duckdb_extension_{name}")))
        connection.load_extension(str(next(package.rglob(f"{name}.duckdb_extension"))))
    uri, token = sys.argv[1:]
    for line in [f"ATTACH '{uri}' AS ledger (TOKEN '{token}')\n", *sys.stdin]:
        try:
            answer: object = connection.execute(line).fetchall()
        except duckdb.Error as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer, default=str) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
