"""``lora-mixer batch``: the pictures of a plan, or what they would take."""

from __future__ import annotations

import json
import signal
import threading
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from lora_mixer.cli._completing import engines, plans
from lora_mixer.cli._options import TableCommand
from lora_mixer.cli._terminal import console, plain, print_error, print_warning
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lora_mixer.batches import CheckedPlan, DryRun

EXIT_FAILED, EXIT_STOPPED = 1, 130
_SHOWN = 12


def _engines() -> str:
    """Return the engines with where their workers run."""
    from lora_mixer.batches import WORKER_ENGINES

    return "; ".join(f"{row.name}: {row.summary}" for row in WORKER_ENGINES.values()) + "."


def _forms() -> str:
    """Return how names of plans end."""
    from lora_mixer.batches import PLAN_FORMS

    return f"Ends with {', '.join(suffix for form in PLAN_FORMS.values() for suffix in form.suffixes)}."


class BatchCommand(TableCommand):
    """The command, whose help takes the forms of plans and the engines from their tables."""

    said: ClassVar[dict[str, Callable[[], str]]] = {"engine": _engines, "plan": _forms}


def batch(
    *,
    plan: Annotated[
        Path | None,
        typer.Argument(metavar="PLAN", help="The plan's file.", autocompletion=plans),
    ] = None,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, and say what it would take.")
    ] = False,
    trial: Annotated[
        bool, typer.Option(help="With --dry-run: time a few steps, for the expected time and memory.")
    ] = True,
    engine: Annotated[str, typer.Option(help="Where the workers run.", autocompletion=engines)] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Default: one per GPU, or as many as the cores allow.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster: auto, local, HOST:6379 or ray://HOST:10001.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="In place of the plan's output.folder.")] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace", help="Also where files of another plan, or of this one before it changed, are lost."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line: what happens, or the dry run.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of plans, for editors.")
    ] = False,
) -> None:
    """Make the pictures of a plan; run again, it keeps what is finished and makes the rest."""
    from lora_mixer.batches import check_plan, dry_run, load_plan, plan_schema

    if schema:
        typer.echo(json.dumps(plan_schema(), indent=1))
        return
    if plan is None:
        print_error("name a PLAN; see lora-mixer batch --help")
        raise typer.Exit(2)
    read = load_plan(plan)
    output: dict[str, Any] = {"replace": True} if replace else {}
    if out is not None:
        output["folder"] = str(Path(out).absolute()) if "://" not in out else out
    if output:
        read = read.model_copy(update={"output": read.output.model_copy(update=output)})
    checked = check_plan(read)
    if dry:
        _show(dry_run(checked, trial=trial), as_json=as_json)
        return
    _run(checked, engine, workers, address, as_json=as_json)


def _run(
    checked: CheckedPlan, engine: str, workers: int | None, address: str | None, *, as_json: bool
) -> None:
    from lora_mixer.batches import run_plan

    end: dict[str, Any] = {}
    failed: list[str] = []
    with _stoppable() as stop, _shown(as_json=as_json, total=len(checked.pictures)) as show:

        def on_event(event: dict[str, Any]) -> None:
            show(event)
            if event["event"] == "end":
                end.update(event)

        results = run_plan(
            checked, engine=engine, workers=workers, address=address, on_event=on_event, stop=stop.is_set
        )
        failed += [f"{result.file}: {result.error}" for result in results if result.status == "failed"]
    if not as_json:
        for line in failed[:_SHOWN]:
            print_warning(line)
        console().print(
            f"{end['done']} made, {end['kept']} kept, {end['failed']} failed, {end['left']} left: "
            f"{plain(checked.folder)} ({plain(checked.manifest)})",
            soft_wrap=True,
        )
    if stop.is_set() and end.get("left"):
        raise typer.Exit(EXIT_STOPPED)
    if failed:
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Let the first Ctrl-C finish what is in hand, and the second end at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: Any) -> None:
        if stop.is_set():
            signal.default_int_handler(number, frame)
        stop.set()
        print_warning(
            "stopping after the pictures in hand; once more ends at once. The same command goes on."
        )

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _shown(*, as_json: bool, total: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    if as_json:
        yield lambda event: typer.echo(json.dumps(event))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    err = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        bar = progress.add_task("loading", total=total, rate="")

        def show(event: dict[str, Any]) -> None:
            if event["event"] == "start":
                progress.update(bar, completed=event["kept"])
            elif event["event"] == "worker":
                progress.update(bar, description="making" if event["state"] == "ready" else "worker lost")
            elif event["event"] == "picture":
                speed = progress.tasks[0].speed
                progress.update(bar, advance=1, rate=f"{speed:.2f}/s" if speed else "")

        yield show


def _show(outcome: DryRun, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(outcome)))
        return
    out = console()
    jobs = first_of([f"{name}: {count}" for name, count in outcome.jobs.items()], _SHOWN, what="jobs")
    out.print(f"{outcome.pictures} pictures ({plain(jobs)})", soft_wrap=True)
    out.print(
        f"{len(outcome.adapters)} adapters, read {outcome.loads} times, weights rewritten {outcome.rewrites} times"
    )
    for name, adapter in list(outcome.adapters.items())[:_SHOWN]:
        out.print(
            f"  {plain(name)}: {plain(adapter['base'])}, {', '.join(adapter['algorithms'])}, "
            f"{adapter['bytes'] / 1e6:.1f} MB, in {adapter['pictures']} pictures ({plain(adapter['source'])})",
            soft_wrap=True,
        )
    out.print("order:")
    order = [f"  {plain(', '.join(names) or 'no adapter')}: {count}" for names, count in outcome.order]
    if order:
        out.print(first_of(order, _SHOWN, between="\n", last="\n  ", what="groups"), soft_wrap=True)
    if outcome.seconds is not None and outcome.memory is not None:
        each = outcome.seconds / max(outcome.pictures, 1)
        out.print(
            f"expected: {_time(outcome.seconds)} with one worker ({each:.2f} s per picture), {outcome.memory / 1e9:.2f} GB"
        )


def _time(seconds: float) -> str:
    """
    Return a time for people.

    Example:
        >>> _time(75), _time(7322)
        ('1 min 15 s', '2 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
