"""The page attacked: paths, links, foreign calls, uploads; an endpoint called by hand gets the same checks as the page."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from PIL import Image
from typer.testing import CliRunner

from lora_mixer.errors import LoraMixerError
from lora_mixer.ui import checks
from lora_mixer.ui.app import check_reach
from tests.browser import serving
from tests.page_attacks import SECRET, Attacker, Table

ANYWHERE = "0.0.0.0"  # noqa: S104 -- what must be refused
PATHS = (
    "../../secret.txt",
    "/etc/passwd",
    "..%2f..%2fsecret.txt",
    "a\x00b",
    "C:\\secret.txt",
    "~/.ssh/id_rsa",
    "a" * 5000,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "out"
    (out.parent / "secret.txt").write_text(SECRET)
    with serving(out, tmp_path_factory.mktemp("cache")) as (url, app):
        yield url, app


def served(url, path):
    return httpx.get(f"{url}gradio_api/file={quote(str(path))}", follow_redirects=True, timeout=60)


def test_only_pictures_are_served(site):
    url, app = site
    Image.new("RGB", (8, 8)).save(app.pictures / "20260101-000000-000-abcdef.png")
    link = app.pictures / "20260101-000000-001-abcdef.png"
    link.symlink_to(app.out.parent / "secret.txt")
    (app.uploads / "mine.safetensors").write_bytes(b"x" * 64)
    library = app.library.folders[-1]

    assert served(url, app.pictures / "20260101-000000-000-abcdef.png").status_code == 200
    for path in (
        app.out.parent / "secret.txt",
        app.pictures / ".." / ".." / "secret.txt",
        link,
        app.uploads / "mine.safetensors",
        library / "ink.safetensors",
        library / "ink.preview.webp",
        app.out / "library.sqlite",
        "/etc/passwd",
    ):
        answer = served(url, path)
        assert answer.status_code in (403, 404), path
        assert SECRET not in answer.text
    link.unlink()


def join(client, url, index, data, event=None):
    """Call a handler by its number, as nobody's page would."""
    body = {
        "fn_index": index,
        "data": data,
        "session_hash": f"attacker{index}",
        "event_data": event,
        "trigger_id": 1,
    }
    answer = client.post(f"{url}gradio_api/queue/join", json=body)
    if answer.status_code != 200:
        return client.post(f"{url}gradio_api/run/predict", json=body).text
    told = []
    with client.stream(
        "GET", f"{url}gradio_api/queue/data", params={"session_hash": body["session_hash"]}
    ) as lines:
        for line in lines.iter_lines():
            told.append(line)
            if "process_completed" in line or "close_stream" in line or "unexpected_error" in line:
                break
    return "\n".join(told)


def test_every_handler_called_by_hand_with_paths_gives_nothing_away(site):
    url, app = site
    secret = str(app.out.parent / "secret.txt")
    mix_rows = {"rows": [{"name": secret, "mask": secret}, {"name": "ink", "mask": "../../secret"}]}
    before = sorted(path for path in app.out.parent.rglob("*") if "cache" not in path.name)
    with httpx.Client(timeout=60) as client:
        dependencies = client.get(f"{url}config").json()["dependencies"]
        assert len(dependencies) > 20
        for number, dependency in enumerate(dependencies):
            hostile = [mix_rows if number % 2 else secret for _ in dependency["inputs"]]
            event = dict.fromkeys(("id", "name", "word", "png", "page", "weight", "notes"), secret)
            text = join(client, url, dependency["id"], hostile, event)
            assert SECRET not in text
            assert "Traceback" not in text
    after = sorted(path for path in app.out.parent.rglob("*") if "cache" not in path.name)
    assert [path for path in after if path not in before and "sqlite" not in path.name] in (
        [],
        [app.out / "mixes.json.lock"],
    )


def test_uploads_are_read_only_where_uploads_lie(site):
    from lora_mixer.ui.handlers.gallery import dropped
    from lora_mixer.ui.handlers.library import upload

    _, app = site
    cache = app.out.parent / "uploads"
    cache.mkdir(exist_ok=True)
    outside = app.library.folders[-1] / "ink.safetensors"
    (cache / "link.safetensors").symlink_to(outside)
    for path in (outside, cache / "link.safetensors", cache / ".." / "secret.txt", cache / "none", "\x00"):
        added, refused = upload(app, [str(path)], str(cache))
        assert not added
        assert refused
        with pytest.raises((LoraMixerError, ValueError)):
            dropped(str(path), str(cache))
    folder = app.library.folders[-1] / "neon"  # a PEFT folder: neither of its two files may lie elsewhere
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (cache / name).write_bytes((folder / name).read_bytes())
    for first, second in ((cache, folder), (folder, cache)):
        pair = [str(first / "adapter_model.safetensors"), str(second / "adapter_config.json")]
        added, refused = upload(app, pair, str(cache))
        elsewhere = next(path for path in pair if not path.startswith(str(cache)))
        assert (added, refused) == ("", f"{Path(elsewhere).name}: it is not an upload")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 8) + b"[[[[[[[[",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,9999999]}}',
        b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        b"<script>alert(1)</script>",
    ],
)
def test_malicious_files_are_refused_and_leave_nothing(site, data):
    from lora_mixer.ui.handlers.library import upload

    _, app = site
    cache = app.out.parent / "uploads"
    cache.mkdir(exist_ok=True)
    (cache / "bad.safetensors").write_bytes(data)
    before = sorted(app.uploads.iterdir())

    added, refused = upload(app, [str(cache / "bad.safetensors")], str(cache))

    assert not added
    assert refused.startswith("bad.safetensors: ")
    assert sorted(app.uploads.iterdir()) == before


@pytest.mark.parametrize("name", PATHS)
def test_no_path_is_an_id_or_a_name_of_an_export(site, name):
    from lora_mixer.ui import gallery
    from lora_mixer.ui.handlers import export

    _, app = site
    with pytest.raises(LoraMixerError):
        checks.opaque(name, "picture")
    with pytest.raises(LoraMixerError):
        gallery.path_of(app, name)
    with pytest.raises(LoraMixerError):
        export.one_file(
            app, "me", {"rows": [{"name": "ink"}]}, {"export-name": name, "export-format": "kohya"}
        )


@pytest.mark.parametrize(
    "mix",
    [
        "ink:1,mask=/etc/passwd",
        '{"ink": {"mask": {"path": "/etc/passwd"}}}',
        '{"ink": {"blocks": {"re:(a+)+$": 1}}}',
        '{"ink": {"blocks": {"*a*a*a*a*a*a*a*a*a*": 1}}}',
        "ink:\n  mask: /etc/passwd",
        "x" * 30_000,
    ],
)
def test_a_mix_from_outside_opens_no_file_and_ends(site, mix):
    from lora_mixer.ui.mix_rows import read_mix, read_rows

    _, app = site
    with pytest.raises(LoraMixerError):
        read_mix(mix, app)
    with pytest.raises(LoraMixerError):
        read_rows({"rows": [{"name": "ink", "blocks": {"re:(a+)+$": 1}, "unet": "nan"}]})


def test_every_server_function_called_by_hand_with_anything_gives_nothing_away(site):
    url, app = site
    secret = str(app.out.parent / "secret.txt")
    keys = ("id", "name", "rows", "token", "key", "number", "to", "weight", "notes", "labels", "folder", "root", "picture", "address",
            "text", "base", "label", "sort", "first", "page", "word")  # fmt: skip
    values = (
        "0@" + "9" * 400,
        {"a": 1},
        "x" * 100_000,
        None,
        [secret],
        secret,
        *(dict.fromkeys(keys, x) for x in (secret, 7, [secret], "../..")),
    )
    before = sorted(path for path in app.out.parent.rglob("*") if "cache" not in path.name)
    names = set()
    with httpx.Client(timeout=60) as client:
        parts = client.get(f"{url}config").json()["components"]
        for part in parts:
            for name in part["props"].get("server_fns") or ():
                names.add(name)
                for value in values:
                    body = {
                        "data": value,
                        "component_id": part["id"],
                        "fn_name": name,
                        "session_hash": "attacker",
                    }
                    answer = client.post(f"{url}gradio_api/component_server", json=body)
                    assert "Traceback" not in answer.text
                    assert SECRET not in answer.text
                    assert answer.status_code == 200 or answer.status_code >= 400
                    assert answer.status_code != 500, (name, value, answer.text)
    assert len(names) > 20
    after = sorted(path for path in app.out.parent.rglob("*") if "cache" not in path.name)
    assert [
        path
        for path in after
        if path not in before
        and "sqlite" not in path.name
        and path.name != "mixes.json.lock"
        and "thumbnails" not in str(path)
    ] == []


def test_hostile_values_and_files_drawn_at_random_are_answered_or_refused(site, tmp_path):
    """``python -m tests.page_attacks`` goes through all endpoints, as often as there is time for."""
    url, app = site
    table = Table((str(app.out.parent),))
    alias = tmp_path / "alias"  # what answers repeat of what was sent is no path that they give away
    alias.symlink_to(app.out.parent)
    attacker = Attacker(url, str(alias / "secret.txt"), table, seed=20261130)
    for _ in range(40):
        attacker.upload()
    for call in attacker.dice.sample(range(len(attacker.handlers) + len(attacker.functions)), 40):
        attacker.calls = call
        attacker.attack()
    assert table.wrong == []
    assert len(table.rows) > 30


def test_a_mask_must_be_a_small_png(site):
    from lora_mixer.ui.masks import painted

    stream = io.BytesIO()
    Image.new("L", (5000, 10), 255).save(stream, format="png")
    for address in ("data:image/svg+xml;base64,AAAA", "data:image/png;base64,!!", "/etc/passwd", 7, None):
        with pytest.raises(LoraMixerError):
            painted(address)


def test_others_come_in_with_a_password_only(site):
    for host, share in (
        (ANYWHERE, False),
        ("192.168.1.5", False),
        ("example.org", False),
        ("127.0.0.1", True),
    ):
        with pytest.raises(LoraMixerError, match="--auth"):
            check_reach(host, share=share, auth=None)
        check_reach(host, share=share, auth=("user", "word"))
    check_reach("127.0.0.1", share=False, auth=None)

    from lora_mixer.cli._app import app

    found = CliRunner().invoke(app, ["ui", "--host", ANYWHERE])
    assert found.exit_code == 2
    assert "--auth" in found.output


def test_with_a_password_nothing_answers_without(site):
    from lora_mixer.ui import launch

    _, app = site
    blocks = launch(app.options, app=app, block=False, auth=("user", "word"))
    try:
        with httpx.Client(timeout=60) as client:
            for path in (
                "config",
                f"gradio_api/file={app.pictures}/20260101-000000-000-abcdef.png",
                "gradio_api/info",
            ):
                assert client.get(f"{blocks.local_url}{path}").status_code == 401
            for path in ("gradio_api/queue/join", "gradio_api/component_server", "gradio_api/upload"):
                assert client.post(f"{blocks.local_url}{path}", json={}).status_code in (401, 422), path
            assert json.loads(
                client.post(f"{blocks.local_url}login", data={"username": "user", "password": "word"}).text
            )
    finally:
        blocks.close()
