"""The command line `convo`: one module per group of commands, each a client of the services."""

from __future__ import annotations

from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line of this process and exits with its status."""
    from services.cli.app import convo

    convo.main(prog_name="convo")
