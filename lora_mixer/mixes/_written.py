"""Values that are written down as dicts, JSON and YAML, and read back as the same."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from lora_mixer.mixes._plain import dump_yaml, load_json, load_yaml, parsed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self


class Written(ABC):
    """A value with a plain form."""

    @classmethod
    @abstractmethod
    def of(cls, obj: object) -> Self:
        """Read the value in any of its forms."""

    @abstractmethod
    def to_dict(self) -> dict[str, object]:
        """Give the value as numbers, texts, lists and dicts."""

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Self:
        """
        Read what ``to_dict`` gave.

        Args:
            data: The dict.

        Returns:
            The mix.

        Raises:
            MixError: With everything that is wrong.
        """
        return cls.of(data)

    def to_json(self) -> str:
        """
        Give the mix as one line of JSON.

        Returns:
            The text.
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """
        Read JSON.

        Args:
            text: The text.

        Returns:
            The mix.

        Raises:
            MixError: With everything that is wrong.
        """
        return cls.of(parsed(load_json, text))

    def to_yaml(self) -> str:
        """
        Give the mix as YAML.

        Returns:
            The text, in the order of the names.
        """
        return dump_yaml(self.to_dict())

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """
        Read YAML.

        Args:
            text: The text.

        Returns:
            The mix.

        Raises:
            MixError: With everything that is wrong.
        """
        return cls.of(parsed(load_yaml, text))
