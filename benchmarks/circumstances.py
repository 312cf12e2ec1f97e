"""
What a mix does in every circumstance that a pipeline can be in, as a table in Markdown.

``python -m benchmarks.circumstances > docs/circumstances.md``. Each cell makes a picture on a tiny pipeline in a circumstance
(compiled, offloaded, quantised, ...) with a feature of mixes, and compares its latents with those of a second pipeline in
the same circumstance that never saw this package: there hooks of this script add gain(step, row, place) * B A x beside
each layer, and a word is put into tokenizer and embedding by hand. Then adapters are turned off, and the base has to be
back. A cell is ``works``, ``refused`` with an error of this package, or **wrong**.

Options: ``--only WORD`` for circumstances with that word in their names.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import logging
import sys
import tempfile
import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.hooks import apply_group_offloading
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from torch.nn import functional

from lora_mixer import LoraMixer, LoraMixerError
from tests.models import SD_WIDTH, perturb, text_encoder, tokenizer
from tests.models import _vae as small_vae

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

STEPS = 3
SIZE = 16
CLOSE = 1e-4
HALVES = 0.05
"""How far latents may be apart under autocast, where each side rounds in its own order."""
PROMPTS = ("a castle", "two owls")
WORD = "<s>"


def pipeline() -> Any:
    """Make a Stable Diffusion pipeline of two blocks each way, the same weights each time."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=SD_WIDTH, attention_head_dim=4,
    ).eval()  # fmt: skip
    perturb(unet, 0)
    pipe: Any = StableDiffusionPipeline(
        vae=small_vae(), text_encoder=text_encoder(SD_WIDTH), tokenizer=tokenizer(), unet=unet,
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def adapter(unet: nn.Module, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Draw pairs for layers whose inputs are places of the picture: A (r, in, *kernel), B (out, r)."""
    pairs = {}
    generator = torch.Generator().manual_seed(seed)
    for path, layer in unet.named_modules():
        is_place = "attn1" in path or ".ff." in path or "proj_in" in path or ".conv" in path
        if isinstance(layer, nn.Linear | nn.Conv2d) and is_place:
            out, *rest = layer.weight.shape
            down = torch.randn(3, *rest, generator=generator) * 0.3
            pairs[path] = down, torch.randn(out, 3, generator=generator) * 0.3
    return pairs


def as_file(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Write pairs in diffusers' names."""
    file = {}
    for path, (down, up) in pairs.items():
        file[f"unet.{path}.lora_A.weight"] = down
        file[f"unet.{path}.lora_B.weight"] = up.view(*up.shape, *[1] * (down.ndim - 2))
    return file


_LEFT = np.pad(np.ones((SIZE, SIZE // 2), np.float32), ((0, 0), (0, SIZE // 2)))
_RAMP = {"weight": 1.0, "schedule": "0@0,1@1"}


@dataclass(frozen=True)
class Feature:
    """A mix as a user sets it, and what it means: the gain of each row at each step, and where."""

    mix: Any
    gain: Callable[[int, int], float] = lambda _step, _row: 0.0  # of a step and a row
    options: Mapping[str, Any] = field(default_factory=dict)
    images: int = 1
    mask: Any = None
    word: bool = False
    scale: float | None = None  # that the call passes


FEATURES: dict[str, Feature] = {
    "merged": Feature({"a": 0.8}, lambda *_: 0.8, {"engine": "merged"}),
    "schedule": Feature({"a": _RAMP}, lambda step, _: step / (STEPS - 1)),
    "schedule, merged": Feature({"a": _RAMP}, lambda step, _: step / (STEPS - 1), {"engine": "merged"}),
    "mask": Feature({"a": {"weight": 0.9, "mask": _LEFT}}, lambda *_: 0.9, mask=_LEFT),
    "list of mixes": Feature([{"a": 0.9}, {"a": -0.4}], lambda _, row: (0.9, -0.4)[row % 2], images=2),
    "negative": Feature({"a": 0.9}, lambda _, row: (-0.5, 0.9)[row], {"negative": {"a": -0.5}}),
    "side": Feature({"a": 0.7}, lambda *_: 0.7, {"engine": "side"}),
    "words": Feature({}, word=True),
    "a call's scale": Feature({"a": 0.8}, lambda *_: 0.4, scale=0.5),
}


def picture(pipe: Any, feature: Feature, **more: Any) -> torch.Tensor:
    """Make latents: (images, 4, 8, 8)."""
    prompts = [f"{prompt} {WORD if feature.word else ''}" for prompt in PROMPTS[: feature.images]]
    generators = [torch.Generator().manual_seed(seed) for seed in range(feature.images)]
    settings: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent"}
    if "image" not in more:
        settings |= {"height": SIZE, "width": SIZE}
    if feature.scale is not None:
        settings["cross_attention_kwargs"] = {"scale": feature.scale}
    return pipe(prompts, generator=generators, **settings | more).images.float()


class ByHand:
    """The reference: this script's own hooks beside layers, and a word put in by hand."""

    def __init__(self, pipe: Any, unet: nn.Module, feature: Feature) -> None:
        self._step, self._feature = -1, feature
        self._handles = [unet.register_forward_pre_hook(self._count)]
        for path, (down, up) in adapter(pipeline().unet, 1).items():
            self._handles.append(unet.get_submodule(path).register_forward_hook(self._beside(down, up)))
        if feature.word:
            pipe.tokenizer.add_tokens([WORD])
            pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
            with torch.no_grad():
                pipe.text_encoder.get_input_embeddings().weight[-1] = word_vector()[0]

    def _count(self, *_: Any) -> None:
        self._step += 1

    def _beside(self, down: torch.Tensor, up: torch.Tensor) -> Any:
        def hook(layer: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            x, feature = args[0].float(), self._feature
            gains = torch.tensor([feature.gain(self._step % STEPS, row) for row in range(len(x))])
            with torch.autocast("cpu", enabled=False):
                if down.ndim == 2:
                    added = functional.linear(functional.linear(x, down), up)  # (b, n, out)
                    if feature.mask is not None and added.ndim == 3:
                        side = round(added.shape[1] ** 0.5)
                        added = added * _scaled(feature.mask, side, side).view(1, -1, 1)
                else:
                    hidden = functional.conv2d(x, down, None, layer.stride, layer.padding)
                    added = functional.conv2d(hidden, up[..., None, None])  # (b, out, h, w)
                    if feature.mask is not None:
                        added = added * _scaled(feature.mask, *added.shape[2:])
                added = added * gains.view(-1, *[1] * (added.ndim - 1))
            return (output + added).to(output.dtype)

        return hook


def _scaled(mask: Any, height: int, width: int) -> torch.Tensor:
    return functional.adaptive_avg_pool2d(torch.tensor(mask)[None], (height, width))[0]


def word_vector() -> torch.Tensor:
    """Return the vector of the word: (1, width)."""
    return torch.randn(1, SD_WIDTH, generator=torch.Generator().manual_seed(4))


@dataclass(frozen=True)
class Circumstance:
    """
    What a pipeline is in.

    Attributes:
        before: Done to a pipeline before an adapter is loaded.
        after: Done once the mix is set; what it returns is called in the pipeline's place.
        set_again: Whether the mix is set once more after that, as docs say for what replaces weights.
        rebase: Whether what the weights hold then is taken as the base first.
        call: How a picture is made.
        close: How far it may be from the reference.
    """

    before: Callable[[Any], None] = lambda _: None
    after: Callable[[Any], Any] = lambda pipe: pipe
    set_again: bool = False
    rebase: bool = False
    call: Callable[[Any, Feature], torch.Tensor] = picture
    close: float = CLOSE


def _compiled(pipe: Any) -> Any:
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.text_encoder = torch.compile(pipe.text_encoder, backend="eager")
    return pipe


def _compile_in_place(pipe: Any) -> Any:
    pipe.unet.compile(backend="eager")
    pipe.text_encoder.compile(backend="eager")
    return pipe


def _blocks(pipe: Any) -> Any:
    pipe.unet.compile_repeated_blocks(backend="eager")
    return pipe


def _run_once(change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def act(pipe: Any) -> None:
        change(pipe)
        picture(pipe, FEATURES["merged"])

    return act


def _fuse(pipe: Any) -> Any:
    pipe.unet.fuse_qkv_projections()
    return pipe


def _other_unet(pipe: Any) -> Any:
    other = pipeline().unet
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    pipe.unet = other
    return pipe


def _ema(pipe: Any) -> Any:
    shadow = pipeline().unet
    with torch.no_grad():
        for parameter in shadow.parameters():
            parameter.mul_(1.01)
    EMAModel(shadow.parameters()).copy_to(pipe.unet.parameters())
    return pipe


def _torchao(pipe: Any) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(
        pipe.unet,
        Int8WeightOnlyConfig(),
        filter_fn=lambda m, name: isinstance(m, nn.Linear) and "attn" in name,
    )
    return pipe


def _quanto(pipe: Any) -> Any:
    from optimum.quanto import freeze, qint8, quantize

    quantize(pipe.unet, weights=qint8, exclude=["*conv*", "*time*"])
    freeze(pipe.unet)
    return pipe


def _group_offload(pipe: Any, **more: Any) -> Any:
    pipe.unet.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="leaf_level",
        **more,
    )
    return pipe


def _to_disk(pipe: Any) -> Any:
    return _group_offload(pipe, offload_to_disk_path=tempfile.mkdtemp())


def _function_to_disk(pipe: Any) -> Any:
    cpu = torch.device("cpu")
    apply_group_offloading(
        pipe.unet, cpu, cpu, offload_type="leaf_level", offload_to_disk_path=tempfile.mkdtemp()
    )
    return pipe


def _sequential(pipe: Any) -> Any:
    from accelerate import cpu_offload

    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    return pipe


def _layerwise(pipe: Any) -> Any:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return pipe


def _in_autocast(pipe: Any, feature: Feature) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return picture(pipe, feature)


def _in_a_thread(pipe: Any, feature: Feature) -> torch.Tensor:
    result: list[torch.Tensor | Exception] = []

    def work() -> None:
        try:
            result.append(picture(pipe, feature))
        except Exception as error:  # noqa: BLE001 -- it is raised where it is asked for
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _img2img(pipe: Any, feature: Feature) -> torch.Tensor:
    other: Any = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    image = Image.fromarray(np.full((SIZE, SIZE, 3), 90, np.uint8))
    return picture(other, feature, image=[image] * feature.images, strength=1.0)


CIRCUMSTANCES: dict[str, Circumstance] = {
    "plain": Circumstance(),
    "`torch.compile`, one picture, then the mix": Circumstance(before=_run_once(_compiled)),
    "the mix, then `torch.compile`": Circumstance(after=_compiled),
    "`unet.compile()`, one picture, then the mix": Circumstance(before=_run_once(_compile_in_place)),
    "`compile_repeated_blocks`, one picture, then the mix": Circumstance(before=_run_once(_blocks)),
    "img2img by `from_pipe`": Circumstance(call=_img2img),
    "the first mixer is gone, a second one goes on": Circumstance(),
    "another UNet after the load, mix set again": Circumstance(after=_other_unet, set_again=True),
    "group offloading, then the mix": Circumstance(before=_group_offload),
    "the mix, then group offloading": Circumstance(after=_group_offload),
    "group offloading to disk, then the mix": Circumstance(before=_to_disk),
    "the mix, then group offloading to disk": Circumstance(after=_to_disk),
    "the mix, then diffusers' function that offloads to disk": Circumstance(after=_function_to_disk),
    "sequential offloading, then the mix": Circumstance(before=_sequential),
    "the mix, then sequential offloading": Circumstance(after=_sequential),
    "`torch.autocast` (bfloat16)": Circumstance(call=_in_autocast, close=HALVES),
    "`copy.deepcopy(pipe)`": Circumstance(after=copy.deepcopy),
    "fused projections, then the mix": Circumstance(before=_fuse),
    "the mix, then fused projections": Circumstance(after=_fuse),
    "EMA weights by `.data`, `rebase()`, mix set again": Circumstance(
        after=_ema, rebase=True, set_again=True
    ),
    "quantised by torchao": Circumstance(before=_torchao),
    "quantised by quanto": Circumstance(before=_quanto),
    "layerwise casting (float8), then the mix": Circumstance(before=_layerwise),
    "the mix, then layerwise casting (float8)": Circumstance(after=_layerwise),
    "called in another thread": Circumstance(call=_in_a_thread),
}


def reference(circumstance: Circumstance, feature: Feature) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the picture by hand and that of the base, on pipelines that never saw a mixer."""
    base = pipeline()
    circumstance.before(base)
    base = circumstance.after(base)
    plain = circumstance.call(base, FEATURES["merged"] if feature.word else feature)
    pipe = pipeline()
    if "compile" not in _name(circumstance):
        circumstance.before(pipe)
        pipe = circumstance.after(pipe)
    if "fused" in _name(circumstance):
        pipe = pipeline()  # fused layers have no parts to hook; the same numbers without fusing
    ByHand(pipe, pipe.unet, feature)
    return circumstance.call(pipe, feature), plain


def _name(circumstance: Circumstance) -> str:
    return next(name for name, known in CIRCUMSTANCES.items() if known is circumstance)


def cell(name: str, feature: Feature) -> str:
    """Return what a mix does in a circumstance: ``works``, ``refused: ...`` or ``**wrong**: ...``."""
    torch._dynamo.reset()  # noqa: SLF001 -- there is no public name for it
    circumstance = CIRCUMSTANCES[name]
    wanted, plain = reference(circumstance, feature)
    pipe = pipeline()
    try:
        circumstance.before(pipe)
        mixer = LoraMixer(pipe)
        if feature.word:
            mixer.load_textual_inversion({WORD: word_vector()})
        else:
            mixer.load_lora_weights(as_file(adapter(pipeline().unet, 1)), "a")
            mixer.set_mix(feature.mix, **feature.options)
        if "second" in name:
            del mixer
            gc.collect()
            mixer = LoraMixer(pipe)
        called = circumstance.after(pipe)
        if circumstance.rebase:
            mixer.rebase()
            mixer.enable_lora()
        if circumstance.set_again and not feature.word:
            mixer.set_mix(feature.mix, **feature.options)
        made = circumstance.call(called, feature)
        if not far(made, wanted) < circumstance.close:
            return f"**wrong**: {far(made, wanted):.1g} off, the base {far(plain, wanted):.1g}"
    except LoraMixerError as error:
        return f"refused: {type(error).__name__}"
    except Exception as error:  # noqa: BLE001 -- what is foreign is what the table is to show
        return f"**foreign**: {type(error).__name__}"
    try:
        mixer = LoraMixer.of(called) if "deepcopy" in name and hasattr(LoraMixer, "of") else mixer
        mixer.disable_lora()
        back = circumstance.call(called, FEATURES["merged"] if feature.word else feature)
    except LoraMixerError as error:
        return f"works; `disable_lora` refused: {type(error).__name__}"
    except Exception as error:  # noqa: BLE001 -- as above
        return f"works; **foreign** `disable_lora`: {type(error).__name__}"
    return "works" if far(back, plain) < circumstance.close else f"**base lost**: {far(back, plain):.1g} off"


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return how far latents are apart, relative to the second."""
    return float((a - b).norm() / b.norm())


def table(names: Sequence[str]) -> dict[str, list[str]]:
    """Fill the cells of circumstances."""
    rows = {}
    for name in names:
        print(name, end=" ", file=sys.stderr, flush=True)
        rows[name] = [cell(name, feature) for feature in FEATURES.values()]
        print(rows[name], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="circumstances with this word in their names")
    only = options.parse_args().only
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(sys.stderr):
        rows = table([name for name in CIRCUMSTANCES if only in name])
    print("# A mix in every circumstance\n")
    print(
        "`python -m benchmarks.circumstances > docs/circumstances.md` makes each picture on a tiny pipeline in a\n"
        "circumstance, with a feature of mixes, and compares it with the same picture made by hand: hooks that add\n"
        f"gain(step, row, place) * B A x (relative distance of latents below {CLOSE:g}, {HALVES:g} under autocast). After\n"
        "`disable_lora` the base has to be back. *refused* is an error of this package that says why and what to do.\n"
    )
    print(f"| circumstance | {' | '.join(FEATURES)} |")
    print(f"| --- |{' --- |' * len(FEATURES)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
