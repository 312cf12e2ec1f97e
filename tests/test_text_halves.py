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


class Weighted(InPieces):
    """Reads a text without its brackets, so that pieces with weights are none of the text; sometimes the negative one first."""

    negative_first = False

    def encode_prompt(self, prompt: str, device: Any, *_: Any, negative_prompt: Any = None, **__: Any) -> Any:
        if self.negative_first:
            return tuple(reversed([self.read(text, 9) for text in (negative_prompt or "", prompt)]))
        return tuple(self.read(text, 9) for text in (prompt, negative_prompt or ""))

    def read(self, text: str, size: int) -> torch.Tensor:
        return super().read("".join(letter for letter in text if letter not in "()"), size)


@pytest.fixture(scope="module")
def weighted() -> Iterator[LoraMixer]:
    parts = {name: part for name, part in tiny_sd().components.items() if name != "image_encoder"}
    mixer = LoraMixer(Weighted(**parts, requires_safety_checker=False))
    for seed, name in ((1, "a"), (2, "b")):
        mixer.load_lora_weights(file_of(mixer.pipe, seed), name)
    mixer.disable_lora()
    yield mixer
    mixer.unload_lora_weights()


@pytest.mark.parametrize("order", ["prompt first", "negative first"])
@pytest.mark.parametrize("unwanted", ["rain", "(r)ain", "rain and (f)og", "(0)123456789(0)", "", None])
@pytest.mark.parametrize(
    "prompt",
    [
        "castle",
        "c(as)tle",
        "a castle and a (b)ird",  # the second piece is none of the text
        "a (c)astle and a bird",  # the first one
        "a (c)astle and a (b)ird",
        "a (c)astle and a (b)ird in (t)he sea",
    ],
)
def test_texts_that_are_rewritten_are_read_with_the_mix_of_their_half_or_refused(
    weighted: LoraMixer, prompt: str, unwanted: Any, order: str
) -> None:
    weighted.pipe.negative_first = order == "negative first"
    if weighted.pipe.negative_first and (prompt, unwanted) == ("c(as)tle", "(r)ain"):
        pytest.skip("neither text tells: the first one read is the prompt's")
    with weighted.applied(MIX, engine="merged"):
        positive = encoded(weighted, prompt, unwanted)[0]
    with weighted.applied(LESS, engine="merged"):
        negative = encoded(weighted, prompt, unwanted)[1]

    with weighted.applied(MIX, negative=LESS):
        try:
            found = encoded(weighted, prompt, unwanted)
        except MixError as error:
            assert "(" in prompt + (unwanted or "")  # what stands in the text is told by it
            assert "prompt_embeds and negative_prompt_embeds" in str(error)  # noqa: PT017 -- either may come
            return

    assert gap(found[0], positive) < CLOSE
    assert gap(found[1], negative) < CLOSE


class AtOnce(StableDiffusionPipeline):
    """Reads both halves in one call, as PRX does."""

    def encode_prompt(self, prompt: Any, device: Any, *_: Any, negative_prompt: Any = None, **__: Any) -> Any:
        texts = [prompt] if isinstance(prompt, str) else prompt
        unwanted = [negative_prompt or ""] * len(texts)
        ids = self.tokenizer(
            unwanted + texts, padding="max_length", max_length=30, return_tensors="pt"
        ).input_ids
        return tuple(reversed(self.text_encoder(ids)[0].chunk(2)))


@pytest.mark.parametrize("unwanted", ["rain", "", "rain and fog", None])
@pytest.mark.parametrize("prompt", ["rain", "castle", "rain and fog", ["rain", "castle"], ["rain"], ""])
def test_halves_read_in_one_call_have_their_mixes_or_are_refused(
    weighted: LoraMixer, prompt: Any, unwanted: Any
) -> None:
    pipe = AtOnce(**weighted.pipe.components, requires_safety_checker=False)

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            found: tuple[torch.Tensor, torch.Tensor] = pipe.encode_prompt(
                prompt, "cpu", negative_prompt=unwanted
            )
        return found

    with weighted.applied(MIX, engine="merged"):
        positive = read()[0]
    with weighted.applied(LESS, engine="merged"):
        negative = read()[1]

    with weighted.applied(MIX, negative=LESS):
        texts = [prompt] if isinstance(prompt, str) else prompt
        if any((text in (unwanted or "") if text else not unwanted) for text in texts) or (
            "and" in prompt and unwanted == "rain"
        ):
            with pytest.raises(MixError, match="cannot be told"):  # a text is a piece of the other half's
                read()
            return
        found = read()
    assert gap(found[0], positive) < CLOSE
    assert gap(found[1], negative) < CLOSE


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
