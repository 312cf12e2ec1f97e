"""Patterns, numbers, tensors and files that are made to hurt: refused in the package's own words, soon, and short."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from lora_mixer import (
    CorruptFileError,
    InvalidAdapterError,
    LoraMixer,
    LoraMixerError,
    SaveError,
    SourceError,
    SourceNotFoundError,
    read_adapter,
)
from lora_mixer.formats import reader
from lora_mixer.formats.pickles import load_pickle
from lora_mixer.library import Library, SavedMixes, layer_norms
from lora_mixer.merging.low_rank import pair_of, truncate
from lora_mixer.parsing.module_patterns import ModulePatterns, PatternTooHardError, compiled


def model(width=8):
    return nn.ModuleDict({"net": nn.Linear(width, width)})


def pair(width=8):
    return {"net.lora_A.weight": torch.ones(2, width), "net.lora_B.weight": torch.ones(width, 2)}


EXPLODING = (
    "(a|a)*b",
    "(a+)+b",
    "(.*a){20}b",
    "a*a*a*a*b",
    "(a|aa)(a|aa)(a|aa)(a|aa)b",
    "a?a?a?aaab",
    "(?=a)b",
    "x" * 3000,
)


class TestPatterns:
    @pytest.mark.parametrize("pattern", EXPLODING)
    def test_what_may_need_exponential_time_is_refused(self, pattern):
        with pytest.raises(PatternTooHardError):
            compiled(pattern)

    @pytest.mark.parametrize("pattern", EXPLODING)
    @pytest.mark.parametrize("field", ["alpha_pattern", "rank_pattern"])
    def test_so_are_files_with_it(self, pattern, field, tmp_path):
        meta = {"lora_adapter_metadata": json.dumps({"r": 2, field: {pattern: 4}})}
        save_file(pair(), tmp_path / "x.safetensors", meta)
        with pytest.raises(InvalidAdapterError, match=field):
            read_adapter(tmp_path / "x.safetensors")

    @pytest.mark.parametrize(
        "pattern",
        [
            "to_q",
            "attn1.to_q",
            r"attn1\.to_q",
            "^mid.attn1.to_q",
            "to_[qk]",
            "attn.*",
            "(to_q|to_k)",
            ".*q$",
            r"attn\d+.to_q",
        ],
    )
    def test_ordinary_ones_match_as_pefts_do(self, pattern):
        names = (
            "mid.attn1.to_q",
            "attn1.to_q",
            "to_q",
            "xto_q",
            "mid.attn1.to_v",
            "mid_attn1_to_q",
            "attn12.to_q",
            "",
        )
        for name in names:
            right = re.match(rf"(?:.*\.)?(?:{pattern})$", name) is not None
            assert (ModulePatterns({pattern: 1}).find(name) is not None) == right, name

    def test_the_first_that_matches_counts(self):
        table = ModulePatterns({"nothing": 1, "attn.to_q": 2, "to_.*": 3, "to_q": 4})
        assert [table.find(name) for name in ("x.attn.to_q", "x.to_q", "x.to_k", "x")] == [2, 3, 3, None]

    def test_patterns_together_have_a_budget(self):
        table = ModulePatterns({f".*a.*{number}": number for number in range(2000)})
        names = ["a." * 200] * 2000
        with pytest.raises(PatternTooHardError, match="too much work"):
            list(map(table.find, names))

    def test_many_names_are_no_work(self):
        table = ModulePatterns({f"block{number}.to_q": number for number in range(50_000)})
        assert [table.find(f"x.block{number}.to_q") for number in range(0, 50_000, 50)] == list(
            range(0, 50_000, 50)
        )


@pytest.mark.parametrize(
    "number", [int("9" * 400), -int("9" * 400), float("inf"), float("nan"), True, "4", None, [4]]
)
@pytest.mark.parametrize("field", ["lora_alpha", "r"])
def test_numbers_that_are_none_are_refused(number, field, tmp_path):
    save_file(pair(), tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps({field: number})})
    if number is None:
        read_adapter(tmp_path / "x.safetensors")
        return
    with pytest.raises(InvalidAdapterError, match=field) as caught:
        read_adapter(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 500


class TestFilesThatChange:
    def test_one_that_is_cut_between_header_and_tensors(self, tmp_path, monkeypatch):
        path = tmp_path / "x.safetensors"
        save_file(pair(4096), path)
        whole = reader.read_data

        def cut(*given):
            os.truncate(path, 500)
            return whole(*given)

        monkeypatch.setattr(reader, "read_data", cut)
        with pytest.raises(CorruptFileError, match="truncated while reading"):
            LoraMixer(model(4096)).load_lora_weights(path, "a")

    def test_one_that_is_written_anew_while_it_is_read(self, tmp_path, monkeypatch):
        path = tmp_path / "x.safetensors"
        save_file(pair(64), path)
        whole = reader.read_data

        def again(*given):
            found = whole(*given)
            path.write_bytes(path.read_bytes())
            os.utime(path, ns=(1, 1))
            return found

        monkeypatch.setattr(reader, "read_data", again)
        with pytest.raises(CorruptFileError, match="changed while it was read"):
            LoraMixer(model(64)).load_lora_weights(path, "a")

    def test_tensors_that_were_read_stay_when_the_file_goes(self, tmp_path):
        path, root = tmp_path / "x.safetensors", model(64)
        save_file(pair(64), path)
        before = root["net"].weight.detach().clone()
        mixer = LoraMixer(root)
        mixer.load_lora_weights(path, "a")
        os.truncate(path, 0)
        mixer.set_adapters("a", 0.5)
        assert torch.allclose(root["net"].weight, before + 1)

    @pytest.mark.parametrize("extra", [{}, {"net.diff_b": torch.ones(8)}])
    def test_a_description_of_one_that_is_cut(self, extra, tmp_path, monkeypatch):
        path = tmp_path / "x.safetensors"
        save_file({**pair(), **extra, "net.alpha": torch.tensor(1.0)}, path)
        whole = reader.read_header

        def cut(*given):
            found = whole(*given)
            os.truncate(path, found.data_start)
            return found

        monkeypatch.setattr(reader, "read_header", cut)
        with contextlib.suppress(CorruptFileError):  # what was in a buffer already is still right
            assert read_adapter(path).alphas == (1.0,)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    for source in (tmp_path / "x.safetensors", tmp_path):
        with pytest.raises(SourceError):
            read_adapter(source)


def _freed():
    tensor = torch.ones(2, 8)
    tensor.untyped_storage().resize_(0)
    return tensor


ODD = {
    "meta": lambda: torch.ones(2, 8, device="meta"),
    "sparse": lambda: torch.ones(2, 8).to_sparse(),
    "CSR": lambda: torch.eye(2, 8).to_sparse_csr(),
    "mkldnn": lambda: torch.ones(2, 8).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 8)]),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2, 8), 0.1, 0, torch.qint8),
    "freed": _freed,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_without_plain_values_are_refused(kind):
    root = model()
    with pytest.raises(InvalidAdapterError, match=r"net\.lora_A\.weight"):
        LoraMixer(root).load_lora_weights({**pair(), "net.lora_A.weight": ODD[kind]()}, "a")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("key", ["net.lora_A.weight", "net.lora_B.weight"])
@pytest.mark.parametrize("kind", ["meta", "sparse", "CSR", "quantised", "nested"])
def test_so_are_those_of_a_pickle(kind, key, tmp_path):
    shape = pair()[key].shape
    odd = torch.ones(shape, device="meta") if kind == "meta" else ODD[kind]()
    torch.save({**pair(), key: odd}, tmp_path / "x.pt")
    root = model()
    before = root["net"].weight.detach().clone()
    with pytest.raises(LoraMixerError, match=r"x\.pt"):
        LoraMixer(root).load_lora_weights(tmp_path / "x.pt", "a", allow_pickle=True)
    assert torch.equal(root["net"].weight, before)


def _folded(kind: str) -> dict[str, torch.Tensor]:
    one = torch.ones(1)
    wide = torch.ones(1 << 12)
    return {
        "repeated": {"net.lora_A.weight": one.expand(1 << 14, 8), "net.lora_B.weight": one.expand(8, 1 << 14)},
        "without end": {"net.lora_A.weight": one.as_strided((1 << 26, 8), (0, 0)), "net.lora_B.weight": one.as_strided((8, 1 << 26), (0, 0))},
        "windows": {"net.diff": wide.as_strided((1 << 11, 1 << 11), (1, 1))},
        "many names": {f"net{number}.diff": wide for number in range(64)},
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["repeated", "without end", "windows", "many names"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_tensors_of_a_pickle_stand_for_no_more_than_it_holds(kind, nested, zipped, tmp_path):
    """A storage of 4 bytes may have any shape by its strides; a copy of that to a device would have all of it."""
    table = _folded(kind)
    content = {"state_dict": table} if nested else table
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    for call in (LoraMixer(model()).load_lora_weights, read_adapter):
        with pytest.raises(CorruptFileError, match="stand for"):
            call(tmp_path / "a.pt", allow_pickle=True)
    torch.save({"<w>": torch.ones(1).expand(1 << 14, 8)}, tmp_path / "word.pt")
    with pytest.raises(CorruptFileError, match="stand for"), (tmp_path / "word.pt").open("rb") as stream:
        load_pickle(stream, "word.pt")  # as textual inversions are read


def test_tied_tensors_of_a_pickle_are_read(tmp_path):
    tied = torch.ones(8, 2)
    torch.save({"net.lora_A.weight": tied.T, "net.lora_B.weight": tied}, tmp_path / "a.pt")
    assert read_adapter(tmp_path / "a.pt", allow_pickle=True).ranks == (2,)


@pytest.mark.parametrize(
    "source",
    [
        "x" * 5000,
        "a/" * 3000,
        "~nobody-of-this-name/x.safetensors",
        "https://[::1/x/y",
        "https://huggingface.co/..%2f..%2fetc/x",
    ],
)
def test_names_that_nothing_can_have_are_not_found(source):
    with pytest.raises(SourceNotFoundError) as caught:
        read_adapter(source, local_files_only=True)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("argument", ["weight_name", "subfolder"])
def test_so_are_names_in_a_folder(argument, tmp_path):
    with pytest.raises(SourceError, match="too long"):
        read_adapter(tmp_path, **{argument: "x" * 5000})


def test_a_closed_stream_is_a_source_that_cannot_be_read():
    stream = io.BytesIO(save(pair()))
    stream.close()
    with pytest.raises(SourceError, match="cannot be read"):
        read_adapter(stream)


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_messages_are_bounded(size):
    for raw in (
        b'{"' + b"k" * size + b'":1}',
        b'{"a":' + b"1" * size + b"}",
        b'{"a":"' + b"k" * size + b'"}',
    ):
        with pytest.raises(LoraMixerError) as caught:
            read_adapter(len(raw).to_bytes(8, "little") + raw)
        assert len(str(caught.value)) <= 10_000


@pytest.mark.parametrize(("out", "rank", "inp"), [(1, 30_000, 1), (2, 5000, 3), (40, 3, 50), (8, 8, 8)])
def test_norms_need_no_more_than_the_smaller_of_product_and_core(out, rank, inp):
    g = torch.Generator().manual_seed(0)
    down, up = torch.randn(rank, inp, generator=g), torch.randn(out, rank, generator=g)
    found = layer_norms({"lora_unet_x.lora_down.weight": down, "lora_unet_x.lora_up.weight": up})
    (norm,) = found.layers.values()
    assert norm == pytest.approx(float((up.double() @ down.double()).norm()), rel=1e-9)


def test_more_orthogonal_reflections_than_inputs_are_refused(tmp_path):
    save_file({"base_model.model.net.hra_u": torch.ones(2, 1000)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "HRA", "apply_GS": True}))
    with pytest.raises(InvalidAdapterError, match="more reflections than inputs"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("stages", [33, 20_000])
def test_butterflies_of_too_many_stages_are_refused(stages):
    with pytest.raises(InvalidAdapterError, match="butterfly stages"):
        read_adapter({"lora_unet_net.oft_blocks": torch.zeros(stages, 1, 2, 2)})


FORMS = [
    (w1, w2, tucker)
    for w1 in (True, False)
    for w2 in (True, False)
    for tucker in (False, True)
    if not (w2 and tucker)
]


@pytest.mark.parametrize(("w1_full", "w2_full", "tucker"), FORMS)
@pytest.mark.parametrize(
    "sizes", [((2, 2), (4, 2)), ((4, 4), (32, 32)), ((16, 2), (8, 64)), ((2, 32), (64, 4))]
)
@pytest.mark.parametrize("layer", ["linear", "1x1", "3x3", "conv1d", "conv3d"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lokr_in_every_form_on_every_layer_is_the_kronecker_product(
    w1_full, w2_full, tucker, sizes, layer, dtype
):
    (a, c), (b, d) = sizes
    kernel = {"linear": (), "1x1": (1, 1), "3x3": (3, 3), "conv1d": (3,), "conv3d": (1, 2, 2)}[layer]
    if tucker and not kernel:
        pytest.skip("cores are for kernels")
    kind = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
    root = nn.ModuleDict({"net": kind(c * d, a * b, kernel) if kernel else nn.Linear(c * d, a * b)}).double()
    g = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=g, dtype=dtype) * 0.2

    file = (
        {"net.lokr_w1": draw(a, c)} if w1_full else {"net.lokr_w1_a": draw(a, 2), "net.lokr_w1_b": draw(2, c)}
    )
    w1 = file["net.lokr_w1"] if w1_full else file["net.lokr_w1_a"].double() @ file["net.lokr_w1_b"].double()
    count = int(torch.tensor(kernel).prod()) if kernel else 1
    if w2_full:
        file["net.lokr_w2"] = draw(b, d, *kernel)
        w2 = file["net.lokr_w2"].double()
    elif tucker:
        file |= {"net.lokr_w2_a": draw(3, b), "net.lokr_w2_b": draw(3, d), "net.lokr_t2": draw(3, 3, *kernel)}
        parts = (file[f"net.lokr_{part}"].double() for part in ("t2", "w2_a", "w2_b"))
        w2 = torch.einsum("ij...,ip,jr->pr...", *parts)
    else:
        file |= {"net.lokr_w2_a": draw(b, 3), "net.lokr_w2_b": draw(3, d * count)}
        w2 = (file["net.lokr_w2_a"].double() @ file["net.lokr_w2_b"].double()).reshape(b, d, *kernel)
    flat = w2.reshape(b, d, -1)
    right = torch.einsum("ac,bdk->abcdk", w1.double(), flat).reshape(root["net"].weight.shape)
    before = root["net"].weight.detach().clone()
    LoraMixer(root).load_lora_weights(file, "a")
    torch.testing.assert_close(root["net"].weight, before + right, rtol=1e-6, atol=1e-6)


class TestLibraries:
    @pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\0", "%", "x" * 100_000])
    def test_a_search_for_any_text_gives_a_page(self, text, tmp_path):
        library = Library(tmp_path, index=tmp_path / "i.sqlite")
        assert library.search(text).total == 0
        assert library.find(text) == ()
        assert library.search("", base=text, algorithm=text, folder=text).total == 0

    @pytest.mark.parametrize("name", [None, 5, "\ud800", b"x"])
    def test_an_entry_that_is_not_there_is_not_found(self, name, tmp_path):
        with pytest.raises(SourceNotFoundError):
            Library(tmp_path, index=tmp_path / "i.sqlite").get(name)

    @pytest.mark.parametrize("order", [[[1]], [{}], "ab", None, [None, 3]])
    def test_a_history_that_makes_no_sense_is_taken_back_as_far_as_it_goes(self, order, tmp_path):
        step = {"old": {"a": None}, "order": order}
        book = {"format": 1, "mixes": {"a": {"mix": "x:1"}, "b": {"mix": "x:1"}}, "history": [step]}
        (tmp_path / "mixes.json").write_text(json.dumps(book))
        SavedMixes(tmp_path / "mixes.json").undo()
        assert json.loads((tmp_path / "mixes.json").read_text())["mixes"].keys() == {"b"}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("shrink", [truncate, pair_of])
def test_what_is_not_finite_has_no_low_rank_form(value, shrink):
    matrix = torch.ones(4, 4)
    matrix[1, 2] = value
    with pytest.raises(SaveError, match="not finite"):
        shrink(matrix, rank=1) if shrink is truncate else shrink(matrix)
