"""Adapters from Hub repositories: found, downloaded, cached, and refused with a reason."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from lora_mixer.errors import AmbiguousSourceError, CorruptFileError, SourceError, SourceNotFoundError
from lora_mixer.sources import resolve_source
from tests.hub_standin import COMMIT, TOKEN, HubStandIn, Repo

CONFIG = b'{"peft_type": "LORA", "r": 4}'


def test_the_only_adapter_of_a_repository_is_downloaded_with_its_commit(hub):
    hub.repos["user/repo"] = Repo({"README.md": b"# x", "style.safetensors": b"weights"})

    source = resolve_source("user/repo")

    assert source.label == "user/repo: style.safetensors"
    assert source.weights.read_bytes() == b"weights"
    assert (source.repo_id, source.revision, source.config) == ("user/repo", COMMIT, None)


def test_a_peft_repository_comes_with_its_config(hub):
    hub.repos["user/repo"] = Repo({"adapter_config.json": CONFIG, "adapter_model.safetensors": b"weights"})

    assert resolve_source("user/repo").config == {"peft_type": "LORA", "r": 4}


def test_several_candidates_are_listed(hub):
    hub.repos["user/repo"] = Repo({"a.safetensors": b"a", "b.safetensors": b"b", "c.txt": b"c"})

    with pytest.raises(
        AmbiguousSourceError, match=r"user/repo: holds .*'a.safetensors', 'b.safetensors'.*weight_name="
    ):
        resolve_source("user/repo")

    assert resolve_source("user/repo", weight_name="b.safetensors").weights.read_bytes() == b"b"


def test_files_of_whole_models_are_no_candidates(hub):
    hub.repos["user/repo"] = Repo(
        {
            "pytorch_lora_weights.safetensors": b"lora",
            "diffusion_pytorch_model.fp16.safetensors": b"x",
            "model-00001-of-00002.safetensors": b"x",
            "unet/diffusion_pytorch_model.safetensors": b"x",
            "optimizer.bin": b"x",
        }
    )

    assert resolve_source("user/repo").weights.read_bytes() == b"lora"


def test_only_the_subfolder_is_looked_at_when_one_is_named(hub):
    hub.repos["user/repo"] = Repo(
        {"a.safetensors": b"a", "styles/b.safetensors": b"b", "styles/adapter_config.json": CONFIG}
    )

    source = resolve_source("user/repo", subfolder="styles")

    assert source.label == "user/repo: styles/b.safetensors"
    assert (source.weights.read_bytes(), source.config["r"]) == (b"b", 4)


def test_an_adapter_in_a_folder_below_is_pointed_at(hub):
    hub.repos["user/repo"] = Repo({"styles/b.safetensors": b"b"})

    with pytest.raises(SourceNotFoundError, match=r"subfolder='styles'"):
        resolve_source("user/repo")


@pytest.mark.parametrize("form", ["blob", "resolve"])
def test_a_files_address_names_repository_revision_and_file(hub, form):
    hub.repos["user/repo"] = Repo({"s/a.safetensors": b"a", "b.safetensors": b"b"}, branches=("main", "v 2"))

    source = resolve_source(f"{hub.endpoint}/user/repo/{form}/v%202/s/a.safetensors?download=true")

    assert (source.label, source.weights.read_bytes()) == ("user/repo: s/a.safetensors", b"a")


def test_a_repositorys_and_a_folders_address_work_like_their_names(hub):
    hub.repos["user/repo"] = Repo({"a.safetensors": b"a", "s/b.safetensors": b"b"})

    assert resolve_source(f"{hub.endpoint}/user/repo").weights.read_bytes() == b"a"
    assert resolve_source(f"{hub.endpoint}/user/repo/tree/main/s").weights.read_bytes() == b"b"


def test_an_address_and_arguments_that_disagree_are_refused(hub):
    with pytest.raises(SourceError, match=r"revision='main', the call says 'v2'"):
        resolve_source(f"{hub.endpoint}/user/repo/blob/main/a.safetensors", revision="v2")


@pytest.mark.parametrize("path", ["user", "user/repo/issues/1", "user/repo/blob/main", "user/repo/resolve"])
def test_an_address_of_something_else_at_the_hub_is_refused(hub, path):
    with pytest.raises(SourceNotFoundError, match="/USER/REPO/blob/main/FILE"):
        resolve_source(f"{hub.endpoint}/{path}")


def test_an_address_elsewhere_is_refused(hub):
    with pytest.raises(SourceNotFoundError, match="Download the file and pass its path"):
        resolve_source("https://example.org/a.safetensors")

    assert hub.requests == []


def test_a_missing_repository_says_what_to_check(hub):
    with pytest.raises(SourceNotFoundError, match=r"user/nope: There is no such repository.*token="):
        resolve_source("user/nope")

    with pytest.raises(SourceNotFoundError, match=r"user/nope: There is no such repository"):
        resolve_source("user/nope", weight_name="a.safetensors")


def test_a_missing_revision_is_named(hub):
    hub.repos["user/repo"] = Repo({"a.safetensors": b"a"})

    for weight_name in (None, "a.safetensors"):
        with pytest.raises(SourceNotFoundError, match="no revision 'v9'"):
            resolve_source("user/repo", weight_name=weight_name, revision="v9")


def test_a_missing_file_is_named(hub):
    hub.repos["user/repo"] = Repo({"a.safetensors": b"a"})

    with pytest.raises(
        SourceNotFoundError, match=r"user/repo: s/b.safetensors: There is no such file at revision 'main'"
    ):
        resolve_source("user/repo", weight_name="b.safetensors", subfolder="s")


def test_a_gated_repository_opens_with_a_token_only(hub):
    hub.repos["user/repo"] = Repo({"a.safetensors": b"a"}, gated=True)

    with pytest.raises(SourceError, match=r"user/repo: is gated.*token="):
        resolve_source("user/repo", token=False)

    assert resolve_source("user/repo", token=TOKEN).weights.read_bytes() == b"a"


def test_a_hub_that_refuses_is_reported_with_its_status(hub):
    hub.broken = 403

    with pytest.raises(SourceError, match="HTTP 403"):
        resolve_source("user/repo")


def test_a_broken_config_is_named(hub):
    hub.repos["user/repo"] = Repo({"adapter_config.json": b"{", "adapter_model.safetensors": b"weights"})

    with pytest.raises(CorruptFileError, match=r"adapter_config.json: must be a JSON object"):
        resolve_source("user/repo")


def test_a_pickle_is_not_even_downloaded_unless_allowed(hub):
    hub.repos["user/repo"] = Repo({"adapter_model.bin": b"pickle"})

    for weight_name in (None, "adapter_model.bin"):
        with pytest.raises(SourceError, match="allow_pickle=True"):
            resolve_source("user/repo", weight_name=weight_name)
    assert not any("/resolve/" in request for request in hub.requests)

    assert resolve_source("user/repo", allow_pickle=True).weights.read_bytes() == b"pickle"


@pytest.mark.parametrize("argument", ["weight_name", "subfolder"])
@pytest.mark.parametrize("value", ["../x.safetensors", "/etc/x.safetensors", "a/../../x", "C:\\x", "..\\x"])
def test_names_that_lead_out_of_the_repository_are_refused(hub, argument, value):
    with pytest.raises(SourceError, match=f"{argument} must be a relative path"):
        resolve_source("user/repo", **{argument: value})

    assert hub.requests == []


def test_proxies_are_refused_with_the_way_that_works(hub):
    with pytest.raises(SourceError, match="HTTPS_PROXY"):
        resolve_source("user/repo", proxies={"https": "http://proxy:8080"})

    assert hub.requests == []


def test_a_second_load_takes_the_cached_file(hub):
    hub.repos["user/repo"] = Repo({"a.safetensors": b"a"})
    resolve_source("user/repo")
    hub.requests.clear()

    resolve_source("user/repo")

    assert not any(request.startswith("GET /user/") for request in hub.requests)


def test_force_download_gets_it_again(hub):
    hub.repos["user/repo"] = Repo({"a.safetensors": b"a"})
    resolve_source("user/repo")
    hub.requests.clear()

    resolve_source("user/repo", force_download=True)

    assert "GET /user/repo/resolve/main/a.safetensors" in hub.requests


def load_once(hub, cache, **kwargs):
    hub.repos["user/repo"] = Repo(
        {"adapter_config.json": CONFIG, "adapter_model.safetensors": b"weights", "b.safetensors": b"b"},
        branches=("main", "v2"),
    )
    resolve_source("user/repo", weight_name="adapter_model.safetensors", cache_dir=cache, **kwargs)
    hub.requests.clear()


@pytest.mark.parametrize("weight_name", [None, "adapter_model.safetensors"])
@pytest.mark.parametrize("revision", [None, "v2", COMMIT])
def test_what_was_loaded_once_loads_without_the_hub(hub, tmp_path, weight_name, revision):
    load_once(hub, tmp_path, revision=revision)

    source = resolve_source(
        "user/repo", weight_name=weight_name, revision=revision, cache_dir=tmp_path, local_files_only=True
    )

    assert (source.label, source.weights.read_bytes()) == ("user/repo: adapter_model.safetensors", b"weights")
    assert (source.config["r"], source.revision) == (4, COMMIT)
    assert hub.requests == []


def test_offline_mode_of_the_environment_asks_nobody(hub, tmp_path, monkeypatch):
    load_once(hub, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    assert resolve_source("user/repo", cache_dir=tmp_path).weights.read_bytes() == b"weights"
    assert hub.requests == []


@pytest.mark.parametrize("weight_name", [None, "a.safetensors"])
def test_offline_and_not_cached_says_so(hub, tmp_path, weight_name):
    with pytest.raises(SourceNotFoundError, match=r"user/repo.* not in the cache .*HF_HUB_OFFLINE"):
        resolve_source("user/repo", weight_name=weight_name, cache_dir=tmp_path, local_files_only=True)


def test_offline_a_revision_that_was_never_loaded_is_not_taken_from_another(hub, tmp_path):
    load_once(hub, tmp_path)

    with pytest.raises(SourceNotFoundError, match="revision 'v2'"):
        resolve_source("user/repo", revision="v2", cache_dir=tmp_path, local_files_only=True)


def test_offline_a_revision_cannot_lead_out_of_the_cache(hub, tmp_path):
    with pytest.raises(SourceError, match="revision must be a relative path"):
        resolve_source("user/repo", revision="../../x", cache_dir=tmp_path, local_files_only=True)


def test_a_hub_that_is_gone_leaves_what_is_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HubStandIn() as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.endpoint)
        load_once(standin, tmp_path)

    assert resolve_source("user/repo", cache_dir=tmp_path).weights.read_bytes() == b"weights"

    with pytest.raises(SourceError, match=r"user/other.*Check the network"):
        resolve_source("user/other", cache_dir=tmp_path)


def test_a_snapshot_folder_of_the_cache_can_be_given_as_a_path(hub, tmp_path):
    load_once(hub, tmp_path)
    snapshot = tmp_path / "models--user--repo" / "snapshots" / COMMIT

    assert resolve_source(snapshot).weights.read_bytes() == b"weights"
