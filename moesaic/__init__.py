"""moesaic composes mixture-of-experts language models out of models and adapters that already exist."""

__version__ = "0.1.0"
