"""Pure functions on tensors: low-rank products for mixed rows, and losses. Know nothing of modules or gates."""
