"""docs/transformers.md: its samples run in the order in which they stand, on tiny models under the names of the page."""

from __future__ import annotations

import ast
import copy
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from safetensors.torch import save_file

from tests.models import tiny_sdxl

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "transformers.md"


def test_each_of_the_fourteen_rows_names_a_test_that_is_there() -> None:
    rows = re.findall(
        r"^\| (\d+) \|.*`(tests/\w+\.py)::(test_row_(\d+)_\w+)` \|$", PAGE.read_text(), re.MULTILINE
    )
    assert [int(number) for number, *_ in rows] == list(range(1, 15))
    for number, file, name, own in rows:
        assert int(own) == int(number)
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name


def opt() -> Any:
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=41,
        hidden_size=64,
        ffn_dim=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        word_embed_proj_dim=64,
        init_std=0.3,
    )
    return transformers.OPTForCausalLM(config)


def lay_out() -> None:
    """Write what the page names into the working directory."""
    opt().save_pretrained("facebook/opt-350m")
    model = peft.get_peft_model(
        opt(),
        peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.peft_config["default"].base_model_name_or_path = "facebook/opt-350m"
    model.save_pretrained("ybelkada/opt-350m-lora")
    pipe = tiny_sdxl()
    pipe.save_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    for seed, place in enumerate(
        (
            "peft-internal-testing/artificialguybr__3DRedmond-V1/3DRedmond-3DRenderStyle-3DRenderAF",
            "ostris/super-cereal-sdxl-lora/cereal_box_sdxl_v1",
        )
    ):
        generator = torch.Generator().manual_seed(seed)
        table = {}
        for name, module in pipe.unet.named_modules():
            if name.endswith(("to_q", "to_v")):
                table[f"unet.{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator)
                table[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator)
        Path(place).parent.mkdir(parents=True)
        save_file(table, f"{place}.safetensors")


def test_every_sample_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT and transformers use words that go
        lay_out()
        ids = torch.tensor([[3, 9, 17, 23, 5, 30]])
        names: dict[str, Any] = {
            "inputs": {"input_ids": ids, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False},
            "train_dataset": [{"input_ids": ids[0], "labels": ids[0]}] * 4,
            "args": transformers.TrainingArguments(
                output_dir="out",
                max_steps=2,
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
            ),
        }
        blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        seen: list[dict[str, Any]] = []
        for block in blocks:
            exec(compile(block, PAGE.name, "exec"), names)  # noqa: S102 -- our own page
            seen.append(copy.copy(names))

    base = opt().eval().generate(**names["inputs"])
    assert len(blocks) == 8
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "facebook" / "opt-350m").eval()
    theirs.load_adapter(str(tmp_path / "ybelkada" / "opt-350m-lora"))
    assert torch.equal(seen[1]["output"], theirs.generate(**names["inputs"]))
    assert seen[2]["mixer"].pipe.is_loaded_in_8bit
    assert not torch.equal(names["output_1"], names["output_2"])
    assert torch.equal(names["output_base"], base)
    assert torch.equal(names["output_again"], names["output_2"])
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert seen[6]["mixer"].get_active_adapters() == ["default_0"]
    assert any("lm_head" in key for key, _ in seen[6]["mixer"].named_trainable_parameters("default_0"))
    assert names["mixer"].get_active_adapters() == []
    assert list(names["mixer"].adapters) == ["3d", "cereal"]
