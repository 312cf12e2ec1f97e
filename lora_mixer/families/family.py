"""What is known of one base family, as one frozen row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class SingleFile:
    """
    What a checkpoint that is one file leaves to be known of its base, to build a pipeline without the Hub.

    Attributes:
        pipelines: By task (``text``, ``inpainting``, ``edit``), the pipeline's class and what else its index says.
        scheduler: Its class, and its configuration.
        vae: The configuration of its autoencoder.
        latents: The side of the latents that its UNet was trained at.
        clip_l: The text encoders that are CLIP-L, with an activation and a padding of their own.
    """

    pipelines: Mapping[str, tuple[str, Mapping[str, Any]]]
    scheduler: tuple[str, Mapping[str, Any]]
    vae: Mapping[str, Any]
    latents: int
    clip_l: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """
    One base family.

    Attributes:
        name: How messages and descriptions call it, such as ``Flux.1``.
        classes: How the names of its denoiser classes begin; the longest beginning among all families counts.
        layouts: How the modules of a file are spelled, by the name of the spelling, where it is not the live model's own:
            a table in the language of :mod:`lora_mixer.families.spelling`. The first is the original code's.
        absent: Spellings, one a line in the same language, that files of sibling models have and this one need not.
        marks: A regular expression over flattened module names with every number 0, that only this family has.
        like: The family whose names its files share; names alone do not tell the two apart.
        widths: Widths that its attention works at, where names do not tell it from the family that it is like.
        inputs: Likewise: inputs of further layers, by what their underscored names end with.
        ratio: Likewise: how many times the input of a single block's last layer is that of its first.
        headers: What ``ss_base_model_version`` or ``modelspec.architecture`` contain.
        said: How the names begin that users and model sites give to it.
        bases: How ``modelspec.architecture`` or ``ss_base_model_version`` begin, and the model that such files are usually trained on;
            the longest beginning counts.
        noise_schedule: Whether it is a transformer that is trained on a schedule of noise, as UNets are, whose samplers serve it, too.
        cross_attention: The width of the text that its UNet attends to; 0 for transformers.
        kohya: ``ss_base_model_version``, ``ss_v2`` and ``modelspec.architecture`` that Kohya's trainer writes.
        unet: The arguments of its UNet's class, to build its modules without weights.
        text_encoders: Class, hidden size, inner size, layers and heads of each text encoder (CLIP, T5), likewise.
        widens: Live modules (in the tables' language) whose inputs an adapter may widen, or need not fill.
        controlled: The pipeline of diffusers that gives a widened layer its second picture; empty where there is none.
        transformers: Class and arguments of its denoiser in each size that is known, the usual first.
        t5: The component of its pipelines that is a T5, where tools count it differently.
        joint: Whether layers that see text and picture in one row have "text first" or "picture first"; empty where none do.
        by_call: Live modules, one a line in the language of ``absent``, whose rows are no images but what a call's images share.
        off_picture: Likewise live modules whose rows of tokens are not the picture's, where their names do not tell as those of layers
            on text do: modulation, sound.
        on_picture: Likewise those that see the picture, though other families have layers on text of that name.
        axes: What the axes of a film's latents are, of batch, channels, frames, height, width.
        kohya_implementation: ``modelspec.implementation`` that Kohya's trainer writes.
        single_file: What a checkpoint of one file leaves unsaid; None where a folder has to be named.
        skips_last_layer: Whether pipelines read text at the last layer but one by themselves, which others call clip skip 2.
        kohya_flat: Which of ``layouts`` Kohya's files flatten; empty where they flatten the live names.
        encoder: How ComfyUI calls its language model that encodes texts, where there is one.
        ays: Which of diffusers' tables has the timesteps of Align Your Steps for it; that of SD 1.x where it has none of its own.
        lbw: How many numbers lists of sd-webui-lora-block-weight have that are for it.
        b_lora: The layers that B-LoRA trains, by what they carry; empty where none are known.
        comfyui: Which of them ComfyUI has behind ``diffusion_model.``, where it is not the one that Kohya's files flatten.
    """

    name: str
    classes: tuple[str, ...] = ()
    layouts: Mapping[str, str] = field(default_factory=dict)
    absent: str = ""
    marks: str = ""
    like: str = ""
    widths: frozenset[int] = frozenset()
    inputs: Mapping[str, int] = field(default_factory=dict)
    ratio: int = 0
    headers: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    bases: tuple[tuple[str, str], ...] = ()
    noise_schedule: bool = False
    cross_attention: int = 0
    kohya: tuple[str, str, str] | None = None
    unet: Mapping[str, Any] | None = None
    text_encoders: Mapping[str, tuple[str, int, int, int, int]] = field(default_factory=dict)
    widens: tuple[str, ...] = ()
    controlled: str = ""
    transformers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    t5: str = ""
    kohya_flat: str = ""
    kohya_implementation: str = "diffusers"
    single_file: SingleFile | None = None
    skips_last_layer: bool = False
    comfyui: str = ""
    encoder: str = ""
    joint: Literal["", "text first", "picture first"] = ""
    by_call: str = ""
    off_picture: str = ""
    on_picture: str = ""
    axes: str = "bcfhw"
    ays: str = "StableDiffusionTimesteps"
    lbw: tuple[int, ...] = ()
    b_lora: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_transformer(self) -> bool:
        """Whether its denoiser is a transformer."""
        return not self.cross_attention

    @property
    def attentions(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many transformers each block of its UNet has, down and up, where ``unet`` names the blocks."""
        layers = 2  # of diffusers' UNets, which have one more in each block up
        down, up = ((self.unet or {}).get(f"{side}_block_types", ()) for side in ("down", "up"))
        return (
            tuple(layers if "CrossAttn" in kind else 0 for kind in down),
            tuple(layers + 1 if "CrossAttn" in kind else 0 for kind in up),
        )

    @property
    def brings_sampler(self) -> bool:
        """Whether it is trained on flows, for which its pipelines bring the sampler."""
        return self.is_transformer and not self.noise_schedule
