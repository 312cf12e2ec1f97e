"""What is wrong with a plan, collected line by line and raised once."""

from __future__ import annotations

from lora_mixer.errors import PlanError

SHOWN = 20


class Problems:
    """
    A list of problems with their lines.

    Args:
        label: The plan's name, for messages.

    Example:
        >>> problems = Problems("plan.yaml")
        >>> problems.add(3, "steps: expected a whole number, got 'x'")
        >>> problems.finish()
        Traceback (most recent call last):
        lora_mixer.errors.PlanError: plan.yaml cannot be made:
          line 3: steps: expected a whole number, got 'x'
    """

    def __init__(self, label: str) -> None:
        """Start without any."""
        self.label = label
        self.found: dict[tuple[int | None, str], None] = {}

    def add(self, line: int | None, text: str) -> None:
        """Note one; the same one at the same line counts once."""
        self.found[line, " ".join(text.split())] = None

    def finish(self) -> None:
        """
        Raise what was found.

        Raises:
            PlanError: When there is anything.
        """
        if not self.found:
            return
        listed = sorted(self.found, key=lambda problem: problem[0] or 0)
        rows = [text if line is None else f"line {line}: {text}" for line, text in listed[:SHOWN]]
        if len(listed) > SHOWN:
            rows.append(f"and {len(listed) - SHOWN} more")
        error = PlanError("\n  ".join([f"{self.label} cannot be made:", *rows]))
        error.problems = tuple(listed)
        raise error


def shown(value: object) -> str:
    """Return a value for a message, short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
