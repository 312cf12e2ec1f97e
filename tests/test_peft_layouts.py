"""What PEFT and diffusers write today, read back: their own delta weights and forward passes are the reference."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from lora_mixer import InvalidAdapterError, LoraMixer, UnsupportedAdapterError
from tests.models import SD_WIDTH, sd_unet, text_encoder, tiny_sd
from tests.weights import Place, Snapshot, random_pairs

if TYPE_CHECKING:
    from pathlib import Path

PATTERNS = {
    "rank_pattern": {"attn2.to_k": 3, r"down_blocks.*to_q": 2, "mid_block.attentions.0.proj_in": 1},
    "alpha_pattern": {"attn2.to_v": 7, r"up_blocks\.1.*to_q": 0.5, "mid_block.attentions.0.proj_in": 9},
}
TARGETS = {
    "target_modules": r".*(to_q|to_k|to_v|to_out\.0|proj_in|conv1|conv_in|time_embedding\.linear_[12])"
}
CONFIGS = {
    "plain": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 2, **PATTERNS},
    "patterns with rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True, **PATTERNS},
}


def randomise(module: torch.nn.Module) -> None:
    """Give every LoRA tensor a value: PEFT starts with zeros."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def pefts_deltas(module: torch.nn.Module, component: str, root: str = "") -> dict[Place, torch.Tensor]:
    """Ask PEFT's layers for their weight changes."""
    return {
        (component, path.removeprefix(root)): layer.get_delta_weight("default").detach().double()
        for path, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def assert_close(pipe: Any, clean: Snapshot, changes: dict[Place, torch.Tensor]) -> None:
    """As assert_holds, with room for PEFT's own rounding in fp32."""
    state = {
        f"{n}.{k}": v
        for n, part in pipe.components.items()
        if hasattr(part, "state_dict")
        for k, v in part.state_dict().items()
    }
    wanted = {f"{component}.{path}.weight": change for (component, path), change in changes.items()}
    for name, value in state.items():
        expected = clean.state[name].double() + wanted.pop(name, torch.zeros(())).double()
        assert (value.double() - expected).abs().max() <= 2e-6 * max(1.0, expected.abs().max().item()), name
    assert not wanted


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_peft_folder_means_what_peft_says(config, sd, sd_base, tmp_path):
    """P1: rank, alpha, their patterns and rsLoRA come from adapter_config.json, as PEFT itself reads them."""
    model = get_peft_model(copy.deepcopy(sd.unet), LoraConfig(**config, **TARGETS))
    randomise(model)
    model.save_pretrained(tmp_path)

    report = LoraMixer(sd).load_lora_weights(tmp_path, adapter_name="a")

    changes = pefts_deltas(model, "unet", "base_model.model.")
    assert report.matched == len(changes) > 40
    assert_close(sd, sd_base[1], changes)


@pytest.mark.parametrize("prefix", ["unet.base_model.model.", "base_model.model.", "unet."])
def test_a_config_scales_whatever_prefix_the_keys_have(prefix, sd, sd_base, tmp_path):
    model = get_peft_model(copy.deepcopy(sd.unet), LoraConfig(r=4, lora_alpha=2, target_modules=["to_q"]))
    randomise(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({prefix + k.removeprefix("base_model.model."): v for k, v in load_file(file).items()}, file)

    LoraMixer(sd).load_lora_weights(tmp_path, adapter_name="a")

    assert_close(sd, sd_base[1], pefts_deltas(model, "unet", "base_model.model."))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("layout", ["flat", "nested"])
@pytest.mark.parametrize("root", ["", "text_model."])
def test_a_folder_of_a_text_encoder_fits_either_layout(layout, root, tmp_path):
    """A folder saved under one release of transformers fits the text encoder of another."""
    pipe = tiny_sd(text_layout=layout)
    clean = Snapshot.of(pipe)
    model = get_peft_model(
        text_encoder(SD_WIDTH), LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "fc1"])
    )
    randomise(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    front = "base_model.model."
    plain = {
        key.removeprefix(front).removeprefix("text_model."): tensor for key, tensor in load_file(file).items()
    }
    save_file({front + root + key: tensor for key, tensor in plain.items()}, file)

    LoraMixer(pipe).load_lora_weights(tmp_path, adapter_name="a")

    here = "text_model." if layout == "nested" else ""
    changes = pefts_deltas(model, "text_encoder", front)
    assert_close(
        pipe, clean, {(c, here + path.removeprefix("text_model.")): v for (c, path), v in changes.items()}
    )


@pytest.mark.parametrize(
    ("config", "metadata"), [*((config, True) for config in CONFIGS.values()), (CONFIGS["rslora"], False)]
)
def test_a_diffusers_file_means_what_diffusers_says(config, metadata, tmp_path, sd, sd_base):
    """D3: alphas are in the header's ``lora_adapter_metadata``; without it, alpha is the rank."""
    writer = tiny_sd()
    writer.unet.add_adapter(LoraConfig(**config, **TARGETS))
    text_config = LoraConfig(r=2, lora_alpha=9, target_modules=["q_proj", "out_proj"])
    writer.text_encoder.add_adapter(text_config)
    randomise(writer.unet)
    randomise(writer.text_encoder)
    said = {
        "unet_lora_adapter_metadata": writer.unet.peft_config["default"].to_dict(),
        "text_encoder_lora_adapter_metadata": text_config.to_dict(),
    }
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(writer.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(writer.text_encoder),
        **(said if metadata else {}),
    )

    LoraMixer(sd).load_lora_weights(tmp_path, adapter_name="a")

    changes = pefts_deltas(writer.unet, "unet") | pefts_deltas(writer.text_encoder, "text_encoder")
    if not metadata:  # what is left of a file that lost its alphas: scale 1
        for name, part in (("unet", writer.unet), ("text_encoder", writer.text_encoder)):
            for path, layer in part.named_modules():
                if isinstance(layer, LoraLayer):
                    changes[name, path] /= layer.scaling["default"]
    assert_close(sd, sd_base[1], changes)


def test_several_named_adapters_in_one_file_are_refused_by_name(sd, sd_base):
    """P2: loading both under one name would add them up."""
    table = {
        f"unet.conv_in.lora_{half}.{name}.weight": torch.ones(*shape, 1, 1)
        for name in ("style", "person")
        for half, shape in (("A", (1, 4)), ("B", (8, 1)))
    }

    with pytest.raises(InvalidAdapterError, match=r"holds 2 adapters \(style, person\)"):
        LoraMixer(sd).load_lora_weights(table)
    sd_base[1].assert_untouched(sd)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "XLORA"}, "PEFT method XLORA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"layer_replication": [[0, 4]]}, "replicated layers"),
    ],
)
def test_a_config_that_means_more_than_lora_is_refused_by_name(config, message, sd, sd_base, tmp_path):
    get_peft_model(sd_unet(), LoraConfig(r=1, target_modules=["to_q"])).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))

    with pytest.raises(UnsupportedAdapterError, match=message):
        LoraMixer(sd).load_lora_weights(tmp_path)
    sd_base[1].assert_untouched(sd)


@pytest.mark.parametrize(
    "config",
    [{"lora_alpha": "8"}, {"lora_alpha": True}, {"alpha_pattern": [1]}, {"alpha_pattern": {"to_q": None}}],
)
def test_a_config_with_a_broken_scale_is_refused(config, sd, sd_base, tmp_path):
    """Guessing a scale would be silent damage."""
    get_peft_model(sd_unet(), LoraConfig(r=1, target_modules=["to_q"])).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))

    with pytest.raises(InvalidAdapterError, match="alpha"):
        LoraMixer(sd).load_lora_weights(tmp_path)
    sd_base[1].assert_untouched(sd)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"unet.lora_alpha": "x"}', "[" * 100_000])
def test_a_header_with_broken_alphas_is_refused(text, sd, sd_base, tmp_path):
    pairs = random_pairs(sd, lambda _, path: path == "conv_in")
    ((_, pair),) = pairs.items()
    table = {"unet.conv_in.lora_A.weight": pair.down, "unet.conv_in.lora_B.weight": pair.up[..., None, None]}
    save_file(table, tmp_path / "a.safetensors", {"lora_adapter_metadata": text})

    with pytest.raises(InvalidAdapterError, match=r"lora_adapter_metadata|lora_alpha"):
        LoraMixer(sd).load_lora_weights(tmp_path / "a.safetensors")
    sd_base[1].assert_untouched(sd)


@pytest.mark.filterwarnings(
    "ignore:`lora_bias=True` was passed:UserWarning", "ignore:Adapter 'default'.*shape:UserWarning"
)
class TestBiasOfB:
    """PEFT's ``lora_bias``: the bias of B counts like the pair, on layers with a bias of their own and without."""

    @staticmethod
    def written(unet: torch.nn.Module, folder: Path) -> torch.nn.Module:
        """Train a ``lora_bias`` adapter on a copy and save it."""
        config = LoraConfig(
            r=2,
            lora_alpha=3,
            lora_bias=True,
            target_modules=["to_q", "to_out.0", "conv1", "conv_in", "proj_in"],
        )
        model = get_peft_model(copy.deepcopy(unet), config).eval()
        randomise(model)
        model.save_pretrained(folder)
        return model

    def test_forward_equals_pefts_own(self, sd, sd_base, tmp_path):
        """Also where the layer has no bias: to_q of the attention, where PEFT cannot merge."""
        model = self.written(sd.unet, tmp_path)
        names, keys = [name for name, _ in sd.unet.named_parameters()], list(sd.unet.state_dict())
        inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 5, 12))
        with torch.no_grad():
            clean = sd.unet(*inputs).sample
            expected = {}
            for weight in (1.0, -0.6):
                for layer in model.modules():
                    if isinstance(layer, LoraLayer):
                        layer.set_scale("default", weight)
                expected[weight] = model(*inputs).sample

            mixer = LoraMixer(sd)
            mixer.load_lora_weights(tmp_path, adapter_name="a")

            assert [name for name, _ in sd.unet.named_parameters()] == names
            assert list(sd.unet.state_dict()) == keys
            for weight, output in expected.items():
                mixer.set_adapters("a", weight)
                ours = sd.unet(*inputs).sample
                assert (ours - output).norm() <= 1e-5 * output.norm()
                assert (ours - clean).norm() > 1e-2 * clean.norm()
            mixer.set_adapters("a", 0.0)
            assert torch.equal(sd.unet(*inputs).sample, clean)
            mixer.disable_lora()
            assert torch.equal(sd.unet(*inputs).sample, clean)
        mixer.unload_lora_weights()
        sd_base[1].assert_untouched(sd)

    def test_a_bias_of_another_length_is_refused(self, sd, sd_base, tmp_path):
        self.written(sd.unet, tmp_path)
        file = tmp_path / "adapter_model.safetensors"
        table = load_file(file)
        key = next(key for key in table if key.endswith("lora_B.bias"))
        save_file({**table, key: torch.ones(5)}, file)

        with pytest.raises(ValueError, match="bias of 5 values"):
            LoraMixer(sd).load_lora_weights(tmp_path)
        sd_base[1].assert_untouched(sd)
