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
