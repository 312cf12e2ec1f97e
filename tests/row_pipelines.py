"""Small pipelines of many kinds, and how each is called for some of two pictures: for tests of which row is whose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    MotionAdapter,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPAGPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)

from tests.models import SD_WIDTH, perturb, sd_unet, text_encoder, tiny_sd, tiny_sdxl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROMPTS = ("a castle", "a red fish")
PICTURES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
MASKS = (torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(4)) > 0.5).float()
SIZED = {"height": 32, "width": 32}


@dataclass
class Example:
    """
    A pipeline and how to call it.

    Attributes:
        pipe: The pipeline that makes the pictures.
        mixed: The pipeline that a mixer is made with; the same, or one that shares its parts.
        part: The denoiser's name.
        call: Arguments for the pictures of some numbers.
        scale: The name of the argument that turns guidance off at 1.
        each: Whether several pictures can be made of one prompt in one call.
        halves: How a step's calls are laid out while guided: for each call, whether each of its copies is without the prompt.
    """

    pipe: Any
    part: str
    call: Callable[[Sequence[int]], dict[str, Any]]
    mixed: Any = None
    scale: str = "guidance_scale"
    each: bool = True
    halves: tuple[tuple[bool, ...], ...] = ((True, False),)

    def __post_init__(self) -> None:
        """Be quiet, and be the mixer's own where no other is given."""
        self.pipe.set_progress_bar_config(disable=True)
        self.mixed = self.mixed or self.pipe

    @property
    def denoiser(self) -> Any:
        """The module that is called at each step."""
        return getattr(self.pipe, self.part)

    def run(self, numbers: Sequence[int], *, each: int = 1, guided: bool = True) -> torch.Tensor:
        """
        Make pictures of some of the two prompts; the seed goes by number and copy.

        Args:
            numbers: Which.
            each: How many of each prompt.
            guided: Whether there is guidance.
        """
        settings = {"num_inference_steps": 2, "output_type": "latent", self.scale: 3.0 if guided else 1.0}
        if each > 1:
            settings["num_images_per_prompt"] = each
        seeds = [torch.Generator().manual_seed(10 * n + copy) for n in numbers for copy in range(each)]
        found = self.pipe(**settings | self.call(numbers), generator=seeds)
        return found.frames if hasattr(found, "frames") else found.images


def prompts(numbers: Sequence[int]) -> dict[str, Any]:
    return {"prompt": [PROMPTS[n] for n in numbers]}


def pictures(numbers: Sequence[int]) -> dict[str, Any]:
    return {**prompts(numbers), "image": PICTURES[list(numbers)]}


def drawn(numbers: Sequence[int]) -> dict[str, Any]:
    return {**prompts(numbers), **SIZED}


def parts_of(pipe: Any, **others: Any) -> dict[str, Any]:
    return {name: part for name, part in pipe.components.items() if name != "image_encoder"} | others


def built(kind: Any, *, channels: int = 4, **others: Any) -> Any:
    """Build a pipeline of SD 1.x's parts, its UNet with other channels maybe."""
    base = tiny_sd()
    unet = base.unet if channels == 4 else sd_unet(in_channels=channels)
    return kind(**parts_of(base, unet=unet, **others), requires_safety_checker=False)


# --- SD 1.x -----------------------------------------------------------------------------------------------------------


def text_to_image() -> Example:
    return Example(built(StableDiffusionPipeline), "unet", drawn)


def shared_parts() -> Example:
    base = tiny_sd()
    other = StableDiffusionImg2ImgPipeline(**parts_of(base), requires_safety_checker=False)
    return Example(other, "unet", lambda n: {**pictures(n), "strength": 1.0}, mixed=base)


def from_pipe() -> Example:
    base = tiny_sd()
    scheduler = DDIMScheduler.from_config(base.scheduler.config)
    other = StableDiffusionInpaintPipeline.from_pipe(base, scheduler=scheduler, requires_safety_checker=False)
    return Example(
        other, "unet", lambda n: {**pictures(n), "mask_image": MASKS[list(n)], "strength": 1.0}, mixed=base
    )


def inpainting() -> Example:
    pipe = built(StableDiffusionInpaintPipeline, channels=9)
    return Example(pipe, "unet", lambda n: {**pictures(n), "mask_image": MASKS[list(n)], "strength": 1.0})


def control_net() -> Example:
    base = tiny_sd()
    torch.manual_seed(5)
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8)).eval()
    perturb(net, 5)
    pipe = StableDiffusionControlNetPipeline(**parts_of(base, controlnet=net), requires_safety_checker=False)
    return Example(pipe, "unet", pictures)


def instruct() -> Example:
    pipe = built(StableDiffusionInstructPix2PixPipeline, channels=8)
    return Example(
        pipe, "unet", lambda n: {**pictures(n), "image_guidance_scale": 1.5}, halves=((False, True, True),)
    )


def perturbed() -> Example:
    pipe = built(StableDiffusionPAGPipeline)
    pipe.set_pag_applied_layers("mid")
    return Example(pipe, "unet", lambda n: {**drawn(n), "pag_scale": 2.0}, halves=((True, False, False),))


def self_attention() -> Example:
    pipe = built(StableDiffusionSAGPipeline, scheduler=DDIMScheduler())
    return Example(pipe, "unet", lambda n: {**drawn(n), "sag_scale": 0.6}, halves=((True, False), (True,)))


def depth() -> Example:
    base = tiny_sd()
    parts = {name: base.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    pipe = StableDiffusionDepth2ImgPipeline(
        **parts, unet=sd_unet(in_channels=5), depth_estimator=None, feature_extractor=None
    )
    return Example(
        pipe,
        "unet",
        lambda n: {**pictures(n), "depth_map": PICTURES[list(n), 0], "strength": 1.0},
    )


def upscaling() -> Example:
    base = tiny_sd()
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=7, block_out_channels=(8, 12), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=SD_WIDTH, attention_head_dim=2, num_class_embeds=1000,
    ).eval()  # fmt: skip
    parts = {name: base.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    pipe = StableDiffusionUpscalePipeline(**parts, unet=unet, low_res_scheduler=DDPMScheduler())
    # of several pictures of one prompt, each has another image to start from in diffusers itself
    return Example(
        pipe, "unet", lambda n: {**prompts(n), "image": PICTURES[list(n), :, :16, :16]}, each=False
    )


def latent_upscaling() -> Example:
    base = tiny_sd()
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        act_fn="gelu", attention_head_dim=8, norm_num_groups=None, block_out_channels=(32, 32, 64, 64),
        time_cond_proj_dim=SD_WIDTH + 128, conv_in_kernel=1, conv_out_kernel=1, cross_attention_dim=SD_WIDTH,
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3), in_channels=8, mid_block_type=None,
        only_cross_attention=False, out_channels=5, resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier", timestep_post_act="gelu",
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
    ).eval()  # fmt: skip
    parts = {name: base.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    parts["scheduler"] = type(parts["scheduler"]).from_config(
        parts["scheduler"].config, prediction_type="sample"
    )
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    return Example(
        StableDiffusionLatentUpscalePipeline(**parts, unet=unet),
        "unet",
        lambda n: {**prompts(n), "image": latents[list(n)]},
        each=False,
    )


def panorama() -> Example:
    return Example(built(StableDiffusionPanoramaPipeline), "unet", drawn, each=False)


# --- video ------------------------------------------------------------------------------------------------------------


def animated() -> Example:
    torch.manual_seed(6)
    base = tiny_sd()
    motion = MotionAdapter(
        block_out_channels=(8, 12, 16, 16), motion_layers_per_block=2, motion_norm_num_groups=4,
        motion_num_attention_heads=2, motion_mid_block_layers_per_block=1, use_motion_mid_block=True,
    )  # fmt: skip
    parts = {name: base.components[name] for name in ("vae", "text_encoder", "tokenizer", "unet")}
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    pipe = AnimateDiffPipeline(**parts, motion_adapter=motion, scheduler=scheduler)
    return Example(pipe, "unet", lambda n: {**drawn(n), "num_frames": 3}, each=False)


def video() -> Example:
    torch.manual_seed(6)
    base = tiny_sd()
    unet = UNet3DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=SD_WIDTH,
    ).eval()  # fmt: skip
    perturb(unet, 6)
    parts = {name: base.components[name] for name in ("vae", "text_encoder", "tokenizer")}
    pipe = TextToVideoSDPipeline(**parts, unet=unet, scheduler=DDIMScheduler(clip_sample=False))
    return Example(pipe, "unet", lambda n: {**drawn(n), "num_frames": 3}, each=False)


# --- SDXL -------------------------------------------------------------------------------------------------------------


def xl() -> Example:
    return Example(tiny_sdxl(), "unet", drawn)


def xl_image_to_image() -> Example:
    base = tiny_sdxl()
    pipe = StableDiffusionXLImg2ImgPipeline(**parts_of(base))
    return Example(pipe, "unet", lambda n: {**pictures(n), "strength": 1.0}, mixed=base)


def xl_perturbed() -> Example:
    pipe = StableDiffusionXLPAGPipeline(**parts_of(tiny_sdxl()))
    pipe.set_pag_applied_layers("mid")
    return Example(pipe, "unet", lambda n: {**drawn(n), "pag_scale": 2.0}, halves=((True, False, False),))


# --- transformers -----------------------------------------------------------------------------------------------------

EMBEDS = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(20))
UNWANTED = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(21))
POOLED = torch.randn(3, 32, generator=torch.Generator().manual_seed(22))


def embedded(n: Sequence[int]) -> dict[str, Any]:
    return {"prompt_embeds": EMBEDS[list(n)], "negative_prompt_embeds": UNWANTED.expand(len(n), -1, -1)}


def pooled(n: Sequence[int]) -> dict[str, Any]:
    return {
        **embedded(n),
        "pooled_prompt_embeds": POOLED[list(n)],
        "negative_pooled_prompt_embeds": POOLED[2:].expand(len(n), -1),
        **SIZED,
    }


def pixart() -> Example:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    base = tiny_sd()
    pipe = PixArtAlphaPipeline(
        tokenizer=base.tokenizer, text_encoder=text_encoder(32), vae=base.vae, transformer=transformer,
        scheduler=DDIMScheduler(),
    )  # fmt: skip

    def call(n: Sequence[int]) -> dict[str, Any]:
        ones = torch.ones(len(n), 7)
        masks = {"prompt_attention_mask": ones, "negative_prompt_attention_mask": ones}
        return {**embedded(n), **masks, **SIZED, "negative_prompt": None, "use_resolution_binning": False}

    return Example(pipe, "transformer", call)


def sd3() -> Example:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=32, out_channels=4,
    ).eval()  # fmt: skip
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=tiny_sd().vae,
        **dict.fromkeys(names),
    )  # fmt: skip
    return Example(pipe, "transformer", pooled, each=False)


def flux() -> Example:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    ).eval()  # fmt: skip
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    pipe = FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=tiny_sd().vae,
        **dict.fromkeys(names),
    )  # fmt: skip
    return Example(
        pipe, "transformer", pooled, scale="true_cfg_scale", each=False, halves=((False,), (True,))
    )


EXAMPLES: dict[str, Callable[[], Example]] = {
    "SD": text_to_image,
    "img2img that shares parts": shared_parts,
    "inpainting from_pipe with its own scheduler": from_pipe,
    "inpainting with nine channels": inpainting,
    "ControlNet": control_net,
    "depth": depth,
    "InstructPix2Pix": instruct,
    "perturbed attention": perturbed,
    "self-attention guidance": self_attention,
    "upscaling": upscaling,
    "latent upscaling": latent_upscaling,
    "panorama": panorama,
    "AnimateDiff": animated,
    "text to video": video,
    "SDXL": xl,
    "SDXL img2img that shares parts": xl_image_to_image,
    "SDXL perturbed attention": xl_perturbed,
    "PixArt": pixart,
    "SD3": sd3,
    "Flux": flux,
}
