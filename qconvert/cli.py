"""The commands: parse, call one step, show its outcome. The only place where an error becomes a
message and an exit code."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from qconvert import __version__
from qconvert.errors import BUDGETS_MISSED, BUG, OutputError, QConvertError
from qconvert.ranks.place import place
from qconvert.ranks.team import First, Helper, joined, noting
from qconvert.showing import show, show_whole
from qconvert.workspace import Workspace

if TYPE_CHECKING:
    from qconvert.qconfig import QConfig
    from qconvert.steps.outcome import Outcome

app = typer.Typer(
    name="qconvert",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 budgets missed, 2 usage or qconfig, 3 model or checkpoint, "
    "4 images or labels, 5 not convertible or failed verification, 6 processes that cannot work "
    "together, 70 a bug of qconvert.",
)

QConfigPath = Annotated[
    Path, typer.Argument(metavar="QCONFIG", readable=False, help="The YAML file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as data.labels=none."),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Override the output folder."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no talk.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks of every error.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Run every step again.")]
# What tells a qconfig from a model, for `inspect`.
_QCONFIGS = (".yaml", ".yml", ".json")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


VersionOption = Annotated[
    bool,
    typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version."),
]


@app.callback()
def options(version: VersionOption = False) -> None:
    """Turn a trained PyTorch image model into a verified int8 CPU model in TorchScript.

    Each command reads the same qconfig, runs whatever earlier step is missing or stale, and may
    be run alone: `qconvert benchmark QCONFIG` does the whole job.
    """


# The commands, in their order; each is a `run_NAME` of `steps/outcome.py`.
_COMMANDS = {
    "fuse": "Fold batch norms, pair activations, and prove the result equal to the original.",
    "calibrate": "Stream the images once and keep the distribution of every tensor.",
    "convert": "Choose ranges, plan, lower to int8, save TorchScript, verify in a fresh process.",
    "finetune": "Train the model in int8, with labels or without, then convert it.",
}


def _register(name: str, about: str) -> None:
    @app.command(name=name, help=about)
    def command(
        qconfig: QConfigPath,
        overrides: SetOption = None,
        output: OutputOption = None,
        as_json: JsonOption = False,
        quiet: QuietOption = False,
        debug: DebugOption = False,
        force: ForceOption = False,
    ) -> None:
        _run(name, {}, qconfig, overrides or [], output, as_json, quiet, debug, force)


@app.command(help="Write a commented qconfig to start from, with what could be found out.")
def init(
    source: Annotated[
        str,
        typer.Option(
            help="The model: torchvision:NAME, timm:NAME, package.module:callable or "
            "path/to/file.py:callable."
        ),
    ],
    images: Annotated[Path, typer.Option(metavar="FOLDER", help="Images for calibration.")],
    target: Annotated[
        Path, typer.Argument(metavar="QCONFIG", help="The YAML file to write.")
    ] = Path("qconfig.yaml"),
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The trained weights.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Other images, to judge by.")
    ] = None,
    kwargs: Annotated[
        str, typer.Option(metavar="YAML", help="Arguments of the source, as {num_classes: 10}.")
    ] = "{}",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Writes a starter qconfig."""
    from qconvert import starter
    from qconvert.console import Console

    with _errors_shown("init", target.name, as_json, debug):
        asked = starter.request(target, source, images, kwargs, checkpoint, evaluation, force)
        console = Console(quiet)
        with console.busy("importing torch"):
            _silence_torch()
            from qconvert.steps.outcome import run_init
        with redirect_stdout(sys.stderr):
            outcome = run_init(asked, console)
    show(outcome, target, as_json, quiet)


for _name, _about in _COMMANDS.items():
    _register(_name, _about)


@app.command(help="Measure float against int8: latency, accuracy, size; judge the budgets.")
def benchmark(
    qconfig: QConfigPath,
    overrides: SetOption = None,
    output: OutputOption = None,
    isa: Annotated[
        str,
        typer.Option(metavar="CLASS,…", help="Also on CPUs of these classes: avx2,avx512,vnni."),
    ] = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    force: ForceOption = False,
) -> None:
    classes = tuple(dict.fromkeys(name.strip() for name in isa.split(",") if name.strip()))
    settings = (qconfig, overrides or [], output, as_json, quiet, debug, force)
    _run("benchmark", {"classes": classes}, *settings)


@app.command(help="Tell what int8 costs at each operator, and which one to keep in float.")
def analyze(
    qconfig: QConfigPath,
    overrides: SetOption = None,
    output: OutputOption = None,
    images: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="At most so many evaluation images, drawn evenly."),
    ] = 32,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
    force: ForceOption = False,
) -> None:
    settings = (qconfig, overrides or [], output, as_json, quiet, debug, force)
    _run("analyze", {"images": images}, *settings)


_register("tune", "Find the fastest settings that meet the budgets of accuracy, and convert so.")


@app.command(help="Tell what will become of each layer, and why; or what is in a TorchScript file.")
def inspect(
    target: Annotated[
        Path, typer.Argument(metavar="QCONFIG|FILE", help="The YAML file, or a TorchScript file.")
    ],
    svg: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Draw the graph into this file.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="N,C,H,W", help="Of a FILE's input, once for each: counts its work."),
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    shapes = _shapes(shape or [])
    written = target.suffix.lower() in _QCONFIGS
    if written and shapes:
        raise typer.BadParameter("--shape is for files: a qconfig's images have their own")
    if not written and overrides:
        raise typer.BadParameter("--set is for a qconfig")
    with _errors_shown("inspect", target.name, as_json, debug):
        outcome = _inspected(target, overrides or [] if written else None, shapes, svg, quiet)
    show_whole(outcome, target, as_json, quiet)


def _shapes(given: Sequence[str]) -> list[tuple[int, ...]]:
    shapes = []
    for text in given:
        sides = text.replace("x", ",").split(",")
        if not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
            raise typer.BadParameter(f"--shape {text}: not numbers above 0, as 1,3,224,224")
        shapes.append(tuple(map(int, sides)))
    return shapes


def _inspected(
    path: Path, overrides: list[str] | None, shapes: list[tuple[int, ...]], svg: Path | None,
    quiet: bool,
) -> Outcome:  # fmt: skip
    """Of a qconfig; of a file where there are no `overrides`, not even none."""
    from qconvert.console import Console
    from qconvert.qconfig_file import load

    config = None if overrides is None else load(path, overrides)
    console = Console(quiet)
    console.say(f"qconvert {__version__} inspect {path}")
    with redirect_stdout(sys.stderr):
        with console.busy("importing torch"):
            _silence_torch()
            from qconvert.steps.outcome import run_inspect, run_inspect_file
            from qconvert.steps.session import Session
        if config is None:
            return run_inspect_file(path, shapes, svg, console)
        return run_inspect(Session(config, path, console), svg)


class _Ended(BaseException):
    """A signal that asks the process to end. No Exception: nobody on the way handles it."""

    def __init__(self, number: int) -> None:
        self.number = number


def main() -> None:
    """The console script."""

    def end(number: int, frame: object) -> None:
        # The second time it ends the process at once: nobody must be kept from stopping it.
        signal.signal(number, signal.SIG_DFL)
        raise _Ended(number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:
            signal.signal(getattr(signal, name), end)
    try:
        app()
    except _Ended as ended:
        here = place()
        if here is None or here.first:
            sys.stderr.write(
                f"interrupted by {signal.Signals(ended.number).name}: what was finished before is "
                "whole, and the same command goes on from there\n"
            )
        raise SystemExit(128 + ended.number) from None


def _run(
    command: str,
    more: dict[str, Any],
    path: Path,
    overrides: list[str],
    output: Path | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    force: bool,
) -> None:
    from qconvert.qconfig_file import check_goal, load

    shown = partial(_errors_shown, command, path.name, debug=debug)
    with shown(as_json), joined(_give_up) as team:
        if isinstance(team, Helper):
            with shown(as_json=False):
                _help(team, partial(load, path, overrides, output), path)
            return
        with shown(as_json), noting(team):
            config = load(path, overrides, output)
            if command == "tune":
                check_goal(config, path.name)
            # Everything before this line answers without torch, if there is one process. What the
            # user's own code prints is no result: stdout is for these, and with --json for one
            # JSON object.
            with redirect_stdout(sys.stderr):
                outcome = _outcome(command, more, config, path, quiet, force, team)
        # What comes next is told with the same options, or it would be about other settings.
        options = [word for override in overrides or () for word in ("--set", override)]
        options += [] if output is None else ["--output", str(output)]
        show_whole(outcome, path, as_json, quiet, options)
        if outcome.budgets_missed:
            raise typer.Exit(BUDGETS_MISSED)


def _help(team: Helper, load: Callable[[], QConfig], path: Path) -> None:
    """What this process does where another one runs the command."""
    _silence_torch()
    from qconvert.steps.helping import help_first

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        end = help_first(team, load, path)
    if end.error is not None:
        raise end.error
    if end.code:
        raise typer.Exit(end.code)


def _give_up(error: QConvertError) -> NoReturn:
    """Ends a process whose main thread waits forever."""
    from qconvert.console import Console

    Console().error(f"{error.title}: {error.name}", error.message)
    os._exit(error.exit_code)


@contextmanager
def _errors_shown(command: str, name: str, as_json: bool, debug: bool) -> Iterator[None]:
    """Ends with the exit code of what went wrong, after one message. `name` is the qconfig's."""
    try:
        yield
    except typer.Exit:  # what went wrong has been shown
        raise
    except QConvertError as error:
        shown = error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _bug()
        place = str(error.filename) if error.filename else None
        shown = OutputError(f"cannot be written: {error.strerror}", where=place)
    except Exception:
        _bug()
    else:
        return
    if debug:
        traceback.print_exception(shown)
    from qconvert.console import Console

    if shown.where == "qconfig":  # inner code does not know the file's name
        shown.where = name
    console = Console()
    console.error(f"{shown.title}: {shown.name}", shown.message)
    if as_json:
        console.raw(json.dumps({"command": command, "error": shown.to_json()}, indent=2))
    raise typer.Exit(shown.exit_code) from None


def _bug() -> NoReturn:
    traceback.print_exc()
    raise typer.Exit(BUG) from None


def _outcome(
    command: str,
    more: dict[str, Any],
    config: QConfig,
    path: Path,
    quiet: bool,
    force: bool,
    team: First | None,
) -> Outcome:
    from qconvert.console import Console
    from qconvert.settings_lines import settings_lines

    console = Console(quiet)
    console.say(f"qconvert {__version__} {command} {path}")
    for line in settings_lines(config):
        console.say(line)
    with Workspace(config.output).exclusive(Console().say):
        with console.busy("importing torch"):
            _silence_torch()
            from qconvert.steps import outcome
            from qconvert.steps.agreement import check_facts
            from qconvert.steps.session import Session
        run: Callable[..., Outcome] = getattr(outcome, f"run_{command}")
        session = Session(config, path, console, force, team)
        if team is not None:
            check_facts(session, team)
        return run(session, **more)


def _silence_torch() -> None:
    """torch logs hints about optional packages that a user cannot act on."""
    logging.getLogger("torch").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
