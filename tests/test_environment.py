"""What the project says it needs is one thing, and importing it needs nothing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parent.parent
LOCKED_APART = ("convert",)  # it brings a graphical toolkit


def test_conda_users_get_the_same_packages():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    extras = [packages for name, packages in extras.items() if name not in LOCKED_APART]
    wanted = set(project["dependencies"]).union(*extras)
    *tools, packages = yaml.safe_load((REPOSITORY / "environment.yml").read_text())["dependencies"]
    assert tools == [f"python{project['requires-python']}", "pip", "make"]
    assert set(packages["pip"]) - {"-e ."} == wanted
    assert "-e ." in packages["pip"]


def test_importing_the_package_imports_nothing_heavy():
    code = "import ddfp_lib, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "ddfp_lib" in loaded
    heavy = {"torch", "timm", "torchvision", "torchmetrics", "matplotlib", "umap", "sklearn"}
    assert not loaded & (heavy | {"numpy", "scipy", "pandas", "PIL"})
