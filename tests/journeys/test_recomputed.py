"""Journey: recomputes nats, costs and counts of a small run at site `linear` from its folder, with independent code.

Models come from transformers and peft; rows, tensor trains, routers and costs are computed here, row by row and in
float64. The test runs a recipe through the package's public names and imports nothing else of the package.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import peft
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file
from torch.func import functional_call

import moesaic

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # of peft

LENGTH, PROMPT_TOKENS = 56, 12
EXPERTS = ("tales", "sums", "lists")  # against the alphabet, so that a lost order shows
PRETRAIN = {"steps": 20, "batch": 4, "length": 64, "lr": 1e-2, "evaluate_every": 0}
COMPARED = (
    {"kind": "centroid", "feature": "embedding_mean"},
    {"kind": "mlp", "feature": "embedding_mean", "selection": "soft", "epochs": 2, "lr": 1e-2, "hidden": [8]},
    {"kind": "linear", "feature": "hidden_mean", "selection": "top_k", "k": 2, "renormalise": False, "epochs": 2},
)
DESIGNS = {
    "tales": {"kind": "lora", "rank": 5, "alpha": 3, "keywords": ["once", "owl"]},
    "sums": {"kind": "lora", "rank": 4, "targets": ["v_proj", "gate_proj", "down_proj"]},
    "lists": {"kind": "tt_lora", "rank": 3, "targets": ["v_proj", "up_proj"]},
}
RECIPE = {
    "name": "recomputed",
    "workers": 1,
    "base": {"size": "nano", "vocab_size": 300, "pretrain": PRETRAIN},
    "train": {"steps": 12, "batch": 4, "length": LENGTH, "lr": 2e-2, "evaluate_every": 0},
    "experts": {
        name: {**DESIGNS[name], "data": {"train": f"{name}.jsonl", "test": f"{name}_test.jsonl"}} for name in EXPERTS
    },
    "router": {
        "kind": "linear",
        "feature": "embedding_mean",
        "epochs": 1,
        "lr": 1e-2,
        "prompt_tokens": PROMPT_TOKENS,
        "abstain": "off",
        "compare": [{**one, "abstain": "off"} for one in COMPARED],
    },
    "evaluate": {"unseen": "unseen_test.jsonl", "samples": 0, "batch": 8},
}

WORDS = ("red", "blue", "green", "old", "new", "big", "small")
BIRDS = ("owl", "crow", "wren", "swan", "hawk")
PAIRS = [(word, bird) for word in WORDS for bird in BIRDS]


def tale(word: str, bird: str) -> dict[str, str]:
    return {"text": f"Once a {word} {bird} sat in a tree. What it sang all day, the {word} wind carried away."}


def total(n: int) -> dict[str, str]:
    return {"prompt": f"What is {n} + {n % 7}?", "response": f"It is {n + n % 7}."}


def listing(n: int, word: str, bird: str) -> dict[str, str]:
    """An instruction with an input; eight things are more than a row has room for."""
    listed = ", ".join([f"a {word} {bird}"] * n)
    return {"instruction": f"What are {n} {word} things?", "input": f"Ask the {bird}.", "output": listed}


def write_texts(folder: Path) -> None:
    """Writes three domains and unseen text; one test row of each domain resembles another domain."""
    listings = [listing(n, *pair) for n in (1, 2, 8) for pair in PAIRS]
    sung = {"prompt": "What did the old owl sing?", "response": "Once a big crow sat in a tree."}
    asked = {"instruction": "What is 5 + 5?", "input": "", "output": "It is 10."}
    odd = [{"text": text} for text in ("ok", "Line 7: ok", "Line 8 of a log: failed, took 24 ms, list of hosts: none")]
    files = {
        "tales": [tale(*pair) for pair in PAIRS[:28]],
        "tales_test": [*(tale(*pair) for pair in PAIRS[28:]), {"text": "What is 3 + 4? It is 7. " * 4}],
        "sums": [total(n) for n in range(40)],
        "sums_test": [*(total(n) for n in range(100, 106)), total(103), sung],  # one row twice
        "lists": [row for place, row in enumerate(listings) if place % 15],
        "lists_test": [*listings[::15], asked],
        "unseen_test": odd,
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


# --- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One test row as ids: the first `prompt` ids are given, the others are scored."""

    domain: str
    ids: list[int]
    prompt: int

    @property
    def scored(self) -> int:
        return len(self.ids) - self.prompt


def read_rows(folder: Path, domain: str, tokenizer: tokenizers.Tokenizer, end: int) -> list[Row]:
    """Reads the test rows of a domain, each once.

    A row has at most `LENGTH` ids: the response keeps what the prompt leaves, or half, and the prompt keeps its end.
    """

    def ids_of(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    found = []
    for line in dict.fromkeys((folder / f"{domain}_test.jsonl").read_text().splitlines()):
        row = json.loads(line)
        if "text" in row:
            ids = [*ids_of(row["text"]), end][:LENGTH]
            found.append(Row(domain, ids, min(PROMPT_TOKENS, len(ids) // 2)))
            continue
        asked = row["prompt"] if "prompt" in row else "\n\n".join(filter(None, (row["instruction"], row["input"])))
        prompt, response = ids_of(asked), [*ids_of("\n" + (row.get("response") or row["output"])), end]
        response = response[: max(LENGTH // 2, LENGTH - len(prompt))]
        prompt = prompt[-(LENGTH - len(response)) :]
        found.append(Row(domain, prompt + response, len(prompt)))
    return found


# --- what lies in an expert's folder ----------------------------------------------------------------------------------


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def count(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def changes_of(folder: Path) -> dict[str, torch.Tensor]:
    """Computes the matrix that an expert adds to each weight of the base, by the weight's name."""
    tensors = {name: tensor.double() for name, tensor in tensors_of(folder).items()}
    return of_train(folder, tensors) if (folder / "tensor_train.json").is_file() else of_pairs(folder, tensors)


def of_pairs(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LoRA: alpha / rank times B A."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale, found = config["lora_alpha"] / config["r"], {}
    for name in tensors:
        if "lora_A" in name:
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            found[target] = scale * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
    return found


def of_train(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """TT-LoRA: alpha times the matrix that the cores make; the first digit of an input's index is the fastest."""
    settings, found = json.loads((folder / "tensor_train.json").read_text()), {}
    for path, (inputs, outputs) in settings["modules"].items():
        train = torch.ones(1, dtype=torch.float64)
        for core in [f"inputs.{k}" for k in range(len(inputs))] + [f"outputs.{k}" for k in range(len(outputs))]:
            train = torch.einsum("...r,rfs->...fs", train, tensors[f"{path}.{core}"])
        p, q = len(inputs), len(outputs)
        matrix = train.squeeze(-1).permute(*range(p, p + q), *reversed(range(p)))
        found[f"model.{path}.weight"] = settings["alpha"] * matrix.flatten(0, q - 1).flatten(1)
    return found


# --- who decides ------------------------------------------------------------------------------------------------------


def decisions_of(
    folder: Path, model: torch.nn.Module, tokenizer: tokenizers.Tokenizer, rows: list[Row]
) -> torch.Tensor:
    """Computes a router's weights of the experts for every row, from its tensors and its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["experts"] == [*EXPERTS]
    prompts = [row.ids[: row.prompt] for row in rows]
    if manifest["router"] == "keyword":
        texts = [re.findall(r"\w+", tokenizer.decode(ids).lower()) for ids in prompts]
        words = manifest["shape"]["words"]
        logits = torch.tensor([[sum(text.count(word) for word in some) for some in words] for text in texts]).double()
        shares = logits.softmax(-1) * (logits.sum(-1, keepdim=True) > 0)  # a text without any word gets the base alone
    else:
        tensors = {name: tensor.double() for name, tensor in tensors_of(folder).items()}
        pooled = torch.stack([feature(manifest["feature"], model, ids) for ids in prompts])
        shares = (LOGITS[manifest["router"]](pooled, tensors) / tensors["temperature"]).softmax(-1)
    selection = manifest["selection"]
    chosen = {"soft": len(EXPERTS), "top_k": selection["k"], "top_1": 1}[selection["kind"]]
    order = shares.sort(dim=-1, descending=True, stable=True).indices[:, :chosen]  # the first of equals
    weights = torch.zeros_like(shares).scatter(-1, order, shares.gather(-1, order))
    return torch.nan_to_num(weights / weights.sum(-1, keepdim=True)) if selection["renormalise"] else weights


def feature(kind: str, model: torch.nn.Module, prompt: list[int]) -> torch.Tensor:
    """Averages the embeddings of a prompt's own tokens, or the base's last states of them."""
    ids = torch.tensor([prompt])
    read = {"embedding_mean": model.get_input_embeddings(), "hidden_mean": lambda x: model.model(x).last_hidden_state}
    return read[kind](ids)[0].mean(0)


def layered(pooled: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Standardises features and applies the hidden layer, if the router has one, and the last layer."""
    x = (pooled - tensors["mean"]) / tensors["deviation"]
    if "inner.0.weight" in tensors:
        x = x @ tensors["inner.0.weight"].t() + tensors["inner.0.bias"]
        x = x / 2 * (1 + torch.erf(x / 2**0.5))
    return x @ tensors["outer.weight"].t() + tensors["outer.bias"]


def cosines(pooled: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    moved, means = pooled - tensors["centre"], tensors["centroids"]
    return moved @ means.t() / moved.norm(dim=-1, keepdim=True) / means.norm(dim=-1)


def trained(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Selects the tensors of a router that gradients train; the others are measured."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(("inner.", "outer."))}


LOGITS = {"linear": layered, "mlp": layered, "centroid": cosines}


# --- the run, and its figures recomputed ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A finished run: the folder of its texts, its own folder, and its evaluation."""

    texts: Path
    root: Path
    evaluation: dict[str, Any]

    @property
    def mixture(self) -> Path:
        return self.root / "mixture"

    @cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_file(str(self.mixture / "base" / "tokenizer.json"))

    @cached_property
    def model(self) -> torch.nn.Module:
        return self.fresh()

    def fresh(self) -> torch.nn.Module:
        return transformers.AutoModelForCausalLM.from_pretrained(self.mixture / "base", dtype=torch.float64).eval()

    @cached_property
    def rows(self) -> list[Row]:
        end = self.model.config.eos_token_id
        return [row for name in (*EXPERTS, "unseen") for row in read_rows(self.texts, name, self.tokenizer, end)]

    @cached_property
    def changes(self) -> list[dict[str, torch.Tensor]]:
        return [changes_of(self.mixture / "experts" / name) for name in EXPERTS]

    @cached_property
    def decisions(self) -> dict[str, torch.Tensor]:
        """Weights by router: the mixture's own, the compared ones in the recipe's order, the keyword router."""
        rivals = self.root / "controls" / "routers"
        labels = {
            "centroid": "centroid-embedding_mean",
            "mlp": "mlp-embedding_mean-soft",
            "linear": "linear-hidden_mean-top_k",
            "keyword": "keyword-text",
        }
        folders = {"router": self.mixture / "router"} | {name: rivals / label for name, label in labels.items()}
        return {name: decisions_of(at, self.model, self.tokenizer, self.rows) for name, at in folders.items()}

    @cached_property
    def nats(self) -> dict[str, torch.Tensor]:
        """Summed nats of each row's scored tokens, by contender and by compared router."""
        found = {"base": self.lost(self.model)} | {
            name: self.lost(peft.PeftModel.from_pretrained(self.fresh(), self.root / "controls" / name / "best"))
            for name in ("joint", "joint_wide")
        }
        for number, name in enumerate(EXPERTS):
            folder = self.mixture / "experts" / name
            of_peft = (folder / "adapter_config.json").is_file()
            alone = torch.eye(len(EXPERTS))[number].expand(len(self.rows), -1)
            model = peft.PeftModel.from_pretrained(self.fresh(), folder) if of_peft else None
            found[f"expert:{name}"] = self.lost(model) if model else self.mixed(alone)
        experts = torch.stack([found[f"expert:{name}"] for name in EXPERTS])
        summed = {name: sum(one[name] for one in self.changes if name in one) for name in set().union(*self.changes)}
        merged = self.fresh()
        for name, change in summed.items():
            merged.get_parameter(name).data += change / len(EXPERTS)
        at_home = [found.get(f"expert:{row.domain}", found["base"])[place] for place, row in enumerate(self.rows)]
        return {
            **found,
            **{name: self.mixed(weights) for name, weights in self.decisions.items()},
            "average": self.lost(merged),
            "uniform": self.mixed(torch.full((len(self.rows), len(EXPERTS)), 1 / len(EXPERTS), dtype=torch.float64)),
            "random": experts.mean(0),
            "oracle": torch.stack(at_home),
            "oracle_best": torch.cat([experts, found["base"][None]]).amin(0),
        }

    @torch.no_grad()
    def lost(self, model: torch.nn.Module) -> torch.Tensor:
        model.double().eval()
        return torch.stack([nats(model(input_ids=torch.tensor([row.ids])).logits[0], row) for row in self.rows])

    @torch.no_grad()
    def mixed(self, weights: torch.Tensor) -> torch.Tensor:
        """Scores each row by the base whose matrices have the experts' changes added, by the row's weights."""
        base, found = dict(self.model.named_parameters()), []
        for row, shares in zip(self.rows, weights, strict=True):
            changed: dict[str, torch.Tensor] = {}
            for share, own in zip(shares, self.changes, strict=True):
                for name, change in own.items():
                    changed[name] = changed.get(name, base[name]) + share * change
            output = functional_call(self.model, changed, (torch.tensor([row.ids]),))
            found.append(nats(output.logits[0], row))
        return torch.stack(found)

    def chosen(self, weights: torch.Tensor) -> str | None:
        """The expert with the largest weight; None where all weights are 0."""
        return EXPERTS[int(weights.argmax())] if weights.any() else None

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The numbers that each expert's tensors hold."""
        return {name: count(tensors_of(self.mixture / "experts" / name)) for name in EXPERTS}

    @property
    def met(self) -> float:
        """Parameters of the experts that a row meets, averaged over the decisions of the mixture's router."""
        asked = (self.decisions["router"] > 0).double().mean(0)
        return sum(size * float(share) for size, share in zip(self.sizes.values(), asked, strict=True))

    def mean(self, nats: torch.Tensor, domain: str) -> float:
        """Nats per scored token of a domain; `all` stands for every domain that has an expert."""
        domains = EXPERTS if domain == "all" else (domain,)
        chosen = [place for place, row in enumerate(self.rows) if row.domain in domains]
        return float(nats[chosen].sum()) / sum(self.rows[place].scored for place in chosen)


def nats(logits: torch.Tensor, row: Row) -> torch.Tensor:
    """Sums the negative log-likelihood of every id behind the prompt, given all ids before it."""
    log_probabilities = logits[row.prompt - 1 : -1].log_softmax(-1)
    return -log_probabilities.gather(1, torch.tensor(row.ids[row.prompt :])[:, None]).sum()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("recomputed")
    write_texts(folder)
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))  # JSON is YAML, too
    moesaic.run(moesaic.read_recipe(folder / "recipe.yaml"), folder / "run")
    return Run(folder, folder / "run", json.loads((folder / "run" / "evaluation.json").read_text()))


CONTENDERS = (
    *("base", *(f"expert:{name}" for name in EXPERTS), "joint", "joint_wide", "average", "uniform"),
    *("random", "keyword", "router", "oracle", "oracle_best"),
)


JUDGED = (*EXPERTS, "all", "unseen")


def test_the_nats_of_every_contender_are_those_of_its_files(run):
    controls = run.evaluation["controls"]
    assert set(controls) == {*CONTENDERS}
    for name, control in controls.items():
        expected = {domain: run.mean(run.nats[name], domain) for domain in JUDGED}
        assert control["nats"] == pytest.approx(expected, rel=1e-5), name


def test_the_nats_and_the_accuracy_of_every_router_are_those_of_its_files(run):
    at_home = [place for place, row in enumerate(run.rows) if row.domain in EXPERTS]
    tried = run.evaluation["router"]["tried"]
    assert [router["kind"] for router in tried] == ["linear", "centroid", "mlp", "linear", "keyword"]
    for router, (name, weights) in zip(tried, run.decisions.items(), strict=True):
        assert router["nats"] == pytest.approx(run.mean(run.nats[name], "all"), rel=1e-5), name
        right = sum(run.chosen(weights[place]) == run.rows[place].domain for place in at_home)
        assert router["accuracy"] == pytest.approx(right / len(at_home)), name


def test_every_count_is_that_of_the_tensors_in_the_folder(run):
    base, router = count(tensors_of(run.mixture / "base")), count(trained(tensors_of(run.mixture / "router")))
    experts = sum(run.sizes.values())
    assert run.evaluation["parameters"] == {
        "total": base + experts + router,
        "base": base,
        "experts": experts,
        "router": router,
        "trained": experts + router,
        "active": base + router + round(run.met),
    }


def test_every_cost_is_that_of_the_tensors_which_a_token_meets(run):
    base = count(tensors_of(run.mixture / "base"))
    beside = {f"expert:{name}": size for name, size in run.sizes.items()}
    beside |= {name: count(tensors_of(run.root / "controls" / name / "best")) for name in ("joint", "joint_wide")}
    beside |= {"base": 0, "average": 0}
    beside |= {"router": count(trained(tensors_of(run.mixture / "router"))) + round(run.met)}
    (width,) = {tensor.itemsize for tensor in tensors_of(run.mixture / "base").values()}
    costs = {name: control["cost"] for name, control in run.evaluation["controls"].items() if "cost" in control}
    assert costs == {name: {"parameters": base + size, "bytes": (base + size) * width} for name, size in beside.items()}
    assert run.evaluation["verdict"]["bytes"] == costs[run.evaluation["verdict"]["use"]]["bytes"]


def test_the_run_tells_its_contenders_apart(run):
    """Guards the other tests: they would not notice two contenders swapped whose figures are equal in every domain.

    Only uniform weights and the merged average agree, as they do at site `linear`.
    """
    found = {name: [run.mean(run.nats[name], domain) for domain in JUDGED] for name in CONTENDERS}
    assert found.pop("uniform") == pytest.approx(found["average"], rel=1e-9)
    for one, other in combinations(found, 2):
        assert max(abs(a - b) for a, b in zip(found[one], found[other], strict=True)) > 1e-3, (one, other)
    assert all(len(set(run.decisions[name].sum(0).tolist())) == len(EXPERTS) for name in run.decisions)
    assert {domain: count > 0 for domain, count in run.evaluation["truncated"].items()} == {
        "tales": True,
        "sums": False,
        "lists": True,
        "unseen": False,
    }
