"""`moesaic`: the verbs, their options, and what an error looks like from outside.

Knows nothing about the work: each verb imports what it calls when it is called, so that --help answers at once.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import moesaic
from moesaic.errors import Interrupted, MoesaicError

if TYPE_CHECKING:
    from moesaic.recipe import Recipe
    from moesaic.stages.progress import Progress

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # as a shell reports what SIGINT, SIGPIPE and SIGTERM have ended

app = typer.Typer(
    help=moesaic.__doc__,
    epilog="Start with `moesaic run recipes/demo.yaml`.",
    add_completion=False,
    rich_markup_mode=None,  # rich's help takes longer to import than everything else here
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="The YAML file that says what to make.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings in place of the recipe's, as in train.steps=50."),
]
Out = Annotated[Path, typer.Option("--out", help="The folder of all run directories; the run's own is OUT/name.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show the result, but not how it comes about.")]
Experts = Annotated[
    list[str] | None, typer.Option("--expert", metavar="NAME", help="Only this expert; may be given again.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse what is damaged; do not make it anew.")]
Restart = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Drop the half-done training of base, an expert or router; may be given again."),
]
BadRows = Annotated[
    str | None, typer.Option(metavar="stop|skip", help="What a row that cannot be used does; short for bad_rows=...")
]
MaxBad = Annotated[str | None, typer.Option(metavar="N", help="Rows to skip at most; short for max_bad=N.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text to read.")]

RUNS = Path("runs")


@app.callback(invoke_without_command=True)
def before_any_verb(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and warnings; may stand anywhere.")] = False,
) -> None:
    if version:
        typer.echo(f"moesaic {moesaic.__version__}")
        raise typer.Exit


@contextmanager
def asked(
    recipe: Path, overrides: list[str] | None, out: Path, quiet: bool, **shorthands: str | None
) -> Iterator[tuple["Recipe", Path, "Progress"]]:
    """What every verb of a recipe works with: the recipe, its run directory, and someone to tell.

    `shorthands`: options that are overrides by another name.
    """
    written = [f"{key}={value}" for key, value in shorthands.items() if value is not None]
    found = moesaic.read_recipe(
        recipe, [*(overrides or ()), *written]
    )  # what is wrong there is said before torch is imported
    from moesaic.cli.progress import shown

    with shown(quiet) as progress:
        yield found, out / found.name, progress


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    strict: Strict = False,
    restart: Restart = None,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Make everything a recipe asks for, and judge it. What is finished is skipped."""
    from moesaic.cli.printing import show_run

    with asked(recipe, overrides, out, quiet, bad_rows=bad_rows, max_bad=max_bad) as (found, root, progress):
        evaluation = moesaic.run(found, root, progress, strict=strict, restart=restart or ())
    show_run(evaluation, root)


@app.command()
def pretrain(
    recipe: RecipeFile,
    overrides: Overrides = None,
    strict: Strict = False,
    restart: Restart = None,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Make the base."""
    with asked(recipe, overrides, out, quiet, bad_rows=bad_rows, max_bad=max_bad) as (found, root, progress):
        from moesaic import stages

        folder = stages.pretrain(found, root, progress, strict=strict, restart=restart or ())
    typer.echo(folder)


@app.command()
def train_expert(
    recipe: RecipeFile,
    overrides: Overrides = None,
    expert: Experts = None,
    strict: Strict = False,
    restart: Restart = None,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Train the experts. The base must stand already."""
    with asked(recipe, overrides, out, quiet, bad_rows=bad_rows, max_bad=max_bad) as (found, root, progress):
        from moesaic import stages

        folders = stages.train_expert(found, root, expert or [], progress, strict=strict, restart=restart or ())
    for name, folder in folders.items():
        typer.echo(f"{name}  {folder}")


@app.command()
def verify_expert(
    recipe: RecipeFile,
    overrides: Overrides = None,
    expert: Experts = None,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Measure trained experts again, beside the base. They are read back from disk."""
    from moesaic.cli.printing import show_verified

    with asked(recipe, overrides, out, quiet, bad_rows=bad_rows, max_bad=max_bad) as (found, root, progress):
        from moesaic import stages

        verified = stages.verify_expert(found, root, expert or [], progress)
    show_verified(verified)


@app.command()
def train_router(
    recipe: RecipeFile,
    overrides: Overrides = None,
    strict: Strict = False,
    restart: Restart = None,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Train the router, and those it is compared with."""
    with asked(recipe, overrides, out, quiet, bad_rows=bad_rows, max_bad=max_bad) as (found, root, progress):
        from moesaic import stages

        folder = stages.train_router(found, root, progress, strict=strict, restart=restart or ())
    typer.echo(folder)


@app.command()
def compose(
    recipe: RecipeFile,
    overrides: Overrides = None,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Join base, experts and router into one folder."""
    with asked(recipe, overrides, out, quiet, bad_rows=bad_rows, max_bad=max_bad) as (found, root, progress):
        from moesaic import stages

        folder = stages.compose(found, root, progress)
    typer.echo(folder)


@app.command()
def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Judge a composed mixture against its parts and controls."""
    from moesaic.cli.printing import show_evaluation

    with asked(recipe, overrides, out, quiet, bad_rows=bad_rows, max_bad=max_bad) as (found, root, progress):
        from moesaic import stages

        evaluation = stages.evaluate(found, root, progress)
    show_evaluation(evaluation)


@app.command()
def generate(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A run directory, or a mixture's folder.")],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to continue; none, or -, reads a prompt from each line of stdin."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens to write at most; where none are given 128, or half a smaller context.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the most probable token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw among the most probable tokens that have this share.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw among so many most probable tokens; 0: all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same text.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be given again.")
    ] = None,
    expert: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who answers, in the router's place; `base` for none.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(metavar="FILE", help="Append every decision to this file.")] = None,
    trace_texts: Annotated[
        bool,
        typer.Option(help="Write prompts to it as they are: replay needs them. Otherwise only their SHA-256."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with a mixture, and say who was chosen to."""
    from moesaic.cli.generating import answer

    sampling = moesaic.Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    settings = {"max_new_tokens": max_new_tokens, "sampling": sampling, "stop": tuple(stop or ()), "expert": expert}
    with moesaic.load(path, trace=trace, trace_texts=trace_texts) as mixture:
        answer(mixture, prompts or ["-"], settings, as_json)


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A run directory, mixture, expert, router, base or PEFT adapter; a trace."),
    ],
    text: Annotated[str | None, typer.Option(help="Show how the mixture would route this text.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a folder holds. Its files are compared with their hashes."""
    from moesaic.cli.artefacts import show

    show(path, text, as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that has been evaluated.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="Another, to be compared with the first on one page.")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there, not in RUN/report.")] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tell also of the decisions in this routing trace.")
    ] = None,
) -> None:
    """Write a run as a page for the browser."""
    from moesaic.report import compare_reports, write_report

    if other and trace:
        raise typer.BadParameter("a trace is told of on the page of one run", param_hint="--trace")
    typer.echo(compare_reports(run, other, to) if other else write_report(run, to, trace))


@app.command()
def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="What `generate --trace FILE --trace-texts` has written.")
    ],
    router: Annotated[
        Path, typer.Option(metavar="PATH", help="The router to try: its folder, or a mixture or run that has it.")
    ],
    base: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The base that it reads, where that is not in a folder above it."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try another router on recorded traffic."""
    from moesaic.cli.traces import show_replay
    from moesaic.evaluate.replay import replay

    show_replay(replay(trace, router, base), as_json)


@app.command()
def adopt(
    experts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]PATH", help="A PEFT adapter, or a fine-tuned model of the same base."),
    ] = None,
    base: Annotated[Path | None, typer.Option(metavar="PATH", help="The model that the experts share.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Make a mixture there.")] = None,
    into: Annotated[Path | None, typer.Option(metavar="DIR", help="Change the mixture that was adopted there.")] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="What an expert is to answer: lines, or rows of a .jsonl; ten will do."),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Remove this expert.")] = None,
    disable: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Keep this expert, but from work.")] = None,
    enable: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Let it work again.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of the expert that a fine-tuned model becomes; else 16.")] = None,
    name: Annotated[str | None, typer.Option(help="What the mixture is called; else as its folder.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a mixture of adapters that you have, or change one. It takes seconds."""
    from moesaic.cli.adopting import adopted

    changes = {"drop": drop or [], "disable": disable or [], "enable": enable or []}
    adopted(experts or [], base, out, into, prompts or [], changes, rank, name, quiet, as_json)


def main() -> None:
    """The console script."""
    arguments, debug = without_debug(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no tick mark is no reason to fail
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for the processes that train
    sys.exit(status(arguments, debug))


def without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, which may stand anywhere before a --, and whether it was there."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*kept, *arguments[end:]], len(kept) < end


def status(arguments: list[str], debug: bool = False) -> int:
    """Do what the arguments say and return the exit status; where it is not 0, one line on stderr says why."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("moesaic", arguments or ["--help"]) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python would complain, flushing it at exit
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, message = explained(error)
        typer.echo(" ".join(message.split()), err=True)
        return code


def explained(error: BaseException) -> tuple[int, str]:
    """The exit status for an error, and what to say of it."""
    match error:
        case MoesaicError():
            return error.exit_code, f"error: {error}"
        case typer.TyperException():
            message = error.format_message()
            return error.exit_code, f"error: {message[:1].lower()}{message[1:].rstrip('.')}"
        case KeyboardInterrupt():
            code = error.exit_code if isinstance(error, Interrupted) else INTERRUPTED
            return code, "interrupted; run the same command to continue"
        case _:
            return 1, f"error: internal: {type(error).__name__}: {error}; run with --debug and report it"
