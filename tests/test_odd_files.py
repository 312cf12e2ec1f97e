"""Files that are not what their name says, or that change nothing: each is told by its content."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from torch import nn

from lora_mixer import (
    LoraMixer,
    MatchError,
    NotAnAdapterError,
    PartialMatchWarning,
    SourceError,
    read_adapter,
)


def model(bias=True):
    return nn.ModuleDict({"net": nn.Linear(8, 8, bias=bias)})


def pair(up=1.0):
    return {"net.lora_A.weight": torch.ones(2, 8), "net.lora_B.weight": torch.full((8, 2), up)}


UNTRAINED = {
    "LoRA": pair(0.0),
    "LoRA, down": {"net.lora_down.weight": torch.zeros(2, 8), "net.lora_up.weight": torch.ones(8, 2)},
    "LoHa": {
        f"net.hada_{part}": torch.zeros(shape) if part == "w2_a" else torch.ones(shape)
        for part, shape in (("w1_a", (8, 2)), ("w1_b", (2, 8)), ("w2_a", (8, 2)), ("w2_b", (2, 8)))
    },
    "LoKr": {
        "net.lokr_w1": torch.ones(2, 2),
        "net.lokr_w2_a": torch.zeros(4, 2),
        "net.lokr_w2_b": torch.ones(2, 4),
    },
    "full": {"net.diff": torch.zeros(8, 8)},
    "full with bias": {"net.diff": torch.zeros(8, 8), "net.diff_b": torch.zeros(8)},
    "LoRA and a bias": {**pair(0.0), "net.diff_b": torch.zeros(8)},
    "bfloat16": {key: value.bfloat16() for key, value in pair(0.0).items()},
    "float8": {key: value.to(torch.float8_e4m3fn) for key, value in pair(0.0).items()},
}


@pytest.mark.parametrize("file", UNTRAINED.values(), ids=UNTRAINED)
def test_a_file_that_changes_nothing_gets_a_note(file):
    root = model()
    base = {key: value.clone() for key, value in root.state_dict().items()}
    report = LoraMixer(root).load_lora_weights(file, "a")
    assert any("change nothing" in note for note in report.notes)
    assert all(torch.equal(base[key], value) for key, value in root.state_dict().items())


@pytest.mark.parametrize(
    "file",
    [
        pair(),
        {**pair(0.0), "net.diff_b": torch.ones(8)},
        {**pair(0.0), "net.lora_B.bias": torch.ones(8)},
        {"net.diff": torch.eye(8).roll(1, 0)},
        {"net.diff": torch.zeros(8, 8), "net.diff_b": torch.ones(8)},
    ],
)
def test_a_file_that_changes_something_gets_none(file):
    assert LoraMixer(model()).load_lora_weights(file, "a").notes == ()


@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.bin", "x.pth"])
@pytest.mark.parametrize("trusted", [True, False])
def test_safetensors_under_a_pickles_name_are_read_as_what_they_are(name, trusted, tmp_path):
    save_file(pair(), tmp_path / name)
    root = model()
    before = root["net"].weight.detach().clone()
    LoraMixer(root).load_lora_weights(tmp_path / name, "a", allow_pickle=trusted)
    assert torch.allclose(root["net"].weight, before + 2)
    assert read_adapter(tmp_path / name, allow_pickle=trusted).format == "plain"


def test_a_pickle_under_the_name_of_safetensors_is_called_one(tmp_path):
    torch.save(pair(), tmp_path / "x.safetensors")
    with pytest.raises(NotAnAdapterError, match="PyTorch pickle"):
        read_adapter(tmp_path / "x.safetensors")


TEXTS = {
    "HTML": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML page"),
    "HTML behind white space": (b"\n\n          \n<html><head></head></html>", "HTML page"),
    "HTML behind a byte order mark": (b"\xef\xbb\xbf<html><head></head></html>", "HTML page"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "HTML page"),
    "JSON": (b'{"error":"Invalid username or password."}', "JSON text"),
    "a JSON list": (b'[{"error": "not found"}]', "JSON text"),
    "plain text": (b"Repository not found, or you have no access to it.", "a text"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "Git LFS pointer"),
}


PAGE = "<!DOCTYPE html><html><title>Accès refusé – 403</title><body>Доступ запрещён</body></html>"
for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
    TEXTS[f"HTML in {encoding}"] = (PAGE.encode(encoding), "HTML page")
TEXTS |= {
    "HTML in Latin-1": (PAGE[:40].encode("latin-1"), "HTML page"),
    "JSON in UTF-16": ('{"error": "nicht gefunden"}'.encode("utf-16"), "JSON text"),
    "a text in Russian": ("Доступ запрещён: войдите".encode(), "a text .'Доступ запрещён"),
    "a text in KOI8-R": ("Доступ запрещён: войдите".encode("koi8-r"), "a text"),
    "a text that is cut within a letter": (("x" + "é" * 600).encode(), "a text .'xéé"),
    "a short text": (b"404", "a text"),
    "Git LFS with another end of lines": (
        b"version https://git-lfs.github.com/spec/v1\r\noid x\r\n",
        "Git LFS pointer",
    ),
}


def archive(kind):
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w") as box:
            box.writestr("lora.safetensors", save(pair()))
    else:
        with tarfile.open(fileobj=packed, mode="w") as box:
            member = tarfile.TarInfo("lora.safetensors")
            member.size = len(save(pair()))
            box.addfile(member, io.BytesIO(save(pair())))
    return packed.getvalue()


def picture(kind):
    drawn = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 10)).save(drawn, kind)
    return drawn.getvalue()


# a gzip file without a time begins with a possible length of a header, so it has to be longer than that
LONG = save({"net.lora_A.weight": torch.rand(64, 3000, generator=torch.Generator().manual_seed(0))})
TEXTS |= {
    "gzip": (gzip.compress(save(pair())), "gzip archive; unpack"),
    "long gzip": (gzip.compress(LONG, mtime=0), "gzip archive; unpack"),
    "bzip2": (bz2.compress(LONG), "bzip2 archive; unpack"),
    "xz": (lzma.compress(LONG), "xz archive; unpack"),
    "zip": (archive("zip"), r"zip archive; unpack it, .*lora.safetensors"),
    "tar": (archive("tar"), "tar archive; unpack"),
    **{kind: (picture(kind), f"a {kind} picture") for kind in ("PNG", "JPEG", "GIF", "WebP")},
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(90), "a PDF"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(100), "GGUF file, which is not read here"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file"),
    "NumPy": (b"\x93NUMPY\x01\0v\0{'descr': '<f4'}" + bytes(90), "NumPy file"),
}


@pytest.mark.parametrize(("content", "said"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "x.bin"])
def test_a_text_in_place_of_a_file_is_called_what_it_is(content, said, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NotAnAdapterError, match=said):
        read_adapter(tmp_path / name, allow_pickle=True)
    with pytest.raises(NotAnAdapterError, match=said):
        read_adapter(content)


@pytest.mark.parametrize(
    "content", [b"", bytes(90), b"\x08\x07\x12\x07pytorch" + bytes(90), save(pair())[:20]]
)
def test_what_no_pickle_begins_with_is_not_given_to_its_loader(content, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(NotAnAdapterError, match=r"not a PyTorch file: it (is empty|begins with)"):
        read_adapter(tmp_path / "x.ckpt", allow_pickle=True)


@pytest.mark.parametrize("extra", [{"animatediff_config": {"rank": 4}}, {"epoch": 3, "global_step": 70}])
@pytest.mark.parametrize("nested", [True, False])
def test_settings_beside_a_pickles_tensors_are_left_alone_with_a_note(extra, nested, tmp_path):
    table = {**pair(), **extra}
    torch.save({"state_dict": table} if nested else table, tmp_path / "x.ckpt")
    report = LoraMixer(model()).load_lora_weights(tmp_path / "x.ckpt", "a", allow_pickle=True)
    assert report.complete
    assert any(next(iter(extra)) in note for note in report.notes)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_the_name_of_safetensors_is_read_where_its_error_says(zipped, tmp_path):
    torch.save(pair(), tmp_path / "x.safetensors", _use_new_zipfile_serialization=zipped)
    for allowed in (False, True):
        with pytest.raises(NotAnAdapterError, match=r"name it \.pt and pass allow_pickle=True"):
            read_adapter(tmp_path / "x.safetensors", allow_pickle=allowed)
    (tmp_path / "x.safetensors").rename(tmp_path / "x.pt")
    report = LoraMixer(model()).load_lora_weights(tmp_path / "x.pt", "a", allow_pickle=True)
    assert report.complete


def test_a_pickle_of_settings_alone_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(NotAnAdapterError):
        read_adapter(tmp_path / "x.pt", allow_pickle=True)


@pytest.mark.parametrize(
    "options",
    [{"low_cpu_mem_usage": True}, {"low_cpu_mem_usage": False}, {"use_safetensors": True}, {"proxies": {}}],
)
def test_arguments_of_diffusers_are_taken(options, tmp_path):
    save_file(pair(), tmp_path / "x.safetensors")
    assert LoraMixer(model()).load_lora_weights(tmp_path / "x.safetensors", "a", **options).matched == 1


def test_use_safetensors_refuses_a_pickle(tmp_path):
    torch.save(pair(), tmp_path / "x.pt")
    with pytest.raises(SourceError, match="only such were asked for"):
        LoraMixer(model()).load_lora_weights(tmp_path / "x.pt", "a", use_safetensors=True, allow_pickle=True)


class Experts:
    """Two denoisers with the same modules, as Wan 2.2 has them."""

    device = torch.device("cpu")

    def __init__(self):
        self.components = {"transformer": model(), "transformer_2": model()}
        self.__dict__.update(self.components)


def test_load_into_transformer_2_is_short_for_the_component():
    mixer = LoraMixer(Experts())
    file = {f"transformer.{key}": value for key, value in pair().items()}
    report = mixer.load_lora_weights(file, "low", load_into_transformer_2=True)
    assert [part.component for part in report.components] == ["transformer_2"]
    with pytest.raises(MatchError, match="two components"):
        mixer.load_lora_weights(file, "b", load_into_transformer_2=True, component="transformer")


@pytest.mark.parametrize("key", ["net.lora_A.weight.cat", "net.something", "other.alpha"])
def test_keys_that_end_up_nowhere_warn(key):
    with pytest.warns(PartialMatchWarning, match=key):
        LoraMixer(model()).load_lora_weights({**pair(), key: torch.ones(1)}, "a")


def test_a_stream_is_judged_by_its_content_too():
    assert read_adapter(save(pair())).ranks == (2,)
