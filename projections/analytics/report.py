"""A report of the tables as one HTML page that holds everything: no network, no build step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final, NamedTuple

Row = Sequence[Any]


class Chart(NamedTuple):
    """One bar chart: what it is called, and the query for it: a label first, then numbers."""

    title: str
    sql: str


CHARTS: Final = (
    Chart(
        "Tokens by day",
        "SELECT day::VARCHAR, sum(total_tokens)::BIGINT AS tokens, round(sum(cost_usd), 4)::DOUBLE "
        "AS usd FROM daily_usage GROUP BY day ORDER BY day DESC LIMIT 60",
    ),
    Chart(
        "Cost by model, USD",
        "SELECT coalesce(model, '(no model)'), round(sum(cost_usd), 4)::DOUBLE AS usd, "
        "sum(total_tokens)::BIGINT AS tokens, sum(calls_without_cost)::BIGINT AS without_cost "
        "FROM usage_by_model GROUP BY model ORDER BY usd DESC NULLS LAST, tokens DESC LIMIT 30",
    ),
    Chart(
        "Tokens by user",
        "SELECT coalesce(user_id, '(none)'), sum(total_tokens)::BIGINT AS tokens, "
        "round(sum(cost_usd), 4)::DOUBLE AS usd FROM usage_by_user GROUP BY user_id "
        "ORDER BY tokens DESC LIMIT 30",
    ),
    Chart(
        "Messages per conversation",
        "SELECT CASE WHEN message_count = 0 THEN '0' ELSE "
        "(2 ** floor(log2(message_count)))::BIGINT || ' or more' END AS size, "
        "count(*) AS conversations FROM conversations GROUP BY size ORDER BY min(message_count)",
    ),
    Chart(
        "Response times, in seconds",
        "SELECT unnest(['half within', '90 % within', '99 % within', 'all within']), "
        "unnest(within) AS seconds FROM (SELECT quantile_cont(seconds, [0.5, 0.9, 0.99, 1.0]) "
        "AS within FROM response_times WHERE seconds >= 0) WHERE within IS NOT NULL",
    ),
)

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.1rem }
table { border-collapse: collapse; width: 100% }
td, th { padding: .15rem .6rem .15rem 0; text-align: left; vertical-align: middle;
  font-variant-numeric: tabular-nums }
td.n, th.n { text-align: right; white-space: nowrap }
td.b { width: 50% } .bar { background: #3a6ea5; height: .9rem; min-width: 1px }
p { color: #57606a }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117 }
  .bar { background: #6ca0dc } p { color: #8b949e } }
"""


def page(found: Sequence[tuple[Chart, Sequence[str], Sequence[Row]]], about: str) -> str:
    """Returns the page; `found` has each chart with the names of its columns and its rows."""
    charts = "\n".join(_chart(*each) for each in found)
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width">\n'
        f"<title>Conversation Ledger</title><style>{_STYLE}</style>\n"
        f"<h1>Conversation Ledger</h1><p>{escape(about)}</p>\n{charts}\n</html>\n"
    )


def _chart(chart: Chart, columns: Sequence[str], rows: Sequence[Row]) -> str:
    title = f"<h2>{escape(chart.title)}</h2>"
    if not rows:
        return f"{title}<p>Nothing yet.</p>"
    largest = max((abs(float(row[1])) for row in rows if row[1] is not None), default=0) or 1
    names = "".join(f"<th class=n>{escape(name)}</th>" for name in columns[1:])
    body = "\n".join(_row(row, largest) for row in rows)
    return f"{title}<table><tr><th></th><th></th>{names}</tr>\n{body}</table>"


def _row(row: Row, largest: float) -> str:
    share = 100 * abs(float(row[1] or 0)) / largest
    numbers = "".join(f"<td class=n>{_number(value)}</td>" for value in row[1:])
    bar = f'<td class=b><div class=bar style="width:{share:.1f}%"></div></td>'
    return f"<tr><td>{escape(str(row[0]))}</td>{bar}{numbers}</tr>"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{float(value):,.4g}"


def about(facts: Mapping[str, Any]) -> str:
    """The line under the title: what the page is of, and up to which event."""
    position = ", ".join(f"{seq:,} of partition {p}" for p, seq in facts["position"].items())
    tenant = f"tenant {facts['tenant_id']}" if facts.get("tenant_id") else "all tenants"
    return f"{tenant}, up to event {position or 'none'}. Times are UTC."
