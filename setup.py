"""Where the folders of the tree go in the installed package; all else is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

packages = find_packages(str(ROOT), include=["lora_mixer", "lora_mixer.*"])
package_dir: dict[str, str] = {}
package_data = {"lora_mixer": ["py.typed", "*.pyi", "**/*.json", "**/*.gz", "**/NOTICE"]}

# ui/ stands beside the package in the tree and inside it when installed, so that there is one import name.
if (ROOT / "ui").is_dir():
    packages += ["lora_mixer.ui", *(f"lora_mixer.ui.{name}" for name in find_packages(str(ROOT / "ui")))]
    package_dir["lora_mixer.ui"] = "ui"
    package_data["lora_mixer.ui"] = ["**/*"]

setup(
    packages=packages,
    package_dir=package_dir,
    package_data=package_data,
    exclude_package_data={"": ["*.pyc", "**/*.pyc"]},
    include_package_data=False,
)
