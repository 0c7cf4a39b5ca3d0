"""`glmc`: the verbs, and the one place where an exception becomes a sentence and an exit code."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import glmc
from glmc.cli import arguments, bench, compare, compile, doctor, explain, inspect, plan, run, show, verify
from glmc.errors import GlmcError, InternalError, StorageError, UnknownName, UsageError

_CommandLineFault: type[typer.BadParameter] = typer.BadParameter.__mro__[2]  # type: ignore[assignment]  # ClickException, wherever it is kept
_INTERRUPTED = 130


class _Ended(Exception):
    """A verb ended through nobody's fault; carries the exit code. Typer would answer either cause in its own way."""


class Verbs(TyperGroup):
    """The group of verbs: suggests names and maps every exception to an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise UnknownName("no verb has this name", found=args[0], expected=", ".join(self.commands),
                              hint=arguments.nearest(args[0], self.commands) or "`glmc --help` lists the verbs")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            done = super().invoke(ctx)
            sys.stdout.flush()
            return done
        except KeyboardInterrupt as stop:
            show.talk("interrupted")
            raise _Ended(_INTERRUPTED) from stop
        except BrokenPipeError as closed:
            _discard_stdout()
            raise _Ended(0) from closed

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run one command line and leave by SystemExit: 0, or the exit code of what went wrong."""
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        cause: BaseException | None = None
        try:
            code = super().main(words, *rest, **extra)
            raise SystemExit(code if isinstance(code, int) else 0)
        except _Ended as ended:
            raise SystemExit(ended.args[0]) from None
        except GlmcError as fault:
            error = fault
        except _CommandLineFault as fault:
            context = getattr(fault, "ctx", None)
            error = UsageError(fault.format_message(), hint=f"see `{context.command_path} --help`" if context else None)
        except OSError as fault:
            error, cause = StorageError(fault.strerror or str(fault), file=fault.filename), fault
        except Exception as fault:
            error, cause = InternalError(f"{type(fault).__name__}: {fault}"), fault
        try:
            show.fault(error, as_json="--json" in words, cause=cause)
            sys.stdout.flush()
        except BrokenPipeError:
            _discard_stdout()
        raise SystemExit(error.exit)


def _discard_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain about the closed pipe."""
    with contextlib.suppress(io.UnsupportedOperation, AttributeError):  # a test's stdout has no descriptor
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


app = typer.Typer(name="glmc", cls=Verbs, add_completion=False, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["--help"]})
for _verb in (plan.plan, compile.compile, run.run, inspect.inspect, verify.verify, bench.bench, compare.compare,
              explain.explain, doctor.doctor):
    app.command(_verb.__name__)(_verb)

Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.")]


@app.callback(invoke_without_command=True)
def verbs(ctx: typer.Context, version: Version = False) -> None:
    """Compile a GLM checkpoint into one sealed artefact and run it.

    Data goes to stdout, talk to stderr. NO_COLOR is honoured; `glmc explain NAME` explains every name and error.
    """
    if version:
        typer.echo(f"glmc {glmc.__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        raise UsageError("no verb is given", expected=", ".join(ctx.command.commands),  # type: ignore[attr-defined]
                         hint="see `glmc --help`")


def _leave() -> None:
    """Give back what is left at once: looking for garbage takes seconds. IREE's bindings want it looked for."""
    if "iree.runtime" not in sys.modules:
        gc.freeze()


def main() -> None:
    """The console script. Text that the terminal's encoding lacks is escaped rather than fatal."""
    atexit.register(_leave)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
