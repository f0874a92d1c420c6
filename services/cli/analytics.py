"""The commands that ask the tables: sql, and what is made of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from services.cli import output
from services.cli.errors import CommandFailed, Unanswered
from services.cli.options import Client, client_options, given

if TYPE_CHECKING:
    from nats.aio.msg import Msg

FORMATS: Final = ("table", "json", "csv", "arrow", "parquet")
CELL_WIDTH: Final = 60
CHART_WIDTH: Final = 50
LINE_WIDTH: Final = 60
CHART_HEIGHT: Final = 8
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"
NOBODY: Final = (
    "the server is there, but no service answers for analytics: start it with `convo up` or "
    "`convo serve analytics`"
)
ANSWER_WITHIN_S: Final = 5.0
"""How much longer than the query may take its answer is waited for."""


@click.command()
@click.argument("statement", metavar="SQL")
@click.option("--tenant", "tenant_id", metavar="TENANT", help="This tenant's rows only.")
@click.option("--params", metavar="JSON", help="Values for ? (a list) or $name (an object).")
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), help="[default: table; json with --json]"
)
@click.option(
    "-o", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Into FILE."
)
@click.option("--max-rows", type=click.IntRange(1), metavar="N", help="[default: 10000]")
@click.option("--min-seq", type=click.IntRange(0), metavar="N", help="With event seq N included.")
@click.option(
    "--chart",
    is_flag=True,
    help="Draw the numbers of the last column: a line where the first one is a time, else bars.",
)
@client_options
def sql(
    client: Client,
    *,
    statement: str,
    params: str | None,
    format_: str | None,
    file: Path | None,
    min_seq: int | None,
    chart: bool,
    **fields: Any,
) -> None:
    """Ask the analytics tables in SQL (DuckDB's), read-only.

    Tables: events, messages, usage, conversations, tracking. Views: daily_usage, usage_by_user,
    usage_by_model, usage_without_cost, active_conversations, response_times. --timeout limits the
    query too. `-` reads the statement from standard input.

    \b
    Example:
      convo sql "SELECT role, count(*) FROM messages GROUP BY role"
      convo sql "SELECT day, sum(total_tokens) FROM daily_usage GROUP BY 1 ORDER BY 1" --chart
      convo sql "FROM usage WHERE model = ?" --params '["gpt-4o"]' --format parquet -o u.parquet
    """
    from services.cli.options import text_or_stdin

    wanted = format_ or ("json" if client.as_json else "table")
    if wanted in {"arrow", "parquet"} and file is None and sys.stdout.isatty():
        raise click.UsageError(f"{wanted} is not for a terminal: name a file with -o")
    over_nats = {"table": "json", "parquet": "arrow"}.get(wanted, wanted) if not chart else "json"
    body = given(
        sql=text_or_stdin(statement),
        params=_params(params),
        format=over_nats,
        timeout_ms=max(1, int(client.timeout_s * 1000)),
        **fields,
    )
    answer = ask_sql(client, body, min_seq)
    if chart:
        output.show(chart_of(json.loads(answer.data)))
        _warn_when_cut(answer, over_nats)
        return
    if wanted == "table" and file is None:
        output.show(table(json.loads(answer.data)))
        return
    _deliver(as_format(answer.data, wanted), file)
    _warn_when_cut(answer, over_nats)


def ask_sql(client: Client, body: dict[str, Any], min_seq: int | None = None) -> Msg:
    """Asks `convo.sql`; returns the message that answers. `CommandFailed` when it is refused."""
    from services.cli.requests import settings_of
    from services.endpoint import MIN_SEQ

    headers = None if min_seq is None else {MIN_SEQ: str(min_seq)}
    within_s = client.timeout_s + ANSWER_WITHIN_S
    return asyncio.run(_request(settings_of(client.nats), "convo.sql", body, headers, within_s))


async def _request(
    settings: Any,
    subject: str,
    body: dict[str, Any],
    headers: dict[str, str] | None,
    within_s: float,
) -> Msg:
    from nats.errors import Error as NatsError
    from nats.errors import NoRespondersError
    from nats.errors import TimeoutError as NatsTimeout

    from services.cli.requests import connected, encode, read_answer
    from services.endpoint import ERROR_CODE

    async with connected(settings) as connection:
        try:
            message = await connection.request(
                subject, encode(body), timeout=within_s, headers=headers
            )
        except NoRespondersError:
            raise Unanswered(NOBODY) from None
        except NatsTimeout:
            raise Unanswered(
                f"no answer within {within_s:g} s: look at `convo status`, or raise --timeout"
            ) from None
        except NatsError as error:
            raise Unanswered(f"the connection to the server failed ({error}): try again") from None
    if (message.headers or {}).get(ERROR_CODE):
        read_answer(message.data)
        raise CommandFailed("the answer is an error that says nothing")
    return message


def _params(text: str | None) -> Any:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--params is no JSON: {error}") from None
    if not isinstance(found, list | dict):
        raise click.UsageError('--params is a list or an object: [1, "a"] or {"name": 1}')
    return found


def _deliver(content: bytes, file: Path | None) -> None:
    if file is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    else:
        file.write_bytes(content)


def as_format(data: bytes, wanted: str) -> bytes:
    """The bytes of an answer as a file of this format holds them."""
    if wanted == "table":
        return "".join(f"{line}\n" for line in table(json.loads(data))).encode()
    if wanted == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(pa.ipc.open_stream(data).read_all(), sink)
        return bytes(sink.getvalue().to_pybytes())
    return data + b"\n" if wanted == "json" else data


def _warn_when_cut(answer: Msg, over_nats: str) -> None:
    headers = answer.headers or {}
    cut = headers.get("Convo-Truncated") == "true"
    if over_nats == "json":
        cut = json.loads(answer.data)["truncated"]
    if cut:
        click.echo("convo: the answer was cut: raise --max-rows, or ask for less", err=True)


@click.command()
@click.argument("what", metavar="analytics", type=click.Choice(["analytics"]))
@click.option("--verify", is_flag=True, help="Compare with the live tables and keep those.")
@client_options
def rebuild(client: Client, *, what: str, verify: bool) -> None:
    """Build the analytics tables anew from the ledger.

    Beside the live ones, which go on being asked; then both are compared, and the new file takes
    the place of the live one. With --verify it does not: the exit status is 1 when they differ, and
    what differs is shown. --timeout is how long to wait without a sign of progress.

    \b
    Example:
      convo rebuild analytics
      convo rebuild analytics --verify
    """
    del what
    result = asyncio.run(ask_rebuild(client, {"verify": verify}))
    if client.as_json:
        output.show_json(result)
    else:
        output.show(rebuilt(result))
    if verify and result["same"] is False:
        raise CommandFailed(
            "the live tables are not those of the ledger: `convo rebuild analytics`"
        )


class NoAnalytics(Unanswered):
    """No service keeps the tables."""


async def ask_rebuild(client: Client, body: dict[str, Any]) -> dict[str, Any]:
    """The result of a rebuild, or of a comparison; shows its progress. Raises NoAnalytics."""
    from nats.errors import TimeoutError as NatsTimeout

    from services.cli.requests import connected, encode, read_answer, settings_of

    async with connected(settings_of(client.nats)) as connection:
        inbox = connection.new_inbox()
        answers = await connection.subscribe(inbox)
        await connection.publish("convo.analytics.rebuild", encode(body), reply=inbox)
        bar = Line()
        try:
            while True:
                message = await answers.next_msg(timeout=max(client.timeout_s, ANSWER_WITHIN_S))
                if not message.data:
                    raise NoAnalytics(NOBODY)
                reply = read_answer(message.data).reply
                if "progress" not in reply:
                    return reply
                bar.show(reply["progress"])
        except NatsTimeout:
            raise Unanswered("no sign of progress: look at `convo status`") from None
        finally:
            bar.clear()


class Line:
    """The progress of a rebuild on one line of a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._wanted = sys.stderr.isatty()

    def show(self, progress: dict[str, Any]) -> None:
        """Writes how far it is, how fast, and what is left."""
        if not self._wanted:
            return
        left = progress["seconds_left"]
        click.echo(
            f"\r\x1b[K{progress['done']:,} of {progress['total']:,} events"
            f"  {progress['events_per_second']:,}/s"
            + (f"  {left:,.0f} s left" if left is not None else ""),
            nl=False,
            err=True,
        )

    def clear(self) -> None:
        """Takes the line away."""
        if self._wanted:
            click.echo("\r\x1b[K", nl=False, err=True)


def rebuilt(result: dict[str, Any]) -> Iterator[str]:
    """What came of a rebuild."""
    same = {True: "the same as the live ones", False: "NOT the same as the live ones"}.get(
        result["same"], "not compared: the live ones had stopped"
    )
    yield f"built anew from {result['events']:,} events in {result['seconds']:.1f} s: {same}"
    for table_name, digests in result["tables"].items():
        mark = "same   " if digests["live"] == digests["rebuilt"] else "DIFFERS"
        yield f"  {mark}  {table_name:<14} {digests['rebuilt']}"
        for each in result["differences"].get(table_name, ()):
            field = f" {each['field']}" if each["field"] else ""
            yield output.row(
                f"           {each['tenant_id']}/{each['conversation_id']} version "
                f"{each['version']}{field}: {output.json_text(each['live'])}, the ledger gives "
                f"{output.json_text(each['rebuilt'])}"
            )
    if result["exchanged"]:
        yield "the new tables are in place"


@click.command()
@click.option(
    "-o",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="Where to write it.",
)
@click.option("--tenant", "tenant_id", metavar="TENANT", help="This tenant's rows only.")
@client_options
def report(client: Client, *, file: Path, tenant_id: str | None) -> None:
    """Write a report as one HTML page.

    Tokens and cost by day, model and user, the length of conversations, response times. The page
    holds everything itself: it needs no network and can be mailed.

    \b
    Example:
      convo report
      convo report --tenant acme -o acme.html
    """
    from projections.analytics.report import CHARTS, about, page

    found, position = [], {}
    for chart in CHARTS:
        answer = json.loads(ask_sql(client, {"sql": chart.sql, **given(tenant_id=tenant_id)}).data)
        names = [column["name"] for column in answer["columns"]]
        found.append((chart, names, answer["rows"]))
        position = answer["position"]
    text = page(found, about({"position": position, "tenant_id": tenant_id}))
    file.write_text(text, encoding="utf-8")
    if client.as_json:
        output.show_json({"ok": True, "file": str(file), "position": position})
    else:
        output.show([f"{file}: {len(CHARTS)} charts, {len(text):,} characters"])


@click.command(name="export-parquet")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--tenant", "tenant_id", metavar="TENANT", help="This tenant's rows only.")
@client_options
def export_parquet(client: Client, *, directory: Path, tenant_id: str | None) -> None:
    """Write the tables as Parquet files.

    DIR/TABLE/day=YYYY-MM-DD/N.parquet, by the day of the row's own time (conversations: of their
    last activity). What is written meanwhile may be left out. DIR must be new or empty.

    \b
    Example:
      convo export parquet warehouse
      convo export-parquet warehouse --tenant acme --json
    """
    if directory.exists() and any(directory.iterdir()):
        raise CommandFailed(f"{directory} is not empty: name a directory that is new")
    written = {
        name: sum(_export(client, directory / name, export, tenant_id))
        for name, export in EXPORTS.items()
    }
    if client.as_json:
        output.show_json({"ok": True, "rows": written})
    else:
        output.show(f"{rows:>12,}  {name}" for name, rows in written.items())


class Export(NamedTuple):
    """How a table is paged: its time of the day it belongs to, and what orders its rows."""

    time: str
    order: tuple[str, ...]


EXPORTS: Final = {
    "events": Export("time", ("partition", "seq")),
    "messages": Export("created_at", ("seq", "tenant_id", "conversation_id")),
    "usage": Export("time", ("seq", "tenant_id", "conversation_id")),
    "conversations": Export("last_activity", ("tenant_id", "conversation_id")),
}
EXPORT_ROWS: Final = 20_000


def _export(
    client: Client, directory: Path, export: Export, tenant_id: str | None
) -> Iterator[int]:
    """Writes a table, day by day and page by page; yields the rows of each file."""
    import pyarrow.parquet as pq

    tenant = given(tenant_id=tenant_id)
    sql = (
        f"SELECT DISTINCT CAST({export.time} AS DATE)::VARCHAR AS day "  # noqa: S608 (our names)
        f"FROM {directory.name} WHERE {export.time} IS NOT NULL ORDER BY day"
    )
    days = json.loads(ask_sql(client, {"sql": sql, "max_rows": 1_000_000, **tenant}).data)["rows"]
    for (day,) in days:
        folder = directory / f"day={day}"
        folder.mkdir(parents=True)
        for number, page in enumerate(_pages(client, directory.name, export, day, tenant)):
            pq.write_table(page, folder / f"{number}.parquet")
            yield page.num_rows


def _pages(
    client: Client, table_name: str, export: Export, day: str, tenant: dict[str, Any]
) -> Iterator[Any]:
    """The rows of one day as Arrow tables, each behind the last row of the one before."""
    import pyarrow as pa

    order = ", ".join(export.order)
    behind: list[Any] = []
    while True:
        where = f" AND ({order}) > ({', '.join('?' * len(behind))})" if behind else ""
        answer = ask_sql(
            client,
            {
                "sql": f"SELECT * FROM {table_name} WHERE {export.time} >= ?::TIMESTAMP "  # noqa: S608 (our names)
                f"AND {export.time} < ?::TIMESTAMP + INTERVAL 1 DAY{where} "
                f"ORDER BY {order} LIMIT {EXPORT_ROWS}",
                "params": [day, day, *behind],
                "max_rows": EXPORT_ROWS,
                "format": "arrow",
                **tenant,
            },
        )
        page = pa.ipc.open_stream(answer.data).read_all()
        if not page.num_rows:
            return
        yield page
        behind = [page[name][-1].as_py() for name in export.order]


# -- for a person ---------------------------------------------------------------------------------


def table(reply: dict[str, Any]) -> Iterator[str]:
    """The rows in columns: numbers to the right, long texts cut, controls written out."""
    names = [output.row(column["name"], CELL_WIDTH) for column in reply["columns"]]
    rows = [[_cell(value) for value in row] for row in reply["rows"]]
    numbers = [
        all(_is_number(row[place]) or row[place] is None for row in reply["rows"])
        for place in range(len(names))
    ]
    widths = [
        max(len(name), *(len(row[place]) for row in rows), 0) if rows else len(name)
        for place, name in enumerate(names)
    ]
    yield _line(names, widths, numbers)
    yield "  ".join("-" * width for width in widths)
    for row in rows:
        yield _line(row, widths, numbers)
    cut = ", cut: raise --max-rows, or ask for less" if reply["truncated"] else ""
    yield f"({reply['row_count']:,} rows in {reply['elapsed_ms']:.0f} ms{cut})"


def _line(cells: Sequence[str], widths: Sequence[int], numbers: Sequence[bool]) -> str:
    aligned = (
        cell.rjust(width) if is_number else cell.ljust(width)
        for cell, width, is_number in zip(cells, widths, numbers, strict=True)
    )
    return "  ".join(aligned).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return output.one_line(text, CELL_WIDTH)


def _is_number(value: Any) -> bool:
    return _number(value) is not None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def chart_of(reply: dict[str, Any]) -> Iterator[str]:
    """A line over the rows where the first column is a time, else a bar for each row; labelled by
    the first column, of the numbers of the last."""
    points = [
        (_cell(row[0]), number) for row in reply["rows"] if (number := _number(row[-1])) is not None
    ]
    columns = reply["columns"]
    if not points or len(columns) < 2:
        raise CommandFailed("a chart needs rows whose last column is a number, behind a label")
    if columns[0]["type"].startswith(("DATE", "TIMESTAMP")) and len(points) > 1:
        return line(points)
    return bars(points)


def bars(points: Sequence[tuple[str, float]]) -> Iterator[str]:
    """A bar for each point."""
    width = max(len(label) for label, _ in points)
    largest = max(abs(number) for _, number in points) or 1.0
    for label, number in points:
        length = round(abs(number) / largest * CHART_WIDTH)
        yield f"{label:<{width}}  {'█' * length or '▏'} {number:,.10g}"


def line(points: Sequence[tuple[str, float]]) -> Iterator[str]:
    """The points in the order of the rows, `CHART_HEIGHT` rows high. More of them than
    `LINE_WIDTH` are shown by the means of as many neighbours as it takes."""
    count, width = len(points), min(len(points), LINE_WIDTH)
    edges = [place * count // width for place in range(width + 1)]
    means = [
        sum(number for _, number in points[start:end]) / (end - start)
        for start, end in pairwise(edges)
    ]
    low, high = min(0.0, *means), max(0.0, *means)
    span = (high - low) or 1.0
    levels = [round((mean - low) / span * CHART_HEIGHT * (len(_EIGHTHS) - 1)) for mean in means]
    labels = [f"{high:,.6g}", *[""] * (CHART_HEIGHT - 2), f"{low:,.6g}"]
    margin = max(map(len, labels))
    each = max(1, LINE_WIDTH // width)
    for label, row in zip(labels, reversed(range(CHART_HEIGHT)), strict=True):
        full = len(_EIGHTHS) - 1
        cells = (_EIGHTHS[min(full, max(0, level - row * full))] * each for level in levels)
        yield f"{label:>{margin}} ┤{''.join(cells).rstrip()}"
    first, last = points[0][0], points[-1][0]
    yield f"{'':>{margin}}  {first}{last:>{max(len(last) + 1, each * width - len(first))}}"
