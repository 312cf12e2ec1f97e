"""A mix into the weights of a pipeline's own folder, which needs no adapter any more."""

from __future__ import annotations

import json
import secrets
import shutil
from typing import TYPE_CHECKING, Any

from lora_mixer import __version__
from lora_mixer.errors import SaveError
from lora_mixer.mixes import Mix
from lora_mixer.parsing.files import at_home

if TYPE_CHECKING:
    from pathlib import Path

    from lora_mixer import LoraMixer


def free_folder(path: Any) -> Path:
    """
    Return the folder to write to, which must be empty or not there yet.

    Args:
        path: The folder.

    Returns:
        Its path, ``~`` written out.

    Raises:
        SaveError: When something is there.

    Example:
        >>> free_folder("no-such-folder").name
        'no-such-folder'
    """
    folder = at_home(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SaveError("is there already and is not an empty folder; name another", file=str(path))
    return folder


def bake(mixer: LoraMixer, path: Any, mix: Any = None, *, model: str = "") -> Path:
    """
    Write the pipeline with a mix in its weights; ``lora_mixer.json`` in the folder says what is in there.

    Args:
        mixer: The mixer; its pipeline is afterwards as it was.
        path: A folder that is empty or not there yet. It has its name only when it is whole.
        mix: The mix in any form; the one in effect when None.
        model: What the pipeline is called, for ``lora_mixer.json``.

    Returns:
        The folder.

    Raises:
        SaveError: When the mix cannot be in weights, something is there already, or the disk refuses.
        MixError: When the mix cannot be applied.

    Example:
        >>> bake(mixer, "my-model", {"ink": 0.7})  # doctest: +SKIP
    """
    folder = free_folder(path)
    wanted = mixer.mix if mix is None else Mix.of(mix)
    if not wanted.is_constant:
        raise SaveError("the mix changes from step to step, which no model's weights can hold")
    about = {
        "lora_mixer": __version__,
        "model": model,
        "mix": wanted.to_text(),
        "adapters": {name: info.source for name, info in mixer.adapters.items()},
    }
    with mixer.applied(wanted, engine="merged"):
        if not mixer.is_in_parameters:
            raise SaveError(
                "the mix has biases for modules that have none, and so does not fit into the model's weights"
            )
        spare = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            mixer.pipe.save_pretrained(str(spare))
            (spare / "lora_mixer.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            if folder.exists():
                folder.rmdir()
            spare.rename(folder)
        except OSError as error:
            raise SaveError(f"cannot be written: {error.strerror or error}", file=str(path)) from error
        finally:
            shutil.rmtree(spare, ignore_errors=True)
    return folder
