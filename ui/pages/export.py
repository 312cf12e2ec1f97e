"""The Export page: the mix as one file, or baked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_mixer.writing import FORMATS

from ..handlers import export as handlers
from ..theme import part
from .shared import QUIET, guarded

if TYPE_CHECKING:
    from .shared import Shared


def export_page(shared: Shared) -> None:
    """Lay the page out and connect it."""
    app = shared.app
    with gr.Row(elem_classes="lm-row2", equal_height=False):
        with gr.Column(scale=6, min_width=320, elem_classes="lm-panel"):
            gr.Markdown(
                "### One LoRA file\nThe mix as it is now, for other programs.", elem_classes="lm-note"
            )
            name = gr.Textbox(label="Name", value="my-mix", elem_id="export-name", max_length=80)
            with gr.Row():
                form = gr.Dropdown(
                    label="Format", choices=list(FORMATS), value="kohya", elem_id="export-format",
                    min_width=110,
                )  # fmt: skip
                rank = gr.Number(
                    label="Rank (0: exact)",
                    value=0,
                    precision=0,
                    elem_id="export-rank",
                    min_width=100,
                )
                dtype = gr.Dropdown(
                    label="Type", choices=list(handlers.DTYPES), value=handlers.DTYPES[0],
                    elem_id="export-dtype", min_width=110,
                )  # fmt: skip
            write = gr.Button("Export", variant="primary", elem_id="export-button")
            said = gr.Textbox(label="Written", lines=3, interactive=False, elem_id="export-report")
            verdict = part("verdict", value=None, elem_id="export-verdict")
            file = part("downloads", value=None, elem_id="export-file")
        with gr.Column(scale=6, min_width=320, elem_classes="lm-panel"):
            gr.Markdown(
                "### Baked model\nA diffusers folder with the mix in its weights; it stays on this machine, "
                "under `exports`.",
                elem_classes="lm-note",
            )
            folder = gr.Textbox(label="Name", value="my-model", elem_id="bake-name", max_length=80)
            bake = gr.Button("Bake", elem_id="bake-button")
            baked = gr.Textbox(label="Written", lines=3, interactive=False, elem_id="bake-report")

    @guarded
    async def export(
        mix_rows: Any, name: Any, form: Any, rank: Any, dtype: Any, request: gr.Request
    ) -> tuple[list[dict[str, Any]], str, dict[str, Any]]:
        owner = shared.owner_of(request)
        made = await shared.jobs.result(
            f"{owner}/export",
            "export",
            "an export",
            lambda job: handlers.one_file(app, job.owner, mix_rows, name, form, rank, dtype),
        )
        return [handlers.offered(app, place) for place in made.files], made.report, made.verdict

    busy = {**QUIET, "show_progress": "minimal"}
    write.click(export, [shared.mix_rows, name, form, rank, dtype], [file, said, verdict], **busy)

    @guarded
    async def to_folder(mix_rows: Any, name: Any, request: gr.Request) -> Any:
        owner = shared.owner_of(request)
        return await shared.jobs.result(
            f"{owner}/export",
            "bake",
            "a baked model",
            lambda job: handlers.baked(app, job.owner, mix_rows, name),
        )

    bake.click(to_folder, [shared.mix_rows, folder], baked, **busy)
