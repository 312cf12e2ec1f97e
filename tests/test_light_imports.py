"""The library imports lightly, and a part whose packages are missing says which extra brings them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lora_mixer.extras import EXTRAS

HEAVY = (
    "torch",
    "diffusers",
    "transformers",
    "gradio",
    "PIL",
    "numpy",
    "typer",
    "rich",
    "yaml",
    "pydantic",
    "fsspec",
)


def run(script: str, without: tuple[str, ...] = (), code: int = 0) -> str:
    """Run a script in a Python that does not have some packages; return what it printed, errors included."""
    hidden = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    done = subprocess.run(
        [sys.executable, "-c", hidden + script], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_import_of_the_package_brings_nothing_heavy():
    script = f"import lora_mixer\nprint([name for name in {HEAVY} if name in sys.modules])"

    assert run(script, ()).strip() == "[]"


def test_the_command_helps_without_torch_diffusers_and_gradio():
    script = "sys.argv = ['lora-mixer', '--help']\nfrom lora_mixer.cli import main\nmain()"

    told = run(script, ("torch", "diffusers", "transformers", "gradio", "lora_mixer.mixes", "rich.progress"))

    assert all(command in told for command in ("inspect", "generate", "batch", "merge", "ui"))


def test_every_command_helps_without_torch():
    script = (
        "from typer.main import get_command\nfrom lora_mixer.cli._app import app\n"
        "for name in get_command(app).commands:\n"
        "    try:\n        app([name, '--help'])\n"
        "    except SystemExit as end:\n        print(f'{name} = {end.code}')\n"
    )

    told = run(script, ("torch", "numpy", "diffusers", "transformers"))

    ends = [line for line in told.splitlines() if " = " in line]
    assert len(ends) > 12
    assert all(line.endswith(" = 0") for line in ends)


def test_the_library_works_without_any_extra():
    every = tuple(name for names in EXTRAS.values() for name in names)
    script = (
        "import torch\nfrom lora_mixer import LoraMixer\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))\n"
        "base = model[0].weight.clone()\nmixer = LoraMixer(model)\n"
        "lora = {'0.lora_A.weight': torch.ones(1, 4), '0.lora_B.weight': torch.ones(4, 1)}\n"
        "mixer.load_lora_weights(lora, adapter_name='a')\nmixer.set_mix('a:0.5')\n"
        "assert torch.allclose(model[0].weight, base + 0.5)\n"
        "mixer.disable_lora()\nassert torch.equal(model[0].weight, base)\nprint('restored')"
    )

    # huggingface_hub and diffusers need these two themselves
    assert (
        run(script, tuple(name for name in every if name not in ("yaml", "fsspec", "pydantic"))).strip()
        == "restored"
    )


@pytest.mark.parametrize(
    ("extra", "missing", "script"),
    [
        ("batch", "pydantic", "from lora_mixer import run_plan"),
        ("batch", "yaml", "from lora_mixer import check_plan"),
        ("batch", "yaml", "from lora_mixer import Mix\nMix.from_yaml('a: 0.5')"),
        ("ui", "gradio", "from lora_mixer.ui import build"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(extra: str, missing: str, script: str):
    body = "".join(f"    {line}\n" for line in script.split("\n"))
    caught = f"try:\n{body}except Exception as error:\n    print(type(error).__name__, error)"

    told = run(caught, (missing,))

    assert told.startswith("MissingExtraError")
    assert missing in told
    assert f"[{extra}]'" in told


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"), [(["--help"], "typer", "cli"), (["ui"], "gradio", "ui")]
)
def test_the_command_tells_it_in_one_line(arguments: list[str], missing: str, extra: str):
    script = f"sys.argv = ['lora-mixer', *{arguments}]\nfrom lora_mixer.cli import main\nmain()"

    told = run(script, (missing,), code=1 if missing == "typer" else 2)

    assert "Traceback" not in told
    assert missing in told
    assert f"[{extra}]'" in " ".join(told.split())


def test_an_adapter_is_described_without_torch():
    script = (
        "import struct, json\nfrom lora_mixer import read_adapter\n"
        "shapes = {'lora_unet_conv_in.lora_down.weight': [2, 4], 'lora_unet_conv_in.lora_up.weight': [8, 2]}\n"
        "table, at = {}, 0\n"
        "for key, (a, b) in shapes.items():\n"
        "    table[key] = {'dtype': 'F32', 'shape': [a, b], 'data_offsets': [at, at + 4 * a * b]}\n"
        "    at += 4 * a * b\n"
        "raw = json.dumps(table).encode()\n"
        "info = read_adapter(struct.pack('<Q', len(raw)) + raw + bytes(at))\n"
        "print(info.format, info.ranks, info.dtypes, info.bytes)"
    )

    assert run(script, ("torch", "numpy", "diffusers")).strip() == "kohya (2,) ('float32',) 96"
