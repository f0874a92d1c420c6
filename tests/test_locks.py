"""What users install is what the product asks for, and what it is tested with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def locked(name: str) -> dict[str, str]:
    """Package → version, of a lock file."""
    pinned = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    return {package.lower(): version for package, version in pinned}


def test_every_dependency_is_in_the_lock_that_users_install() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[\[<>=!~; ]", each)[0].lower() for each in project["dependencies"]}

    assert wanted - locked("requirements.lock").keys() == set()


def test_the_tests_run_with_the_versions_that_users_install() -> None:
    tested = locked("requirements-dev.lock")

    for package, version in locked("requirements.lock").items():
        assert tested.get(package) == version, package
