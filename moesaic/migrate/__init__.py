"""Translates configs of other systems into recipes. Knows nothing about weights or torch."""

from moesaic.migrate.gated import Translated, files_by_name, translated

__all__ = ["Translated", "files_by_name", "translated"]
