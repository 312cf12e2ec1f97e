"""What all tests stand on: no network, few threads, the same examples each time in CI, and the shared files."""

from __future__ import annotations

import gc
import importlib.util
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Before anything imports gradio: two workers that look for a free port at once must not find the same one.
os.environ["GRADIO_SERVER_PORT"] = str(7860 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))

import hypothesis
import pytest
import torch
from huggingface_hub import constants

import lora_mixer
from lora_mixer import ownership
from tests.batch_plans import GRID, make_model, plan_for, statuses
from tests.hub_standin import HubStandIn
from tests.models import tiny_sd, tiny_sdxl
from tests.small_unets import SD15, SDXL, build
from tests.weights import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")

# Tensors here are tiny: more threads wait for each other, and sums would depend on how many cores there are.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# Machines are shared, so nothing here is judged by the time it took.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("ci" if IN_CI else "local")

# In a checkout that is not installed, ui/ is found where it stands in the tree.
if importlib.util.find_spec("lora_mixer.ui") is None:
    lora_mixer.__path__.append(str(ROOT))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Any:
    """
    Leave libraries and collected tests, which stay to the end, out of what the collector walks through, and let it walk less often.

    They are over half a million objects, half a second for each full collection: a quarter of all time was spent in it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 10, 10)
        gc.enable()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real and generated adapters in ../shared/data; required in CI, skipped elsewhere when missing."""
    folder = Path(os.environ.get("LORA_MIXER_SHARED_DATA") or ROOT.parent / "shared" / "data").resolve()
    if not (folder / "files").is_dir():
        reason = f"{folder} is missing: put shared/ beside the checkout, or set LORA_MIXER_SHARED_DATA"
        if IN_CI:
            pytest.fail(f"{reason}. CI must not skip it.")
        pytest.skip(reason)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """A Hub on loopback, empty at first, and an empty cache for it."""
    with HubStandIn() as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.endpoint)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read from the environment once, at import
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield standin


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline and the adapters a, b and c in a folder, for plans of batches."""
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def whole_grid(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of ``GRID``, made in one process without any interruption."""
    out = tmp_path_factory.mktemp("whole")
    assert statuses(plan_for(model_folder, out, [GRID])) == {"done": 8, "kept": 0, "failed": 0}
    return out


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """The web page on the demo pipeline, served once for all tests: its address, and its app to look behind it."""
    from tests.browser import serving

    with serving(tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("cache")) as served:
        yield served


@pytest.fixture(scope="session")
def app(site: tuple[str, Any]) -> Any:
    return site[1]


@pytest.fixture
def tidy(app: Any) -> Iterator[None]:
    """Adapters that a test adds to the shared page are gone after it."""
    before = {entry.id for entry in app.every_entry()}
    yield
    for entry in app.every_entry():
        if entry.id not in before:
            entry.path.unlink(missing_ok=True)
            app.library.forget(entry.id)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser; one for each module, because Playwright's loop keeps other loops away while it is there."""
    from tests.browser import browser

    playwright, started = browser()
    yield started
    started.close()
    playwright.stop()


@pytest.fixture(scope="module")
def desks(chromium: Any) -> Iterator[Any]:
    """A browser's window with its cache, so that the page's scripts are loaded once."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    yield context
    context.close()


@pytest.fixture
def desk(site: tuple[str, Any], desks: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page of its own, which is a session of its own; far away and slow where the test is marked ``slowed``."""
    from tests.browser import Desk, slowed

    desk = Desk(desks, site[0])
    with slowed(desk) if request.node.get_closest_marker("slowed") else nullcontext():
        yield desk
    assert not desk.errors
    desk.page.close()


@pytest.fixture(scope="session")
def sd_base() -> tuple[StableDiffusionPipeline, Snapshot]:
    pipe = tiny_sd()
    return pipe, Snapshot.of(pipe)


@pytest.fixture(scope="session")
def sdxl_base() -> tuple[StableDiffusionXLPipeline, Snapshot]:
    pipe = tiny_sdxl()
    return pipe, Snapshot.of(pipe)


@pytest.fixture
def sd(sd_base: tuple[StableDiffusionPipeline, Snapshot]) -> Iterator[StableDiffusionPipeline]:
    """A small SD 1.x pipeline, shared by tests; put back after each, whatever it left behind."""
    pipe, clean = sd_base
    yield pipe
    ownership.forget_all()  # of a test that failed before it unloaded
    clean.put_back(pipe)


@pytest.fixture
def sdxl(sdxl_base: tuple[StableDiffusionXLPipeline, Snapshot]) -> Iterator[StableDiffusionXLPipeline]:
    """A small SDXL pipeline, shared by tests; put back after each, whatever it left behind."""
    pipe, clean = sdxl_base
    yield pipe
    ownership.forget_all()  # of a test that failed before it unloaded
    clean.put_back(pipe)


@pytest.fixture(scope="session")
def sd15_unet() -> Any:
    """The blocks of SD 1.5, narrow; nobody changes them."""
    return build(SD15)


@pytest.fixture(scope="session")
def sdxl_unet() -> Any:
    """The blocks of SDXL, narrow; nobody changes them."""
    return build(SDXL)


@pytest.fixture(autouse=True)
def gradients_as_before():
    """Fail the test that leaves gradients off, not those after it."""
    yield
    left_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert left_on, "this test has left gradients off"
