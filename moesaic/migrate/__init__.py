"""Configs of other systems as recipes. Knows nothing about weights or torch: plain data in, plain data out."""

from moesaic.migrate.gated import Translated, files_by_name, translated

__all__ = ["Translated", "files_by_name", "translated"]
