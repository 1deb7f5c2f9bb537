"""Every page of `benchmarks/results` and what makes it again.

Knows nothing about what a benchmark needs: each module is imported when its page is made.
"""

from importlib import import_module

from benchmarks.page import Options, Page, Source, measured_here


def measured(name: str) -> Source:
    """A page of figures that the module of that name measures in this process."""
    return Source(lambda options: measured_here(import_module(f"benchmarks.{name}").report(options.quick)))


def compared(name: str, *, texts: bool) -> Source:
    """A page of runs of one recipe, side by side."""

    def make(options: Options) -> Page:
        page: Page = import_module("benchmarks.mixtures").page(name, options)
        return page

    return Source(make, texts=texts)


def made_by(module: str, *, texts: bool = False) -> Source:
    """A page that a module makes by itself, machines included."""

    def make(options: Options) -> Page:
        page: Page = import_module(f"benchmarks.{module}").page(options)
        return page

    return Source(make, texts=texts)


STEPS = ("rank-8", "rank-16", "epochs-3", "rows-2000")
"""Further steps of five-domains-smollm2."""

PAGES = {
    "starting": measured("starting"),
    "mixed_rows": measured("mixed_rows"),
    "sparse": measured("sparse"),
    "decoding": measured("decoding"),
    "gpu": measured("gpu"),
    "loading": measured("loading"),
    "tt_lora": measured("tt_lora"),
    "sites": measured("sites"),
    "budget": measured("budget"),
    "continuous": measured("continuous"),
    "engine": made_by("engine"),
    "serving": made_by("serving"),
    "talks": made_by("talks", texts=True),
    "training_memory": made_by("training_memory", texts=True),
    "encoding": made_by("encoding", texts=True),
    "data_sizes": made_by("data_sizes", texts=True),
    "abstention": made_by("abstention", texts=True),
    "routing": made_by("routing", texts=True),
    "demo": compared("demo", texts=False),
    "five-domains": compared("five-domains", texts=True),
    "stories260k": compared("stories260k", texts=True),
    "franken-stories": compared("franken-stories", texts=True),
    "gated-pair": compared("gated-pair", texts=True),
    "smollm2": compared("smollm2", texts=True),
    "five-domains-smollm2": made_by("five_domains", texts=True),
    "ttlora_glue": made_by("ttlora_glue", texts=True),
    "continual": made_by("continual", texts=True),
    "pretrain": made_by("pretrain", texts=True),
    "faults": made_by("faults"),
}
"""Name of a page -> what makes it; short ones first."""
