"""Programs beside the page. No browser here: Playwright's loop in this thread would be in the client's way."""

from __future__ import annotations

from lora_mixer import Mix
from lora_mixer.picture_metadata import read_picture
from tests.browser import STEPS


def test_the_api_makes_pictures_for_programs(site):
    """The example of docs/ui.md."""
    from gradio_client import Client

    url, app = site
    client = Client(url, verbose=False)
    found = client.predict("ink", "", "Name", 0, api_name="/adapters")
    assert "ink" in [
        entry["name"] for entry in found["entries"]
    ]  # other tests of this server may have added copies of it
    (made,) = client.predict(
        "a castle, ink sketch", "ink:0.8", 7, STEPS, 3.0, 128, 128, "", 1, api_name="/make"
    )
    assert (made["seed"], made["mix"]) == (7, "ink:0.8")
    settings = read_picture(app.pictures / f"{made['id']}.png")
    assert (settings.seed, settings.mix) == (7, Mix.of("ink:0.8"))
    assert client.predict(made["id"], api_name="/picture")["prompt"] == "a castle, ink sketch"
    assert settings.adapters[0].hashes


def test_arguments_have_names_types_and_defaults(site):
    from gradio_client import Client

    url, app = site
    client = Client(url, verbose=False)
    about = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    takes = {
        each["parameter_name"]: (each["python_type"]["type"], each["parameter_has_default"])
        for each in about["/make"]["parameters"]
    }

    assert takes["prompt"] == ("str", False)
    assert takes["mix"] == ("str", True)
    assert takes["seed"] == takes["steps"] == takes["clip_skip"] == ("int", True)
    assert takes["guidance_scale"] == ("float", True)
    (made,) = client.predict(
        prompt="an owl", steps=STEPS, seed=5, sampler="Euler a", clip_skip=1, api_name="/make"
    )
    settings = read_picture(app.pictures / f"{made['id']}.png")
    assert (settings.seed, settings.sampler, settings.clip_skip, settings.width) == (
        5,
        "Euler a",
        1,
        app.models.facts.size[0],
    )
    assert client.predict(api_name="/adapters")["total"] > 0


def test_tools_of_the_model_context_protocol_are_behind_a_flag(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    import lora_mixer.ui.app as page
    from lora_mixer.cli._app import app

    flags = []
    monkeypatch.setattr(page, "launch", lambda *_, mcp, **__: flags.append(mcp))

    for more in ([], ["--mcp"]):
        assert CliRunner().invoke(app, ["ui", "--out", str(tmp_path), *more]).exit_code == 0
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "mcp", None)
    missing = CliRunner().invoke(app, ["ui", "--out", str(tmp_path), "--mcp"])

    assert flags == [False, True]
    assert missing.exit_code == 2
    assert "[mcp]" in missing.stderr
