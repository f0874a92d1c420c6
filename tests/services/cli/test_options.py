"""How a conversation is named on the command line."""

from __future__ import annotations

import pytest

from services.cli.options import given, split_name


@pytest.mark.parametrize(
    ("name", "tenant", "means"),
    [
        ("c-1", None, ("default", "c-1")),
        ("acme/c-1", None, ("acme", "c-1")),
        ("default/a/b", None, ("default", "a/b")),
        ("a/b", "acme", ("acme", "a/b")),
        ("c-1", "acme", ("acme", "c-1")),
        ("/c-1", None, ("", "c-1")),
        ("acme/", None, ("acme", "")),
    ],
)
def test_the_tenant_stands_before_the_first_slash(
    name: str, tenant: str | None, means: tuple[str, str]
) -> None:
    assert split_name(name, tenant) == means


def test_only_what_was_given_goes_into_a_body() -> None:
    assert given(title="", limit=0, model=None, context={}) == {
        "title": "",
        "limit": 0,
        "context": {},
    }
