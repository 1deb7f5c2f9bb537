"""Formats of other libraries: model families, encoders and PEFT adapters, read and written."""
