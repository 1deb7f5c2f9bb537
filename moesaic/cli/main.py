"""`moesaic`: the verbs, their options, and what an error looks like from outside.

Knows nothing about the work: each verb imports what it calls when it is called, so that --help answers at once.
"""

import errno
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
from moesaic.errors import MoesaicError, MoesaicWarning, StorageError, printable

if TYPE_CHECKING:
    from moesaic.recipe import Recipe
    from moesaic.runs.progress import Progress

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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show the result and warnings, not how it comes about.")]
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
Ram = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory that it may take, as 2GB: experts that do not fit are fetched from disk."
    ),
]
Vram = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="The same of the device that computes; --ram is then on the way there."),
]
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
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A run directory, a mixture's folder, or org/name of the hub.")
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to continue; none, or -, reads a prompt from each line of stdin."),
    ] = None,
    messages: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Answer the conversation in this file, a JSON list of {role, content}."),
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
    ram: Ram = None,
    vram: Vram = None,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with a mixture, and say who was chosen to."""
    from moesaic.cli.generating import answer, conversation, tell

    if messages and prompts:
        raise typer.BadParameter("prompts and a conversation are not answered at once", param_hint="--messages")
    asked = [conversation(messages)] if messages else prompts or ["-"]
    sampling = moesaic.Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    settings = {"max_new_tokens": max_new_tokens, "sampling": sampling, "stop": tuple(stop or ()), "expert": expert}
    with moesaic.load(path, trace=trace, trace_texts=trace_texts, ram=ram, vram=vram) as mixture:
        answer(mixture, asked, settings, as_json)
        if ram or vram:
            tell(mixture.traffic)


@app.command()
def classify(
    path: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or a mixture's folder.")],
    text: Annotated[str, typer.Argument(help="What is to get a label.")],
    second: Annotated[str | None, typer.Argument(help="The second text, where the task is about two.")] = None,
    expert: Annotated[str | None, typer.Option(metavar="NAME", help="Who answers, in the router's place.")] = None,
    as_json: AsJson = False,
) -> None:
    """Label a text, or two, and say who was chosen to."""
    from moesaic.cli.classifying import label

    label(moesaic.load(path).classify((text,) if second is None else (text, second), expert=expert), as_json)


@app.command()
def inspect(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A run directory, mixture, expert, router, base or PEFT adapter; a trace."),
    ],
    text: Annotated[str | None, typer.Option(help="Show how the mixture would route this text.")] = None,
    ram: Ram = None,
    vram: Vram = None,
    as_json: AsJson = False,
) -> None:
    """Say what a folder holds. Its files are compared with their hashes."""
    from moesaic.cli.artefacts import show

    if text is None and (ram or vram):
        raise typer.BadParameter("nothing is loaded where no text is routed", param_hint="--ram")
    show(path, text, as_json, ram, vram)


@app.command()
def export(
    expert: Annotated[Path, typer.Argument(metavar="EXPERT", help="An expert's folder.")],
    out: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
) -> None:
    """Write an expert as an adapter of PEFT. Tensor trains become LoRA."""
    from moesaic.artefacts.adapter import export_peft

    typer.echo(export_peft(expert, out))


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
        str | None,
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
        typer.Argument(
            metavar="[NAME=]PATH", help="A PEFT adapter, or a fine-tuned model of the same base: a folder, or org/name."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="PATH", help="The model that the experts share: a folder, or org/name.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Make a mixture there.")] = None,
    into: Annotated[Path | None, typer.Option(metavar="DIR", help="Change the mixture that was adopted there.")] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="What an expert is to answer: lines, or rows of a .jsonl; ten will do."),
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Remove this expert.")] = None,
    disable: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Keep this expert, but from work.")] = None,
    enable: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Let it work again.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="lora|ffn|model",
            help="What a fine-tuned model becomes: an adapter, its feed-forward blocks, an expert as it is; else lora.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of the adapter that a fine-tuned model becomes; else 16.")] = None,
    ignore_rest: Annotated[
        bool, typer.Option("--ignore-rest", help="Of kind ffn: ignore what differs outside the feed-forward blocks.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="What the mixture is called; else as its folder.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a mixture of experts that you have, or change one. It takes seconds."""
    from moesaic.cli.adopting import adopted

    changes = {"drop": drop or [], "disable": disable or [], "enable": enable or []}
    adopted(experts or [], base, out, into, prompts or [], changes, kind, rank, ignore_rest, name, quiet, as_json)


@app.command()
def merge(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL... OUT", help="Models of one shape, and the new folder of their mean.")
    ],
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="What each model counts; else all count the same.")
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="shared", help="Average all but the feed-forward blocks, which stay the first model's."),
    ] = None,
) -> None:
    """Average models into one dense base."""
    from moesaic.cli.adopting import merged

    typer.echo(merged(models, weights, only))


@app.command()
def plan(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="Folders of models or adapters, or sizes such as llama-3-8b; a recipe or a mixture."
        ),
    ],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What they share; of whole models else the first of them.")
    ] = None,
    site: Annotated[
        str | None, typer.Option(metavar="model|ffn|linear", help="Where they meet; else model, or linear of adapters.")
    ] = None,
    vram: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory of all devices, as 17GB; or of each, as 9GB,8GB.")
    ] = None,
    ram: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory of the host, as 32GB.")] = None,
    devices: Annotated[int, typer.Option(help="Devices that share the memory evenly.")] = 1,
    hosts: Annotated[int, typer.Option(help="Machines that share the experts; --vram and --ram are of each.")] = 1,
    context: Annotated[
        int | None, typer.Option(help="Tokens of a row; else 4096, or the model's context if shorter.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows at once.")] = 1,
    training: Annotated[bool, typer.Option("--training", help="Count what training an expert takes.")] = False,
    dtype: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Compute in float32, bfloat16, ...; else as loading does.")
    ] = None,
    active: Annotated[int | None, typer.Option(help="Experts that answer a row; else as the router selects.")] = None,
    bandwidth: Annotated[
        str | None, typer.Option(metavar="SIZE,SIZE", help="A second, from memory and from disk; else 12GB,2GB.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether models fit each other and a budget of memory. Nothing is loaded."""
    from moesaic.cli.planning import show_plan

    settings = {
        "base": base,
        "site": site,
        "vram": vram,
        "ram": ram,
        "devices": devices,
        "hosts": hosts,
        "context": context,
        "batch": batch,
        "training": training,
        "dtype": dtype,
        "active": active,
    }
    show_plan(models, settings, bandwidth, as_json)


@app.command()
def push(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A run directory, or a mixture's folder.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the hub; created if it is missing.")],
    private: Annotated[
        bool | None, typer.Option(help="Who may see it, if it is created; else as its owner's are.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Where; created if it is missing; else main.")
    ] = None,
    license: Annotated[str | None, typer.Option(metavar="ID", help="For its card, as the hub spells it.")] = None,
) -> None:
    """Put a mixture on the Hugging Face hub.

    With a card that tells of it. Log in first: hf auth login.
    """
    typer.echo(moesaic.load(path).push_to_hub(repository, private=private, revision=revision, license=license))


@app.command()
def recipe_from(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The JSON config of a gated pair of models.")],
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Rows that model1 or model2 is for; may be given again."),
    ] = None,
    test: Annotated[list[str] | None, typer.Option(metavar="NAME=FILE", help="Rows that it is judged on.")] = None,
    name: Annotated[str | None, typer.Option(help="What the run is called; else as the config.")] = None,
) -> None:
    """Print the recipe that a gated pair's config means."""
    from moesaic.cli.printing import harmless
    from moesaic.migrate import files_by_name, translated

    found = translated(config, files_by_name("train", train or []), files_by_name("test", test or []), name)
    for note in found.notes:
        typer.echo(harmless(f"# {note}"))
    typer.echo(found.text, nl=False)


@app.command()
def recipe(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")],
    path: Annotated[
        Path | None, typer.Argument(metavar="[PATH]", help="Write it to this file instead (default: print it).")
    ] = None,
) -> None:
    """Describe recipes to editors: a JSON schema of every key."""
    from moesaic.files import write_json
    from moesaic.files.plain import encoded
    from moesaic.recipe.json_schema import json_schema

    if path:
        write_json(path, json_schema())
    else:
        typer.echo(encoded(json_schema(), indent=2), nl=False)


def main() -> None:
    """The console script."""
    arguments, debug = without_debug(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no tick mark is no reason to fail
    if not sys.stderr.isatty() or {"-q", "--quiet"} & {*arguments}:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the hub's client is first imported
    if not debug and not sys.warnoptions:
        show_own_warnings()
    sys.exit(status(arguments, debug))


def show_own_warnings() -> None:
    """Of Python's warnings show ours alone, each once, as a line on stderr; whatever else is quiet."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("once", MoesaicWarning)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {printable(str(message))}", file=sys.stderr)
    # The processes that train are silent: whatever they read of other people's files is read here, too.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


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
    except (BrokenPipeError, SystemExit) as left:
        if not isinstance(left, BrokenPipeError) and not isinstance(left.__context__, BrokenPipeError):
            raise
        drop_output()  # rich answers a reader who has left by exiting with 1
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
            drop_output()
            error = StorageError("what is printed cannot be written", got=error.strerror, hint="see where it goes")
        if debug:
            traceback.print_exc()
        code, message = explained(error)
        typer.echo(" ".join(message.split()), err=True)
        return code


def drop_output() -> None:
    """Nobody takes what is still to be printed; Python would complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explained(error: BaseException) -> tuple[int, str]:
    """The exit status for an error, and what to say of it."""
    match error:
        case MoesaicError():
            return error.exit_code, f"error: {error}"
        case typer.TyperException():
            message = error.format_message()
            return error.exit_code, f"error: {message[:1].lower()}{message[1:].rstrip('.')}"
        case KeyboardInterrupt():
            return getattr(error, "exit_code", INTERRUPTED), "interrupted; run the same command to continue"
        case _:
            return 1, f"error: internal: {type(error).__name__}: {error}; run with --debug and report it"
