"""What `convo verify` does: a conversation by the audit service, a whole ledger by reading its
streams, a bundle from its file alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from infra.jetstream.errors import StoreUnavailable
from infra.loop import run
from infra.notary.notes import NoteRefused, PublicKey
from infra.pace import Pace
from services.cli import output
from services.cli.errors import CommandFailed
from services.cli.options import Client, Named
from services.cli.requests import audit, connected, conversation, settings_of
from services.cli.scanning import Counting, topology_of
from services.cli.timeline import report
from services.evidence import Finding, check_bundle
from services.ledger_check import PartitionCheck, check_partition
from services.reconciliation import Difference, Reconciliation, conversations

BUNDLE_SUFFIX = ".evidence.jsonl"

NOT_VALID = (
    "the record is not what was written: keep the stream as it is, and restore a copy from a "
    "backup or a replica"
)


def public_key(given: str | None) -> PublicKey | None:
    """The key given on the command line: itself, or the first line of a file."""
    if given is None:
        return None
    path = Path(given)
    try:
        line = path.read_text(encoding="utf-8").split("\n")[0] if path.is_file() else given
        return PublicKey.parse(line)
    except (NoteRefused, UnicodeDecodeError) as error:
        raise CommandFailed(f"--key: {error}") from None


def is_bundle(name: str) -> bool:
    """Whether the argument is meant as a file."""
    return name.endswith(BUNDLE_SUFFIX) or Path(name).is_file()


def one(client: Client, named: Named) -> None:
    """One conversation, by the audit service."""
    answer = audit(client, named, "verify", {})
    if client.as_json:
        output.show_json(answer.raw)
    else:
        output.show(report(output.row("/".join(named), 420), answer.reply))
    if not answer.reply["valid"]:
        raise CommandFailed(NOT_VALID)


def bundle(client: Client, name: str, pinned: PublicKey | None) -> None:
    """A bundle, offline."""
    with Path(name).open("rb") as file:
        found = check_bundle(file, pinned)
    show_finding(client, found, name, pinned)


def show_finding(client: Client, found: Finding, name: str, pinned: PublicKey | None) -> None:
    """Tells what a piece of evidence shows; CommandFailed when it shows nothing."""
    if client.as_json:
        output.show_json(found.report())
    else:
        output.show(_finding(found, output.row(name, 420), pinned))
    if not found.valid:
        raise CommandFailed(f"{output.row(name, 420)} proves nothing: get it anew from its source")


def _finding(found: Finding, name: str, pinned: PublicKey | None) -> Iterator[str]:
    if not found.valid:
        yield output.row(f"NOT VALID: {name}: {found.problem}")
        return
    events = f"{_count(found.events, 'event')} up to " if found.events else ""
    yield output.row(f"valid: {found.name}, {events}version {found.version}, hash")
    yield f"  {found.head_hash}"
    checkpoint = found.checkpoint
    if checkpoint is None or found.key is None:
        yield "  no checkpoint: this shows only that the events fit each other"
        return
    of_them = f"{found.covered:,} of them " if found.events else ""
    counted = f"{of_them}counted by checkpoint {checkpoint.number}"
    yield output.row(f"  {counted} at {checkpoint.time}")
    yield output.row(f"  signed by {found.key.name}, {found.key.fingerprint}")
    if pinned is None:
        yield "  (compare that with the fingerprint that was published, or give the key by --key)"


def everything(client: Client, pinned: PublicKey | None, pace: Pace | None = None) -> None:
    """The whole ledger, from its streams, no faster than `pace`."""
    checks = run(_everything(client, pinned, pace))
    valid = all(each.valid for each in checks)
    if client.as_json:
        output.show_json(
            {
                "ok": True,
                "valid": valid,
                "partitions": [
                    {**each.report(), "first_bad_seq": each.first_bad_seq} for each in checks
                ],
            }
        )
    else:
        for each in checks:
            output.show(partition_lines(each, pinned))
    if not valid:
        raise CommandFailed(NOT_VALID)


async def _everything(
    client: Client, pinned: PublicKey | None, pace: Pace | None
) -> list[PartitionCheck]:
    settings = settings_of(client.nats)
    checks = []
    async with connected(settings, "convo verify") as connection:
        ledger = await topology_of(connection, settings)
        for partition in range(ledger.partitions):
            name = ledger.stream_name(partition)
            with Counting(f"checking {name}", wanted=not client.as_json) as counting:
                try:
                    check = await check_partition(
                        connection,
                        ledger,
                        partition,
                        pinned=pinned,
                        progress=counting.at,
                        pace=pace,
                    )
                except StoreUnavailable as error:
                    raise CommandFailed(str(error)) from None
            checks.append(check)
    return checks


def partition_lines(check: PartitionCheck, pinned: PublicKey | None) -> Iterator[str]:
    """What was found in a partition, for a person."""
    what = (
        f"{check.stream}, {_count(check.events, 'event')} of "
        f"{_count(check.conversations, 'conversation')}, {_count(check.checkpoints, 'checkpoint')}"
    )
    yield f"{'valid' if check.valid else 'NOT VALID'}: {what}"
    if check.valid and check.root:
        yield f"  root {check.root}"
    if check.covered < check.last_seq:
        yield f"  not counted by a checkpoint yet: {check.last_seq - check.covered:,} events"
    for line in check.keys[-1:]:
        yield output.row(f"  signed by {PublicKey.parse(line).fingerprint}")
        if pinned is None:
            yield "  (that key is the ledger's own word: give the one published to you by --key)"
    if check.first_bad_seq is not None:
        yield f"  first bad sequence: {check.first_bad_seq}"
    for fault in check.faults:
        yield output.row(f"  {_fault(fault)}")
    if check.fault_count > len(check.faults):
        yield f"  and {check.fault_count - len(check.faults):,} faults more"


def _fault(fault: dict[str, Any]) -> str:
    match fault["kind"]:
        case "sequence":
            return f"sequences {fault['from_seq']} to {fault['to_seq']} are missing"
        case "batch":
            return (
                f"the batch at sequences {fault['from_seq']} to {fault['to_seq']} is not whole: "
                f"{fault['problem']}"
            )
        case "chain":
            return (
                f"{fault['conversation']}: first bad at version {fault['version']} "
                f"(seq {fault['seq']}, {fault['problem']}): expected {fault['expected']}, "
                f"found {fault['found']}"
            )
        case "checkpoint":
            span = (
                f" (look at sequences {fault['after_seq'] + 1} to {fault['up_to_seq']})"
                if "after_seq" in fault
                else ""
            )
            return f"checkpoint {fault['number']} no longer fits: {fault['problem']}{span}"
        case _:
            return f"key: {fault['problem']}"


def projections(client: Client, named: Named | None) -> None:
    """What readers are shown, compared with the record; of one conversation or of all."""
    compared, found = run(_projections(client, named))
    tables = _tables(client, named)
    in_tables = [] if tables is None else list(_in_tables(tables))
    if client.as_json:
        output.show_json(
            {
                "ok": True,
                "valid": not found and (tables is None or tables["same"] is True),
                "conversations": compared,
                "tables": None if tables is None else tables["tables"],
                "differences": [each._asdict() for each in (*found, *in_tables)],
            }
        )
    else:
        words = "agree with the record" if not found else "DIFFER from the record"
        summary = f"snapshots and live views of {_count(compared, 'conversation')} {words}"
        output.show([summary, *map(_difference, found)])
        output.show([_of_tables(tables), *map(_difference, in_tables)])
    if found:
        raise CommandFailed(
            "what readers are shown is not what the record gives: restart the services; a snapshot "
            "that differs is to be deleted"
        )
    if tables is not None and not tables["same"]:
        raise CommandFailed(
            "the analytics tables are not what the record gives: `convo rebuild analytics`"
        )


def _tables(client: Client, named: Named | None) -> dict[str, Any] | None:
    """What the analytics service found of its tables; None where there is none."""
    from services.cli.analytics import NoAnalytics, ask_rebuild

    body: dict[str, Any] = {"verify": True}
    if named is not None:
        body |= conversation(named)._asdict()
    try:
        return run(ask_rebuild(client, body))
    except NoAnalytics:
        return None


def _in_tables(result: dict[str, Any]) -> Iterator[Difference]:
    for table, found in result["differences"].items():
        for each in found:
            name = "/".join(filter(None, (each["tenant_id"], each["conversation_id"])))
            field = each["field"] or "row"
            yield Difference(
                name, f"analytics.{table}", each["version"], field, each["rebuilt"], each["live"]
            )


def _of_tables(result: dict[str, Any] | None) -> str:
    if result is None:
        return "the analytics tables were not compared: no analytics service answers"
    words = {
        True: "agree with the record",
        False: "DIFFER from the record",
        None: "were NOT compared: they have stopped, see `convo status`",
    }
    return f"analytics tables of {_count(result['events'], 'event')} {words[result['same']]}"


async def _projections(client: Client, named: Named | None) -> tuple[int, list[Difference]]:
    settings = settings_of(client.nats)
    compared, found = 0, []
    async with connected(settings, "convo verify") as connection:
        ledger = await topology_of(connection, settings)
        work = Reconciliation(
            connection, ledger, window_size=settings.window_size, timeout_s=client.timeout_s
        )
        with Counting("comparing", wanted=not client.as_json, what="conversations") as counting:
            try:
                if named is not None:
                    return 1, await work.differences(conversation(named))
                async with aclosing(conversations(connection, ledger)) as names:
                    async for id in names:
                        found += await work.differences(id)
                        compared += 1
                        counting.at(compared, 0)
            except StoreUnavailable as error:
                raise CommandFailed(str(error)) from None
    return compared, found


def _difference(each: Difference) -> str:
    return output.row(
        f"  {each.conversation}, {each.source} at version {each.version}: {each.field} is "
        f"{output.json_text(each.found)}, the record gives {output.json_text(each.expected)}"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
