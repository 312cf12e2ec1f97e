"""
Prompts with emphasis, of more than 77 tokens and with clip skip, as embeddings: compel weights, this package's mixes are in.

Compel is given the fragments and a view of each text encoder that answers with the layer that diffusers would take, so the
embeddings of a plain prompt are the pipeline's own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from lora_mixer.errors import PictureError
from lora_mixer.extras import require
from lora_mixer.pictures.emphasis import Fragment, has_emphasis, parse_emphasis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_mixer.pictures.request import PictureRequest

CHUNKS_AT_MOST = 16
"""Chunks of 75 tokens that a prompt may have; each costs the denoiser's attention as much as a whole prompt."""


class PromptEncoder:
    """
    Makes embeddings of prompts with a pipeline's own text encoders, as they are at the moment.

    Args:
        pipe: A pipeline of SD 1.x, SD 2.x or SDXL.
    """

    def __init__(self, pipe: Any) -> None:
        """Look at nothing yet."""
        self._pipe = pipe

    def problem(self) -> str | None:
        """Say why it cannot serve this pipeline, or nothing."""
        kinds = {type(encoder).__name__ for _, encoder in self._pairs()}
        if not kinds or not kinds <= {
            "CLIPTextModel",
            "CLIPTextModelWithProjection",
            "NestedText",
            "CLIPTextTransformer",
        }:
            return f"{type(self._pipe).__name__} has no text encoders of CLIP alone"
        return None

    def wants(self, request: PictureRequest) -> bool:
        """
        Tell whether a request's prompts need embeddings; plain ones go to the pipeline as text.

        Raises:
            PictureError: When emphasis is asked for that this pipeline cannot have.
        """
        way = request.emphasis or "auto"
        if request.clip_skip is not None and self._is_sd and self.problem() is None:
            return True  # diffusers itself looks for the norm where transformers 4 has it
        if way == "none":
            return False
        problem = self.problem()
        texts = (request.prompt, request.negative_prompt)
        if way == "auto":
            if problem is not None:
                return False
            return any(map(has_emphasis, texts)) or any(self._tokens(text) > self._room for text in texts)
        if problem is not None:
            raise PictureError(
                f"{problem}, so it cannot have {way}; leave it out for this model", field="emphasis"
            )
        return True

    def chunks(self, request: PictureRequest) -> int:
        """
        Count the chunks that a request's prompts take, padded to the longer of the two.

        Raises:
            PictureError: When there are too many.
        """
        longest = 1
        for text in (request.prompt, request.negative_prompt):
            parts = self._parts(text, request.emphasis)
            count = sum(
                max(1, -(-self._tokens("".join(x.text for x in part)) // self._room)) for part in parts
            )
            longest = max(longest, count)
        if longest > CHUNKS_AT_MOST:
            raise PictureError(
                f"{longest} chunks of {self._room} tokens, at most {CHUNKS_AT_MOST} are read; make it shorter",
                field="prompt",
            )
        return longest

    def encode(
        self, text: str, emphasis: str | None, clip_skip: int | None, chunks: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Encode one prompt.

        Args:
            text: The prompt.
            emphasis: How it is written; None is AUTOMATIC1111's way.
            clip_skip: Layers to skip, as in diffusers.
            chunks: At least as many chunks, filled up with those of an empty prompt.

        Returns:
            Embeddings, (1, 77 n, width), and the pooled ones of SDXL, (1, width).
        """
        parts = self._parts(text, emphasis)
        plain = " ".join(" ".join(x.text for x in part).strip() for part in parts)
        states, pooled = [], None
        with torch.no_grad():
            for number, (tokenizer, encoder) in enumerate(self._pairs()):
                compel = self._compel(tokenizer, _View(encoder, clip_skip, last=self._is_sd))
                rows = [self._of_part(compel, part, tokenizer) for part in parts]
                states.append(torch.cat(rows, dim=1))  # (1, 77 n, width of one encoder)
                if not self._is_sd and number == len(self._pairs()) - 1:
                    pooled = compel.conditioning_provider.get_pooled_embeddings(
                        [self._converted(plain, tokenizer)]
                    )
        longest = max(chunks * (self._room + 2), *(each.shape[1] for each in states))
        states = [self._padded(each, longest, i, clip_skip) for i, each in enumerate(states)]
        return torch.cat(states, dim=-1), pooled  # (1, 77 n, width), (1, width)

    # --- parts ---------------------------------------------------------------------------------------------------------

    @property
    def _is_sd(self) -> bool:
        return len(self._pairs()) == 1

    def _pairs(self) -> list[tuple[Any, Any]]:
        names = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
        pairs = [(getattr(self._pipe, a, None), getattr(self._pipe, b, None)) for a, b in names]
        if getattr(self._pipe, "text_encoder_3", None) is not None:
            return []
        return [pair for pair in pairs if pair[0] is not None and pair[1] is not None]

    @property
    def _room(self) -> int:
        return int(self._pairs()[0][0].model_max_length) - 2

    def _tokens(self, text: str) -> int:
        counts = [0]
        for tokenizer, _ in self._pairs():
            converted = self._converted(text, tokenizer)
            counts.append(
                len(tokenizer(converted, add_special_tokens=False, truncation=False, verbose=False).input_ids)
            )
        return max(counts)

    def _parts(self, text: str, emphasis: str | None) -> list[list[Fragment]]:
        if emphasis == "none":
            return [[Fragment(text)]]
        if emphasis == "compel":
            return [[Fragment(text, -1.0)]]
        return (
            parse_emphasis(text)
            if has_emphasis(text)
            else [[Fragment(text.replace("\\", ""))] if "\\" in text else [Fragment(text)]]
        )

    def _converted(self, text: str, tokenizer: Any) -> str:
        convert = getattr(self._pipe, "maybe_convert_prompt", None)
        return text if convert is None else str(convert(text, tokenizer))

    def _compel(self, tokenizer: Any, view: Any) -> Any:
        compel = require("compel", "prompts")
        return compel.Compel(
            tokenizer=tokenizer, text_encoder=view, truncate_long_prompts=False, device=view.device
        )

    def _of_part(self, compel: Any, part: Sequence[Fragment], tokenizer: Any) -> torch.Tensor:
        if len(part) == 1 and part[0].weight < 0:  # compel's own grammar
            embeddings: torch.Tensor = compel.build_conditioning_tensor(
                self._converted(part[0].text, tokenizer)
            )
            return embeddings
        parser = require("compel.prompt_parser", "prompts")
        fragments = [parser.Fragment(self._converted(x.text, tokenizer), x.weight) for x in part]
        prompt = parser.FlattenedPrompt(fragments)
        (embeddings, _), _ = compel.build_conditioning_tensor_for_prompt_object(prompt)
        return embeddings if embeddings.ndim == 3 else embeddings.unsqueeze(0)

    def _padded(self, row: torch.Tensor, longest: int, number: int, clip_skip: int | None) -> torch.Tensor:
        if row.shape[1] == longest:
            return row
        tokenizer, encoder = self._pairs()[number]
        empty = self._of_part(
            self._compel(tokenizer, _View(encoder, clip_skip, last=self._is_sd)), [Fragment("")], tokenizer
        )
        return torch.cat([row, *[empty] * ((longest - row.shape[1]) // empty.shape[1])], dim=1)


class _View:
    """
    A text encoder that answers as compel asks, with the layer that diffusers takes.

    Args:
        encoder: The encoder.
        clip_skip: Layers to skip; None is diffusers' own choice.
        last: Whether that choice is the last layer with its norm (SD), rather than the one before without (SDXL).
    """

    def __init__(self, encoder: Any, clip_skip: int | None, *, last: bool) -> None:
        """Keep the encoder."""
        self._encoder, self._skip, self._last = encoder, clip_skip, last
        self.dtype, self.config = encoder.dtype, encoder.config
        # an offloaded encoder's parameters are elsewhere; its hook brings the ids to where it runs
        hook = getattr(encoder, "_hf_hook", None)
        place = getattr(hook, "execution_device", None)
        self.device = torch.device(place) if place is not None else encoder.device

    def __call__(self, token_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        """Run it."""
        output = self._encoder(token_ids, attention_mask, output_hidden_states=True, return_dict=True)
        pooled = getattr(output, "text_embeds", None)
        if pooled is None:
            pooled = getattr(output, "pooler_output", None)
        return SimpleNamespace(last_hidden_state=self._layer(output), pooler_output=pooled)

    def _layer(self, output: Any) -> torch.Tensor:
        layer: torch.Tensor
        if not self._last:
            layer = output.hidden_states[-2 if self._skip is None else -(self._skip + 2)]
            return layer
        if self._skip is None:
            layer = output.last_hidden_state
            return layer
        inner = getattr(self._encoder, "text_model", self._encoder)
        layer = inner.final_layer_norm(output.hidden_states[-(self._skip + 1)])
        return layer
