"""
Samplers and schedules by the names that people use, as schedulers of diffusers.

``SAMPLERS`` has a row for each sampler: its usual name, diffusers' class, what the class is told, and what other programs call
it. Any scheduler class of diffusers is known by its own name, too. A schedule is one or several words (``karras``,
``trailing, zero_snr``); names such as "DPM++ 2M Karras" hold both.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_mixer.errors import PictureError
from lora_mixer.wording import first_line, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

AYS = "ays"
_SIGMAS = {f"use_{name}_sigmas": False for name in ("karras", "exponential", "beta")}
SCHEDULES: Mapping[str, Mapping[str, Any]] = {
    "normal": {"timestep_spacing": "linspace"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    AYS: {},
    "zero_snr": {"rescale_betas_zero_snr": True},
    "v_prediction": {"prediction_type": "v_prediction"},
    "epsilon": {"prediction_type": "epsilon"},
}
"""Words of a schedule, and what they tell a scheduler; ``ays`` (Align Your Steps) chooses the timesteps themselves."""
WITHOUT_SIGMAS = frozenset(
    f"{name}Scheduler"
    for name in (
        "EulerAncestralDiscrete",
        "DDIM",
        "DDPM",
        "PNDM",
        "IPNDM",
        "LCM",
        "TCD",
        "FlowMatchHeunDiscrete",
    )
)
"""The classes that cannot spread the noise itself in another way (karras, exponential, beta); a test asks diffusers."""
_OF_TRAINING = ("zero_snr", "v_prediction", "epsilon")
_SCHEDULE_ALIASES = {
    "k": "karras", "sgmuniform": "trailing", "simple": "trailing", "ddimuniform": "leading", "uniform": "linspace",
    "normal": "normal", "alignyoursteps": AYS, "zsnr": "zero_snr", "zerosnr": "zero_snr", "ztsnr": "zero_snr",
    "zeroterminalsnr": "zero_snr", "vprediction": "v_prediction", "vpred": "v_prediction", "v": "v_prediction",
    "eps": "epsilon", "automatic": "", "default": "",
}  # fmt: skip


@dataclass(frozen=True)
class Sampler:
    """
    One sampler.

    Attributes:
        name: As AUTOMATIC1111 and most people call it.
        scheduler: Diffusers' class.
        config: What the class is told.
        aliases: What ComfyUI, InvokeAI and others call it; spaces, dashes, underscores and capitals do not count.
        note: Where it is only close to what bears that name elsewhere.

    Example:
        >>> Sampler("Euler a", "EulerAncestralDiscreteScheduler").scheduler
        'EulerAncestralDiscreteScheduler'
    """

    name: str
    scheduler: str
    config: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    note: str = ""


_MULTI, _SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
_SDE = {"algorithm_type": "sde-dpmsolver++"}
SAMPLERS: tuple[Sampler, ...] = (
    Sampler("Euler", "EulerDiscreteScheduler"),
    Sampler("Euler a", "EulerAncestralDiscreteScheduler", {}, ("euler_ancestral", "eulera")),
    Sampler("Heun", "HeunDiscreteScheduler"),
    Sampler("LMS", "LMSDiscreteScheduler"),
    Sampler("DPM2", "KDPM2DiscreteScheduler", {}, ("dpm_2", "kdpm_2")),
    Sampler("DPM2 a", "KDPM2AncestralDiscreteScheduler", {}, ("dpm_2_ancestral", "kdpm_2_a")),
    Sampler("DPM++ 2M", _MULTI, {"solver_order": 2, "algorithm_type": "dpmsolver++"}),
    Sampler("DPM++ 3M", _MULTI, {"solver_order": 3, "algorithm_type": "dpmsolver++"}),
    Sampler("DPM++ 2M SDE", _MULTI, {"solver_order": 2, **_SDE}, ("dpmpp_2m_sde_gpu",)),
    Sampler(
        "DPM++ 2M SDE Heun",
        _MULTI,
        {"solver_order": 2, "solver_type": "heun", **_SDE},
        ("dpmpp_2m_sde_heun_gpu",),
    ),
    Sampler(
        "DPM++ 3M SDE",
        _MULTI,
        {"solver_order": 3, **_SDE},
        ("dpmpp_3m_sde_gpu",),
        "third order to the last steps",
    ),
    Sampler("DPM++ 2S", _SINGLE, {"solver_order": 2, "algorithm_type": "dpmsolver++"}),
    Sampler(
        "DPM++ 2S a", _SINGLE, {"solver_order": 2}, ("dpmpp_2s_ancestral",), "without the noise of its own"
    ),
    Sampler("DPM++ SDE", _SINGLE, {"solver_order": 1, **_SDE}, ("dpmpp_sde_gpu",), "single steps of order 1"),
    Sampler("UniPC", "UniPCMultistepScheduler", {}, ("uni_pc", "uni_pc_bh2")),
    Sampler("DEIS", "DEISMultistepScheduler"),
    Sampler("DDIM", "DDIMScheduler"),
    Sampler("DDPM", "DDPMScheduler"),
    Sampler("PLMS", "PNDMScheduler", {"skip_prk_steps": True}, ("pndm",)),
    Sampler("IPNDM", "IPNDMScheduler"),
    Sampler("SA-Solver", "SASolverScheduler"),
    Sampler("LCM", "LCMScheduler"),
    Sampler("TCD", "TCDScheduler"),
    Sampler("Flow Euler", "FlowMatchEulerDiscreteScheduler"),
    Sampler("Flow Heun", "FlowMatchHeunDiscreteScheduler"),
)
"""The samplers that have a name of their own."""


def _key(name: str) -> str:
    return re.sub(r"[\s_\-/().]+", "", name.lower().replace("++", "pp"))


_BY_KEY: Mapping[str, Sampler] = {
    _key(name): sampler for sampler in SAMPLERS for name in (sampler.name, *sampler.aliases)
}
_SCHEDULE_KEYS = {**{_key(name): name for name in SCHEDULES}, **_SCHEDULE_ALIASES}


@dataclass(frozen=True)
class SamplerChoice:
    """
    A sampler and a schedule that make sense together.

    Attributes:
        scheduler: Diffusers' class; empty is the pipeline's own.
        config: What it is told beside what the pipeline's own scheduler knows.
        words: The schedule's words.
    """

    scheduler: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether there is anything to change."""
        return bool(self.scheduler or self.words)


def read_sampler(sampler: str | None, schedule: str | None = None) -> SamplerChoice:
    """
    Read names of a sampler and a schedule; nothing is imported.

    Args:
        sampler: Its name here or in another program, or the name of diffusers' class; None is the pipeline's own.
        schedule: Words with commas or spaces between; None is the sampler's own.

    Raises:
        PictureError: When a name is unknown; those that are near are told.

    Example:
        >>> read_sampler("DPM++ 2M SDE Karras").words, read_sampler("dpmpp_2m", "karras").scheduler
        (('karras',), 'DPMSolverMultistepScheduler')
    """
    words = _words(schedule)
    if sampler is None or not sampler.strip():
        return SamplerChoice("", _told(words), words)
    known, more = _find(sampler)
    words = tuple(dict.fromkeys((*more, *words)))
    if isinstance(known, Sampler):
        # "DPM++ 2M" means even steps of noise, whatever the pipeline's own scheduler was told
        return SamplerChoice(known.scheduler, {**_SIGMAS, **known.config, **_told(words)}, words)
    return SamplerChoice(known, _told(words), words)


def _find(name: str) -> tuple[Sampler | str, tuple[str, ...]]:
    key = _key(name)
    if key in _BY_KEY:
        return _BY_KEY[key], ()
    if re.fullmatch(r"[A-Za-z0-9]{3,60}Scheduler", name.strip()):
        return name.strip(), ()
    for end, word in sorted(_SCHEDULE_KEYS.items(), key=lambda pair: -len(pair[0])):
        if end and key.endswith(end) and key[: -len(end)] in _BY_KEY:
            return _BY_KEY[key[: -len(end)]], (word,) if word else ()
    import difflib

    near = difflib.get_close_matches(key, _BY_KEY, 3, 0.5)
    names = list(dict.fromkeys(_BY_KEY[each].name for each in near)) or [each.name for each in SAMPLERS]
    raise PictureError(
        f"{quoted(name)} is unknown; {'did you mean' if near else 'known are'} {', '.join(names)}"
        f"{'?' if near else '.'} Classes of diffusers are known by their names, too.",
        field="sampler",
    )


def _words(schedule: str | None) -> tuple[str, ...]:
    words = []
    for part in re.split(r"[,;]", schedule or ""):
        text = part.strip()
        pieces = [text] if _key(text) in _SCHEDULE_KEYS else text.split()
        for piece in pieces:
            word = _SCHEDULE_KEYS.get(_key(piece))
            if word is None:
                raise PictureError(
                    f"{quoted(piece)} is unknown; known are {', '.join(SCHEDULES)}, with commas between several",
                    field="schedule",
                )
            words.append(word)
    return tuple(dict.fromkeys(word for word in words if word))


def _told(words: Sequence[str]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for word in words:
        for key, value in SCHEDULES[word].items():
            if config.get(key, value) != value:
                raise PictureError(f"{' and '.join(words)} exclude each other", field="schedule")
            config[key] = value
    if sum(bool(config.get(key)) for key in _SIGMAS) > 1:
        raise PictureError(f"{' and '.join(words)} exclude each other", field="schedule")
    return {**(_SIGMAS if any(config.get(key) for key in _SIGMAS) else {}), **config}


def make_scheduler(scheduler: Any, choice: SamplerChoice) -> Any:
    """
    Make the scheduler of a choice.

    Args:
        scheduler: The pipeline's own, whose training (betas, prediction) stays.
        choice: What :func:`read_sampler` gave.

    Returns:
        A new scheduler, or the pipeline's own where nothing is to change.

    Raises:
        PictureError: When diffusers has no such class, or it cannot carry what is asked or what the model was trained for.
    """
    return _made(scheduler, choice) if choice.changes else scheduler


def _made(scheduler: Any, choice: SamplerChoice, **probing: Any) -> Any:
    import inspect

    import diffusers

    kind: Any = getattr(diffusers, choice.scheduler, None) if choice.scheduler else type(scheduler)
    try:
        # classes whose library is missing are there in name only, and say so at the first look
        if kind is None or not hasattr(kind, "from_config") or not hasattr(kind, "set_timesteps"):
            raise PictureError(f"this diffusers has no scheduler {quoted(choice.scheduler)}", field="sampler")
        takes = set(inspect.signature(kind.__init__).parameters)
    except (ImportError, TypeError) as error:
        raise PictureError(
            f"{kind.__name__} cannot be used: {' '.join(str(error).split())[:200]}", field="sampler"
        ) from error
    # what is False is asked of all and needs no place
    lost = sorted(key for key, value in choice.config.items() if value is not False and key not in takes)
    if lost:
        word = next((each for each in choice.words if set(SCHEDULES[each]) & set(lost)), ", ".join(lost))
        raise PictureError(
            f"{kind.__name__} cannot carry {word} (it has no {', '.join(lost)})", field="schedule"
        )
    given = {key: value for key, value in choice.config.items() if key in takes}
    given |= _flow(scheduler, kind, takes)
    try:
        return kind.from_config(scheduler.config, **given, **probing)
    except (ImportError, ValueError, TypeError, NotImplementedError) as error:
        raise PictureError(
            f"{kind.__name__} cannot be made for this model: {first_line(error)}", field="sampler"
        ) from error


def fitting_samplers(scheduler: Any) -> dict[str, tuple[str, ...]]:
    """
    List the samplers that can carry a model, each with the schedules that it can have; for a choice that cannot be wrong.

    Args:
        scheduler: The pipeline's own.

    Returns:
        Schedules by the usual names of samplers. Under the empty name stand those that the pipeline's own can have.
        Words that say how a model was trained (``v_prediction``, ``zero_snr``) are left out: they are no matter of taste.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> found = fitting_samplers(DDIMScheduler())
        >>> "karras" in found["DPM++ 2M"], "karras" in found["DDIM"], "Flow Euler" in found
        (True, False, False)
    """
    import warnings

    samplers: dict[str, tuple[str, ...]] = {}
    probing: dict[str, Any] = (
        {} if scheduler.config.get("trained_betas") is not None else {"num_train_timesteps": 20}
    )
    for name in ("", *(sampler.name for sampler in SAMPLERS)):
        fits = []
        for word in ("", *(word for word in SCHEDULES if word not in _OF_TRAINING)):
            try:
                choice = read_sampler(name, word)
                with warnings.catch_warnings():  # of libraries; whoever takes the sampler meets them then
                    warnings.simplefilter("ignore")
                    made = _made(scheduler, choice, **probing) if choice.changes else scheduler
                if word == AYS:
                    ays_timesteps(made, 10)
            except PictureError:
                continue
            fits.append(word)
        if "" in fits:
            samplers[name] = tuple(word for word in fits if word)
    return samplers


def _flow(usual: Any, kind: Any, takes: set[str]) -> dict[str, Any]:
    """Keep samplers of flow matching and of noise prediction apart."""

    def is_flow(scheduler: Any, config: Any) -> bool:
        return "FlowMatch" in scheduler.__name__ or bool(config.get("use_flow_sigmas"))

    flows = is_flow(type(usual), usual.config)
    if flows and not is_flow(kind, {}):
        if "use_flow_sigmas" not in takes:
            raise PictureError(
                f"{kind.__name__} cannot carry this model, which was trained by flow matching; "
                f"take Flow Euler, or one that can, such as DPM++ 2M or UniPC",
                field="sampler",
            )
        shift = usual.config.get("shift")
        given: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        return given | ({"flow_shift": shift} if shift is not None else {})
    if not flows and is_flow(kind, {}):
        raise PictureError(
            f"{kind.__name__} is for models of flow matching, and this one is none", field="sampler"
        )
    return {}


def ays_timesteps(scheduler: Any, steps: int, name: str = "StableDiffusionTimesteps") -> list[int]:
    """
    Return the timesteps of Align Your Steps: the ten of the paper, or as many as asked, even in the log of the noise.

    Args:
        scheduler: The scheduler.
        steps: How many.
        name: Which of diffusers' tables has the ten.

    Raises:
        PictureError: When the scheduler takes no timesteps.
    """
    import inspect

    from diffusers import schedulers

    kept = getattr(scheduler, "alphas_cumprod", None)
    if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters or kept is None:
        raise PictureError(
            f"{type(scheduler).__name__} takes no timesteps, so it cannot carry {AYS}", field="schedule"
        )
    table: Any = getattr(schedulers, "AysSchedules")  # noqa: B009 -- not said to be exported
    ten: list[int] = table[name]
    if steps == len(ten):
        return list(ten)
    noise = [0.5 * math.log((1 - float(a)) / float(a)) if 0 < float(a) < 1 else 20.0 for a in kept]
    levels = [noise[t] for t in ten]
    wanted = []
    for i in range(steps):
        at = i * (len(ten) - 1) / max(steps - 1, 1)
        low = min(int(at), len(ten) - 2)
        level = levels[low] + (at - low) * (levels[low + 1] - levels[low])
        wanted.append(min(range(len(noise)), key=lambda t: abs(noise[t] - level)))
    return list(_falling(wanted))


def _falling(timesteps: Sequence[int]) -> Iterator[int]:
    last = None
    for t in timesteps:
        last = t if last is None or t < last else max(last - 1, 0)
        yield last


def usual_name(scheduler: str, config: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """
    Return what people call a scheduler of diffusers, and its schedule.

    Args:
        scheduler: The class's name, or any name of a sampler.
        config: What it was told.

    Returns:
        The sampler's usual name, or the class's own; and the schedule's word, or nothing.

    Example:
        >>> usual_name("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})
        ('DPM++ 2M', 'karras')
        >>> usual_name("dpmpp_2m_sde_gpu")
        ('DPM++ 2M SDE', '')
    """
    told = config or {}
    word = next((name for name in ("karras", "exponential", "beta") if told.get(f"use_{name}_sigmas")), "")
    rows = [row for row in SAMPLERS if row.scheduler == scheduler]
    if rows:
        best = max(rows, key=lambda row: sum(told.get(key) == value for key, value in row.config.items()))
        return best.name, word
    try:
        known, words = _find(scheduler)
    except PictureError:
        return scheduler, word
    return (known.name if isinstance(known, Sampler) else known), word or " ".join(words)
