"""Layouts that count modules instead of naming them, and words in the file, as their tools write them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import InvalidAdapterError, LoraMixer, MatchError
from tests.spellings import (
    counted_text,
    counted_unet,
    kohya,
    state_dict,
)
from tests.test_layouts import KOHYA, SD, assert_means, attention_only, stage
from tests.weights import deltas, random_pairs


class TestCountedLayouts:
    """cloneofsimo's files number modules instead of naming them."""

    @pytest.mark.parametrize("text_layout", ["flat", "nested"])
    @pytest.mark.parametrize(
        ("text_class", "newer"),
        [("CLIPAttention", False), ("CLIPSdpaAttention", True), ("CLIPFlashAttention2", True)],
    )
    @pytest.mark.parametrize("geglu", [True, False])
    def test_safeloras_with_class_names_and_embeddings(self, text_layout, geglu, text_class, newer, tmp_path):
        pipe, clean = stage("sd", text_layout)
        pairs = random_pairs(pipe, alphas=False)
        order = {
            "unet": counted_unet(dict(pipe.unet.named_modules()), geglu=geglu, newer=newer),
            "text_encoder": counted_text(dict(pipe.text_encoder.named_modules())),
        }
        classes = {
            "unet": ["CrossAttention", "Attention", *(["GEGLU"] if geglu else [])],
            "text_encoder": [text_class],
        }
        table, expected, metadata = {"<s1>": torch.ones(12), "<s2>": torch.ones(12)}, {}, {"<s1>": "<embed>"}
        for component, paths in order.items():
            metadata[component] = json.dumps(classes[component])
            for number, path in enumerate(paths):
                pair = expected[component, path] = pairs[component, path]
                table[f"{component}:{number}:up"], table[f"{component}:{number}:down"] = pair.up, pair.down
                metadata[f"{component}:{number}:rank"] = str(pair.rank)
        save_file(table, tmp_path / "s1.safetensors", metadata)

        mixer = LoraMixer(pipe)
        report = mixer.load_lora_weights(tmp_path / "s1.safetensors", adapter_name="a")

        clean.assert_holds(pipe, deltas(expected))
        assert set(report.unused_keys) == {"<s1>", "<s2>"}
        assert mixer.adapters["a"].embeddings == ("<s1>", "<s2>")
        assert "textual inversions <s1>, <s2>" in str(report)
        mixer.unload_lora_weights()
        clean.assert_untouched(pipe)

    @pytest.mark.parametrize(
        "part", ["unet", "unet with GEGLU", "unet with GEGLU, in the newer order", "text_encoder"]
    )
    def test_a_bare_list_goes_where_its_count_and_shapes_fit(self, part, sd, sd_base, tmp_path):
        pairs = random_pairs(sd, alphas=False)
        component = part.split()[0]
        modules = dict(sd.components[component].named_modules())
        paths = (
            counted_text(modules)
            if component == "text_encoder"
            else counted_unet(modules, geglu="GEGLU" in part, newer="newer" in part)
        )
        expected = {(component, path): pairs[component, path] for path in paths}
        # parameters, as training left them: they want gradients
        torch.save(
            [torch.nn.Parameter(t) for pair in expected.values() for t in (pair.up, pair.down)],
            tmp_path / "s2.pt",
        )

        assert_means(sd, sd_base[1], tmp_path / "s2.pt", expected, allow_pickle=True)

    @pytest.mark.parametrize("keep", [3, -2, -1])
    def test_a_list_with_a_tensor_too_few_is_refused(self, keep, sd, sd_base, tmp_path):
        pairs = list(random_pairs(sd, lambda _, path: "attn1.to_" in path).values())
        torch.save([t for pair in pairs for t in (pair.up, pair.down)][:keep], tmp_path / "s2.pt")

        with pytest.raises((InvalidAdapterError, MatchError)):
            LoraMixer(sd).load_lora_weights(tmp_path / "s2.pt", allow_pickle=True)
        sd_base[1].assert_untouched(sd)


class TestEmbeddingsInTheFile:
    """Textual inversions bundled with a LoRA are reported and the LoRA is loaded."""

    @pytest.mark.parametrize(
        "keys", [("bundle_emb.ohwx.clip_l", "bundle_emb.ohwx.clip_g"), ("bundle_emb.ohwx.string_to_param.*",)]
    )
    def test_they_are_named_in_report_and_description(self, keys, sd, sd_base):
        pairs = random_pairs(sd, attention_only)
        table, _ = state_dict(pairs, kohya(SD), KOHYA)

        mixer = LoraMixer(sd)
        report = mixer.load_lora_weights(
            {**table, **{key: torch.ones(2, 12) for key in keys}}, adapter_name="a"
        )

        sd_base[1].assert_holds(sd, deltas(pairs))
        assert mixer.adapters["a"].embeddings == ("ohwx",)
        assert set(report.unused_keys) == set(keys)
        assert "ohwx" in str(report)
