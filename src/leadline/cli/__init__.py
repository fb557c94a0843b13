"""The command `leadline`: a table of verbs, each loaded only when it is called."""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from leadline import __version__
from leadline.errors import LeadlineError

if TYPE_CHECKING:
    from types import FrameType

# Exit statuses: 0 done, 1 some items of a batch failed or a number is not finite, 2 the user can mend it,
# 70 a fault of Leadline (sysexits' EX_SOFTWARE), 130 interrupted, 143 terminated.
INTERNAL_FAULT, INTERRUPTED, TERMINATED = 70, 130, 143

# Verb -> one line of help. The module is `leadline.cli.<verb>` with a function `command`, or `app` for several
# commands below one verb, and EXAMPLES, a tuple of the commands that its help ends in.
VERBS = {
    "predict": "Depth of pictures and films: raw values, colours, point clouds.",
    "camera": "Depth of a webcam, a stream or frames on stdin, live.",
    "evaluate": "Accuracy of a model on a data set under a named protocol.",
    "train": "Train a depth network.",
    "pseudo-label": "Label pictures with a teacher, to train on.",
    "export": "Turn a model into a bundle for one runtime and precision.",
    "benchmark": "Latency, memory, size, MACs and parameters of models.",
    "compress": "Make a network small by named steps, measured before and after.",
    "run": "Carry out a recipe: compression steps in a YAML file.",
    "optimize": "Compare runtimes, precisions and sizes on one data set; recommend one.",
    "study": "Carry out a study in a YAML file: engines x precisions x sizes x batches, here or on a farm.",
    "compare": "Two machines or two versions, paired; names what became worse.",
    "sensitivity": "What pruning or rounding each layer alone costs in accuracy.",
    "serve": "Depth over HTTP and WebSocket, and a page to look at it.",
    "models": "The models that come with Leadline, and the architectures it can build.",
    "data": "Check data sets; render scenes.",
    "convert": "Turn an official .pth file into a safe checkpoint.",
    "doctor": "What can run here, and what each missing runtime needs.",
}


class Verbs(TyperGroup):
    """The group of all verbs: stands in for each until it is called, and turns errors into one line and a status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take `--debug` from anywhere on the line, before or behind the verb."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["leadline.debug"] = "--debug" in args[:end]
        try:
            return super().parse_args(ctx, [arg for arg in args[:end] if arg != "--debug"] + args[end:])
        except typer.TyperException as error:
            _fail_usage(ctx, error)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the verb's module the moment that the verb is called."""
        if args and args[0] in VERBS:
            self.add_command(_load(args[0]), args[0])
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; LeadlineError is one line on stderr, with the traceback only under `--debug`."""
        try:
            return super().invoke(ctx)
        except LeadlineError as error:
            _fail(ctx, str(error), error.exit_status)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted", INTERRUPTED)
        except typer.TyperException as error:
            _fail_usage(ctx, error)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001  the outermost place: nothing is swallowed, it ends the program
            text = " ".join(f"{type(error).__name__}: {error}".split())
            _fail(ctx, f"unexpected {text}. Run again with --debug for the details and report it", INTERNAL_FAULT)


def _fail(ctx: Any, message: str, status: int) -> NoReturn:
    if ctx.meta.get("leadline.debug"):
        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)


def _fail_usage(ctx: Any, error: Any) -> NoReturn:
    """One line for what typer would frame in a box: the fault, and where the options of that verb are explained."""
    if not str(getattr(error, "message", error)) and not getattr(error, "param", None):
        raise error  # no arguments at all: the help is the answer, not a fault
    text = " ".join(error.format_message().split())
    place = " ".join([ctx.command_path, *([ctx.invoked_subcommand] if ctx.invoked_subcommand in VERBS else [])])
    if getattr(error, "ctx", None) is not None:
        place = error.ctx.command_path
    _fail(ctx, f"{text}{'' if text.endswith(('.', '?')) else '.'} See {place} --help", error.exit_code)


def _load(verb: str) -> Any:
    module = importlib.import_module(f"leadline.cli.{verb.replace('-', '_')}")
    examples = getattr(module, "EXAMPLES", ())
    epilog = "\n\n".join(["Examples:", *examples]) if examples else None
    if hasattr(module, "app"):
        module.app.info.epilog = epilog
        return typer.main.get_command(module.app)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(verb, help=getattr(module, "HELP", None), epilog=epilog)(module.command)
    return typer.main.get_command(single)


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with: leadline doctor, or: leadline predict PICTURE",
)


def _stand_in(verb: str) -> None:
    @app.command(verb, help=VERBS[verb])
    def unloaded() -> None:
        raise AssertionError(f"{verb} was called before it was loaded")


for _verb in VERBS:
    _stand_in(_verb)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"leadline {__version__}")
        raise typer.Exit


@app.callback()
def leadline(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Take a depth network from training to a measured, deployable file on your own hardware."""


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _terminated)  # so that `finally` clauses remove what is half written
    try:
        app(prog_name="leadline")
    except KeyboardInterrupt:  # a second one, while the first was being handled
        sys.exit(INTERRUPTED)
