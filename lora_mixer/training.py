"""
Trainers of transformers on adapters: their checkpoints hold what is trained, and are read again.

A Trainer finds the parameters of an adapter in training by itself, and what it saves is the adapter, not the model. What it
does not know is how to read that again: ``resume_from_checkpoint`` and ``load_best_model_at_end`` look for a model of PEFT.
:func:`adapter_trainer` adds that to any Trainer's class, with an adapter's own loss and what it does after each step.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from lora_mixer.errors import SourceError
from lora_mixer.formats.container import load_tensors
from lora_mixer.mixer import LoraMixer
from lora_mixer.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

_FILE = "adapter_model.safetensors"
_STATE = "adapter_training.state"
"""What an AdaLoRA needs beside its file to go on, as safetensors; the name is that of no adapter. Other kinds have none."""


def adapter_trainer(trainer: type[Any]) -> type[Any]:
    """
    Return a Trainer's class for models on which a mixer has adapters in training.

    Args:
        trainer: ``transformers.Trainer`` or a class derived from it.

    Returns:
        A class derived from it, with the same arguments. Checkpoints are PEFT folders beside what the Trainer adds: of one
        adapter in the checkpoint's folder, of several each in a folder of its name. Resuming and loading the best write their values into
        the parameters that the optimizer has.

    Example:
        >>> from lora_mixer.training import adapter_trainer
        >>> mixer.load_lora_weights("folder", adapter_name="mine", trainable=True)  # doctest: +SKIP
        >>> Trainer = adapter_trainer(transformers.Trainer)  # doctest: +SKIP
        >>> Trainer(model=model, args=args, train_dataset=rows).train(resume_from_checkpoint=True)  # doctest: +SKIP
    """
    return type(f"Adapter{trainer.__name__}", (_AdapterTraining, trainer), {"__module__": trainer.__module__})


class _AdapterTraining:
    """What a Trainer does otherwise on a model with adapters in training; without any, all is as it was."""

    model: Any
    args: Any
    state: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the Trainer's arguments, and look at each optimizer step."""
        super().__init__(*args, **kwargs)
        trainer: Any = self
        trainer.add_callback(_after_steps(trainer))

    def _adapters(self) -> tuple[LoraMixer, Sequence[str]]:
        """Return the mixer of the model, and the adapters that are in training on it."""
        trainer: Any = self
        model = trainer.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        mixer = LoraMixer.of(model)
        return mixer, mixer.trained_adapters

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the model's loss with the adapters' own terms, as PEFT's models do in training."""
        above: Any = super()
        loss = above.compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        if not model.training:
            return loss
        mixer, names = self._adapters()
        terms = [mixer.adapter_loss(name) for name in names]
        if return_outputs:
            return sum(terms, start=loss[0]), loss[1]
        return sum(terms, start=loss)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save adapters, whatever the model's class."""
        trainer: Any = self
        mixer, names = self._adapters()
        model = trainer.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not names or hasattr(
            model, "_hf_peft_config_loaded"
        ):  # models of transformers save their adapters
            above: Any = super()
            above._save(output_dir, state_dict)  # noqa: SLF001 -- the Trainer's own
        elif self.args.should_save:
            for name, place in self._places(output_dir):
                mixer.save_lora_weights(place, name, format="peft")

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint, and what its adapters need to go on exactly."""
        trainer: Any = self
        above: Any = super()
        above._save_checkpoint(*args, **kwargs)  # noqa: SLF001 -- the Trainer's own
        if not self.args.should_save:
            return
        folder = Path(trainer._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"  # noqa: SLF001
        for name, place in self._places(str(folder)):
            state = self._adapters()[0].training_state(name)
            if state and place.is_dir():
                save_file({key: value.contiguous() for key, value in state.items()}, place / _STATE)

    def _places(self, folder: str | None) -> list[tuple[str, Path]]:
        """Return the folder of each adapter in training: that of the checkpoint, or one of its name there."""
        names, root = self._adapters()[1], Path(folder or self.args.output_dir)
        return [(name, root if len(names) == 1 else root / name) for name in names]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Write a checkpoint's values into the adapters in training."""
        if self._adapters()[1]:
            self._read(Path(resume_from_checkpoint))
        else:
            above: Any = super()
            above._load_from_checkpoint(resume_from_checkpoint, model)  # noqa: SLF001

    def _load_best_model(self) -> None:
        """Write the values of the best checkpoint into the adapters in training."""
        if self._adapters()[1]:
            self._read(Path(self.state.best_model_checkpoint))
        else:
            above: Any = super()
            above._load_best_model()  # noqa: SLF001

    def _read(self, folder: Path) -> None:
        mixer, names = self._adapters()
        places = dict(self._places(str(folder)))
        missing = [str(place / _FILE) for place in places.values() if not (place / _FILE).is_file()]
        if missing:
            raise SourceError(
                f"no checkpoint of {', '.join(names)}, which is in training: {', '.join(missing)} is not there",
                adapter=names[0],
                problems=[Problem(file, "is not there") for file in missing],
            )
        for name, place in places.items():
            mixer.load_lora_weights(
                str(place), adapter_name=name, hotswap=True, trainable=True, activate=False
            )
            if (place / _STATE).is_file():
                mixer.load_training_state(name, load_tensors(place / _STATE))


def _after_steps(trainer: Any) -> Any:
    """Return a callback that lets adapters do what they do after each optimizer step."""
    from transformers import TrainerCallback

    class AfterSteps(TrainerCallback):
        """Tells the mixer."""

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 -- its words
            """Tell the step that is done."""
            mixer, names = trainer._adapters()  # noqa: SLF001
            if names:
                mixer.after_step(state.global_step)

    return AfterSteps()


__all__ = ["adapter_trainer"]
