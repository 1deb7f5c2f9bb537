"""Ten prompts for each of three domains that anybody can tell apart."""

BIRDS = ("wren", "owl", "finch", "hawk", "crow", "lark", "swan", "tit", "kite", "rook")
TEXTS = {
    "sums": [f"add {a} and {b} and say the sum" for a, b in zip("1234567890", "3456789012", strict=True)],
    "birds": [f"the {bird} sings in the old tree" for bird in BIRDS],
    "code": [f"def {name}(x): return x * {n}" for n, name in enumerate("abcdefghij")],
}
