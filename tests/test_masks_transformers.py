"""Masks on transformers: which part of a packed picture or a film an adapter reaches, family by family."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from lora_mixer import LoraMixer, MixError
from lora_mixer.engines.denoiser.places import is_off_picture
from lora_mixer.engines.hooks import output_hooks
from lora_mixer.families import family_of_class
from tests.models import tiny_sd
from tests.transformers_data import call_arguments, outputs, parts_of, reference

# A layer that works on each token alone and behind which nothing mixes tokens: what it changes at a place of the picture is
# seen at that place of the output, and nowhere else.
LAST = {
    "auraflow/diffusers": "single_transformer_blocks.1.ff.out_projection",
    "chroma/kohya": "single_transformer_blocks.1.proj_out",
    "cogvideox/diffusers": "transformer_blocks.1.ff.net.2",
    "cosmos2/comfy": "transformer_blocks.1.ff.net.2",
    "flux/aitoolkit": "single_transformer_blocks.1.proj_out",
    "flux2/diffusers": "single_transformer_blocks.1.attn.to_out",
    "hunyuanimage/kohya_split": "single_transformer_blocks.1.proj_out",
    "hunyuanvideo/kohya": "single_transformer_blocks.1.proj_out",
    "kandinsky5/kohya": "visual_transformer_blocks.1.feed_forward.out_layer",
    "krea2/comfy": "transformer_blocks.1.ff.down",
    "ltx/comfy_same_names": "transformer_blocks.1.ff.net.2",
    "lumina2/kohya": "layers.1.feed_forward.linear_2",
    "mochi/diffusers": "transformer_blocks.1.ff.net.2",
    "ovis/comfy_peft": "single_transformer_blocks.1.proj_out",
    "pixart/peft_script": "transformer_blocks.1.ff.net.2",
    "qwenimage/kohya": "transformer_blocks.1.img_mlp.net.2",
    "sana/diffusers": "transformer_blocks.1.ff.conv_point",
    "sd35l/kohya": "transformer_blocks.1.ff.net.2",
    "wan/kohya": "blocks.1.ffn.net.2",
    "wan_i2v/i2v_all": "blocks.1.ffn.net.2",
    "zimage/kohya_fused_qkv": "layers.1.feed_forward.w2",
}
pytestmark = pytest.mark.filterwarnings("ignore:(?s).*autocast:UserWarning")
CHANNELS_LAST = ("kandinsky5",)


def pair(module):
    generator = torch.Generator().manual_seed(5)
    shape = module.weight.shape
    up = torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=generator)
    return {"lora_up.weight": up, "lora_down.weight": torch.randn(2, *shape[1:], generator=generator)}


def grid(out, family):
    """Give the picture's axes of an output, packed or not: (places..., channels) with rows and columns last among places."""
    if out.ndim == 3:  # packed, 4 x 4 places in each frame
        return out.unflatten(1, (-1, 4, 4))  # (rows, frames, 4, 4, channels)
    if family in CHANNELS_LAST:
        return out
    return out.movedim(1, -1) if family != "cogvideox" else out.movedim(2, -1)


def raster(_module, args, kwargs):
    """Give coordinates where the reference's are drawn at random: pipelines give them in rows and columns."""
    if "img_ids" in kwargs and kwargs["img_ids"].ndim == 2:
        kwargs["img_ids"] = torch.tensor([[0, row, column] for row in range(4) for column in range(4)])
    return args, kwargs


def loaded(shared_data, name):
    wanted = reference(shared_data, name)
    parts = parts_of(shared_data, wanted)
    root = parts.components["transformer"]
    root.register_forward_pre_hook(raster, with_kwargs=True)
    path = LAST[name]
    table = {f"transformer.{path}.{leaf}": t for leaf, t in pair(root.get_submodule(path)).items()}
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(table, "a")

    def run(mix):
        mixer.set_mix(mix)
        return grid(outputs(shared_data, wanted, parts)["transformer.out"], wanted.family)

    return run


@pytest.mark.parametrize("name", LAST)
def test_a_mask_reaches_its_part_of_the_picture_and_nothing_else(shared_data, name):
    run = loaded(shared_data, name)
    mask = torch.zeros(8, 8)
    mask[2:6, :2] = 1  # no symmetry: rows and columns, and their order, are told apart
    base, whole = run({}), run({"a": 1.0})
    assert not torch.allclose(base, whole, atol=1e-3)

    part = run({"a": {"weight": 1.0, "mask": mask}})

    rows, columns = base.shape[-3:-1]
    there = mask[:: 8 // rows, :: 8 // columns].bool()[..., None]
    assert torch.allclose(part, torch.where(there, whole, base), atol=1e-5)


@pytest.mark.parametrize("name", ["wan/kohya", "ltx/comfy_same_names", "kandinsky5/kohya", "mochi/diffusers"])
def test_a_mask_of_several_frames_has_one_for_each_part_of_the_film(shared_data, name):
    run = loaded(shared_data, name)
    first, second = torch.zeros(4, 4), torch.zeros(4, 4)
    first[:2], second[:, 3:] = 1, 1
    base, whole = run({}), run({"a": 1.0})

    part = run({"a": {"weight": 1.0, "mask": [first, first, second, second]}})

    frames, rows, columns = base.shape[-4:-1]
    there = torch.stack([first, second]).repeat_interleave(frames // 2, 0)
    there = there.repeat_interleave(rows // 4, 1).repeat_interleave(columns // 4, 2).bool()[..., None]
    assert torch.allclose(part, torch.where(there, whole, base), atol=1e-5)


def test_a_mask_of_several_frames_is_refused_on_a_picture(shared_data):
    run = loaded(shared_data, "flux/aitoolkit")
    with pytest.raises(MixError, match="a mask of 2 frames"):
        run({"a": {"weight": 1.0, "mask": [torch.zeros(4, 4), torch.ones(4, 4)]}})


def test_a_mask_is_refused_where_nothing_says_how_the_picture_is_packed(shared_data):
    wanted = reference(shared_data, "flux/aitoolkit")
    parts = parts_of(shared_data, wanted)
    root = parts.components["transformer"]
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "a")
    mixer.set_mix({"a": {"weight": 1.0, "mask": torch.ones(4, 4)}})
    tokens = torch.zeros(1, 15, 8)
    ids = torch.zeros(15, 3)
    with pytest.raises(MixError, match="15 packed tokens and nothing that says how they lie"):
        root(hidden_states=tokens, encoder_hidden_states=torch.zeros(1, 7, 22), img_ids=ids)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("single_stream_blocks.0.block.attn1.to_out", "rows of [0-9]+ tokens: the picture has 64 of them"),
        ("single_stream_blocks.0.block.ff_i.experts.0.w2", "tokens of 1 rows in one.*mixtures of experts"),
    ],
)
def test_a_mask_is_refused_where_its_place_in_a_row_is_not_known(shared_data, layer, said):
    wanted = reference(shared_data, "hidream/aitoolkit")
    parts = parts_of(shared_data, wanted)
    module = parts.components["transformer"].get_submodule(layer)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights({f"transformer.{layer}.{leaf}": t for leaf, t in pair(module).items()}, "a")
    mixer.set_mix({"a": {"weight": 1.0, "mask": torch.ones(4, 4)}})
    with pytest.raises(MixError, match=said):
        outputs(shared_data, wanted, parts)


@pytest.mark.parametrize("before", [False, True])
def test_pictures_that_a_picture_is_made_from_are_not_masked(shared_data, before):
    """As Kontext and Flux.2 have them: tokens of other pictures, with numbers of their own, after or before."""
    name = "flux/aitoolkit"
    wanted = reference(shared_data, name)
    parts = parts_of(shared_data, wanted)
    root = parts.components["transformer"]
    path = LAST[name]
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(
        {f"transformer.{path}.{leaf}": t for leaf, t in pair(root.get_submodule(path)).items()}, "a"
    )
    own = torch.tensor([[0, row, column] for row in range(2) for column in range(3)])
    other = torch.tensor([[1, row, column] for row in range(2) for column in range(2)])
    ids = torch.cat([other, own] if before else [own, other])
    generator = torch.Generator().manual_seed(2)
    call = {
        "hidden_states": torch.randn(1, 10, 8, generator=generator),
        "encoder_hidden_states": torch.randn(1, 6, 22, generator=generator),  # as many as the picture has
        "pooled_projections": torch.randn(1, 18, generator=generator),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(6, 3),
    }

    def run(mix):
        mixer.set_mix(mix)
        with torch.no_grad():
            return root(**call).sample[0]

    base, whole = run({}), run({"a": 1.0})
    part = run({"a": {"weight": 1.0, "mask": [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]}})

    start = 4 if before else 0
    changed = [n for n in range(10) if torch.allclose(part[n], whole[n], atol=1e-5)]
    kept = [n for n in range(10) if torch.allclose(part[n], base[n], atol=1e-5)]
    assert changed == [start + 1, start + 5]
    assert kept == [start + n for n in (0, 2, 3, 4)]


def test_layers_on_text_have_the_share_of_the_picture_however_many_tokens_the_text_has(shared_data):
    """With as many tokens of text as the picture has places, names tell the two apart."""
    parts = parts_of(shared_data, reference(shared_data, "flux/aitoolkit"))
    root = parts.components["transformer"]
    layer = root.transformer_blocks[0].ff_context.net[2]
    mixer = LoraMixer(parts)
    table = pair(layer)
    mixer.load_lora_weights(
        {f"transformer.transformer_blocks.0.ff_context.net.2.{leaf}": t for leaf, t in table.items()}, "a"
    )
    mask = torch.zeros(4, 4)
    mask[:, :1] = 1
    mixer.set_mix({"a": {"weight": 1.0, "mask": mask}})
    ids = torch.tensor([[0, row, column] for row in range(4) for column in range(4)])
    seen = []
    handle = layer.register_forward_hook(lambda _module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        root(
            hidden_states=torch.randn(1, 16, 8), encoder_hidden_states=torch.randn(1, 16, 22),
            pooled_projections=torch.randn(1, 18), timestep=torch.tensor([0.5]), guidance=torch.tensor([3.5]),
            img_ids=ids, txt_ids=torch.zeros(16, 3),
        )  # fmt: skip
    handle.remove()
    ((inputs, output),) = seen
    change = 0.25 * inputs @ (table["lora_up.weight"] @ table["lora_down.weight"]).T
    assert torch.allclose(output, layer.forward(inputs) + change, atol=1e-5)


def zimage():
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=24, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12,
        axes_dims=[4, 4, 4], axes_lens=[64, 32, 32],
    ).eval()  # fmt: skip
    for parameter in transformer.parameters():
        parameter.data.normal_(0, 0.2)
    pipe = diffusers.ZImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_sd().vae,
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    mixer = LoraMixer(pipe)
    path = "layers.0.feed_forward.w2"
    module = transformer.get_submodule(path)
    mixer.load_lora_weights({f"transformer.{path}.{leaf}": t for leaf, t in pair(module).items()}, "a")
    texts = [torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) for n in (5, 6)]

    def run(mix, *, guided=False, steps=4, **more):
        generator = torch.Generator().manual_seed(3)
        with mixer.applied(mix, **more):
            return pipe(
                prompt_embeds=[texts[0]], negative_prompt_embeds=[texts[1]], guidance_scale=3.0 * guided, height=64,
                width=64, num_inference_steps=steps, output_type="latent", generator=generator,
            ).images  # fmt: skip

    return run


def test_schedules_follow_a_pipeline_that_calls_with_lists_of_pictures():
    run = zimage()
    base, whole = run({}), run({"a": 1.0})
    assert not torch.allclose(base, whole, atol=1e-3)
    assert torch.allclose(run({"a": {"weight": 1.0, "schedule": "window(0, 1)"}}), whole, atol=1e-5)
    late = run({"a": {"weight": 1.0, "schedule": "window(0.5, 1)"}})
    assert not torch.allclose(late, base, atol=1e-3)
    assert not torch.allclose(late, whole, atol=1e-3)


def test_the_half_without_the_prompt_has_its_own_mix_where_it_comes_second():
    run = zimage()
    one = {"steps": 1, "guided": True}
    base, whole = run({}, **one), run({"a": 1.0}, **one)
    mine, others = run({"a": 1.0}, negative={}, **one), run({}, negative={"a": 1.0}, **one)
    # guidance is linear in its halves: prompt + 3 (prompt - negative)
    assert torch.allclose((mine - base) + (others - base), whole - base, atol=1e-4)
    alone = run({"a": 1.0}, steps=1) - run({}, steps=1)
    assert torch.allclose(mine - base, 4 * alone, atol=1e-3)


def test_projections_of_the_texts_stream_share_one_product_and_nothing_changes(shared_data):
    wanted = reference(shared_data, "flux/aitoolkit")
    parts = parts_of(shared_data, wanted)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights(wanted.adapter, "a")
    merged = outputs(shared_data, wanted, parts)["transformer.out"]
    mixer.set_mix({"a": 1.0}, engine="side")
    beside = outputs(shared_data, wanted, parts)["transformer.out"]
    assert torch.allclose(merged, beside, atol=1e-5)
    hooks = parts.components["transformer"].transformer_blocks[0].attn
    names = ("add_q_proj", "add_k_proj", "add_v_proj")
    layers: list[Any] = [hook for name in names for hook in output_hooks(getattr(hooks, name))]
    assert len({id(layer.shared) for layer in layers}) == 1
    assert layers[0].shared is not None


@pytest.mark.parametrize(
    ("layer", "shared"),
    [
        ("time_embedder.linear_1", True),
        ("transformer_blocks.1.adaln_proj.linear", True),
        ("norm_out.linear", True),
        ("transformer_blocks.1.attn.to_q", False),
        ("proj_in", False),
    ],
)
def test_a_layer_whose_rows_are_timesteps_has_no_mix_for_each_image(shared_data, layer, shared):
    """MiniMax-H3 has a row for each timestep of its sequence: as many timesteps as images were taken for images."""
    parts = parts_of(shared_data, reference(shared_data, "minimax_h3/comfy_stacked"))
    module = parts.components["transformer"].get_submodule(layer)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights({f"transformer.{layer}.{key}": value for key, value in pair(module).items()}, "a")
    mixer.set_mix({"a": 0.5})  # one for all
    if shared:
        with pytest.raises(MixError, match="2 mixes for one batch: layers that are changed compute what all"):
            mixer.set_mix([{"a": 0.5}, {}])
    else:
        mixer.set_mix([{"a": 0.5}, {}])


@pytest.mark.parametrize(
    ("name", "path", "on_picture"),
    [
        ("sd35m/kohya_te123", "transformer_blocks.0.attn2.to_q", True),
        ("sd35m/kohya_te123", "transformer_blocks.0.attn2.to_k", True),
        ("sd35m/kohya_te123", "transformer_blocks.1.attn2.to_v", True),
        ("pixart/peft_script", "transformer_blocks.0.attn2.to_k", False),
        ("chroma/kohya", "distilled_guidance_layer.in_proj", False),
        ("chroma/kohya", "distilled_guidance_layer.layers.1.linear_2", False),
        ("chroma/kohya", "distilled_guidance_layer.out_proj", False),
        ("mochi/diffusers", "time_embed.pooler.to_kv", False),
    ],
)
def test_a_mask_lies_on_the_layers_that_see_the_picture_and_is_its_share_on_all_others(
    shared_data, name, path, on_picture
):
    """Second attentions are on the text in most families and on the picture in SD3.5; modulation comes in rows on Chroma."""
    wanted = reference(shared_data, name)
    parts = parts_of(shared_data, wanted)
    root = parts.components["transformer"]
    layer = root.get_submodule(path)
    table = pair(layer)
    mixer = LoraMixer(parts)
    mixer.load_lora_weights({f"transformer.{path}.{leaf}": t for leaf, t in table.items()}, "a")
    mask = torch.zeros(4, 4)
    mask[:, :1] = 1
    mixer.set_mix({"a": {"weight": 1.0, "mask": mask}})
    call = call_arguments(shared_data, wanted)
    if wanted.family == "mochi":  # as many tokens of text as the film has places
        latents, text = call["hidden_states"], call["encoder_hidden_states"]
        count = latents.shape[2] * latents.shape[3] // 2 * (latents.shape[4] // 2)
        call["encoder_hidden_states"] = torch.randn(len(latents), count, text.shape[-1])
        call["encoder_attention_mask"] = torch.ones(len(latents), count)
    elif "img_ids" in call:
        call["img_ids"] = torch.tensor([[0, row, column] for row in range(4) for column in range(4)])
    seen = []
    handle = layer.register_forward_hook(lambda _module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        root(**call)
    handle.remove()
    ((inputs, output),) = seen
    share = torch.full(inputs.shape[1:-1], 0.25)
    if on_picture:
        share = mask.flatten()
    change = inputs @ (table["lora_up.weight"] @ table["lora_down.weight"]).T * share[None, :, None]
    assert torch.allclose(output, layer.forward(inputs) + change, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "off", "on"),
    [
        (
            "LTX2VideoTransformer3DModel",
            [
                "audio_proj_in", "transformer_blocks.3.audio_attn1.to_k", "transformer_blocks.0.audio_ff.net.2",
                "transformer_blocks.0.audio_to_video_attn.to_v", "transformer_blocks.0.video_to_audio_attn.to_q",
                "transformer_blocks.0.attn2.to_k",
            ],
            [
                "proj_in", "transformer_blocks.0.attn1.to_k", "transformer_blocks.0.audio_to_video_attn.to_q",
                "transformer_blocks.0.video_to_audio_attn.to_k", "transformer_blocks.0.ff.net.2",
            ],
        ),
        (
            "HiDreamImageTransformer2DModel",
            [
                "double_stream_blocks.0.block.attn1.to_q_t", "double_stream_blocks.0.block.attn1.to_out_t",
                "double_stream_blocks.1.block.ff_t.w2",
            ],
            ["double_stream_blocks.0.block.attn1.to_q", "single_stream_blocks.0.block.ff_i.shared_experts.w1"],
        ),
    ],
)  # fmt: skip
def test_streams_beside_the_pictures_are_known_by_their_family(kind, off, on):
    family = family_of_class(kind)
    assert [path for path in off + on if is_off_picture(path, family)] == off
