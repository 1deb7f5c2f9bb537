"""Property: toy fillings of both slots and of the mixture interface equal a naive loop over rows.

All in float64. Every filling here keeps the slot's one signature; none holds state between calls.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moesaic.adapters import attach
from moesaic.adapters.lora import LowRankLinear
from moesaic.config import Feature
from moesaic.errors import GatesError
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts
from moesaic.model.mixture import AdapterMixture, Session
from moesaic.nn import GLU, Cache, Slots
from moesaic.routing import Gates, Routing, Selection
from moesaic.testing import FixedRouter, prefilled, tiny_config, tiny_decoder, toy_expert

F64 = torch.float64
HALF = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]], dtype=F64)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(F64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def ids(rows: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(61, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def swiglu(seed: int) -> GLU:
    ffn = GLU(tiny_config())
    generator = torch.Generator().manual_seed(seed)
    for weight in ffn.parameters():
        nn.init.normal_(weight, 0, 0.2, generator=generator)
    return ffn


# --- ffn slot -------------------------------------------------------------------------------------------------------


class SparseFFN(nn.Module):
    """Token-level: routes by itself, computes only chosen experts, returns its Routing."""

    def __init__(self, experts: int, k: int):
        super().__init__()
        self.router, self.k = nn.Linear(32, experts, bias=False), k
        self.experts = nn.ModuleList(swiglu(e) for e in range(experts))

    def forward(self, x, gates):
        tokens = x.flatten(0, 1)[:, None]
        routing = Selection(kind="top_k", k=self.k)(self.router(tokens[:, 0]))
        y = torch.zeros_like(tokens)
        for expert, rows, values in Gates.of(routing.weights).groups():
            out, _ = self.experts[expert](tokens[rows], None)
            y = y.index_add(0, rows, out * values[:, None, None])
        return y.view_as(x), routing


class StackedSparseFFN(nn.Module):
    """The same sums with no number read on the host: group boundaries stay on the device, so it compiles whole."""

    def __init__(self, experts: int, k: int):
        super().__init__()
        self.router, self.k = nn.Linear(32, experts, bias=False), k
        self.up = nn.Parameter(torch.randn(experts, 32, 32) * 0.2)

    def forward(self, x, gates):
        tokens = x.flatten(0, 1)
        values, chosen = self.router(tokens).softmax(-1).topk(self.k, -1)
        mine = Gates.of_choices(chosen, values, self.up.shape[0])
        out = torch.bmm(tokens[mine.rows][:, None], self.up[mine.experts])[:, 0] * mine.values[:, None]
        return torch.zeros_like(tokens).index_add(0, mine.rows, out).view_as(x), Routing(mine.weights, mine.weights)


class TokenLoRAFFN(nn.Module):
    """Token-level LoRA: makes its own Gates over b x t rows and hands them to ordinary linear slots."""

    def __init__(self, ffn: GLU, adapters: int):
        super().__init__()
        self.ffn, self.router = ffn, nn.Linear(32, adapters, bias=False)
        for name in ("gate_proj", "up_proj", "down_proj"):
            base = getattr(ffn, name)
            a, b = torch.randn(adapters, 2, base.in_features), torch.randn(adapters, 2, base.out_features)
            setattr(ffn, name, LowRankLinear(base, a, b, torch.full((adapters,), 0.1)))

    def forward(self, x, gates):
        tokens = x.flatten(0, 1)[:, None]
        routing = Selection(kind="top_1")(self.router(tokens[:, 0]))
        y, _ = self.ffn(tokens, Gates.of(routing.weights))
        return y.view_as(x), routing


class SequenceFFN(nn.Module):
    """Sequence-level: the gates that came down say which ffn each row uses, one or several by weight."""

    def __init__(self, experts: int):
        super().__init__()
        self.experts = nn.ModuleList(swiglu(e) for e in range(experts))
        self.base = swiglu(99)
        self.calls: list[int] = []

    def forward(self, x, gates):
        y = torch.where(gates.weights.sum(-1)[:, None, None] > 0, 0.0, self.base(x, None)[0])
        for expert, rows, values in gates.groups():
            self.calls.append(expert)
            out, _ = self.experts[expert](x[rows], None)
            y = y.index_add(0, rows, out * values[:, None, None])
        return y, None


def test_sparse_ffn_returns_its_routing_and_equals_a_loop_over_tokens():
    decoder = tiny_decoder()
    decoder.layers[1].mlp = sparse = SparseFFN(4, 2)
    out = decoder(ids(3, 5))
    assert [r is not None for r in out.routings] == [False, True, False]
    assert out.routings[1].weights.shape == (15, 4)

    x = torch.randn(3, 5, 32)
    y, _ = sparse(x, None)
    for row in range(3):
        for token in range(5):
            one = x[row : row + 1, token : token + 1]
            probabilities = sparse.router(one[0, 0]).softmax(-1)
            values, experts = probabilities.topk(2)
            naive = sum(
                v * sparse.experts[e](one, None)[0] for v, e in zip(values / values.sum(), experts, strict=True)
            )
            close(y[row, token], naive[0, 0])


def test_token_level_lora_inside_an_ffn_equals_a_loop_over_tokens():
    ffn = TokenLoRAFFN(swiglu(0), 3)
    x = torch.randn(2, 6, 32)
    y, routing = ffn(x, None)
    for index, token in enumerate(x.flatten(0, 1)):
        adapter = int(routing.best[index])
        dense = copy.deepcopy(swiglu(0))
        for name in ("gate_proj", "up_proj", "down_proj"):
            slot = getattr(ffn.ffn, name)
            getattr(dense, name).weight.data += 0.1 * slot.b[adapter].t() @ slot.a[adapter]
        close(y.flatten(0, 1)[index], dense(token[None, None], None)[0][0, 0])


@pytest.mark.parametrize("selection", [Selection(kind="soft"), Selection(kind="top_1")], ids=["weighted", "select"])
def test_sequence_ffn_mixture_equals_each_row_alone(selection):
    decoder = tiny_decoder()
    for block in decoder.layers:
        block.mlp = SequenceFFN(3)
    gates = Gates.of(selection(torch.tensor([[2.0, 0, 0], [0, 0, 3.0], [0, 0, 1.0]])).weights)
    batch = decoder(ids(3, 6), None, gates).logits
    for row in range(3):
        naive = tiny_decoder()
        for block, source in zip(naive.layers, decoder.layers, strict=True):
            block.mlp = NaiveSum(source.mlp.experts, gates.weights[row])
        close(batch[row], naive(ids(3, 6)[row : row + 1]).logits[0])


class NaiveSum(nn.Module):
    def __init__(self, experts, weights):
        super().__init__()
        self.experts, self.weights = experts, weights

    def forward(self, x, gates):
        return sum(w * e(x, None)[0] for w, e in zip(self.weights, self.experts, strict=True)), None


def test_select_means_skip_an_expert_without_rows_is_never_called():
    ffn = SequenceFFN(4)
    ffn(torch.randn(3, 2, 32), Gates.of(Selection(kind="top_1")(torch.eye(4)[[2, 0, 2]]).weights))
    assert ffn.calls == [0, 2]


# --- linear slot ----------------------------------------------------------------------------------------------------


def adapted(*experts) -> Decoder:
    decoder = tiny_decoder()
    attach(decoder, list(experts))
    return decoder


def merged(weights, *experts) -> Decoder:
    decoder = tiny_decoder()
    with torch.no_grad():
        for weight, expert in zip(weights, experts, strict=True):
            for path, (a, b) in expert.pairs.items():
                decoder.get_submodule(path).weight += weight * expert.scale * (b.t() @ a)
    return decoder


def test_rows_with_other_experts_and_rows_that_abstain_equal_each_alone():
    """Different ranks and targets; weighted, chosen and abstaining rows in one batch; row 2 equals the base."""
    plain = tiny_decoder()
    one = toy_expert(plain, 1, rank=3)
    two = toy_expert(plain, 2, rank=5, targets=["q_proj", "down_proj"], layers=range(1, 3))
    batch = adapted(one, two)(ids(4, 6), None, Gates.of(HALF)).logits
    for row in range(4):
        close(batch[row], merged(HALF[row], one, two)(ids(4, 6)[row : row + 1]).logits[0])
    close(batch[2], plain(ids(4, 6)[2:3]).logits[0])


class ExpertHeads(nn.Module):
    """Heads of unequal size, each into its own labels of the global space; other labels stay out of reach."""

    def __init__(self, labels: list[list[int]], total: int):
        super().__init__()
        self.labels, self.total = labels, total
        self.weights = nn.ParameterList(torch.randn(len(some), 32) for some in labels)

    def forward(self, x, gates):
        y = x.new_full((*x.shape[:2], self.total), -1e4)
        for expert, rows, _ in gates.groups():
            places = torch.tensor(self.labels[expert])
            y[rows[:, None, None], torch.arange(x.shape[1])[:, None], places] = x[rows] @ self.weights[expert].t()
        return y


def test_heads_of_unequal_size_share_one_label_space():
    decoder = tiny_decoder()
    decoder.lm_head = heads = ExpertHeads([[0, 1], [2, 3, 4]], 5)
    gates = Gates.of(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    logits = decoder(ids(2, 4), None, gates).logits
    x, _ = decoder.run(decoder.embed_tokens(ids(2, 4)), None, range(3), gates)
    close(logits[0, :, 2:], decoder.norm(x[0]) @ heads.weights[1].t())
    close(logits[1, :, :2], decoder.norm(x[1]) @ heads.weights[0].t())
    assert set(logits[0].argmax(-1).tolist()) <= {2, 3, 4}
    wrong_expert = F.cross_entropy(logits[0], torch.zeros(4, dtype=torch.long))
    assert torch.isfinite(wrong_expert)


def test_missing_gates_and_gates_of_another_batch_raise():
    decoder = adapted(toy_expert(tiny_decoder(), 1))
    with pytest.raises(GatesError, match="without gates"):
        decoder(ids(2, 3))
    with pytest.raises(GatesError, match="expected 2 rows; got 3 rows"):
        decoder(ids(2, 3), None, Gates.one(0, 3, 1, torch.zeros(1)))


# --- the mixture interface ------------------------------------------------------------------------------------------


def mixture(logits, feature="hidden_mean", layers=range(99), kind="top_1") -> AdapterMixture:
    experts = [toy_expert(tiny_decoder(), seed, layers=layers) for seed in (1, 2)]
    decoder, parsed = adapted(*experts), Feature.parse(feature)
    decider = Decider.over(decoder, ("one", "two"), FixedRouter(logits), parsed, Selection(kind=kind))
    return AdapterMixture(decoder, decider, layers.start)


def prompts(*lengths: int) -> Prompts:
    rows = [ids(1, n, seed=n)[0].tolist() for n in lengths]
    return Prompts.pad(rows, ["" for _ in rows])


def decode_all(model, batch: Prompts, steps: int) -> torch.Tensor:
    """Greedy ids of each row, through the cache."""
    room = model.room(len(batch.ids), batch.ids.shape[1] + steps)
    logits, session = model.prefill(batch, room, room.spare.take(len(batch.ids)))
    found = []
    for _ in range(steps):
        found.append(logits.argmax(-1))
        logits, session = model.decode(found[-1], session)
    return torch.stack(found, 1)


def greedy_alone(model: AdapterMixture, prompt: list[int], weights: torch.Tensor, steps: int) -> list[int]:
    """The naive reference: no cache, no batch, no padding."""
    row = list(prompt)
    for _ in range(steps):
        row.append(int(model.score(torch.tensor([row]), Gates.of(weights[None]))[0, -1].argmax()))
    return row[len(prompt) :]


@pytest.mark.parametrize("kind", ["top_1", "soft"])
def test_prompts_of_unequal_length_decode_together_as_each_alone(kind):
    model, batch = mixture([[1.0, 0], [0, 2.0], [3.0, 0]], kind=kind), prompts(3, 9, 5)
    weights = model.route(batch).weights
    together = decode_all(model, batch, 6)
    for row, length in enumerate((3, 9, 5)):
        assert together[row].tolist() == greedy_alone(model, batch.ids[row, :length].tolist(), weights[row], 6)


@pytest.mark.parametrize("feature", ["hidden@1", "hidden@2_last"])
def test_hidden_at_k_shares_the_prefill_with_the_cache(feature, monkeypatch):
    model = mixture([[1.0, 0], [0, 1.0]], feature, layers=range(2, 3))
    batch, passes = prompts(4, 7), []
    run = Decoder.run

    def counted(s, x, c, layers, g, m=None):
        return passes.append(layers) or run(s, x, c, layers, g, m)

    monkeypatch.setattr(Decoder, "run", counted)
    seen = []
    monkeypatch.setattr(FixedRouter, "__call__", lambda self, features: seen.append(features) or self.logits)
    logits, session = prefilled(model, batch, 4)
    depth = int(feature[7])
    assert passes == [range(depth), range(depth, 3)], "one pass over every block, none twice"
    passes.clear()
    model.route(batch)
    close(seen[0], seen[1])
    for row, length in enumerate((4, 7)):
        alone = model.score(batch.ids[row : row + 1, :length], session.gates.select([row]))
        close(logits[row], alone[0, -1])


def test_rows_join_and_leave_between_decode_steps():
    first, second = mixture([[1.0, 0], [0, 1.0]]), mixture([[0, 1.0]])
    second.decoder, room = first.decoder, first.room(3, 16)
    early, late = prompts(3, 8), prompts(5)
    logits, session = first.prefill(early, room, room.spare.take(2))
    one = logits.argmax(-1)
    logits, session = first.decode(one, session)
    two = logits.argmax(-1)
    new_logits, new_session = second.prefill(late, room, room.spare.take(1))
    session = Session.join([session, new_session])
    logits, session = first.decode(torch.cat([two, new_logits.argmax(-1)]), session)
    three = logits.argmax(-1)
    session = session.select([2, 0])
    four = first.decode(three[[2, 0]], session)[0].argmax(-1)
    expected = [greedy_alone(first, p, w, 4) for p, w in zip(rows_of(early), torch.eye(2), strict=True)]
    late_expected = greedy_alone(first, rows_of(late)[0], torch.tensor([0.0, 1.0]), 3)
    assert [int(one[0]), int(two[0]), int(three[0]), int(four[1])] == expected[0]
    assert [int(one[1]), int(two[1]), int(three[1])] == expected[1][:3]
    assert [int(new_logits.argmax()), int(three[2]), int(four[0])] == late_expected


def rows_of(batch: Prompts) -> list[list[int]]:
    return [row[:n].tolist() for row, n in zip(batch.ids, batch.lengths, strict=True)]


def test_three_continuations_of_one_prompt_share_its_prefill():
    model = mixture([[1.0, 0], [0, 1.0]])
    batch = prompts(4, 6)
    room = model.room(6, 12)
    logits, session = model.prefill(batch, room, (0, 3))
    session = session.repeat([(0, 1, 2), (3, 4, 5)])
    starts = logits.topk(3, -1).indices.flatten()
    following, _ = model.decode(starts, session)
    for index, start in enumerate(starts.tolist()):
        row = index // 3
        alone = torch.tensor([[*rows_of(batch)[row], start]])
        close(following[index], model.score(alone, Gates.of(torch.eye(2)[row : row + 1]))[0, -1])


class WholeModels:
    """Whole decoders as experts, each with a cache of only its rows; distributions are mixed by weight."""

    def __init__(self, models: list[Decoder], router, kind: str):
        self.models, self.router, self.selection = models, router, Selection(kind=kind)
        self.names = tuple(str(m) for m in range(len(models)))

    def route(self, batch: Prompts) -> Routing:
        return self.selection(self.router(batch.texts))

    def room(self, rows: int, tokens: int) -> Slots:
        return Slots(self.models[0].config, rows, tokens, self.models[0].norm.weight)

    def prefill(self, batch: Prompts, room: Slots, slots, forced: Routing | None = None):
        routing = self.route(batch) if forced is None else forced
        gates, one = Gates.of(routing.weights), self.models[0]
        caches = {e: Cache.empty(one.config, len(r), room.capacity, one.norm.weight) for e, r, _ in gates.groups()}
        logits, caches = self.mix(
            batch.ids, gates, caches, {e: batch.lengths[r].tolist() for e, r, _ in gates.groups()}
        )
        return logits[torch.arange(len(logits)), batch.lengths - 1], (gates, caches)

    def decode(self, tokens, session):
        gates, caches = session
        logits, caches = self.mix(
            tokens[:, None], gates, caches, {e: [1] * len(cache.slots) for e, cache in caches.items()}
        )
        return logits[:, 0], (gates, caches)

    def mix(self, tokens, gates, caches, advance):
        total = 0.0
        for expert, rows, values in gates.groups():
            logits = self.models[expert](tokens[rows], caches[expert]).logits
            caches = {**caches, expert: caches[expert].advance_each(advance[expert])}
            mixed = torch.zeros(*tokens.shape, logits.shape[-1])
            total = total + mixed.index_add(0, rows, logits.softmax(-1) * values[:, None, None])
        return total.log(), caches


@pytest.mark.parametrize("kind", ["top_1", "soft"])
def test_whole_models_with_their_own_caches_equal_a_loop_over_rows(kind):
    models = [tiny_decoder(seed) for seed in (1, 2)]
    model = WholeModels(models, FixedRouter([[1.0, 0], [0, 1.0], [2.0, 1.0]]), kind)
    batch = prompts(3, 6, 4)
    weights = model.route(batch).weights
    together = decode_all(model, batch, 5)
    for row, prompt in enumerate(rows_of(batch)):
        for _ in range(5):
            each = torch.stack([m(torch.tensor([prompt])).logits[0, -1].softmax(-1) for m in models])
            prompt.append(int((weights[row] @ each).argmax()))
        assert together[row].tolist() == prompt[-5:]


# --- compile and shard ----------------------------------------------------------------------------------------------


@pytest.mark.compile
@torch.no_grad()
def test_compiles_whole_with_gates_cache_and_a_token_level_filling():
    torch.set_default_dtype(torch.float32)
    decoder = tiny_decoder(dtype=torch.float32, num_layers=2)
    attach(decoder, [toy_expert(decoder, 1), toy_expert(decoder, 2, rank=5)])
    decoder.layers[1].mlp = StackedSparseFFN(4, 2)
    compiled = torch.compile(decoder, fullgraph=True)
    gates = Gates.of(HALF.float())
    torch.testing.assert_close(compiled(ids(4, 6), None, gates).logits, decoder(ids(4, 6), None, gates).logits)
    one, two = (Cache.empty(decoder.config, 4, 16, decoder.norm.weight) for _ in range(2))
    for step in range(3):
        chunk = ids(4, 1, seed=step)
        torch.testing.assert_close(compiled(chunk, one, gates).logits, decoder(chunk, two, gates).logits)
        one = one.advance(1)
        two = two.advance(1)


def test_fully_shard_on_a_process_group_of_one(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    torch.set_default_dtype(torch.float32)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        plain, sharded = (tiny_decoder(dtype=torch.float32) for _ in range(2))
        gates = Gates.of(HALF.float())
        for decoder in (plain, sharded):
            attach(decoder, [toy_expert(tiny_decoder(dtype=torch.float32), seed) for seed in (1, 2)])
        mesh = init_device_mesh("cpu", (1,))
        for block in sharded.layers:
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        register_fsdp_forward_method(sharded, "run")
        out = sharded(ids(4, 6), None, gates).logits
        torch.testing.assert_close(out, plain(ids(4, 6), None, gates).logits)
        out.square().mean().backward()
        plain(ids(4, 6), None, gates).logits.square().mean().backward()
        grads = dict(plain.named_parameters())
        for name, weight in sharded.named_parameters():
            torch.testing.assert_close(weight.grad.full_tensor(), grads[name].grad)
    finally:
        torch.distributed.destroy_process_group()
