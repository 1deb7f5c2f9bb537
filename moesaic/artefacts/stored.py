"""An expert as read from its folder, of any kind.

Knows nothing about files.
"""

from abc import ABC, abstractmethod
from typing import Any


class Stored(ABC):
    """An expert as read. `manifest`: of its folder; {} of a foreign one."""

    manifest: dict[str, Any]

    @property
    @abstractmethod
    def fingerprint(self) -> str | None:
        """The hash of its values; None of a foreign model, which nobody has hashed."""

    @property
    def base_fingerprint(self) -> str | None:
        """The base that it was made for; None: declared at best, and never verified."""
        return self.manifest.get("base_fingerprint")
