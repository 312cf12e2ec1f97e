"""Folders that PEFT writes of all its methods that change weights: loaded here, they give PEFT's own outputs."""

from __future__ import annotations

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_mixer import LoraMixer, MatchError, SourceError, UnsupportedAdapterError, read_adapter
from lora_mixer.problem import NoteKind


class Small(nn.Module):
    """One module of every kind that PEFT can adapt."""

    def __init__(self):
        super().__init__()
        self.emb, self.lin1, self.norm = nn.Embedding(20, 8), nn.Linear(8, 16), nn.LayerNorm(16)
        self.conv2, self.conv3 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
        self.lin2, self.head = nn.Linear(16, 8, bias=False), nn.Linear(8, 8)

    def forward(self, ids):
        x = self.lin2(torch.relu(self.norm(self.lin1(self.emb(ids)))))
        return self.head(x + self.conv3(torch.relu(self.conv2(x[:, None]))).mean(1))


LINEAR, RANDOM = ["lin1", "head"], {"init_weights": False}
CONFIGS = {
    "modules to save": lambda: peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["lin1", "conv2"], modules_to_save=["head", "norm"]
    ),
    "all biases": lambda: peft.LoraConfig(r=2, target_modules=["lin1", "conv2"], bias="all"),
    "embedding": lambda: peft.LoraConfig(r=2, lora_alpha=3, target_modules=["emb", "lin2"]),
    "tokens beside": lambda: peft.LoraConfig(
        r=2, target_modules=["lin1"], trainable_token_indices={"emb": [1, 5, 7]}
    ),
    "dora everywhere": lambda: peft.LoraConfig(
        r=2, lora_alpha=5, target_modules=["emb", "lin1", "conv2", "conv3"], use_dora=True
    ),
    "lora bias": lambda: peft.LoraConfig(r=2, target_modules=["lin1", "lin2"], lora_bias=True),
    "rank patterns": lambda: peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=LINEAR,
        rank_pattern={"head": 4},
        alpha_pattern={"head": 9},
        use_rslora=True,
    ),
    "tokens": lambda: peft.TrainableTokensConfig(token_indices=[0, 3], target_modules=["emb"]),
    "layer norms": lambda: peft.LNTuningConfig(target_modules=["norm"]),
    "ia3": lambda: peft.IA3Config(
        target_modules=["lin1", "lin2", "conv2", "conv3", "head"],
        feedforward_modules=["lin2", "conv3"],
        init_ia3_weights=False,
    ),
    "ia3 square": lambda: peft.IA3Config(
        target_modules=["head", "conv3"], feedforward_modules=["head"], init_ia3_weights=False
    ),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, target_modules=["lin1", "conv2"], total_step=10
    ),
    "boft": lambda: peft.BOFTConfig(
        boft_block_size=4, target_modules=["lin1", "conv3"], bias="boft_only", **RANDOM
    ),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=["lin1", "conv3"], apply_GS=True, **RANDOM),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=LINEAR, **RANDOM),
    "lokr": lambda: peft.LoKrConfig(
        r=2,
        alpha=3,
        target_modules=["lin1", "conv3"],
        use_effective_conv2d=True,
        decompose_both=True,
        **RANDOM,
    ),
    "lokr full": lambda: peft.LoKrConfig(
        r=8, alpha=3, target_modules=LINEAR, rank_pattern={"head": 16}, **RANDOM
    ),
    "loha": lambda: peft.LoHaConfig(
        r=2, alpha=3, target_modules=["lin1", "conv3"], use_effective_conv2d=True, **RANDOM
    ),
    "hira": lambda: peft.HiraConfig(r=4, target_modules=LINEAR, **RANDOM),
    "c3a": lambda: peft.C3AConfig(block_size=4, target_modules=LINEAR, **RANDOM),
    "delora": lambda: peft.DeloraConfig(r=4, target_modules=LINEAR, **RANDOM),
    "miss": lambda: peft.MissConfig(r=3, target_modules=LINEAR, **RANDOM),
    "miss mini": lambda: peft.MissConfig(r=4, mini_r=4, target_modules=["lin1"], init_weights="mini"),
    "miss bat": lambda: peft.MissConfig(r=4, target_modules=["head"], init_weights="bat"),
    "shira": lambda: peft.ShiraConfig(r=2, target_modules=LINEAR, **RANDOM),
    "gralora": lambda: peft.GraloraConfig(r=4, alpha=6, gralora_k=2, target_modules=LINEAR, **RANDOM),
    "gralora hybrid": lambda: peft.GraloraConfig(
        r=4, alpha=6, gralora_k=4, hybrid_r=2, target_modules=LINEAR, **RANDOM
    ),
    "beft": lambda: peft.BeftConfig(target_modules=["lin1", "lin2", "head"], **RANDOM),
    "oft shared": lambda: peft.OFTConfig(
        r=4, oft_block_size=0, target_modules=LINEAR, block_share=True, bias="oft_only", **RANDOM
    ),
    "oft limited": lambda: peft.OFTConfig(
        oft_block_size=4,
        target_modules=["lin1", "emb"],
        coft=True,
        eps=1e-2,
        use_cayley_neumann=True,
        **RANDOM,
    ),
}


def written(folder, config):
    """Let PEFT adapt, train a little at random, and save; give its outputs and the plain model."""
    torch.manual_seed(0)
    base = Small().eval()
    ids = torch.randint(0, 20, (2, 8))
    adapted = peft.get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    adapted.save_pretrained(folder)
    with torch.no_grad():
        return base, ids, adapted(ids)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CONFIGS)
def test_folder_gives_what_peft_gives(tmp_path, name):
    base, ids, expected = written(tmp_path, CONFIGS[name]())
    clean = {key: value.clone() for key, value in base.state_dict().items()}
    mixer = LoraMixer(base)

    mixer.load_lora_weights(tmp_path, "a", strict=True)

    with torch.no_grad():
        got = base(ids)
    assert (got - expected).norm() / expected.norm() < 1e-6
    mixer.set_adapters("a", 0.0)
    assert all(torch.equal(value, clean[key]) for key, value in base.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_method_that_holds_less_than_its_change_is_refused_by_name(tmp_path):
    base, _, _ = written(tmp_path, peft.WaveFTConfig(n_frequency=10, target_modules=LINEAR, **RANDOM))

    with pytest.raises(UnsupportedAdapterError, match="PEFT method WAVEFT"):
        LoraMixer(base).load_lora_weights(tmp_path)


@pytest.mark.parametrize(
    ("config", "more", "told"),
    [
        ({"use_dora": True}, {}, ["2 of 2 modules have no magnitude"]),
        ({"use_dora": True}, {"lin1.lora_magnitude_vector": (16,)}, ["1 of 2 modules have no magnitude"]),
        ({"use_dora": True}, {"lin1.lora_magnitude_vector": (16,), "lin2.lora_magnitude_vector": (8,)}, []),
        ({"modules_to_save": ["head", "norm"]}, {}, ["modules_to_save head, norm, and"]),
        ({"modules_to_save": ["head", "norm"]}, {"head.weight": (8, 8)}, ["modules_to_save norm, and"]),
        ({"modules_to_save": ["head"], "use_dora": True}, {}, ["no magnitude", "modules_to_save head, and"]),
        ({"modules_to_save": ["lin1"]}, {}, ["modules_to_save lin1, and"]),  # its pairs are not it
        (
            {"modules_to_save": ["classifier", "score"]},
            {"score.weight": (2, 8)},
            [],
        ),  # as PEFT writes for either
        ({}, {"head.weight": (8, 8)}, []),
    ],
)
@pytest.mark.parametrize("place", ["folder", "header"])
def test_what_a_configuration_speaks_of_and_the_file_does_not_hold_is_told(
    tmp_path, config, more, told, place
):
    tensors = {
        f"base_model.model.{path}.{leaf}.weight": torch.ones(shape)
        for path, width, out in (("lin1", 8, 16), ("lin2", 16, 8))
        for leaf, shape in (("lora_A", (2, width)), ("lora_B", (out, 2)))
    } | {f"base_model.model.{key}": torch.ones(shape) for key, shape in more.items()}
    config = {"r": 2, "lora_alpha": 2, **config}
    path = tmp_path / "adapter_model.safetensors"
    if place == "folder":
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
        save_file(tensors, path)
        path = tmp_path
    else:
        save_file(tensors, path, {"lora_adapter_metadata": json.dumps(config)})
    model = Small()
    model.score = nn.Linear(8, 2)

    for _ in range(2):  # by the kind that the first one has made known, too
        notes = LoraMixer(copy.deepcopy(model)).load_lora_weights(path, "a").notes
        found = [note for note in notes if note.kind is NoteKind.NOT_HELD]
        assert len(found) == len(told)
        assert all(text in note for text, note in zip(told, found, strict=True))


def _component_folder(folder, pairs, path, config=None):
    """Write one pair as PEFT does, and give its product."""
    down, up = pairs
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, **(config or {})}))
    key = f"base_model.model.{path}"
    save_file(
        {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, folder / "adapter_model.safetensors"
    )
    return up.double() @ down.double()


class _Twins:
    """A pipeline with components of equal modules."""

    device = torch.device("cpu")

    def __init__(self, *names):
        self.components = {name: nn.ModuleDict({"proj": nn.Linear(6, 6, bias=False)}) for name in names}
        self.__dict__.update(self.components)


PARTS = ("unet", "text_encoder", "text_encoder_2", "transformer_2", "prior")


def test_a_folder_of_components_loads_as_one_adapter(tmp_path):
    """Each at its own alpha, on modules that are named alike in all components."""
    pipe, right = _Twins(*PARTS), {}
    for number, part in enumerate(PARTS):
        pair = torch.randn(2, 6), torch.randn(6, 2)
        change = _component_folder(tmp_path / "x" / part, pair, "proj", {"lora_alpha": 2 + 2 * number})
        right[part] = pipe.components[part]["proj"].weight.double() + change * (1 + number)
    mixer = LoraMixer(pipe)
    report = mixer.load_lora_weights(tmp_path / "x", adapter_name="a")
    assert report.complete
    assert {part.component for part in report.components} == set(PARTS)
    for part, want in right.items():
        torch.testing.assert_close(pipe.components[part]["proj"].weight.double(), want, rtol=1e-5, atol=1e-5)
    info = read_adapter(tmp_path / "x")
    assert (info.name, info.format, info.ranks) == ("x", "peft", (2,))
    assert info.bytes == 5 * 24 * 4


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["subfolder", "path"])
def test_a_folders_name_says_which_component_is_meant(part, how, tmp_path):
    pipe = _Twins(*PARTS)
    _component_folder(tmp_path / part, (torch.randn(2, 6), torch.randn(6, 2)), "proj")
    source, options = (tmp_path, {"subfolder": part}) if how == "subfolder" else (tmp_path / part, {})
    report = LoraMixer(pipe).load_lora_weights(source, adapter_name="a", **options)
    assert [each.component for each in report.components] == [part]


@pytest.mark.parametrize(
    "beside", [("vae",), ("style", "vae"), ("safety_checker", "checkpoint-20", "step_7", "empty")]
)
@pytest.mark.parametrize("parts", [("unet",), ("unet", "text_encoder_2"), ("",)])
def test_adapters_beside_that_are_not_read_are_told(parts, beside, tmp_path):
    pipe = _Twins(*PARTS, "vae")
    root = tmp_path / "adapter"
    for part in (*parts, *beside, *(["unet"] if parts == ("",) else [])):
        _component_folder(root / part, (torch.randn(2, 6), torch.randn(6, 2)), "proj")
    if "empty" in beside:  # a configuration without weights is no adapter
        (root / "empty" / "adapter_model.safetensors").unlink()
    mixer, where = LoraMixer(pipe), {"component": "unet"} if parts == ("",) else {}
    report = mixer.load_lora_weights(root, adapter_name="a", **where)
    told = [note for note in report.notes if note.kind is NoteKind.LEFT_OUT]
    left = sorted(
        ({"style", "vae", "safety_checker"} & set(beside)) | ({"unet"} if parts == ("",) else set())
    )
    assert len(told) == 1
    assert [name for name in (*PARTS, *beside) if f"'{name}'" in told[0].partition(";")[0]] == [
        name for name in (*PARTS, *beside) if name in left
    ]
    assert f"subfolder={left[0]!r}" in told[0]
    if "vae" in beside:
        found = mixer.load_lora_weights(root, adapter_name="v", subfolder="vae", component="vae")
        assert ([each.component for each in found.components], found.notes) == (["vae"], ())


@pytest.mark.parametrize(
    ("parts", "here"), [(("transformer", "unet"), "unet"), (("transformer", "unet"), "transformer")]
)
def test_two_folders_that_mean_one_denoiser_are_refused_by_their_names(parts, here, tmp_path):
    pipe = _Twins(here, "text_encoder")
    for part in (*parts, "text_encoder"):
        _component_folder(tmp_path / part, (torch.randn(2, 6), torch.randn(6, 2)), "proj")
    before, mixer = pipe.components[here]["proj"].weight.clone(), LoraMixer(pipe)
    with pytest.raises(
        MatchError, match=rf"by its parts {parts[0]} and {parts[1]}, which are one here.*subfolder="
    ):
        mixer.load_lora_weights(tmp_path, adapter_name="a")
    assert torch.equal(pipe.components[here]["proj"].weight, before)
    for part in parts:
        report = mixer.load_lora_weights(tmp_path, adapter_name=part, subfolder=part, component=here)
        assert [each.component for each in report.components] == [here]


@pytest.mark.parametrize("lost", ["unet", "text_encoder_2", "prior"])
@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"])
def test_a_component_whose_configuration_is_lost_is_not_left_out_without_a_word(lost, weights, tmp_path):
    pipe = _Twins(*PARTS)
    for part in PARTS:
        _component_folder(tmp_path / part, (torch.randn(2, 6), torch.randn(6, 2)), "proj")
    (tmp_path / lost / "adapter_config.json").unlink()
    (tmp_path / lost / "adapter_model.safetensors").rename(tmp_path / lost / weights)
    before = {part: pipe.components[part]["proj"].weight.clone() for part in PARTS}
    mixer = LoraMixer(pipe)
    with pytest.raises(SourceError, match=rf"{lost}/{weights}: expected adapter_config\.json.*subfolder="):
        mixer.load_lora_weights(tmp_path, adapter_name="a")
    assert all(torch.equal(pipe.components[part]["proj"].weight, before[part]) for part in PARTS)
    kept = next(part for part in PARTS if part != lost)
    report = mixer.load_lora_weights(tmp_path, adapter_name="a", subfolder=kept)
    assert [each.component for each in report.components] == [kept]


def test_a_models_own_weights_beside_an_adapters_folder_are_no_lost_part(tmp_path):
    pipe = _Twins("unet", "text_encoder")
    _component_folder(tmp_path / "unet", (torch.randn(2, 6), torch.randn(6, 2)), "proj")
    (tmp_path / "text_encoder").mkdir()
    for name in ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"):
        save_file({"proj.weight": torch.randn(6, 6)}, tmp_path / "text_encoder" / name)
    report = LoraMixer(pipe).load_lora_weights(tmp_path, adapter_name="a")
    assert [each.component for each in report.components] == ["unet"]


def test_a_folders_name_does_not_keep_a_file_from_another_pipeline(tmp_path):
    """Made for the second expert, loaded where there is one denoiser only."""
    pipe = _Twins("transformer")
    _component_folder(tmp_path / "transformer_2", (torch.randn(2, 6), torch.randn(6, 2)), "proj")
    assert LoraMixer(pipe).load_lora_weights(tmp_path / "transformer_2", adapter_name="a").matched == 1


def test_checkpoints_beside_components_are_left_alone(tmp_path):
    pipe = _Twins("unet", "text_encoder")
    for name in ("unet", "checkpoint-500", "logs"):
        _component_folder(tmp_path / name, (torch.randn(2, 6), torch.randn(6, 2)), "proj")
    report = LoraMixer(pipe).load_lora_weights(tmp_path, adapter_name="a")
    assert [each.component for each in report.components] == ["unet"]


@pytest.mark.parametrize(
    "parts", [("unet", "text_encoder"), ("transformer", "transformer_2"), ("text_encoder_2",)]
)
def test_what_this_package_writes_for_components_it_reads_back(parts, tmp_path):
    pipe = _Twins(*PARTS, "transformer")
    mixer = LoraMixer(pipe)
    file = {
        f"{part}.proj.lora_{half}.weight": torch.randn(shape)
        for part in parts
        for half, shape in (("A", (2, 6)), ("B", (6, 2)))
    }
    mixer.load_lora_weights(file, adapter_name="a")
    right = {part: pipe.components[part]["proj"].weight.clone() for part in pipe.components}
    mixer.save_lora_weights(tmp_path / "mine", "a", format="peft")
    mixer.unload_lora_weights()
    report = mixer.load_lora_weights(tmp_path / "mine", adapter_name="a")
    assert {part.component for part in report.components} == set(parts)
    for part, want in right.items():
        assert torch.equal(pipe.components[part]["proj"].weight, want)
