"""Sites `ffn` and `model`: what choosing one expert costs beside running it alone, and all beside one dense block.

The work of select does not grow with the number of experts; that of soft is one product for each projection.
"""

import torch

from benchmarks.timing import alternate
from moesaic.adapters import feedforward
from moesaic.adapters.feedforward import FFN, MixedFFN
from moesaic.config import DecoderConfig, Feature
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder, initialise
from moesaic.model.features import Prompts
from moesaic.model.whole import ModelMixture
from moesaic.nn import GLU, Cache
from moesaic.routing import Gates, Routing, Selection
from moesaic.routing.routers import MLPRouter
from moesaic.testing import prefilled

CONFIG = DecoderConfig(
    vocab_size=4096, hidden_size=512, num_layers=8, num_heads=8, num_kv_heads=4, intermediate_size=1536, context=256
)
CASES = [(1, 1), (1, 64), (8, 1), (8, 64)]
EXPERTS, PROMPT, STEPS, ROUNDS = 8, 32, 16, 7


def report(quick: bool) -> str:
    rounds = 1 if quick else ROUNDS
    lines = [
        f"A block of {CONFIG.hidden_size} x {CONFIG.intermediate_size}, {EXPERTS} experts, float32. One alone: the "
        "plain block, all rows at once. Selected: all rows choose the same expert. Mixed rows: each row its own. Soft: "
        "every expert for every row, in one product for each projection; beside it the same as a loop over experts.",
        "",
        "| rows, tokens | one alone us | selected | mixed rows | soft us | loop / soft |",
        "|---|---|---|---|---|---|",
    ]
    with torch.inference_mode():
        lines += [blocks(rows, tokens, rounds) for rows, tokens in CASES]
        lines += ["", *decoding(rounds)]
    return "\n".join(lines) + "\n"


def blocks(rows: int, tokens: int, rounds: int) -> str:
    generator = torch.Generator().manual_seed(0)
    shape = (EXPERTS, CONFIG.intermediate_size, CONFIG.hidden_size)
    base, alone = filled(GLU(CONFIG), 1), filled(GLU(CONFIG), 2)
    stacks = [torch.empty(shape).normal_(0, 0.02, generator=generator) for _ in range(3)]
    mixed = MixedFFN(base, tuple(range(EXPERTS)), *stacks)
    x = torch.randn(rows, tokens, CONFIG.hidden_size, generator=generator)
    same, each = Gates.one(3, rows, EXPERTS, x), Gates.of(torch.eye(EXPERTS)[torch.arange(rows) % EXPERTS])
    soft = Gates.of(torch.rand(rows, EXPERTS, generator=generator).softmax(-1))
    experts = [Gates.one(expert, rows, EXPERTS, x) for expert in range(EXPERTS)]

    def loop() -> torch.Tensor:
        parts = zip(experts, soft.weights.T, strict=True)
        return torch.stack([mixed(x, gates)[0] * weights[:, None, None] for gates, weights in parts]).sum(0)

    assert torch.allclose(loop(), mixed(x, soft)[0], atol=1e-4)
    times = alternate(
        {
            "alone": lambda: alone(x, None),
            "same": lambda: mixed(x, same),
            "each": lambda: mixed(x, each),
            "soft": lambda: mixed(x, soft),
            "loop": loop,
        },
        rounds,
        inner=5,
    )
    one = times["alone"]
    return (
        f"| {rows}, {tokens} | {one * 1e6:.0f} | {times['same'] / one:.2f} | {times['each'] / one:.2f} "
        f"| {times['soft'] * 1e6:.0f} | {times['loop'] / times['soft']:.2f} |"
    )


def decoding(rounds: int) -> list[str]:
    """Greedy steps of whole decoders: an expert chosen beside the dense model of the same size."""
    plain, base = fresh(0), fresh(0)
    feedforward.attach(base, [FFN.of(fresh(seed), range(CONFIG.num_layers)) for seed in range(EXPERTS)])
    feature = Feature.parse("hidden_mean")
    decider = Decider.over(plain, ("a", "b"), MLPRouter(1, 2, []), feature, Selection())
    whole = ModelMixture(plain, [fresh(1), fresh(2)], decider)
    lines = [
        f"{STEPS} greedy steps after {PROMPT} tokens, {CONFIG.num_layers} layers; time over that of the dense decoder.",
        "",
        f"| rows | dense ms | site ffn, one of {EXPERTS} chosen | site model, one of 2 | site model, both mixed |",
        "|---|---|---|---|---|",
    ]
    for rows in (1, 8):
        ids = torch.randint(1, CONFIG.vocab_size, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
        gates = Gates.one(3, rows, EXPERTS, plain.norm.weight)
        times = alternate(
            {
                "dense": lambda: decode(plain, ids, None),  # noqa: B023
                "ffn": lambda: decode(base, ids, gates),  # noqa: B023
                "one": lambda: mixed_decode(whole, ids, [0.0, 1.0]),  # noqa: B023
                "both": lambda: mixed_decode(whole, ids, [0.5, 0.5]),  # noqa: B023
            },
            rounds,
            inner=1,
        )
        dense = times["dense"]
        ratios = " | ".join(f"{times[name] / dense:.2f}" for name in ("ffn", "one", "both"))
        lines.append(f"| {rows} | {dense * 1e3:.0f} | {ratios} |")
    return lines


def decode(decoder: Decoder, ids: torch.Tensor, gates: Gates | None) -> None:
    cache = Cache.empty(CONFIG, len(ids), PROMPT + STEPS, decoder.norm.weight)
    for _ in range(STEPS):
        x, _ = decoder.run(decoder.embed_tokens(ids), cache, range(CONFIG.num_layers), gates)
        cache = cache.advance(ids.shape[1])
        ids = decoder.head(x[:, -1:], gates)[:, 0].argmax(-1)[:, None]


def mixed_decode(model: ModelMixture, ids: torch.Tensor, weights: list[float]) -> None:
    forced = torch.tensor([weights] * len(ids))
    prompts = Prompts(ids, torch.full((len(ids),), PROMPT), [""] * len(ids))
    logits, session = prefilled(model, prompts, STEPS, Routing(forced, forced))
    for _ in range(STEPS - 1):
        logits, session = model.decode(logits.argmax(-1), session)


def fresh(seed: int) -> Decoder:
    return initialise(Decoder(CONFIG), torch.Generator().manual_seed(seed)).eval()


def filled(block: GLU, seed: int) -> GLU:
    for weight in block.parameters():
        torch.nn.init.normal_(weight, 0, 0.02, generator=torch.Generator().manual_seed(seed))
    return block
