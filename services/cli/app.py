"""The command `convo`: its commands, and what happens when one of them fails."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from services.cli import output
from services.cli.analytics import export_parquet, rebuild, report, sql
from services.cli.audit import diff, replay, verify
from services.cli.conversations import append, init, reset, turn, update, usage
from services.cli.directory import list_, search
from services.cli.errors import FAILED, INTERRUPTED, USAGE, CommandFailed, Interrupted
from services.cli.evidence import check_proof, export, notary, prove
from services.cli.importing import import_
from services.cli.keys import keys
from services.cli.life import close, edit, erase, redact, reopen, reply
from services.cli.operations import bench, doctor, serve, status, up
from services.cli.safekeeping import backup, fence, restore, scrub
from services.cli.tailing import tail
from services.cli.views import events, history, messages, state, usage_totals


class OneLineOnFailure(click.Group):
    """A group of commands each of which ends with one clear line when it fails.

    Never a traceback: standard error gets the line, standard output (with --json) the service's
    own refusal, and the exit status says which kind it was (`services.cli.errors`).
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of their use, not of the alphabet."""
        del ctx
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the arguments name; `export parquet DIR` is `export-parquet DIR`."""
        if args[:2] == ["export", "parquet"] and len(args) > 2 and not args[2].startswith("-"):
            args = ["export-parquet", *args[2:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; a connection that breaks is a failure (click takes it for `| head`)."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise CommandFailed(f"a connection broke: {error}; try again") from None

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Runs one command line and exits with its status."""
        del standalone_mode
        _escape_what_cannot_be_shown()
        arguments = sys.argv[1:] if args is None else list(args)
        try:
            ended: object = super().main(
                arguments,
                prog_name or "convo",
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
            _flush()
        except BaseException as error:  # noqa: BLE001 - the one place where everything ends
            ended = _status_of(error, as_json="--json" in arguments)
        sys.exit(ended if isinstance(ended, int) else 0)


def _status_of(error: BaseException, *, as_json: bool) -> int:
    """Says on standard error what happened, and returns the exit status of it."""
    match error:
        case click.Abort() | KeyboardInterrupt():
            return INTERRUPTED
        case SystemExit(code=int(code)):
            return code
        case click.UsageError():
            return _say(_usage(error), USAGE)
        case click.ClickException():
            return _say(error.format_message(), FAILED)
        case CommandFailed():
            if as_json and error.answer is not None:
                output.show_json(error.answer)
            return _say(error.message, INTERRUPTED if isinstance(error, Interrupted) else FAILED)
        case output.ReaderGone():
            _abandon_stdout()
            return 0
        case OSError():
            return _say(f"{error.filename or 'system'}: {error.strerror or error}", FAILED)
        case _:
            kind = type(error).__name__
            if os.environ.get("CONVO_LOG_LEVEL", "").lower() == "debug":
                import traceback

                traceback.print_exception(error)
            return _say(
                f"a fault of ours ({kind}: {error}): please report it, with the output of the same"
                " command under CONVO_LOG_LEVEL=debug",
                FAILED,
            )


def _usage(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    if isinstance(error, click.NoSuchOption):
        message += " (put -- before a text that begins with a dash)"
    command = error.ctx.command_path if error.ctx else "convo"
    return f"{message}; see `{command} --help`"


def _say(message: str, status: int) -> int:
    try:
        click.echo(f"convo: {output.one_line(message, 2000)}", err=True)
    except OSError:
        _abandon_stdout()
    return status


def _escape_what_cannot_be_shown() -> None:
    """A terminal of another encoding gets escapes, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise output.ReaderGone from None


def _abandon_stdout() -> None:
    """The reader is gone (`| head`): what is still buffered goes nowhere, without a word."""
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a file descriptor is wanted
        for stream in (sys.stdout, sys.stderr):
            try:
                os.dup2(nowhere.fileno(), stream.fileno())
            except (OSError, ValueError):
                continue


@click.group(
    cls=OneLineOnFailure,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="conversation-ledger", prog_name="convo")
@click.pass_context
def convo(ctx: click.Context) -> None:
    """Conversation Ledger: the system of record for conversations with language models.

    A conversation is named [TENANT/]CONVERSATION: the tenant stands before the first slash and is
    `default` without one. An id that has a slash itself is given with its tenant (`default/a/b` is
    conversation `a/b`), or with --tenant, which leaves all of the name to the conversation.

    \b
    Example:
      convo up                               (in one terminal)
      convo init c-1 ada                     (in another)
      convo append c-1 user "Hello!"
      convo messages c-1

    Exit status: 0 done, 1 refused or failed, 2 the command line is wrong, 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (
    up,
    serve,
    init,
    append,
    usage,
    turn,
    reset,
    update,
    reply,
    edit,
    redact,
    close,
    reopen,
    erase,
    messages,
    usage_totals,
    state,
    history,
    events,
    list_,
    search,
    import_,
    replay,
    verify,
    diff,
    export,
    prove,
    check_proof,
    notary,
    keys,
    sql,
    report,
    rebuild,
    export_parquet,
    tail,
    backup,
    restore,
    fence,
    scrub,
    status,
    doctor,
    bench,
):
    convo.add_command(_command)
