"""`moesaic`: the verbs, their options, and how an error is printed.

Knows nothing about the work: each verb imports what it calls when it is called, so that --help answers at once.
"""

import errno
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from typer import Argument, Option

import moesaic
from moesaic.cli.arguments import Prompted, Verbs, existing
from moesaic.errors import (
    MemoryLimitError,
    MoesaicError,
    MoesaicWarning,
    RanksError,
    RecipeError,
    StorageError,
    printable,
)
from moesaic.files import disk

if TYPE_CHECKING:
    from moesaic.recipe import Recipe

T = TypeVar("T")

INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # as a shell reports SIGINT, SIGPIPE and SIGTERM
RUNS = Path("runs")
COMPLETING = "_MOESAIC_COMPLETE"
"""Variable by which a shell asks for completions."""

HELPING = os.environ.get("RANK", "0") != "0"
"""Whether `torchrun` started this process to help its first one, which reports for all."""
SPEECH = 10.0  # seconds in which that one reports an error

app = typer.Typer(
    cls=Verbs,
    help=moesaic.__doc__,
    epilog='Start with `moesaic generate shipped:tiny "Once"`, `moesaic run demo`, or `moesaic init` for your data.',
    rich_markup_mode=None,  # rich's help takes longer to import than everything else here
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[
    str, Argument(metavar="RECIPE", help="YAML file of the recipe, or the name of one in the package, such as demo.")
]
Overrides = Annotated[
    list[str] | None, Argument(metavar="KEY=VALUE", help="Replace keys of the recipe, for example train.steps=50.")
]
Out = Annotated[Path, Option("--out", help="Folder of all run directories; the run is written to OUT/name.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print only the result and warnings, no progress.")]
ExpertNames = Annotated[
    list[str] | None, Option("--expert", metavar="NAME", help="Only this expert; repeatable (default: all).")
]
Strict = Annotated[bool, Option("--strict", help="Refuse damaged artefacts (default: make them again).")]
Restart = Annotated[
    list[str] | None,
    Option(metavar="NAME", help="Discard the unfinished training of base, an expert or a router; repeatable."),
]
BadRows = Annotated[
    str | None,
    Option(metavar="stop|skip", help="Stop at a row that cannot be used, or skip the row (default: the recipe's)."),
]
MaxBad = Annotated[str | None, Option(metavar="N", help="Maximum number of skipped rows (default: the recipe's).")]
RunOrMixture = Annotated[str, Argument(metavar="PATH", help="Run directory, mixture folder or org/name of the hub.")]
AnyModel = Annotated[
    str,
    Argument(
        metavar="PATH", help="Run, mixture, base, merge or one expert: a folder, org/name of the hub, or shipped:tiny."
    ),
]
BaseOfExpert = Annotated[
    str | None,
    Option(
        "--base", metavar="PATH", help="Base of the one expert at PATH (default: the base around it or named in it)."
    ),
]
Raw = Annotated[bool, Option("--raw", help="Read texts as they are, without the chat template of the base.")]
Answering = Annotated[
    str | None, Option(metavar="NAME", help="Expert that answers, or base (default: the router's choice).")
]
Ram = Annotated[
    str | None,
    Option(metavar="SIZE", help="Memory limit, for example 2GB; other experts stay on disk (default: no limit)."),
]
Vram = Annotated[
    str | None, Option(metavar="SIZE", help="Memory limit of the accelerator, for example 17GB (default: no limit).")
]
Device = Annotated[
    str,
    Option(metavar="NAME", help="Device: cpu, cuda, cuda:1, mps, xpu, dml, ...; auto: an accelerator, else the CPU."),
]
Dtype = Annotated[
    str,
    Option(metavar="TYPE", help="Type to compute in: float32, bfloat16, float16; auto: bfloat16 where it is fast."),
]
RecipeDevice = Annotated[
    str | None, Option(metavar="NAME", help="Device: auto, cpu, cuda, cuda:1, mps, xpu, ... (default: the recipe's).")
]
RecipeDtype = Annotated[
    str | None,
    Option(metavar="TYPE", help="Type to compute in: float32, bfloat16, float16, auto (default: the recipe's)."),
]
Temperature = Annotated[float, Option(help="Sampling temperature; 0 takes the most probable token.")]
TopP = Annotated[float, Option(help="Sample from the most probable tokens with this total probability.")]
TopK = Annotated[int, Option(help="Sample from this number of most probable tokens; 0: from all.")]
Seed = Annotated[int | None, Option(help="Seed of the sampling (default: a new seed each time).")]
Stop = Annotated[list[str] | None, Option(metavar="TEXT", help="End before this text; repeatable.")]
TraceFile = Annotated[
    Path | None, Option(metavar="FILE", help="Append decisions and corrections to FILE (default: no trace).")
]
TraceTexts = Annotated[bool, Option(help="Write prompts, not only their SHA-256, into the trace.")]
Prompts = Annotated[
    list[str] | None,
    Argument(
        metavar="PROMPT",
        help="Texts to read; -, the default, answers each line of stdin as it comes, in one process.",
    ),
]
Messages = Annotated[
    str | None, Option("--messages", metavar="FILE", help="Read the conversation in a JSON list of {role, content}.")
]
Benched = Literal["routing"]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of text.")]


@app.callback(invoke_without_command=True)
def before_any_verb(
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, Option("--debug", help="Show tracebacks and all warnings; allowed anywhere.")] = False,
) -> None:
    if version:
        typer.echo(f"moesaic {moesaic.__version__}")
        raise typer.Exit


@dataclass(frozen=True)
class Work:
    """A recipe with its overrides, the run directory, and whether progress is hidden."""

    recipe: "Recipe"
    root: Path
    quiet: bool

    def do(self, verb: Callable[..., T], *arguments: Any, **settings: Any) -> T:
        """Call a verb of `moesaic.stages` with the recipe, the run directory, `arguments` and a progress display."""
        from moesaic.cli.progress import shown

        with shown(self.quiet) as progress:
            return verb(self.recipe, self.root, *arguments, progress, **settings)


@contextmanager
def elsewhere(out: Path) -> Iterator[None]:
    """Name --out in errors of a disk on which the run directory cannot be written."""
    try:
        yield
    except StorageError as error:
        if error.path is not None and Path(error.path).absolute().is_relative_to(out.absolute()):
            error.hint = "; ".join(filter(None, [error.hint, "--out DIR writes the run elsewhere"]))
        raise


@contextmanager
def work_on(
    recipe: str, overrides: list[str] | None, shorthands: Mapping[str, str | None], out: Path, quiet: bool
) -> Iterator[Work]:
    """Read a recipe with the shared options of its verbs, and locate the errors of the work in it.

    `shorthands`: values of keys of the recipe that have options of their own.
    """
    from moesaic.sections.named_recipes import recipe_at

    path = recipe_at(recipe)  # before torch is imported
    written = [f"{key}={value}" for key, value in shorthands.items() if value is not None]
    from moesaic.recipe import read_document

    found, document = read_document(path, [*(overrides or ()), *written])
    with document.locating(), elsewhere(out):
        yield Work(found, out / found.name, quiet)


def recipe_verb(verb: Callable[..., None]) -> Callable[..., None]:
    """Register a verb of a recipe: a function of a `Work` and its own options, which get the shared options added."""

    def command(
        recipe: RecipePath,
        overrides: Overrides = None,
        bad_rows: BadRows = None,
        max_bad: MaxBad = None,
        device: RecipeDevice = None,
        dtype: RecipeDtype = None,
        out: Out = RUNS,
        quiet: Quiet = False,
        **own: Any,
    ) -> None:
        shorthands = {"bad_rows": bad_rows, "max_bad": max_bad, "device": device, "dtype": dtype}
        with work_on(recipe, overrides, shorthands, out, quiet) as work:
            verb(work, **own)

    place, overrides, *shared, _ = signature(command).parameters.values()
    _, *own = signature(verb).parameters.values()
    command.__signature__ = Signature([place, overrides, *own, *shared])  # type: ignore[attr-defined]
    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    return app.command()(command)


@recipe_verb
def run(work: Work, strict: Strict = False, restart: Restart = None) -> None:
    """Run all stages of a recipe. Finished parts are skipped."""
    from moesaic.cli.printing import show_run

    show_run(work.do(moesaic.run, strict=strict, restart=restart or ()), work.root)


@app.command()
def study(
    path: Annotated[str, Argument(metavar="STUDY", help="YAML file of the study.")],
    overrides: Annotated[
        list[str] | None, Argument(metavar="KEY=VALUE", help="Replace keys of the study, for example seeds=5.")
    ] = None,
    strict: Strict = False,
    restart: Annotated[
        list[str] | None, Option(metavar="CELL", help="Discard the unfinished training of a cell; repeatable.")
    ] = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Train architectures from nothing and compare them. Finished trainings are skipped."""
    from moesaic.cli.progress import shown
    from moesaic.cli.studying import show_study
    from moesaic.lab.running import run_study
    from moesaic.lab.study import read_study

    found, document = read_study(path, overrides or ())
    root = out / found.name
    with document.locating(), elsewhere(out), shown(quiet) as progress:
        figures = run_study(found, root, progress, strict=strict, restart=restart or ())
    show_study(figures, root)


@recipe_verb
def pretrain(work: Work, strict: Strict = False, restart: Restart = None) -> None:
    """Pretrain or fetch the base.

    `torchrun --nproc-per-node N -m moesaic pretrain RECIPE` pretrains it in N processes.
    """
    from moesaic import stages

    if folder := work.do(stages.pretrain, strict=strict, restart=restart or ()):
        typer.echo(folder)


@recipe_verb
def train_expert(
    work: Work,
    expert: ExpertNames = None,
    continuous: Annotated[
        bool, Option("--continuous", help="Go on: train the experts in turn, and keep each that is clearly better.")
    ] = False,
    rounds: Annotated[
        int | None,
        Option(metavar="N", help="With --continuous: end when N rounds are done in all (default: a signal ends it)."),
    ] = None,
    strict: Strict = False,
    restart: Restart = None,
) -> None:
    """Train the experts. The base must exist already.

    With --continuous, train them further round after round, pick up rows that are appended to their files, and keep
    router and mixture current.
    """
    if rounds is not None and not continuous:
        raise typer.BadParameter("means nothing without --continuous", param_hint="--rounds")
    from moesaic import stages

    how: dict[str, Any] = {"continuous": continuous, "rounds": rounds, "strict": strict, "restart": restart or ()}
    folders = work.do(stages.train_expert, expert or [], **how)
    for name, folder in folders.items():
        typer.echo(f"{name}  {folder}")


@recipe_verb
def verify_expert(work: Work, expert: ExpertNames = None) -> None:
    """Evaluate trained experts again. They are read from disk."""
    from moesaic import stages
    from moesaic.cli.printing import show_verified

    show_verified(work.do(stages.verify_expert, expert or []))


@recipe_verb
def train_router(work: Work, strict: Strict = False, restart: Restart = None) -> None:
    """Train the router, and routers to compare it with."""
    from moesaic import stages

    typer.echo(work.do(stages.train_router, strict=strict, restart=restart or ()))


@recipe_verb
def compose(work: Work) -> None:
    """Join base, experts and router into one folder."""
    from moesaic import stages

    typer.echo(work.do(stages.compose))


@recipe_verb
def continual(work: Work, strict: Strict = False, restart: Restart = None) -> None:
    """Learn tasks in sequence, and measure the forgetting.

    The experts are the tasks, in their order. Compared are one expert that is trained on task after task, the same with
    a tenth of the earlier rows, and an expert for each task with a router that is trained anew after each.
    """
    from moesaic import stages
    from moesaic.cli.printing import show_continual

    show_continual(work.do(stages.continual, strict=strict, restart=restart or ()), work.root)


@app.command()
def bench(
    what: Annotated[Benched, Argument(metavar="routing", help="What to compare: routers over the same experts.")],
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: AsJson = False,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    device: RecipeDevice = None,
    dtype: RecipeDtype = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Compare routers over the same experts.

    With routers of every level, merges and oracles; the experts are those of a recipe.
    """
    from moesaic import stages
    from moesaic.cli.printing import show_routing

    shorthands = {"bad_rows": bad_rows, "max_bad": max_bad, "device": device, "dtype": dtype}
    with work_on(recipe, overrides, shorthands, out, quiet) as work:
        show_routing(work.do(stages.bench_routing), as_json)


@app.command()
def evaluate(
    recipe: Annotated[
        str,
        Argument(
            metavar="RECIPE",
            help="Recipe of a finished run; with --unseen or --lm-eval any model, as `generate` takes.",
        ),
    ],
    overrides: Overrides = None,
    unseen: Annotated[
        list[str] | None,
        Option(metavar="FILE", help="Score the model on these rows, beside its base; repeatable (default: none)."),
    ] = None,
    lm_eval: Annotated[
        str | None,
        Option(metavar="TASKS", help="Evaluate base, experts and mixture on these tasks of lm-evaluation-harness."),
    ] = None,
    lm_eval_include: Annotated[
        Path | None, Option(metavar="DIR", help="With --lm-eval: folder of more tasks (default: none).")
    ] = None,
    lm_eval_samples: Annotated[
        Path | None,
        Option(metavar="FILE", help="With --lm-eval: write every row, and who answered it, to FILE (default: none)."),
    ] = None,
    limit: Annotated[
        int | None, Option(help="With --unseen or --lm-eval: the first rows of each file or task (default: all).")
    ] = None,
    base: BaseOfExpert = None,
    as_json: AsJson = False,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    device: RecipeDevice = None,
    dtype: RecipeDtype = None,
    out: Out = RUNS,
    quiet: Quiet = False,
) -> None:
    """Compare a mixture with its parts and controls.

    With --unseen, score any model on files of rows: a mixture or an expert beside its base. With --lm-eval, evaluate
    any model on tasks of lm-evaluation-harness, separated by commas.
    """
    tasks: dict[str, Any] = {"include": lm_eval_include, "samples": lm_eval_samples}
    for name, file in tasks.items():
        if file is not None and lm_eval is None:
            raise typer.BadParameter("means nothing without --lm-eval", param_hint=f"--lm-eval-{name}")
    if unseen and lm_eval is not None:
        raise typer.BadParameter("give files or tasks, not both", param_hint="--lm-eval")
    given = {"device": device, "dtype": dtype}
    how: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if lm_eval is not None:
        place = existing(recipe)
        from moesaic.cli.scoring import show_tasks
        from moesaic.evaluate.harness import judge_tasks

        wanted = [name.strip() for name in lm_eval.split(",")]
        show_tasks(judge_tasks(place, wanted, base=base, limit=limit, **tasks, **how), as_json)
        return
    if unseen:
        place = existing(recipe)
        from moesaic.cli.scoring import show_unseen
        from moesaic.evaluate.unseen import judge_unseen

        show_unseen(judge_unseen(place, unseen, base=base, limit=limit, **how), as_json)
        return
    for option, value in (("--limit", limit), ("--base", base), ("--json", as_json or None)):
        if value is not None:
            raise typer.BadParameter("means nothing without --unseen or --lm-eval", param_hint=option)
    from moesaic import stages
    from moesaic.cli.printing import show_evaluation

    with work_on(recipe, overrides, {"bad_rows": bad_rows, "max_bad": max_bad, **how}, out, quiet) as work:
        show_evaluation(work.do(stages.evaluate))


def asked(prompts: Prompts = None, messages: Messages = None, raw: Raw = False) -> dict[str, Any]:
    """Prompts or a conversation, and how texts are read."""
    if messages and prompts:
        raise typer.BadParameter("give prompts or a conversation, not both", param_hint="--messages")
    return {"prompts": prompts, "messages": messages, "raw": raw}


def sampled(
    temperature: Temperature = 0.0, top_p: TopP = 1.0, top_k: TopK = 0, seed: Seed = None, stop: Stop = None
) -> dict[str, Any]:
    """Settings of an answer, as `generate` of a model takes them."""
    settings = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "seed": seed}
    return {**settings, "stop": tuple(stop or ())}


def loaded(
    base: BaseOfExpert = None,
    trace: TraceFile = None,
    trace_texts: TraceTexts = False,
    ram: Ram = None,
    vram: Vram = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> dict[str, Any]:
    """How a model that answers is loaded, as `moesaic.load` takes it."""
    where = {"ram": ram, "vram": vram, "device": device, "dtype": dtype}
    return {"base": base, "trace": trace, "trace_texts": trace_texts, **where}


def with_options(*shared: Callable[..., dict[str, Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb the options of these functions: its parameter with the name of one gets what that one returns."""
    named = {one.__name__: signature(one).parameters for one in shared}

    def wrapped(verb: Callable[..., None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            for one in shared:
                given[one.__name__] = one(**{name: given.pop(name) for name in named[one.__name__]})
            verb(**given)

        own = signature(verb).parameters
        every = [each for name, one in own.items() for each in named.get(name, {name: one}).values()]
        keywords = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in every]
        command.__signature__ = Signature(keywords)  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = verb.__name__, verb.__doc__
        return command

    return wrapped


@app.command(cls=Prompted)
@with_options(asked, sampled, loaded)
def generate(
    path: AnyModel,
    asked: dict[str, Any],
    *,
    max_new_tokens: Annotated[
        int | None, Option(help="Maximum number of new tokens (default: 128, or half of a smaller context).")
    ] = None,
    sampled: dict[str, Any],
    expert: Answering = None,
    loaded: dict[str, Any],
    as_json: AsJson = False,
) -> None:
    """Continue prompts. A mixture also prints which expert answered."""
    place = existing(path)
    from moesaic.cli.generating import answer, show_traffic, wanted

    given = wanted(asked["prompts"], asked["messages"])
    settings = {**sampled, "max_new_tokens": max_new_tokens, "expert": expert, "raw": asked["raw"]}
    with moesaic.load(place, **loaded) as model:
        answer(model, given, settings, as_json)
        if loaded["ram"] or loaded["vram"]:
            show_traffic(model.traffic)


@app.command(cls=Prompted)
@with_options(asked)
def route(
    path: RunOrMixture,
    asked: dict[str, Any],
    ram: Ram = None,
    vram: Vram = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Print the router's decision about prompts. Nothing is generated."""
    place = existing(path)
    from moesaic.cli.generating import decide, wanted

    given = wanted(asked["prompts"], asked["messages"])
    model = moesaic.load(place, ram=ram, vram=vram, device=device, dtype=dtype)
    decide(model, given, asked["raw"], as_json)


@app.command()
@with_options(sampled, loaded)
def chat(
    path: AnyModel,
    *,
    max_new_tokens: Annotated[
        int | None, Option(help="Maximum number of tokens of an answer (default: 512, or half of a smaller context).")
    ] = None,
    sampled: dict[str, Any],
    expert: Answering = None,
    loaded: dict[str, Any],
) -> None:
    """Talk to a model. A mixture says under each answer which expert wrote it.

    /help lists the commands: another expert, a comparison, a correction. From a pipe, each line is a message.
    """
    place = existing(path)
    from moesaic.cli.chat import talk_to
    from moesaic.cli.generating import show_traffic

    with moesaic.load(place, **loaded) as model:
        talk_to(model.writer, {**sampled, "max_new_tokens": max_new_tokens}, expert)
        if loaded["ram"] or loaded["vram"]:
            show_traffic(model.traffic)


@app.command(cls=Prompted)
def classify(
    path: RunOrMixture,
    text: Annotated[str, Argument(help="Text to classify.")],
    second: Annotated[str | None, Argument(help="Second text, for tasks about two texts (default: none).")] = None,
    expert: Answering = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Classify a text, or two. Prints which expert answered."""
    place, texts = existing(path), (text,) if second is None else (text, second)
    from moesaic.cli.classifying import show_label

    model = moesaic.load(place, device=device, dtype=dtype)
    show_label(model.classify(texts, expert=expert), as_json)


@app.command()
def inspect(
    path: Annotated[
        str, Argument(metavar="PATH", help="Run directory, mixture, expert, router, base, PEFT adapter or trace.")
    ],
    text: Annotated[str | None, Option(help="Also show how the mixture routes this text (default: no text).")] = None,
    raw: Raw = False,
    base: BaseOfExpert = None,
    ram: Ram = None,
    vram: Vram = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Describe a folder or a trace. Files are checked against their hashes."""
    if text is None and (ram or vram):
        raise typer.BadParameter("a memory limit needs --text: without a text nothing is loaded", param_hint="--ram")
    for option, given in {"--raw": raw, "--base": base}.items():
        if text is None and given:
            raise typer.BadParameter("means nothing without --text", param_hint=option)
    from moesaic.cli.artefacts import show

    show(path, text, as_json, raw, base=base, ram=ram, vram=vram, device=device, dtype=dtype)


@app.command()
def export(
    place: Annotated[
        str,
        Argument(metavar="PATH", help="Model or expert: a folder, a .gguf file, org/name of the hub or shipped:tiny."),
    ],
    out: Annotated[Path, Argument(metavar="OUT", help="New folder to write; for gguf a new file, NAME.gguf.")],
    format: Annotated[
        str,
        Option(
            metavar="peft|dense|gguf|...",
            help="One of peft, dense, gguf, mixtral, mixtral-packed, qwen2-moe, qwen3-moe.",
        ),
    ] = "peft",
    base: BaseOfExpert = None,
    expert: Annotated[
        int | None,
        Option(metavar="N", help="Take this expert out of a sparse model, as a dense model (default: none)."),
    ] = None,
    type: Annotated[
        str | None,
        Option(metavar="f32|f16|bf16|q8_0", help="Type of the matrices in a GGUF file (default: as they are stored)."),
    ] = None,
) -> None:
    """Write a model or an expert for other programs.

    peft: an expert as a LoRA adapter; tensor trains become LoRA. dense: a model of transformers, with an expert merged
    into its base. gguf: a file of llama.cpp, of a model or a LoRA adapter. The others are layouts of sparse models.
    """
    from moesaic.compose.export import export as write

    typer.echo(write(existing(place), out, format, base=base, expert=expert, type=type))


@app.command()
def report(
    run: Annotated[Path, Argument(metavar="RUN", help="Run directory of an evaluated run.")],
    other: Annotated[Path | None, Argument(metavar="OTHER", help="Second run to compare (default: none).")] = None,
    to: Annotated[Path | None, Option(metavar="FILE", help="File to write (default: in RUN/report).")] = None,
    trace: Annotated[
        Path | None, Option(metavar="FILE", help="Add the decisions of this routing trace (default: none).")
    ] = None,
) -> None:
    """Write a run as a page for the browser."""
    from moesaic.report import compare_reports, write_report

    if other and trace:
        raise typer.BadParameter("a comparison of two runs shows no trace", param_hint="--trace")
    typer.echo(compare_reports(run, other, to) if other else write_report(run, to, trace))


@app.command()
def replay(
    trace: Annotated[Path, Argument(metavar="TRACE", help="Trace of `generate --trace FILE --trace-texts`.")],
    router: Annotated[
        Path, Option(metavar="PATH", help="Folder of the router to try, or of a mixture or run with a router.")
    ],
    base: Annotated[
        str | None, Option(metavar="PATH", help="Base that the router reads (default: the base in a folder above).")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Compare another router's decisions with recorded ones."""
    from moesaic.cli.traces import show_replay
    from moesaic.evaluate.replay import replay

    show_replay(replay(trace, router, base, device=device, dtype=dtype), as_json)


@app.command()
def adopt(
    experts: Annotated[
        list[str] | None,
        Argument(metavar="[NAME=]PATH", help="PEFT adapter or fine-tuned model of the base: a folder or org/name."),
    ] = None,
    base: Annotated[
        str | None, Option(metavar="PATH", help="Base of the experts, required with --out; with --into, its new place.")
    ] = None,
    embed: Annotated[
        bool, Option("--embed", help="Copy the base into the mixture (default: refer to its folder or commit).")
    ] = False,
    out: Annotated[Path | None, Option(metavar="DIR", help="New folder for a new mixture.")] = None,
    into: Annotated[Path | None, Option(metavar="DIR", help="Folder of an adopted mixture to change.")] = None,
    prompts: Annotated[
        list[str] | None,
        Option(metavar="NAME=FILE", help="Prompts for an expert, about ten: lines, or rows of a .jsonl; repeatable."),
    ] = None,
    group: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=EXPERT,EXPERT",
            help="Group of experts: the router chooses a group, then an expert in it; repeatable (default: no groups).",
        ),
    ] = None,
    drop: Annotated[list[str] | None, Option(metavar="NAME", help="Remove this expert; repeatable.")] = None,
    disable: Annotated[
        list[str] | None, Option(metavar="NAME", help="Exclude this expert from routing; repeatable.")
    ] = None,
    enable: Annotated[
        list[str] | None, Option(metavar="NAME", help="Include a disabled expert again; repeatable.")
    ] = None,
    corrections: Annotated[
        Path | None,
        Option(metavar="FILE", help="With --into: teach the router the corrected prompts of this trace."),
    ] = None,
    kind: Annotated[
        str | None,
        Option(metavar="lora|ffn|model", help="Kind of expert made from a fine-tuned model (default: lora)."),
    ] = None,
    rank: Annotated[int | None, Option(help="Rank of the LoRA made from a fine-tuned model (default: 16).")] = None,
    ignore_rest: Annotated[
        bool, Option("--ignore-rest", help="With --kind ffn: ignore differences outside the feed-forward blocks.")
    ] = False,
    level: Annotated[
        str | None,
        Option(metavar="sequence|token", help="With --kind ffn: one decision a prompt, or one a token in every layer."),
    ] = None,
    name: Annotated[str | None, Option(help="Name of the mixture (default: the name of the folder).")] = None,
    abstain: Annotated[
        str | None,
        Option(
            help="Prompts left to the base: auto, off, or the least probability of belonging to an expert, for example "
            "0.9 (default: auto)."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a mixture of existing experts, or change one. It takes seconds."""
    from moesaic.cli.adopting import abstention, adopted, show_adoption

    common: dict[str, Any] = {
        "experts": experts or [],
        "prompts": prompts or [],
        "groups": group or [],
        "rank": rank,
        "ignore_rest": ignore_rest,
    }
    common |= {"base": base, "embed": embed, "device": device, "dtype": dtype}
    new = {"kind": kind, "level": level, "name": name, "abstain": abstention(abstain)}
    changes: dict[str, Any] = {"drop": drop or [], "disable": disable or [], "enable": enable or []}
    changes |= {"corrections": corrections}
    show_adoption(adopted(out, into, common, new, changes, quiet), into or out, as_json)


@app.command()
def add_expert(
    mixture: Annotated[Path, Argument(metavar="MIXTURE", help="Folder of an adopted mixture.")],
    recipe: RecipePath,
    overrides: Overrides = None,
    expert: ExpertNames = None,
    bad_rows: BadRows = None,
    max_bad: MaxBad = None,
    device: RecipeDevice = None,
    dtype: RecipeDtype = None,
    strict: Strict = False,
    restart: Restart = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train experts over a mixture's base and add them.

    The experts are those of a recipe, whose base and router are not used. The other experts stay as they are."""
    shorthands = {"bad_rows": bad_rows, "max_bad": max_bad, "device": device, "dtype": dtype}
    with work_on(recipe, overrides, shorthands, mixture / "training", quiet) as work:
        from moesaic.cli.adopting import show_adoption
        from moesaic.cli.progress import shown

        with shown(quiet) as progress:
            how: dict[str, Any] = {"progress": progress, "strict": strict, "restart": restart or ()}
            made = moesaic.add_expert(mixture, work.recipe, expert or (), **how)
    show_adoption(made, mixture, as_json)


@app.command()
def merge(
    models: Annotated[
        list[str], Argument(metavar="MODEL... OUT", help="Models of equal shapes, and the new folder of their average.")
    ],
    weights: Annotated[str | None, Option(metavar="W,W,...", help="Weights of the models (default: equal).")] = None,
    only: Annotated[
        str | None,
        Option(metavar="shared", help="Keep the first model's feed-forward blocks (default: average all tensors)."),
    ] = None,
) -> None:
    """Average models into one dense base."""
    from moesaic.cli.adopting import merged

    typer.echo(merged(models, weights, only))


@app.command()
def tokenize(
    sources: Annotated[
        list[str],
        Argument(metavar="FILE", help="Files of rows, or hub:OWNER/NAME/CONFIG/SPLIT, which is streamed."),
    ],
    out: Annotated[Path, Option("--out", metavar="FOLDER", help="New folder of the shards.")],
    vocab_size: Annotated[
        int | None, Option(metavar="N", help="Train a tokenizer of this size on the first texts.")
    ] = None,
    tokenizer: Annotated[
        Path | None, Option(metavar="FOLDER", help="Use the tokenizer in this folder instead.")
    ] = None,
    unseen: Annotated[float, Option(help="Share of the texts to keep for validation.")] = 0.01,
    limit: Annotated[int | None, Option(metavar="N", help="Rows to read of each file (default: all).")] = None,
) -> None:
    """Write text as token shards, for `base.pretrain.data`."""
    from moesaic.data.tokenizing import tokenize

    found = tokenize(sources, out, vocab_size, tokenizer, unseen, limit)
    for name, of in (("train", "to learn from"), ("unseen", "to validate on")):
        typer.echo(f"{found[name]['tokens']:,} tokens of {found[name]['texts']:,} texts {of}")
    typer.echo(f"{found['repeated']:,} texts were repeated; vocab_size {found['vocab_size']}: {out}")


@app.command()
def upcycle(
    models: Annotated[
        list[str],
        Argument(
            metavar="[NAME=]MODEL... OUT",
            help="Fine-tunes of one base, one model with --copies, or one file of mergekit-moe; and the new folder.",
        ),
    ],
    base: Annotated[
        str | None, Option(metavar="PATH", help="Model of all but the feed-forward blocks (default: the first model).")
    ] = None,
    gate: Annotated[
        str | None,
        Option(
            metavar="ridge|means|...",
            help="Rows of the routers: ridge, means, hidden, cheap_embed, random or uniform_random "
            "(default: ridge with prompts, otherwise random).",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        Option(
            metavar="NAME=FILE", help="Prompts for a model: lines, or rows of a .jsonl; repeatable (default: none)."
        ),
    ] = None,
    experts_per_token: Annotated[int, Option(metavar="K", help="Experts, or copies, that a token passes.")] = 2,
    copies: Annotated[
        int | None, Option(metavar="N", help="Make the experts of N copies of one model (default: of several models).")
    ] = None,
    slices: Annotated[int, Option(metavar="N", help="Cut each copy into N smaller experts.")] = 1,
    drop: Annotated[float, Option(metavar="SHARE", help="Draw this share of each copy's inner columns anew.")] = 0.0,
    format: Annotated[
        str | None,
        Option(
            metavar="mixtral|...", help="One of mixtral, mixtral-packed, qwen2-moe, qwen3-moe (default: by the models)."
        ),
    ] = None,
    seed: Annotated[int, Option(help="Seed of what is drawn.")] = 0,
) -> None:
    """Make a sparse model of dense ones, without a training. In every layer a router routes every token.

    MODEL may be one YAML file of mergekit-moe, which decides all but --format and --seed.
    """
    from moesaic.cli.adopting import upcycled

    given = {"base": base, "gate": gate, "experts_per_token": experts_per_token, "copies": copies, "slices": slices}
    typer.echo(upcycled(models, prompts or [], {**given, "drop": drop, "format": format, "seed": seed}))


@app.command()
def plan(
    models: Annotated[
        list[str],
        Argument(metavar="MODEL", help="Models, adapters or sizes such as llama-3-8b; or one recipe or mixture."),
    ],
    base: Annotated[
        str | None, Option(metavar="MODEL", help="Shared base (default: the first model, for whole models).")
    ] = None,
    site: Annotated[
        str | None,
        Option(metavar="model|ffn|linear", help="Where experts meet (default: linear for adapters, otherwise model)."),
    ] = None,
    vram: Annotated[
        str | None,
        Option(metavar="SIZE", help="Memory of all devices, 17GB, or of each device, 9GB,8GB (default: no limit)."),
    ] = None,
    ram: Annotated[
        str | None, Option(metavar="SIZE", help="Memory of the host, for example 32GB (default: no limit).")
    ] = None,
    devices: Annotated[int, Option(help="Number of devices with equal memory.")] = 1,
    hosts: Annotated[int, Option(help="Number of machines that share the experts, each with --vram and --ram.")] = 1,
    context: Annotated[
        int | None, Option(help="Tokens of a row (default: 4096, or a shorter context of the model).")
    ] = None,
    batch: Annotated[int, Option(help="Rows in a batch.")] = 1,
    training: Annotated[bool, Option("--training", help="Add the memory that training an expert needs.")] = False,
    recompute: Annotated[
        bool, Option("--recompute", help="With --training, plan layers that recompute their activations.")
    ] = False,
    rank: Annotated[int | None, Option(metavar="N", help="Add a LoRA expert of this rank on all targets.")] = None,
    bits: Annotated[
        int | None, Option(metavar="8|4", help="Bits of each value in the layers of the base (default: all).")
    ] = None,
    dtype: Annotated[
        str | None, Option(metavar="TYPE", help="Type to compute in: float32, bfloat16, ... (default: as loaded).")
    ] = None,
    active: Annotated[
        int | None, Option(help="Experts that answer a row (default: as many as the router selects).")
    ] = None,
    bandwidth: Annotated[
        str | None, Option(metavar="SIZE,SIZE", help="Bytes per second from memory and from disk (default: 12GB,2GB).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check whether models fit each other and a memory limit. Nothing is loaded."""
    from moesaic.cli.planning import rates, show_plan

    sizes: dict[str, Any] = {
        "base": base,
        "site": site,
        "dtype": dtype,
        "active": active,
        "context": context,
        "batch": batch,
        "rank": rank,
        "recompute": recompute,
        "bits": bits,
    }
    room: dict[str, Any] = {"vram": vram, "ram": ram, "devices": devices, "hosts": hosts, **rates(bandwidth)}
    show_plan(moesaic.plan(*models, training=training, **sizes, **room), as_json)


@app.command()
def push(
    path: Annotated[str, Argument(metavar="PATH", help="Run directory or mixture folder.")],
    repository: Annotated[str, Argument(metavar="OWNER/NAME", help="Repository of the hub; created if missing.")],
    private: Annotated[
        bool | None, Option(help="Visibility of a new repository (default: the owner's setting).")
    ] = None,
    revision: Annotated[
        str | None, Option(metavar="BRANCH", help="Branch; created if missing (default: main).")
    ] = None,
    license: Annotated[str | None, Option(metavar="ID", help="License in the model card (default: none).")] = None,
    embed: Annotated[
        bool | None, Option(help="Upload the base too (default: only a base that is not of the hub).")
    ] = None,
) -> None:
    """Upload a mixture to the Hugging Face hub.

    The upload includes a model card. Log in first: hf auth login.
    """
    model = moesaic.load(existing(path), device="cpu")
    at = model.push_to_hub(repository, private=private, revision=revision, license=license, embed=embed)
    typer.echo(at)


@app.command()
@with_options(loaded)
def serve(
    path: AnyModel,
    *,
    name: Annotated[str | None, Option(help="Name of the model in requests (default: the last word of PATH).")] = None,
    host: Annotated[str, Option(help="Address to listen at; with an API key, any.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen at; 0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        Option(metavar="FILE", help="File of the key that requests must send (default: MOESAIC_API_KEY, or no key)."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, Option(metavar="NAME", help="Host name of this server in requests; repeatable.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, Option(metavar="URL", help="Origin of web pages that may ask this server; repeatable.")
    ] = None,
    rows: Annotated[int, Option(min=1, help="Answers written at once.")] = 16,
    queue: Annotated[int, Option(min=0, help="Answers that may wait besides; more requests get 429.")] = 64,
    cache: Annotated[
        str | None,
        Option(metavar="SIZE", help="Limit of cached keys and values, for example 2GB (default: 8,192 tokens)."),
    ] = None,
    prefill: Annotated[int, Option(min=1, help="Tokens of a prompt read between two steps.")] = 256,
    max_new_tokens: Annotated[int, Option(min=1, help="Maximum number of new tokens of an answer.")] = 1024,
    margin: Annotated[
        float, Option(min=0, max=1, help="Probability by which another expert must win to take over a conversation.")
    ] = 0.05,
    seconds: Annotated[float, Option(min=0.1, help="Maximum time of an answer.")] = 600.0,
    drain: Annotated[float, Option(min=0, help="Time for answers under way after SIGTERM, in seconds.")] = 30.0,
    body: Annotated[str, Option(metavar="SIZE", help="Maximum size of a request.")] = "1MB",
    loaded: dict[str, Any],
) -> None:
    """Serve a model with the routes of OpenAI's API. Each answer says which expert gave it."""
    place = existing(path)
    from moesaic.cli.serving import entry_of, serving, sized

    model = {"at": place, "name": name, **loaded}
    limits: dict[str, Any] = {"rows": rows, "queue": queue, "memory": sized(cache, "cache"), "prefill": prefill}
    limits |= {"new_tokens": max_new_tokens, "margin": margin}
    entry = entry_of(api_key_file, allow_host or [], allow_origin or [], sized(body, "body"))
    serving(model, limits, {"host": host, "port": port, "seconds": seconds, "drain": drain, "entry": entry})


@app.command()
def init(
    file: Annotated[Path, Argument(metavar="[FILE]", help="Recipe to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a recipe with rows, to start from."""
    from moesaic.cli.starting import start

    for path in start(file):
        typer.echo(path)
    typer.echo(f"Next: moesaic run {shlex.quote(str(file))}")


@app.command()
def recipe_from(
    config: Annotated[Path, Argument(metavar="CONFIG", help="JSON config of a gated pair of models.")],
    train: Annotated[
        list[str] | None, Option(metavar="NAME=FILE", help="Training rows of model1 or model2; repeatable.")
    ] = None,
    test: Annotated[
        list[str] | None, Option(metavar="NAME=FILE", help="Test rows of model1 or model2; repeatable.")
    ] = None,
    name: Annotated[str | None, Option(help="Name of the run (default: the config's file name).")] = None,
) -> None:
    """Print the recipe of a gated pair's config."""
    from moesaic.cli.printing import harmless
    from moesaic.migrate import files_by_name, translated

    found = translated(config, files_by_name("train", train or []), files_by_name("test", test or []), name)
    for note in found.notes:
        typer.echo(harmless(f"# {note}"))
    typer.echo(found.text, nl=False)


@app.command()
def recipe(
    schema: Annotated[bool, Option("--schema", help="Print the JSON schema of recipes, for editors.")],
    path: Annotated[Path | None, Argument(metavar="[PATH]", help="File to write (default: print the schema).")] = None,
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
    """Run the command line of this process, or answer the shell that asks for completions."""
    if COMPLETING in os.environ:
        app(prog_name="moesaic")
    arguments, debug = without_debug(sys.argv[1:])
    as_json = "--json" in arguments[: end_of_options(arguments)]
    for stream, encoding in ((sys.stdout, "utf-8" if as_json else None), (sys.stderr, None)):  # JSON is UTF-8
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors="replace")  # print ? on a terminal without tick marks
    if not sys.stderr.isatty() or {"-q", "--quiet"} & {*arguments}:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the hub's client is first imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # each takes its memory when numpy is first imported
    if not debug and not sys.warnoptions:
        show_own_warnings()
    sys.exit(status(arguments, debug))


def show_own_warnings() -> None:
    """Print each MoesaicWarning once, as a line on stderr, and hide all other warnings of Python."""
    warnings.simplefilter("ignore")
    if not HELPING:
        warnings.simplefilter("once", MoesaicWarning)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {printable(str(message))}", file=sys.stderr)
    # Processes that train stay silent: this process reads the same files and warns of them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


def without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Remove --debug anywhere before a --; also returns whether --debug was given."""
    end = end_of_options(arguments)
    others = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*others, *arguments[end:]], len(others) < end


def end_of_options(arguments: list[str]) -> int:
    """The position of the first --, behind which all words are texts."""
    return arguments.index("--") if "--" in arguments else len(arguments)


@contextmanager
def options_named(context: Any) -> Iterator[None]:
    """Name the option, as it is typed, in errors that name the argument of a Python function."""
    try:
        yield
    except MoesaicError as error:
        verb = context.command.commands.get(context.invoked_subcommand)
        options = {one.name: one.opts[0] for one in verb.params if one.param_type_name == "option"} if verb else {}
        if error.path is None:
            error.field = options.get(error.field, error.field)
        raise


def status(arguments: list[str], debug: bool = False) -> int:
    """Run a command line and return its exit status; a failure prints one line on stderr."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("moesaic", arguments or ["--help"]) as context, options_named(context):
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as done:
        return done.exit_code
    except (BrokenPipeError, SystemExit) as left:
        if not isinstance(left, BrokenPipeError) and not isinstance(left.__context__, BrokenPipeError):
            raise
        drop_output()  # rich exits with 1 when the reader of a pipe has closed it
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EIO):
            drop_output()
            error = StorageError("cannot write to stdout", got=error.strerror, hint="check where stdout goes")
        if debug:
            traceback.print_exc()
        ours = of_the_system(error)
        code, message = explained(ours)
        told = HELPING and isinstance(ours, RecipeError | RanksError | KeyboardInterrupt)  # by the first process
        if not told:
            typer.echo(" ".join(message.split()), err=True)
        elif not isinstance(ours, KeyboardInterrupt):
            time.sleep(SPEECH)  # torchrun ends that one with this one
        return code


def of_the_system(error: BaseException) -> BaseException:
    """The error of ours for one of the system: of files, and of memory in the many forms that its end takes."""
    text, number = str(error), getattr(error, "errno", None)
    starved = isinstance(error, SystemError) and "without exception set" in text  # as libraries end without memory
    starved |= isinstance(error, ImportError | RuntimeError) and any(some in text for some in STARVED)
    if starved or isinstance(error, MemoryError) or number == errno.ENOMEM:
        hint = "free some memory, raise the limit (ulimit -v), or use a smaller model or batch"
        return MemoryLimitError("no memory for this command", got=text or None, hint=hint)
    if isinstance(error, ImportError) and "Too many open files" in text:
        return of_the_system(OSError(errno.EMFILE, os.strerror(errno.EMFILE), error.path))
    if isinstance(error, OSError) and number is not None and not isinstance(error, BrokenPipeError):
        try:
            with disk.errors(Path(error.filename or os.curdir)):
                raise error
        except StorageError as ours:
            return ours
    return error


STARVED = ("failed to map segment", "Cannot allocate memory", "cannot allocate memory", "can't start new thread")
"""What the system says where libraries are loaded, or threads are started, without memory."""


def drop_output() -> None:
    """Redirect stdout to nowhere, so that Python does not fail to flush it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def explained(error: BaseException) -> tuple[int, str]:
    """Exit status of an error, and the line to print."""
    match error:
        case MoesaicError():
            return error.exit_code, f"error: {error}"
        case typer.TyperException():
            message = error.format_message().rstrip(".")
            if message.startswith("No such option"):
                message += "; text that begins with a dash goes behind `--`, as in: generate PATH -- '-5 + 3 = ?'"
            return error.exit_code, f"error: {message[:1].lower()}{message[1:]}"
        case KeyboardInterrupt():
            return getattr(error, "exit_code", INTERRUPTED), "interrupted; run the same command to continue"
        case _:
            return 1, f"error: internal: {type(error).__name__}: {error}; run with --debug and report it"
