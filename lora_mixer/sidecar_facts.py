"""
What is said about an adapter beyond its tensors: by its header, by the trainer, and by the files beside it.

Everything here was written by strangers: each value is checked for its type, cut to a length, and told with its source.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.frozen import LazyMap
from lora_mixer.parsing.json_text import json_or_none
from lora_mixer.parsing.values import is_number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_mixer.sources import Sidecars

_WORDS_AT_MOST = 100
_LETTERS_AT_MOST = 10_000
_TAGS_AT_MOST = 10_000
_EXPLICIT_LEVEL = 4
_HEADER_WORDS = (
    "modelspec.trigger_phrase",
    "trigger_words",
    "trigger_word",
    "activation text",
    "instance_prompt",
)
# fact: keys of the header, the first that says something counts
_HEADER_TEXTS = {
    "title": ("modelspec.title", "ss_output_name"),
    "description": ("modelspec.description",),
    "notes": ("modelspec.usage_hint", "ss_training_comment"),
}
# fact: paths into each sidecar
_SIDECARS: dict[str, dict[str, tuple[str, ...]]] = {
    ".json": {
        "words": ("activation text",),
        "weight": ("preferred weight",),
        "negative_text": ("negative text",),
        "notes": ("notes",),
        "description": ("description",),
        "base": ("sd version",),
    },
    ".civitai.info": {
        "words": ("trainedWords",),
        "title": ("model.name", "name"),
        "description": ("model.description", "description"),
        "base": ("baseModel",),
        "explicit": ("model.nsfw", "nsfw"),
    },
    ".metadata.json": {
        "words": ("civitai.trainedWords",),
        "weight": ("usage_tips.strength",),
        "title": ("model_name",),
        "notes": ("notes",),
        "description": ("modelDescription", "civitai.description"),
        "base": ("base_model",),
        "explicit": ("preview_nsfw_level", "civitai.model.nsfw"),
    },
    ".cm-info.json": {
        "words": ("TrainedWords",),
        "title": ("UserTitle", "ModelName"),
        "description": ("ModelDescription", "VersionDescription"),
        "base": ("BaseModel",),
        "explicit": ("Nsfw",),
    },
}


class Tags(LazyMap[str, int]):
    """
    Tags of the training pictures and how often each stood there, the most frequent first; read at the first look.

    Args:
        text: Kohya's ``ss_tag_frequency``: JSON of counts by tag, by folder.

    Example:
        >>> dict(Tags('{"a": {"cat": 2, "hat": 1}, "b": {"hat": 4}}'))
        {'hat': 5, 'cat': 2}
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(partial(_tag_counts, text))


def _tag_counts(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    folders = json_or_none(text)
    for table in folders.values() if isinstance(folders, dict) else ():
        for tag, count in table.items() if isinstance(table, dict) else ():
            if type(count) is int and count > 0 and tag.strip():
                name = _cut(tag.strip())
                counts[name] = counts.get(name, 0) + count
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ranked[:_TAGS_AT_MOST])


@dataclass(frozen=True)
class About:
    """
    What people and programs say about an adapter.

    Attributes:
        title: Its name, as its author gave it.
        description: What it is, as plain text.
        notes: What its user noted, or the trainer's comment.
        preferred_weight: The weight that it is said to work best at, or None.
        negative_text: What belongs into the negative prompt.
        base: The base model as a sidecar names it, such as ``SDXL 1.0`` or ``Pony``.
        preview: Path of its preview picture, or empty.
        explicit: Whether a site or a manager says that it, or its preview, is not for everybody's eyes.
        training_tags: Tags of the training pictures with their counts, the most frequent first.
        sources: Where each fact is from, by its name here (and ``trigger_words``): a key of the header, or a file.
        sidecars: Names of the files beside it that were read.
        problems: Files beside it that were not, and why.
    """

    title: str = ""
    description: str = ""
    notes: str = ""
    preferred_weight: float | None = None
    negative_text: str = ""
    base: str = ""
    preview: str = ""
    explicit: bool = False
    training_tags: Mapping[str, int] = field(default_factory=Tags, compare=False)
    sources: Mapping[str, str] = field(default_factory=dict)
    sidecars: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        names = ("training_tags", "sources", "problems")
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in names}
        return {
            **plain,
            "sidecars": list(self.sidecars),
            **{name: dict(getattr(self, name)) for name in names},
        }


def sidecar_facts(
    metadata: Mapping[str, str],
    config: Mapping[str, Any] | None = None,
    sidecars: Sidecars | None = None,
    stem: str = "",
) -> tuple[tuple[str, ...], About]:
    """
    Gather what is said about an adapter.

    Trigger words are the header's, else those of the files beside it, the user's own before a site's.

    Args:
        metadata: The header's metadata.
        config: An ``adapter_config.json``, where some trainers leave an ``instance_prompt``.
        sidecars: The files beside it.
        stem: The adapter's file name without its ending, by which sidecars are told.

    Returns:
        The trigger words, in order and without repeats, and the rest.

    Example:
        >>> words, rest = sidecar_facts({"modelspec.trigger_phrase": "wtrclr style, soft", "ss_output_name": "wtrclr"})
        >>> words, rest.title, rest.sources["title"]
        (('wtrclr style', 'soft'), 'wtrclr', 'header: ss_output_name')
    """
    collected = _Found()
    for key in _HEADER_WORDS:
        collected.take("trigger_words", _words(metadata.get(key)), f"header: {key}")
    prompt = (config or {}).get("instance_prompt")
    collected.take("trigger_words", _words(prompt), "adapter_config.json: instance_prompt")
    for fact, keys in _HEADER_TEXTS.items():
        for key in keys:
            collected.take(fact, _text(metadata.get(key)), f"header: {key}")
    if sidecars is not None:
        collected.read(sidecars, stem)
    tags = metadata.get("ss_tag_frequency", "")
    if tags:
        collected.sources["training_tags"] = "header: ss_tag_frequency"
    words = collected.facts.pop("trigger_words", ())
    if not (collected.sources or collected.sidecars or collected.problems):
        return words, _NOTHING
    said = About(
        **collected.facts,
        training_tags=Tags(tags),
        sources=collected.sources,
        sidecars=tuple(collected.sidecars),
        problems=collected.problems,
    )
    return words, said


@dataclass
class _Found:
    """Facts as they come in: the first that says something counts."""

    facts: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    sidecars: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    def take(self, fact: str, value: Any, source: str) -> None:
        if fact not in self.facts and value not in (None, "", ()):
            self.facts[fact], self.sources[fact] = value, source

    def read(self, sidecars: Sidecars, stem: str) -> None:
        self.problems = dict(sidecars.problems)
        for ending, raw in sidecars.texts.items():
            name = f"{stem}{ending}"
            if ending.endswith(".txt"):
                self.take("description", _text(raw.decode("utf-8", "replace")), name)
            elif isinstance(table := json_or_none(raw.decode("utf-8-sig", "replace")), dict):
                self._json(table, _SIDECARS[ending], name)
            else:
                self.problems[name] = "is not a JSON object"
                continue
            self.sidecars.append(name)
        self.take("preview", sidecars.preview, sidecars.preview)

    def _json(self, table: dict[str, Any], paths: Mapping[str, Sequence[str]], source: str) -> None:
        for fact, places in paths.items():
            name, reader = _READERS.get(fact, (fact, _text))
            for place in places:
                self.take(name, reader(_at(table, place)), source)


_NOTHING = About()


def _at(table: Any, path: str) -> Any:
    """Follow a dotted path; LoRA Manager keeps JSON inside of JSON's strings."""
    for name in path.split("."):
        table = json_or_none(table) if isinstance(table, str) else table
        if not isinstance(table, dict):
            return None
        table = table.get(name)
    return table


def _cut(text: str) -> str:
    # half a surrogate pair can be neither printed nor encoded
    return text[:_LETTERS_AT_MOST].encode("utf-8", "replace").decode()


def _text(value: Any) -> str:
    return _cut(value.strip()) if isinstance(value, str) else ""


def _weight(value: Any) -> float | None:
    if not is_number(value) or not -100 <= value <= 100:
        return None
    return float(value) or None  # A1111 writes 0 where the user chose none


def _words(value: Any) -> tuple[str, ...]:
    """Read a list of words, as a list, as JSON of one, or with commas."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        listed = json_or_none(value)
        value = listed if isinstance(listed, list) else value
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list):
        return ()
    words = (_cut(word.strip(" ,\t\r\n")) for word in value[: 10 * _WORDS_AT_MOST] if isinstance(word, str))
    return tuple(dict.fromkeys(word for word in words if word))[:_WORDS_AT_MOST]


def _explicit(value: Any) -> bool | None:
    """Read what sites say: true, or LoRA Manager's level, of which 4 and more are not for everybody."""
    if isinstance(value, bool):
        return value or None
    return True if isinstance(value, int) and value >= _EXPLICIT_LEVEL else None


class _Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
        if tag in ("p", "br", "li", "div", "h1", "h2", "h3"):
            self.found.append("\n")

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def _plain(value: Any) -> str:
    """Return the text of HTML, which model sites write descriptions in."""
    text = _text(value)
    if "<" not in text:
        return text
    parser = _Texts()
    parser.feed(text)
    parser.close()
    lines = (line.strip() for line in "".join(parser.found).splitlines())
    return "\n".join(line for line in lines if line)


_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "words": ("trigger_words", _words),
    "weight": ("preferred_weight", _weight),
    "description": ("description", _plain),
    "explicit": ("explicit", _explicit),
}
