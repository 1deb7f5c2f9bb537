"""Rewrites the parts of the documents that follow from the code.

    python tests/documents/generate.py

fills every region between `<!-- generated: NAME -->` and `<!-- end -->` in README.md, CONTRIBUTING.md and docs/ with
what `GENERATED[NAME]` gives. A test compares. Knows nothing about the text around.
"""

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
from house_tree import floor_plan, tree

import moesaic
from moesaic import stages
from moesaic.cli import main as cli
from moesaic.compose.scaling import share, sizes_of
from moesaic.config import PUBLISHED, DecoderConfig
from moesaic.interop.encoder_names import NAMES as ENCODERS
from moesaic.interop.families import FAMILIES
from moesaic.kinds import KINDS
from moesaic.lab.study import Study
from moesaic.recipe.json_schema import json_schema
from moesaic.sections.training import Parallel

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
REGION = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# --- the recipe -------------------------------------------------------------------------------------------------------

EXPERT = "the sections of all kinds, together"
SECTIONS = [  # where a section stands in a recipe, and its name in the schema
    ("", "Recipe"),
    ("base.", "ExistingBase"),
    ("base.", "NewBase"),
    ("base.pretrain.", "Pretrain"),
    ("base.pretrain.data.", "TokenShards"),
    ("train.", "Train"),
    ("experts.NAME.", EXPERT),
    ("experts.NAME.sweep.", "AdapterSweep"),
    ("experts.NAME.data.", "FileData"),
    ("experts.NAME.data.", "LabelledData"),
    ("experts.NAME.data.", "DemoData"),
    ("SOURCE.", "Source"),
    ("router.", "Router"),
    ("router.feature.", "EncoderFeature"),
    ("router.loss.", "RouterLoss"),
    ("router.exploration.", "Exploration"),
    ("router.gates.", "TokenGates"),
    ("mixture.", "Mixture"),
    ("evaluate.", "Evaluate"),
    ("evaluate.generate.", "Texts"),
    ("continuous.", "Continuous"),
]
SHAPES = {  # sections that take each other's place, and what the page calls each
    "ExistingBase": "a base that exists",
    "NewBase": "a base pretrained in the run",
    "FileData": "files of text",
    "LabelledData": "rows with labels",
    "DemoData": "a built-in domain",
}
WITHIN = {  # sections whose keys are all among another's
    "RouterSpec": "Router",
    "Sweep": "AdapterSweep",
    "TrainOverride": "Train",
}
HEAD = ["| key | default | values | meaning |", "|---|---|---|---|"]


def schema_sections() -> dict[str, dict[str, Any]]:
    """Every section of the recipe's JSON schema; of one with a shorthand, the shape that is written out."""
    schema = json_schema()
    sections = schema["$defs"] | {"Recipe": schema}
    return {name: section.get("anyOf", [section])[-1] for name, section in sections.items()}


def recipe_keys() -> str:
    """Every key of the recipe, a table for each section."""
    sections = schema_sections()
    inherited = sections["Train"]["properties"]
    lines: list[str] = []
    for place, name in SECTIONS:
        title = f"`{place.removesuffix('.')}`" if place else "The recipe"
        lines += ["", f"### {title}{f', {SHAPES[name]}' if name in SHAPES else ''}", "", *HEAD]
        if name == EXPERT:
            lines += expert_rows(sections)
            continue
        section = sections[name]
        shown = {
            key: field for key, field in section["properties"].items() if name != "Pretrain" or key not in inherited
        }
        lines += [row_of(f"`{key}`", key, field, section) for key, field in shown.items()]
        if name == "Pretrain":
            lines.append("| every key of `train` | as in `train` | | |")
    return "\n".join(lines[1:])


STUDY_SECTIONS = [("", "Study"), ("arms.NAME.", "StudyArm"), ("train.", "StudyTrain"), ("sweep.", "Sweep")]
"""Where a section stands in a study, and its name in the schema."""


def study_keys() -> str:
    """Every key of a study, a table for each section."""
    schema = Study.model_json_schema()
    sections = schema["$defs"] | {"Study": schema}
    lines: list[str] = []
    for place, name in STUDY_SECTIONS:
        section = sections[name]
        rows = [row_of(f"`{key}`", key, field, section) for key, field in section["properties"].items()]
        lines += ["", f"### {f'`{place}`'.replace('.`', '`') if place else 'The study'}", "", *HEAD, *rows]
    return "\n".join(lines[1:])


def expert_rows(sections: dict[str, dict[str, Any]]) -> list[str]:
    """The keys of experts: one row for the kinds that share a key, which are named unless all do."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for word, kind in KINDS.items():
        section = sections[kind.section.__name__]
        for key, field in section["properties"].items():
            kinds.setdefault((key, row_of("{}", key, field, section)), []).append(word)
    some = {row: "" if len(words) == len(KINDS) else f" ({', '.join(words)})" for row, words in kinds.items()}
    return [row.replace("{}", f"`{key}`{words}", 1) for (key, row), words in some.items()]


def row_of(name: str, key: str, field: dict[str, Any], section: dict[str, Any]) -> str:
    meaning = " ".join(field["description"].split())  # a table has no line breaks
    cells = [name, default(key, field, section.get("required", [])), ", ".join(words_of(field)), meaning]
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def default(key: str, field: dict[str, Any], required: list[str]) -> str:
    """The default of a key as a reader would write it."""
    if key in required:
        return "required"
    value = field.get("default")
    if isinstance(value, dict):
        return "its section"
    if value is None:
        return "by kind" if key == "feature" else "none"
    return "all seven linear layers" if key == "targets" else f"`{json.dumps(value)}`".replace('"', "")


def words_of(field: dict[str, Any]) -> list[str]:
    """The words that a key takes, where it takes nothing but words of a list."""
    if "const" in field:
        return [f"`{field['const']}`"]
    if "enum" in field:
        return [f"`{word}`" for word in field["enum"] if word is not None]
    shapes = [shape for shape in field.get("anyOf", []) if shape.get("type") != "null"]
    return words_of(shapes[0]) if len(shapes) == 1 else []


# --- the command line -------------------------------------------------------------------------------------------------


def command() -> Any:
    return typer.main.get_command(cli.app)


def verbs() -> str:
    """Every verb in one line."""
    lines = ["| verb | purpose |", "|---|---|"]
    for name, verb in command().commands.items():
        lines.append(f"| [`moesaic {name}`](#{slug(f'moesaic {name}')}) | {verb.help.splitlines()[0]} |")
    return "\n".join(lines)


def verb_options() -> str:
    """Every verb: its arguments, its help, the shared options that it takes, and a table of its own."""
    lines: list[str] = []
    for name, verb in command().commands.items():
        words = [spelled(one) for one in verb.params if one.param_type_name == "argument"]
        common = [f"`{one.opts[0]}`" for one in verb.params if said(one) in shared() and one.opts[0].startswith("-")]
        own = [said(one) for one in verb.params if said(one) not in shared()]
        lines += [
            "",
            f"### moesaic {name}",
            "",
            f"    moesaic {name} {' '.join(words)}",
            "",
            " ".join(verb.help.split()),
        ]
        lines += ["", "| argument or option | meaning |", "|---|---|", *own] if own else []
        lines += ["", f"Shared options: {', '.join(common)}."] if common else []
    return "\n".join(lines[1:])


def shared_options() -> str:
    """The arguments and options that several verbs share."""
    return "\n".join(["| argument or option | meaning |", "|---|---|", *shared()])


@cache
def shared() -> tuple[str, ...]:
    """The rows of arguments and options that mean the same in at least three verbs."""
    counts = Counter(said(one) for verb in command().commands.values() for one in verb.params)
    return tuple(row for row, count in counts.items() if count >= 3)


def said(parameter: Any) -> str:
    """An argument or option as a row."""
    return f"| `{spelled(parameter)}` | {' '.join((parameter.help or '').split())} |"


def spelled(parameter: Any) -> str:
    """An argument or option as it is typed."""
    if parameter.param_type_name == "argument":
        word = (parameter.metavar or parameter.name.upper()) + ("..." if parameter.nargs == -1 else "")
        return word if parameter.required or word.startswith("[") else f"[{word}]"
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.metavar or 'VALUE'}".replace("|", "\\|")


# --- the public names -------------------------------------------------------------------------------------------------

RESULTS = {  # values that public functions return -> where they live
    "Generation": "moesaic.generate.request",
    "RoutingReport": "moesaic.generate.request",
    "Classification": "moesaic.generate.classify",
    "Adoption": "moesaic.adoption.adopting",
    "Plan": "moesaic.compose.plan",
    "Artefact": "moesaic.artefacts.inspect",
    "PublishedTTLoRA": "moesaic.adapters.published",
}


def names() -> str:
    """Every public name of the package."""
    return "\n\n".join(described(f"moesaic.{name}", *home(name)) for name in moesaic.__all__)


def stage_names() -> str:
    """The verbs of a recipe, as functions."""
    homes = ((name, getattr(stages, name).__module__) for name in stages.__all__)
    return "\n\n".join(described(f"moesaic.stages.{name}", module, name) for name, module in homes)


def results() -> str:
    """What public functions return."""
    return "\n\n".join(described(name, module, name) for name, module in RESULTS.items())


def home(name: str) -> tuple[str, str]:
    module, _, own = moesaic._HOMES[name].partition(":")
    return module, own or name


def described(title: str, module: str, name: str) -> str:
    """A heading, the signature and the docstring of a function or class; of a class its public methods too."""
    node = definition(module, name)
    parts = [f"### `{title}`"]
    if isinstance(node, ast.FunctionDef):
        return "\n\n".join([*parts, signature(title, node), prose(node)])
    fields = [
        one for one in node.body if isinstance(one, ast.AnnAssign) and not ast.unparse(one.target).startswith("_")
    ]
    if any("dataclass" in ast.unparse(one) for one in node.decorator_list):
        inside = [f"    {ast.unparse(field)}" for field in fields]
        parts.append("\n".join(["```text", f"{title}(", *(f"{line}," for line in inside), ")", "```"]))
    parts.append(prose(node))
    if any(ast.unparse(one) == "Section" for one in node.bases):
        return "\n\n".join([*parts, "Its keys are those of [the recipe](recipe.md)."])
    parts.append("\n".join(f"- `{one.name}`: {prose(one)}" for one in methods(node) if is_property(one)))
    for method in methods(node):
        if not is_property(method):
            parts += [signature(method.name, method), prose(method)]
    return "\n\n".join(part for part in parts if part)


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """The public methods and properties with a docstring, but for those that only refuse; of overloads the one with a
    body."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
            refuses = one.returns is not None and ast.unparse(one.returns) == "NoReturn"
            if ast.get_docstring(one) and not refuses:
                yield one


def is_property(node: ast.FunctionDef) -> bool:
    return any("property" in ast.unparse(one) for one in node.decorator_list)


def signature(name: str, node: ast.FunctionDef) -> str:
    """How a function is called, as its source has it; `self` left out."""
    arguments = ast.parse(ast.unparse(node)).body[0].args  # type: ignore[attr-defined]
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({ast.unparse(arguments)}){returned}"
    if len(line) > 100:
        stub = ast.parse(f"def f({ast.unparse(arguments)}): ...").body[0].args  # type: ignore[attr-defined]
        line = "\n".join([f"{name}(", *(f"    {one}," for one in separate(stub)), f"){returned}"])
    return f"```text\n{line}\n```"


def separate(arguments: ast.arguments) -> Iterator[str]:
    """The arguments of a function one by one."""
    without = len(arguments.args) - len(arguments.defaults)
    for index, one in enumerate(arguments.args):
        yield ast.unparse(one) + (f" = {ast.unparse(arguments.defaults[index - without])}" if index >= without else "")
    if arguments.vararg:
        yield f"*{ast.unparse(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    for one, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield ast.unparse(one) + (f" = {ast.unparse(value)}" if value else "")


def prose(node: ast.FunctionDef | ast.ClassDef) -> str:
    """A docstring as Markdown: lines that begin with >>> or ... as a block."""
    text = ast.get_docstring(node) or ""
    block = re.sub(
        r"((?:^(?:>>>|\.\.\.) .*\n?)+)", lambda found: f"```pycon\n{found[1].rstrip()}\n```\n", text, flags=re.MULTILINE
    )
    return block.strip()


@cache
def module_tree(module: str) -> ast.Module:
    at = ROOT.joinpath(*module.split("."))
    path = at / "__init__.py" if at.is_dir() else at.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def definition(module: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    """Where a name is defined, through the imports of the rooms that offer it; of overloads the last."""
    found = [one for one in module_tree(module).body if getattr(one, "name", None) == name]
    if found:
        return found[-1]  # type: ignore[return-value]
    for one in module_tree(module).body:
        if isinstance(one, ast.ImportFrom) and one.module:
            for alias in one.names:
                if (alias.asname or alias.name) == name:
                    return definition(one.module, alias.name)
    raise LookupError(f"{module} does not define {name}")


# --- what works with what ---------------------------------------------------------------------------------------------


def kinds() -> str:
    """Every kind of expert: where it meets others, who decides how often, and whether it can classify."""
    lines = ["| `kind` | meets at `site` | decided per `level` | writes | classifies |", "|---|---|---|---|---|"]
    for word, kind in KINDS.items():
        cells = [f"`{word}`", kind.site, ", ".join(kind.levels), "yes", "yes" if kind.classifies else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def families() -> str:
    """The model families that are read and written, by the `model_type` of their config.json."""
    decoders, encoders = (", ".join(f"`{name}`" for name in some) for some in (FAMILIES, ENCODERS))
    return f"| | `model_type` of config.json |\n|---|---|\n| decoders | {decoders} |\n| encoders | {encoders} |"


# --- filling ----------------------------------------------------------------------------------------------------------

# --- shares of devices ------------------------------------------------------------------------------------------------

DEVICES = (8, 64, 256, 1024)
TOKENS = 4096  # of a device in a step
MOE = DecoderConfig(
    vocab_size=50304,
    hidden_size=2048,
    num_layers=16,
    num_heads=16,
    num_kv_heads=16,
    intermediate_size=1024,
    context=TOKENS,
    num_experts=64,
    experts_per_token=8,
    tie_embeddings=False,
)
TRAINED: dict[str, tuple[DecoderConfig, tuple[Parallel, ...]]] = {
    "llama-3-8b": (DecoderConfig(**PUBLISHED["llama-3-8b"]), ("ddp", "fsdp")),
    "llama-3-70b": (DecoderConfig(**PUBLISHED["llama-3-70b"]), ("ddp", "fsdp")),
    "64 experts, 8 for each token": (MOE, ("ddp", "fsdp", "ep")),
}


def shares() -> str:
    """What a device holds and sends, by model and number of devices."""
    lines = ["| model | `parallel` | " + " | ".join(f"{count:,} devices" for count in DEVICES) + " |"]
    lines.append("|---|---|" + "---|" * len(DEVICES))
    for name, (config, ways) in TRAINED.items():
        sizes = sizes_of(config)
        for parallel in ways:
            cells = []
            for count in DEVICES:
                if parallel == "ep" and count > config.num_experts:
                    cells.append("")
                    continue
                found = share(sizes, parallel, count, TOKENS)
                cells.append(f"{gigabytes(found.held + found.gathered)}, sends {gigabytes(found.sent)}")
            lines.append(
                f"| {name} ({sizes.parameters / 1e9:.1f} billion) | `{parallel}` | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines)


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


GENERATED: dict[str, Callable[[], str]] = {
    "recipe-keys": recipe_keys,
    "study-keys": study_keys,
    "verbs": verbs,
    "shared-options": shared_options,
    "verb-options": verb_options,
    "names": names,
    "stage-names": stage_names,
    "results": results,
    "kinds": kinds,
    "families": families,
    "floors": floor_plan,
    "tree": tree,
    "shares": shares,
}


def slug(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def filled(text: str) -> str:
    """A page with its generated regions as they should be."""
    return REGION.sub(lambda found: f"{found[1]}{GENERATED[found[2]]()}\n{found[3]}", text)


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if text != filled(text):
            page.write_text(filled(text), encoding="utf-8")
            print(f"rewrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
