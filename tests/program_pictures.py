"""One picture of each program with all that is recalled: sampler, schedule, emphasis, clip skip, size, adapters; made up here."""

from __future__ import annotations

import json

from tests.pictures import png

A1111 = """portrait of a (fisherman:1.25), [harbour], morning <lora:inkwash:0.65> <lora:grain:0.4>
Negative prompt: (blurry:1.3), text
Steps: 28, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6.5, Seed: 20240517, Size: 512x640, \
Model hash: 0011223344, Model: shore_v3, Clip skip: 2, ENSD: 31337, \
Lora hashes: "inkwash: 1a2b3c4d5e6f, grain: 6f5e4d3c2b1a", Version: v1.10.1"""

SDNEXT = """a lighthouse (at night:1.1) <lora:inkwash:0.65>
Negative prompt: fog
Steps: 24, Size: 768x512, Sampler: Euler a, Seed: 31, CFG scale: 5, Clip skip: 2, App: SD.Next, Version: 4f1c2aa, \
LoRA networks: "inkwash", LoRA hashes: "1a2b3c4d5e", Model: shore_v3, Backend: Diffusers, Pipeline: StableDiffusionPipeline"""

COMFYUI = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shore_v3.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "inkwash.safetensors", "strength_model": 0.65, "strength_clip": 0.5, "model": ["1", 0], "clip": ["1", 1]}},
    "3": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["2", 1]}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "a (red:1.2) boat [sketch]", "clip": ["3", 0]}},
    "5": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["3", 0]}},
    "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 512, "batch_size": 1}},
    "7": {"class_type": "KSampler", "inputs": {
        "seed": 99, "steps": 22, "cfg": 6.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        "model": ["2", 0], "positive": ["4", 0], "negative": ["5", 0], "latent_image": ["6", 0]}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["9", 0]}},
}  # fmt: skip

INVOKEAI = {
    "generation_mode": "txt2img", "positive_prompt": "a (stormy)1.3 sea, boats++", "negative_prompt": "fog-",
    "width": 512, "height": 768, "seed": 4242, "rand_device": "cpu", "cfg_scale": 7.0, "cfg_rescale_multiplier": 0,
    "steps": 26, "scheduler": "dpmpp_2m_k", "clip_skip": 1, "seamless_x": False,
    "model": {"key": "m", "hash": "blake3:" + "5" * 64, "name": "shore_v3", "base": "sd-1", "type": "main"},
    "loras": [{"model": {"key": "l", "hash": "blake3:" + "6" * 64, "name": "inkwash", "base": "sd-1", "type": "lora"},
               "weight": 0.65}],
    "app_version": "5.9.1",
}  # fmt: skip

FOOOCUS = {
    "prompt": "a (calm:1.15) bay", "negative_prompt": "fog", "styles": "['Fooocus V2']", "performance": "Speed", "steps": 30,
    "resolution": "(896, 1152)", "guidance_scale": 4.0, "sharpness": 2.0, "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "shore_xl.safetensors", "base_model_hash": "aabbccddee", "refiner_model": "None", "clip_skip": 2,
    "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "seed": "808", "loras": [["inkwash", 0.65, "1a2b3c4d5e"]],
    "version": "Fooocus v2.5.5",
}  # fmt: skip

SWARMUI = {
    "sui_image_params": {
        "prompt": "a (quiet:1.2) pier", "negativeprompt": "fog", "model": "shore_xl.safetensors", "seed": 515, "steps": 18,
        "cfgscale": 5.5, "aspectratio": "1:1", "width": 1024, "height": 1024, "sampler": "euler_ancestral",
        "scheduler": "exponential", "clipstopatlayer": "-2", "loras": ["inkwash"], "loraweights": ["0.65"],
        "swarm_version": "0.9.7.0",
    },
    "sui_models": [{"name": "inkwash.safetensors", "param": "loras", "hash": "0x1a2b3c4d5e6f"}],
}  # fmt: skip

PICTURES = {
    "AUTOMATIC1111": png(parameters=A1111),
    "ComfyUI": png(prompt=json.dumps(COMFYUI)),
    "InvokeAI": png(invokeai_metadata=json.dumps(INVOKEAI)),
    "Fooocus": png(parameters=json.dumps(FOOOCUS), fooocus_scheme="fooocus"),
    "SwarmUI": png(parameters=json.dumps(SWARMUI)),
    "SD.Next": png(parameters=SDNEXT),
}
