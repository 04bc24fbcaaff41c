"""Settings for `pytest --nbval`, which runs the committed notebooks and compares their outputs."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# For the kernels: no progress bars in the outputs, and clair is found where it is not installed.
os.environ["TQDM_DISABLE"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if hasattr(item, "output_timeout"):  # a notebook cell; nbval waits only 5 seconds for its outputs
            item.output_timeout = 60
