"""A mix, or a model with a mix in its weights, on the Hub, with a card that names its parts, weights, licences and picture."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_mixer.errors import SaveError
from lora_mixer.mixes import Mix
from lora_mixer.parsing.files import at_home
from lora_mixer.wording import first_line
from lora_mixer.writing.bake import bake

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_mixer import LoraMixer
    from lora_mixer.adapter import AdapterInfo

_LICENCES = ("modelspec.license", "license", "ss_license")
"""Keys of headers that state a licence."""
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_UNKNOWN = "not stated"


def push_to_hub(
    mixer: LoraMixer,
    repo_id: str,
    *,
    mix: Any = None,
    form: Literal["adapter", "model"] = "adapter",
    base: str = "",
    title: str | None = None,
    licence: str | None = None,
    licences: Mapping[str, str] | None = None,
    picture: Any = None,
    rank: int | None = None,
    format: str = "diffusers",  # noqa: A002 -- the word for it
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """
    Write a mix as one adapter, or the pipeline with the mix in its weights, and put it on the Hub with a card.

    Args:
        mixer: The mixer; its pipeline is afterwards as it was.
        repo_id: ``user/name``; it is made where it is not there.
        mix: The mix in any form; the one in effect when None.
        form: ``adapter`` or ``model``.
        base: What the base is called: a Hub repository, where it is one.
        title: The card's heading; the repository's name when None.
        licence: The whole's, as the Hub names it (``apache-2.0``); when None, that of all parts where they agree, else ``other``.
        licences: Those of adapters whose files state none, by name.
        picture: The path of a picture for the card.
        rank: Of an adapter: the rank to cut to; None is exact.
        format: Of an adapter.
        private: Whether nobody else may see it; None is the account's own way.
        token: Of the Hub; None is the one that is logged in.
        commit_message: What the commit is called.

    Returns:
        The address of the commit.

    Raises:
        SaveError: When something cannot be written, the picture is none, or the Hub refuses.
        MixError: When the mix makes no sense, or changes from step to step.

    Example:
        >>> push_to_hub(mixer, "me/ink-and-neon", mix="ink:0.7, neon:0.3", rank=32)  # doctest: +SKIP
        'https://huggingface.co/me/ink-and-neon/commit/...'
    """
    if form not in ("adapter", "model"):
        raise SaveError(f"form must be adapter or model, got {form!r}", argument="form")
    wanted = mixer.mix if mix is None else Mix.of(mix)
    shown = None if picture is None else at_home(picture)
    if shown is not None and (not shown.is_file() or shown.suffix.lower() not in _PICTURES):
        raise SaveError(
            f"the picture must be a file that ends with {', '.join(_PICTURES)}",
            argument="picture",
            file=str(picture),
        )
    name = repo_id.rpartition("/")[2]
    with tempfile.TemporaryDirectory(prefix="lora-mixer-push-") as temporary:
        folder = Path(temporary) / "repository"
        if form == "model":
            bake(mixer, folder, wanted, model=base)
        else:
            mixer.save_lora_weights(folder / f"{name}.safetensors", format=format, rank=rank, weights=wanted)
        if shown is not None:
            shutil.copyfile(shown, folder / f"picture{shown.suffix.lower()}")
        card = model_card(
            mixer.adapters,
            wanted,
            title=title or name,
            form=form,
            base=base,
            licence=licence,
            licences=licences,
            picture=None if shown is None else f"picture{shown.suffix.lower()}",
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        return _upload(folder, repo_id, private, token, commit_message or f"{form} {wanted.to_text()}"[:200])


def model_card(
    adapters: Mapping[str, AdapterInfo],
    mix: Any,
    *,
    title: str,
    form: Literal["adapter", "model"] = "adapter",
    base: str = "",
    licence: str | None = None,
    licences: Mapping[str, str] | None = None,
    picture: str | None = None,
) -> str:
    """
    Write the card of a mix: what it is made of, at which weights, under which licences, and what to write into prompts.

    Args:
        adapters: As ``mixer.adapters``.
        mix: The mix in any form.
        title: Its heading.
        form: Whether it is an adapter or a model.
        base: What the base is called.
        licence: The whole's; when None, that of all parts where they agree, else ``other``.
        licences: Those of adapters whose files state none.
        picture: The name of a picture beside the card.

    Returns:
        Markdown with the Hub's block of YAML in front.

    Example:
        >>> "license: other" in model_card({}, {}, title="Nothing")
        True
    """
    wanted = Mix.of(mix)
    given = {name: _licence(adapters.get(name), (licences or {}).get(name)) for name in wanted.names}
    stated = set(given.values())
    whole = licence or (stated.pop() if len(stated) == 1 and _UNKNOWN not in stated else "other")
    words = list(
        dict.fromkeys(
            word for name in wanted.names if name in adapters for word in adapters[name].trigger_words
        )
    )
    front: dict[str, Any] = {"library_name": "diffusers", "license": whole, "tags": ["lora_mixer"]}
    if form == "adapter":
        front["tags"] = ["lora", "lora_mixer", "text-to-image"]
        if words:
            front["instance_prompt"] = ", ".join(words)
    if "/" in base:
        front["base_model"] = base
    lines = ["---", *(f"{key}: {_yaml(value)}" for key, value in front.items()), "---"]
    lines += ["", f"# {_cell(title)}", ""]
    if picture is not None:
        lines += [f"![{_cell(title)}]({picture})", ""]
    what = (
        "One adapter made of several"
        if form == "adapter"
        else "A model with a mix of adapters in its weights"
    )
    lines += [f"{what}, by lora_mixer: `{wanted.to_text()}`" + (f", on {_cell(base)}." if base else "."), ""]
    lines += ["| part | weight | licence | base | from | SHA-256 |", "| --- | --- | --- | --- | --- | --- |"]
    for name in wanted.names:
        info = adapters.get(name)
        source = "" if info is None else str(info.source).replace("\\", "/").rpartition("/")[2]
        digest = "" if info is None else info.hashes.get("sha256", "")
        cells = (name, Mix({"x": wanted[name]}).to_text().partition(":")[2], given[name], "" if info is None else info.base,
                 source, digest[:16])  # fmt: skip
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    if words:
        lines += ["", f"Words for prompts: {', '.join(_cell(word) for word in words)}."]
    return "\n".join(lines) + "\n"


def _yaml(value: object) -> str:
    """Return a value for the block of YAML: a plain word as it is, all else as JSON, which is YAML, too."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9._+-]{0,80}", value):
        return value
    return json.dumps(value, ensure_ascii=True)


def _licence(info: AdapterInfo | None, given: str | None) -> str:
    stated = [] if info is None else [str(info.metadata[key]) for key in _LICENCES if info.metadata.get(key)]
    return (stated or [given or _UNKNOWN])[0].strip()[:200] or _UNKNOWN


def _cell(text: object) -> str:
    """Return a stranger's text as it may stand in a table: one line, no markup of its own."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(text))[:500]
    return (
        plain.replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("[", "\\[")
        .replace("`", "'")
        .strip()
    )


def _upload(folder: Path, repo_id: str, private: bool | None, token: str | None, message: str) -> str:
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=message)
    except (OSError, ValueError, RuntimeError) as error:
        raise SaveError(f"the Hub does not take it: {first_line(error, 300)}", file=repo_id) from error
    return str(done.commit_url)
