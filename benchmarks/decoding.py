"""Decoding with a mixture of LoRA experts: eight prompts that chose different experts, against the base alone.

The peer is transformers' `generate` on the same weights without any adapter.
"""

import torch
from transformers import AutoModelForCausalLM

from benchmarks.timing import alternate
from moesaic.adapters import LoRA, attach
from moesaic.artefacts.base import save_base
from moesaic.config import DecoderConfig
from moesaic.model.decoder import Decoder, initialise
from moesaic.nn import Cache
from moesaic.routing import Gates

CONFIG = DecoderConfig(
    vocab_size=4096, hidden_size=384, num_layers=8, num_heads=6, num_kv_heads=2, intermediate_size=1024, context=256
)
PROMPT, STEPS, EXPERTS, ROUNDS = 64, 24, 4, 5
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def report(quick: bool) -> str:
    lines = [
        f"Llama of {CONFIG.num_layers} layers x {CONFIG.hidden_size}, prompt {PROMPT}, {STEPS} greedy steps, float32, "
        f"{EXPERTS} experts of rank 8 on all targets.",
        "",
        "| rows | transformers, base | moesaic, base | moesaic, an expert a row | peer / mixture | mixture / base |",
        "|---|---|---|---|---|---|",
    ]
    base, mixed, peer = models()
    for rows in (1, 8):
        ids = torch.randint(1, CONFIG.vocab_size, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
        gates = Gates.of(torch.eye(EXPERTS)[torch.arange(rows) % EXPERTS])
        options = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            times = alternate(
                {
                    "peer": lambda: peer.generate(ids, attention_mask=torch.ones_like(ids), **options),  # noqa: B023
                    "base": lambda: decode(base, ids, None),  # noqa: B023
                    "mixed": lambda: decode(mixed, ids, gates),  # noqa: B023
                },
                rounds=1 if quick else ROUNDS,
                inner=1,
            )
        rate = {name: rows * STEPS / seconds for name, seconds in times.items()}
        lines.append(
            f"| {rows} | {rate['peer']:.0f} tok/s | {rate['base']:.0f} tok/s | {rate['mixed']:.0f} tok/s "
            f"| {times['peer'] / times['mixed']:.2f} | {times['mixed'] / times['base']:.2f} |"
        )
    return "\n".join(lines) + "\n\nRates count the prompt's pass too.\n"


def decode(decoder: Decoder, ids: torch.Tensor, gates: Gates | None) -> torch.Tensor:
    cache = Cache.empty(CONFIG, len(ids), PROMPT + STEPS, decoder.norm.weight)
    chunk, made = ids, []
    for _ in range(STEPS):
        x, _ = decoder.run(decoder.embed_tokens(chunk), cache, range(CONFIG.num_layers), gates)
        cache = cache.advance(chunk.shape[1])
        chunk = decoder.head(x[:, -1:], gates)[:, 0].argmax(-1)[:, None]
        made.append(chunk)
    return torch.cat(made, 1)


def models() -> tuple[Decoder, Decoder, torch.nn.Module]:
    """The base, the base with experts, and transformers' model of the base: all with the same weights."""
    import tempfile
    from pathlib import Path

    from moesaic.tokenizer import Tokenizer

    def fresh() -> Decoder:
        return initialise(Decoder(CONFIG), torch.Generator().manual_seed(0)).eval()

    base, mixed = fresh(), fresh()
    generator = torch.Generator().manual_seed(1)
    attach(mixed, [LoRA.fresh(mixed, 8, 16.0, TARGETS, range(CONFIG.num_layers), generator) for _ in range(EXPERTS)])
    with tempfile.TemporaryDirectory() as folder:
        save_base(Path(folder), base, Tokenizer.train(["abc"], 300), {})
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return base, mixed, peer
