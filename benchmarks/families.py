"""
Adapters of transformers at full size: load, switch, disable and step, in the original code's names and in diffusers'.

``python -m benchmarks.families`` runs Flux.1 and Wan 14B on a GPU (72 and 84 GB; ``--layers N`` for less), prints what it
measured and exits 1 when a target is missed or a weight is wrong. ``--size tiny-flux tiny-wan`` runs on any CPU. Weights are
random, layers have their full shapes, and both spellings hold the same changes: fused layers in one, parts in the other.

Targets: a load takes at most 1.3 times a plain read of its file onto the device, a switch in the original's names at most 1.5
times one in diffusers', a step under a mix as long as one of the base.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from safetensors.torch import load_file, save_file

from benchmarks.mixing import Clock, step_ratio
from benchmarks.models import _filled
from lora_mixer import LoraMixer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

LOAD, SWITCH, STEP = 1.3, 1.5, 1.03
ADAPTERS = 4
RANK = 16
MIXES = [0.7, -0.3, 0.5, 0.2], [-0.7, 0.3, 0.4, 0.1]

_FLUX_BLOCKS = {
    "double_blocks.{n}.img_attn.qkv": "transformer_blocks.{n}.attn.to_q .to_k .to_v",
    "double_blocks.{n}.txt_attn.qkv": "transformer_blocks.{n}.attn.add_q_proj .add_k_proj .add_v_proj",
    "double_blocks.{n}.img_attn.proj": "transformer_blocks.{n}.attn.to_out.0",
    "double_blocks.{n}.txt_attn.proj": "transformer_blocks.{n}.attn.to_add_out",
    "double_blocks.{n}.img_mlp.0": "transformer_blocks.{n}.ff.net.0.proj",
    "double_blocks.{n}.img_mlp.2": "transformer_blocks.{n}.ff.net.2",
    "double_blocks.{n}.txt_mlp.0": "transformer_blocks.{n}.ff_context.net.0.proj",
    "double_blocks.{n}.txt_mlp.2": "transformer_blocks.{n}.ff_context.net.2",
    "double_blocks.{n}.img_mod.lin": "transformer_blocks.{n}.norm1.linear",
    "double_blocks.{n}.txt_mod.lin": "transformer_blocks.{n}.norm1_context.linear",
    "single_blocks.{n}.linear1": "single_transformer_blocks.{n}.attn.to_q .to_k .to_v single_transformer_blocks.{n}.proj_mlp",
    "single_blocks.{n}.linear2": "single_transformer_blocks.{n}.proj_out",
    "single_blocks.{n}.modulation.lin": "single_transformer_blocks.{n}.norm.linear",
}
_WAN_BLOCKS = {
    "blocks.{n}.self_attn.q": "blocks.{n}.attn1.to_q",
    "blocks.{n}.self_attn.k": "blocks.{n}.attn1.to_k",
    "blocks.{n}.self_attn.v": "blocks.{n}.attn1.to_v",
    "blocks.{n}.self_attn.o": "blocks.{n}.attn1.to_out.0",
    "blocks.{n}.cross_attn.q": "blocks.{n}.attn2.to_q",
    "blocks.{n}.cross_attn.k": "blocks.{n}.attn2.to_k",
    "blocks.{n}.cross_attn.v": "blocks.{n}.attn2.to_v",
    "blocks.{n}.cross_attn.o": "blocks.{n}.attn2.to_out.0",
    "blocks.{n}.ffn.0": "blocks.{n}.ffn.net.0.proj",
    "blocks.{n}.ffn.2": "blocks.{n}.ffn.net.2",
}


@dataclass(frozen=True)
class Size:
    """
    A model to measure.

    Attributes:
        transformer: Its class and the arguments of it.
        pipeline: The pipeline's class.
        depths: The arguments that say how many blocks there are.
        blocks: The original's names of the layers, and the live modules that share their rows.
        inputs: The arguments of one call.
        kohya: Whether the original's names are written as Kohya does, else as ComfyUI does.
    """

    transformer: str
    config: Mapping[str, Any]
    pipeline: str
    depths: tuple[str, ...]
    blocks: Mapping[str, str]
    inputs: Callable[[Mapping[str, Any], str, torch.dtype], dict[str, Any]]
    kohya: bool


def _flux_inputs(config: Mapping[str, Any], device: str, dtype: torch.dtype) -> dict[str, Any]:
    side, text = (64, 512) if config["num_attention_heads"] > 8 else (4, 6)
    ids = torch.zeros(side * side, 3, device=device)
    ids[:, 1], ids[:, 2] = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    made = {
        "hidden_states": torch.randn(1, side * side, config["in_channels"]),
        "encoder_hidden_states": torch.randn(1, text, config["joint_attention_dim"]),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"]),
        "timestep": torch.tensor([0.5]),
        "guidance": torch.tensor([3.5]),
    }
    found: dict[str, Any] = {key: tensor.to(device, dtype) for key, tensor in made.items()}
    return {**found, "img_ids": ids, "txt_ids": torch.zeros(text, 3, device=device), "return_dict": False}


def _wan_inputs(config: Mapping[str, Any], device: str, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width, text = (5, 60, 104, 512) if config["num_attention_heads"] > 8 else (2, 4, 4, 6)
    return {
        "hidden_states": torch.randn(1, config["in_channels"], frames, height, width).to(device, dtype),
        "timestep": torch.tensor([500], device=device),
        "encoder_hidden_states": torch.randn(1, text, config["text_dim"]).to(device, dtype),
        "return_dict": False,
    }


_FLUX = {
    "num_layers": 19,
    "num_single_layers": 38,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
_WAN = {
    "num_layers": 40,
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
}
_SMALL_FLUX = _FLUX | {
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": (4, 6, 6),
    "joint_attention_dim": 20,
    "pooled_projection_dim": 12,
}
_SMALL_WAN = _WAN | {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 40,
    "text_dim": 20,
}
_DEPTHS = ("num_layers", "num_single_layers")
SIZES = {
    "flux": Size(
        "FluxTransformer2DModel", _FLUX, "FluxPipeline", _DEPTHS, _FLUX_BLOCKS, _flux_inputs, kohya=True
    ),
    "wan": Size(
        "WanTransformer3DModel", _WAN, "WanPipeline", _DEPTHS[:1], _WAN_BLOCKS, _wan_inputs, kohya=False
    ),
}
SIZES["tiny-flux"] = Size(**vars(SIZES["flux"]) | {"config": _SMALL_FLUX})
SIZES["tiny-wan"] = Size(**vars(SIZES["wan"]) | {"config": _SMALL_WAN})


def pipeline(size: Size, config: Mapping[str, Any], device: str, dtype: torch.dtype) -> Any:
    """Make the pipeline with a random transformer and nothing else."""
    torch.manual_seed(0)
    transformer = _filled(lambda: getattr(diffusers, size.transformer)(**config), device, dtype)
    rope = getattr(transformer, "rope", None)
    if rope is not None and [*rope.buffers()]:  # tables that are worked out, not drawn
        fresh = getattr(diffusers, size.transformer)(**config | dict.fromkeys(size.depths, 1)).rope
        for name, tensor in fresh.named_buffers():
            setattr(rope, name, tensor.to(device))
    parts: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    if "Flux" in size.pipeline:
        parts |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return getattr(diffusers, size.pipeline)(transformer=transformer, scheduler=scheduler, **parts)


def layers(
    size: Size, transformer: torch.nn.Module
) -> Iterator[tuple[str, list[tuple[str, torch.nn.Module]]]]:
    """Give every layer in the original's names, and the live modules that it is."""
    live = dict(transformer.named_modules())
    for original, meant in size.blocks.items():
        first, *others = meant.split()
        parent = first.rpartition(".")[0]
        names = [first, *(parent + name if name.startswith(".") else name for name in others)]
        number = 0
        while names[0].format(n=number) in live:
            paths = [name.format(n=number) for name in names]
            yield original.format(n=number), [(path, live[path]) for path in paths]
            number += 1


def write(
    size: Size, transformer: torch.nn.Module, folder: Path, seed: int, dtype: torch.dtype
) -> tuple[Path, Path]:
    """Write the same changes in the original's names and in diffusers'."""
    device = next(transformer.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    original: dict[str, torch.Tensor] = {}
    ours: dict[str, torch.Tensor] = {}
    for name, modules in layers(size, transformer):
        heights = [int(module.weight.shape[0]) for _, module in modules]  # type: ignore[union-attr, arg-type]
        width = int(modules[0][1].weight.shape[1])  # type: ignore[union-attr, arg-type]
        down = (torch.randn(RANK, width, device=device, generator=generator) / width**0.5).to(dtype).cpu()
        up = (torch.randn(sum(heights), RANK, device=device, generator=generator) * 0.01).to(dtype).cpu()
        if size.kohya:
            key = f"lora_unet_{name.replace('.', '_')}"
            original[f"{key}.lora_down.weight"], original[f"{key}.lora_up.weight"] = down, up
            original[f"{key}.alpha"] = torch.tensor(float(RANK))
        else:
            key = f"diffusion_model.{name}"
            original[f"{key}.lora_A.weight"], original[f"{key}.lora_B.weight"] = down, up
        for (path, _), rows in zip(modules, up.split(heights), strict=True):
            ours[f"transformer.{path}.lora_A.weight"] = down.clone()
            ours[f"transformer.{path}.lora_B.weight"] = rows.clone()
    paths = folder / f"original{seed}.safetensors", folder / f"diffusers{seed}.safetensors"
    save_file(original, paths[0])
    save_file(ours, paths[1])
    return paths


def state(module: torch.nn.Module) -> list[torch.Tensor]:
    """List all parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def changed(tensors: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> int:
    """Count the tensors that are not equal to the byte."""
    return sum(not torch.equal(one, other) for one, other in zip(tensors, others, strict=True))


def exactness(size: Size, transformer: torch.nn.Module, path: Path, base: Sequence[torch.Tensor]) -> float:
    """Give the largest relative distance of a few layers from base + up @ down in fp64; the file is in the original's names."""
    table = load_file(path)
    kept = {id(live): before for live, before in zip(state(transformer), base, strict=True)}
    known = list(layers(size, transformer))
    worst = 0.0
    for name, modules in known[:: max(1, len(known) // 12)]:
        key = f"lora_unet_{name.replace('.', '_')}" if size.kohya else f"diffusion_model.{name}"
        ends = ("lora_up", "lora_down") if size.kohya else ("lora_B", "lora_A")
        up, down = (table[f"{key}.{end}.weight"].double() for end in ends)
        start = 0
        for _, module in modules:
            live: Any = module.weight
            change = (up[start : start + live.shape[0]] @ down).to(live.device)
            wanted = kept[id(live)].double() + change
            worst = max(worst, float((live.double() - wanted).norm() / wanted.norm()))
            start += live.shape[0]
    return worst


def measure(
    name: str, device: str, dtype: torch.dtype, repeats: int, depth: int | None, *, peer: bool
) -> dict[str, Any]:
    """Run everything once for a size and give the table."""
    size = SIZES[name]
    config = {**size.config, **({key: min(depth, size.config[key]) for key in size.depths} if depth else {})}
    clock = Clock(device, repeats)
    pipe = pipeline(size, config, device, dtype)
    inputs = size.inputs(config, device, dtype)
    out: dict[str, Any] = {"parameters": sum(p.numel() for p in pipe.transformer.parameters())}

    @torch.no_grad()
    def step() -> None:
        pipe.transformer(**inputs)

    with tempfile.TemporaryDirectory() as folder:
        pairs = [write(size, pipe.transformer, Path(folder), seed, dtype) for seed in range(ADAPTERS)]
        by_spelling = {"original": [one for one, _ in pairs], "diffusers": [other for _, other in pairs]}
        base = [tensor.clone() for tensor in state(pipe.transformer)]
        out["base step s"] = clock.median(step, warm=2)
        mixed: dict[str, list[torch.Tensor]] = {}
        mixer = LoraMixer(pipe)
        for spelling, paths in by_spelling.items():
            out[f"{spelling}: file MB"] = paths[0].stat().st_size / 1e6
            out[f"{spelling}: plain read s"] = clock.median(lambda p=paths[0]: load_file(p, device=device))  # type: ignore[misc]
            names = [path.stem for path in paths]
            loads = []
            for path, one in zip(paths, names, strict=True):
                loads.append(clock.once(lambda p=path, n=one: mixer.load_lora_weights(p, n)))  # type: ignore[misc]
            out[f"{spelling}: very first load s"] = loads[0]
            out[f"{spelling}: load s"] = statistics.median(loads[1:])
            out[f"{spelling}: load, x plain read"] = (
                out[f"{spelling}: load s"] / out[f"{spelling}: plain read s"]
            )
            turn = iter(range(10**9))
            out[f"{spelling}: switch of one s"] = clock.median(
                lambda n=names, t=turn: mixer.set_adapters(n[next(t) % ADAPTERS]),
                warm=ADAPTERS,  # type: ignore[misc]
            )
            out[f"{spelling}: switch of a mix of {ADAPTERS} s"] = clock.median(
                lambda n=names, t=turn: mixer.set_adapters(n, MIXES[next(t) % 2])  # type: ignore[misc]
            )
            out[f"{spelling}: step under a mix, x base"] = step_ratio(clock, mixer, step)
            mixer.set_adapters(names[0])
            mixed[spelling] = [tensor.clone() for tensor in state(pipe.transformer)]
            out[f"{spelling}: distance from fp64"] = exactness(
                size, pipe.transformer, by_spelling["original"][0], base
            )
            out[f"{spelling}: disable s"] = clock.once(mixer.disable_lora)
            out[f"{spelling}: tensors not back to the byte"] = changed(state(pipe.transformer), base)
            mixer.unload_lora_weights()
            if len(mixed) == 2:
                out["tensors that differ between the spellings"] = changed(*mixed.values())
        out["switch of one, x diffusers' names"] = (
            out["original: switch of one s"] / out["diffusers: switch of one s"]
        )
        four = f"switch of a mix of {ADAPTERS} s"
        out[f"{four[:-2]}, x diffusers' names"] = out[f"original: {four}"] / out[f"diffusers: {four}"]
        mixed.clear()
        if device == "cuda":
            out["peak GPU GB"] = torch.cuda.max_memory_allocated() / 1e9
        if peer:
            for spelling, paths in by_spelling.items():
                out |= measure_peer(pipe, clock, spelling, paths, step, base)
    return out


def measure_peer(
    pipe: Any,
    clock: Clock,
    spelling: str,
    paths: Sequence[Path],
    step: Callable[[], None],
    base: Sequence[torch.Tensor],
) -> dict[str, Any]:
    """Run the same on diffusers + PEFT, on the same pipeline."""
    out: dict[str, Any] = {}
    front = f"diffusers + PEFT, {spelling}"
    try:
        pipe.load_lora_weights(str(paths[0]), adapter_name="first")
    except Exception as error:  # noqa: BLE001 -- its converters hold the sizes of full models; a refusal is a result
        return {f"{front}: load s": f"refused, {type(error).__name__}"}
    pipe.unload_lora_weights()
    names = [path.stem for path in paths]
    plain = clock.median(step)
    loads = []
    for path, one in zip(paths, names, strict=True):
        loads.append(clock.once(lambda p=path, n=one: pipe.load_lora_weights(str(p), adapter_name=n)))  # type: ignore[misc]
    out[f"{front}: load s"] = statistics.median(loads[1:])
    turn = iter(range(10**9))
    out[f"{front}: switch of one s"] = clock.median(lambda: pipe.set_adapters(names[next(turn) % len(names)]))
    out[f"{front}: step under one, x base"] = clock.median(step) / plain
    pipe.set_adapters(names, MIXES[0])
    out[f"{front}: step under a mix of {len(names)}, x base"] = clock.median(step) / plain
    out[f"{front}: fuse s"] = clock.once(pipe.fuse_lora)
    out[f"{front}: unfuse s"] = clock.once(pipe.unfuse_lora)
    pipe.unload_lora_weights()
    out[f"{front}: tensors not back to the byte"] = changed(state(pipe.transformer), base)
    for live, before in zip(state(pipe.transformer), base, strict=True):
        live.data.copy_(before)
    return out


def verdict(table: Mapping[str, Any], *, cuda: bool) -> list[str]:
    """List what is wrong, and on a GPU what misses its target."""
    rounding = 2**-8 if cuda else 1e-6
    missed = [
        f"{key}: {value}"
        for key, value in table.items()
        if "PEFT" not in key and _is_wrong(key, value, rounding)
    ]
    if cuda:
        for key, value in table.items():
            limit = next((most for end, most in _TARGETS.items() if key.endswith(end)), None)
            if limit is not None and value > limit and "PEFT" not in key:
                missed.append(f"{key}: {value:.2f}, at most {limit}")
    return missed


_TARGETS = {"x plain read": LOAD, "x diffusers' names": SWITCH, "step under a mix, x base": STEP}


def _is_wrong(key: str, value: Any, rounding: float) -> bool:
    if "not back" in key or "that differ" in key:
        return bool(value)
    return "from fp64" in key and not value < rounding


def main() -> int:
    """Read the command line, measure, print tables and, if asked, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--size", nargs="+", choices=tuple(SIZES), default=["flux", "wan"])
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=None)
    parser.add_argument("--layers", type=int, default=None, help="blocks of each kind at most; default: all")
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--no-peer", action="store_true", help="leave diffusers + PEFT out")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    cuda = options.device == "cuda"
    dtype = getattr(torch, options.dtype or ("bfloat16" if cuda else "float32"))
    hardware = torch.cuda.get_device_name() if cuda else f"{platform.processor() or platform.machine()} CPU"
    print(f"{dtype}, {hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    tables, missed = {}, []
    for name in options.size:
        table = measure(
            name,
            options.device,
            dtype,
            options.repeats or (9 if cuda else 3),
            options.layers,
            peer=not options.no_peer,
        )
        tables[name] = table
        print(name, flush=True)
        for key, value in table.items():
            print(f"  {key:<62} {value if isinstance(value, str) else format(value, '.4g')}", flush=True)
        missed += [f"{name}: {what}" for what in verdict(table, cuda=cuda)]
        if cuda:
            torch.cuda.empty_cache()
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1))
    print("\n".join(["missed:", *missed]) if missed else "all targets met")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
