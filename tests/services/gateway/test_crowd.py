"""One answer, many viewers: all of them end with the exact text, whatever happens on the way."""

from __future__ import annotations

import pytest

from tests.services.gateway.crowd import Crowd
from tests.services.gateway.site import GatewayProcess, Site
from tests.services.gateway.talking import Talking


@pytest.mark.slow
async def test_every_viewer_ends_with_the_exact_text_also_when_a_gateway_is_killed(
    site: Site, gateway: GatewayProcess, talking: Talking
) -> None:
    doomed = GatewayProcess(site.server, site.directory / "doomed")
    doomed.start()
    crowd = Crowd([doomed, gateway], talking.model, pieces=400, pause_s=0.01)

    texts = await crowd.run(viewers=40)

    assert [text == crowd.whole for text in texts] == [True] * 40
    assert crowd.closings[1006] > 0  # the kill was felt
    assert crowd.connections > 40
