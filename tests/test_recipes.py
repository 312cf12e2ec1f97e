"""CONTRIBUTING's recipes hold: one file (here ``recipe_parts`` and ``recipe_family``) and one row, and everything that is said to follow follows."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from typer.testing import CliRunner

from lora_mixer import (
    AdapterConfigError,
    LoraConfig,
    LoraMixer,
    MatchError,
    Mix,
    MixError,
    PlanError,
    SaveError,
    SourceNotFoundError,
    UnsupportedAdapterError,
    fresh,
    read_adapter,
)
from lora_mixer.algorithms import table as algorithm_table
from lora_mixer.batches import PLAN_FORMS, WORKER_ENGINES, load_plan, parse_plan, run_plan
from lora_mixer.cli._app import app
from lora_mixer.cli._completing import engines, plans
from lora_mixer.engines.table import ENGINES
from lora_mixer.formats import fronts, leaves
from lora_mixer.fresh.starts import STARTS
from lora_mixer.merging import METHODS as MERGING
from lora_mixer.mixes import METHODS as MIXING
from lora_mixer.pictures import read_checkpoint
from lora_mixer.sources import _resolve
from lora_mixer.writing import FORMATS, convert, merge
from lora_mixer.writing.formats.format import safetensors
from tests import recipe_parts
from tests.batch_plans import make_model, plan_for


class Net(torch.nn.Module):
    """Two layers that hear the time."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.one, self.two = torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x, timestep=None):
        del timestep
        return self.two(torch.relu(self.one(x)))


def pair(seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(shape, generator=generator) * size
        for key, shape in (("lora_A.weight", (2, 6)), ("lora_B.weight", (6, 2)))
    }


def adapter(seed, one=1.0, two=1.0):
    return {
        f"{layer}.{key}": value
        for layer, size, more in (("one", one, 0), ("two", two, 50))
        for key, value in pair(seed + more, size).items()
    }


def change(file, layer):
    return file[f"{layer}.lora_B.weight"] @ file[f"{layer}.lora_A.weight"]


def weights(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.fixture
def net():
    return Net()


class TestMergingMethod:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setitem(MERGING, "clipped", recipe_parts.CLIPPED)

    def test_it_merges_files_with_its_settings(self, tmp_path):
        paths = []
        for seed in (1, 2):
            paths.append(tmp_path / f"{seed}.safetensors")
            save_file(adapter(seed), paths[-1])
        merge(
            [(paths[0], 0.7), (paths[1], -0.4)],
            tmp_path / "out.safetensors",
            method="clipped(limit=0.3)",
            rank=6,
        )

        out = load_file(tmp_path / "out.safetensors")
        for layer in ("one", "two"):
            found = next(
                out[key] @ out[key.replace("lora_B", "lora_A")] for key in out if f"{layer}.lora_B" in key
            )
            expected = (0.7 * change(adapter(1), layer) - 0.4 * change(adapter(2), layer)).clamp(-0.3, 0.3)
            assert torch.allclose(found, expected, atol=1e-5)

    def test_a_mixer_saves_by_it(self, net, tmp_path):
        mixer = LoraMixer(net)
        mixer.load_lora_weights(adapter(1), "a")
        mixer.load_lora_weights(adapter(2), "b")
        mixer.save_lora_weights(
            tmp_path / "x.safetensors", ["a", "b"], method="clipped", rank=6, weights=[1, 1]
        )

        assert read_adapter(tmp_path / "x.safetensors").metadata["lora_mixer.method"] == "clipped(limit=1.0)"

    def test_help_and_checks_come_from_the_row(self):
        told = " ".join(CliRunner().invoke(app, ["merge", "--help"], env={"COLUMNS": "200"}).output.split())

        assert "clipped: add, and cut every entry at a limit; needs a rank." in told
        with pytest.raises(MixError, match=r"limit must be above 0"):
            merge([("a", 1.0)], "b", method="clipped(limit=0)")


class TestMethodOfAMix:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setitem(MIXING, "loudest", recipe_parts.Loudest)

    @pytest.mark.parametrize("engine", ["merged", "side"])
    def test_engines_carry_it_out(self, net, engine):
        files = {"a": adapter(1, one=2.0, two=0.1), "b": adapter(2)}
        base, mixer = copy.deepcopy(net), LoraMixer(net)
        for name, file in files.items():
            mixer.load_lora_weights(file, name)
        mixer.set_mix("a:0.7, b:0.5 | loudest", engine=engine)

        with torch.no_grad():
            base.one.weight += 0.7 * change(files["a"], "one")
            base.two.weight += 0.5 * change(files["b"], "two")
            x = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
            timesteps = torch.tensor([500.0, 0.0])  # the run that a loop has
            assert torch.allclose(net(x, timesteps[0]), base(x), atol=1e-5)

    def test_it_is_read_written_and_offered(self):
        mix = Mix.of("a:1, b:1 | loudest(after=3)")

        assert mix.method == recipe_parts.Loudest(3)
        assert Mix.of(mix.to_text()) == mix
        assert not mix.is_constant

    def test_the_page_offers_it(self):
        pytest.importorskip("gradio")
        from lora_mixer.ui.handlers.mix import kit

        assert "loudest(after=2)" in kit(SimpleNamespace(layout=None, size=(64, 64)))["methods"]

    def test_a_model_without_steps_refuses_it(self):
        mixer = LoraMixer(torch.nn.Sequential(torch.nn.Linear(6, 6)))
        for name in "ab":
            mixer.load_lora_weights({f"0.{key}": value for key, value in pair(4).items()}, name)

        with pytest.raises(MixError, match="goes by the steps of a denoiser"):
            mixer.set_mix("a:1, b:1 | loudest")


class TestAlgorithm:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setitem(algorithm_table.ALGORITHMS, "outer", recipe_parts.OUTER)
        leaves._table.cache_clear()
        yield
        leaves._table.cache_clear()

    def file(self):
        generator = torch.Generator().manual_seed(5)
        return {f"one.outer_{side}": torch.randn(6, generator=generator) for side in "ab"}

    def test_its_files_load_and_go(self, net):
        before, mixer, file = weights(net), LoraMixer(net), self.file()
        report = mixer.load_lora_weights(file, "o")
        mixer.load_lora_weights(adapter(1), "a")
        mixer.set_mix({"o": 0.5, "a": -0.3})

        outer = torch.outer(file["one.outer_a"], file["one.outer_b"]) * before["one.weight"]
        expected = before["one.weight"] + 0.5 * outer - 0.3 * change(adapter(1), "one")
        assert report.complete
        assert mixer.adapters["o"].algorithms == ("outer",)
        assert torch.allclose(net.one.weight, expected, atol=1e-6)
        mixer.unload_lora_weights()
        assert all(torch.equal(value, before[key]) for key, value in weights(net).items())

    def test_it_is_seen_in_files_and_in_pefts_folders(self, tmp_path):
        folder = tmp_path / "peft"
        folder.mkdir()
        tensors = {f"base_model.model.{key}": value for key, value in self.file().items()}
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text('{"peft_type": "OUTER", "outer_sides": 2}')

        assert read_adapter(folder).algorithms == ("outer",)
        assert read_checkpoint(folder / "adapter_model.safetensors").kind == "adapter"
        save_file(
            {**tensors, "base_model.model.one.outer_c.weight": torch.ones(6)},
            folder / "adapter_model.safetensors",
        )
        with pytest.raises(UnsupportedAdapterError, match="outer_c"):
            read_adapter(folder)

    def test_what_does_not_fit_is_told(self, net):
        with pytest.raises(Exception, match=r"made for \(4, 4\), the module has \(6, 6\)"):
            LoraMixer(net).load_lora_weights({f"one.outer_{side}": torch.ones(4) for side in "ab"})


def test_a_spelling_of_keys_is_one_row(net, monkeypatch):
    before = weights(net)
    file = {f"studio.{key}": value for key, value in adapter(1).items()}
    mixer = LoraMixer(net)
    with pytest.raises(MatchError, match="studio"):
        mixer.load_lora_weights(file, "a")

    monkeypatch.setattr(fronts, "FRONTS", (*fronts.FRONTS, ("studio.", None, "studio")))
    fronts.split_component.cache_clear()
    try:
        report = mixer.load_lora_weights(file, "a")
        assert report.complete
        assert read_adapter(file).format == "studio"
    finally:
        fronts.split_component.cache_clear()
    assert torch.allclose(net.one.weight, before["one.weight"] + change(adapter(1), "one"), atol=1e-6)


class TestEngine:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setitem(ENGINES, "product", lambda house: recipe_parts.ProductEngine(house.bases))

    def test_it_serves_mixes_and_goes_without_trace(self, net):
        before, mixer = weights(net), LoraMixer(net)
        mixer.load_lora_weights(adapter(1), "a")
        mixer.load_lora_weights(adapter(2), "b")
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
        mixer.set_mix({"a": 0.5, "b": -1.0}, engine="merged")
        merged = net(x)
        mixer.set_mix({"a": 0.5, "b": -1.0}, engine="product")

        assert torch.allclose(net(x), merged, atol=1e-5)
        assert all(torch.equal(value, before[key]) for key, value in weights(net).items())
        assert not mixer.is_in_parameters
        mixer.unload_lora_weights()
        assert not net.one._forward_hooks
        assert not net.two._forward_hooks
        assert "forward" not in vars(net.one)

    def test_after_an_error_the_mix_from_before_is_back(self, net, monkeypatch):
        mixer = LoraMixer(net)
        mixer.load_lora_weights(adapter(1), "a")
        x = torch.ones(1, 6)
        mixer.set_mix({"a": 0.5}, engine="product")
        seen, enter = net(x), recipe_parts.ProductEngine.enter

        def broken(engine, effect):
            enter(engine, effect)
            if effect.setting.names and effect.setting.mixes[0].gain("a", "model", "") == 2.0:
                raise MemoryError("no room")

        monkeypatch.setattr(recipe_parts.ProductEngine, "enter", broken)
        with pytest.raises(MemoryError):
            mixer.set_mix({"a": 2.0}, engine="product")

        assert torch.equal(net(x), seen)

    def test_a_name_that_is_no_row_is_told_with_those_that_are(self, net):
        mixer = LoraMixer(net)
        mixer.load_lora_weights(adapter(1), "a")
        with pytest.raises(
            MixError, match="engine must be one of auto, merged, side, product, got 'trainable'"
        ):
            mixer.set_mix({"a": 1.0}, engine="trainable")


def test_a_family_is_one_row(tmp_path):
    # tables are made of the rows when modules are imported, so this is a process of its own
    script = f"""
    import torch
    from lora_mixer.families import table
    import lora_mixer.families as families
    from tests.recipe_family import LOOM
    table.FAMILIES = families.FAMILIES = (*table.FAMILIES, LOOM)
    from lora_mixer import LoraMixer, read_adapter
    from safetensors.torch import load_file, save, save_file

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q, self.to_k, self.to_v = (torch.nn.Linear(8, 8) for _ in range(3))

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.proj = Attention(), torch.nn.Linear(8, 8)

    class LoomTransformer2DModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList(Block() for _ in range(2))

    class Pipe:
        def __init__(self):
            self.components = {{"transformer": LoomTransformer2DModel()}}

    pipe = Pipe()
    net = pipe.components["transformer"]
    base = {{k: v.clone() for k, v in net.state_dict().items()}}
    file = {{}}
    for number in range(2):
        for name, rows in (("attn.qkv", 24), ("out", 8)):
            file[f"diffusion_model.looms.{{number}}.{{name}}.lora_A.weight"] = torch.randn(2, 8)
            file[f"diffusion_model.looms.{{number}}.{{name}}.lora_B.weight"] = torch.randn(rows, 2)
    save_file(file, r"{tmp_path}/loom.safetensors")
    assert read_adapter(r"{tmp_path}/loom.safetensors").base == "Loom"
    mixer = LoraMixer(pipe)
    report = mixer.load_lora_weights(r"{tmp_path}/loom.safetensors", "l")
    assert report.complete, str(report)
    mixer.set_adapters("l", 0.5)

    def change(name):
        front = f"diffusion_model.looms.{{name}}.lora_"
        return 0.5 * file[f"{{front}}B.weight"] @ file[f"{{front}}A.weight"]

    for number in range(2):
        attn, qkv = net.blocks[number].attn, change(f"{{number}}.attn.qkv")
        for place, layer in enumerate((attn.to_q, attn.to_k, attn.to_v)):
            own = base[f"blocks.{{number}}.attn.to_{{'qkv'[place]}}.weight"]
            assert torch.allclose(layer.weight, own + qkv[8 * place : 8 * place + 8], atol=1e-6)
    mixer.save_lora_weights(r"{tmp_path}/kohya.safetensors", "l", format="kohya")
    out = load_file(r"{tmp_path}/kohya.safetensors")
    assert "lora_unet_looms_0_attn_qkv.lora_up.weight" in out, sorted(out)
    info = read_adapter(r"{tmp_path}/kohya.safetensors")
    assert (info.base, info.metadata["ss_base_model_version"]) == ("Loom", "loom")
    mixer.unload_lora_weights()
    assert all(torch.equal(v, base[k]) for k, v in net.state_dict().items())
    print("woven")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )

    assert done.stdout.strip().endswith("woven"), done.stderr


class TestOutputFormat:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setitem(FORMATS, "blunt", recipe_parts.BLUNT)

    def test_a_mixer_saves_it_and_it_is_read_back(self, net, tmp_path):
        mixer = LoraMixer(net)
        mixer.load_lora_weights(adapter(1), "a")
        report = mixer.save_lora_weights(tmp_path / "x.safetensors", "a", format="blunt")

        assert report.format == "blunt"
        found = load_file(tmp_path / "x.safetensors")
        assert torch.allclose(change(found, "two"), change(adapter(1), "two"), atol=1e-6)
        assert read_adapter(tmp_path / "x.safetensors").metadata["blunt"] == "yes"

    def test_what_is_written_wrong_is_refused_and_not_left(self, net, tmp_path, monkeypatch):
        def half(of):
            ((path, _),) = recipe_parts.BLUNT.files(of).items()
            return {path: safetensors({key: value * 0.5 for key, value in adapter(1).items()}, {})}

        monkeypatch.setitem(FORMATS, "blunt", dataclasses.replace(recipe_parts.BLUNT, files=half))
        mixer = LoraMixer(net)
        mixer.load_lora_weights(adapter(1), "a")

        with pytest.raises(SaveError):
            mixer.save_lora_weights(tmp_path / "x.safetensors", "a", format="blunt")
        assert list(tmp_path.iterdir()) == []

    def test_files_are_converted_to_it_by_the_command(self, tmp_path):
        save_file(adapter(1), tmp_path / "a.safetensors")
        out = tmp_path / "out.safetensors"
        done = CliRunner().invoke(
            app, ["convert", str(tmp_path / "a.safetensors"), str(out), "--to", "blunt"]
        )

        assert done.exit_code == 0, done.output
        assert torch.allclose(change(load_file(out), "one"), change(adapter(1), "one"), atol=1e-6)

    @pytest.mark.parametrize("command", ["convert", "merge", "resize", "extract"])
    def test_help_names_it(self, command):
        told = " ".join(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output.split())

        assert "blunt: pairs by their live paths" in told

    def test_a_format_that_there_is_not_is_refused_with_all_names(self, net, tmp_path):
        save_file(adapter(1), tmp_path / "a.safetensors")
        with pytest.raises(SaveError, match="diffusers, kohya, comfyui, peft, blunt, got 'sharp'"):
            convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", format="sharp")

    def test_the_page_offers_it(self):
        pytest.importorskip("gradio")
        from lora_mixer.ui import checks

        assert checks.choice("blunt", "Format", tuple(FORMATS), "export-format") == "blunt"


class TestFreshKind:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setitem(fresh.KINDS, "HRA", recipe_parts.REFLECTIONS)

    def test_it_is_trained_saved_and_read_by_its_configuration(self, net, tmp_path):
        base, mixer = weights(net), LoraMixer(net)
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
        plain = net(x)
        mixer.add_adapter(fresh.HRAConfig(r=2, target_modules=["one"]), "a")
        ((name, parameter),) = mixer.named_trainable_parameters("a")

        assert (name.endswith("one.hra_u"), parameter.shape) == (True, (6, 2))
        assert torch.allclose(net(x), plain, atol=1e-6)
        net(x).sum().backward()
        assert parameter.grad.abs().max() > 0
        with torch.no_grad():
            parameter += torch.randn(6, 2, generator=torch.Generator().manual_seed(4))
        mixer.save_lora_weights(tmp_path / "out", format="peft")
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "HRA"
        other = Net()
        LoraMixer(other).load_lora_weights(tmp_path / "out", "a")
        unit = torch.nn.functional.normalize(parameter.detach(), dim=0)
        turned = base["one.weight"]
        for column in unit.T:
            turned = turned - 2 * (turned @ column).outer(column)
        assert torch.allclose(other.one.weight, turned, atol=1e-5)

    def test_dicts_mean_it_and_what_is_wrong_is_told(self, net):
        mixer = LoraMixer(net)
        assert mixer.add_adapter({"peft_type": "HRA", "r": 2, "target_modules": ["two"]}, "a").matched == 1
        for config in ({"r": 0, "target_modules": ["two"]}, {"r": 2, "ranks": 3}):
            with pytest.raises(AdapterConfigError):
                mixer.add_adapter({"peft_type": "HRA", **config}, "b")

    def test_its_usual_targets_are_its_own(self, net):
        net.config = SimpleNamespace(model_type="net")
        mixer = LoraMixer(net)
        mixer.add_adapter(fresh.HRAConfig(r=2), "a")

        assert [name for name, _ in mixer.named_trainable_parameters("a")] == ["base_model.model.two.hra_u"]

    def test_its_name_is_one_of_the_room(self):
        with pytest.raises(AttributeError, match="HRBConfig"):
            fresh.HRBConfig  # noqa: B018 -- the look is what is tested
        assert fresh.HRAConfig is recipe_parts.HRAConfig


class TestStart:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setitem(STARTS, "first-inputs", recipe_parts.FIRST_INPUTS)

    def test_a_fresh_pair_starts_so_and_is_saved_as_a_pair_that_all_can_read(self, net, tmp_path):
        mixer, config = (
            LoraMixer(net),
            LoraConfig(r=2, target_modules=["one"], init_lora_weights="first-inputs"),
        )
        mixer.add_adapter(config, "a")
        down, up = (parameter for _, parameter in mixer.named_trainable_parameters("a"))

        assert torch.equal(down.detach(), torch.eye(2, 6))
        assert torch.equal(up.detach(), torch.zeros(6, 2))
        with torch.no_grad():
            up += 1
        mixer.save_lora_weights(tmp_path / "out", format="peft")
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["init_lora_weights"] is True
        other = Net()
        LoraMixer(other).load_lora_weights(tmp_path / "out", "a")
        x = torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
        assert torch.allclose(other(x), net(x), atol=1e-6)

    def test_what_it_is_not_for_and_what_there_is_not_are_told(self):
        layers = torch.nn.ModuleDict({"table": torch.nn.Embedding(5, 6)})
        with pytest.raises(AdapterConfigError, match="'first-inputs' needs"):
            LoraMixer(layers).add_adapter(
                LoraConfig(r=2, target_modules=["table"], init_lora_weights="first-inputs")
            )
        with pytest.raises(AdapterConfigError, match="'eva', 'first-inputs', got 'last-inputs'"):
            LoraMixer(layers).add_adapter(
                LoraConfig(r=2, target_modules=["table"], init_lora_weights="last-inputs")
            )


class TestEngineOfBatches:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setitem(WORKER_ENGINES, "counted", recipe_parts.COUNTED)

    def test_it_makes_a_plans_pictures(self, tmp_path, monkeypatch):
        monkeypatch.setattr(recipe_parts.CountedInProcess, "sent", 0)
        make_model(tmp_path)
        plan = plan_for(tmp_path, tmp_path / "out", [{"grid": {"seed": "1..2"}, "mix": "a:1"}])

        results = list(run_plan(plan, engine="counted"))

        assert [result.status for result in results] == ["done", "done"]
        assert recipe_parts.CountedInProcess.sent > 0

    def test_help_and_completion_name_it_and_what_there_is_not_is_told(self, tmp_path):
        told = " ".join(CliRunner().invoke(app, ["batch", "--help"], env={"COLUMNS": "300"}).output.split())

        assert "counted: this process, counting" in told
        assert engines("cou") == ["counted"]
        with pytest.raises(PlanError, match="local, processes, ray, counted, got 'threads'"):
            run_plan({}, engine="threads")


class TestFormOfPlans:
    @pytest.fixture(autouse=True)
    def _row(self, monkeypatch):
        monkeypatch.setitem(PLAN_FORMS, "prompts", recipe_parts.PROMPTS)

    def test_its_files_are_read_and_their_lines_told(self, tmp_path):
        (tmp_path / "a.txt").write_text("a cat\na dog\n")
        plan = load_plan(tmp_path / "a.txt")

        assert [job.prompt for job in plan.jobs] == ["a cat", "a dog"]
        assert plan.line("jobs", 1) == 2
        (tmp_path / "b.prompts").write_text("a cat\n\n")
        with pytest.raises(PlanError, match="line 2: a line without a prompt"):
            load_plan(tmp_path / "b.prompts")

    def test_help_completion_and_refusals_name_it(self, tmp_path):
        told = " ".join(CliRunner().invoke(app, ["batch", "--help"], env={"COLUMNS": "300"}).output.split())
        (tmp_path / "a.txt").touch()
        (tmp_path / "a.toml").write_text("x")

        assert ".csv, .prompts, .txt." in told
        assert plans(f"{tmp_path}/") == [f"{tmp_path}/a.txt"]
        with pytest.raises(PlanError, match=r"ends with .*\.csv, \.prompts, \.txt, got '\.toml'"):
            load_plan(tmp_path / "a.toml")
        with pytest.raises(PlanError, match="yaml, json, jsonl, csv, prompts, got 'toml'"):
            parse_plan(b"", "toml")


def test_a_source_of_adapters_is_one_row(net, monkeypatch):
    before = weights(net)
    with pytest.raises(SourceNotFoundError, match="neither a file or folder"):
        read_adapter("shelf:ink")
    monkeypatch.setattr(_resolve, "NAMED", (*_resolve.NAMED, recipe_parts.from_shelf))
    monkeypatch.setitem(recipe_parts.SHELF, "ink", save(adapter(1)))

    assert read_adapter("shelf:ink").algorithms == ("lora",)
    assert LoraMixer(net).load_lora_weights("shelf:ink", "a").complete
    assert torch.allclose(net.one.weight, before["one.weight"] + change(adapter(1), "one"), atol=1e-6)
    with pytest.raises(SourceNotFoundError):  # a path is a path
        read_adapter(Path("shelf:ink"))
