"""Emphasis, long prompts and clip skip: compel's and diffusers' own embeddings, with mixes on the text encoders."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from compel import Compel, CompelForSD, CompelForSDXL

from lora_mixer import LoraMixer, MissingExtraError, PictureError, PictureMaker, PictureRequest
from lora_mixer.pictures.emphasis import Fragment, has_emphasis, parse_emphasis
from lora_mixer.pictures.prompting import PromptEncoder
from tests.models import tiny_sd, tiny_sdxl

SIZE = {"width": 16, "height": 16}
LONG = ", ".join(f"thing {number}" for number in range(30))  # each letter is a token of the small tokenizer
PIPES = {"sd": tiny_sd, "sdxl": tiny_sdxl}


def lora(pipe, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for path, module in getattr(pipe, part, torch.nn.Module()).named_modules():
            if path.endswith(("to_q", "v_proj", "fc1")):
                high, wide = module.weight.shape
                tensors[f"{part}.{path}.lora_A.weight"] = torch.randn(2, wide, generator=generator)
                tensors[f"{part}.{path}.lora_B.weight"] = torch.randn(high, 2, generator=generator) * 0.3
    return tensors


@pytest.fixture(params=PIPES)
def mixer(request):
    pipe = PIPES[request.param]()
    made = LoraMixer(pipe)
    for seed, name in enumerate("ab"):
        made.load_lora_weights(lora(pipe, seed), adapter_name=name)
    made.set_mix({})
    return made


def compels(pipe):
    return (CompelForSDXL if hasattr(pipe, "text_encoder_2") else CompelForSD)(pipe)


# --- the grammar -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a castle", [("a castle", 1)]),
        ("a (red) castle", [("a ", 1), ("red", 1.1), (" castle", 1)]),
        ("a ((red)) castle", [("a ", 1), ("red", 1.1**2), (" castle", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("( red : 0.5 )", [(" red ", 0.5)]),
        ("(red: .5)", [("red", 0.5)]),
        ("[red]", [("red", 1 / 1.1)]),
        ("[[red]]", [("red", 1 / 1.1 / 1.1)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3.0), (" c", 1.5)]),
        ("(a [b])", [("a ", 1.1), ("b", 1.0)]),
        (r"\(painting\) \[x\]", [("(painting) [x]", 1)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        ("a) b] :)", [("a) b] :)", 1)]),
        ("ratio 16:9", [("ratio 16:9", 1)]),
        ("", [("", 1)]),
    ],
)
def test_emphasis_is_read_as_automatic1111_reads_it(text, expected):
    (part,) = parse_emphasis(text)

    assert [x.text for x in part] == [text for text, _ in expected]
    assert [x.weight for x in part] == pytest.approx([weight for _, weight in expected])


def test_break_begins_a_new_part():
    assert parse_emphasis("a (b:2) BREAK c BREAK") == [[Fragment("a "), Fragment("b", 2.0)], [Fragment("c")]]
    assert parse_emphasis("BREAKFAST") == [[Fragment("BREAKFAST")]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a (castle", r"the bracket at '\(castle' is not closed"),
        ("[[a]", r"is not closed; close it, write \\\["),
        ("(a:1000)", "from 0 to 100, got 1000"),
        ("(a:-1)", "got -1"),
        ("a cat AND a dog", "AND joins several predictions"),
        ("a [cat:dog:0.5]", "changes the prompt between steps"),
        ("a [cat|dog]", "changes the prompt between steps"),
        ("(" * 100 + "a" + ")" * 100, "nested more than 50 times"),
    ],
)
def test_what_emphasis_cannot_be_is_one_sentence(text, message):
    with pytest.raises(PictureError, match=message):
        parse_emphasis(text)


def test_long_hostile_prompts_are_read_in_no_time():
    for text in ("(" * 50_000, "[a:" * 30_000, "(a:1)" * 20_000, ":" * 90_000, "\\" * 90_000, "a:1" * 30_000):
        with contextlib.suppress(PictureError):
            assert parse_emphasis(text)


# --- embeddings --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPES)
@pytest.mark.parametrize("skip", [None, 0, 1])
def test_a_plain_prompt_has_the_pipelines_own_embeddings(name, skip):
    # diffusers itself needs the layout of transformers 4 for clip skip on SD
    pipe = tiny_sd(text_layout="nested") if name == "sd" and skip is not None else PIPES[name]()

    own = pipe.encode_prompt("a castle", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
                             negative_prompt="rain", clip_skip=skip)  # fmt: skip

    encoder = PromptEncoder(pipe)
    for text, place in (("a castle", 0), ("rain", 1)):
        embeddings, pooled = encoder.encode(text, "a1111", None if place else skip)
        torch.testing.assert_close(embeddings, own[place], atol=1e-5, rtol=0)
        if pooled is not None:
            torch.testing.assert_close(pooled, own[place + 2], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("a (red:1.5) castle", "a (red)1.5 castle"),
        ("a (red:0.5) castle, (dusk:1.2)", "a (red)0.5 castle, (dusk)1.2"),
        ("(a (b:2) c:1.5)", "((a (b)2 c)1.5)1.0"),
        (LONG, LONG),
        (f"(sky:1.3), {LONG}", f"(sky)1.3, {LONG}"),
    ],
)
def test_weights_and_long_prompts_are_compels(mixer, ours, theirs):
    for mix in ({}, {"a": 0.8}, {"a": 0.5, "b": -1.0}):
        with mixer.applied(mix):
            embeddings, pooled = PromptEncoder(mixer.pipe).encode(ours, None, None)
            expected = compels(mixer.pipe)(theirs)

        torch.testing.assert_close(embeddings, expected.embeds, atol=1e-5, rtol=0)
        assert embeddings.shape[1] % 77 == 0
        if pooled is not None and "(" not in theirs:
            torch.testing.assert_close(pooled, expected.pooled_embeds, atol=1e-5, rtol=0)


def test_break_puts_chunks_side_by_side():
    pipe = tiny_sd()
    compel = Compel(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, truncate_long_prompts=False)

    embeddings, _ = PromptEncoder(pipe).encode("a castle BREAK at dusk", None, None)

    expected = torch.cat([compel("a castle"), compel("at dusk")], dim=1)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=0)


def test_compels_own_grammar_is_read_where_it_is_asked_for(mixer):
    embeddings, _ = PromptEncoder(mixer.pipe).encode("a red++ castle", "compel", None)

    torch.testing.assert_close(embeddings, compels(mixer.pipe)("a red++ castle").embeds, atol=1e-5, rtol=0)


def test_pictures_with_emphasis_are_made_of_these_embeddings_with_the_mix_on_the_text_encoders(mixer):
    request = PictureRequest("a (red:1.4) castle", "(rain:1.2)", seed=3, steps=2, mix={"a": 0.7}, **SIZE)

    (made,) = PictureMaker(mixer).make([request])

    with mixer.applied({"a": 0.7}):
        both = compels(mixer.pipe)("a (red)1.4 castle", negative_prompt="(rain)1.2")
        given = {"prompt_embeds": both.embeds, "negative_prompt_embeds": both.negative_embeds}
        if both.pooled_embeds is not None:
            encoder = PromptEncoder(mixer.pipe)
            given["pooled_prompt_embeds"] = encoder.encode("a red castle", "none", None)[1]
            given["negative_pooled_prompt_embeds"] = encoder.encode("rain", "none", None)[1]
        image = mixer.pipe(
            num_inference_steps=2, generator=torch.Generator().manual_seed(3), **SIZE, **given
        ).images[0]  # fmt: skip
    difference = np.abs(np.asarray(made.image).astype(int) - np.asarray(image).astype(int))
    assert difference.max() <= 1


def test_each_picture_of_a_batch_has_embeddings_by_its_own_mix(mixer):
    asked = [
        PictureRequest("a (red:1.4) castle", "rain", seed=1, steps=2, mix={"a": 1.0}, **SIZE),
        PictureRequest(
            "a (blue:1.4) castle", "rain", seed=2, steps=2, mix={"b": 1.0}, negative_mix={"a": 1.0}, **SIZE
        ),
        PictureRequest(f"(long:1.1) {LONG}", "rain", seed=3, steps=2, mix={"b": 1.0}, **SIZE),
        PictureRequest("a plain castle", "rain", seed=4, steps=2, mix={"b": 1.0}, **SIZE),
    ]
    alone = [next(iter(PictureMaker(mixer).make([request]))) for request in asked]

    together = sorted(PictureMaker(mixer, batch_size=4).make(asked), key=lambda each: each.index)

    assert [each.batch for each in together] == [2, 2, 1, 1]
    for one, both in zip(alone, together, strict=True):
        difference = np.abs(np.asarray(one.image).astype(int) - np.asarray(both.image).astype(int))
        assert difference.max() <= 1
    assert mixer.mixes == () or mixer.mix.names == ()


def test_plain_prompts_are_left_to_the_pipeline_and_emphasis_can_be_off(mixer):
    maker = PictureMaker(mixer)
    plain = PictureRequest("a castle", steps=2, **SIZE)
    signs = PictureRequest("a (red:1.4) castle", steps=2, emphasis="none", **SIZE)

    made = [np.asarray(each.image) for each in maker.make([plain, signs])]

    for request, got in zip((plain, signs), made, strict=True):
        own = mixer.pipe(
            request.prompt, num_inference_steps=2, generator=torch.Generator().manual_seed(0), **SIZE
        ).images[0]  # fmt: skip
        assert np.array_equal(got, np.asarray(own))


def test_clip_skip_is_diffusers_own(mixer):
    (made,) = PictureMaker(mixer).make([PictureRequest("a castle", steps=2, clip_skip=1, **SIZE)])

    nested = tiny_sdxl() if hasattr(mixer.pipe, "text_encoder_2") else tiny_sd(text_layout="nested")
    own = nested(
        "a castle", num_inference_steps=2, clip_skip=1, generator=torch.Generator().manual_seed(0), **SIZE
    ).images[0]  # fmt: skip
    difference = np.abs(np.asarray(made.image).astype(int) - np.asarray(own).astype(int))
    assert difference.max() <= 1
    (without,) = PictureMaker(mixer).make([PictureRequest("a castle", steps=2, **SIZE)])
    assert np.abs(np.asarray(without.image).astype(int) - np.asarray(own).astype(int)).max() > 1


def test_a_prompt_of_ten_thousand_tokens_is_one_sentence_before_anything_is_made(mixer):
    with pytest.raises(PictureError, match=r"chunks of 75 tokens, at most 16 are read") as caught:
        PictureMaker(mixer).make([PictureRequest("x " * 10_000, steps=1, **SIZE)])
    assert len(str(caught.value)) < 300


def test_textual_inversions_stand_in_weighted_prompts(mixer):
    mixer.load_textual_inversion(
        {"<cat>": torch.ones(2, 12)} if not hasattr(mixer.pipe, "text_encoder_2")
        else {"clip_l": torch.ones(2, 12), "clip_g": torch.ones(2, 16)}, token="<cat>",
    )  # fmt: skip

    encoder = PromptEncoder(mixer.pipe)
    with_it, _ = encoder.encode("a (<cat>:1.3) here", None, None)
    letters, _ = encoder.encode("a (< cat >:1.3) here", None, None)

    assert not torch.equal(with_it, letters)
    assert encoder._tokens("<cat>") == 2


def test_without_the_extra_the_error_names_it(mixer, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "compel", None)

    with pytest.raises(MissingExtraError, match=r"prompts\]"):
        PictureMaker(mixer).make([PictureRequest("a (red:1.4) castle", **SIZE)])
    assert list(PictureMaker(mixer).make([PictureRequest("a castle", steps=1, **SIZE)]))


def test_has_emphasis_tells_plain_prompts_apart():
    assert not any(map(has_emphasis, ("", "a castle :)", r"a \(b\)", "16:9", "break")))
    assert all(map(has_emphasis, ("(a)", "[a]", "a BREAK b", "(a:1.1)", "a (b")))
