"""
Every error that the package raises on purpose.

    LoraMixerError
    ├── SourceError             where an adapter was asked for, there is none, or several
    │   ├── SourceNotFoundError     (also a FileNotFoundError)
    │   └── AmbiguousSourceError
    ├── FormatError             what was read is not an adapter that can be used (also a ValueError)
    │   ├── CorruptFileError        truncated, oversized, wrong magic, impossible header
    │   ├── NotAnAdapterError       a checkpoint, an embedding, a ControlNet, nothing at all
    │   ├── UnsupportedAdapterError an algorithm or model family that is not read yet, by name
    │   └── InvalidAdapterError     an adapter with broken parts: lone halves, NaN, odd shapes
    ├── MatchError              the adapter does not fit this pipeline (also a ValueError)
    ├── ArgumentError           an argument that a call does not have (also a TypeError)
    ├── AdapterNameError        a name used twice, unknown or impossible (also a ValueError)
    ├── AdapterConfigError      a fresh adapter cannot be made like that (also a ValueError)
    ├── SaveError               something that cannot be written as asked (also a ValueError)
    ├── MixError                weights that make no sense (also a ValueError)
    ├── PlanError               a plan of pictures cannot be made as it stands (also a ValueError)
    ├── WorkersError            the processes or machines of a batch cannot be had (also a RuntimeError)
    ├── PictureError            a picture cannot be asked for like that, or not of this pipeline (also a ValueError)
    ├── PictureCancelled        raised by those who stop a picture that is being made
    ├── PictureMetadataError    a picture without settings that can be read, or settings that cannot be (also a ValueError)
    ├── PipelineStateError      the pipeline is in a state that cannot be worked on (also a RuntimeError)
    │   └── MixLostError            a mix could not be written, nor the one before: none is active
    └── MissingExtraError       an optional package is not installed (also an ImportError)

Rooms have a few of their own below these (a preview, a pattern, an output path). After any of them the pipeline is exactly as it was before the call.
"""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from lora_mixer.problem import Problem, Remedy, SaveProblem, Surface, option_text
from lora_mixer.wording import first_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Unpack

    from lora_mixer.problem import ErrorFacts


_PROBLEMS_SHOWN = 20
_LONGEST = 10_000  # characters of a message: names in it may come from files
_LONGEST_NAME = 600


class LoraMixerError(Exception):
    """
    Base of all errors of this package; messages are cut at 10,000 characters.

    Args:
        message: What was expected, what was got and how to fix it, where that is the same everywhere.
        file: The file, folder or repository that it is about, as messages call it; it stands before the message.
        key: The key or the module that it is about; it stands before the message, behind the file.
        component: The component of the pipeline, where it is about one as a whole.
        adapter: The name of the adapter, or of the saved mix.
        argument: The argument of the call that cannot be what it is, by its name in Python.
        problems: Each thing that is wrong, with its place, where there are several or all are listed.
        remedy: How to fix it, where that has other words in programs, on the command line and on the page.

    Attributes:
        file: As above, or None.
        key: As above, or None.
        component: As above, or None.
        adapter: As above, or None.
        argument: As above, or None.
        problems: As above; empty where the message is all.
        remedy: As above, or None.

    Example:
        >>> from lora_mixer import read_adapter
        >>> try:
        ...     read_adapter(b"")
        ... except LoraMixerError as error:
        ...     print(type(error).__name__, "|", error.file, "|", error.key, "|", error.reason[:17])
        NotAnAdapterError | 0 bytes | None | the file is empty
    """

    problems: tuple[Problem | SaveProblem, ...]

    def __init__(
        self,
        message: str = "",
        *,
        file: str | None = None,
        key: str | None = None,
        component: str | None = None,
        adapter: str | None = None,
        argument: str | None = None,
        problems: Iterable[Problem | SaveProblem] = (),
        remedy: Remedy | None = None,
    ) -> None:
        super().__init__(message)
        self.file = file
        self.key = key
        self.component = component
        self.adapter = adapter
        self.argument = argument
        self.problems = tuple(problems)
        self.remedy = remedy

    @property
    def message(self) -> str:
        """The message alone: without file, key and remedy."""
        return str(self.args[0]) if self.args else ""

    @property
    def reason(self) -> str:
        """The message without the file: what is shown beside the file's name."""
        return self.reason_on(Surface.PYTHON)

    def facts(self) -> dict[str, Any]:
        """
        Return the fields as values that JSON has, each problem with its text.

        Example:
            >>> facts = MatchError("is odd", file="ink.safetensors", problems=[Problem("unet.conv", "is not here")]).facts()
            >>> facts["file"], facts["key"], facts["problems"]
            ('ink.safetensors', None, [{'text': 'is not here', 'place': 'unet.conv', 'line': None, 'reason': None}])
        """
        named = {name: getattr(self, name) for name in ("file", "key", "component", "adapter", "argument")}
        return {**named, "problems": [_facts_of(problem) for problem in self.problems]}

    def text_on(self, surface: Surface | None) -> str:
        """
        Return file, key, message and remedy in the words of a surface, shortened in the middle where they have no end.

        Args:
            surface: Where it is read; None leaves the remedy out.

        Returns:
            The text.

        Example:
            >>> error = SaveError("no rank is given", remedy=Remedy("pass rank=", "give --rank"))
            >>> str(error), error.text_on(Surface.COMMAND), error.text_on(Surface.PAGE)
            ('no rank is given; pass rank=', 'no rank is given; give --rank', 'no rank is given')
        """
        said = self.reason_on(surface)
        text = _harmless(f"{_in_one_line(self.file)}: {said}") if self.file else said
        if len(text) <= _LONGEST:
            return text
        half = _LONGEST // 2 - 50
        return f"{text[:half]} [... {len(text) - 2 * half} characters more ...] {text[-half:]}"

    def reason_on(self, surface: Surface | None) -> str:
        """
        Return what ``text_on`` does, without the file, for whoever names that.

        Args:
            surface: Where it is read; None leaves the remedy out.

        Example:
            >>> CorruptFileError("cut short", file="ink.safetensors").reason_on(Surface.PAGE)
            'cut short'
        """
        said = (
            self.message
            if self.remedy is None or surface is None
            else self.remedy.after(self.message, surface)
        )
        place = self._place(surface)
        return _harmless(f"{_in_one_line(place)}: {said}" if place else said)

    def _place(self, surface: Surface | None) -> str | None:
        """Return what stands before the message; it has one name on all surfaces but for options."""
        del surface
        return self.key

    def __str__(self) -> str:
        """Return the text for programs."""
        return self.text_on(Surface.PYTHON)


def _facts_of(problem: Problem | SaveProblem) -> dict[str, Any]:
    values = {field.name: getattr(problem, field.name) for field in fields(problem)}
    plain = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    return {"text": str(problem), **plain}


def _in_one_line(name: str) -> str:
    """Return a name from a file or of a file without what would move a cursor or end a line, and shortened where it has no end."""
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}...{name[-_LONGEST_NAME // 2 :]}"
    return name if name.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def _harmless(text: str) -> str:
    """Return text of lines that can be printed and stored: what moves a cursor, turns a line or is half a letter is escaped."""
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


class SourceError(LoraMixerError):
    """
    An adapter was asked for in a place that does not give exactly one.

    Example:
        >>> from lora_mixer import read_adapter
        >>> try:
        ...     read_adapter("nowhere/ink.safetensors")
        ... except SourceError as error:
        ...     print(isinstance(error, FileNotFoundError))
        True
    """


class SourceNotFoundError(SourceError, FileNotFoundError):
    """
    There is no such file, folder, repository or file in a repository.

    Example:
        >>> from lora_mixer import read_adapter
        >>> read_adapter("nowhere/ink.safetensors")
        Traceback (most recent call last):
        lora_mixer.errors.SourceNotFoundError: nowhere/ink.safetensors: is neither ...
    """


class AmbiguousSourceError(SourceError):
    """
    Several files could be meant: name one with ``weight_name``.

    Example:
        >>> from lora_mixer import demo_adapters, read_adapter
        >>> read_adapter(demo_adapters()["ink"].path.parent)
        Traceback (most recent call last):
        lora_mixer.errors.AmbiguousSourceError: ... holds 6 files that could be the adapter: ...
    """


class FormatError(LoraMixerError, ValueError):
    """
    The content is not an adapter that can be used.

    Example:
        >>> from lora_mixer import read_adapter
        >>> try:
        ...     read_adapter(b"<html>")
        ... except FormatError as error:
        ...     print(isinstance(error, ValueError), error.file)
        True 6 bytes
    """


class CorruptFileError(FormatError):
    """
    The file is damaged: truncated, oversized, wrong magic or an impossible header.

    Example:
        >>> from lora_mixer import read_adapter
        >>> read_adapter((8).to_bytes(8, "little") + b'{"a": 1}')
        Traceback (most recent call last):
        lora_mixer.errors.CorruptFileError: 16 bytes: a: the header entry is int, not an object; download the file again
    """


class NotAnAdapterError(FormatError):
    """
    The file is fine but holds something else: a checkpoint, an embedding, a ControlNet.

    Example:
        >>> from lora_mixer import read_adapter
        >>> read_adapter(b"<html>")
        Traceback (most recent call last):
        lora_mixer.errors.NotAnAdapterError: 6 bytes: not safetensors but an HTML page; download the file itself
    """


class UnsupportedAdapterError(FormatError):
    """
    An adapter of an algorithm or a model family that is not supported; the message names it.

    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from safetensors.torch import save_file
        >>> import torch
        >>> from lora_mixer import read_adapter
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_file({"base_model.model.x.lora_A.weight": torch.ones(1, 2)}, folder / "adapter_model.safetensors")
        >>> _ = (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "VBLORA"}))
        >>> read_adapter(folder)
        Traceback (most recent call last):
        lora_mixer.errors.UnsupportedAdapterError: ...
    """


class InvalidAdapterError(FormatError):
    """
    An adapter with broken parts: a half without its other half, NaN, impossible shapes.

    Example:
        >>> import torch
        >>> from lora_mixer import read_adapter
        >>> read_adapter({"proj.lora_A.weight": torch.ones(1, 2)})
        Traceback (most recent call last):
        lora_mixer.errors.InvalidAdapterError: state dict: 1 of 1 modules are broken:
          proj: has lora down but no lora up; the file is incomplete
    """


class MatchError(LoraMixerError, ValueError):
    """
    The adapter does not fit this pipeline, or ``strict=True`` asked for a full match.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> pair = {"1.lora_A.weight": torch.ones(1, 2), "1.lora_B.weight": torch.ones(2, 1)}
        >>> LoraMixer(torch.nn.Sequential(torch.nn.Linear(2, 2))).load_lora_weights(pair)
        Traceback (most recent call last):
        lora_mixer.errors.MatchError: state dict: none of its 1 modules is in this pipeline: ...
    """


class SaveError(LoraMixerError, ValueError):
    """
    What was asked for cannot be written: the format has no place for it, or the disk refuses.

    Attributes:
        problems: One entry for each module, key or argument in the way; empty where the trouble is another.

    Example:
        >>> from lora_mixer import demo_adapters
        >>> from lora_mixer.writing import convert
        >>> convert(demo_adapters()["ink"].path, "ink.safetensors", format="sharp")
        Traceback (most recent call last):
        lora_mixer.errors.SaveError: format must be one of diffusers, kohya, comfyui, peft, got 'sharp'
    """


class AdapterNameError(LoraMixerError, ValueError):
    """
    An adapter name is already in use, unknown, named twice or impossible.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> LoraMixer(torch.nn.Sequential(torch.nn.Linear(2, 2))).delete_adapters("ink")
        Traceback (most recent call last):
        lora_mixer.errors.AdapterNameError: delete_adapters names 'ink', which is not loaded; loaded are: none
    """


class ArgumentError(LoraMixerError, TypeError):
    """
    A call was given an argument that it does not have, such as one that only diffusers has a use for.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> LoraMixer(torch.nn.Sequential(torch.nn.Linear(2, 2))).load_lora_weights({}, unet_config={})
        Traceback (most recent call last):
        lora_mixer.errors.ArgumentError: load_lora_weights() has no argument unet_config: names are resolved against the live model
    """


class MixError(LoraMixerError, ValueError):
    """
    A mix cannot mean anything: weights not finite, lists of different length, unknown parts.

    Args:
        message: What is wrong; None lists the problems.
        problems: Each thing that is wrong, with its place.
        what: What was read, as in "this mix".
        facts: As in :class:`LoraMixerError`.

    Attributes:
        problems: Each thing that is wrong, with its place, as the message lists them; none where it is one sentence.

    Example:
        >>> from lora_mixer import Mix
        >>> try:
        ...     Mix.of({"ink": "high", "wash": 0.4, "oil": float("nan")})
        ... except MixError as error:
        ...     print([problem.place for problem in error.problems])
        ['ink', 'oil']
    """

    problems: tuple[Problem, ...]

    def __init__(
        self,
        message: str | None = None,
        *,
        problems: tuple[Problem, ...] = (),
        what: str = "mix",
        **facts: Unpack[ErrorFacts],
    ) -> None:
        if message is None and len(problems) == 1:
            message = f"This {what} cannot be used: {problems[0]}"
        elif message is None:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            message = f"This {what} cannot be used, for {len(problems)} reasons:\n{listed}"
        super().__init__(message, problems=problems, **facts)


class AdapterConfigError(LoraMixerError, ValueError):
    """
    A configuration cannot be that of a fresh adapter, or not on this model.

    Args:
        message: What is wrong; None lists the problems.
        problems: Each thing that is wrong, with the field that it is about.
        facts: As in :class:`LoraMixerError`.

    Attributes:
        problems: As above.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraConfig, LoraMixer
        >>> LoraMixer(torch.nn.Sequential(torch.nn.Linear(2, 2))).add_adapter(LoraConfig(r=0, target_modules=["0"]))
        Traceback (most recent call last):
        lora_mixer.errors.AdapterConfigError: This adapter cannot be made: r: ...
    """

    def __init__(
        self, message: str | None = None, *, problems: tuple[Problem, ...] = (), **facts: Unpack[ErrorFacts]
    ) -> None:
        if message is None and len(problems) == 1:
            message = f"This adapter cannot be made: {problems[0]}"
        elif message is None:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            message = f"This adapter cannot be made, for {len(problems)} reasons:\n{listed}"
        super().__init__(message, problems=problems, **facts)


class PlanError(LoraMixerError, ValueError):
    """
    A plan of pictures cannot be made as it stands.

    Args:
        message: What is wrong; None lists the first 20 problems.
        problems: Each thing that is wrong, with its place and, of a file, its line.
        facts: As in :class:`LoraMixerError`; the file is the plan's.

    Attributes:
        problems: Each thing that is wrong, once, by line; none where it is one sentence.

    Example:
        >>> from lora_mixer.batches import parse_plan
        >>> parse_plan(b"jobs: 3", "yaml")
        Traceback (most recent call last):
        lora_mixer.errors.PlanError: This plan cannot be made:
          line 1: jobs: expected a valid list, got 3
    """

    problems: tuple[Problem, ...]

    def __init__(
        self, message: str | None = None, *, problems: Iterable[Problem] = (), **facts: Unpack[ErrorFacts]
    ) -> None:
        by_line = sorted(dict.fromkeys(problems), key=lambda problem: problem.line or 0)
        if message is None:
            rows = [" ".join(str(problem).split()) for problem in by_line]
            listed = first_of(rows, _PROBLEMS_SHOWN, between="\n  ", last="\n  ")
            message = f"{'this' if facts.get('file') else 'This'} plan cannot be made:\n  {listed}"
        super().__init__(message, problems=by_line, **facts)


class WorkersError(LoraMixerError, RuntimeError):
    """
    The workers of a batch cannot be started, or all of them are gone for good.

    Example:
        >>> try:
        ...     raise WorkersError("2 of 2 workers are gone: the machine has no memory left")
        ... except RuntimeError as error:
        ...     print(error)
        2 of 2 workers are gone: the machine has no memory left
    """


class PictureError(LoraMixerError, ValueError):
    """
    A picture cannot be asked for like that, or not of this pipeline.

    Args:
        message: What is wrong; None lists the problems.
        field: The field of the picture that it is about.
        option: The option of the model that it is about, an attribute of ``ModelOptions``: the command line and the page, which
            is started there, name it as they spell it (``--vae-tiling``).
        problems: Each thing that is wrong, with the field as its place.
        facts: As in :class:`LoraMixerError`; the key is ``field`` or ``option``.

    Attributes:
        problems: As above, one of ``field`` and ``message`` where these are given; none where it is about no field.
        option: As above, or None.

    Example:
        >>> from lora_mixer import PictureRequest
        >>> try:
        ...     PictureRequest("a cat", steps=0)
        ... except PictureError as error:
        ...     print(error.problems[0].place)
        steps
    """

    problems: tuple[Problem, ...]

    def __init__(
        self,
        message: str | None = None,
        *,
        field: str | None = None,
        option: str | None = None,
        problems: Iterable[Problem] = (),
        **facts: Unpack[ErrorFacts],
    ) -> None:
        listed = tuple(problems)
        if message is None:
            message = f"This picture cannot be asked for: {'; '.join(map(str, listed))}."
        elif field is not None:
            file = facts.get("file")  # a problem goes its own way, as into a plan's, and has none
            listed = (Problem(field, message if file is None else f"{file}: {message}"),)
        facts["key"] = field or option
        super().__init__(message, problems=listed, **facts)
        self.option = option

    def _place(self, surface: Surface | None) -> str | None:
        return (
            self.key
            if self.option is None or surface in (Surface.PYTHON, Surface.PLAN)
            else option_text(self.option)
        )


class PictureCancelled(LoraMixerError):  # noqa: N818 -- no error, but what ends one
    """
    Raise it in a maker's ``on_step`` to stop the work; it comes out of the iterator.

    Example:
        >>> def on_step(progress):
        ...     raise PictureCancelled("the user left")
        >>> on_step(None)
        Traceback (most recent call last):
        lora_mixer.errors.PictureCancelled: the user left
    """


class PictureMetadataError(LoraMixerError, ValueError):
    """
    A picture holds no settings that can be read, or settings cannot be those of a picture.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> from lora_mixer import read_picture
        >>> bare = io.BytesIO()
        >>> Image.new("RGB", (8, 8)).save(bare, "PNG")
        >>> read_picture(bare.getvalue())
        Traceback (most recent call last):
        lora_mixer.errors.PictureMetadataError: the picture: no known settings among its texts ...
    """


class PipelineStateError(LoraMixerError, RuntimeError):
    """
    The pipeline cannot be worked on as it is: weights on meta, quantised, or changed by others.

    Example:
        >>> import torch
        >>> from lora_mixer import LoraMixer
        >>> mixer = LoraMixer(torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta")))
        >>> pair = {"0.lora_A.weight": torch.ones(1, 2), "0.lora_B.weight": torch.ones(2, 1)}
        >>> mixer.load_lora_weights(pair, "ink", activate=False) is not None
        True
        >>> mixer.set_mix("ink:1", engine="merged")
        Traceback (most recent call last):
        lora_mixer.errors.PipelineStateError: ...
    """


class MixLostError(PipelineStateError):
    """
    Neither a mix nor the one before could be put into effect: no adapter is active any more.

    Attributes:
        unwritten: Weights that could not be given their base back either; it is kept, and the next call writes it.

    Example:
        >>> error = MixLostError("no adapter is active any more")
        >>> isinstance(error, PipelineStateError), error.unwritten
        (True, ())
    """

    unwritten: tuple[str, ...] = ()


class MissingExtraError(LoraMixerError, ImportError):
    """
    An optional package is missing; the message names the extra that installs it.

    Example:
        >>> try:
        ...     raise MissingExtraError("gradio is not installed; pip install 'lora-mixer[ui]' brings it")
        ... except ImportError as error:
        ...     print(error)
        gradio is not installed; pip install 'lora-mixer[ui]' brings it
    """
