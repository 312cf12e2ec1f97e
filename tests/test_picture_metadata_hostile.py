"""Pictures from strangers: whatever is in them gives settings, notes or one error of the package's own."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lora_mixer.errors import PictureMetadataError
from lora_mixer.picture_metadata import PictureSettings, read_picture, save_picture
from tests import pictures
from tests.pictures import jpeg, png


def read_or_refuse(data):
    """Only the package's own error may come out."""
    try:
        return read_picture(data)
    except PictureMetadataError:
        return None


def with_texts(**texts):
    picture = Image.new("RGB", (2, 2))
    picture.info |= texts
    return picture


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width, height, *chunks):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join(chunks)
        + chunk(b"IDAT", b"")
        + chunk(b"IEND", b"")
    )


def test_a_text_that_unpacks_to_far_too_much_is_refused():
    bomb = zlib.compress(b"a" * 20_000_000)
    data = huge_png(8, 8, chunk(b"zTXt", b"parameters\0\0" + bomb))

    assert len(data) < 100_000
    with pytest.raises(PictureMetadataError, match="cannot be read"):
        read_picture(data)


def test_a_picture_that_claims_to_be_huge_is_refused():
    with pytest.raises(PictureMetadataError, match="cannot be read"):
        read_picture(huge_png(2**31 - 1, 2**31 - 1))


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"%!PS-Adobe", b"\xff\xd8\xff\xe1\xff\xff", b"x" * 999]
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(PictureMetadataError, match="expected a PNG, JPEG or WebP"):
        read_picture(data)


@pytest.mark.parametrize("key", ["lora_mixer", "invokeai_metadata", "prompt"])
@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 200_000,
        "{",
        "null",
        "[]",
        "NaN",
        "1" * 10_000,
        '{"format": 1e999}',
        '{"\\ud800": 1}',
    ],
    ids=["lists", "objects", "open", "null", "list", "nan", "long number", "infinite", "half a pair"],
)
def test_json_that_is_deep_broken_or_of_another_kind(key, text):
    read_or_refuse(with_texts(**{key: text}))
    found = read_or_refuse(with_texts(**{key: text}, parameters=pictures.A1111))

    assert found is not None


def test_values_of_wrong_types_are_left_out():
    for odd in (None, True, [], {}, "x", -1, 1e400, 10**5000, "9" * 5000, [[[]]], {"a": {}}):
        text = json.dumps(
            {
                "positive_prompt": odd, "negative_prompt": odd, "seed": odd, "steps": odd, "cfg_scale": odd,
                "width": odd, "height": odd, "scheduler": odd, "model": odd, "app_version": odd,
                "loras": [odd, {"model": odd, "weight": odd}, {"model": {"name": odd, "hash": odd}, "weight": odd}],
            },
            allow_nan=True,
        ) if odd != 10**5000 else '{"positive_prompt": ' + "1" * 5000 + "}"  # fmt: skip

        read_or_refuse(with_texts(invokeai_metadata=text))


def test_a_picture_names_no_file_to_be_opened(tmp_path):
    target = tmp_path / "private.png"
    Image.new("L", (4, 4), 255).save(target)
    for mask in (
        str(target),
        {"path": str(target)},
        {"path": str(target), "digest": "0" * 64},
        [str(target)],
    ):
        for mix in (
            {"a": {"weight": 1, "mask": mask}},
            {"adapters": {"a": {"weight": 1, "mask": mask}}},
            {"adapters": [["a", {"weight": 1, "mask": mask}]], "method": "switch(2)"},
            {"adapters": [["a", {"weight": 1, "mask": mask}]]},
            {"adapters": json.dumps({"a": {"mask": mask}})},
        ):
            block = {
                "format": 1,
                "mix": mix,
                "adapters": [{"name": "a", "spec": {"weight": 1, "mask": mask}}],
            }
            found = read_picture(with_texts(lora_mixer=json.dumps(block)))

            specs = [each.spec for each in found.adapters] + list(
                found.mix.adapters.values() if found.mix else []
            )
            for spec in specs:
                if spec is not None and spec.mask is not None:
                    assert (spec.mask.path, spec.mask.picture) == (None, None)


@pytest.mark.parametrize(
    ("pattern", "reads"),
    [("re:(.+)+x", True), ("re:" + r"(\w|.)" * 32 + "x", True), ("re:" + "a?" * 50, True), ("*" * 300, True), ("re:(?=a)+x", False)],
)  # fmt: skip
def test_patterns_of_layers_come_back_or_are_told(pattern, reads):
    for blocks in (
        {"blocks": {"patterns": {pattern: 0.5}}},
        {"unet": {pattern: 0.5}},
        {"components": {"unet": {pattern: 0.5}}},
    ):
        block = {"format": 1, "mix": {"a": {"weight": 1, **blocks} if "unet" not in blocks else blocks}}
        found = read_picture(with_texts(lora_mixer=json.dumps(block)))

        if reads:
            assert found.mix["a"].blocks.weight("unet", "a" * 99) == (
                0.5 if "x" not in pattern and "?" not in pattern else 1
            )
        else:
            assert found.mix is None
            assert "only plain groups" in found.notes[0]


@pytest.mark.parametrize(
    "part",
    ['aa:"\\",', "aa:" + " " * 30, "aaaaaaaaaa", "a " * 5 + ":", "<lora:", "<lora:x:1>", "<lora:x:1>,", "Recipe metadata: {",
     "Hashes: {}, ", "\n" * 5, "Negative prompt:", "aa: b, ", '"\\'],
)  # fmt: skip
def test_texts_made_to_be_slow_are_not(part):
    """In time that grows with the square of the length, one of these would take hours."""
    ending = "\nSteps: 1, Seed: 1, Size: 8x8"
    text = part * (490_000 // len(part))

    assert read_or_refuse(with_texts(parameters=text + ending)).steps == 1
    read_or_refuse(with_texts(parameters=text))
    read_or_refuse(with_texts(parameters='{"sui_image_params' + text))


def test_ten_thousand_tags_and_hashes_are_cut_off():
    tags = "".join(f"<lora:a{number}:1>" for number in range(10_000))

    found = read_picture(with_texts(parameters=f"x {tags}\nSteps: 1, Seed: 1, Size: 8x8"))

    assert found.prompt == "x"
    assert len(found.adapters) == 500


def test_html_in_metadata_is_text_like_any_other():
    evil = "<script>alert(1)</script>"

    found = read_picture(with_texts(parameters=f"{evil} <lora:{evil}:1>\nSteps: 1, Seed: 1, Size: 8x8"))

    assert found.prompt.startswith(evil)


def test_mutated_pictures_never_get_past_the_packages_error(tmp_path):
    save_picture(
        Image.new("RGB", (8, 8)), tmp_path / "x.png", PictureSettings("x", mix="a:0.5, b:lbw=OUTALL")
    )
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "x.jpg", PictureSettings("x", mix="a:0.5"))
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "x.webp", PictureSettings("x", mix="a:0.5"))
    originals = [path.read_bytes() for path in tmp_path.iterdir()]
    originals += [
        png(parameters=pictures.A1111), png(parameters=pictures.FOOOCUS_JSON, fooocus_scheme="fooocus"),
        png(prompt=json.dumps(pictures.COMFYUI)), png(parameters=pictures.SWARMUI), png(invokeai_metadata=pictures.INVOKEAI),
        png(parameters=pictures.LORA_MANAGER), jpeg(b"UNICODE\0" + pictures.SDNEXT.encode("utf-16-be")),
    ]  # fmt: skip
    generator = random.Random(0)
    read = 0
    for _ in range(1500):
        data = bytearray(generator.choice(originals))
        for _ in range(generator.randint(1, 6)):
            place = generator.randrange(len(data))
            if generator.random() < 0.2:
                del data[place : place + generator.randint(1, 40)]
            else:
                data[place] = generator.randrange(256)
        read += read_or_refuse(bytes(data)) is not None

    assert read > 100  # enough of them got past the container


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150)
@given(st.data())
def test_any_json_in_the_place_of_any_value(data):
    """A known document with one value replaced by anything."""
    key, document = data.draw(
        st.sampled_from(
            [
                ("invokeai_metadata", json.loads(pictures.INVOKEAI)),
                ("prompt", pictures.COMFYUI),
                ("parameters", json.loads(pictures.FOOOCUS_JSON)),
                (
                    "parameters",
                    {"sui_image_params": {"loras": ["a"], "loraweights": [1]}, "sui_models": [{"name": "a"}]},
                ),
                (
                    "lora_mixer",
                    {
                        "format": 1,
                        "mix": {"a": {"weight": 1, "blocks": {"down": 1}}},
                        "adapters": [{"name": "a"}],
                    },
                ),
            ]
        )
    )
    document = json.loads(json.dumps(document))
    node = document
    while True:
        places = list(node) if isinstance(node, dict) else list(range(len(node)))
        place = data.draw(st.sampled_from(places))
        if isinstance(node[place], dict | list) and node[place] and data.draw(st.booleans()):
            node = node[place]
            continue
        node[place] = data.draw(values)
        break
    texts = {key: json.dumps(document)} | (
        {"fooocus_scheme": "fooocus"} if "lora_combined_1" in document else {}
    )

    read_or_refuse(with_texts(**texts))


@settings(max_examples=150)
@given(st.text(max_size=200), st.text(max_size=60))
def test_any_text_among_infotext(noise, value):
    text = f"{noise}\nSteps: 1, Seed: {value}, Size: {value}, Lora hashes: {value}, LoRA networks: {value}, LoRA hashes: {noise}"

    read_or_refuse(with_texts(parameters=text))
    read_or_refuse(with_texts(parameters=text, fooocus_scheme="a1111"))


def test_no_pixel_is_needed(tmp_path):
    """A file cut off behind its texts still gives them."""
    whole = png(parameters=pictures.A1111)

    found = read_picture(io.BytesIO(whole[: whole.index(b"IDAT") + 4]).getvalue())

    assert found.seed == 1234567890123


def test_a_mix_of_too_many_adapters_is_left_out_with_a_note():
    block = {"format": 1, "mix": {f"a{number}": 1 for number in range(100_000)}}

    found = read_picture(with_texts(lora_mixer=json.dumps(block)))

    assert found.mix is None
    assert "at most 1000 adapters" in found.notes[0]
