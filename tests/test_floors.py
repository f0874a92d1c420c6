"""The floors: imports point downwards only, and the lower floors keep their third parties few.

Imports are read from the source with `ast`, wherever they stand (inside a function or under
TYPE_CHECKING too); nothing is imported to find out.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Who may import whom, beside itself.
FLOORS: dict[str, frozenset[str]] = {
    "domain": frozenset(),
    "projections": frozenset({"domain"}),
    "infra": frozenset(),
    "services": frozenset({"domain", "projections", "infra"}),
}
# What a floor may import beside the standard library and the floors; one not here, anything.
THIRD_PARTIES: dict[str, frozenset[str]] = {
    "domain": frozenset(
        {"pydantic", "pydantic_core", "eventsourcing.domain", "eventsourcing.utils"}
    ),
    "projections": frozenset(
        {"pydantic", "pydantic_core", "eventsourcing.domain", "eventsourcing.utils", "duckdb"}
    ),
}
# One module alone may know the library's persistence ports: the mapper is one of them.
EXCEPTIONS: dict[str, frozenset[str]] = {
    "domain/mapper.py": frozenset({"eventsourcing.persistence"}),
    "projections/analytics": frozenset(
        {"eventsourcing.persistence", "pyarrow", "genai_prices", "msgspec"}
    ),
    "projections/directory": frozenset({"eventsourcing.persistence", "eventsourcing.sqlite"}),
}
# Standard library modules that would be input or output on a floor that has none.
IMPURE = frozenset(
    {"asyncio", "http", "multiprocessing", "selectors", "socket", "ssl", "subprocess", "urllib"}
)
PURE_FLOORS = frozenset({"domain"})


def imports(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Yields (line, absolute dotted name) of every import; `from a import b` gives `a.b`.

    Relative names are resolved against `path`, which is relative to the root.
    """
    parts = Path(path).with_suffix("").parts
    package = parts[:-1]  # of a module and of an __init__ alike
    for node in ast.walk(ast.parse(source, filename=path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}" if module else alias.name


def within(name: str, allowed: frozenset[str]) -> bool:
    """Says whether the dotted name is one of `allowed` or lies inside one."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def violations(source: str, path: str) -> list[str]:
    """Returns one line per forbidden import of the module at `path` (relative to the root)."""
    floor = Path(path).parts[0]
    extra = frozenset[str]().union(
        *(names for place, names in EXCEPTIONS.items() if within_place(path, place))
    )
    found = []
    for line, name in imports(source, path):
        top = name.partition(".")[0]
        if top == floor or name.startswith("__future__"):
            continue
        if top in FLOORS or top == "tests":
            allowed = top in FLOORS[floor]
        elif top in sys.stdlib_module_names:
            allowed = not (floor in PURE_FLOORS and top in IMPURE)
        else:
            allowed = floor not in THIRD_PARTIES or within(name, THIRD_PARTIES[floor] | extra)
        if not allowed:
            found.append(f"{path}:{line}: {floor} may not import {name}")
    return found


def within_place(path: str, place: str) -> bool:
    """Says whether `path` is the file or lies in the folder `place`."""
    return path == place or path.startswith(f"{place}/")


def modules() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT)) for floor in FLOORS for path in (ROOT / floor).rglob("*.py")
    )


def test_every_floor_has_modules() -> None:
    assert {Path(path).parts[0] for path in modules()} == set(FLOORS)


def test_imports_point_downwards() -> None:
    found = [
        violation
        for path in modules()
        for violation in violations((ROOT / path).read_text(encoding="utf-8"), path)
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("domain/made_up.py", "import projections.window"),
        ("domain/made_up.py", "from infra import settings"),
        ("domain/made_up.py", "def late():\n    import nats"),
        ("domain/made_up.py", "import asyncio"),
        ("domain/made_up.py", "import eventsourcing"),
        ("domain/made_up.py", "from eventsourcing import persistence"),
        ("domain/made_up.py", "from eventsourcing.persistence import Mapper"),
        ("domain/deep/made_up.py", "from ...infra import settings"),
        ("projections/made_up.py", "import nats.aio.client"),
        ("projections/made_up.py", "from infra.settings import Settings"),
        ("projections/made_up.py", "if TYPE_CHECKING:\n    from services import up"),
        ("infra/made_up.py", "from domain.events import MessageAppended"),
        ("infra/jetstream/made_up.py", "import services.cli"),
        ("services/made_up.py", "from tests.conftest import nats_server"),
    ],
)
def test_an_import_upwards_is_found(path: str, source: str) -> None:
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("domain/made_up.py", "from __future__ import annotations\nimport json\nimport pydantic"),
        ("domain/made_up.py", "from eventsourcing.domain import BaseAggregate"),
        ("domain/made_up.py", "from . import errors\nfrom .events import MessageAppended"),
        ("domain/mapper.py", "from eventsourcing.persistence import Mapper"),
        ("projections/made_up.py", "from domain.events import MessageAppended"),
        ("infra/made_up.py", "import nats\nimport eventsourcing.persistence"),
        ("services/made_up.py", "import domain, projections.window, infra.server, click"),
    ],
)
def test_an_import_downwards_is_allowed(path: str, source: str) -> None:
    assert violations(source, path) == []
