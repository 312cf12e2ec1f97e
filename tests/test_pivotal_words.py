"""Words of pivotal tuning: several names for the rows of one file, as diffusers' ``token=["<s0>", "<s1>"]``."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import LoraMixer, MatchError
from tests.models import SD_WIDTH, SDXL_WIDTHS, tiny_sd, tiny_sdxl
from tests.weights import Snapshot

WORDS = ["<s0>", "<s1>", "<s2>"]
PROMPT = "a photo of <s0><s1> and <s2>"


def rows(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def encoded(pipe):
    with torch.no_grad():
        found = pipe.encode_prompt(
            PROMPT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return found[0]


def test_sdxl_words_are_diffusers_own(tmp_path):
    table = {"clip_l": rows(3, SDXL_WIDTHS[0], 1), "clip_g": rows(3, SDXL_WIDTHS[1], 2)}
    save_file(table, tmp_path / "emb.safetensors")
    ours, theirs = tiny_sdxl(), tiny_sdxl()
    mixer = LoraMixer(ours)
    before = Snapshot.of(ours)
    plain = encoded(ours)

    words = mixer.load_textual_inversion(tmp_path / "emb.safetensors", token=WORDS)
    for key, end in (("clip_l", ""), ("clip_g", "_2")):
        theirs.load_textual_inversion(
            table[key], token=WORDS, text_encoder=getattr(theirs, f"text_encoder{end}"), tokenizer=getattr(theirs, f"tokenizer{end}")
        )  # fmt: skip

    assert words == tuple(WORDS)
    assert torch.allclose(encoded(ours), encoded(theirs), atol=1e-5)
    assert not torch.allclose(encoded(ours), plain, atol=1e-3)
    mixer.unload_textual_inversion()
    assert torch.equal(encoded(ours), plain)
    before.assert_values(ours)


@pytest.mark.parametrize("form", ["vectors", "file", "unnamed"])
def test_sd_words_come_as_vectors_or_as_a_file(form, tmp_path):
    vectors = rows(3, SD_WIDTH, 3)
    ours, theirs = tiny_sd(), tiny_sd()
    given = vectors
    if form != "vectors":
        save_file({"emb_params" if form == "file" else "clip_l": vectors}, tmp_path / "x.safetensors")
        given = tmp_path / "x.safetensors"

    assert LoraMixer(ours).load_textual_inversion(given, token=WORDS) == tuple(WORDS)
    theirs.load_textual_inversion(vectors, token=WORDS)

    assert torch.allclose(encoded(ours), encoded(theirs), atol=1e-5)


def test_one_name_is_still_one_word_of_several_vectors():
    mixer = LoraMixer(tiny_sd())

    assert mixer.load_textual_inversion(rows(3, SD_WIDTH), token="<all>") == ("<all>",)
    assert dict(mixer.tokens["<all>"].vectors) == {"text_encoder": 3}


def test_several_words_of_a_file_are_named_in_their_order(tmp_path):
    table = {"one": rows(1, SD_WIDTH, 4), "two": rows(1, SD_WIDTH, 5)}
    ours, other = LoraMixer(tiny_sd()), LoraMixer(tiny_sd())

    assert ours.load_textual_inversion(table, token=["<s0>", "<s1>"]) == ("<s0>", "<s1>")
    other.load_textual_inversion(torch.cat([table["one"], table["two"]]), token=["<s0>", "<s1>"])

    assert torch.equal(encoded(ours.pipe), encoded(other.pipe))


@pytest.mark.parametrize(
    "token",
    [
        ["<s0>"],
        ["<s0>", "<s1>"],
        [*WORDS, "<s3>"],
        ["<s0>", "<s0>", "<s1>"],
        [],
        ["<s0>", 1, "<s2>"],
        ["a b", "c", "d"],
    ],
)
def test_names_that_are_not_as_many_or_no_words_are_refused(token):
    pipe = tiny_sd()
    mixer = LoraMixer(pipe)
    before = Snapshot.of(pipe)
    if token == ["<s0>"]:  # one name in a list is one word, as one name is
        assert mixer.load_textual_inversion(rows(3, SD_WIDTH), token=token) == ("<s0>",)
        return

    with pytest.raises((MatchError, ValueError)) as caught:
        mixer.load_textual_inversion(rows(3, SD_WIDTH), token=token)

    assert type(caught.value).__module__ == "lora_mixer.errors"
    before.assert_untouched(pipe)
