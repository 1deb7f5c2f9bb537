"""A loaded model as lm-evaluation-harness asks models: log-likelihoods of continuations and texts, and generations.

Needs the package lm_eval. Knows nothing about tasks or metrics.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from moesaic.data.batches import Tokens
from moesaic.errors import CompatibilityError, RecipeError
from moesaic.evaluate.score import passes
from moesaic.evaluate.unseen import BATCH, PROMPT_TOKENS, decided
from moesaic.generate.loaded import WritingModel, load
from moesaic.generate.request import BASE, Generation, Request
from moesaic.generate.sample import GREEDY, Sampling
from moesaic.hardware import AUTO
from moesaic.ops.losses import token_nll
from moesaic.routing import Routing
from moesaic.tokenizer import Tokenizer

NEW = 256
"""Tokens of a generation whose task sets no `max_gen_toks`, or half of a smaller context."""
SAMPLING = ("temperature", "top_k", "top_p")

Windows = list[tuple[list[int], list[int]]]
"""Contexts and the continuations that are scored after them, as ids."""


class HarnessModel(TemplateLM):
    """A model that lm-evaluation-harness evaluates; its name there is `moesaic`.

    >>> lm = HarnessModel(moesaic.load("runs/demo"))
    >>> lm_eval.simple_evaluate(model=lm, tasks=["arc_easy"])

    `expert`: the expert, or "base", that answers instead of the router. The router decides once for each context; for
    a text that is scored as a whole, from its first 64 tokens or half of a shorter text. `answered`: the name of the
    expert that answered, by the context, the text or the prompt of the request. Every text is read as it is: without
    a chat template, and what spells a special token is text.
    """

    def __init__(self, model: WritingModel, expert: str | None = None, batch_size: int = BATCH):
        super().__init__()
        self.model, self.batch_size = model, batch_size
        self.named = model.engine.index(expert)
        self.answered: dict[str, str] = {}

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """Load a model from `path=PLACE,base=PLACE,expert=NAME`, as the harness's own command line passes them.

        `device` and `dtype` are those of `moesaic.load`.
        """
        given = {**arg_dict, **{key: value for key, value in (additional_config or {}).items() if value is not None}}
        known = ("path", "base", "expert", "batch_size", "device", "dtype")
        for name in given:
            if name not in known:
                raise RecipeError("no such argument of a model", field=name, expected=", ".join(known))
        if "path" not in given:
            raise RecipeError("no model", field="path", expected="path=PLACE, as `moesaic.load` takes it")
        size = str(given.get("batch_size", "auto"))
        if size != "auto" and not (size.isdecimal() and int(size)):
            raise RecipeError("no size of a batch", field="batch_size", expected="auto, or a number from 1", got=size)
        batch = BATCH if size == "auto" else int(size)
        device, dtype = given.get("device", AUTO), given.get("dtype", "float32")
        model = load(given["path"], base=given.get("base"), device=device, dtype=dtype)
        return cls(model.writer, given.get("expert"), batch)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "HarnessModel":
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    # --- tokens

    @property
    def tokens(self) -> Tokenizer:
        return cast(Tokenizer, self.model.engine.tokenizer)

    @property
    def eot_token_id(self) -> int:
        return self.tokens.eos

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text without a context."""
        bos = self.tokens.special.bos
        return self.tokens.eos if bos is None else bos

    @property
    def max_length(self) -> int:
        return self.model.context

    @property
    def tokenizer_name(self) -> str:
        return self.model.identity

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is False:
            return self.tokens.encode(string)
        return self.tokens.begin(string, raw=True)

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        """Refuse: special tokens that a template writes into a text would be read as text."""
        hint = "leave apply_chat_template out"
        raise CompatibilityError("texts of the harness are read without a chat template", hint=hint)

    # --- log-likelihoods

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        prompts = [context[-self.max_length :] for _, context, _ in requests]
        return self.scored(
            [(context, continuation) for _, context, continuation in requests],
            prompts,
            [context for (context, _), _, _ in requests],
        )

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text as a whole, in windows as long as the context; each token counts once."""
        windows, prompts, texts, counts = Windows(), list[list[int]](), list[str](), list[int]()
        for (text,) in (request.args for request in requests):
            ids = self.tok_encode(text, add_special_tokens=False)
            own = [*get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)]
            read = [self.prefix_token_id, *ids[: min(PROMPT_TOKENS, len(ids) // 2)]]
            windows += map(make_disjoint_window, own)
            prompts += [read] * len(own)
            texts += [text] * len(own)
            counts.append(len(own))
        found = iter(self.scored(windows, prompts, texts))
        return [sum(next(found)[0] for _ in range(count)) for count in counts]

    @torch.inference_mode()
    def scored(self, windows: Windows, prompts: Sequence[list[int]], texts: Sequence[str]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether each of its tokens is the most probable one.

        A context that is too long loses its beginning. `prompts`: what the router reads for each.
        """
        rows = [self.row(context, continuation) for context, continuation in windows]
        if not rows:
            return []
        routing = self.routed(prompts)
        self.note(texts, routing)
        changing = self.named is None and self.model.level == "token"
        weights, found = None if changing else routing.weights, list[tuple[float, bool]]([(0.0, True)] * len(rows))
        engine = self.model.engine
        given = engine.mixture.score, rows, weights, self.batch_size, engine.device
        for chosen, scored, logits, targets in passes(*given):
            nats, greedy = token_nll(logits[None], targets[None])[0].cpu().double(), logits.argmax(-1) == targets
            counts = scored.sum(1).tolist()
            parts = zip(chosen, nats.split(counts), greedy.split(counts), strict=True)
            for at, own, most in parts:
                found[at] = -float(own.sum()), bool(most.all())
        return found

    def row(self, context: list[int], continuation: list[int]) -> Tokens:
        ids = (context + continuation)[-(self.max_length + 1) :]
        if not 0 < len(continuation) < len(ids):
            expected = f"1 to {self.max_length} tokens"
            raise RecipeError("a continuation that cannot be scored", expected=expected, got=len(continuation))
        return Tokens(ids, len(ids) - len(continuation), "")

    def routed(self, prompts: Sequence[list[int]]) -> Routing:
        """The decision about each prompt: the named expert's, else the router's, made once for equal prompts."""
        if self.named is not None:
            return self.model.engine.decision_of([self.named] * len(prompts))
        once = {ids: at for at, ids in enumerate(dict.fromkeys(map(tuple, prompts)))}
        made = decided(self.model, [[*ids] for ids in once])
        return made[torch.tensor([once[tuple(ids)] for ids in prompts])]

    def note(self, texts: Sequence[str], routing: Routing) -> None:
        """Remember who answers each text."""
        known = [*self.model.names, BASE]  # best is -1 for the base
        self.answered |= zip(texts, (known[best] for best in routing.best.tolist()), strict=True)

    # --- generations

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each prompt until one of its stop strings, which is not part of the text."""
        made = list[str]()
        for start in range(0, len(requests), self.batch_size):
            some = [request.args for request in requests[start : start + self.batch_size]]
            asked = [self.asked(prompt, given, start + at) for at, (prompt, given) in enumerate(some)]
            for (prompt, _), request, (found,) in zip(some, asked, self.model.engine.answer(asked), strict=True):
                self.answered[prompt] = found.routing.chosen
                made.append(self.text(request, found))
        return made

    def asked(self, prompt: str, given: Mapping[str, Any], number: int) -> Request:
        """The request of a prompt with the harness's settings; a prompt that is too long loses its beginning."""
        settings = dict(given)
        until, new = settings.pop("until", None) or [], settings.pop("max_gen_toks", None)
        new = min(NEW, self.max_length // 2) if new is None else int(new)
        if not 0 < new < self.max_length:
            expected, hint = f"1 to {self.max_length - 1}", "set it in the task's generation_kwargs"
            raise RecipeError("no room for a prompt", field="max_gen_toks", expected=expected, got=new, hint=hint)
        drawn, sampling = settings.pop("do_sample", bool(settings.get("temperature"))), GREEDY
        chosen = {name: settings.pop(name) for name in SAMPLING if name in settings}
        if settings:
            expected = f"until, max_gen_toks, do_sample, {', '.join(SAMPLING)}"
            raise RecipeError(
                "settings that are not known", field="generation_kwargs", expected=expected, got=[*settings]
            )
        if drawn:
            sampling = Sampling(seed=number, **{"temperature": 1.0, **chosen})
        ids = self.tok_encode(prompt)[-(self.max_length - new) :] or [self.prefix_token_id]
        stop = (until,) if isinstance(until, str) else tuple(until)
        expert = None if self.named is None else [*self.model.names, BASE][self.named]
        return Request(prompt=ids, max_new_tokens=new, sampling=sampling, stop=stop, expert=expert)

    def text(self, request: Request, made: Generation) -> str:
        """All that was written, a line break at its beginning included, up to the first stop string."""
        given = cast(list[int], request.prompt)
        text = self.tokens.decode([*given, *made.ids])[len(self.tokens.decode(given)) :]
        ends = [at for word in request.stop if (at := text.find(word)) >= 0]
        return text[: min(ends)] if ends else text
