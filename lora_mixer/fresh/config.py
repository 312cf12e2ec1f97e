"""
Configurations of fresh adapters: what all kinds have.

A kind's configuration is a dataclass below :class:`AdapterConfig` with PEFT's field names. What is wrong with the values of one is
found by its ``problems``; all of it is raised at once, when an adapter is made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from lora_mixer.atomic import write_files
from lora_mixer.problem import Problem
from lora_mixer.wording import shown

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator


NO_TARGETS = "dummy-target-modules"
"""What PEFT has for targets where there are none."""
_LEFT_OUT = ("layers_to_transform", "layers_pattern", "exclude_modules", "modules_to_save")
"""Fields that not every kind of PEFT's has, so that they are not written while they are empty."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """
    What all kinds have; use one of the kinds.

    Attributes:
        task_type: What the adapter is for, such as ``CAUSAL_LM``. With ``SEQ_CLS`` and ``TOKEN_CLS`` the heads ``classifier`` and
            ``score`` are trained and saved, with ``QUESTION_ANS`` ``qa_outputs``, where the model has them, as PEFT's
            ``get_peft_model`` does.
        base_model_name_or_path: The base, as it is written into the configuration; the model's own name when None.
        revision: The base's revision.
        auto_mapping: How to find the base's class without a task; written only.
        target_modules: Suffixes of module paths, one regular expression that must match whole paths, or ``"all-linear"``; None
            takes what is usual for the model's type.
        exclude_modules: Suffixes or a regular expression of modules that are never targets.
        modules_to_save: Suffixes of modules that are trained and saved whole.
        layers_to_transform: Only layers of these numbers, with suffixes only.
        layers_pattern: The name of the list whose numbers these are, such as ``"layers"``; the first number of a path when None.

    Example:
        >>> import tempfile
        >>> from lora_mixer import LoraConfig
        >>> LoraConfig(r=4, target_modules=["to_q"]).save(tempfile.mkdtemp()).name
        'adapter_config.json'
        >>> list(LoraConfig().common_problems())
        []
    """

    peft_type: ClassVar[str] = ""

    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    auto_mapping: Mapping[str, Any] | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def to_dict(self) -> dict[str, Any]:
        """
        Return the fields as PEFT writes them to ``adapter_config.json``.

        Example:
            >>> from lora_mixer import LoraConfig
            >>> table = LoraConfig(r=4, target_modules=["q_proj"]).to_dict()
            >>> table["peft_type"], table["r"], table["target_modules"]
            ('LORA', 4, ['q_proj'])
        """
        table: dict[str, Any] = {"peft_type": self.peft_type, "inference_mode": False}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            plain = (
                dataclasses.asdict(value)
                if dataclasses.is_dataclass(value) and not isinstance(value, type)
                else value
            )
            if plain is not None or field.name not in _LEFT_OUT:
                table[field.name] = dict(plain) if isinstance(plain, Mapping) else plain
        if table["target_modules"] == []:
            table["target_modules"] = NO_TARGETS
        return table

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """
        Write ``adapter_config.json`` into a folder, which is made where there is none.

        Args:
            folder: Where to; it is made where it is not there.

        Returns:
            The file.

        Raises:
            SaveError: When the disk refuses; what was there before is still there.
        """
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True).encode()

        def write(stream: IO[bytes]) -> None:
            stream.write(text)

        return write_files({Path(folder) / "adapter_config.json": write})[0]

    def common_problems(self) -> Iterator[Problem]:
        """
        Find what is wrong with the fields that all kinds have.

        Returns:
            Each with the field that it is about.
        """
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
            value: Any = getattr(self, name)
            text = isinstance(value, str) and name != "modules_to_save" and value.strip()
            names = isinstance(value, list) and all(
                isinstance(entry, str) and entry.strip() for entry in value
            )
            if value is not None and not text and not names:
                kind = "names" if name == "modules_to_save" else "names, or one text"
                yield Problem(name, f"expected a list of {kind}, got {shown(value)}.")
        layers: Any = self.layers_to_transform
        numbers = [layers] if isinstance(layers, int) else layers
        if numbers is not None:
            if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
                yield Problem("layers_to_transform", f"expected layer numbers from 0, got {shown(layers)}.")
            elif isinstance(self.target_modules, str):
                yield Problem(
                    "layers_to_transform",
                    "works with a list of target_modules only; write the numbers into the regular expression.",
                )
        elif self.layers_pattern:
            yield Problem("layers_pattern", "has no meaning without layers_to_transform.")
        if self.task_type is not None and not isinstance(self.task_type, str):
            yield Problem("task_type", f"expected a text such as 'CAUSAL_LM', got {shown(self.task_type)}.")
