"""``read_adapter``: the same description as a load gives, from the header alone, and hashes only when asked for."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from typing import TYPE_CHECKING

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save, save_file

from lora_mixer import LoraMixer, LoraMixerError, SourceError, SourceNotFoundError, read_adapter
from tests.spellings import dotted, kohya, state_dict
from tests.weights import random_pairs

if TYPE_CHECKING:
    from pathlib import Path

KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
SDXL = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def pair(key: str, into: int, out: int = 4, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{key}.lora_down.weight": torch.ones(rank, into), f"{key}.lora_up.weight": torch.ones(out, rank)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    metadata = {"ss_network_dim": "2", "modelspec.trigger_phrase": "wtrclr style, soft ,, wtrclr style"}
    save_file(pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 768), path, metadata)
    return path


def test_a_description_is_complete_and_json_can_hold_it(file):
    info = read_adapter(file)

    assert (info.name, info.source, info.format, info.base) == ("style", str(file), "kohya", "SD 1.x")
    assert (info.algorithms, info.ranks, info.alphas, info.dtypes) == (("lora",), (2,), (), ("float32",))
    assert info.bytes == (2 * 768 + 4 * 2) * 4
    assert info.components == {"unet": 1}
    assert info.trigger_words == ("wtrclr style", "soft")
    assert info.metadata["ss_network_dim"] == "2"
    table = json.loads(json.dumps(info.to_dict()))
    assert table["hashes"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert set(table) >= {
        "name",
        "source",
        "format",
        "base",
        "algorithms",
        "ranks",
        "alphas",
        "dtypes",
        "bytes",
        "metadata",
    }


def test_a_load_gives_the_same_description(sdxl, tmp_path):
    table, _ = state_dict(random_pairs(sdxl), kohya(SDXL), KOHYA)
    save_file(table, tmp_path / "a.safetensors", {"ss_output_name": "a"})

    mixer = LoraMixer(sdxl)
    mixer.load_lora_weights(tmp_path / "a.safetensors", adapter_name="a")

    assert mixer.adapters["a"].to_dict() == read_adapter(tmp_path / "a.safetensors").to_dict()


@pytest.mark.parametrize(
    ("key", "width", "metadata", "base"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, {}, "SD 1.x"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 1024, {}, "SD 2.x"),
        ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k", 2048, {}, "SDXL"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1280, {}, "SDXL"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, {}, "SD 1.x or SDXL"),
        (
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
            768,
            {"ss_base_model_version": "sd_v1"},
            "SD 1.x",
        ),
        ("lora_unet_conv_in", 4, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ("lora_unet_double_blocks_0_img_attn_qkv", 3072, {"ss_base_model_version": "sd_v1"}, "Flux.1"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", 1536, {}, "SD3"),
        ("lora_unet_conv_in", 4, {}, "unknown"),
    ],
)
def test_the_base_is_told_by_names_and_widths_before_metadata(key, width, metadata, base, tmp_path):
    save_file(pair(key, width), tmp_path / "a.safetensors", metadata)

    assert read_adapter(tmp_path / "a.safetensors").base == base


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "a b, c"}, ("a b", "c")),
        ({"trigger_words": '["x, y", "z"]'}, ("x, y", "z")),
        ({"trigger_words": "[broken"}, ("[broken",)),
        ({"modelspec.trigger_phrase": "", "trigger_word": "ohwx"}, ("ohwx",)),
        ({"trigger_words": "[" * 50_000}, ("[" * 10_000,)),  # cut
        ({}, ()),
    ],
)
def test_trigger_words(metadata, words, tmp_path):
    save_file(pair("lora_unet_conv_in", 4), tmp_path / "a.safetensors", metadata)

    assert read_adapter(tmp_path / "a.safetensors").trigger_words == words


class TestEveryKindOfSource:
    """File, folder, pickle, open file, bytes, state dict."""

    def test_all_describe_the_same_adapter(self, tmp_path):
        table = pair("unet.conv_in", 4)
        save_file(table, tmp_path / "a.safetensors")
        torch.save(table, tmp_path / "a.pt")
        folder = tmp_path / "folder"
        folder.mkdir()
        save_file(table, folder / "pytorch_lora_weights.safetensors")
        with (tmp_path / "a.safetensors").open("rb") as stream:
            found = [
                read_adapter(tmp_path / "a.safetensors"),
                read_adapter(str(tmp_path / "a.safetensors")),
                read_adapter(tmp_path / "a.pt", allow_pickle=True),
                read_adapter(folder),
                read_adapter(stream),
                read_adapter(save(table)),
                read_adapter(table),
            ]

        for info in found:
            assert (info.format, info.ranks, info.bytes, info.components) == (
                "diffusers",
                (2,),
                64,
                {"unet": 1},
            )
            json.dumps(info.to_dict())
        assert found[3].name == "folder"
        assert found[0].hashes["autov3"] == found[5].hashes["autov3"]
        assert "autov3" not in found[2].hashes
        assert dict(found[6].hashes) == {}

    def test_a_peft_folder_has_its_configs_alpha(self, tmp_path):
        save_file({"base_model.model.conv_in.lora_A.weight": torch.ones(2, 4), "base_model.model.conv_in.lora_B.weight": torch.ones(4, 2)},
                  tmp_path / "adapter_model.safetensors")  # fmt: skip
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 7})
        )

        info = read_adapter(tmp_path)

        assert (info.format, info.alphas, info.components) == ("peft", (7.0,), {"unnamed": 1})


class TestHashes:
    """The hashes by which people find an adapter again."""

    def test_each_equals_its_definition(self, tmp_path):
        path = tmp_path / "a.safetensors"
        save_file({**pair("lora_unet_conv_in", 300_000)}, path, {"ss_x": "1"})
        raw = path.read_bytes()
        assert len(raw) > 0x110000
        tensors = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()

        hashes = read_adapter(path).hashes

        assert dict(hashes) == {
            "sha256": hashlib.sha256(raw).hexdigest(),
            "autov1": hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8],
            "autov2": hashlib.sha256(raw).hexdigest()[:10],
            "autov3": tensors[:12],
            "sshs_model_hash": tensors,
            "sshs_legacy_hash": hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8],  # all metadata is ss_
        }

    def test_the_tensors_hash_equals_what_kohya_wrote(self, shared_data):
        """sd-scripts computed it over the same tensors with another header; it stands in the file's own metadata."""
        seen = 0
        for path in sorted((shared_data / "generated/kohya_sd_scripts").glob("kohya_*.safetensors")):
            with safetensors.safe_open(path, "pt") as opened:
                said = (opened.metadata() or {}).get("sshs_model_hash")
            if said is None or "oft" in path.name:
                continue
            assert read_adapter(path).hashes["sshs_model_hash"] == said, path.name
            seen += 1
        assert seen > 0

    @pytest.mark.parametrize("more", [{}, {"sshs_model_hash": "0" * 64, "other": "\u00e9"}])
    def test_the_legacy_hash_is_that_of_the_file_with_kohyas_metadata_alone(self, more, tmp_path):
        table = pair("lora_unet_conv_in", 300_000)
        alone = save(table, {"ss_x": "\u00fc"})
        save_file(table, tmp_path / "a.safetensors", {"ss_x": "\u00fc", **more})

        found = read_adapter(tmp_path / "a.safetensors").hashes["sshs_legacy_hash"]

        assert found == hashlib.sha256(alone[0x100000:0x110000]).hexdigest()[:8]

    def test_known_values_of_a_real_file(self, shared_data):
        """What its trainer wrote into the header, and the file's SHA-256 as its provenance has it."""
        path = shared_data / "files/lycoris_smart_falcon_8_lokr.safetensors"
        known = json.loads(path.with_name(f"{path.name}.provenance.json").read_text())["sha256"]

        info = read_adapter(path)

        assert info.hashes["sshs_legacy_hash"] == info.metadata["sshs_legacy_hash"] == "bb83ed73"
        assert info.hashes["sshs_model_hash"] == info.metadata["sshs_model_hash"]
        assert info.hashes["autov3"] == info.metadata["sshs_model_hash"][:12]
        assert (info.hashes["sha256"], info.hashes["autov2"]) == (known, known[:10])

    def test_they_are_computed_at_the_first_look_and_kept(self, file):
        info = read_adapter(file)
        assert "not computed yet" in repr(info.hashes)

        first = info.hashes["sha256"]
        file.unlink()

        assert info.hashes["sha256"] == first
        assert first in repr(info.hashes)

    def test_a_file_that_is_gone_by_then_is_a_clear_error(self, file):
        info = read_adapter(file)
        file.unlink()

        with pytest.raises(SourceNotFoundError, match=r"style\.safetensors"):
            info.hashes["sha256"]

    @pytest.mark.parametrize("same_size", [True, False])
    def test_a_file_that_has_changed_by_then_is_a_clear_error(self, same_size, file):
        """The hash of another file under this adapter's name would be a lie."""
        info = read_adapter(file)
        raw = bytearray(file.read_bytes())
        raw[-1] ^= 1
        file.write_bytes(bytes(raw) + (b"" if same_size else b"x"))
        os.utime(file, ns=(1, 1))

        with pytest.raises(SourceError, match="changed since it was read"):
            info.hashes["sha256"]

    def test_a_loaded_adapter_survives_its_file(self, file, sd):
        save_file(
            {
                "lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3),
                "lora_unet_conv_in.lora_up.weight": torch.ones(8, 1),
            },
            file,
        )
        mixer = LoraMixer(sd)
        mixer.load_lora_weights(file, adapter_name="a")
        file.unlink()

        mixer.set_adapters("a", 0.5)
        with pytest.raises(LoraMixerError):
            mixer.adapters["a"].to_dict()


class TestOnlyTheHeader:
    """A description costs a header, not a file."""

    @pytest.mark.parametrize("padding", [0, 1, 2, 3])
    def test_a_gigabyte_without_bytes_on_disk_is_described(self, padding, tmp_path):
        """A sparse file: reading its data section would ask for 1 GiB of memory."""
        rows = 1 << 17
        table = {
            "lora_unet_conv_in.lora_down.weight": {
                "dtype": "F32",
                "shape": [2048, 1],
                "data_offsets": [0, 8192],
            },
            "lora_unet_conv_in.lora_up.weight": {
                "dtype": "F32",
                "shape": [rows, 2048],
                "data_offsets": [8192, 8192 + rows * 8192],
            },
        }
        raw = json.dumps(table).encode() + b" " * padding
        path = tmp_path / "big.safetensors"
        with path.open("wb") as stream:
            stream.write(len(raw).to_bytes(8, "little") + raw)
            stream.truncate(8 + len(raw) + 8192 + rows * 8192)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "empty", lambda *_, **__: pytest.fail("memory was asked for"))
            patch.setattr(torch.Tensor, "clone", lambda *_, **__: pytest.fail("a tensor was copied"))
            info = read_adapter(path)

        assert info.bytes == 8192 + (1 << 30)
        assert info.ranks == (2048,)

    def test_it_does_not_hold_the_file_open(self, file):
        info = read_adapter(file)
        file.write_bytes(b"")  # a mapping that is still read would be killed by the system here

        assert info.ranks == (2,)
        assert "style" in repr(info)

    def test_a_file_of_unaligned_tensors_is_described(self, file):
        """8 bytes and a header of odd length, as writers other than the safetensors library leave them."""
        tensors = load_file(file)
        table, data = {}, b""
        for key, tensor in tensors.items():
            raw = tensor.numpy().tobytes()
            table[key] = {
                "dtype": "F32",
                "shape": list(tensor.shape),
                "data_offsets": [len(data), len(data) + len(raw)],
            }
            data += raw
        header = json.dumps(table).encode()
        header += b" " * (1 - len(header) % 2)
        assert len(header) % 2
        file.write_bytes(len(header).to_bytes(8, "little") + header + data)

        assert read_adapter(file).ranks == (2,)


def test_a_description_can_be_sent_to_another_process(file):
    """The CLI and job runners do that."""
    info = read_adapter(file)

    assert pickle.loads(pickle.dumps(info)).to_dict() == info.to_dict()


def test_components_are_counted_as_keys_name_them(sdxl):
    table, written = state_dict(random_pairs(sdxl), dotted({n: f"{n}." for n in SDXL}), KOHYA)

    counts = read_adapter(table).components

    assert counts == {name: sum(place[0] == name for place in written) for name in SDXL}
