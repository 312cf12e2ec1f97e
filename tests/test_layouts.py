"""Every key layout gives the weights that its tensors stand for: base + w * alpha / rank * up @ down, in fp64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import InvalidAdapterError, LoraMixer, MatchError, PartialMatchWarning, read_adapter
from tests.models import sd_unet, sdxl_unet, tiny_sd, tiny_sdxl
from tests.spellings import (
    attention_processors,
    dotted,
    kohya,
    ldm,
    state_dict,
    up_kernel,
)
from tests.weights import Pair, Place, Snapshot, deltas, plain_layers, random_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.spellings import Speller

KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
PEFT = (".lora_A.weight", ".lora_B.weight", None)
SD = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
SDXL = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
DIFFUSERS = {"unet": "unet.", "text_encoder": "text_encoder.", "text_encoder_2": "text_encoder_2."}
COMFY = {
    "unet": "diffusion_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
}
OMI = {"unet": "unet.", "text_encoder": "clip_l.", "text_encoder_2": "clip_g."}


def attention_only(_: str, path: str) -> bool:
    """What most files train: attention."""
    return "attn" in path


@dataclass(frozen=True)
class Case:
    """One layout: its id, the kind of pipeline, its names and leaves, and how the package calls it."""

    name: str
    kind: str
    spell: Speller
    leaves: tuple[str, str, str | None]
    format: str
    wanted: Callable[[str, str], bool] = lambda *_: True


CASES = (
    Case("K1 SD kohya", "sd", kohya(SD), KOHYA, "kohya", attention_only),
    Case("K1 SD with lora_te1_", "sd", kohya({**SD, "text_encoder": "lora_te1_"}), KOHYA, "kohya", attention_only),
    Case("K1 SD of transformers 5", "sd", kohya(SDXL, root=""), KOHYA, "kohya", attention_only),
    Case("K1 SD without alpha", "sd", kohya(SD), (*KOHYA[:2], None), "kohya", attention_only),
    Case("K2 SDXL kohya, LDM names", "sdxl", kohya(SDXL, original="sdxl"), KOHYA, "kohya"),
    Case("K3 SDXL kohya, HF names", "sdxl", kohya(SDXL), KOHYA, "kohya"),
    Case("K4 SD kohya, LDM names", "sd", kohya({**SD, "text_encoder": "lora_te1_"}, original="sd"), KOHYA, "kohya"),
    Case("K5 SD LoCon, every layer", "sd", kohya(SD), KOHYA, "kohya"),
    Case("D1 processors", "sd", attention_processors("unet."), ("_lora.down.weight", "_lora.up.weight", None),
         "diffusers-attn-procs"),
    Case("D2 lora.down", "sd", dotted(DIFFUSERS), (".lora.down.weight", ".lora.up.weight", None), "diffusers"),
    Case("D2 SDXL with alphas", "sdxl", dotted(DIFFUSERS), (".lora.down.weight", ".lora.up.weight", ".alpha"),
         "diffusers"),
    Case("D2 linear layers of text encoders", "sd", dotted(DIFFUSERS),
         (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight", None), "diffusers",
         lambda component, _: component != "unet"),
    Case("D3 SD", "sd", dotted(DIFFUSERS), PEFT, "diffusers"),
    Case("D3 SDXL of transformers 5", "sdxl", dotted(DIFFUSERS, root=""), PEFT, "diffusers"),
    Case("P2 one name left in", "sd", dotted(DIFFUSERS), (".lora_A.default.weight", ".lora_B.default.weight", None),
         "diffusers"),
    Case("P2 converted twice", "sd", dotted(DIFFUSERS), (".lora_A_1.default_0.weight", ".lora_B_1.default_0.weight", None),
         "diffusers", attention_only),
    Case("C1 SD", "sd", dotted(COMFY, original="sd"), KOHYA, "comfyui"),
    Case("C1 SDXL", "sdxl", dotted(COMFY, original="sdxl"), KOHYA, "comfyui"),
    Case("O1 OneTrainer SDXL", "sdxl", kohya(SDXL), KOHYA, "kohya", lambda c, p: "attn" in p or p == "text_projection"),
    Case("O2 OneTrainer OMI SDXL", "sdxl", dotted(OMI, original="sdxl"), KOHYA, "omi+diffusers"),
)  # fmt: skip


@lru_cache
def stage(kind: str, text_layout: Any) -> tuple[Any, Snapshot]:
    """Give a pipeline and what it holds; tests leave it as it was, which each of them asserts."""
    pipe = {"sd": tiny_sd, "sdxl": tiny_sdxl}[kind](text_layout=text_layout)
    return pipe, Snapshot.of(pipe)


def assert_means(pipe: Any, clean: Snapshot, source: Any, pairs: dict[Place, Pair], **options: Any) -> None:
    """Load, compare at weights 1 and -0.7, take off, compare with the base."""
    mixer = LoraMixer(pipe)
    try:
        report = mixer.load_lora_weights(source, adapter_name="a", **options)
        clean.assert_holds(pipe, deltas(pairs))
        matched = {(part.component, path) for part in report.components for path in part.matched}
        assert matched == set(pairs)
        assert report.complete
        mixer.set_adapters("a", -0.7)
        clean.assert_holds(pipe, deltas(pairs), -0.7)
    finally:
        mixer.unload_lora_weights()
    clean.assert_untouched(pipe)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize(("text_layout", "suffix"), [("flat", "safetensors"), ("nested", "pt")])
def test_a_file_of_this_layout_means_its_tensors(case, text_layout, suffix, tmp_path):
    pipe, clean = stage(case.kind, text_layout)
    pairs = random_pairs(pipe, case.wanted, alphas=case.leaves[2] is not None)
    table, written = state_dict(pairs, case.spell, case.leaves)
    file = tmp_path / f"a.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(table, file)

    assert_means(pipe, clean, file, written, allow_pickle=suffix == "pt")
    info = read_adapter(file, allow_pickle=suffix == "pt")
    assert set(info.format.split("+")) <= set(case.format.split("+"))
    assert info.ranks == tuple(sorted({pair.rank for pair in written.values()}))
    assert sum(info.components.values()) == len(written)


def test_every_layer_of_the_real_block_tables_has_its_original_name():
    """The original names of real files, as trackers quote them, are the modules that the block tables say."""
    known = {
        "sd": {
            "input_blocks.1.0.emb_layers.1": "down_blocks.0.resnets.0.time_emb_proj",
            "input_blocks.1.1.proj_in": "down_blocks.0.attentions.0.proj_in",
            "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
            "input_blocks.10.0.in_layers.2": "down_blocks.3.resnets.0.conv1",
            "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
            "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
            "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
        },
        "sdxl": {
            "input_blocks.4.1.transformer_blocks.0.attn1.to_k": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k",
            "output_blocks.2.2.conv": "up_blocks.0.upsamplers.0.conv",
            "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
            "label_emb.0.2": "add_embedding.linear_2",
        },
    }
    for kind, table in known.items():
        unet = {"sd": sd_unet, "sdxl": sdxl_unet}[kind]()
        for original, path in table.items():
            assert ldm(path, sdxl=kind == "sdxl") == original
            pairs = random_pairs(unet, lambda _, p, path=path: p == path)
            ((_, pair),) = pairs.items()
            for name in (
                "lora_unet_" + original.replace(".", "_"),
                "diffusion_model." + original,
                "unet." + original,
            ):
                file = {name + ".lora_down.weight": pair.down, name + ".lora_up.weight": up_kernel(pair)}
                report = LoraMixer(unet).load_lora_weights(file, adapter_name=name)
                assert report.components[0].matched == (path,)


def test_a_file_of_five_layouts_is_read_whole(sd, sd_base, tmp_path):
    """Half a file in the original names and half in diffusers' is one adapter: nothing is dropped."""
    ways = (
        (kohya(SD), KOHYA),
        (kohya(SD, original="sd"), KOHYA),
        (dotted(DIFFUSERS), PEFT),
        (dotted(COMFY, original="sd"), KOHYA),
        (dotted({"unet": "base_model.model.", "text_encoder": "clip_l."}), KOHYA),
    )
    pairs = random_pairs(sd)
    table: dict[str, torch.Tensor] = {}
    expected: dict[Place, Pair] = {}
    for number, (place, pair) in enumerate(pairs.items()):
        spell, leaves = ways[number % len(ways)]
        part, written = state_dict({place: pair}, spell, leaves)
        table |= part
        bare = leaves[2] is None
        expected |= {p: Pair(x.up, x.down, None if bare else x.alpha) for p, x in written.items()}
    save_file(table, tmp_path / "mixed.safetensors")

    assert_means(sd, sd_base[1], tmp_path / "mixed.safetensors", expected)
    assert read_adapter(tmp_path / "mixed.safetensors").format == "comfyui+diffusers+kohya+omi+peft"


def test_one_module_under_two_spellings_is_refused(sd, sd_base):
    """Adding both halves up would double it; choosing one would be a guess."""
    pairs = random_pairs(sd, lambda _, path: path == "conv_in")
    table = {
        **state_dict(pairs, kohya(SD), KOHYA)[0],
        **state_dict(pairs, kohya(SD, original="sd"), KOHYA)[0],
    }

    with pytest.raises(MatchError, match=r"given twice under different spellings: unet\.conv_in"):
        LoraMixer(sd).load_lora_weights(table, adapter_name="a")
    sd_base[1].assert_untouched(sd)


def test_the_same_part_twice_is_refused(sd):
    pair = {
        "lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3),
        "lora_unet_conv_in.lora_up.weight": torch.ones(8, 1),
    }

    with pytest.raises(InvalidAdapterError, match="stand twice"):
        LoraMixer(sd).load_lora_weights({**pair, "lora_unet__conv_in.lora_up.weight": torch.ones(8, 1)})


@pytest.mark.parametrize("kind", ["unet", "text_encoder", "text_encoder_2", "anything"])
@pytest.mark.parametrize("prefixed", [True, False])
def test_a_bare_module_takes_the_files_of_its_kind(kind, prefixed, sdxl, sdxl_base):
    """``LoraMixer(unet)`` reads files for pipelines, and files with plain module paths."""
    module = (
        sdxl.components[kind]
        if kind != "anything"
        else torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 4))
    )
    pairs = random_pairs(module)
    clean = Snapshot.of(module)
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te_"}.get(
        kind, "lora_unet_"
    )
    spell = (lambda _, path: prefix + path.replace(".", "_")) if prefixed else (lambda _, path: path)
    table, _ = state_dict(pairs, spell, KOHYA)

    mixer = LoraMixer(module)
    mixer.load_lora_weights(table, adapter_name="a")

    clean.assert_holds(module, deltas(pairs))
    mixer.disable_lora()
    clean.assert_untouched(module)
    sdxl_base[1].assert_untouched(sdxl)


class TestComponentsThatKeysDoNotName:
    """A PEFT folder or a file of plain paths: the component that matches, or the one that the caller names."""

    def test_plain_paths_go_where_they_fit(self, sdxl, sdxl_base):
        pairs = random_pairs(sdxl, lambda component, _: component == "text_encoder_2")
        table, _ = state_dict(pairs, dotted({"text_encoder_2": "base_model.model."}), KOHYA)

        assert_means(sdxl, sdxl_base[1], table, pairs)

    def test_two_that_match_alike_are_an_error_that_names_both(self):
        pipe = tiny_sdxl(widths=(12, 12))
        clean = Snapshot.of(pipe)
        pairs = random_pairs(pipe, lambda component, path: component == "text_encoder_2" and "layers" in path)
        table, _ = state_dict(pairs, dotted({"text_encoder_2": "base_model.model."}), KOHYA)

        with pytest.raises(MatchError, match="component='text_encoder' or component='text_encoder_2'"):
            LoraMixer(pipe).load_lora_weights(table, adapter_name="a")

        clean.assert_untouched(pipe)
        assert_means(pipe, clean, table, pairs, component="text_encoder_2")

    def test_component_overrules_what_keys_say(self, sdxl, sdxl_base):
        """A kohya file trained on one encoder can be put on the other of the same size."""
        pipe = tiny_sdxl(widths=(12, 12))
        pairs = random_pairs(pipe, lambda component, path: component == "text_encoder_2" and "attn" in path)
        table, _ = state_dict(pairs, kohya({"text_encoder_2": "lora_te1_"}), KOHYA)

        assert_means(pipe, Snapshot.of(pipe), table, pairs, component="text_encoder_2")

    def test_an_unknown_component_is_an_error_that_lists_those_there_are(self, sd, sd_base):
        with pytest.raises(MatchError, match=r"'text_encoder_2' is not in this pipeline; it has .*unet"):
            LoraMixer(sd).load_lora_weights(
                {
                    "conv_in.lora_A.weight": torch.ones(1, 4, 3, 3),
                    "conv_in.lora_B.weight": torch.ones(8, 1, 1, 1),
                },
                component="text_encoder_2",
            )
        sd_base[1].assert_untouched(sd)


def test_onetrainers_text_projection_is_reported_where_there_is_none(sd, sd_base):
    """``lora_te1_text_projection`` on an encoder without projection: the rest loads, and a warning says so."""
    pairs = random_pairs(sd, lambda component, path: component == "text_encoder" and "attn" in path)
    table, _ = state_dict(pairs, kohya(SD), KOHYA)
    extra = {f"lora_te1_text_projection.lora_{x}.weight": torch.zeros(4, 4) for x in ("up", "down")}

    with pytest.warns(PartialMatchWarning, match="text_projection"):
        report = LoraMixer(sd).load_lora_weights({**table, **extra}, adapter_name="a")

    assert not report.complete
    assert report.components[0].unmatched == {"text_projection": "no such module"}
    sd_base[1].assert_holds(sd, deltas(pairs))


def test_an_inpainting_unet_takes_a_lora_of_four_channels():
    """The adapter's channels come first; the mask's five stay the base."""
    pipe = tiny_sd(in_channels=9)
    clean = Snapshot.of(pipe)
    pair = Pair(torch.randn(8, 2), torch.randn(2, 4, 3, 3), 1.0)
    table, _ = state_dict({("unet", "conv_in"): pair}, kohya(SD), KOHYA)
    change = torch.zeros(8, 9, 3, 3, dtype=torch.float64)
    change[:, :4] = pair.delta().reshape(8, 4, 3, 3)

    mixer = LoraMixer(pipe)
    mixer.load_lora_weights(table, adapter_name="a")

    clean.assert_holds(pipe, {("unet", "conv_in"): change})
    mixer.unload_lora_weights()
    clean.assert_untouched(pipe)


@pytest.mark.parametrize("half", [torch.float32, torch.float16])
def test_a_tucker_core_is_folded_in(sd, sd_base, half):
    """K5 with ``lora_mid``: einsum('mnkl,im,nj->ijkl', mid, up, down) in fp64."""
    table, changes = {}, {}
    generator = torch.Generator().manual_seed(0)
    for (component, path), module in plain_layers(sd).items():
        if getattr(module, "kernel_size", (1, 1)) != (3, 3):
            continue
        out, into = module.weight.shape[:2]
        up = torch.randn(out, 3, 1, 1, generator=generator).to(half)
        down = torch.randn(2, into, 1, 1, generator=generator).to(half)
        mid = torch.randn(3, 2, 3, 3, generator=generator).to(half)
        name = kohya(SD)(component, path)
        table |= {f"{name}.lora_{role}.weight": t for role, t in (("up", up), ("down", down), ("mid", mid))}
        table[f"{name}.alpha"] = torch.tensor(0.5)
        core = torch.einsum(
            "mnkl,im,nj->ijkl", mid.double(), up[..., 0, 0].double(), down[..., 0, 0].double()
        )
        changes[component, path] = core * 0.5 / 2  # the rank is down's first size, as LyCORIS has it

    LoraMixer(sd).load_lora_weights(table, adapter_name="a")

    sd_base[1].assert_holds(sd, changes)
