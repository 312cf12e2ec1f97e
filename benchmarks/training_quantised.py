"""
A Trainer on a base in 8 and 4 bits, beside PEFT's: time, memory, what is saved, and whether the base is what it was.

Run ``python -m benchmarks.training_quantised`` (needs one GPU and bitsandbytes; exits 1 when a check fails), or ``--size tiny --device
cpu``; ``--backend quanto`` or ``--backend torchao`` (8 bits only: its 4-bit products have no backward pass) where bitsandbytes is not
there. The configuration of OPT-350m with random weights, one epoch of random tokens with accumulation and gradient checkpointing.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from lora_mixer import LoraMixer
from lora_mixer.training import adapter_trainer

SIZES: dict[str, dict[str, Any]] = {
    "opt-350m": {
        "vocab_size": 50272,
        "hidden_size": 1024,
        "word_embed_proj_dim": 512,
        "ffn_dim": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "do_layer_norm_before": False,
    },
    "tiny": {
        "vocab_size": 211,
        "hidden_size": 128,
        "word_embed_proj_dim": 64,
        "ffn_dim": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "do_layer_norm_before": False,
    },
}
_MOST = 16 * 2**20
_CLOSE = 1.1  # losses of two runs in few bits, which round on the way


def plain(tensor: Any) -> list[torch.Tensor]:
    """Return the plain tensors that a packed one is made of, or itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in plain(getattr(tensor, name))]


def digest(model: Any) -> str:
    """Return a hash of every tensor of a model's own."""
    found = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if "lora" not in name and tensor.device.type != "meta":
            for part in plain(tensor.detach()):
                found.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _of_bitsandbytes(bits: int, dtype: torch.dtype) -> Any:
    settings: dict[str, Any] = {f"load_in_{bits}bit": True}
    if bits == 4:
        settings["bnb_4bit_compute_dtype"] = dtype
    return transformers.BitsAndBytesConfig(**settings)


def _of_quanto(bits: int, _dtype: torch.dtype) -> Any:
    return transformers.QuantoConfig(weights=f"int{bits}")


def _of_torchao(_bits: int, _dtype: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())


BACKENDS = {
    "bitsandbytes": (_of_bitsandbytes, (8, 4)),
    "quanto": (_of_quanto, (8, 4)),
    "torchao": (_of_torchao, (8,)),
}
"""What packs weights: its configuration, and the bits in which it can be trained through."""


def loaded(folder: Path, bits: int, options: argparse.Namespace) -> Any:
    """Load the base in few bits."""
    dtype = torch.float16 if options.device == "cuda" else torch.float32
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=BACKENDS[options.backend][0](bits, dtype),
        device_map={"": 0 if options.device == "cuda" else "cpu"},
        dtype=dtype,
    )


def epoch(side: str, folder: Path, out: Path, bits: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one epoch on one side, and say what it took."""
    model = loaded(folder, bits, options)
    ids = torch.randint(2, 200, (options.rows, options.length), generator=torch.Generator().manual_seed(1))
    model(input_ids=ids[:1].to(model.device))  # which packs 4-bit weights anew, on a CPU
    before = digest(model)
    config = peft.LoraConfig(r=16, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(7)
    mixer = None
    if side == "PEFT":
        model = peft.get_peft_model(peft.prepare_model_for_kbit_training(model), config)
        kind = transformers.Trainer
    else:
        mixer = LoraMixer(model)
        mixer.add_adapter(config, "mine")
        kind = adapter_trainer(transformers.Trainer)
    arguments = transformers.TrainingArguments(
        output_dir=str(out),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
        learning_rate=2e-4,
        logging_steps=1,
        save_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        use_cpu=options.device == "cpu",
        seed=3,
        fp16=options.device == "cuda",
    )
    trainer = kind(
        model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids]
    )
    if options.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    trainer.train()
    if options.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
    checkpoint = max(out.glob("checkpoint-*"))
    found = {
        "seconds": seconds,
        "peak": peak,
        "adapter": (checkpoint / "adapter_model.safetensors").stat().st_size,
        "models": [path.name for path in checkpoint.glob("model*")],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "same": None,
    }
    if mixer is not None:
        mixer.unload_lora_weights()
        found["same"] = digest(model) == before
    del trainer, model, mixer
    gc.collect()
    if options.device == "cuda":
        torch.cuda.empty_cache()
    return found


def main() -> int:
    """Run both sides in 8 and 4 bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="opt-350m")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", choices=BACKENDS, default="bitsandbytes")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    problems = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "base"
        torch.manual_seed(0)
        base = transformers.OPTForCausalLM(
            transformers.OPTConfig(
                **SIZES[options.size],
                max_position_embeddings=max(256, options.length),
                dropout=0.0,
                attention_dropout=0.0,
            )
        )
        base.half().save_pretrained(folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(
            f"{options.size}, {options.backend}: base of {size / 2**20:.1f} MiB, {options.rows} rows of {options.length} tokens",
            flush=True,
        )
        for bits in BACKENDS[options.backend][1]:
            found = {
                side: epoch(side, folder, Path(scratch) / f"{side}{bits}", bits, options)
                for side in ("PEFT", "lora_mixer")
            }
            for side, row in found.items():
                print(
                    f"  {bits} bits, {side:11} {row['seconds']:7.1f} s  peak {row['peak'] / 2**20:8.1f} MiB  adapter "
                    f"{row['adapter'] / 2**20:5.2f} MiB  loss {row['losses'][0]:.4f} -> {row['losses'][-1]:.4f}",
                    flush=True,
                )
            ours, theirs = found["lora_mixer"], found["PEFT"]
            print(f"  {bits} bits: {ours['seconds'] / theirs['seconds']:.3f} of PEFT's time", flush=True)
            if options.device == "cuda":
                print(f"  {bits} bits: {ours['peak'] / theirs['peak']:.3f} of PEFT's memory", flush=True)
            if not ours["same"]:
                problems.append(f"{bits} bits: the base is not what it was")
            if ours["models"] or ours["adapter"] > min(_MOST, size):
                problems.append(f"{bits} bits: a checkpoint holds more than the adapter: {ours['models']}")
            if not 1 / _CLOSE < ours["losses"][-1] / theirs["losses"][-1] < _CLOSE:
                problems.append(f"{bits} bits: losses part")
    print("\n".join(problems) or "the base is what it was, bit for bit")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
