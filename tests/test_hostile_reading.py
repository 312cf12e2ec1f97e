"""Patterns, numbers, tensors and files that are made to hurt: refused in the package's own words, soon, and short."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import pickle
import random
import re
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file
from torch import nn

from lora_mixer import (
    AdapterConfigError,
    CorruptFileError,
    InvalidAdapterError,
    LoraMixer,
    LoraMixerError,
    Mix,
    MixError,
    SaveError,
    SourceError,
    SourceNotFoundError,
    from_adapter,
    read_adapter,
)
from lora_mixer.formats import container, reader
from lora_mixer.formats.fronts import split_component
from lora_mixer.formats.pickles import load_pickle
from lora_mixer.library import Library, SavedMixes, layer_norms
from lora_mixer.library.norms import block_of
from lora_mixer.merging import MergeMethod
from lora_mixer.merging.low_rank import pair_of, truncate
from lora_mixer.mixes import LayerPatterns, Mask
from lora_mixer.parsing.expressions import Expression
from lora_mixer.parsing.module_patterns import ModulePatterns, PatternTooHardError, compiled
from lora_mixer.parsing.yaml_nodes import plain_value
from lora_mixer.pictures import ip_adapters, outline
from lora_mixer.sources import AdapterSource
from lora_mixer.writing import convert, extract


def model(width=8):
    return nn.ModuleDict({"net": nn.Linear(width, width)})


def pair(width=8):
    return {"net.lora_A.weight": torch.ones(2, width), "net.lora_B.weight": torch.ones(width, 2)}


@contextlib.contextmanager
def processor_seconds(most=5):
    """End what takes longer, as no small file may: an alarm of the processor's time, not of the clock's."""

    def end(*_):
        pytest.fail(f"has no end within {most} s of the processor")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


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
        ("form", "most"),
        [("block{}.to_q", 0), ("^x.block{}.to_q$", 0), ("block{}.*", 6001)],
    )
    def test_none_is_compiled_that_no_module_may_mean(self, form, most, monkeypatch):
        asked, compile_ = [], re.compile
        monkeypatch.setattr(re, "compile", lambda *args: asked.append(args) or compile_(*args))
        table = ModulePatterns({form.format(number): number for number in range(50_000, 80_000)})
        assert not asked
        assert [table.find("x.block56000.to_q") for _ in range(2)] == [56_000, 56_000]
        assert len(asked) == most

    def test_compiling_counts_as_work(self):
        table = ModulePatterns({f"ab{number}?": number for number in range(20_000)})
        with pytest.raises(PatternTooHardError, match="too much work"):
            table.find("c")

    @pytest.mark.parametrize(
        "table",
        [
            {mark * length: 1 for length in range(1, 700) for mark in "._-"},
            {".*": 1, **{f"x{number}.*": 2 for number in range(50_000)}},
        ],
        ids=["marks", "the first matches all"],
    )
    def test_those_that_are_tried_at_every_module_end(self, table):
        patterns = ModulePatterns(table)
        with processor_seconds(), contextlib.suppress(PatternTooHardError):
            assert {patterns.find(f"m{number}.{'_' * 690}") for number in range(8000)} == {1}


def configured(state, **config):
    """Read a state dict with a configuration beside it."""
    source = AdapterSource(label="x", weights=state, config={"r": 2, "lora_alpha": 2, **config})
    with processor_seconds():
        return {layer.target.module: layer.weights for layer in reader.read_source(source).layers}


MODULES, ENTRIES = range(500), 300_000


class TestTables:
    """A configuration with many entries beside a file of many modules takes the sum of both, not the product."""

    @pytest.mark.parametrize("front", ["", "m499."])
    def test_ends_of_names(self, front):
        state = {f"base_model.model.m{n}.q.ia3_l": torch.ones(4) for n in MODULES}
        names = [f"z{number}" for number in range(ENTRIES)] + [f"{front}q"]
        layers = configured(state, peft_type="IA3", feedforward_modules=names)
        assert [name for name, weights in layers.items() if weights.on_input] == [
            f"m{n}.q" for n in MODULES if not front or n == 499
        ]

    def test_masks_of_ranks(self):
        state = {}
        for n in MODULES:
            key = f"base_model.model.m{n}.q.lora_"
            state |= {f"{key}A": torch.ones(2, 4), f"{key}B": torch.ones(4, 2), f"{key}E": torch.ones(2, 1)}
        masks = {f"z{number}.lora_E": [True] for number in range(ENTRIES // 3)}
        masks |= {"base_model.model.m7.q.lora_E": [True, False], "m7.q": [True, True]}
        layers = configured(state, peft_type="ADALORA", rank_pattern=masks)
        assert {name for name, weights in layers.items() if weights.rank == 1} == {"m7.q"}

    def test_ids_of_tokens(self):
        state = {
            f"base_model.model.m{n}.emb.token_adapter.trainable_tokens_delta": torch.ones(2, 4)
            for n in MODULES
        }
        table = {f"z{number}": [1] for number in range(ENTRIES // 3)} | {
            "m7.emb": [5, 6],
            "emb": [3, 4],
            "m8.emb": [7, 8],
        }
        layers = configured(state, peft_type="TRAINABLE_TOKENS", trainable_token_indices=table)
        assert layers["m7.emb"].indices.tolist() == [5, 6]
        assert layers["m8.emb"].indices.tolist() == [3, 4]  # the first that means the module

    def test_names_of_parameters(self):
        state = {}
        for n in MODULES:
            key = f"base_model.model.m{n}.lora_"
            state |= {f"{key}A.weight": torch.ones(2, 4), f"{key}B.weight": torch.ones(4, 2)}
        far = [f"z.w{number}" for number in range(ENTRIES // 10)]
        layers = configured(state, peft_type="LORA", target_parameters=[*far, "m7.up", "m7.down"])
        assert [name for name, _, _ in layers["m7"].scales] == ["up", "down"]
        for bad, said in (
            ([f"w{n}" for n in range(ENTRIES)], "at most 64"),
            ([*far, 5], "list of names"),
            (5, "list of names"),
        ):
            with pytest.raises(InvalidAdapterError, match=said):
                configured(state, peft_type="LORA", target_parameters=bad)

    @pytest.mark.parametrize(
        "field",
        ["target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters"],
    )
    def test_of_a_fresh_adapter(self, field, tmp_path):
        live = nn.ModuleDict(
            {
                "model": nn.ModuleDict(
                    {"layers": nn.ModuleList(nn.ModuleDict({"q": nn.Linear(2, 2)}) for _ in MODULES)}
                )
            }
        )
        config = {"peft_type": "LORA", "target_modules": ["q"], "r": 1, "layers_to_transform": [3]}
        many = [f"z{number}.w" for number in range(ENTRIES // 5)]
        if field == "exclude_modules":
            many.append("layers.4.q")
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, field: many}))
        mixer = LoraMixer(live)
        with processor_seconds():
            if field == "exclude_modules":
                assert mixer.add_adapter(str(tmp_path / "adapter_config.json"), "a")
                return
            with pytest.raises(AdapterConfigError) as caught:
                mixer.add_adapter(str(tmp_path / "adapter_config.json"), "a")
        assert len(str(caught.value)) < 12_000


UNITS = (
    "mid_",
    "lora_",
    "to_q_",
    "_orig_mod.",
    "base_model.model.",
    "diffusion_model.",
    "1.",
    ".",
    "a",
    "down_blocks_1_",
)


ENDLESS = (
    r"(\w|.)*!", r"((\w+)\.?)+!", r"(\w|.)" * 40 + "!", r"(?:\w|.){60}!", r"(?:.{60}){60}!", ".*" * 60 + "!", r"(?:\w*\.?)*" * 50 + "!",
    ".*a" * 600,
)  # fmt: skip
NOT_READ = (
    "(?:(?:(?:a{1000}){1000}){1000}){1000}", "(?:(?:(?:){99999}){99999}){99999}", "(" * 600 + ")" * 600, "(a|b)" * 20_000, "(?=(.+))*!",
    r"(.*)\1", "(?(1)a|b)", "(?<=a)b", "(?i:a)", "[b-a]", "(",
)  # fmt: skip


class TestExpressionsOfLayers:
    """Those of a mix come from plans, pictures, pages."""

    NAMES = tuple(f"down_blocks.{n}.attentions.1.transformer_blocks.0.attn1.to_out.{n}.x" for n in range(40))

    @pytest.mark.parametrize("text", ENDLESS)
    def test_none_takes_longer_than_its_length_and_the_names_come_to(self, text):
        patterns = LayerPatterns({f"re:{text}": 0.5})
        with processor_seconds(), contextlib.suppress(MixError):  # too much work is an answer, too
            assert {patterns.weight("unet", name) for name in self.NAMES} <= {0.5, 1.0}

    @pytest.mark.parametrize("text", NOT_READ)
    def test_what_is_not_read_is_told_at_once_and_in_short(self, text):
        with processor_seconds(), pytest.raises(MixError) as told:
            Mix.of({"a": {"blocks": {f"re:{text}": 0.5}}})
        assert len(str(told.value)) < 600

    def test_they_mean_what_pythons_mean(self):
        draw = random.Random(3)
        atoms = [
            "a",
            "b",
            ".",
            r"\w",
            "[ab]",
            "[^a]",
            r"\.",
            r"\d",
            "_",
            r"\b",
            "^",
            "$",
            "[]a]",
            r"\x61",
            "{",
            "a{",
        ]

        def some(depth):
            kind = draw.random()
            if not depth or kind < 0.3:
                return draw.choice(atoms)
            if kind < 0.5:
                return some(depth - 1) + some(depth - 1)
            if kind < 0.75:
                return f"({draw.choice(['', '?:'])}{some(depth - 1)}|{draw.choice(['', some(depth - 1)])})"
            return f"({some(depth - 1)}){draw.choice(['*', '+', '?', '{2}', '{1,2}', '{,2}', '{1,}', '*?', '??', '{1,2}?'])}"

        tried = 0
        for _ in range(600):
            text = draw.choice(["", "", "(?i)"]) + some(4)
            try:
                right = re.compile(text)
            except re.error:
                continue
            for name in ("".join(draw.choices("abA._1{", k=draw.randrange(7))) for _ in range(4)):
                tried += 1
                assert Expression(text).matches(name) == (right.fullmatch(name) is not None), (text, name)
        assert tried > 2000

    def test_a_set_in_use_has_no_end(self):
        patterns = LayerPatterns({"re:.*[0-8]": 0.5, "*.x": 0})
        assert {patterns.weight("unet", f"a.{number}") for number in range(9000)} == {0.5, 1.0}
        patterns._work.left = 0
        assert patterns.weight("unet", "b.9.x") == 0
        assert pickle.loads(pickle.dumps(patterns)) == copy.deepcopy(patterns) == patterns

    @pytest.mark.parametrize(
        "form", ["x{}*a*", "re:x?{}.*a.*", "re:x?{}(?:.{{60}}){{60}}!", "x{}*" + "a*" * 900]
    )
    def test_all_of_a_set_have_a_budget_and_a_mix_over_it_changes_nothing(self, form, monkeypatch):
        monkeypatch.setattr("lora_mixer.mixes.patterns._WORK", 1 << 14)
        monkeypatch.setattr("lora_mixer.mixes.patterns._A_NAME", 100)
        net = nn.ModuleDict({f"{'a1_' * 40}{n}": nn.Linear(2, 2) for n in range(30)})
        mixer = LoraMixer(net)
        state = {f"{name}.lora_{side}.weight": torch.ones(2, 2) for name in net for side in "AB"}
        mixer.load_lora_weights(state, adapter_name="x")
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with pytest.raises(MixError, match="too much work"):
            mixer.set_mix({"x": {"blocks": {"*": 0.5} | {form.format(number): 0.5 for number in range(60)}}})
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class TestLongNames:
    @pytest.mark.parametrize("unit", UNITS)
    @pytest.mark.parametrize("front", ["", "lora_unet_", "base_model.model."])
    def test_names_that_no_module_has_are_refused(self, unit, front, tmp_path):
        name = front + unit * (200_000 // len(unit))
        save_file(
            {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(4, 2)},
            tmp_path / "x.safetensors",
        )
        for read in (read_adapter, layer_norms, LoraMixer(model()).load_lora_weights):
            with processor_seconds(), pytest.raises(InvalidAdapterError, match="letters") as caught:
                read(tmp_path / "x.safetensors")
            assert len(str(caught.value)) < 1000

    @pytest.mark.parametrize("unit", UNITS)
    def test_each_block_is_found_in_one_look(self, unit):
        with processor_seconds():
            assert block_of(unit * (200_000 // len(unit)) + "!")

    @pytest.mark.parametrize("unit", ["_orig_mod.", "module.", "base_model.model."])
    def test_fronts_before_fronts_have_an_end(self, unit):
        target, _ = split_component(unit * 200 + "net")
        assert sum(map(len, target.spellings)) < 20 * len(unit * 200)


@pytest.mark.parametrize("text", ["9" * 200_000 + "x", "-.5" * 70_000, "1e" * 100_000])
def test_what_begins_like_a_number_in_yaml_is_read_once(text):
    with processor_seconds():
        assert plain_value(text) == text


@pytest.mark.parametrize("text", ["ties" + " " * 100_000 + "x", " " * 100_000 + "ties(" + "a" * 100_000])
def test_what_is_no_method_is_refused_at_once(text):
    with processor_seconds(), pytest.raises(MixError):
        MergeMethod.of(text)


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
        whole = container._fill

        def again(*given):
            found = whole(*given)
            path.write_bytes(path.read_bytes())
            os.utime(path, ns=(1, 1))
            return found

        monkeypatch.setattr(container, "_fill", again)
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


def base_named_by(path, _):
    return from_adapter(path)


def extracted(path, folder):
    return extract(path, path, folder / "out.safetensors", rank=2)


def converted(path, folder):
    return convert(path, folder / "out.safetensors", format="kohya")


def loaded_as_ip_adapter(path, _):
    return ip_adapters._check_base(path, None, allow_pickle=False)


def outlined(path, _):
    return outline._widest(str(path))


def described(path, _):
    return read_adapter(path)


READERS = (base_named_by, extracted, converted, loaded_as_ip_adapter, outlined, described)


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(), reason="a file that cannot be read on is made of Linux's own"
)
@pytest.mark.parametrize("reader", READERS, ids=lambda each: each.__name__)
def test_a_file_that_the_system_cannot_read_on_is_a_source_that_cannot_be_read(reader, tmp_path):
    place = tmp_path / "x.safetensors"
    place.symlink_to("/proc/self/mem")  # opens, and fails to be read at its beginning and sought at its end
    with pytest.raises(SourceError, match=r"x\.safetensors: cannot be read"):
        reader(place, tmp_path)


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "postscript", "cut"])
@pytest.mark.parametrize(
    "form", [lambda path: Mask.of(path).load(), lambda path: Mix.of({"a": {"mask": path}})]
)
def test_a_mask_is_a_regular_file_with_a_picture(kind, form, tmp_path, monkeypatch):
    place = tmp_path / "x.png"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "zero":
        place.symlink_to("/dev/zero")
    elif kind == "folder":
        place.mkdir()
    else:
        picture = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
        if kind == "cut":
            stream = io.BytesIO()
            Image.new("L", (64, 64), 9).save(stream, "PNG")
            picture = stream.getvalue()[:60]
        place.write_bytes(picture)
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(MixError, match="not a picture that can be read"):
        form(str(place))


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
