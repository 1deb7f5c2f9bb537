"""The hub of models: where a model lies, how it comes from there, and how one goes there with its card."""
