"""What comes from disk as tensors: bases, experts, routers and mixtures, each a folder that explains itself."""
