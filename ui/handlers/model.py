"""The handlers of what pictures are made with beside the mix: the model, what one starts from, and words that complete a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_mixer import demo_adapters
from lora_mixer.errors import LoraMixerError
from lora_mixer.pictures import DEMO, SCHEDULES

from .. import checks, gallery
from ..jobs import Order
from ..messages import words_of
from ..starts import sent
from ..thumbs import data_uri
from .mix import kit

if TYPE_CHECKING:
    from ..app_state import AppState
    from ..jobs import Jobs, SessionJob

START_SIDE = 512
MAX_COMPLETED = 8
_SEARCHED = 60
READY = (
    ("Ink and watercolor", "ink:0.6, watercolor:0.7", "castle"),
    ("Neon pixels", "neon:0.6, pixel:0.5", "owl"),
    ("Lumo as a blueprint", "lumo:0.9, blueprint:0.6", "lumo"),
)
"""Mixes of the demo that a first visitor can click: title, mix and subject."""


def state(app: AppState) -> dict[str, Any]:
    """Return what the page shows of the model, and those that can be chosen."""
    facts, models = app.models.facts, app.models
    return {
        "key": facts.key,
        "title": facts.title,
        "number": models.number,
        "loading": models.loading,
        "broken": models.problem or models.refused,
        "models": [[key, options.title] for key, options in models.found().items()],
        "samplers": {name: list(words) for name, words in facts.samplers.items()},
        "schedules": list(SCHEDULES),
        "guided": facts.guided,
        "defaults": fields(app),
        "kit": kit(app),
        "first": first_screen(app),
    }


def first_screen(app: AppState) -> dict[str, Any]:
    """Return what somebody who is new here can click: the demo's subjects and three mixes; nothing for other models."""
    if app.models.facts.options.model != DEMO:
        return {}
    known = demo_adapters()
    subjects = next(iter(known.values())).held_out
    mixes = []
    for title, text, subject in READY:
        names = [part.partition(":")[0].strip() for part in text.split(",")]
        if any(app.entry_named(name) is None for name in names):
            continue
        words = [known[name].trigger for name in names if known[name].kind == "style"]
        mixes.append({"title": title, "mix": text, "prompt": ", ".join([subject, *words])})
    return {"subjects": list(subjects), "mixes": mixes}


def fields(app: AppState) -> dict[str, Any]:
    """Return what the page's fields hold for a model where nobody changed them."""
    width, height = app.size
    steps, guidance = (app.defaults[name] for name in ("steps", "guidance_scale"))
    return {"steps": steps, "guidance": guidance, "width": width, "height": height}


def change(app: AppState, jobs: Jobs, owner: str, key: Any) -> dict[str, Any]:
    """
    Begin to put another model in the place of the one that is there, for all sessions; :func:`state` says how it went.

    Raises:
        PictureError: When the session has something under way, or too much is.
    """
    wanted = checks.opaque(key, "model")

    def work(job: SessionJob) -> str:
        try:
            with app.queue.turn(job.owner, stopped=job.stop.is_set):
                app.models.refused = ""
                return app.models.switch(wanted)
        except LoraMixerError as error:
            app.models.refused = words_of(error)
            raise

    order = Order("another model", work)
    jobs.submit(f"{owner}/model", "model", order, {"state": "queued"}, lambda _, event: event)
    return {"begun": True}


def start_from(app: AppState, asked: Any) -> dict[str, Any]:
    """
    Keep a picture to start from: one of the gallery, or one that the browser sends.

    Raises:
        PictureError: When it is none.
    """
    from PIL import Image

    given = checks.table(asked, "picture")
    if given.get("picture"):
        with Image.open(gallery.path_of(app, given["picture"])) as picture:
            digest = app.starts.put(picture)
    else:
        digest = app.starts.put(sent(given.get("address")))
    return start_shown(app, digest)


def start_shown(app: AppState, digest: Any) -> dict[str, Any]:
    """
    Return a picture that is started from, as the page shows it.

    Raises:
        PictureError: When it is gone.
    """
    wanted = checks.opaque(digest, "picture")
    picture = app.starts.open(wanted)
    return {"digest": wanted, "png": data_uri(picture, START_SIDE), "size": list(picture.size)}


def complete(app: AppState, asked: Any) -> dict[str, Any]:
    """
    Return what may complete a word of a prompt.

    Args:
        app: Where.
        asked: ``word``, as far as it is written, and ``tag``, whether it stands after ``<lora:``.

    Returns:
        ``words``, each with what is put in (``text``), what is shown (``label``) and whose it is (``about``); adapters that
        cannot be used with this model are left out.
    """
    given = checks.table(asked, "word")
    word = checks.text(given.get("word"), "word", 120).strip().casefold()
    tag = given.get("tag") is True
    if not word and not tag:
        return {"words": []}
    offers: list[dict[str, str]] = []
    entries = [
        entry
        for entry in app.library.search(word, sort="uses", descending=True, page_size=_SEARCHED).entries
        if not app.refusal(entry)
    ]
    for entry in entries:
        name = app.name_of(entry)
        if tag:
            weight = 1 if entry.weight is None else entry.weight
            offers.append({"text": f"<lora:{name}:{weight:g}>", "label": name, "about": f"weight {weight:g}"})
            continue
        offers += [
            {"text": trigger, "label": trigger, "about": name}
            for trigger in entry.trigger_words
            if trigger.casefold().startswith(word) or f" {word}" in trigger.casefold()
        ]
    unique: dict[str, dict[str, str]] = {}
    for each in offers:  # the first of equal ones
        unique.setdefault(each["text"].casefold(), each)
    first = sorted(unique.values(), key=lambda each: not each["label"].casefold().startswith(word))
    return {"words": first[:MAX_COMPLETED]}
