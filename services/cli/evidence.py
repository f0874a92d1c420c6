"""The commands that make evidence and check it: export, prove, check-proof, notary."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from services.cli import output
from services.cli.errors import CommandFailed
from services.cli.options import Client, Named, client_options, conversation_argument

if TYPE_CHECKING:
    from infra.notary.keys import KeyFolder


@click.command()
@conversation_argument
@click.option("-o", "--output", "to", metavar="FILE", help="Where to; `-` standard output.")
@client_options
def export(client: Client, *, named: Named, to: str | None) -> None:
    """Write the evidence bundle of a conversation.

    One file with every event as it is stored, its headers, the notary's last checkpoint and keys,
    and what links them; `convo verify FILE` checks it anywhere, without a server. Without -o it is
    CONVERSATION.evidence.jsonl here.

    \b
    Example:
      convo export c-1
      convo export c-1 -o - | gzip > c-1.evidence.jsonl.gz
    """
    from infra.loop import run
    from services.cli.requests import conversation
    from services.cli.verifying import BUNDLE_SUFFIX

    id = conversation(named)
    name = to or f"{id.key.partition('.')[2]}{BUNDLE_SUFFIX}"
    if name == "-":
        manifest = run(_export(client, named, sys.stdout.buffer))
        sys.stdout.buffer.flush()
    else:
        path = Path(name)
        unfinished = path.with_name(f".{path.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                manifest = run(_export(client, named, file))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        if client.as_json:
            output.show_json({"ok": True, "file": name, **manifest})
        else:
            output.show([f"{name}: {manifest['events']:,} events, head {manifest['head_hash']}"])
    if manifest["covered"] < manifest["events"]:
        click.echo(
            f"convo: {manifest['events'] - manifest['covered']:,} of the events are not counted "
            "by a checkpoint yet: the notary signs within a minute where it runs",
            err=True,
        )


async def _export(client: Client, named: Named, file: BinaryIO) -> dict[str, Any]:
    from domain.errors import ConversationNotInitialized
    from infra.jetstream.errors import StoreUnavailable
    from services.cli.requests import connected, conversation, settings_of
    from services.cli.scanning import Counting, topology_of
    from services.evidence import EvidenceMissing, write_bundle

    settings = settings_of(client.nats)
    async with connected(settings, "convo export") as connection:
        ledger = await topology_of(connection, settings)
        with Counting("reading the stream", wanted=not client.as_json) as counting:
            try:
                return await write_bundle(
                    connection, ledger, conversation(named), file, counting.at
                )
            except ConversationNotInitialized as error:
                raise CommandFailed(error.message) from None
            except (EvidenceMissing, StoreUnavailable) as error:
                raise CommandFailed(str(error)) from None


@click.command()
@conversation_argument
@click.argument("version", type=click.IntRange(min=1), metavar="VERSION")
@click.option("-o", "--output", "to", metavar="FILE", help="Where to. [default: standard output]")
@client_options
def prove(client: Client, *, named: Named, version: int, to: str | None) -> None:
    """Prove that one event is in the record.

    Writes the event and its path to the root that the notary has signed: whoever has the notary's
    public key can check it with `convo check-proof`, and needs no server.

    \b
    Example:
      convo prove c-1 7 -o c-1.7.proof.json
    """
    import json

    from infra.loop import run

    proof = json.dumps(run(_prove(client, named, version)), ensure_ascii=False, indent=1)
    if to is None or to == "-":
        click.echo(proof)
        return
    Path(to).write_text(proof + "\n", encoding="utf-8")
    if client.as_json:
        output.show_json({"ok": True, "file": to})
    else:
        output.show([f"{to}: version {version} of {output.row('/'.join(named), 420)}"])


async def _prove(client: Client, named: Named, version: int) -> dict[str, Any]:
    from domain.errors import ConversationNotInitialized
    from infra.jetstream.errors import StoreUnavailable
    from services.cli.requests import connected, conversation, settings_of
    from services.cli.scanning import Counting, topology_of
    from services.evidence import EvidenceMissing
    from services.evidence import prove as make_proof

    settings = settings_of(client.nats)
    async with connected(settings, "convo prove") as connection:
        ledger = await topology_of(connection, settings)
        with Counting("reading the stream", wanted=True) as counting:
            try:
                return await make_proof(
                    connection, ledger, conversation(named), version, counting.at
                )
            except ConversationNotInitialized as error:
                raise CommandFailed(error.message) from None
            except (EvidenceMissing, StoreUnavailable) as error:
                raise CommandFailed(str(error)) from None


@click.command(name="check-proof")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--key", metavar="KEY|FILE", help="The notary's public key, as it was published to you."
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check_proof(*, file: Path, key: str | None, as_json: bool) -> None:
    """Check the proof of one event, without a server.

    The exit status is 1 when it proves nothing. Without --key it is checked with the key that is
    in it, whose fingerprint is for you to compare.

    \b
    Example:
      convo check-proof c-1.7.proof.json --key notary.pub
    """
    from services.cli.verifying import public_key, show_finding
    from services.evidence import check_proof as check

    pinned = public_key(key)
    found = check(file.read_bytes(), pinned)
    show_finding(Client(None, as_json, 10.0), found, str(file), pinned)


@click.group()
def notary() -> None:
    """Show or rotate the key that signs checkpoints.

    \b
    Example:
      convo notary key
      convo notary rotate
    """


data_option = click.option(
    "--data", "data_dir", type=click.Path(path_type=Path), metavar="DIR", help="The data directory."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@notary.command(name="key")
@data_option
@json_option
def key(*, data_dir: Path | None, as_json: bool) -> None:
    """Print the public key and its fingerprint, to be published.

    \b
    Example:
      convo notary key > notary.pub
    """
    from infra.notary.keys import KeyUnusable

    folder = _folder(data_dir)
    try:
        signer = folder.load()
    except KeyUnusable as error:
        raise CommandFailed(str(error)) from None
    if signer is None:
        raise CommandFailed(
            f"there is no key in {folder.folder} yet: the notary makes it at its first start "
            "(`convo up`); name its data directory by --data"
        )
    if as_json:
        output.show_json({"key": signer.public.line, "fingerprint": signer.public.fingerprint})
    else:
        output.show([signer.public.line, signer.public.fingerprint])


@notary.command(name="rotate")
@data_option
@json_option
def rotate(*, data_dir: Path | None, as_json: bool) -> None:
    """Make a new key, which the notary takes up at once.

    The change is a record that both keys have signed: what was signed before stays valid, and who
    knows the old key can follow to the new one.

    \b
    Example:
      convo notary rotate
    """
    from infra.notary.keys import KeyUnusable

    folder = _folder(data_dir)
    try:
        if folder.load() is None:
            raise CommandFailed(f"there is no key in {folder.folder} that could be replaced")
        following = folder.ask_for_rotation()
    except KeyUnusable as error:
        raise CommandFailed(str(error)) from None
    if as_json:
        output.show_json({"key": following.line, "fingerprint": following.fingerprint})
    else:
        output.show(
            [following.line, following.fingerprint, "(the notary takes it up at its next look)"]
        )


def _folder(data_dir: Path | None) -> KeyFolder:
    from infra.notary.keys import KeyFolder
    from services.cli.requests import settings_of
    from services.notary import FOLDER

    return KeyFolder(settings_of(None, data_dir=data_dir).data_dir / FOLDER)
