"""Pure functions on tensors: products for mixed rows, losses, metrics. Knows nothing about modules or gates."""
