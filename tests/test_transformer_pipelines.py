"""Real pipelines of transformers, tiny: pictures change with a mix, from the API, the command and plans, and the base comes back."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from lora_mixer import CorruptFileError, LoraMixer, PictureMaker, PictureRequest, SourceNotFoundError
from lora_mixer.batches import run_plan
from lora_mixer.cli._app import app
from lora_mixer.pictures import load_pipeline
from tests.models import text_encoder, tokenizer

SIDE = 32


def t5():
    config = transformers.T5Config(
        vocab_size=514, d_model=32, d_ff=40, d_kv=8, num_heads=4, num_layers=1, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config).eval()


def flux():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2, sample_size=16, shift_factor=0.1,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=text_encoder(32),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
    )


def wan():
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=28, num_layers=2, rope_max_seq_len=64,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return diffusers.WanPipeline(
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=t5(),
        tokenizer=tokenizer(),
    )


PAIRS = {
    "flux": (
        flux,
        {"lora_unet_double_blocks_0_img_attn_qkv": (96, 32), "lora_unet_single_blocks_0_linear2": (32, 160)},
    ),
    "wan": (
        wan,
        {"diffusion_model.blocks.0.self_attn.q": (24, 24), "diffusion_model.blocks.1.ffn.2": (24, 28)},
    ),
}


def adapter(shapes):
    generator = torch.Generator().manual_seed(4)
    return {
        f"{name}.lora_{half}.weight": torch.randn(size, generator=generator)
        for name, (out, into) in shapes.items()
        for half, size in (("down", (2, into)), ("up", (out, 2)))
    }


def everything(pipe):
    return {
        (name, key): tensor.clone()
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
        for key, tensor in part.state_dict().items()
    }


def different(one, other):
    return np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max() > 0


@pytest.fixture(scope="module", params=PAIRS)
def folder(request, tmp_path_factory):
    make, shapes = PAIRS[request.param]
    found = tmp_path_factory.mktemp(request.param)
    make().save_pretrained(found / "model")
    save_file(adapter(shapes), found / "a.safetensors")
    return found


def test_pictures_change_with_a_mix_and_the_base_comes_back(folder):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder / "model")
    before = everything(pipe)
    tree = [name for name, _ in pipe.transformer.named_modules()]
    mixer = LoraMixer(pipe)
    assert mixer.load_lora_weights(folder / "a.safetensors", "a").complete
    left = np.zeros((SIDE, SIDE), dtype=np.float32)
    left[:, : SIDE // 2] = 1
    mixes = [
        {},
        {"a": 1.0},
        "a:1,schedule=window(0.5, 1)",
        {"a": {"weight": 1.0, "mask": left}},
        "a:1,blocks=dit:double" if hasattr(pipe, "tokenizer_2") else {"a": {"blocks": {"double": [0, 1]}}},
    ]
    maker = PictureMaker(mixer, batch_size=4, defaults={"steps": 4})
    requests = [PictureRequest("a castle", seed=1, width=SIDE, height=SIDE, mix=mix) for mix in mixes]

    pictures = [picture.image for picture in sorted(maker.make(requests), key=lambda picture: picture.index)]

    assert all(picture.size == (SIDE, SIDE) for picture in pictures)
    for n, one in enumerate(pictures):
        assert all(different(one, other) for other in pictures[n + 1 :])
    mixer.unload_lora_weights()
    assert all(torch.equal(tensor, before[key]) for key, tensor in everything(pipe).items())
    assert [name for name, _ in pipe.transformer.named_modules()] == tree


def test_the_command_and_a_plan_make_the_same_pictures(folder, tmp_path):
    done = CliRunner().invoke(
        app,
        [
            "generate", "--model", str(folder / "model"), "--lora", str(folder / "a.safetensors"), "--prompt", "a castle",
            "--seed", "1", "--steps", "2", "--width", str(SIDE), "--height", str(SIDE), "--device", "cpu", "--out", str(tmp_path / "one.png"),
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    plan = {
        "model": str(folder / "model"),
        "adapters": {"a": str(folder / "a.safetensors")},
        "defaults": {"prompt": "a castle", "steps": 2, "size": f"{SIDE}x{SIDE}", "seed": 1},
        "output": {"folder": str(tmp_path / "many")},
        "jobs": [{"grid": {"mix": ["", "a:1"]}}],
    }

    results = list(run_plan(plan))

    assert [result.status for result in results] == ["done", "done"]
    base, mixed = (Image.open(path) for path in sorted((tmp_path / "many").glob("*.png")))
    assert different(base, mixed)
    assert np.array_equal(np.asarray(mixed), np.asarray(Image.open(tmp_path / "one.png")))


def write_gguf(path, tensors):
    """Write a file as those off model sites: matrices in 8 bits where their rows can be, all else as it is."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, "flux")
    for key, tensor in tensors.items():
        values = tensor.float().numpy()
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            writer.add_tensor(key, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def packed(tensor):
    return hasattr(tensor, "quant_type")


@pytest.mark.parametrize("ending", ["safetensors", "gguf"])
def test_a_denoiser_in_a_file_takes_the_place_of_the_folders(folder, tmp_path, ending):
    own = diffusers.DiffusionPipeline.from_pretrained(folder / "model").transformer.state_dict()
    tensors = {key: (tensor * 0.5).contiguous() for key, tensor in own.items()}
    file = tmp_path / f"other.{ending}"
    (save_file(tensors, file) if ending == "safetensors" else write_gguf(file, tensors))

    pipe = load_pipeline(str(file), config=str(folder / "model"), device="cpu", dtype="float32")

    live = pipe.transformer.state_dict()
    assert any(map(packed, live.values())) == (ending == "gguf")
    for key, tensor in live.items():
        if packed(tensor):
            tensor = dequantize_gguf_tensor(tensor)  # noqa: PLW2901
        assert torch.allclose(tensor.float(), tensors[key], atol=0.02 * float(tensors[key].abs().max()))


def test_adapters_on_a_model_of_a_gguf_file_are_right_within_its_rounding(folder, tmp_path):
    own = diffusers.DiffusionPipeline.from_pretrained(folder / "model")
    write_gguf(tmp_path / "base.gguf", own.transformer.state_dict())
    pipe = load_pipeline(
        str(tmp_path / "base.gguf"), config=str(folder / "model"), device="cpu", dtype="float32"
    )
    before = everything(pipe)
    own.transformer.load_state_dict(
        {
            key: dequantize_gguf_tensor(tensor) if packed(tensor) else tensor
            for key, tensor in pipe.transformer.state_dict().items()
        }
    )
    found = []
    for each in (pipe, own):
        mixer = LoraMixer(each)
        mixer.load_lora_weights(folder / "a.safetensors", "a")
        maker = PictureMaker(mixer, defaults={"steps": 2})
        requests = [
            PictureRequest("a castle", seed=1, width=SIDE, height=SIDE, mix=mix) for mix in ({"a": 0.7}, {})
        ]
        found.append([picture.image for picture in sorted(maker.make(requests), key=lambda each: each.index)])
        mixer.unload_lora_weights()
    for one, other in zip(*found, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max() <= 1
    assert different(*found[0])
    assert all(torch.equal(tensor, before[key]) for key, tensor in everything(pipe).items())


def test_a_file_that_is_not_the_folders_denoiser_is_refused_by_name(folder, tmp_path):
    own = diffusers.DiffusionPipeline.from_pretrained(folder / "model").transformer.state_dict()
    half = {key: tensor.contiguous() for key, tensor in list(own.items())[::2]}
    save_file(half | {"transformer_blocks.9.x": torch.ones(1)}, tmp_path / "half.safetensors")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGML" + bytes(100))
    cut = tmp_path / "cut.gguf"
    write_gguf(cut, own)
    cut.write_bytes(cut.read_bytes()[:5000])
    for file, kind, said in (
        (
            tmp_path / "half.safetensors",
            SourceNotFoundError,
            r"half\.safetensors: (lacks|cannot be read as the)",
        ),
        (bad, CorruptFileError, "is not a GGUF file"),
        (cut, SourceNotFoundError, r"cut\.gguf: cannot be read as the transformer of"),
    ):
        with pytest.raises(kind, match=said):
            load_pipeline(str(file), config=str(folder / "model"), device="cpu")
