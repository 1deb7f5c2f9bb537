"""An expert as read from its folder, of any kind.

Knows nothing about files.
"""

from abc import ABC, abstractmethod
from typing import Any


class Stored(ABC):
    """An expert as read, and the manifest of its folder ({} for a foreign expert)."""

    manifest: dict[str, Any]

    @property
    @abstractmethod
    def fingerprint(self) -> str | None:
        """The hash of its values; None for a foreign model, which nobody has hashed."""

    @property
    def base_fingerprint(self) -> str | None:
        """The fingerprint of its base; None if the base is only declared, never verified."""
        return self.manifest.get("base_fingerprint")
