"""A real browser on the real page: the server runs in this process, so that tests can look behind it."""

from __future__ import annotations

import base64
import io
import os
import shutil
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from lora_mixer import LoraMixerError, PictureMaker, PictureRequest

STEPS = 2
PROMPT = "a castle"
CHROMIUM = (
    os.environ.get("LORA_MIXER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)

# The list beneath the address bar, which nobody sees here: it loads two pages of its own beside each of ours.
UNSEEN = ("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "WebUIOmniboxFullPopup")
# What Playwright turns off itself: of an option that is given twice, the browser takes the last.
PLAYWRIGHTS = (
    "AvoidUnnecessaryBeforeUnloadCheckSync", "BoundaryEventDispatchTracksNodeRemoval", "DestroyProfileOnBrowserClose",
    "DialMediaRouteProvider", "GlobalMediaControls", "HttpsUpgrades", "LensOverlay", "MediaRouter", "PaintHolding",
    "ThirdPartyStoragePartitioning", "Translate", "AutoDeElevate", "RenderDocument", "OptimizationHints",
)  # fmt: skip


def browser():
    """Start Chromium; CI has it, elsewhere tests skip when it is missing."""
    if CHROMIUM is None:
        reason = "Chromium is missing: apt-get install chromium, or set LORA_MIXER_CHROMIUM"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    playwright = sync_playwright().start()
    options = ["--no-sandbox", f"--disable-features={','.join((*PLAYWRIGHTS, *UNSEEN))}"]
    return playwright, playwright.chromium.launch(executable_path=CHROMIUM, args=options)


@contextmanager
def serving(out, cache, **options):
    """Serve the page on a free port of loopback."""
    from lora_mixer.ui import AppState, ServerOptions, launch

    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    os.environ["GRADIO_TEMP_DIR"], os.environ["GRADIO_ANALYTICS_ENABLED"] = str(cache), "False"
    reach = {name: options.pop(name) for name in ("auth",) if name in options}
    app = AppState(ServerOptions(out=Path(out), **options))
    # `catch_warnings` is no thread's own: what diffusers and FastAPI silence while they are at work side by side would be errors here.
    with suppress(LoraMixerError):
        app.models.loaded()
    blocks = launch(app.options, app=app, block=False, **reach)
    try:
        yield blocks.local_url, app
    finally:
        blocks.close()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def alone(app, mix, seed=1, prompt=PROMPT, **more):
    """The picture as its request gives it to whoever is alone: its pixels."""
    width, height = app.size
    request = PictureRequest(
        prompt, seed=seed, steps=STEPS, guidance_scale=app.defaults["guidance_scale"],
        width=width, height=height, mix=mix, **more,
    )  # fmt: skip
    with app.queue.turn("the tests"):
        app.ready(request.mix.names)
        (picture,) = app.maker.make([request])
    return picture.image.tobytes()


class Gate:
    """Pictures of a page stop before their second step, and go on when a test says so: none ends while one looks at it."""

    def __init__(self):
        self._free, self._may = threading.Event(), threading.Semaphore(0)

    def step(self):
        """Let the picture that waits make one step."""
        self._may.release()

    def open(self):
        """Let all go on."""
        self._free.set()
        self._may.release()

    def wait(self):
        """Wait in a picture's step."""
        if not self._free.is_set():
            self._may.acquire()


@contextmanager
def held(app, monkeypatch):
    """Hold the pictures of a page at their steps."""
    gate, own = Gate(), PictureMaker.make

    def make(maker, requests, *, on_step=None, **more):
        def step(progress):
            if on_step is not None:
                on_step(progress)
            gate.wait()

        return own(maker, requests, on_step=step, **more)

    with monkeypatch.context() as patch:
        patch.setattr(PictureMaker, "make", make)
        try:
            yield gate
        finally:
            gate.open()


def pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB").tobytes()


@contextmanager
def slowed(desk, latency=200, cpu=6):
    """A connection with so many milliseconds there and back, and a processor so many times slower."""
    session = desk.page.context.new_cdp_session(desk.page)
    session.send("Network.enable")
    conditions = {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
    session.send("Network.emulateNetworkConditions", {**conditions, "latency": latency})
    desk.pace = lambda waits: session.send("Emulation.setCPUThrottlingRate", {"rate": 1 if waits else cpu})
    desk.pace(False)
    try:
        yield
    finally:
        desk.pace(True)
        desk.pace = lambda _: None
        session.send("Network.emulateNetworkConditions", {**conditions, "latency": 0})
        session.detach()


class Desk:
    """One person's page, with words for what he does."""

    def __init__(self, context, url):
        self.page = context.new_page()
        self.page.set_default_timeout(int(os.environ.get("LORA_MIXER_PATIENCE", "180")) * 1000)
        self.errors = []
        self.pace = lambda _: None  # what slows the processor, and lets it wait
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.locator("#make-button").wait_for()
        self.page.locator("#board h2").wait_for()

    @contextmanager
    def waiting(self):
        """While nothing is done but wait for the server: a browser that is slowed burns the time that the server computes in."""
        self.pace(True)
        try:
            yield
        finally:
            self.pace(False)

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def add(self, *names):
        self.tab("Library")
        for name in names:
            self.page.get_by_role("button", name=f"Add {name} to the mix").click()
            self.row(name).wait_for()
        self.tab("Make")

    def open_share(self):
        """Open what saves and shares, unless it is."""
        if self.page.locator("#share-panel[open]").count() == 0:
            self.page.get_by_text("Save and share").click()

    def open_mix(self):
        """Open the mix where it is a sheet."""
        button = self.page.locator(".lm-mixbutton")
        if button.is_visible() and button.get_attribute("aria-expanded") == "false":
            button.click()

    def row(self, name):
        return self.page.locator(f'#board [data-name="{name}"]')

    def weight(self, name, value, part="UNet"):
        self.page.get_by_label(f"{name}: {part}", exact=True).fill(str(value))

    def fill(self, prompt, seed=1, steps=STEPS, count=1):
        self.page.get_by_label("Prompt", exact=True).fill(prompt)
        for label, value in (("Seed", seed), ("Steps", steps), ("Pictures", count)):
            field = self.page.get_by_label(label, exact=True).filter(
                visible=True
            )  # others have such fields, too
            field.fill(str(value))
            field.blur()

    def state(self, name, where="#stage"):
        return self.page.locator(f"{where} [data-state={name}]")

    def make(self):
        """Press Make, wait, and give the newest picture's file as it is served."""
        # by the session's strip of pictures: a draft may lie over the picture that is there, or go away
        newest = "((lm.store.get('strip') || []).at(-1)?.id ?? null)"
        before = self.page.evaluate(newest)
        self.page.locator("#make-button").click()
        with self.waiting():
            self.page.wait_for_function(
                f"""before => {{
                    const view = document.querySelector("#stage .lm-stage");
                    const final = view?.querySelector(".lm-final");
                    return view?.dataset.state === "error" || (view?.dataset.state === "done" && {newest} !== before && final?.src.includes({newest}));
                }}""",
                arg=before,
            )
        assert self.state("done").count(), self.page.locator("#stage .lm-error").inner_text()
        return self.fetch(self.shown())

    def shown(self):
        found = self.page.locator("#stage .lm-final")
        return found.first.get_attribute("src") if found.count() else None

    def fetch(self, address):
        encoded = self.page.evaluate(
            """async address => {
                const bytes = new Uint8Array(await (await fetch(address)).arrayBuffer());
                let text = "";
                for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
                return btoa(text);
            }""",
            address,
        )
        return base64.b64decode(encoded)

    def toast(self):
        """What the page says in a corner, the latest."""
        found = self.page.locator("[data-testid=toast-body], [data-testid=lm-said]")
        found.last.wait_for()
        return found.last.inner_text()

    def upload(self, where, *paths):
        """Give files to a Gradio field: once more where it was opened this instant and did not listen yet."""
        from playwright.sync_api import TimeoutError as PlaywrightTimeout

        for patience in (30_000, None):
            try:
                with self.page.expect_response(lambda answer: "/upload" in answer.url, timeout=patience):
                    self.give(where, *paths)
            except PlaywrightTimeout:
                if patience is None:
                    raise
            else:
                return

    def give(self, where, *paths):
        """Give files to a field of the page's own, which may go when it has them."""
        self.page.locator(f"{where} input[type=file]").set_input_files([str(path) for path in paths])
