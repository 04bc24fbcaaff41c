"""Resolve every extra of pyproject.toml together, on this Python, and write constraints.txt."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = "# Versions tested together on Python 3.11, with every extra. Made by `make constraints`, not by hand."

with tempfile.TemporaryDirectory() as folder:
    report = Path(folder) / "report.json"
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, f"{ROOT}[book,test,lab]"], check=True)
    packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]

pins = {package["name"].lower().replace("_", "-").replace(".", "-"): package["version"] for package in packages}
pins.pop("clair")
lines = [HEAD, *(f"{name}=={version}" for name, version in sorted(pins.items()))]
(ROOT / "constraints.txt").write_text("\n".join(lines) + "\n")
