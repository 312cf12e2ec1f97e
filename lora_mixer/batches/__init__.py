"""
Pictures by the thousand, from a plan in a file: on one device, on all of a machine, or on a Ray cluster.

A plan (YAML, JSON, JSONL, CSV) is checked as a whole, written out into pictures, and carried out by workers that all run
the same code, so that a picture is the same whichever engine makes it. ``docs/batches.md`` describes plans.
"""

from __future__ import annotations

from lora_mixer.extras import explained

try:
    from lora_mixer.batches.checking import CheckedPlan, check_plan
    from lora_mixer.batches.engines import WORKER_ENGINES, WorkerEngine
    from lora_mixer.batches.estimate import DryRun, dry_run
    from lora_mixer.batches.expansion import PlannedPicture
    from lora_mixer.batches.manifest import read_manifest
    from lora_mixer.batches.plan import Plan, load_plan, parse_plan, plan_schema
    from lora_mixer.batches.reading import PLAN_FORMS, PlanForm
    from lora_mixer.batches.run import BatchResult, run_plan
except ModuleNotFoundError as error:
    raise explained(error, "batch") from error

__all__ = [
    "PLAN_FORMS",
    "WORKER_ENGINES",
    "BatchResult",
    "CheckedPlan",
    "DryRun",
    "Plan",
    "PlanForm",
    "PlannedPicture",
    "WorkerEngine",
    "check_plan",
    "dry_run",
    "load_plan",
    "parse_plan",
    "plan_schema",
    "read_manifest",
    "run_plan",
]
