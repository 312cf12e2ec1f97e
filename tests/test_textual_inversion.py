"""Textual inversions: words that take effect as diffusers' own loader makes them, and no trace of them afterwards."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import (
    AdapterNameError,
    InvalidAdapterError,
    LoraMixer,
    MatchError,
    NotAnAdapterError,
    PipelineStateError,
    TokenInfo,
    read_adapter,
)
from tests.models import SD_WIDTH, SDXL_WIDTHS, tiny_sd, tiny_sdxl
from tests.weights import Snapshot

PROMPT = "a <cat> and ohwx on a hill"


def rows(count, width=SD_WIDTH, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def lora(pipe, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = pipe.unet.conv_in.weight.shape
    return {
        "unet.conv_in.lora_A.weight": torch.randn(2, *shape[1:], generator=g),
        "unet.conv_in.lora_B.weight": torch.randn(shape[0], 2, 1, 1, generator=g),
    }


def encoded(pipe, prompt=PROMPT):
    """What the pipeline's own code makes of a prompt."""
    with torch.no_grad():
        if hasattr(pipe, "text_encoder_2"):
            found = pipe.encode_prompt(prompt, prompt, "cpu", 1, do_classifier_free_guidance=False)
            return torch.cat([found[0].flatten(), found[2].flatten()])
        return pipe.encode_prompt(prompt, "cpu", 1, do_classifier_free_guidance=False)[0].flatten()


class Before:
    """All that words could change: tokenizers with their insides, weights, parameters, hooks, and what prompts become."""

    def __init__(self, pipe):
        self.encoded = encoded(pipe)  # first: transformers leaves hooks at the first call for hidden states
        self.pipe, self.weights = pipe, Snapshot.of(pipe)
        self.tokenizers = {n: t for n, t in pipe.components.items() if n.startswith("tokenizer")}
        self.insides = {n: dict(vars(t)) for n, t in self.tokenizers.items()}
        self.states = {n: state(t) for n, t in self.tokenizers.items()}

    def assert_back(self):
        self.weights.assert_untouched(self.pipe)
        for name, tokenizer in self.tokenizers.items():
            assert self.pipe.components[name] is tokenizer
            assert vars(tokenizer).keys() == self.insides[name].keys()
            assert all(value is self.insides[name][key] for key, value in vars(tokenizer).items())
            assert state(tokenizer) == self.states[name]
        assert torch.equal(encoded(self.pipe), self.encoded)


def state(tokenizer):
    """All that a tokenizer is; padding and truncation are set anew by each call."""
    inner = json.loads(tokenizer._tokenizer.to_str())
    return (
        {k: v for k, v in inner.items() if k not in ("padding", "truncation")},
        tokenizer.get_vocab(),
        len(tokenizer),
    )


def peer_sd(words):
    """Diffusers' own loading of the same words."""
    pipe = tiny_sd()
    for word, vectors in words.items():
        pipe.load_textual_inversion({word: vectors})
    return pipe


class TestEffect:
    @pytest.mark.parametrize("vectors", [1, 3])
    def test_a_word_of_its_own_file_encodes_as_in_diffusers(self, vectors, sd, tmp_path):
        words = {"<cat>": rows(vectors), "ohwx": rows(2, seed=1)}
        for number, (word, tensor) in enumerate(words.items()):
            save_file({word: tensor}, tmp_path / f"{number}.safetensors")
        before = Before(sd)
        mixer = LoraMixer(sd)

        assert mixer.load_textual_inversion(tmp_path / "0.safetensors") == ("<cat>",)
        assert mixer.load_textual_inversion(tmp_path / "1.safetensors") == ("ohwx",)

        expected = encoded(peer_sd(words))
        assert torch.equal(encoded(sd), expected)
        assert not torch.equal(expected, before.encoded)
        assert mixer.tokens["<cat>"] == TokenInfo("<cat>", {"text_encoder": vectors}, None)
        before.weights.assert_values(sd)  # no weight has changed or grown
        mixer.unload_textual_inversion()
        before.assert_back()

    def test_words_beside_a_lora_load_on_request_and_go_with_it(self, sd, tmp_path):
        cat = rows(1)
        save_file(
            {**lora(sd), "<cat>": cat[0], "bundle_emb.ohwx.clip_l": rows(2, seed=1)},
            tmp_path / "a.safetensors",
        )
        before = Before(sd)
        mixer = LoraMixer(sd)

        report = mixer.load_lora_weights(tmp_path / "a.safetensors", "a", load_embeddings=True, strict=True)

        assert report.complete
        assert "words: <cat> (1 vectors, text_encoder), ohwx (2 vectors, text_encoder)" in str(report)
        assert torch.equal(encoded(sd), encoded(peer_sd({"<cat>": cat, "ohwx": rows(2, seed=1)})))
        assert {t: i.adapter for t, i in mixer.tokens.items()} == {"<cat>": "a", "ohwx": "a"}
        mixer.set_adapters("a", 0.3)
        assert not torch.equal(encoded(sd), before.encoded)
        mixer.delete_adapters("a")
        before.assert_back()
        assert mixer.tokens == {}

    def test_sdxl_takes_a_word_for_each_of_its_encoders(self, sdxl, tmp_path):
        parts = {"clip_l": rows(2, SDXL_WIDTHS[0]), "clip_g": rows(2, SDXL_WIDTHS[1], seed=1)}
        save_file(parts, tmp_path / "ohwx.safetensors")
        before = Before(sdxl)
        peer = tiny_sdxl()
        for part, number in (("clip_l", ""), ("clip_g", "_2")):
            encoder, tokenizer = getattr(peer, f"text_encoder{number}"), getattr(peer, f"tokenizer{number}")
            peer.load_textual_inversion({"ohwx": parts[part]}, text_encoder=encoder, tokenizer=tokenizer)
        mixer = LoraMixer(sdxl)

        mixer.load_textual_inversion(tmp_path / "ohwx.safetensors")

        assert mixer.tokens["ohwx"].vectors == {"text_encoder": 2, "text_encoder_2": 2}
        assert torch.equal(encoded(sdxl), encoded(peer))
        mixer.unload_lora_weights()
        before.assert_back()

    def test_a_bundle_for_sdxl_names_its_encoders(self, sdxl):
        table = {
            f"bundle_emb.xx.{part}": rows(1, width)
            for part, width in zip(("clip_l", "clip_g"), SDXL_WIDTHS, strict=True)
        }
        mixer = LoraMixer(sdxl)

        mixer.load_lora_weights({**lora(sdxl), **table}, "a", load_embeddings=True)

        assert mixer.tokens["xx"].vectors == {"text_encoder": 1, "text_encoder_2": 1}
        mixer.unload_lora_weights()

    def test_a_picture_changes_by_the_word_alone(self, sd):
        def picture():
            g = torch.Generator().manual_seed(0)
            return torch.from_numpy(
                sd(
                    "a <cat>", num_inference_steps=1, height=16, width=16, generator=g, output_type="np"
                ).images
            )

        before = picture()
        mixer = LoraMixer(sd)
        mixer.load_textual_inversion({"<cat>": rows(1) * 20})
        with_word = picture()
        mixer.disable_lora()

        assert (with_word - before).abs().max() > 1e-3
        assert torch.equal(picture(), before)

    def test_another_word_can_be_chosen(self, sd):
        mixer = LoraMixer(sd)
        mixer.load_lora_weights({**lora(sd), "<s1>": rows(1)[0]}, "a", load_embeddings=True)
        with pytest.raises(MatchError, match="<s1>: text_encoder's tokenizer knows this already"):
            mixer.load_lora_weights({**lora(sd, 1), "<s1>": rows(1, seed=1)[0]}, "b", load_embeddings=True)
        assert list(mixer.adapters) == ["a"]

        mixer.load_lora_weights(
            {**lora(sd, 1), "<s1>": rows(1, seed=1)[0]}, "b", load_embeddings={"<s1>": "<s2>"}
        )
        mixer.load_textual_inversion({"emb_params": rows(2)}, token="mine")

        assert list(mixer.tokens) == ["<s1>", "<s2>", "mine"]
        assert sd.tokenizer.tokenize("<s2>") == ["<s2>"]
        mixer.unload_lora_weights()

    def test_a_hotswap_changes_the_words_with_the_adapter(self, sd):
        before = Before(sd)
        mixer = LoraMixer(sd)
        mixer.load_lora_weights({**lora(sd), "<cat>": rows(1)}, "a", load_embeddings=True)

        mixer.load_lora_weights({**lora(sd, 1), "<cat>": rows(2)}, "a", load_embeddings=True, hotswap=True)
        assert mixer.tokens["<cat>"].vectors == {"text_encoder": 2}
        mixer.load_lora_weights(lora(sd), "a", hotswap=True)

        assert mixer.tokens == {}
        mixer.unload_lora_weights()
        before.assert_back()


class TestTheWayBack:
    @pytest.fixture
    def held(self, sd):
        before = Before(sd)
        mixer = LoraMixer(sd)
        mixer.load_lora_weights({**lora(sd), "<cat>": rows(2)}, "a", load_embeddings=True)
        mixer.load_textual_inversion({"ohwx": rows(1, seed=3)})
        return before, mixer, encoded(sd)

    def test_disabled_is_the_base_and_enabling_brings_the_words_again(self, held, sd):
        before, mixer, with_words = held

        mixer.disable_lora()
        before.assert_back()
        mixer.enable_lora()
        assert torch.equal(encoded(sd), with_words)
        mixer.unload_lora_weights()
        before.assert_back()

    def test_applied_for_a_block_of_code_while_disabled(self, held, sd):
        before, mixer, with_words = held
        mixer.disable_lora()

        with mixer.applied({"a": 0.5}):
            assert torch.equal(encoded(sd), with_words)
        before.assert_back()

    def test_words_go_one_by_one_in_any_order(self, held, sd):
        before, mixer, _ = held

        mixer.delete_adapters("a")
        assert sd.tokenizer.tokenize("ohwx <cat>")[0] == "ohwx"
        assert list(mixer.tokens) == ["ohwx"]
        mixer.unload_textual_inversion("ohwx")
        before.assert_back()

    def test_a_load_that_fails_leaves_words_as_they_were(self, held, sd, monkeypatch):
        before, mixer, with_words = held

        def broken(*_):
            raise RuntimeError("no memory")

        monkeypatch.setattr(mixer._state.controller, "replace", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            mixer.load_lora_weights({**lora(sd), "<dog>": rows(1)}, "b", load_embeddings=True)
        monkeypatch.undo()

        assert torch.equal(encoded(sd), with_words)
        assert "<dog>" not in sd.tokenizer.get_vocab()
        mixer.unload_lora_weights()
        before.assert_back()

    def test_settings_made_meanwhile_stay(self, sd):
        mixer = LoraMixer(sd)
        mixer.load_textual_inversion({"ohwx": rows(1)})
        sd.tokenizer.padding_side = "left"

        mixer.unload_textual_inversion()

        assert sd.tokenizer.padding_side == "left"
        sd.tokenizer.padding_side = "right"

    def test_words_that_others_taught_meanwhile_are_not_lost(self, sd):
        mixer = LoraMixer(sd)
        mixer.load_textual_inversion({"ohwx": rows(1)})
        inner = sd.tokenizer._tokenizer
        sd.tokenizer._tokenizer = copy.deepcopy(inner)
        sd.tokenizer.add_tokens(["theirs"])

        with pytest.raises(PipelineStateError, match="has 516 now"):
            mixer.unload_lora_weights()

        assert "ohwx" in sd.tokenizer.get_vocab()
        sd.tokenizer._tokenizer = inner
        mixer.unload_lora_weights()

    def test_a_deep_copy_knows_the_words_and_lives_alone(self, held, sd):
        before, mixer, with_words = held

        twin = copy.deepcopy(sd)
        mixer.unload_lora_weights()

        before.assert_back()
        assert torch.equal(encoded(twin), with_words)


class TestReports:
    def test_without_the_request_words_are_reported_only(self, sd):
        before = Before(sd)
        mixer = LoraMixer(sd)

        report = mixer.load_lora_weights({**lora(sd), "<cat>": rows(1)}, "a")

        assert set(report.unused_keys) == {"<cat>"}
        assert "holds textual inversions <cat>; load_embeddings=True" in str(report)
        assert mixer.tokens == {}
        mixer.unload_lora_weights()
        before.assert_back()

    def test_a_file_without_words_says_so(self, sd):
        mixer = LoraMixer(sd)

        assert "no textual inversions in this file" in str(
            mixer.load_lora_weights(lora(sd), load_embeddings=True)
        )
        mixer.unload_lora_weights()

    def test_unknown_parts_of_a_bundle_are_named(self, sd):
        mixer = LoraMixer(sd)
        table = {**lora(sd), "bundle_emb.xx.clip_l": rows(1), "bundle_emb.xx.clip_l_out": rows(1)}

        report = mixer.load_lora_weights(table, load_embeddings=True)

        assert report.unused_keys == {
            "bundle_emb.xx.clip_l_out": "a part of a textual inversion that is not known (clip_l_out)"
        }
        mixer.unload_lora_weights()

    def test_the_real_embedding_is_refused_as_an_adapter_and_read_as_words(self, sd, shared_data):
        path = shared_data / "files/invokeai_test_embedding.safetensors"
        with pytest.raises(NotAnAdapterError, match=r"mixer\.load_textual_inversion"):
            read_adapter(path)

        with pytest.raises(MatchError, match=r"width 768 is not in this pipeline; .* text_encoder 12"):
            LoraMixer(sd).load_textual_inversion(path)


A1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": rows(2)}, "name": "ohwx", "step": 10}


def test_what_a1111_pickles_is_read_when_allowed(sd, tmp_path):
    torch.save(A1111, tmp_path / "x.pt")
    mixer = LoraMixer(sd)

    assert mixer.load_textual_inversion(tmp_path / "x.pt", allow_pickle=True) == ("ohwx",)

    assert torch.equal(encoded(sd), encoded(peer_sd({"ohwx": rows(2)})))
    mixer.unload_lora_weights()


@pytest.mark.parametrize(
    ("table", "said", "kind"),
    [
        ({"<cat>": torch.full((1, SD_WIDTH), float("nan"))}, "NaN or Inf", InvalidAdapterError),
        (
            {"<cat>": torch.ones(2, 3, SD_WIDTH)},
            "no textual inversion|shape",
            (NotAnAdapterError, InvalidAdapterError),
        ),
        ({"<cat>": torch.ones(0, SD_WIDTH)}, "1 to 1024 vectors", InvalidAdapterError),
        ({"<cat>": torch.ones(1025, SD_WIDTH)}, "1 to 1024 vectors", InvalidAdapterError),
        ({"<cat>": torch.ones(1, SD_WIDTH, dtype=torch.int64)}, "of torch.int64", InvalidAdapterError),
        ({"<c\x1bat>": rows(1)}, "printable", InvalidAdapterError),
        ({"<two words>": rows(1)}, "without spaces", InvalidAdapterError),
        ({"<" + "x" * 99 + ">": rows(1)}, "1 to 64", InvalidAdapterError),
        ({"a</w>": rows(1)}, "knows this already", MatchError),
        ({"<cat>": rows(1, 13)}, "width 13", MatchError),
        ({"clip_g": rows(1, 16)}, "clip_g of width 16", MatchError),
        ({"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3)}, "no textual inversion", NotAnAdapterError),
        ({}, "no keys at all", NotAnAdapterError),
    ],
)
def test_hostile_words_are_refused_and_nothing_changes(table, said, kind, sd):
    before = Before(sd)

    with pytest.raises(kind, match=said):
        LoraMixer(sd).load_textual_inversion(table, token="x" if "clip_g" in table else None)

    before.assert_back()


def test_names_that_are_not_loaded_are_errors(sd):
    mixer = LoraMixer(sd)
    mixer.load_lora_weights({**lora(sd), "<cat>": rows(1)}, "a", load_embeddings=True)

    with pytest.raises(AdapterNameError, match=r"'<cat>'.*delete_adapters"):
        mixer.unload_textual_inversion("<cat>")
    with pytest.raises(MatchError, match=r"load_embeddings names <x>; the file's words are: <cat>"):
        mixer.load_lora_weights({**lora(sd), "<cat>": rows(1)}, "b", load_embeddings={"<x>": "<y>"})
    mixer.unload_lora_weights()


def test_a_mixer_whose_pipeline_holds_words_of_another_is_refused(sd):
    one, two = LoraMixer(sd), LoraMixer(sd)
    one.load_textual_inversion({"ohwx": rows(1)})

    with pytest.raises(PipelineStateError, match="another LoraMixer"):
        two.load_textual_inversion({"other": rows(1)})
    one.unload_lora_weights()
    two.load_textual_inversion({"other": rows(1)})
    two.unload_lora_weights()
