"""Pictures as other programs write them, put together from the formats' descriptions and not by the package."""

from __future__ import annotations

import io
import json
import struct

from PIL import Image, PngImagePlugin

SIZE = (8, 8)


def png(**texts: str) -> bytes:
    """A PNG with these texts."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    stream = io.BytesIO()
    Image.new("RGB", SIZE, "red").save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def exif(comment: bytes, note: bytes = b"", software: bytes = b"") -> bytes:
    """EXIF, byte by byte: a main directory that points to an inner one with UserComment and MakerNote."""
    main = (
        [(0x8769, 4, 1, None)]
        if not software
        else [(0x0131, 2, len(software), software), (0x8769, 4, 1, None)]
    )
    inner = [(tag, 7, len(data), data) for tag, data in ((0x927C, note), (0x9286, comment)) if data]
    inner_at = 8 + 2 + 12 * len(main) + 4
    data_at = inner_at + 2 + 12 * len(inner) + 4
    blobs = b""

    def directory(entries):
        nonlocal blobs
        out = struct.pack(">H", len(entries))
        for tag, kind, count, data in entries:
            if data is None:
                value = struct.pack(">I", inner_at)
            elif len(data) <= 4:
                value = data.ljust(4, b"\0")
            else:
                value = struct.pack(">I", data_at + len(blobs))
                blobs += data + b"\0" * (len(data) % 2)
            out += struct.pack(">HHI", tag, kind, count) + value
        return out + struct.pack(">I", 0)

    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + directory(main) + directory(inner) + blobs


def jpeg(comment: bytes, **more: bytes) -> bytes:
    """A JPEG with this UserComment."""
    stream = io.BytesIO()
    Image.new("RGB", SIZE, "red").save(stream, "JPEG", exif=exif(comment, **more))
    return stream.getvalue()


def webp(tags: dict[int, str]) -> bytes:
    """A WebP with texts in tags of the main directory, as ComfyUI writes them."""
    table = Image.Exif()
    for tag, text in tags.items():
        table[tag] = text
    stream = io.BytesIO()
    Image.new("RGB", SIZE, "red").save(stream, "WEBP", exif=table.tobytes())
    return stream.getvalue()


A1111 = """a castle, <lora:ink:0.8>, dusk <lora:oil painting:0.2:0.9>
in two lines
Negative prompt: rain, fog
and snow
Steps: 20, Sampler: DPM++ 2M, CFG scale: 7.5, Seed: 1234567890123, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned, Clip skip: 2, Lora hashes: "ink: 0123456789ab, oil painting: ba9876543210", Version: v1.10.1"""

CIVITAI = """a castle
Negative prompt: rain
Steps: 25, Sampler: Euler a, CFG scale: 5, Seed: 9, Size: 832x1216, Clip skip: 2, Created Date: 2025-01-01, \
Civitai resources: [{"type":"checkpoint","modelName":"Big, Model"},{"type":"lora","weight":0.65,"modelName":"ink: v2"}], \
Hashes: {"model": "6ce0161689", "lora:ink: v2": "abcdef0123"}, Civitai metadata: {"a": {"b": [1, 2]}}"""

SDNEXT = """a castle <lora:ink:0.5> <lora:oil:te=0.3:unet=0.9> <lora:lines:0@0,1@0.5>
Negative prompt: 
Steps: 20, Size: 512x512, Sampler: Euler a, Seed: 5, CFG scale: 6, App: SD.Next, Version: 3c3f1b5, \
LoRA networks: "ink, oil, lines", LoRA hashes: "aaaaaaaaaa, bbbbbbbbbb, cccccccccc", Model: sdxl"""  # noqa: W291

FOOOCUS_TEXT = """a castle
Negative prompt: rain
Steps: 30, Sampler: DPM++ 2M SDE, Seed: 77, CFG scale: 4, Size: 1152x896, Model: juggernaut, Model hash: aeb7e9e689, \
Lora hashes: "sd_xl_offset: 4852686128, ink: 0123456789", Lora weights: "sd_xl_offset: 0.1, ink: -0.5", Version: Fooocus v2.5"""

FOOOCUS_OLD = """a castle
Negative prompt: rain
Steps: 30, Sampler: Euler, Seed: 77, CFG scale: 4, Size: 1152x896, \
Lora hashes: "sd_xl_offset: 4852686128: 0.1, ink: 0123456789: 0.75", Version: Fooocus v2.2"""

FOOOCUS_JSON = json.dumps(
    {
        "prompt": "a castle",
        "negative_prompt": "rain",
        "styles": "['Fooocus V2']",
        "performance": "Speed",
        "steps": 30,
        "resolution": "(1152, 896)",
        "guidance_scale": 4.0,
        "base_model": "juggernaut.safetensors",
        "base_model_hash": "aeb7e9e689",
        "sampler": "dpmpp_2m_sde_gpu",
        "seed": "7777777777777777777",
        "lora_combined_1": "sd_xl_offset.safetensors : 0.1",
        "loras": [["sd_xl_offset", 0.1, "4852686128"], ["ink", 0.0, "0123456789"]],
        "version": "Fooocus v2.5.5",
    }
)

INVOKEAI = json.dumps(
    {
        "generation_mode": "sdxl_txt2img",
        "positive_prompt": "a castle",
        "negative_prompt": "rain",
        "width": 1024,
        "height": 768,
        "seed": 42,
        "cfg_scale": 7.5,
        "steps": 30,
        "scheduler": "euler",
        "model": {
            "key": "k",
            "hash": "blake3:" + "1" * 64,
            "name": "juggernaut",
            "base": "sdxl",
            "type": "main",
        },
        "loras": [
            {
                "model": {"key": "x", "hash": "blake3:" + "2" * 64, "name": "ink", "base": "sdxl"},
                "weight": 0.75,
            },
            {"model": {"key": "y", "hash": "blake3:" + "3" * 64, "name": "oil", "base": "sdxl"}, "weight": 0},
        ],
        "app_version": "5.4.0",
    }
)

COMFYUI = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal",
            "denoise": 1.0, "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd\\v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["20", 0], "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "rain", "clip": ["10", 1]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "styles/ink.safetensors", "strength_model": 0.8, "strength_clip": 0.4,
            "model": ["4", 0], "clip": ["4", 1],
        },
    },
    "11": {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"lora_name": "oil.safetensors", "strength_model": 0.0, "model": ["12", 0]},
    },
    "12": {
        "class_type": "LoraLoaderLM",
        "inputs": {
            "model": ["10", 0], "clip": ["10", 1], "text": "<lora:lines:0.3>",
            "loras": {"__value__": [
                {"name": "lines", "strength": "0.3", "clipStrength": 0.1, "active": True},
                {"name": "off", "strength": 1, "active": False},
            ]},
        },
    },
    "20": {"class_type": "PrimitiveString", "inputs": {"value": "a castle"}},
    "99": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}},
}  # fmt: skip

# With the commas before closing brackets that the format's own page shows.
SWARMUI = """{
  "sui_image_params": {
    "prompt": "a castle, {red, }",
    "negativeprompt": "rain",
    "model": "OfficialStableDiffusion/sd_xl_base_1.0.safetensors",
    "seed": 389463,
    "steps": "20",
    "cfgscale": "7",
    "width": 1024,
    "height": 1024,
    "loras": ["styles/ink.safetensors", "oil"],
    "loraweights": ["0.8", "0"],
    "swarm_version": "0.9.5.1",
  },
  "sui_extra_data": {"date": "2025-01-01"},
  "sui_models": [
    {"name": "OfficialStableDiffusion/sd_xl_base_1.0.safetensors", "param": "model", "hash": "0xd7a9105a"},
    {"name": "styles/ink.safetensors", "param": "loras", "hash": "0xABCDEF0123456789"},
  ]
}"""

LORA_MANAGER = """a castle <lora:ink:0.8>
Negative prompt: rain
Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 512x512, Model: v1-5
Recipe metadata: """ + json.dumps(
    {
        "title": "castle",
        "base_model": "SD 1.5",
        "loras": [
            {"file_name": "ink", "hash": "ab" * 32, "strength": 0.8, "modelVersionId": 1, "modelName": "Ink"},
            {"file_name": "oil", "hash": "cd" * 32, "strength": 0, "modelVersionId": 2, "modelName": "Oil"},
        ],
        "gen_params": {"prompt": "other", "steps": 99},
        "tags": ["style"],
    }
)
