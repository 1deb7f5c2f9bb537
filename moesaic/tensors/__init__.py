"""Tensors on disk: safetensors files, alone or in shards, and JSON configurations, checked before they are believed."""
