"""The files in which models keep their tensors.

Knows nothing about tensors, so that a folder is told from another one without importing what computes.
"""

TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Says which of several files has which tensor."""
