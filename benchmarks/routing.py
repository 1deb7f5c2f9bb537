"""Routers of tokens: how often a token goes to the expert of its own domain, and which router makes the best model.

Without a training: rows from a few texts of each domain, read by stories260K, are applied where a router of a sparse
model reads, in every layer, to tokens of other texts. Then `moesaic bench routing` over four trained experts.
"""

from collections.abc import Sequence
from statistics import mean, stdev

import torch
from torch import Tensor

from benchmarks.page import RECIPES, Bar, Options, Page, tabulated
from moesaic.artefacts.base import Base, load_base
from moesaic.compose.token_gates import GATES, Prompted, Reader, routed
from moesaic.data.rows import read_examples
from moesaic.evaluate.routing_table import sentence, table
from moesaic.recipe import read
from moesaic.runs.machine import machine
from moesaic.stages import bench_routing

DOMAINS = ("tinystories", "gsm8k", "code_instruct", "wikitext2")
LEARNED, TESTED, TOKENS, DRAWS = 16, 40, 96, 5
T_4 = 2.776
"""The 97.5% point of t with four degrees of freedom: of five draws."""

WORDS = {
    "hidden": "mergekit's `hidden`, its default: before the layer, last token",
    "cheap_embed": "mergekit's `cheap_embed`: sum of the embeddings",
    "means": "`means`: at the router's input, mean over all tokens",
    "ridge": "`ridge`: at the router's input, least squares in closed form, no bias",
}
TOLD = """\
`moesaic bench routing recipes/routing.yaml`: four feed-forward experts over stories260K, one seed; nats a token of
the test rows' responses, with differences to the base and their paired 95% intervals. `gates-START-kK-BALANCE`: a
matrix in each layer, untrained or trained on 5% of the experts' steps; a balance of `sign` or `quantiles` is a bias
that is dropped after the training. `unseen`: instructions of another set. `weakest`: the domain with the largest
loss against the base. `least load`: the tokens of the expert with the fewest, in any layer, as a share of the mean.
`active`: parameters that a token meets. `tokens`: those that the gates were trained on. The oracles know the
answer."""
Rows = list[Tensor]


def page(options: Options) -> Page:
    draws = 2 if options.quick else DRAWS
    learned, tested = (2, 2) if options.quick else (LEARNED, TESTED)
    base = load_base(options.shared / "models" / "stories260K")
    texts = {name: cut(base, options, name) for name in DOMAINS}
    found: dict[str, list[tuple[float, float]]] = {word: [] for word in WORDS}
    for draw in range(draws):
        some = {name: drawn(own, draw, learned + tested) for name, own in texts.items()}
        reader = Reader(base.decoder, base.tokenizer, torch.Generator().manual_seed(draw))
        states = [[reader.states(reader.begun(text), routed) for text in own[learned:]] for own in some.values()]
        prompts = [Prompted(own[:learned]) for own in some.values()]
        for word in WORDS:
            found[word].append(accuracy(GATES[word](reader, prompts), states))
    return Page(f"{compared(options)}\n{written(found, draws, learned, tested)}", {"": machine()})


def compared(options: Options) -> str:
    """`moesaic bench routing` over the experts of its recipe."""
    own = [f"base.path={options.shared / 'models' / 'stories260K'}", f"data_root={options.shared / 'data'}"]
    if options.quick:
        own += ["train.steps=2", "evaluate.limit=2"]
        own += [f"experts.{name}.data.train.limit=30" for name in ("stories", "math", "code", "wiki")]
    recipe = read(RECIPES / "routing.yaml", own)
    figures = bench_routing(recipe, options.runs / recipe.name)
    return f"## Which router?\n\n{sentence(figures)}\n\n{TOLD}\n\n{table(figures)}"


def cut(base: Base, options: Options, name: str) -> list[str]:
    """The texts of a domain, each cut to its first tokens."""
    rows = read_examples(options.shared / "data" / name / "train.jsonl")
    texts = [f"{row.prompt}\n{row.response}".strip()[: 8 * TOKENS] for row in rows]
    long = [text for text in texts if len(text) > 100][:400]
    return [base.tokenizer.decode(base.tokenizer.encode(text)[: TOKENS - 1]) for text in long]


def drawn(texts: Sequence[str], draw: int, count: int) -> list[str]:
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(draw)).tolist()
    return [texts[at] for at in order[:count]]


def accuracy(gates: Rows, states: Sequence[Sequence[Rows]]) -> tuple[float, float]:
    """Shares of tokens, and of texts by the sum of their logits in one layer, that go to their own domain.

    Means over layers and, each with the same weight, domains.
    """
    tokens, whole = [], []
    for index, texts in enumerate(states):
        for layer, rows in enumerate(gates):
            logits = [layers[layer] @ rows.t() for layers in texts]
            tokens.append(float((torch.cat(logits).argmax(-1) == index).double().mean()))
            whole.append(mean(float(int(some.sum(0).argmax()) == index) for some in logits))
    return mean(tokens), mean(whole)


def written(found: dict[str, list[tuple[float, float]]], draws: int, learned: int, tested: int) -> str:
    lines = [
        "## Whose token is it?",
        "",
        f"{', '.join(DOMAINS)}: {learned} texts of each to learn from and {tested} others, at most {TOKENS} tokens,",
        "read by stories260K; rows applied at the router's input of all layers. Chance is 0.25.",
        f"Means of {draws} draws of texts, with the 95% interval of t.",
        "",
        "| rows from | token top-1 | text, by one layer |",
        "|---|---|---|",
        *(f"| {WORDS[word]} | {shown(own, 0)} | {shown(own, 1)} |" for word, own in found.items()),
        "",
        tabulated(
            [
                bar("`means`, token top-1", 0.45, found["means"]),
                bar("`ridge` without bias, token top-1", 0.50, found["ridge"]),
            ]
        ),
        "",
        "It is the accuracy about domains, not nats.",
    ]
    return "\n".join(lines) + "\n"


def shown(pairs: Sequence[tuple[float, float]], which: int) -> str:
    values = [pair[which] for pair in pairs]
    return f"{mean(values):.3f} ± {T_4 * stdev(values) / len(values) ** 0.5:.3f}"


def bar(what: str, least: float, pairs: Sequence[tuple[float, float]]) -> Bar:
    found = mean(pair[0] for pair in pairs)
    return Bar(what, f"at least {least:.2f}", f"{found:.3f}", found >= least)
