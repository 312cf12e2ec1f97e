"""Neighbours of the spellings that the references have: every ending, front, number format and mixture gives the same change."""

from __future__ import annotations

import functools
import itertools
import random

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import LoraMixer, LoraMixerError
from tests.transformers_data import Parts, distance, parts_of, reference

# Model, and layers: name in the original's code, the live modules that share its rows.
MODELS = {
    "flux/aitoolkit": {
        "double_blocks.1.img_attn.qkv": ["transformer_blocks.1.attn.to_q", ".to_k", ".to_v"],
        "double_blocks.0.txt_attn.proj": ["transformer_blocks.0.attn.to_add_out"],
        "single_blocks.0.linear1": [
            "single_transformer_blocks.0.attn.to_q", ".to_k", ".to_v", "single_transformer_blocks.0.proj_mlp",
        ],
        "single_blocks.1.linear2": ["single_transformer_blocks.1.proj_out"],
    },
    "wan/kohya": {
        "blocks.0.self_attn.k": ["blocks.0.attn1.to_k"],
        "blocks.1.cross_attn.o": ["blocks.1.attn2.to_out.0"],
        "blocks.1.ffn.0": ["blocks.1.ffn.net.0.proj"],
    },
    "zimage/aitoolkit": {
        "layers.0.attention.qkv": ["layers.0.attention.to_q", ".to_k", ".to_v"],
        "noise_refiner.0.attention.out": ["noise_refiner.0.attention.to_out.0"],
        "layers.1.feed_forward.w2": ["layers.1.feed_forward.w2"],
    },
    "sd35l/kohya": {
        "joint_blocks.0.x_block.attn.qkv": ["transformer_blocks.0.attn.to_q", ".to_k", ".to_v"],
        "joint_blocks.1.x_block.mlp.fc1": ["transformer_blocks.1.ff.net.0.proj"],
    },
    "qwenimage/kohya": {
        "transformer_blocks.0.attn.add_q_proj": ["transformer_blocks.0.attn.add_q_proj"],
        "transformer_blocks.1.img_mlp.net.2": ["transformer_blocks.1.img_mlp.net.2"],
    },
    "hunyuanvideo/kohya": {
        "double_blocks.0.txt_attn_qkv": ["transformer_blocks.0.attn.add_q_proj", ".add_k_proj", ".add_v_proj"],
        "single_blocks.1.linear2": ["single_transformer_blocks.1.proj_out"],
    },
}  # fmt: skip
# How the two factors end.
ENDS = {
    "kohya": ("lora_down.weight", "lora_up.weight"),
    "peft": ("lora_A.weight", "lora_B.weight"),
    "named": ("lora_A.default.weight", "lora_B.default.weight"),
    "named otherwise": ("lora_A.my_style.weight", "lora_B.my_style.weight"),
    "early": ("lora.down.weight", "lora.up.weight"),
    "bare": ("lora_A", "lora_B"),
    "early diffusers": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
}
DOTTED = [
    "",
    "diffusion_model.",
    "transformer.",
    "base_model.model.",
    "transformer.diffusion_model.",
    "lora_unet_",
]
FLAT = ["lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_"]


def modules(live):
    parent = live[0].rpartition(".")[0]
    return [parent + path if path.startswith(".") else path for path in live]


@functools.cache
def whole(shared_data, model):
    """Load a tiny transformer once; every test brings it back to the byte."""
    own = reference(shared_data, model)
    return Parts({"transformer": parts_of(shared_data, own).components["transformer"]})


class Made:
    """A file under construction, and what it has to change."""

    def __init__(self, shared_data, model, seed=0):
        self.parts = whole(shared_data, model)
        self.layers = MODELS[model]
        self.live = dict(self.parts.components["transformer"].named_modules())
        self.base = {key: t.clone() for key, t in self.parts.components["transformer"].state_dict().items()}
        self.table, self.wanted = {}, {}
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, *size, dtype=torch.float32):
        return torch.randn(size, generator=self.generator).to(dtype)

    def add(self, name, key, ends, *, rank=3, alpha=None, dtype=torch.float32, odd_alpha=None):
        """Write a layer, fused as the original has it, under a key."""
        live = modules(self.layers[name])
        heights = [self.live[path].weight.shape[0] for path in live]
        up = self.draw(sum(heights), rank, dtype=dtype)
        down = self.draw(rank, self.live[live[0]].weight.shape[1], dtype=dtype)
        self.table[f"{key}.{ends[0]}"], self.table[f"{key}.{ends[1]}"] = down, up
        if alpha is not None:
            self.table[f"{key}.alpha"] = torch.tensor(alpha) if odd_alpha is None else odd_alpha(alpha)
        scale = 1.0 if alpha is None else alpha / rank
        for path, rows in zip(live, (scale * up.double() @ down.double()).split(heights), strict=True):
            self.wanted[f"{path}.weight"] = rows

    def add_part(self, path, key, ends, *, rank, alpha=None):
        """Write one live module under a key."""
        out, into = self.live[path].weight.shape
        up, down = self.draw(out, rank), self.draw(rank, into)
        self.table[f"{key}.{ends[0]}"], self.table[f"{key}.{ends[1]}"] = down, up
        if alpha is not None:
            self.table[f"{key}.alpha"] = torch.tensor(alpha)
        self.wanted[f"{path}.weight"] = (1.0 if alpha is None else alpha / rank) * up.double() @ down.double()

    def check(self, source=None):
        """Load, compare every parameter, and see the base come back."""
        mixer = LoraMixer(self.parts)
        report = mixer.load_lora_weights(self.table if source is None else source, "a", strict=True)
        assert report.complete, str(report)
        now = self.parts.components["transformer"].state_dict()
        for key, base in self.base.items():
            if key in self.wanted:
                assert distance(now[key].double() - base.double(), self.wanted[key]) < 1e-5, key
            else:
                assert torch.equal(now[key], base), key
        mixer.unload_lora_weights()
        now = self.parts.components["transformer"].state_dict()
        assert all(torch.equal(now[key], base) for key, base in self.base.items())


def keys_of(name):
    for front in DOTTED:
        yield front + name
    for front, ending in itertools.product(FLAT, ("", "_")):
        yield front + name.replace(".", "_") + ending


@pytest.mark.parametrize("style", ENDS)
@pytest.mark.parametrize("model", MODELS)
def test_every_ending_behind_every_front(shared_data, model, style):
    """The first layer behind every front, the others behind a plain one; with an alpha and without in turn."""
    for number, name in enumerate(MODELS[model]):
        for turn, key in enumerate(keys_of(name)):
            made = Made(shared_data, model, number)
            made.add(name, key, ENDS[style], alpha=(None, 1.5)[turn % 2])
            made.check()
            if number:
                break


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("model", MODELS)
def test_any_mixture_of_spellings_in_one_file(shared_data, model, seed):
    draw = random.Random(seed)
    styles = [
        ends for style, ends in ENDS.items() if style != "named otherwise"
    ]  # two names are two adapters
    made = Made(shared_data, model, seed)
    for name, live in MODELS[model].items():
        ends = draw.choice(styles)
        paths = modules(live)
        if (
            len(paths) > 1 and draw.random() < 0.5
        ):  # the parts apart, in diffusers' names, ranks and alphas their own
            for path in paths:
                if draw.random() < 0.7:
                    front = draw.choice(["transformer.", "", "diffusion_model.", "lora_unet_"])
                    key = front + path if front != "lora_unet_" else front + path.replace(".", "_")
                    made.add_part(
                        path,
                        key,
                        draw.choice(styles),
                        rank=draw.randint(1, 5),
                        alpha=draw.choice([None, 0.5, 3.0]),
                    )
        else:
            made.add(
                name,
                draw.choice(list(keys_of(name))),
                ends,
                rank=draw.randint(1, 6),
                alpha=draw.choice([None, 1.0, 2.5]),
            )
    if made.table:
        made.check()


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
@pytest.mark.parametrize("model", MODELS)
def test_factors_of_any_number_format(shared_data, model, dtype, tmp_path):
    made = Made(shared_data, model)
    for name in MODELS[model]:
        made.add(name, f"diffusion_model.{name}", ENDS["peft"], dtype=dtype, alpha=2.0)
    made.check()
    save_file(made.table, tmp_path / "a.safetensors")
    made.check(tmp_path / "a.safetensors")


ODD_ALPHAS = {
    "bf16": lambda a: torch.tensor(a, dtype=torch.bfloat16),
    "fp16 of one": lambda a: torch.tensor([a], dtype=torch.float16),
    "one by one": lambda a: torch.tensor([[a]]),
    "whole": lambda a: torch.tensor(int(a)),
    "fp64": lambda a: torch.tensor(a, dtype=torch.float64),
    "fp8": lambda a: torch.tensor(a).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("odd", ODD_ALPHAS)
@pytest.mark.parametrize("style", ["kohya", "peft", "bare"])
@pytest.mark.parametrize("model", ["flux/aitoolkit", "wan/kohya", "zimage/aitoolkit"])
def test_alphas_of_any_number_format(shared_data, model, style, odd):
    made = Made(shared_data, model)
    for name in MODELS[model]:
        made.add(name, f"diffusion_model.{name}", ENDS[style], alpha=2.0, odd_alpha=ODD_ALPHAS[odd])
    made.check()


@pytest.mark.parametrize("style", ["kohya", "peft", "named"])
@pytest.mark.parametrize(
    "model", [model for model, layers in MODELS.items() if any(len(x) > 1 for x in layers.values())]
)
def test_numbered_parts_of_a_fused_layer_have_ranks_and_alphas_of_their_own(shared_data, model, style):
    """OneTrainer's ``qkv.0``, ``qkv.1``, ...; a part that is not there is not changed."""
    for left_out in (None, 0, 1):
        made = Made(shared_data, model)
        for name, live in MODELS[model].items():
            for number, path in enumerate(modules(live)):
                if len(live) > 1 and number != left_out:
                    made.add_part(
                        path, f"transformer.{name}.{number}", ENDS[style], rank=2 + number, alpha=1.0 + number
                    )
        made.check()


@pytest.mark.parametrize(
    "key",
    [
        "LORA_UNET_DOUBLE_BLOCKS_0_IMG_ATTN_QKV.lora_down.weight",
        "diffusion_model.double_blocks.0.img_attn.qkv.LORA_A.weight",
        "diffusion_model.double_blocks.0.img_attn.qkv.lora_a.weight",
        "diffusion_model.Double_Blocks.0.img_attn.qkv.lora_A.weight",
        "lora_unet_double_blocks_0_img_attn.qkv.lora_magnitude.weight",
    ],
)
def test_other_cases_of_letters_are_refused_with_the_key(shared_data, key):
    """No tool writes them, and letters tell apart what names mean (``modC`` and ``modc``)."""
    made = Made(shared_data, "flux/aitoolkit")
    table = {
        key: made.draw(2, 28),
        key.replace("down", "up").replace("_A", "_B").replace("_a.", "_b."): made.draw(84, 2),
    }
    with pytest.raises(LoraMixerError, match=r"(?i)double_blocks.0.img_attn.qkv"):
        LoraMixer(made.parts).load_lora_weights(table, "a")
    now = made.parts.components["transformer"].state_dict()
    assert all(torch.equal(now[key], base) for key, base in made.base.items())


# --- LoKr, LoHa, DoRA and whole changes in every spelling of their ends -------------------------------------------------

MAGNITUDES = [
    "dora_scale",
    "magnitude",
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    "lora_magnitude_vector.default.weight",
]


@pytest.mark.parametrize("style", ["kohya", "peft", "named", "early"])
@pytest.mark.parametrize("end", MAGNITUDES)
@pytest.mark.parametrize("model", ["flux/aitoolkit", "wan/kohya", "zimage/aitoolkit"])
def test_magnitudes_of_fused_layers_go_along_with_their_rows(shared_data, model, end, style):
    made = Made(shared_data, model)
    for name, live in MODELS[model].items():
        made.add(name, f"diffusion_model.{name}", ENDS[style])
        base = torch.cat([made.base[f"{path}.weight"] for path in modules(live)]).double()
        turned = base + torch.cat([made.wanted[f"{path}.weight"] for path in modules(live)])
        lengths = made.draw(len(base)).abs() + 0.5
        made.table[f"diffusion_model.{name}.{end}"] = lengths if "vector" in end else lengths[:, None]
        change = turned * (lengths.double() / turned.norm(dim=1))[:, None] - base
        heights = [made.live[path].weight.shape[0] for path in modules(live)]
        for path, rows in zip(modules(live), change.split(heights), strict=True):
            made.wanted[f"{path}.weight"] = rows
    made.check()


@pytest.mark.parametrize("front", ["diffusion_model.", "lora_unet_", "lycoris_", "transformer."])
@pytest.mark.parametrize("model", MODELS)
def test_whole_changes_of_fused_layers(shared_data, model, front):
    made = Made(shared_data, model)
    for name, live in MODELS[model].items():
        paths = modules(live)
        rows = [made.draw(*made.live[path].weight.shape) for path in paths]
        key = front + (name.replace(".", "_") if front.endswith("_") else name)
        made.table[f"{key}.diff"] = torch.cat(rows)
        made.wanted |= {f"{path}.weight": part.double() for path, part in zip(paths, rows, strict=True)}
        if all(made.live[path].bias is not None for path in paths):
            bias = [made.draw(len(part)) for part in rows]
            made.table[f"{key}.diff_b"] = torch.cat(bias)
            made.wanted |= {f"{path}.bias": part.double() for path, part in zip(paths, bias, strict=True)}
    made.check()


@pytest.mark.parametrize("front", ["diffusion_model.", "lora_unet_", "lycoris_"])
@pytest.mark.parametrize("inner", [(2, 2), (1, 4), (4, 1)])
@pytest.mark.parametrize("model", ["flux/aitoolkit", "zimage/aitoolkit", "sd35l/kohya"])
def test_kronecker_products_that_boundaries_cut(shared_data, model, inner, front):
    made = Made(shared_data, model)
    for name, live in MODELS[model].items():
        paths = modules(live)
        heights = [made.live[path].weight.shape[0] for path in paths]
        out, into = sum(heights), made.live[paths[0]].weight.shape[1]
        if out % inner[0] or into % inner[1]:
            continue
        w1, w2 = made.draw(*inner), made.draw(out // inner[0], into // inner[1])
        key = front + (name.replace(".", "_") if front.endswith("_") else name)
        made.table |= {f"{key}.lokr_w1": w1, f"{key}.lokr_w2": w2, f"{key}.alpha": torch.tensor(9999220736.0)}
        change = torch.kron(w1.double(), w2.double()).split(heights)
        made.wanted |= {f"{path}.weight": rows for path, rows in zip(paths, change, strict=True)}
    assert made.table
    made.check()
