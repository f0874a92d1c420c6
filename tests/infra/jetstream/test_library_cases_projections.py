"""The library's projection cases: applications followed by subscription, views and process
applications on JetStream.

Importing the library's module takes `msgspec`, which its DCB part is written with.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from eventsourcing.persistence import Tracking
from eventsourcing.tests import projection as cases

from infra.jetstream import JetStreamTrackingRecorder
from tests.infra.jetstream.library import InEnvironment, OnJetStream

pytestmark = pytest.mark.usefixtures("nats_url")


class JetStreamEventCounters(JetStreamTrackingRecorder, cases.EventCountersView):
    """Two counters that change together with the position."""

    def get_created_event_counter(self) -> int:
        return int(self.record("created") or b"0")

    def get_subsequent_event_counter(self) -> int:
        return int(self.record("subsequent") or b"0")

    def incr_created_event_counter(self, tracking: Tracking) -> None:
        self.update(tracking, {"created": increment})

    def incr_subsequent_event_counter(self, tracking: Tracking) -> None:
        self.update(tracking, {"subsequent": increment})


def increment(number: bytes | None) -> bytes:
    return b"%d" % (int(number or b"0") + 1)


class TestEventCountersView(OnJetStream, cases.EventCountersViewTestCase):
    def construct_event_counters_view(self) -> JetStreamEventCounters:
        return JetStreamEventCounters(self.datastore)


class TestAggregateEventCountersProjection(
    InEnvironment, cases.AggregateEventCountersProjectionTestCase
):
    view_class = JetStreamEventCounters


class TestTaggedDecisionCountersProjection(
    InEnvironment, cases.TaggedDecisionCountersProjectionTestCase
):
    """The application is the library's DCB one, in memory; its view is on JetStream."""

    view_class = JetStreamEventCounters
    env: ClassVar[dict[str, str]] = {
        "DCBAPPLICATION_PERSISTENCE_MODULE": "eventsourcing.dcb.popo",
        "MAPPER_TOPIC": "eventsourcing.dcb.msgpack:MessagePackMapper",
    }


class TestEventSourcedProjection(InEnvironment, cases.EventSourcedProjectionTestCase):
    pass


def test_none_of_the_librarys_projection_cases_is_left_out() -> None:
    covered = {
        base
        for value in list(globals().values())
        if isinstance(value, type)
        for base in value.__mro__
    }
    shipped = {value for name, value in vars(cases).items() if name.endswith("ViewTestCase")}
    shipped |= {value for name, value in vars(cases).items() if name.endswith("ProjectionTestCase")}
    assert shipped
    assert shipped <= covered
