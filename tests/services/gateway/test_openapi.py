"""The OpenAPI document, tried out: what fits it, or nearly so, is answered, never by a fault."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode

from tests.services.gateway.site import GatewayProcess
from tests.services.gateway.talking import Talking

EXAMPLES = 6
"""Of each operation, that fit the document, and as many that do not quite."""

OPERATIONS_MIN = 25


@pytest.mark.slow
def test_no_request_makes_a_fault(gateway: GatewayProcess, talking: Talking) -> None:
    told = httpx.get(f"{gateway.http}/openapi.json", timeout=30).json()
    for item in told["paths"].values():
        for operation in item.values():  # a `minSeq` that is to come is waited for
            parameters = operation.get("parameters", [])
            operation["parameters"] = [each for each in parameters if each["name"] != "minSeq"]
    document = schemathesis.openapi.from_dict(told)
    tried = 0
    for found in document.get_all_operations():
        assert isinstance(found, Ok), found.err()
        cases = found.ok().as_strategy
        for mode in GenerationMode:

            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(cases(generation_mode=mode))
            def answered(case: Case[Any]) -> None:
                answer = case.call(base_url=gateway.http, timeout=30)
                case.validate_response(answer, checks=[not_a_server_error])

            with suppress(Unsatisfiable):  # nothing about a route without parameters can be wrong
                answered()
        tried += 1
    assert tried >= OPERATIONS_MIN
