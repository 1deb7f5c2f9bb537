"""One linear whose rows chose different LoRA experts: against PEFT's `adapter_names`, and against the base alone.

Also what skipping saves: the same batch when its rows chose fewer experts.
"""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from benchmarks.timing import alternate
from moesaic.adapters import LowRankLinear
from moesaic.nn import Linear
from moesaic.routing import Gates

SIZE, RANK = 768, 8
ROUNDS = 9
CASES = [(4, 8, 1), (16, 32, 1), (64, 8, 1), (4, 8, 64), (16, 32, 64)]


def report(quick: bool) -> str:
    rounds = 1 if quick else ROUNDS
    lines = [
        f"One {SIZE} x {SIZE} linear, rank {RANK}, a different expert in each row, float32.",
        "",
        "| experts, rows, tokens | base alone us | PEFT us | moesaic us | PEFT / moesaic | over base |",
        "|---|---|---|---|---|---|",
    ]
    for experts, rows, tokens in CASES:
        ours, peft, x, choice = both(experts, rows, tokens)
        gates, names = gates_of(choice, experts), [f"e{c}" for c in choice]
        with torch.inference_mode():
            assert torch.allclose(ours(x, gates), peft(x, adapter_names=names), atol=1e-4)
            times = alternate(
                {
                    "base": lambda: ours.base(x, None),  # noqa: B023
                    "peft": lambda: peft(x, adapter_names=names),  # noqa: B023
                    "ours": lambda: ours(x, gates),  # noqa: B023
                },
                rounds,
            )
        micro = {name: seconds * 1e6 for name, seconds in times.items()}
        lines.append(
            f"| {experts}, {rows}, {tokens} | {micro['base']:.0f} | {micro['peft']:.0f} | {micro['ours']:.0f} "
            f"| {micro['peft'] / micro['ours']:.1f} | {micro['ours'] / micro['base']:.2f} |"
        )
    lines += [
        "",
        "Skipping: 16 experts, 32 rows, 64 tokens; the rows choose among ...",
        "",
        "| present | us |",
        "|---|---|",
    ]
    ours, _, x, _ = both(16, 32, 64)
    for present in (16, 4, 1, 0):
        gates = gates_of([-1] * 32 if not present else [row % present for row in range(32)], 16)
        with torch.inference_mode():
            seconds = alternate({"ours": lambda: ours(x, gates)}, rounds)["ours"]  # noqa: B023
        lines.append(f"| {present} | {seconds * 1e6:.0f} |")
    return "\n".join(lines) + "\n"


def both(
    experts: int, rows: int, tokens: int, pairs: tuple[torch.Tensor, torch.Tensor] | None = None
) -> tuple[LowRankLinear, nn.Module, torch.Tensor, list[int]]:
    """Our filling and PEFT's layer with equal weights, an input, and the expert of each row.

    `pairs`: A (e, r, i) and B (e, r, o) with the scale in B; random ones where none are given.
    """
    torch.manual_seed(0)
    a, b = pairs or (torch.randn(experts, RANK, SIZE) * 0.02, torch.randn(experts, RANK, SIZE) * 0.02)
    base = Linear(SIZE, SIZE)
    nn.init.normal_(base.weight, 0, 0.02)
    ours = LowRankLinear(base, a.clone(), b.clone(), torch.ones(experts))
    model: nn.Module = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    for expert in range(experts):
        config = LoraConfig(r=a.shape[1], lora_alpha=a.shape[1], target_modules=["0"])
        model = inject_adapter_in_model(config, model, adapter_name=f"e{expert}")
    layer = model[0]
    with torch.no_grad():
        layer.base_layer.weight.copy_(base.weight)
        for expert in range(experts):
            layer.lora_A[f"e{expert}"].weight.copy_(a[expert])
            layer.lora_B[f"e{expert}"].weight.copy_(b[expert].t())
    model.eval()
    return ours, layer, torch.randn(rows, tokens, SIZE), [row % experts for row in range(rows)]


def gates_of(choice: list[int], experts: int) -> Gates:
    weights = torch.zeros(len(choice), experts)
    for row, expert in enumerate(choice):
        if expert >= 0:
            weights[row, expert] = 1.0
    return Gates.of(weights)
