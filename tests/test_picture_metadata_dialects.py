"""Pictures of every program give their settings back."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from lora_mixer.errors import PictureMetadataError, SourceNotFoundError
from lora_mixer.picture_metadata import DIALECTS, read_picture
from tests import pictures
from tests.pictures import jpeg, png, webp


def weights(settings):
    return [(adapter.name, adapter.weight, adapter.text_weight) for adapter in settings.adapters]


def hashes(settings):
    return [adapter.hash for adapter in settings.adapters]


def facts(settings):
    return (
        settings.prompt, settings.negative_prompt, settings.seed, settings.steps, settings.guidance_scale,
        settings.width, settings.height, settings.sampler, settings.model,
    )  # fmt: skip


def test_automatic1111():
    settings = read_picture(png(parameters=pictures.A1111))

    assert settings.dialect == "a1111"
    assert facts(settings) == (
        "a castle, dusk\nin two lines", "rain, fog\nand snow", 1234567890123, 20, 7.5, 512, 768, "DPM++ 2M",
        "v1-5-pruned",
    )  # fmt: skip
    assert settings.model_hash == "6ce0161689"
    assert weights(settings) == [("ink", 0.8, None), ("oil painting", 0.9, 0.2)]
    assert hashes(settings) == ["0123456789ab", "ba9876543210"]
    assert next(iter(settings.adapters[0].hashes)) == "autov3"
    assert settings.version == "v1.10.1"
    assert (settings.clip_skip, settings.extra) == (1, {})  # 1 more there
    assert settings.notes == ()


def test_block_weights_and_steps_in_tags_are_kept():
    text = "x <lora:ink:0.7:0.8:lbw=OUTALL:start=5> <lora:oil:1:lbw=NOPE>\nSteps: 20, Seed: 1, Size: 8x8"

    settings = read_picture(png(parameters=text))

    ink, oil = settings.adapters
    assert ink.spec is not None
    assert ink.adapter_mix().gain("unet", "down_blocks.0.attentions.0.proj_in") == 0
    assert ink.adapter_mix().gain("unet", "up_blocks.1.attentions.0.proj_in") == 0.8
    assert ink.adapter_mix().share_at("unet", 4, 20) == 0
    assert (oil.name, oil.weight, oil.spec) == ("oil", 1.0, None)
    assert any("lbw=NOPE" in note for note in settings.notes)


def test_what_tags_say_that_is_not_supported_is_left_out_with_a_note():
    text = "x <lora:ink:0.7:0.8:16> <lora:ink:te=0.1:unet=0.2:dyn=4>\nSteps: 20, Seed: 1, Size: 8x8"

    settings = read_picture(png(parameters=text))

    assert settings.prompt == "x"
    assert weights(settings) == [("ink", 0.2, 0.1)]
    assert any("named twice" in note for note in settings.notes)
    assert any("dyn=4" in note for note in settings.notes)


def test_civitais_bare_json_does_not_break_the_other_pairs():
    settings = read_picture(png(parameters=pictures.CIVITAI))

    assert facts(settings)[:7] == ("a castle", "rain", 9, 25, 5.0, 832, 1216)
    assert weights(settings) == [("ink: v2", 0.65, None)]
    assert hashes(settings) == ["abcdef0123"]
    assert (settings.clip_skip, settings.extra) == (1, {"Created Date": "2025-01-01"})


def test_sdnext_pairs_names_and_hashes_by_their_places():
    settings = read_picture(png(parameters=pictures.SDNEXT))

    assert settings.dialect == "sdnext"
    assert facts(settings) == ("a castle", "", 5, 20, 6.0, 512, 512, "Euler a", "sdxl")
    assert weights(settings)[:2] == [("ink", 0.5, None), ("oil", 0.9, 0.3)]
    assert settings.adapters[2].adapter_mix().share_at("unet", 0, 5) == 0
    assert settings.adapters[2].adapter_mix().share_at("unet", 4, 5) == 1
    assert hashes(settings) == ["a" * 10, "b" * 10, "c" * 10]


def test_sdnext_hashes_of_another_number_are_not_guessed_at():
    settings = read_picture(png(parameters=pictures.SDNEXT.replace(", cccccccccc", "")))

    assert hashes(settings) == [None, None, None]
    assert "3 adapters and 2 hashes" in settings.notes[0]


def test_sdnext_weights_by_thirds_of_the_unet():
    text = pictures.SDNEXT.replace("<lora:ink:0.5>", "<lora:ink:0.5:in=0:out=0.7>")

    ink = read_picture(png(parameters=text)).adapters[0].adapter_mix()

    assert ink.gain("unet", "down_blocks.0.resnets.0.conv1") == 0
    assert ink.gain("unet", "mid_block.resnets.0.conv1") == 0.5
    assert ink.gain("unet", "up_blocks.0.resnets.0.conv1") == 0.7
    assert ink.gain("text_encoder", "x") == 0.5


@pytest.mark.parametrize("name", ["FOOOCUS_TEXT", "FOOOCUS_OLD"])
def test_fooocus_infotext(name):
    settings = read_picture(png(parameters=getattr(pictures, name), fooocus_scheme="a1111"))

    second = {"FOOOCUS_TEXT": -0.5, "FOOOCUS_OLD": 0.75}[name]
    assert settings.dialect == "fooocus"
    assert facts(settings)[:7] == ("a castle", "rain", 77, 30, 4.0, 1152, 896)
    assert weights(settings) == [("sd_xl_offset", 0.1, None), ("ink", second, None)]
    assert hashes(settings) == ["4852686128", "0123456789"]


def test_fooocus_json():
    settings = read_picture(png(parameters=pictures.FOOOCUS_JSON, fooocus_scheme="fooocus"))

    assert settings.dialect == "fooocus"
    assert facts(settings) == (
        "a castle", "rain", 7777777777777777777, 30, 4.0, 1152, 896, "dpmpp_2m_sde_gpu", "juggernaut",
    )  # fmt: skip
    assert weights(settings) == [("sd_xl_offset", 0.1, None), ("ink", 0.0, None)]
    assert hashes(settings) == ["4852686128", "0123456789"]


def test_fooocus_jpeg_says_its_scheme_in_the_makers_note():
    picture = jpeg(pictures.FOOOCUS_JSON.encode(), note=b"fooocus", software=b"Fooocus v2.5.5\0")

    settings = read_picture(picture)

    assert settings.dialect == "fooocus"
    assert weights(settings) == [("sd_xl_offset", 0.1, None), ("ink", 0.0, None)]


def test_invokeai():
    settings = read_picture(png(invokeai_metadata=pictures.INVOKEAI))

    assert settings.dialect == "invokeai"
    assert facts(settings) == ("a castle", "rain", 42, 30, 7.5, 1024, 768, "euler", "juggernaut")
    assert weights(settings) == [("ink", 0.75, None), ("oil", 0.0, None)]
    assert next(iter(settings.adapters[0].hashes)) == "blake3"
    assert settings.version == "5.4.0"


def test_comfyui_follows_the_links_and_keeps_the_order_of_loading():
    settings = read_picture(png(prompt=json.dumps(pictures.COMFYUI), workflow="{}"))

    assert settings.dialect == "comfyui"
    assert facts(settings) == ("a castle", "rain", 156680208700286, 20, 8.0, 512, 640, "euler", "v1-5")
    assert weights(settings) == [("ink", 0.8, 0.4), ("lines", 0.3, 0.1), ("oil", 0.0, None)]
    assert settings.extra == {"scheduler": "normal"}


def test_a_loader_for_the_model_alone_leaves_the_text_encoders_at_zero():
    graph = json.loads(json.dumps(pictures.COMFYUI))
    graph["11"]["inputs"]["strength_model"] = 0.6

    settings = read_picture(png(prompt=json.dumps(graph)))

    assert weights(settings)[2] == ("oil", 0.6, 0.0)


def test_comfyui_in_webp():
    settings = read_picture(webp({0x0110: f"prompt:{json.dumps(pictures.COMFYUI)}", 0x010F: "workflow:{}"}))

    assert settings.dialect == "comfyui"
    assert settings.seed == 156680208700286


def test_a_graph_in_circles_ends():
    graph = json.loads(json.dumps(pictures.COMFYUI))
    graph["10"]["inputs"]["model"] = ["11", 0]
    graph["20"]["inputs"]["value"] = ["20", 0]

    settings = read_picture(png(prompt=json.dumps(graph)))

    assert {adapter.name for adapter in settings.adapters} == {"ink", "lines", "oil"}
    assert settings.prompt == ""


def test_swarmui_with_numbers_as_text_and_trailing_commas():
    settings = read_picture(png(parameters=pictures.SWARMUI))

    assert settings.dialect == "swarmui"
    assert facts(settings) == (
        "a castle, {red, }", "rain", 389463, 20, 7.0, 1024, 1024, None, "sd_xl_base_1.0",
    )  # fmt: skip
    assert weights(settings) == [("ink", 0.8, None), ("oil", 0.0, None)]
    assert hashes(settings) == ["abcdef0123456789", None]
    assert settings.model_hash == "d7a9105a"


def test_swarmui_in_a_jpeg():
    settings = read_picture(jpeg(b"UNICODE\0" + pictures.SWARMUI.encode("utf-16-be")))

    assert settings.dialect == "swarmui"
    assert settings.seed == 389463


def test_lora_managers_recipe_adds_full_hashes_to_the_text():
    settings = read_picture(png(parameters=pictures.LORA_MANAGER))

    assert settings.dialect == "lora_manager"
    assert facts(settings) == ("a castle", "rain", 3, 20, 7.0, 512, 512, "Euler", "v1-5")
    assert weights(settings) == [("ink", 0.8, None), ("oil", 0.0, None)]
    assert hashes(settings) == ["ab" * 32, "cd" * 32]
    assert next(iter(settings.adapters[0].hashes)) == "sha256"


def test_lora_managers_recipe_alone_says_the_rest_as_well():
    recipe = pictures.LORA_MANAGER[pictures.LORA_MANAGER.index("Recipe metadata") :]

    settings = read_picture(png(parameters=recipe))

    assert (settings.prompt, settings.steps) == ("other", 99)
    assert weights(settings) == [("ink", 0.8, None), ("oil", 0.0, None)]


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + pictures.A1111.encode("utf-16-be"),
        b"UNICODE\0" + pictures.A1111.encode("utf-16-le"),
        b"UNICODE\0" + b"\xff\xfe" + pictures.A1111.encode("utf-16-le"),
        b"ASCII\0\0\0" + pictures.A1111.encode(),
        b"\0" * 8 + pictures.A1111.encode(),
        pictures.A1111.encode(),
    ],
    ids=["utf-16-be", "utf-16-le", "byte order mark", "ascii", "undefined", "plain"],
)
def test_comments_of_jpegs_in_every_encoding(comment):
    settings = read_picture(jpeg(comment))

    assert settings == read_picture(png(parameters=pictures.A1111))


def test_letters_of_all_kinds_survive():
    text = pictures.A1111.replace("a castle", "城 чёрный 🏰")

    assert read_picture(png(parameters=text)).prompt.startswith("城 чёрный 🏰, dusk")
    assert read_picture(jpeg(b"UNICODE\0" + text.encode("utf-16-be"))).prompt.startswith("城 чёрный 🏰, dusk")


def test_the_order_of_detection():
    every = {
        "invokeai_metadata": pictures.INVOKEAI,
        "parameters": pictures.A1111,
        "prompt": json.dumps(pictures.COMFYUI),
    }

    assert next(iter(DIALECTS)) == "lora_mixer"
    assert read_picture(png(**every)).dialect == "invokeai"
    del every["invokeai_metadata"]
    assert read_picture(png(**every)).dialect == "a1111"


def test_a_broken_block_gives_way_to_the_next_with_a_note():
    settings = read_picture(png(lora_mixer="{", invokeai_metadata="[1", parameters=pictures.A1111))

    assert settings.dialect == "a1111"
    assert len(settings.notes) == 2


def test_paths_bytes_and_open_pictures_read_alike(tmp_path):
    data = png(parameters=pictures.A1111)
    path = tmp_path / "x.png"
    path.write_bytes(data)

    with Image.open(path) as image:
        assert read_picture(path) == read_picture(str(path)) == read_picture(data) == read_picture(image)


def test_a_picture_without_settings_is_an_error_that_says_what_it_has():
    with pytest.raises(PictureMetadataError, match="no known settings among its texts \\(it has 'Title'\\)"):
        read_picture(png(Title="holiday"))
    with pytest.raises(PictureMetadataError, match="editor state alone"):
        read_picture(png(workflow="{}"))


def test_text_that_only_looks_like_parameters_is_none():
    with pytest.raises(PictureMetadataError):
        read_picture(png(parameters="a castle\nSteps: 20, Seed: 1"))


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(SourceNotFoundError, match="no such file"):
        read_picture(tmp_path / "nowhere.png")
