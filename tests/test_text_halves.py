"""`negative=` and texts: which half a text encoder's call is of, whoever calls it and however often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from lora_mixer import LoraMixer, MixError
from tests.models import tiny_sd, tiny_sdxl
from tests.test_negative_mixes import latents
from tests.test_side import file_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIX, LESS = {"a": 0.8}, {"a": -0.4, "b": 0.9}
CLOSE, FAR = 1e-5, 1e-3
LONG = "a castle on a hill above the sea, with seven towers and a red flag, at dusk, oil on canvas"


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def mixer(request: pytest.FixtureRequest) -> Iterator[LoraMixer]:
    pipe: Any = tiny_sd() if request.param == "sd" else tiny_sdxl()
    mixer = LoraMixer(pipe)
    for seed, name in ((1, "a"), (2, "b")):
        mixer.load_lora_weights(file_of(pipe, seed), name)
    mixer.disable_lora()
    yield mixer
    mixer.unload_lora_weights()


def encoded(mixer: LoraMixer, prompt: Any, unwanted: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        found = mixer.pipe.encode_prompt(prompt, negative_prompt=unwanted, device="cpu", num_images_per_prompt=1,
                                         do_classifier_free_guidance=True, **more)  # fmt: skip
    return found[0], found[1]


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("prompt", "unwanted"),
    [
        ("a castle", "rain"),
        ("a castle", ""),
        ("a castle", None),
        ("", "rain"),
        ("rain", "rain"),  # the order tells
        ("rain and fog", "rain"),  # one is a piece of the other
        ("rain", "rain and fog"),
        (["a castle", "rain"], ["rain", "fog"]),  # a text of both
    ],
)
def test_each_text_is_read_with_the_mix_of_its_half(mixer: LoraMixer, prompt: Any, unwanted: Any) -> None:
    if unwanted is None and hasattr(mixer.pipe, "text_encoder_2"):
        unwanted = ""
    with mixer.applied(MIX, engine="merged"):
        positive = encoded(mixer, prompt, unwanted)[0]
    with mixer.applied(LESS, engine="merged"):
        negative = encoded(mixer, prompt, unwanted)[1]

    with mixer.applied(MIX, negative=LESS):
        first = encoded(mixer, prompt, unwanted)
        again = encoded(mixer, prompt, unwanted)

    for found in (first, again):
        assert gap(found[0], positive) < CLOSE
        assert gap(found[1], negative) < CLOSE
    assert gap(positive, negative) > FAR or prompt != unwanted


@pytest.mark.parametrize(("prompt", "unwanted"), [("a castle", "rain"), ("rain", "rain")])
def test_texts_read_ahead_change_nothing_in_the_next_picture(
    mixer: LoraMixer, prompt: str, unwanted: str
) -> None:
    with mixer.applied(MIX, negative=LESS):
        expected = latents(mixer, prompt, unwanted)
        for ahead in ("a text for later", prompt, unwanted):
            mixer.pipe.encode_prompt(
                ahead, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            assert torch.equal(latents(mixer, prompt, unwanted), expected)


@pytest.mark.parametrize("given", ["prompt", "negative prompt", "both"])
def test_embeddings_that_are_passed_leave_the_other_text_its_half(mixer: LoraMixer, given: str) -> None:
    two = hasattr(mixer.pipe, "text_encoder_2")
    with mixer.applied(MIX, negative=LESS):
        expected = latents(mixer, "a castle", "rain")
        with torch.no_grad():
            read = mixer.pipe.encode_prompt("a castle", negative_prompt="rain", device="cpu", num_images_per_prompt=1,
                                            do_classifier_free_guidance=True)  # fmt: skip
        passed: dict[str, Any] = {}
        if given != "negative prompt":
            passed |= {"prompt_embeds": read[0]} | ({"pooled_prompt_embeds": read[2]} if two else {})
        if given != "prompt":
            passed |= {"negative_prompt_embeds": read[1]}
            passed |= {"negative_pooled_prompt_embeds": read[3]} if two else {}
        prompt = "a castle" if given == "negative prompt" else None
        unwanted = "rain" if given == "prompt" else None
        found = mixer.pipe(
            prompt, negative_prompt=unwanted, num_inference_steps=2, guidance_scale=3.0, height=16, width=16,
            output_type="latent", generator=[torch.Generator().manual_seed(0)], **passed,
        ).images  # fmt: skip

    assert gap(found, expected) < CLOSE


class InPieces(StableDiffusionPipeline):
    """Reads long prompts in pieces, as the community's pipelines do."""

    def encode_prompt(self, prompt: str, device: Any, *_: Any, negative_prompt: Any = None, **__: Any) -> Any:
        return tuple(self.read(text, size) for text, size in ((prompt, 9), (negative_prompt or "", 4)))

    def read(self, text: str, size: int) -> torch.Tensor:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        pieces = [ids[start : start + size] for start in range(0, max(len(ids), 1), size)]
        rows = [self.text_encoder(torch.tensor([[512, *piece, 513]]))[0] for piece in pieces]
        return torch.cat(rows, 1)


@pytest.fixture(scope="module")
def pieces() -> Iterator[LoraMixer]:
    parts = {name: part for name, part in tiny_sd().components.items() if name != "image_encoder"}
    mixer = LoraMixer(InPieces(**parts, requires_safety_checker=False))
    for seed, name in ((1, "a"), (2, "b")):
        mixer.load_lora_weights(file_of(mixer.pipe, seed), name)
    mixer.disable_lora()
    yield mixer
    mixer.unload_lora_weights()


@pytest.mark.parametrize("unwanted", ["rain", "0123456789", None])
def test_every_piece_of_a_long_prompt_has_the_mix_of_its_half(pieces: LoraMixer, unwanted: Any) -> None:
    with pieces.applied(MIX, engine="merged"):
        positive = encoded(pieces, LONG, unwanted)[0]
    with pieces.applied(LESS, engine="merged"):
        negative = encoded(pieces, LONG, unwanted)[1]

    with pieces.applied(MIX, negative=LESS):
        found = encoded(pieces, LONG, unwanted)

    assert gap(found[0], positive) < CLOSE
    assert gap(found[1], negative) < CLOSE


def test_pieces_that_cannot_be_told_apart_are_refused(pieces: LoraMixer) -> None:
    with (
        pieces.applied(MIX, negative=LESS),
        pytest.raises(MixError, match="cannot be told which of the texts"),
    ):
        encoded(pieces, LONG, LONG)


def test_a_text_encoder_called_by_itself_is_refused_while_halves_differ(mixer: LoraMixer) -> None:
    ids = torch.tensor([[512, 5, 6, 513]])

    def read() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = mixer.pipe.text_encoder(ids)[0]
        return found

    with mixer.applied(MIX, negative=LESS), pytest.raises(MixError, match="pass the pipeline prompt_embeds"):
        read()
    with mixer.applied(MIX):
        read()


@pytest.mark.parametrize("texts", [["one"], ["one", "two", "three", "four"]])
def test_a_list_of_mixes_has_one_text_for_each(mixer: LoraMixer, texts: Sequence[str]) -> None:
    with (
        mixer.applied([MIX, LESS]),
        pytest.raises(MixError, match=f"2 mixes, but text_encoder was called with {len(texts)}"),
    ):
        encoded(mixer, list(texts), None)
