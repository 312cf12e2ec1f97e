"""
ComfyUI's graph: ``prompt``, nodes by id, each with a ``class_type`` and ``inputs`` that are values or ``[id, slot]``.

From the sampler the links are followed: ``model`` up through the loaders of adapters to the checkpoint, ``positive`` and
``negative`` up to the texts, ``latent_image`` to the size. Every node is visited once, so graphs in circles end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer.parsing.json_text import read_json
from lora_mixer.parsing.values import (
    as_float,
    as_int,
    as_list,
    as_side,
    as_table,
    as_text,
    file_stem,
)
from lora_mixer.picture_metadata.dialects.comfyui_loaders import adapters_of
from lora_mixer.picture_metadata.dialects.dialect import Dialect
from lora_mixer.picture_metadata.settings import PictureAdapter, PictureSettings
from lora_mixer.picture_metadata.tags import take_tags

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME = "comfyui"
_CHUNK = "prompt"
_NODES_AT_MOST = 20_000
_TEXTS = ("text", "string", "value", "text_g", "prompt", "t5xxl", "clip_l", "positive", "negative")
_CHECKPOINTS = ("ckpt_name", "unet_name", "model_name")


def read(texts: Mapping[str, str], notes: list[str]) -> PictureSettings | None:
    """Read ComfyUI's graph, or None where there is none that can be read."""
    if not texts.get(_CHUNK, "").lstrip().startswith("{"):
        if "workflow" in texts:
            notes.append("the picture has ComfyUI's editor state alone, without the graph that was run")
        return None
    try:
        table = as_table(read_json(texts[_CHUNK]))
    except ValueError as error:
        notes.append(f"ComfyUI's graph cannot be read: {error}")
        return None
    graph = _NodeGraph(table)
    sampler = graph.sampler(notes)
    if sampler is None:
        notes.append("ComfyUI's graph has no sampler with a prompt")
        return None
    inputs = graph.nodes[sampler]
    prompt, of_tags = take_tags(graph.text(inputs, "positive"), notes)
    chain = graph.chain(sampler, "model")
    adapters: dict[str, PictureAdapter] = {}
    # The loader nearest to the checkpoint is applied first.
    for node in reversed(chain):
        for adapter in adapters_of(graph.kind(node), graph.nodes[node], graph.value):
            if adapter.name in adapters:
                notes.append(f'"{adapter.name}" is loaded twice; the last weight counts')
            adapters[adapter.name] = adapter
    for adapter in of_tags:
        adapters.setdefault(adapter.name, adapter)
    checkpoint = next(
        (
            stem
            for node in chain
            for key in _CHECKPOINTS
            if (stem := file_stem(graph.value(graph.nodes[node].get(key))))
        ),
        None,
    )
    width, height = graph.size(sampler)
    seed = graph.value(inputs.get("seed", inputs.get("noise_seed")))
    return PictureSettings(
        prompt=prompt,
        negative_prompt=graph.text(inputs, "negative"),
        seed=as_int(seed),
        steps=as_int(graph.value(inputs.get("steps")), 0, 1 << 20),
        guidance_scale=as_float(graph.value(inputs.get("cfg"))),
        width=width,
        height=height,
        sampler=as_text(graph.value(inputs.get("sampler_name"))),
        clip_skip=graph.clip_skip(sampler),
        model=checkpoint,
        adapters=tuple(adapters.values()),
        dialect=NAME,
        extra={"scheduler": text} if (text := as_text(graph.value(inputs.get("scheduler")))) else {},
    )


class _NodeGraph:
    """Nodes, and ways up their links."""

    def __init__(self, table: dict[str, Any]) -> None:
        entries = list(table.items())[:_NODES_AT_MOST]
        self._kinds = {key: str(as_table(node).get("class_type", "")) for key, node in entries}
        self.nodes = {key: as_table(as_table(node).get("inputs")) for key, node in entries}

    def kind(self, node: str) -> str:
        """Return the class of a node."""
        return self._kinds[node]

    def link(self, value: object) -> str | None:
        """Return the node that an input comes from, or None where it is a value."""
        pair = as_list(value)
        if len(pair) == 2 and isinstance(pair[0], str | int) and isinstance(pair[1], int):
            return str(pair[0]) if str(pair[0]) in self.nodes else None
        return None

    def value(self, value: object) -> object:
        """Return an input's value, followed through nodes that only hold one."""
        for _ in range(10):
            node = self.link(value)
            if node is None:
                return None if isinstance(value, list) else value
            inputs = self.nodes[node]
            value = next((inputs[key] for key in (*_TEXTS, "seed", "int", "float") if key in inputs), None)
        return None

    def sampler(self, notes: list[str]) -> str | None:
        """Return the first sampler: of several, the one that no other sampler comes before."""
        samplers = [
            key
            for key, inputs in self.nodes.items()
            if self.link(inputs.get("positive")) and "sampler" in self._kinds[key].lower()
        ]
        first = [key for key in samplers if not set(samplers) & set(self._above(key, "latent_image")) - {key}]
        if len(samplers) > 1:
            notes.append(f"ComfyUI's graph has {len(samplers)} samplers; these settings are the first one's")
        return min(first or samplers, key=_order, default=None)

    def chain(self, node: str, name: str) -> list[str]:
        """Return the nodes above one input, the nearest first; each follows its input of the same name where it can."""
        seen: dict[str, None] = {}
        here = self.link(self.nodes[node].get(name))
        while here is not None and here not in seen:
            seen[here] = None
            inputs = self.nodes[here]
            further = (
                inputs.get(name)
                if self.link(inputs.get(name))
                else next((each for each in inputs.values() if self.link(each)), None)
            )
            here = self.link(further)
        return list(seen)

    def text(self, inputs: Mapping[str, Any], name: str) -> str:
        """Return the text that a conditioning was made of: the nearest one above it."""
        start = self.link(inputs.get(name))
        for node in self._all_above(start) if start is not None else ():
            fields = self.nodes[node]
            for key in _TEXTS:
                value = self.value(fields.get(key)) if key in fields else None
                if isinstance(value, str) and value.strip() and key not in ("positive", "negative"):
                    return value.strip()
                if key == name and isinstance(value, str):
                    return value.strip()
        return ""

    def clip_skip(self, sampler: str) -> int | None:
        """Return the layers that a node above the prompt's text encoder leaves out: ``-1`` there is the last one, none left out."""
        for node in self._above(sampler, "positive"):
            if self._kinds[node] == "CLIPSetLastLayer":
                last = as_int(self.value(self.nodes[node].get("stop_at_clip_layer")), -100, 0)
                return None if last is None or last > -1 else -last - 1
        return None

    def size(self, sampler: str) -> tuple[int | None, int | None]:
        """Return the size of the latents that the sampler starts from."""
        for node in self._above(sampler, "latent_image"):
            inputs = self.nodes[node]
            width, height = (as_side(as_int(self.value(inputs.get(key)))) for key in ("width", "height"))
            if width and height:
                return width, height
        return None, None

    def _above(self, node: str, name: str) -> Iterator[str]:
        start = self.link(self.nodes[node].get(name))
        return self._all_above(start) if start is not None else iter(())

    def _all_above(self, start: str) -> Iterator[str]:
        """Yield a node and all above it, the nearest first."""
        seen, waiting = {start}, [start]
        for node in waiting:  # grows on the way
            yield node
            for value in self.nodes[node].values():
                above = self.link(value)
                if above is not None and above not in seen:
                    seen.add(above)
                    waiting.append(above)


def _order(node: str) -> tuple[int, str]:
    return (int(node) if node.isdecimal() and len(node) < 10 else 1 << 40), node


DIALECT = Dialect(NAME, "ComfyUI", read, brackets_weaken=False)
