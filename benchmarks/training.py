"""
A training step beside PEFT's: time and memory, eager and as a captured graph, DoRA, and several adapters in one batch.

Run ``python -m benchmarks.training --model sd15 --device cuda`` (``sd15``, ``sdxl``, ``llama-1b``; exits 1 when a goal is missed or a
check fails), or ``--model tiny --device cpu --steps 3``, where all runs but the capture. Random weights, rank 16, fp16 autocast over a base in fp16 (bf16 on a CPU), batch of 4,
AdamW. Both sides live in one process and are timed turn by turn, medians of ``--steps``; the base's own forward and backward,
of which nothing is trained, stands beside them. Memory is what a step takes above what lies there before it.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from diffusers import UNet2DConditionModel

from benchmarks.mixing import Clock
from benchmarks.models import UNETS, _filled, step_inputs
from lora_mixer import LoraMixer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RANK = 16
GOALS = {"time": 0.85, "memory": 1.0, "captured": 0.6, "dora": 1.25, "rows": 1.3}
_CLOSE = 2e-2  # a loss in half precision, computed twice
_ATTENTION = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "lm": ["q_proj", "k_proj", "v_proj", "o_proj"]}
_MORE = {
    "unet": ["conv1", "conv2", "conv_shortcut", "conv"],
    "lm": ["gate_proj", "up_proj", "down_proj"],
}
LANGUAGE: dict[str, dict[str, Any]] = {
    "llama-1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "tiny-lm": {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


@dataclass
class Side:
    """
    One way to train: a model, what is trained of it, and its optimizer.

    Attributes:
        name: In the table.
        model: The model.
        parameters: What is trained; nothing for the base.
        run: One step.
    """

    name: str
    model: Any
    parameters: list[torch.nn.Parameter]
    run: Callable[[], torch.Tensor]

    def free(self) -> None:
        """Let gradients go."""
        for parameter in self.parameters:
            parameter.grad = None


class Bench:
    """Makes sides of one size on one device."""

    def __init__(self, model: str, device: str, batch: int, length: int, targets: str) -> None:
        """Take what is asked for."""
        self.size, self.device, self.batch, self.length = model, device, batch, length
        self.kind = "lm" if model in LANGUAGE else "unet"
        self.dtype = torch.float16 if device == "cuda" else torch.bfloat16
        self.targets = _ATTENTION[self.kind] + (_MORE[self.kind] if targets == "all" else [])
        torch.manual_seed(1)
        if self.kind == "lm":
            vocabulary = LANGUAGE[model]["vocab_size"]
            self.inputs: dict[str, Any] = {
                "input_ids": torch.randint(0, vocabulary, (batch, length), device=device)
            }
        else:
            self.inputs = step_inputs(model, batch, device, self.dtype)
            self.target = torch.randn_like(self.inputs["sample"])

    def base(self) -> Any:
        """Build the model; every call gives weights of the same kind."""
        torch.manual_seed(0)
        if self.kind == "unet":
            return _filled(lambda: UNet2DConditionModel(**UNETS[self.size]), self.device, self.dtype)
        config = transformers.LlamaConfig(**LANGUAGE[self.size], max_position_embeddings=max(64, self.length))
        with torch.device(self.device):
            return (
                transformers.LlamaForCausalLM(config)
                .to(self.dtype)
                .eval()
                .requires_grad_(requires_grad=False)
            )

    def loss(self, model: Any, *, cached: bool = True, through: bool = False) -> torch.Tensor:
        """
        Return the loss of one batch.

        Args:
            model: The model.
            cached: Whether autocast may keep what it casts, which graphs cannot.
            through: Whether gradients are to reach the inputs, as where nothing is trained.
        """
        inputs = dict(self.inputs)
        if through and self.kind == "unet":
            inputs["sample"] = inputs["sample"].detach().requires_grad_()
        elif through:
            table = model.get_input_embeddings()
            inputs = {"inputs_embeds": table(inputs["input_ids"]).detach().requires_grad_()}
        with torch.autocast(self.device, self.dtype, cache_enabled=cached):
            if self.kind == "unet":
                out = model(**inputs)[0]
                return torch.nn.functional.mse_loss(out.float(), self.target.float())
            found: torch.Tensor = model(**inputs, labels=self.inputs["input_ids"]).loss
            return found

    def side(
        self, name: str, model: Any, parameters: list[torch.nn.Parameter], *, capturable: bool = False
    ) -> Side:
        """Make a side of a model on which the parameters are trained."""
        optimizer = (
            torch.optim.AdamW(parameters, lr=1e-4, fused=True, capturable=capturable) if parameters else None
        )

        def run() -> torch.Tensor:
            # fp16 gradients are kept from 0 by a number that Adam does not see
            loss = self.loss(model, cached=not capturable, through=optimizer is None)
            (loss * 1024).backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
            return loss.detach()

        return Side(name, model, parameters, run)

    def config(self, *, dora: bool) -> peft.LoraConfig:
        """Return what both sides train."""
        return peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=self.targets, use_dora=dora)

    def theirs(self, *, dora: bool) -> Side:
        """Make PEFT's side, with its parameters in fp32 as their scripts have them."""
        model = self.base()
        if self.kind == "unet":
            model.add_adapter(self.config(dora=dora))
        else:
            model = peft.get_peft_model(model, self.config(dora=dora))
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        return self.side("PEFT", model, parameters)

    def ours(self, *, dora: bool, adapters: int = 1, capturable: bool = False) -> Side:
        """Make this package's side; several adapters have a row of the batch each."""
        model = self.base()
        mixer = LoraMixer(model)
        names = [f"a{number}" for number in range(adapters)]
        for name in names:
            mixer.add_adapter(self.config(dora=dora), name)
        if adapters > 1:
            mixer.set_mix([{name: 1.0} for name in names], guidance_copies=1)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return self.side(
            "lora_mixer" if adapters == 1 else f"{adapters} adapters",
            model,
            parameters,
            capturable=capturable,
        )


def alternately(clock: Clock, sides: list[Side]) -> dict[str, float]:
    """Time sides turn by turn, so that drift hits all alike; median seconds."""
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for side in sides:
        for _ in range(3):
            side.run()
    for _ in range(clock.repeats):
        for side in sides:
            times[side.name].append(clock.once(side.run))
    return {name: statistics.median(values) for name, values in times.items()}


def memory(device: str, side: Side) -> int | None:
    """Return the bytes that a step takes above what lay there, or None without a GPU."""
    if device != "cuda":
        return None
    side.free()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    side.run()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def captured(bench: Bench, clock: Clock, side: Side) -> tuple[float, float]:
    """Capture a step as a graph; return its median seconds, and how far its loss is from an eager one of the same weights."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            side.run()
    torch.cuda.current_stream().wait_stream(stream)
    side.free()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = side.run()
    seconds = clock.median(graph.replay, warm=3)
    kept = [p.detach().clone() for p in side.parameters]
    graph.replay()
    moved = any(not torch.equal(p, old) for p, old in zip(side.parameters, kept, strict=True))
    with torch.no_grad():
        for parameter, old in zip(side.parameters, kept, strict=True):
            parameter.copy_(old)
        eager = bench.loss(side.model)
    off = float((loss - eager).abs() / eager.abs())
    return seconds, off if moved else float("inf")


def free(*sides: Side) -> None:
    """Let models go."""
    for side in sides:
        side.model = None
        side.parameters.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rows_of(bench: Bench, steps: int, parts: list[str]) -> Iterator[tuple[str, float, float]]:
    """Measure all; yield what, the figure and its goal."""
    clock = Clock(bench.device, steps)
    base_model = bench.base()
    base = bench.side("base", base_model, [])
    plain, theirs = bench.ours(dora=False), bench.theirs(dora=False)
    times = alternately(clock, [base, theirs, plain])
    for name, seconds in times.items():
        print(
            f"  {name:12} {1000 * seconds:9.2f} ms a step  {seconds / times['base']:6.3f} of the base",
            flush=True,
        )
    yield "time, of PEFT's", times["lora_mixer"] / times["PEFT"], GOALS["time"]
    taken = {side.name: memory(bench.device, side) for side in (base, theirs, plain)}
    if taken["PEFT"] is not None and taken["lora_mixer"] is not None:
        for name, size in taken.items():
            print(f"  {name:12} {(size or 0) / 2**20:9.1f} MiB a step", flush=True)
        yield "memory, of PEFT's", taken["lora_mixer"] / taken["PEFT"], GOALS["memory"]
    free(theirs)
    if "captured" in parts and bench.device == "cuda":
        side = bench.ours(dora=False, capturable=True)
        seconds, off = captured(bench, clock, side)
        print(
            f"  {'as a graph':12} {1000 * seconds:9.2f} ms a step; its loss is {off:.1e} off an eager one",
            flush=True,
        )
        yield "as a graph, of PEFT's eager time", seconds / times["PEFT"], GOALS["captured"]
        yield "a graph's loss is off by", off, _CLOSE
        free(side)
    if "dora" in parts:
        dora, peft_dora = bench.ours(dora=True), bench.theirs(dora=True)
        dora.name, peft_dora.name = "DoRA", "PEFT's DoRA"
        found = alternately(clock, [plain, dora, peft_dora])
        for name, seconds in found.items():
            print(f"  {name:12} {1000 * seconds:9.2f} ms a step", flush=True)
        print(f"  {peft_dora.name} is {found[peft_dora.name] / times['PEFT']:.3f} of PEFT's LoRA", flush=True)
        yield "DoRA, of LoRA's time", found["DoRA"] / found["lora_mixer"], GOALS["dora"]
        free(dora, peft_dora)
    if "rows" in parts:
        several = bench.ours(dora=False, adapters=bench.batch)
        found = alternately(clock, [plain, several])
        for name, seconds in found.items():
            print(f"  {name:12} {1000 * seconds:9.2f} ms a step", flush=True)
        yield (
            f"{bench.batch} adapters in one batch, of one's time",
            found[several.name] / found["lora_mixer"],
            GOALS["rows"],
        )
        free(several)
    free(base, plain)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=[*UNETS, *LANGUAGE], default="sd15")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="steps of which the median is taken")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row, for language models")
    parser.add_argument(
        "--targets",
        choices=["attention", "all"],
        default="attention",
        help="all: convolutions, or feed-forward layers, too",
    )
    parser.add_argument("--parts", default="captured,dora,rows", help="what is measured beside LoRA")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    bench = Bench(options.model, options.device, options.batch, options.length, options.targets)
    name = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU"
    print(
        f"{options.model}, {options.targets}, batch {options.batch}, {options.steps} steps, torch {torch.__version__}, peft {peft.__version__}, {name}",
        flush=True,
    )
    missed, table = [], {}
    for what, figure, goal in rows_of(bench, options.steps, options.parts.split(",")):
        table[what] = round(figure, 4)
        print(f"{what}: {figure:.3f} (goal {goal})", flush=True)
        if not figure <= goal:
            missed.append(what)
    print(json.dumps({"model": options.model, "targets": options.targets, **table}))
    if missed:
        print(f"missed: {'; '.join(missed)}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
