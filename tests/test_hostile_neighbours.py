"""Neighbours of what once stopped the process: names of files, patterns, pictures that unpack, files that change under each reader."""

from __future__ import annotations

import io
import json
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from safetensors.torch import save_file
from torch import nn

from lora_mixer import (
    AdapterConfigError,
    CorruptFileError,
    InvalidAdapterError,
    Library,
    LoraMixer,
    LoraMixerError,
    Mix,
    MixError,
    PictureError,
    PictureMetadataError,
    SourceError,
    SourceNotFoundError,
    layer_norms,
    read_adapter,
    read_picture,
)
from lora_mixer.batches.reading import read_text
from lora_mixer.formats import container
from lora_mixer.library import thumbnails
from lora_mixer.mixes import Mask
from lora_mixer.mixes.grammar.prompt import parse_prompt
from lora_mixer.parsing.data import load
from lora_mixer.parsing.files import at_home
from lora_mixer.parsing.problems import Problems
from lora_mixer.pictures.checkpoints import read_checkpoint
from lora_mixer.pictures.emphasis import parse_emphasis
from lora_mixer.pictures.from_images import read_image
from lora_mixer.pictures.outline import load_outline
from lora_mixer.writing import merge
from tests.test_hostile_reading import pair, processor_seconds


@pytest.mark.parametrize("unit", [" ", "\n", "\t ", " BREAK"])
def test_spaces_of_a_prompt_are_gone_through_once(unit):
    with processor_seconds(2):
        assert parse_emphasis("a" + unit * 20_000 + "b")


def test_a_span_is_read_once():
    with processor_seconds(2), pytest.raises(MixError, match="span"):
        parse_prompt(f"<lora:a:step=1-{' ' * 50_000}x>", ["a"])


def test_lines_of_problems_are_found_in_one_look():
    text = "".join(f"a{n}: 0.5\n" for n in range(12_000)) + "b: x\n"
    with processor_seconds(), pytest.raises(MixError, match="line 12001"):
        Mix.from_yaml(text)


def test_columns_of_a_table_are_counted_once():
    problems = Problems()
    with processor_seconds():
        read_text(",".join(f"c{n}" for n in range(60_000)) + "\n1\n", "csv", problems)
    assert not problems.problems


def test_yaml_of_half_letters_is_a_problem():
    problems = Problems()
    assert load("yaml", "a: \ud800", problems) is None
    assert "surrogate" in str(problems.problems[0])


class TestConfigurationsOfFreshAdapters:
    LIVE = nn.ModuleDict(
        {"layers": nn.ModuleList(nn.ModuleDict({"to_q": nn.Linear(2, 2)}) for _ in range(60))}
    )

    def refused(self, folder, **config):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({"peft_type": "LORA", "target_modules": ["to_q"], **config}))
        with processor_seconds(), pytest.raises(AdapterConfigError) as caught:
            LoraMixer(self.LIVE).add_adapter(str(path), "a")
        assert len(str(caught.value)) < 2000
        return str(caught.value)

    @pytest.mark.parametrize("pattern", [r"(\w+\.?)+!", r"(.|\w)*!", r"([a-z]+|\d|_|\.)*!", "(a|a)*b"])
    @pytest.mark.parametrize("field", ["feedforward_modules", "target_modules", "exclude_modules"])
    def test_patterns_are_bounded_and_named_by_their_field(self, field, pattern, tmp_path):
        given = {"peft_type": "IA3", "feedforward_modules": [], field: pattern}
        if field == "exclude_modules":
            given = {field: pattern}
        assert f"{field}: the pattern" in self.refused(tmp_path, **given)

    def test_patterns_of_lists_of_layers_are_named_by_their_field(self, tmp_path):
        said = self.refused(tmp_path, layers_to_transform=[1], layers_pattern="(a|a)*b")
        assert "layers_pattern: the pattern" in said

    @pytest.mark.parametrize("value", ["x", 5, [1], 2.5, True])
    def test_settings_of_eva_are_a_table(self, value, tmp_path):
        assert "eva_config" in self.refused(tmp_path, eva_config=value)

    @pytest.mark.parametrize("value", [["LORA"], {"LORA": 1}, 5, True])
    def test_the_kind_is_a_name(self, value, tmp_path):
        assert "peft_type" in self.refused(tmp_path, peft_type=value)

    def test_names_of_all_modules_are_not_listed(self, tmp_path):
        assert "and 55 more" in self.refused(tmp_path, modules_to_save=["to_q"])

    def test_factors_are_for_targets_that_are_names(self, tmp_path):
        given = {"peft_type": "IA3", "target_modules": [["to_q"]], "feedforward_modules": ["to_q"]}
        assert "target_modules" in self.refused(tmp_path, **given)


BAD_NAMES = ["a" * 5000, "a/" * 3000, "x\0y", "\ud800", "~no-such-user-here/x"]


class TestNamesOfFiles:
    @pytest.mark.parametrize("name", BAD_NAMES)
    @pytest.mark.parametrize("ending", ["", ".safetensors", ".ckpt", ".gguf"])
    def test_names_that_nothing_can_have_are_not_found(self, name, ending, tmp_path):
        net = nn.ModuleDict({"net": nn.Linear(4, 4)})
        calls = [
            lambda given: load_outline(given, allow_pickle=True),
            lambda given: read_checkpoint(given, allow_pickle=True),
            lambda given: LoraMixer(net).add_adapter(given, "a"),
            read_picture,
            Mask.of,
            lambda given: Library(tmp_path, index=given) if "~" not in given else read_adapter(given),
        ]
        for call in calls:
            with pytest.raises((SourceError, PictureMetadataError, MixError)) as caught:
                call(name + ending)
            said = str(caught.value)
            assert len(said.encode()) < 10_000
            assert said.replace("\n", "").isprintable()

    def test_a_home_of_nobody_is_a_name_like_others(self):
        assert str(at_home("~no-such-user-here/x")) == "~no-such-user-here/x"

    @pytest.mark.parametrize("mark", ["\x1b[31m", "\u202e", "\0", "\ud800", "\r"])
    def test_messages_hold_nothing_that_moves_a_cursor(self, mark):
        with pytest.raises(InvalidAdapterError) as caught:
            read_adapter(
                {f"ne{mark}t.lora_A.weight": torch.ones(1, 2), "net.lora_A.weight": torch.ones(1, 2)}
            )
        assert mark not in str(caught.value)
        assert str(caught.value).encode()


def odd_tensors():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    return {
        "folded": torch.ones(()).expand(1 << 20, 1 << 20),
        "bits": torch.zeros(4, 2, dtype=torch.uint8).view(torch.bits8),
        "nested": nested,
        "sparse": torch.ones(2, 4).to_sparse(),
        "sparse on meta": torch.ones(2, 4).to_sparse().to("meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(2, 4), 0.1, 0, torch.qint8),
        "mkldnn": torch.ones(2, 4).to_mkldnn(),
    }


class TestTensorsInMemory:
    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize(
        "kind", ["folded", "bits", "nested", "sparse", "sparse on meta", "quantised", "mkldnn"]
    )
    def test_those_that_cannot_be_read_are_refused_by_name(self, kind, tmp_path):
        state = {"net.lora_A.weight": odd_tensors()[kind], "net.lora_B.weight": torch.ones(4, 2)}
        net = nn.ModuleDict({"net": nn.Linear(4, 4)})
        calls = (
            read_adapter,
            layer_norms,
            lambda given: LoraMixer(net).load_lora_weights(given, "a"),
            lambda given: LoraMixer(net).load_lora_weights(given, "a", trainable=True),
            lambda given: merge([given, given], tmp_path / "x.safetensors", rank=1),
        )
        for call in calls:
            with pytest.raises(InvalidAdapterError) as caught:
                call(state)
            assert caught.value.key == "net.lora_A.weight"

    def test_views_are_what_they_stand_for(self):
        real = torch.randn(2, 4)
        state = {"net.lora_A.weight": torch._neg_view(real), "net.lora_B.weight": torch.ones(4, 2)}
        same = {**state, "net.lora_A.weight": -real}
        assert layer_norms(state).layers == layer_norms(same).layers

    @pytest.mark.parametrize("kind", ["lora", "loha"])
    def test_norms_and_merges_want_values(self, kind, tmp_path):
        names = (
            ("lora_A.weight", "lora_B.weight")
            if kind == "lora"
            else ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        )
        shapes = ((2, 4), (4, 2)) if kind == "lora" else ((4, 2), (2, 4), (4, 2), (2, 4))
        state = {
            f"net.{name}": torch.empty(shape, device="meta")
            for name, shape in zip(names, shapes, strict=True)
        }
        for call in (layer_norms, lambda given: merge([given, given], tmp_path / "x.safetensors", rank=1)):
            with pytest.raises(InvalidAdapterError, match="meta device"):
                call(state)

    def test_training_begins_from_types_of_one_byte(self):
        net = nn.ModuleDict({"net": nn.Linear(4, 4)})
        state = {name: value.to(torch.float8_e4m3fn) for name, value in pair(4).items()}
        mixer = LoraMixer(net)
        mixer.load_lora_weights(state, "a", trainable=True)
        assert {p.dtype for _, p in mixer.named_trainable_parameters("a")} == {torch.float32}


def png(width, height, kind=0, extra=b"", behind=b""):
    """Write a picture of one colour, and chunks before and behind its pixels."""
    row = 1 + width * {0: 1, 2: 3, 6: 4}[kind]
    packed, data = zlib.compressobj(9), b""
    for _ in range(height):
        data += packed.compress(bytes(row))
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    parts = (
        chunk(b"IHDR", head) + extra + chunk(b"IDAT", data + packed.flush()) + behind + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + parts


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def overlapping_tables(count=3000, values=60_000):
    """Return EXIF of some tens of kilobytes whose values lie over each other, 180 MB of them."""
    rows = b"".join(struct.pack(">HHII", tag, 1, values, 8) for tag in range(1, count + 1))
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", count) + rows + bytes(values)


def gif(frames, side):
    frame = b"\x21\xf9\x04\0\0\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", side, side, 0x80, 0, 0)
        + b"\0\0\0\xff\xff\xff"
        + frame * frames
        + b";"
    )


def jpeg(exif):
    """Write a JPEG whose EXIF is in as many segments as it takes."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    pieces = [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 8) + b"Exif\0\0" + p for p in pieces)
    return stream.getvalue()[:2] + segments + stream.getvalue()[2:]


class TestPictures:
    @pytest.mark.parametrize(
        ("raw", "said"),
        [
            (gif(4, 4000), "4 frames of 4000x4000"),
            (gif(4000, 250), "4000 frames of 250x250"),
            (png(4096, 4096), "1 frames of 4096x4096"),
        ],
        ids=["large frames", "many frames", "one frame"],
    )
    def test_a_mask_that_unpacks_to_far_more_is_refused_with_the_bound(self, raw, said, tmp_path):
        (tmp_path / "x.png").write_bytes(raw)
        tracemalloc.start()
        with pytest.raises(MixError, match=said) as caught:
            Mask.of(tmp_path / "x.png")
        assert tracemalloc.get_traced_memory()[1] < 20 * len(raw) + (64 << 20)
        tracemalloc.stop()
        most = max((3 << 22) + 6 * len(raw), 1 << 25 if raw[:3] == b"GIF" else 0)
        assert f"at most {most} pixels" in str(caught.value)

    def test_a_mask_of_a_picture_of_12_megapixels_is_read(self, tmp_path):
        (tmp_path / "x.png").write_bytes(png(4000, 3000))
        assert Mask.of(tmp_path / "x.png").load().shape == (3000, 4000)

    def test_a_mask_for_each_frame_of_a_usual_film_is_read_though_its_file_is_small(self, tmp_path):
        frames = [Image.new("1", (832, 480)) for _ in range(81)]
        for place, frame in enumerate(frames):
            frame.paste(1, (place, 0, place + 40, 480))
        frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
        assert (tmp_path / "x.gif").stat().st_size < 1 << 20
        film = Mask.of(tmp_path / "x.gif").load()
        assert film.shape == (81, 480, 832)
        assert [int(frame[7].argmax()) for frame in film] == list(range(81))

    def test_frames_are_read_one_by_one_as_they_are(self, tmp_path):
        frames = [Image.fromarray(np.full((6, 4), level, np.uint8)) for level in (0, 51, 255)]
        frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
        assert Mask.of(tmp_path / "x.gif").load()[:, 3, 2].tolist() == pytest.approx([0, 0.2, 1])

    @pytest.mark.parametrize("feather", [0.7, 3, 40, 400])
    def test_feathers_are_those_of_the_plain_sum(self, feather):
        values = np.random.default_rng(3).random((23, 17)).astype(np.float32)
        soft, radius = values.astype(np.float64), max(1, round(3 * feather))
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / feather) ** 2)
        kernel /= kernel.sum()
        for axis in (0, 1):
            padded = np.pad(
                soft, [(radius, radius) if axis == each else (0, 0) for each in (0, 1)], mode="edge"
            )
            places = np.arange(soft.shape[axis])
            soft = sum(share * np.take(padded, places + at, axis) for at, share in enumerate(kernel))
        assert np.abs(Mask.of(values, feather).load() - soft).max() < 1e-6

    def test_a_wide_feather_takes_no_more_memory_than_a_few_pictures(self):
        mask = Mask.of(np.eye(512, dtype=np.float32), 2000)
        tracemalloc.start()
        mask.load()
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
        tracemalloc.stop()
        with pytest.raises(MixError, match="from 0 to 16384"):
            Mask.of(np.eye(4), 1e9)

    CASES = (
        png(8, 8, extra=chunk(b"eXIf", overlapping_tables())),
        png(8, 8, behind=chunk(b"eXIf", overlapping_tables())),
        jpeg(overlapping_tables(2000, 30_000)),
        jpeg(overlapping_tables(9000, 200_000)),
    )

    @pytest.mark.parametrize(
        "raw", CASES, ids=["before the pixels", "behind them", "a segment", "several segments"]
    )
    def test_values_that_lie_over_each_other_are_refused(self, raw, tmp_path):
        path = tmp_path / "x.png"
        path.write_bytes(raw)
        calls = (
            read_picture,
            lambda given: thumbnails.write(given, tmp_path / "t", 64),
            lambda given: read_image(str(given), "image"),
        )
        for call in calls:
            tracemalloc.start()
            with pytest.raises((PictureMetadataError, thumbnails.PreviewError, PictureError)):
                call(path)
            assert tracemalloc.get_traced_memory()[1] < 20 * len(raw) + (16 << 20)
            tracemalloc.stop()

    def test_so_are_those_of_a_tiff(self, tmp_path):
        (tmp_path / "x.tif").write_bytes(overlapping_tables())
        with pytest.raises(MixError, match="lie over each other"):
            Mask.of(tmp_path / "x.tif")

    def test_a_large_png_without_settings_is_not_decoded_for_its_exif(self, monkeypatch):
        def decoded(_):
            pytest.fail("is decoded")

        raw = png(6000, 6000, 6)
        monkeypatch.setattr(PngImageFile, "load", decoded)
        with pytest.raises(PictureMetadataError):
            read_picture(raw)

    def test_no_picture_starts_another_program(self, tmp_path):
        (tmp_path / "x.eps").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
        )
        with pytest.raises(PictureError, match="cannot be read"):
            read_image(str(tmp_path / "x.eps"), "image")

    def test_previews_keep_their_way_up_and_their_bounds(self, tmp_path):
        turned = Image.new("RGB", (40, 20))
        exif = turned.getexif()
        exif[0x112] = 6
        turned.save(tmp_path / "x.png", exif=exif)
        thumbnails.write(tmp_path / "x.png", tmp_path / "t.webp", 64)
        assert Image.open(tmp_path / "t.webp").size == (20, 40)
        (tmp_path / "y.png").write_bytes(png(4096, 4096))
        with pytest.raises(thumbnails.PreviewError, match="4096 x 4096 pixels"):
            thumbnails.write(tmp_path / "y.png", tmp_path / "t.webp", 64)


class TestFilesThatChangeUnderEachReader:
    """A file that another program cuts or writes anew is refused; nothing is mapped, so that no reader ends the process."""

    @staticmethod
    def folder(root):
        (root / "unet").mkdir(parents=True)
        save_file({"a": torch.arange(4096.0), "b": torch.ones(4096)}, root / "unet" / "x.safetensors")
        return root / "unet" / "x.safetensors"

    @pytest.mark.parametrize("change", ["cut", "grown", "rewritten", "gone", "a folder"])
    def test_a_base_whose_tensors_are_read_one_by_one(self, change, tmp_path):
        path = self.folder(tmp_path / "base")
        table = container.lazy_tensors(path)
        assert torch.equal(table["a"](), torch.arange(4096.0))
        whole = path.read_bytes()
        path.unlink()
        if change == "cut":
            path.write_bytes(whole[:3000])
        elif change == "grown":
            path.write_bytes(whole + b"x")
        elif change == "rewritten":
            path.write_bytes(whole)
            os.utime(path, ns=(1, 1))
        elif change == "a folder":
            path.mkdir()
        kind = CorruptFileError if change in ("cut", "grown", "rewritten") else SourceNotFoundError
        with pytest.raises(kind):
            table["b"]()

    @pytest.mark.parametrize("reader", ["adapter", "trainable", "norms", "embeddings", "pickle", "merge"])
    def test_one_that_is_written_anew_meanwhile(self, reader, tmp_path, monkeypatch):
        path = tmp_path / ("x.pt" if reader == "pickle" else "x.safetensors")
        if reader == "pickle":
            torch.save(pair(), path)
        else:
            save_file({"x.emb_params": torch.ones(1, 8)} if reader == "embeddings" else pair(), path)
        net = nn.ModuleDict({"net": nn.Linear(8, 8)})
        calls = {
            "adapter": lambda: LoraMixer(net).load_lora_weights(path, "a"),
            "trainable": lambda: LoraMixer(net).load_lora_weights(path, "a", trainable=True),
            "norms": lambda: layer_norms(path),
            "embeddings": lambda: container.load_tensors(path),
            "pickle": lambda: LoraMixer(net).load_lora_weights(path, "a", allow_pickle=True),
            "merge": lambda: merge([path, path], tmp_path / "o.safetensors"),
        }
        fill, load = container._fill, torch.load

        def again(read):
            def reading(*given, **more):
                found = read(*given, **more)
                os.utime(path, ns=(1, 1))
                return found

            return reading

        monkeypatch.setattr(container, "_fill", again(fill))
        monkeypatch.setattr(torch, "load", again(load))
        with pytest.raises(CorruptFileError, match="changed while it was read"):
            calls[reader]()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pickled_checkpoint_is_described_without_reading_it(self, zipped, tmp_path):
        state = {
            "model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3),
            "x": torch.ones(1 << 22),
        }
        torch.save(state, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
        assert read_checkpoint(tmp_path / "x.ckpt", allow_pickle=True).kind == "denoiser"

    def test_a_configuration_that_cannot_be_read_is_told(self, tmp_path):
        (tmp_path / "adapter_config.json").symlink_to("/proc/self/mem")
        save_file(pair(), tmp_path / "adapter_model.safetensors")
        with pytest.raises((SourceError, LoraMixerError)):
            read_adapter(tmp_path)
        with pytest.raises(LoraMixerError):
            LoraMixer(nn.ModuleDict({"net": nn.Linear(8, 8)})).add_adapter("/proc/self/mem", "a")
