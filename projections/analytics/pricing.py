"""What a model call cost: as recorded, or priced by provider, model and date.

Prices are those of the `genai-prices` package, whose data ships inside it; nothing is fetched. A
cost that the caller recorded always wins. A model that is not known has no cost: None, never 0.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from .reading import Used

CostSource = Literal["recorded", "priced", "none"]

NANO: Final = Decimal("0.000000001")
"""A cost is kept to nine decimals, DECIMAL(18,9)."""

COST_MAX: Final = Decimal("999999999.999999999")

_USD_ATTO: Final = 10**18
_NANO_ATTO: Final = 10**9

_HOUR_S: Final = 3600
"""Prices change at the hour at the finest (those that depend on the time of day)."""

_LINEAR_TOKENS_MAX: Final = 100_000
"""Up to here prices per token are taken to be the same whatever the size of the call, where they
are at this size and at a hundredth of it; a larger call is always calculated as a whole."""


class Cost(NamedTuple):
    """`usd` is None when `source` is "none"; `price_version` names the prices, when priced."""

    usd: Decimal | None
    source: CostSource
    price_version: str | None


_UNKNOWN: Final = Cost(None, "none", None)


class _Call(NamedTuple):
    """The tokens of one call; prompt includes cached and cache_write."""

    prompt: int
    completion: int
    cached: int
    cache_write: int


class _Rates(NamedTuple):
    """Atto-USD per token of each kind, where the price does not depend on how many there are."""

    uncached: int
    cached: int
    cache_write: int
    completion: int


@lru_cache(1)
def price_version() -> str:
    """The name of the prices in use, such as `genai-prices 0.2.3`."""
    from genai_prices import __version__  # noqa: PLC0415 (a third of a second; only when priced)

    return f"genai-prices {__version__}"


def cost_of(event: Used, time: datetime) -> Cost:
    """Returns what usage at that time cost: recorded, else priced, else none."""
    if event.cost_usd is not None:
        return Cost(Decimal(event.cost_usd).quantize(NANO, ROUND_HALF_EVEN), "recorded", None)
    if event.model is None:
        return _UNKNOWN
    call = _Call(
        event.prompt_tokens,
        event.completion_tokens,
        event.cached_tokens or 0,
        event.cache_write_tokens or 0,
    )
    usd = _priced(event.provider, event.model, time, call)
    if usd is None or usd > COST_MAX:
        return _UNKNOWN
    return Cost(usd, "priced", price_version())


def _priced(provider: str | None, model: str, time: datetime, call: _Call) -> Decimal | None:
    """The price, rounded to nine decimals; None when the model is not known."""
    prompt, completion, cached, cache_write = call
    if prompt <= _LINEAR_TOKENS_MAX and completion <= _LINEAR_TOKENS_MAX:
        rates = _rates(provider, model, int(time.timestamp()) // _HOUR_S)
        if isinstance(rates, _Rates):
            return _nano(
                rates.uncached * (prompt - cached - cache_write)
                + rates.cached * cached
                + rates.cache_write * cache_write
                + rates.completion * completion
            )
        if rates is None:
            return None
    usd = _calculated(provider, model, time, call)
    return usd if usd is None or usd > COST_MAX else usd.quantize(NANO, ROUND_HALF_EVEN)


def _nano(atto: int) -> Decimal:
    """So many atto-USD in USD, rounded half to even at nine decimals."""
    nano, rest = divmod(atto, _NANO_ATTO)
    if rest * 2 > _NANO_ATTO or (rest * 2 == _NANO_ATTO and nano % 2):
        nano += 1
    return nano * NANO


@lru_cache(16_384)
def _rates(provider: str | None, model: str, hour: int) -> _Rates | Literal["tiered"] | None:
    """The model's rates in that hour, counted from 1970; "tiered" where they depend on the size of
    the call, None where the model is not known.

    Found by asking for the price of each kind of token at two sizes: rates that are the same are
    rates, and a call is then priced in a microsecond instead of 200.
    """
    time = datetime.fromtimestamp(hour * _HOUR_S, UTC)
    small = [
        _calculated(provider, model, time, call) for call in _probes(_LINEAR_TOKENS_MAX // 100)
    ]
    large = [_calculated(provider, model, time, call) for call in _probes(_LINEAR_TOKENS_MAX)]
    if None in small or None in large:
        return None
    per_token = [price * 100 / _LINEAR_TOKENS_MAX for price in small if price is not None]
    if per_token != [price / _LINEAR_TOKENS_MAX for price in large if price is not None]:
        return "tiered"
    atto = [price * _USD_ATTO for price in per_token]
    return _Rates(*map(int, atto)) if all(each == int(each) for each in atto) else "tiered"


def _probes(tokens: int) -> tuple[_Call, ...]:
    """Calls of one kind of token each, in the order of `_Rates`."""
    return (
        _Call(tokens, 0, 0, 0),
        _Call(tokens, 0, tokens, 0),
        _Call(tokens, 0, 0, tokens),
        _Call(0, tokens, 0, 0),
    )


def _calculated(provider: str | None, model: str, time: datetime, call: _Call) -> Decimal | None:
    """The package's own price of one call; None when it does not know the model."""
    from genai_prices import Usage, calc_price  # noqa: PLC0415 (as above)

    usage = Usage(
        input_tokens=call.prompt,
        output_tokens=call.completion,
        cache_read_tokens=call.cached,
        cache_write_tokens=call.cache_write,
    )
    try:
        return calc_price(
            usage, model, provider_id=provider, genai_request_timestamp=time
        ).total_price
    except (LookupError, ValueError):
        return None
