"""The mix at the side of all pages; the browser owns its rows, and asks the server for what it cannot know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import checks, gallery
from ..handlers import mix as handlers
from ..handlers.library import to_trash
from ..theme import part
from .shared import answering

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..app_state import AppState
    from ..jobs import Jobs


def make_mix_rows(app: AppState, jobs: Jobs) -> Any:
    """
    Make the rows, with the functions that the page's scripts call.

    Answers go to whoever asked and touch no component, so that they cannot overwrite what a person does meanwhile.
    """
    return part(
        "mix_rows",
        "edited",
        value={"rows": [], "method": ""},
        kit=handlers.kit(app),
        server_functions=_functions(app, jobs),
        elem_id="board",
    )


def _functions(app: AppState, jobs: Jobs) -> list[Callable[[Any], Any]]:
    def curve(text: Any) -> Any:
        return handlers.curve(text)

    def look_up(names: Any) -> Any:
        return {"facts": handlers.look_up(app, names)}

    def described(rows: Any) -> Any:
        return handlers.as_text(app, rows)

    def from_text(text: Any) -> Any:
        return handlers.from_text(app, text)

    def halfway(asked: Any) -> Any:
        return handlers.halfway_of(app, asked)

    def keep_mask(png: Any) -> Any:
        return handlers.keep_mask(app, png)

    def mask_png(digest: Any) -> Any:
        return {"png": handlers.mask_png(app, digest)}

    def keep_default(asked: Any) -> Any:
        return handlers.keep_default(app, checks.table(asked, "row")["name"], asked.get("weight"))

    def saved(_: Any) -> Any:
        return {"names": handlers.saved(app)}

    def save(asked: Any) -> Any:
        given = checks.table(asked, "mix")
        return handlers.save(
            app, given.get("name"), given.get("rows"), replacing=given.get("replacing") is True
        )

    def load(name: Any) -> Any:
        return handlers.load(app, name)

    def delete(name: Any) -> Any:
        return handlers.delete(app, name)

    def undelete(_: Any) -> Any:
        return handlers.undo(app)

    def rearrange(asked: Any) -> Any:
        given = checks.table(asked, "order")
        to = given.get("to")
        number = checks.whole(given.get("number"), "order", 0, 2**53)
        place = None if to is None else checks.whole(to, "place", 0, 1000)
        return {"moved": jobs.rearrange(checks.opaque(given.get("token"), "token"), number, place)}

    def put_back(asked: Any) -> Any:
        given = checks.table(asked, "order")
        number = checks.whole(given.get("number"), "order", 0, 2**53)
        place = checks.whole(given.get("to"), "place", 0, 1000)
        return {"fresh": jobs.put_back(checks.opaque(given.get("token"), "token"), number, place)}

    def remove_picture(picture: Any) -> Any:
        return {"id": gallery.remove(app, picture)}

    def restore_picture(picture: Any) -> Any:
        return {"id": gallery.restore(app, picture)}

    def trash_adapter(entry_id: Any) -> Any:
        return to_trash(
            app, entry_id
        )  # here, since what comes in from the Gallery is taken back without the Library's page

    functions = (curve, look_up, described, from_text, halfway, keep_mask, mask_png, keep_default, saved, save, load, delete,
                 undelete, rearrange, put_back, remove_picture, restore_picture, trash_adapter)  # fmt: skip
    return [answering(function) for function in functions]
