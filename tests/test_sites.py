"""Missing adapters are found by hash on a model site, a stand-in here; nothing is asked unless somebody says so."""

from __future__ import annotations

import hashlib
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from lora_mixer.cli._app import app
from lora_mixer.demo import demo_adapters
from lora_mixer.errors import CorruptFileError, SourceError
from lora_mixer.picture_metadata import PictureAdapter, PictureSettings, match_adapters, save_picture
from lora_mixer.sites import SITE, ModelSite, SiteFile
from tests.site_standin import SiteStandIn

INK = demo_adapters()["ink"].path.read_bytes()
SHA = hashlib.sha256(INK).hexdigest()


@pytest.fixture
def site():
    with SiteStandIn() as standin:
        standin.add("ink sketch.safetensors", INK, model=7, version=70)
        yield standin


@pytest.mark.parametrize("digits", [SHA, SHA.upper(), SHA[:10], "0x" + SHA[:10], ("b" + SHA)[:64]])
def test_a_file_is_known_by_any_of_its_hashes(site, digits):
    found = ModelSite(site.endpoint).by_hash(digits)

    assert (found.name, found.title, found.version, found.base) == (
        "ink sketch.safetensors",
        "Ink",
        "v70",
        "SD 1.5",
    )
    assert (found.words, found.size, found.hashes["sha256"]) == (("ink sketch",), len(INK), SHA)
    assert found.page == f"{site.root}/models/7?modelVersionId=70"
    assert found.licence == "credit the maker; commercial use: Image; derivatives allowed"


def test_what_the_site_does_not_know_is_none_and_no_hash_is_an_error(site):
    assert ModelSite(site.endpoint).by_hash("12345678") is None
    with pytest.raises(SourceError, match="expected a hash of 8 to 64"):
        ModelSite(site.endpoint).by_hash("../../x")
    assert [path for path, _ in site.requests] == ["/api/v1/model-versions/by-hash/12345678"]


def test_a_newer_version_for_the_same_base_is_shown_and_others_are_not(site):
    asked = ModelSite(site.endpoint)
    found = asked.by_hash(SHA)
    assert asked.newest(found) is None

    site.add("ink xl.safetensors", b"xl", model=7, version=80, base="SDXL 1.0")
    assert asked.newest(found) is None
    site.add("ink 2.safetensors", b"two", model=7, version=90)

    assert (asked.newest(found).version, asked.newest(found).name) == ("v90", "ink 2.safetensors")
    assert asked.newest(asked.by_hash(hashlib.sha256(b"two").hexdigest())) is None


def test_a_pictures_missing_adapters_are_found_and_fetched_and_match_then(site, tmp_path):
    settings = PictureSettings(adapters=(
        PictureAdapter("other name", 0.8, hashes={"autov2": SHA[:10]}), PictureAdapter("nowhere", hashes={"autov2": "ab" * 5}),
        PictureAdapter("without"),
    ))  # fmt: skip
    asked = ModelSite(site.endpoint)

    found = asked.find(match_adapters(settings, {}).missing)
    path = asked.download(found["other name"], tmp_path)

    assert set(found) == {"other name"}
    assert (path.name, path.read_bytes()) == ("ink sketch.safetensors", INK)
    from lora_mixer import read_adapter

    matched = match_adapters(settings, {path.stem: read_adapter(path)})
    assert (matched.slots[0].match, matched.slots[0].found_by) == ("ink sketch", "hash")


def test_what_comes_must_have_the_hash_and_the_size(site, tmp_path):
    asked = ModelSite(site.endpoint)
    found = asked.by_hash(SHA)
    for other in (INK[:-1], INK + b"x" * (3 << 20)):
        site.content["/files/70"] = other
        with pytest.raises(CorruptFileError):
            asked.download(found, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [({"name": "x.ckpt"}, "not a .safetensors file"), ({"hashes": {}}, "states no SHA-256"),
     ({"address": "file:///etc/passwd"}, "must begin with https"), ({"address": "http://example.org/x"}, "must begin with https"),
     ({"address": "ftp://127.0.0.1/x"}, "must begin with https")],
)  # fmt: skip
def test_what_cannot_be_checked_is_not_fetched(site, change, says, tmp_path):
    from dataclasses import replace

    asked = ModelSite(site.endpoint)
    with pytest.raises(SourceError, match=says):
        asked.download(replace(asked.by_hash(SHA), **change), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_lose_their_folders_and_files_that_are_there_stay(site, tmp_path):
    site.add("..\\..\\.evil/../deep.safetensors", b"deep", model=8, version=81)
    asked = ModelSite(site.endpoint)

    path = asked.download(asked.by_hash(hashlib.sha256(b"deep").hexdigest()), tmp_path)

    assert path == tmp_path / "deep.safetensors"
    with pytest.raises(SourceError, match="is there already"):
        asked.download(asked.by_hash(hashlib.sha256(b"deep").hexdigest()), tmp_path)


@pytest.mark.parametrize("moved", ["file:///etc/passwd", "http://example.org/x", "gopher://127.0.0.1/"])
def test_redirections_stay_in_the_web(site, moved, tmp_path):
    asked = ModelSite(site.endpoint)
    found = asked.by_hash(SHA)
    site.moved = moved
    with pytest.raises(SourceError):
        asked.download(found, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_token_goes_to_the_site_alone(site, tmp_path):
    with SiteStandIn() as other:
        other.content["/x"] = INK
        asked = ModelSite(site.endpoint, token="secret")
        found = asked.by_hash(SHA)
        site.moved = f"{other.root}/x"

        asked.download(found, tmp_path)

    assert {header for _, header in site.requests} == {"Bearer secret"}
    assert other.requests == [("/x", None)]


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[1]", b"{" * 100_000, b"\xff\xfe", b'"x"'])
def test_answers_that_are_none_are_one_sentence(site, raw):
    site.raw = raw
    with pytest.raises(SourceError, match="answered"):
        ModelSite(site.endpoint).by_hash(SHA)


@pytest.mark.parametrize(
    ("status", "says"), [(401, "needs a token"), (403, "needs a token"), (500, "status 500"), (429, "429")]
)
def test_refusals_are_one_sentence(site, status, says):
    site.status = status
    with pytest.raises(SourceError, match=says):
        ModelSite(site.endpoint).by_hash(SHA)


def test_a_site_that_is_away_or_no_site_is_one_sentence(site):
    address = site.endpoint
    site.__exit__()
    try:
        with pytest.raises(SourceError, match="does not answer"):
            ModelSite(address, timeout=2).by_hash(SHA)
    finally:
        site.__enter__()
    for odd in ("ftp://x", "x", "http://example.org"):
        with pytest.raises(SourceError, match="must begin with https"):
            ModelSite(odd)


@pytest.mark.parametrize(
    "odd", [{"files": 3}, {"files": [None, {"name": 5, "sizeKB": "x", "hashes": [1]}]}, {"model": "x"}]
)
def test_odd_values_are_left_out(site, odd):
    site.raw = json.dumps({"id": 1, "modelId": {}, "files": [], **odd}).encode()

    assert ModelSite(site.endpoint).by_hash(SHA) is None


def test_a_site_of_ones_own_can_be_named(monkeypatch, site):
    monkeypatch.setenv("LORA_MIXER_SITE", site.endpoint)
    assert ModelSite().by_hash(SHA).version == "v70"
    monkeypatch.delenv("LORA_MIXER_SITE")
    assert ModelSite().endpoint == SITE


# --- the command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def picture(tmp_path):
    settings = PictureSettings("x", adapters=(PictureAdapter("his ink", 0.8),))
    return save_picture(
        Image.new("RGB", (8, 8)), tmp_path / "his.png", settings, hashes={"his ink": {"autov2": SHA[:10]}}
    )


def run(*arguments):
    return CliRunner().invoke(app, ["find", *(str(x) for x in arguments)])


def test_the_command_asks_nobody_unless_told(site, picture, monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_MIXER_SITE", site.endpoint)

    result = run(picture)

    assert result.exit_code == 1
    assert "his ink: not here" in result.stdout
    assert site.requests == []
    assert run(picture, "--get", tmp_path).exit_code == 2


def test_the_command_finds_in_folders_then_on_the_site_and_fetches(site, picture, tmp_path):
    there = demo_adapters()["ink"].path.parent
    asked = ("--ask", "--site", site.endpoint, "--json")

    local = run(picture, "--loras", there, "--json")
    row = json.loads(run(picture, *asked).stdout)["adapters"]["his ink"]
    site.add("ink 2.safetensors", b"two", model=7, version=90)
    fetched = run(picture, *asked, "--get", tmp_path / "new")
    again = run(picture, "--loras", tmp_path / "new", "--ask", "--site", site.endpoint)

    assert local.exit_code == 0
    assert json.loads(local.stdout)["adapters"]["his ink"]["path"].endswith("ink.safetensors")
    assert (row["path"], row["site"]["title"], row["newest"]) == (None, "Ink", None)
    assert fetched.exit_code == 0, fetched.stderr
    assert (tmp_path / "new" / "ink sketch.safetensors").read_bytes() == INK
    assert again.exit_code == 0
    assert "newer: v90" in again.stdout


def test_the_command_takes_files_and_hashes(site):
    file = demo_adapters()["ink"].path

    rows = json.loads(run(file, SHA[:10], "--ask", "--site", site.endpoint, "--json").stdout)["adapters"]

    assert [row["site"]["version"] for row in rows.values()] == ["v70", "v70"]
    assert isinstance(ModelSite(site.endpoint).by_hash(SHA), SiteFile)
