"""Plans, wildcards, manifests and folders that are hostile or somebody else's: refused in one sentence, nothing lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lora_mixer import PlanError, SaveError, run_plan
from lora_mixer.batches import check_plan, load_plan, read_manifest
from lora_mixer.batches.manifest import open_manifest
from lora_mixer.batches.plan import parse_plan
from lora_mixer.errors import SourceNotFoundError
from tests.batch_plans import hashes, make_model, plan_for, statuses

ROOT = Path(__file__).resolve().parent.parent
DEEP = 100_000


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


DEEP_TEXTS = (
    "'jobs: ' + '[' * N", "'jobs: ' + '{a: ' * N", "'jobs:' + chr(10) + '- ' * N + 'x'", "'? ' * N", "'- [' * N",
    "'[' * N + ']' * N", "'a: &a ' + '[' * N", "chr(10).join(' ' * i + 'a:' for i in range(3000))",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["yaml", "csv"])
def test_plans_nested_without_end_are_refused_in_a_process_that_lives(kind):
    commented = "chr(10).join('# ' + row for row in text.split(chr(10))) + chr(10) + 'prompt'"
    script = (
        "from lora_mixer.batches.plan import parse_plan\nfrom lora_mixer.errors import PlanError\n"
        f"N = {DEEP}\nfor text in ({', '.join(DEEP_TEXTS)}):\n"
        f"    text = {commented if kind == 'csv' else 'text'}\n"
        f"    try:\n        parse_plan(text.encode(), {kind!r})\n"
        "    except PlanError as error:\n        print(len(str(error)) < 3000)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (0, "True\n" * len(DEEP_TEXTS)), done.stderr[-500:]


@pytest.mark.parametrize("depth", [900, 100_000])
def test_deep_json_is_refused_or_read(depth):
    raw = ('{"jobs": ' + "[" * depth + "]" * depth + "}").encode()

    for kind in ("json", "jsonl"):
        with pytest.raises(PlanError):
            parse_plan(raw, kind)


def test_plans_as_deep_as_people_write_them_are_read():
    deep = "a"
    for _ in range(50):
        deep = {"x": [deep]}

    assert load_plan({"jobs": [{"prompt": "x", "mix": deep}]}).jobs[0].mix == deep
    text = json.dumps({"jobs": [{"prompt": "x", "mix": deep}]})
    assert parse_plan(text.encode(), "yaml").jobs[0].mix == deep


def irregular(folder):
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    return {"fifo": folder / "fifo", "zero": Path("/dev/zero"), "folder": folder / "folder"}


@pytest.mark.parametrize("what", ["fifo", "zero", "folder", "link to a fifo"])
def test_only_regular_files_are_read_as_plans_wildcards_and_manifests(tmp_path, what):
    places = irregular(tmp_path)
    (tmp_path / "link").symlink_to(places["fifo"])
    place = tmp_path / "link" if what == "link to a fifo" else places[what]
    (tmp_path / "plan.yaml").symlink_to(place)
    (tmp_path / "manifest.jsonl").symlink_to(place)
    (tmp_path / "manifest.sqlite").symlink_to(place)

    with pytest.raises(SourceNotFoundError, match="plan"):
        load_plan(tmp_path / "plan.yaml")
    with pytest.raises(PlanError, match=r"wildcards\.a: .* cannot be read: [iI]s a "):
        check_plan({"wildcards": {"a": str(place)}, "jobs": [{"prompt": "__a__"}]})
    for suffix in ("jsonl", "sqlite"):
        with pytest.raises(SaveError, match=r"[iI]s a "):
            open_manifest(tmp_path / f"manifest.{suffix}")
        with pytest.raises(SaveError, match=r"[iI]s a "):
            read_manifest(tmp_path / f"manifest.{suffix}")


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_a_second_plan_loses_nothing_of_the_first(model_folder, tmp_path, kind):
    out = tmp_path / "out"
    first = plan_for(model_folder, out, [{"repeat": 2}], output={"manifest": str(tmp_path / f"one.{kind}")})
    other = {"manifest": str(tmp_path / f"two.{kind}")}
    list(run_plan(first))
    before = hashes(out)

    with pytest.raises(SaveError, match=r"2 files in .* are of another plan"):
        list(run_plan(plan_for(model_folder, out, [{"prompt": "a dog", "repeat": 2}], output=other)))
    assert hashes(out) == before
    assert statuses(first) == {"done": 0, "kept": 2, "failed": 0}
    # other names beside them harm nobody
    named = plan_for(model_folder, out, [{"prompt": "a dog"}], output={**other, "name": "dog-{index}"})
    assert statuses(named) == {"done": 1, "kept": 0, "failed": 0}
    assert {**before, "dog-0.png": hashes(out)["dog-0.png"]} == hashes(out)


@pytest.mark.parametrize("what", ["picture", "text", "sheet"])
def test_files_that_nobody_noted_stay(model_folder, tmp_path, what):
    name = {"picture": "0.png", "text": "0.png", "sheet": "sheets/000-0.png"}[what]
    plan = plan_for(model_folder, tmp_path, [{"sheet": True}], output={"name": "{index}"})
    (tmp_path / "sheets").mkdir()
    (tmp_path / name).write_bytes(b"mine")

    with pytest.raises(SaveError, match="would be lost"):
        list(run_plan(plan))

    assert (tmp_path / name).read_bytes() == b"mine"
    assert statuses(plan | {"output": {**plan["output"], "replace": True}})["done"] == 1
    assert (tmp_path / name).read_bytes() != b"mine"


def test_a_sheet_of_its_own_is_drawn_again(model_folder, tmp_path):
    plan = plan_for(model_folder, tmp_path, [{"sheet": True}], output={"name": "{index}"})

    assert statuses(plan)["done"] == 1
    assert statuses(plan)["kept"] == 1


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_the_folder_is_refused_or_replaced_and_never_followed(
    model_folder, tmp_path, replace, dangling
):
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    if not dangling:
        victim.write_text("precious")
    (out / "0.png").symlink_to(victim)
    plan = plan_for(model_folder, out, [{}], output={"name": "{index}", "replace": replace})

    if replace:
        assert statuses(plan)["done"] == 1
        assert not (out / "0.png").is_symlink()
    else:
        with pytest.raises(SaveError, match=r"0\.png"):
            list(run_plan(plan))
    assert victim.exists() is not dangling
    assert dangling or victim.read_text() == "precious"


def test_a_finished_picture_that_became_a_link_is_not_written_through(model_folder, tmp_path):
    out, victim = tmp_path / "out", tmp_path / "victim"
    plan = plan_for(model_folder, out, [{}], output={"name": "{index}"})
    list(run_plan(plan))
    victim.write_text("precious")
    (out / "0.png").unlink()
    (out / "0.png").symlink_to(victim)

    with pytest.raises(SaveError, match="would be lost"):
        list(run_plan(plan))
    assert victim.read_text() == "precious"


def test_a_folder_that_is_a_link_is_not_gone_through(model_folder, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "0").symlink_to(elsewhere)
    plan = plan_for(model_folder, out, [{}], output={"name": "{job}/{index}"}, run={"retries": 0})

    (result,) = run_plan(plan)

    assert (result.status, list(elsewhere.iterdir())) == ("failed", [])
    assert "is a link" in result.error


def test_a_fifo_where_a_picture_was_is_not_waited_for(model_folder, tmp_path):
    plan = plan_for(model_folder, tmp_path, [{}], output={"name": "{index}"})
    list(run_plan(plan))
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")

    assert statuses(plan)["done"] == 1


def test_two_runs_do_not_share_a_folder_whatever_their_manifests(model_folder, tmp_path):
    def plan(number):
        output = {"manifest": str(tmp_path / f"{number}.jsonl"), "name": f"{number}-{{index}}"}
        return plan_for(model_folder, tmp_path / "out", [{"repeat": 2}], output=output)

    first = run_plan(plan(1))
    next(first)

    with pytest.raises(SaveError, match="is in use by another run"):
        next(run_plan(plan(2)))
    first.close()
    assert statuses(plan(2)) == {"done": 2, "kept": 0, "failed": 0}


def test_a_picture_whose_record_was_lost_is_known_all_the_same(model_folder, tmp_path):
    plan = plan_for(model_folder, tmp_path, [{"repeat": 3}])
    list(run_plan(plan))
    path = tmp_path / "manifest.jsonl"
    rows = [
        row for row in path.read_bytes().splitlines(keepends=True) if json.loads(row)["status"] == "begun"
    ]
    path.write_bytes(b"".join(rows))
    before = hashes(tmp_path)

    assert read_manifest(path) == []
    assert statuses(plan) == {"done": 3, "kept": 0, "failed": 0}
    assert hashes(tmp_path) == before


# --- manifests of others ------------------------------------------------------------------------------------------------------


def table(path, *statements):
    base = sqlite3.connect(path)
    with base:
        for statement in statements:
            base.execute(statement)
    base.close()


FOREIGN = {
    "notes.jsonl": lambda path: path.write_bytes(b'{"note": 1}\n{"note": 2}'),
    "text.jsonl": lambda path: path.write_bytes(b"hello"),
    "list.jsonl": lambda path: path.write_bytes(b"[1]\n"),
    "deep.jsonl": lambda path: path.write_bytes(b"[" * 100_000 + b"\n"),
    "bytes.jsonl": lambda path: path.write_bytes(bytes(range(256)) * 10),
    "others.sqlite": lambda path: table(
        path, "CREATE TABLE users (name TEXT)", "INSERT INTO users VALUES ('x')"
    ),
    "likeours.sqlite": lambda path: table(path, "CREATE TABLE pictures (id INTEGER, blob BLOB)"),
    "both.sqlite": lambda path: table(
        path,
        "CREATE TABLE pictures (file TEXT PRIMARY KEY, idx INTEGER, status TEXT, record TEXT)",
        "CREATE TABLE x (y)",
    ),
    "text.sqlite": lambda path: path.write_bytes(b"no database at all" * 100),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_are_no_manifests_and_stay_as_they_are(model_folder, tmp_path, name):
    path = tmp_path / name
    FOREIGN[name](path)
    before = path.read_bytes()

    with pytest.raises(SaveError, match="is not a manifest of lora_mixer"):
        list(run_plan(plan_for(model_folder, tmp_path / "out", [{}], output={"manifest": str(path)})))

    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", ["no json", "[1, 2]", "[" * 100_000, "", None, 7, b"\xff\xfe"])
def test_records_that_are_none_cost_their_pictures_only(model_folder, tmp_path, bad):
    plan = plan_for(model_folder, tmp_path, [{"repeat": 2}], output={"manifest": str(tmp_path / "m.sqlite")})
    list(run_plan(plan))
    base = sqlite3.connect(tmp_path / "m.sqlite")
    with base:
        base.execute("UPDATE pictures SET record = ? WHERE idx = 1", (bad,))
    base.close()

    assert [record["index"] for record in read_manifest(tmp_path / "m.sqlite")] == [0]
    with pytest.raises(SaveError, match="1 files"):
        list(run_plan(plan))
    assert statuses(plan | {"output": {**plan["output"], "replace": True}}) == {
        "done": 1,
        "kept": 1,
        "failed": 0,
    }


def test_a_damaged_database_is_one_sentence(tmp_path):
    (tmp_path / "m.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)

    with pytest.raises(SaveError, match=r"m\.sqlite"):
        open_manifest(tmp_path / "m.sqlite")
    with pytest.raises(SaveError, match=r"m\.sqlite"):
        read_manifest(tmp_path / "m.sqlite")


def test_whatever_bytes_of_a_database_are_damaged_it_is_read_or_refused_in_one_sentence(tmp_path):
    place = tmp_path / "m.sqlite"
    manifest = open_manifest(place)
    for number in range(20):
        manifest.add({"file": f"{number}.png", "index": number, "status": "done"})
    manifest.close()
    base = sqlite3.connect(place)
    base.execute("PRAGMA journal_mode=DELETE")
    base.close()
    whole = place.read_bytes()
    for seed in range(60):
        dice, raw = random.Random(seed), bytearray(whole)
        for _ in range(dice.choice((1, 20, 400))):
            raw[dice.randrange(100, len(raw))] = dice.randrange(256)
        place.write_bytes(raw)
        with contextlib.suppress(SaveError):
            read_manifest(place)
        with contextlib.suppress(SaveError), contextlib.closing(open_manifest(place)) as manifest:
            manifest.records()
            manifest.add({"file": "x.png", "index": 1, "status": "done"})


@pytest.mark.parametrize("text", ["a: &a [*a]", "&a {b: *a}", "a: &a {<<: *a}", "- &a [[*a, *a], {x: *a}]"])
def test_aliases_within_what_they_stand_for_are_refused(text):
    with pytest.raises(PlanError, match=r"nested too deeply|more than"):
        parse_plan(f"jobs: []\nx:\n  {text}".encode(), "yaml")


def test_the_command_says_how_to_replace(model_folder, tmp_path):
    from typer.testing import CliRunner

    from lora_mixer.cli._app import app

    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(model_folder, tmp_path / "out", [{}])))
    CliRunner().invoke(app, ["batch", str(plan)])
    plan.write_text(json.dumps(plan_for(model_folder, tmp_path / "out", [{"prompt": "a dog"}])))

    refused = CliRunner().invoke(app, ["batch", str(plan)])
    allowed = CliRunner().invoke(app, ["batch", str(plan), "--replace"])

    assert (refused.exit_code, allowed.exit_code) == (2, 0)
    assert "--replace" in refused.stderr
    assert "1 made" in allowed.stdout
