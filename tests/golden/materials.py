"""Texts, bases and adapters of the golden recipes, written by formulas that no processor rounds.

Every weight is an integer of a seeded generator times a power of two. Knows nothing about recipes or results.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel
from torch import Tensor

WIDTH, LAYERS, HEADS, KV_HEADS, INNER, CONTEXT = 32, 2, 4, 2, 48, 64
BIRDS = ("wren", "owl", "finch", "hawk", "crow", "lark", "swan", "tit")
COLOURS, DOES, HOW = ("red", "blue", "green"), ("sings", "sleeps", "flies"), ("loud", "quiet", "fast")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, *COLOURS, *BIRDS[:3], *DOES, *HOW, "the", "a")


def write_materials(folder: Path) -> None:
    """Write everything that the recipes name: *.jsonl, the folders `base` and `encoder`, and two adapters."""
    for name, make in (("sums", sums), ("birds", birds), ("code", code)):
        write_rows(folder / f"{name}_train.jsonl", make(range(32)))
        write_rows(folder / f"{name}_test.jsonl", make(range(100, 106)))
    write_rows(folder / "unseen.jsonl", ({"text": f"on day {n} rain fell, and {n % 5} ships left"} for n in range(6)))
    write_labelled(folder)
    write_base(folder / "base")
    write_encoder(folder / "encoder")
    write_adapter(folder / "adapter_birds", seed=11, targets={"q_proj": (WIDTH, WIDTH), "down_proj": (INNER, WIDTH)})
    write_adapter(folder / "adapter_sums", seed=12, targets={"v_proj": (WIDTH, WIDTH // HEADS * KV_HEADS)})


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- texts ------------------------------------------------------------------------------------------------------------


def sums(numbers: range) -> list[dict[str, object]]:
    return [{"prompt": f"add {n} to {n % 7}", "response": f"{n + n % 7}"} for n in numbers]


def birds(numbers: range) -> list[dict[str, object]]:
    return [{"prompt": f"the {BIRDS[n % 8]} of day {n}", "response": f"sings {BIRDS[n * 3 % 8]}"} for n in numbers]


def code(numbers: range) -> list[dict[str, object]]:
    return [{"prompt": f"def {BIRDS[n % 8]}_{n}(x):", "response": f"return x*{n % 9}"} for n in numbers]


def write_labelled(folder: Path) -> None:
    """Write rows of two tasks: which bird a text names, and whether two texts say the same."""
    every = [" ".join(("the", *words)) for words in product(COLOURS, BIRDS[:3], DOES, HOW)]
    every = [every[n * 35 % len(every)] for n in range(len(every))]  # 35 and 81 share no factor: each text once
    named = [{"text": text, "label": text.split()[2]} for text in every]
    other = [*every[1:], every[0]]
    pairs = [
        {"sentence1": text, "sentence2": (another if n % 2 == 0 else text).replace("the", "a"), "label": n % 2}
        for n, (text, another) in enumerate(zip(every, other, strict=True))
    ]
    for name, rows in (("named", named), ("pairs", pairs)):
        for split, part in (("train", rows[:40]), ("validation", rows[40:52]), ("test", rows[52:])):
            write_rows(folder / f"{name}_{split}.jsonl", part)


# --- weights ----------------------------------------------------------------------------------------------------------


def integers(seed: int, shapes: Mapping[str, Sequence[int]], scale: float = 2**-8) -> dict[str, Tensor]:
    """Tensors of integers from -64 to 63 times a power of two; norms are 1, and their biases 0."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        drawn = torch.randint(-64, 64, tuple(shape), generator=generator)
        if "norm" in name.lower():
            tensors[name] = torch.full(tuple(shape), float(name.endswith("weight")))
        else:
            tensors[name] = drawn.float() * scale
    return tensors


def write_model(folder: Path, config: Mapping[str, object], tokenizer: Tokenizer, tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write_base(folder: Path) -> None:
    """Write a Llama of two layers whose tokens are the 256 bytes and an end."""
    end, letters = "<|end|>", sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate([end, *letters])}, []))
    tokenizer.add_special_tokens([end])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": 1 + len(letters),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": WIDTH // HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "bos_token_id": None,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }
    shapes = {"model.embed_tokens.weight": (1 + len(letters), WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        at, grouped = f"model.layers.{layer}", WIDTH // HEADS * KV_HEADS
        shapes |= {f"{at}.input_layernorm.weight": (WIDTH,), f"{at}.post_attention_layernorm.weight": (WIDTH,)}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (grouped, WIDTH) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (WIDTH, INNER)
    write_model(folder, config, tokenizer, integers(1, shapes))


def write_encoder(folder: Path) -> None:
    """Write a BERT of two layers whose tokens are whole words."""
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens([*SPECIAL])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "vocab_size": len(WORDS),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "max_position_embeddings": 20,
        "torch_dtype": "float32",
    }
    rows = {"word": len(WORDS), "position": 20, "token_type": 2}
    shapes: dict[str, tuple[int, ...]] = {f"embeddings.{n}_embeddings.weight": (r, WIDTH) for n, r in rows.items()}
    norms, dense = ["embeddings.LayerNorm"], {"pooler.dense": (WIDTH, WIDTH)}
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
        dense |= {f"{at}.attention.self.{name}": (WIDTH, WIDTH) for name in ("query", "key", "value")}
        dense |= {f"{at}.attention.output.dense": (WIDTH, WIDTH)}
        dense |= {f"{at}.intermediate.dense": (INNER, WIDTH), f"{at}.output.dense": (WIDTH, INNER)}
    for name in norms:
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for name, shape in dense.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    write_model(folder, config, tokenizer, integers(2, shapes))


def write_adapter(folder: Path, seed: int, targets: Mapping[str, tuple[int, int]], rank: int = 2) -> None:
    """Write a LoRA adapter for `base` as peft would; `targets`: inputs and outputs of each matrix."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": 4.0,
        "lora_dropout": 0.0,
        "target_modules": [*targets],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    shapes = {}
    for layer, (target, (inputs, outputs)) in product(range(LAYERS), targets.items()):
        room = "mlp" if target == "down_proj" else "self_attn"
        at = f"base_model.model.model.layers.{layer}.{room}.{target}"
        shapes |= {f"{at}.lora_A.weight": (rank, inputs), f"{at}.lora_B.weight": (outputs, rank)}
    save_file(integers(seed, shapes), folder / "adapter_model.safetensors", {"format": "pt"})
