"""Facts before prose: errors, reasons and notes carry fields, and nothing in the package reads its own sentences back."""

from __future__ import annotations

import ast
import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_mixer import (
    InvalidAdapterError,
    LoraMixer,
    MatchError,
    MixError,
    PictureError,
    PlanError,
    SaveError,
    read_adapter,
)
from lora_mixer.errors import LoraMixerError
from lora_mixer.library import Entry, Fit, compatible
from lora_mixer.merging import breadcrumbs, dare, della, ties
from lora_mixer.problem import AbsenceReason, NoteKind, Problem, Remark, SaveProblem, SaveReason, UnusedReason
from lora_mixer.writing import convert
from tests.models import tiny_sd

ROOT = Path(__file__).resolve().parent.parent
WORDS = re.compile(r"[A-Za-z]{2,}[,;:]? +[A-Za-z]{2,}")
READS = frozenset(
    ("startswith", "endswith", "removeprefix", "removesuffix", "find", "index", "partition", "rpartition")
)
PATTERNS = frozenset(("search", "match", "fullmatch", "findall", "finditer"))
# Texts of other programs, by file.
OTHERS = {
    "lora_mixer/pictures/loading.py": frozenset(
        ("library in str(error).lower()",)
    ),  # transformers' ImportError
    "lora_mixer/sources/_hub_errors.py": frozenset(
        ("text.endswith('.')",)
    ),  # huggingface_hub's, for its full stop
    "ui/messages.py": frozenset(
        ("'DefaultCPUAllocator' in str(error)",)
    ),  # torch's, which has no class of its own
}


def sources() -> list[Path]:
    return [path for folder in ("lora_mixer", "ui") for path in sorted((ROOT / folder).rglob("*.py"))]


def texts_of(node: ast.expr) -> list[str]:
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def asked(node: ast.AST) -> tuple[list[str], list[ast.expr]]:
    """Return the texts that an expression looks for, and the expressions that it looks into."""
    if isinstance(node, ast.Compare) and any(
        isinstance(op, ast.In | ast.NotIn | ast.Eq | ast.NotEq) for op in node.ops
    ):
        return texts_of(node.left), node.comparators
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        if node.func.attr in READS:
            return texts_of(node.args[0]), [node.func.value]
        if node.func.attr in PATTERNS:
            return texts_of(node.args[0]), [*node.args[1:], node.func.value]
    return [], []


def says_an_error(node: ast.expr, names: set[str]) -> bool:
    """Say whether an expression is made of the text of an error, or of a name that holds one."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in names:
            return True
        called = part.func if isinstance(part, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in {"str", "first_line"}:
            given = {arg.id for arg in part.args if isinstance(arg, ast.Name)}
            if given & {"error", "cause", "refusal"}:
                return True
    return False


def reads_of_errors(function: ast.AST) -> list[str]:
    names = {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and says_an_error(node.value, set())
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [
        ast.unparse(node)
        for node in ast.walk(function)
        for _, into in [asked(node)]
        if any(says_an_error(each, names) for each in into)
    ]


def read_back(path: Path, sentences: set[str]) -> list[str]:
    """Return what in a file asks something of an error's text, or looks for words of the package's own sentences."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    odd = [
        text
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for text in reads_of_errors(function)
    ]
    for node in ast.walk(tree):
        looked_for, _ = asked(node)
        odd += [
            text
            for text in looked_for
            if WORDS.search(text) and any(text in each and text != each for each in sentences)
        ]
    return odd


def test_nothing_reads_the_packages_own_sentences_back():
    sentences = {
        node.value
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and WORDS.search(node.value)
    }

    odd = {str(path.relative_to(ROOT)): read_back(path, sentences) for path in sources()}

    assert {name: texts for name, texts in odd.items() if set(texts) - OTHERS.get(name, frozenset())} == {}


@pytest.mark.parametrize(
    "line",
    [
        'if "no base" in reason: pass',
        'notes = [x for x in notes if not x.startswith("holds textual inversions")]',
        'if isinstance(cause, RuntimeError) and "anew" in str(cause): pass',
        'text = str(error)\n    if "wildcard" in text: pass',
        'if re.search("named (twice|once)", str(error)): pass',
        'family = str(error).partition(": ")[2]',
    ],
)
def test_the_test_before_finds_what_was_there_once(line, tmp_path):
    (tmp_path / "x.py").write_text(f"def f(error, cause, reason, notes):\n    {line}\n")

    assert read_back(
        tmp_path / "x.py", {"it holds textual inversions, load them", "and no base weights at hand"}
    )


UNET = "base_model.model.unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def pair(width=8, rank=2):
    return {
        f"{UNET}.lora_A.weight": torch.ones(rank, width),
        f"{UNET}.lora_B.weight": torch.ones(width, rank),
    }


@pytest.fixture
def pipe():
    return tiny_sd()


@pytest.fixture
def fitting(pipe):
    width = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.in_features
    return pair(width)


@pytest.mark.filterwarnings("ignore::lora_mixer.PartialMatchWarning")
@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("<cat>", UnusedReason.TEXTUAL_INVERSION),
        ("bundle_emb.cat.string_to_token.*", UnusedReason.ODD_TEXTUAL_INVERSION),
        ("something.else", UnusedReason.UNKNOWN_ENDING),
        ("lora_unet_nowhere.alpha", UnusedReason.LONE_SCALE),
    ],
)
def test_an_unused_key_has_a_reason_of_a_kind(pipe, fitting, key, kind):
    value = torch.tensor(4.0) if key.endswith("alpha") else torch.ones(1, 32)
    mixer = LoraMixer(pipe)

    report = mixer.load_lora_weights({**fitting, key: value}, "a")

    assert {name: why.kind for name, why in report.unused_keys.items()} == {key: kind}


@pytest.mark.filterwarnings("ignore::lora_mixer.PartialMatchWarning")
@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("unet.nowhere.to_q", AbsenceReason.NO_MODULE),
        ("text_encoder_2.text_model.x", AbsenceReason.NO_COMPONENT),
    ],
)
def test_a_module_that_is_not_there_has_a_reason_of_a_kind(pipe, fitting, module, kind):
    lone = {f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(8, 2)}
    named = {key.removeprefix("base_model.model."): tensor for key, tensor in fitting.items()}
    mixer = LoraMixer(pipe)

    report = mixer.load_lora_weights({**named, **lone}, "a")

    assert [why.kind for part in report.components for why in part.unmatched.values()] == [kind]


def test_notes_have_kinds(pipe, fitting):
    mixer = LoraMixer(pipe)
    zeros = {key: torch.zeros_like(tensor) for key, tensor in fitting.items()}

    left = mixer.load_lora_weights({**zeros, "<cat>": torch.ones(1, 12)}, "a")
    taken = mixer.load_lora_weights({**zeros, "<cat>": torch.ones(1, 12)}, "b", load_embeddings=True)

    assert [note.kind for note in left.notes] == [NoteKind.WORDS_LEFT, NoteKind.ALL_ZERO]
    assert [note.kind for note in taken.notes] == [NoteKind.ALL_ZERO, NoteKind.WORDS]


def test_a_remark_is_text_and_keeps_its_kind_when_copied():
    remark = Remark("no such module", AbsenceReason.NO_MODULE)

    for again in (remark, copy.deepcopy(remark), pickle.loads(pickle.dumps(remark))):
        assert (again, again.kind) == ("no such module", AbsenceReason.NO_MODULE)


def test_broken_modules_are_problems_with_their_keys():
    halves = {f"{UNET.replace('.0.attn1', f'.{i}.attn1')}.lora_A.weight": torch.ones(2, 8) for i in range(3)}

    with pytest.raises(InvalidAdapterError) as caught:
        read_adapter({**pair(), **halves})

    inner = UNET.removeprefix("base_model.model.")
    assert [problem.place for problem in caught.value.problems] == [
        inner.replace(".0.attn1", f".{i}.attn1") for i in (1, 2)
    ]
    assert all("no lora up" in problem.text for problem in caught.value.problems)


def test_modules_of_another_shape_are_problems_with_their_places(pipe):
    with pytest.raises(MatchError) as caught:
        LoraMixer(pipe).load_lora_weights(pair(24), "a")

    assert [problem.place for problem in caught.value.problems] == [UNET.replace("base_model.model.", "")]
    assert caught.value.file is not None


def test_what_a_format_has_no_place_for_is_a_problem_each(tmp_path):
    save_file({**pair(), "something.else": torch.ones(1)}, tmp_path / "a.safetensors")

    with pytest.raises(SaveError) as caught:
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", format="kohya")

    assert [(each.place, each.reason) for each in caught.value.problems] == [
        ("something.else", SaveReason.UNREAD)
    ]
    assert caught.value.file is not None


@pytest.mark.parametrize(
    ("own", "base", "more", "kind"),
    [
        ("SDXL", "SDXL", {}, Fit.SAME),
        ("SDXL", "SD 1.x", {}, Fit.OTHER_BASE),
        ("unknown", "SDXL", {}, Fit.FILE_UNKNOWN),
        ("SDXL", "unknown", {}, Fit.PIPELINE_UNKNOWN),
        ("SDXL", "SDXL", {"offline": True}, Fit.OFFLINE),
        ("SDXL", "SDXL", {"problem": "cut short"}, Fit.UNREADABLE),
    ],
)
def test_why_an_adapter_fits_or_not_is_of_a_kind(own, base, more, kind):
    found = compatible(Entry("1", "x", Path("x.safetensors"), Path(), base=own, **more), base)

    assert found.reason.kind is kind
    assert found.fits is (kind in {Fit.SAME, Fit.FILE_UNKNOWN, Fit.PIPELINE_UNKNOWN})


@pytest.mark.parametrize(
    "error",
    [
        MixError(problems=(Problem("ink.weight", "is odd", 3),), file="a.yaml"),
        PlanError(problems=(Problem("jobs[0]", "is odd", 3),), file="plan.yaml"),
        PictureError("is odd", field="steps"),
        SaveError("is lost", file="a.safetensors", key="x", problems=(SaveProblem("x", SaveReason.RANK),)),
        MatchError("does not fit", file="a", problems=(Problem("unet.x", "is odd"),)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_keep_their_facts_on_the_way_out_of_a_process(error):
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is type(error)
    assert (str(again), again.file, again.key, again.problems) == (
        str(error),
        error.file,
        error.key,
        error.problems,
    )
    assert again.problems


INSIDE = {
    "ExpressionError",  # caught by whoever reads a pattern, who knows where it stands
    "NoMouldError",  # of files whose tensors are read the long way
    "NotJsonError",  # caught by whoever reads a text, who knows where it stands
    "WorkerGoneError",  # from one worker of a batch to the run, which starts another
}


def test_every_error_that_users_can_meet_stands_in_one_tree():
    stray = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                if (
                    bases & {"Exception", "ValueError", "RuntimeError", "TypeError", "OSError"}
                    and len(bases) == 1
                ):
                    stray.add(node.name)

    assert stray - INSIDE == {"LoraMixerError"}


@pytest.mark.parametrize(
    "call",
    [
        lambda: ties([torch.ones(2, 2)], [1.0], 2.0),
        lambda: ties([torch.ones(2, 2)], [1.0], 0.5, majority="loudest"),
        lambda: ties([torch.ones(2, 2)], [1.0], 0.5, average="none"),
        lambda: dare([torch.ones(2, 2)], [1.0], 0.0, generators=[torch.Generator()]),
        lambda: della([torch.ones(2, 2)], [1.0], 0.5, 0.9, generators=[torch.Generator()]),
        lambda: breadcrumbs([torch.ones(2, 2)], [1.0], 0.9, 0.2),
        lambda: LoraMixer(tiny_sd(), keep_base="gpu"),
        lambda: LoraMixer(tiny_sd()).load_lora_weights(pair(), max_rank=0),
    ],
)
def test_impossible_arguments_are_errors_of_the_package(call):
    with pytest.raises(LoraMixerError) as caught:
        call()

    assert isinstance(caught.value, ValueError)
