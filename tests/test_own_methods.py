"""Methods of the user, from a package that this project does not know."""

import os
import subprocess
import sys

import pytest
import torch
import yaml

from ddfp_lib.cli import app, run
from ddfp_lib.config import to_dict
from ddfp_lib.errors import UserError
from ddfp_lib.method.own import make_own
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.learner import load_learner
from ddfp_lib.training.loop import train

CPU = torch.device("cpu")

PACKAGE = """
import torch
from ddfp_lib.method.perturb import scale_to_length

print("imported")


class Uphill:
    def __init__(self, eps, factor=1.0):
        self.eps = eps * factor

    def __call__(self, features, moved, models, generator):
        with torch.enable_grad():
            at = features.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(models.log_density(at).where(moved, 0.0).sum(), at)
        return scale_to_length(gradient, moved, self.eps)


class Negated:
    def __init__(self, eps):
        pass

    def __call__(self, features, moved, models, generator):
        return -0.1 * features * moved.unsqueeze(1)


class Wrong:
    def __init__(self, eps, **options):
        raise AssertionError("a class that is no perturbation must not be made")

    def __call__(self, features):
        return features


def function(features, moved, models, generator):
    return features
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    (folder / "mysteps").mkdir(parents=True)
    (folder / "mysteps" / "__init__.py").write_text("")
    (folder / "mysteps" / "steps.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.startswith("mysteps")]:
        del sys.modules[name]


@pytest.fixture
def benchmark(tiny_config, tmp_path):
    values = to_dict(tiny_config("ddfp"))
    del values["method"], values["seed"]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_it_trains_from_the_command_line(package, benchmark, tmp_path):
    """A file beside the data, a class of an installed package: no line of this project changes."""
    method = tmp_path / "uphill.yaml"
    method.write_text(
        "summary: Features step up the density.\nperturbation: mysteps.steps:Uphill\n"
        "perturbation_options: {factor: 2}\nlearns_density: true\n"
    )
    words = ["train", str(benchmark), "--method", str(method), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "ddfp_lib.cli", *words],
        env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    finished = Run.open(tmp_path / "run")
    assert finished.result().method == "uphill"
    learner = load_learner(finished, CPU)
    assert learner.density.steps == 4  # a density was learned along


def test_reading_a_run_imports_no_class_that_it_names(package, tiny_config, tmp_path):
    config = tiny_config("ddfp", method={"perturbation": "mysteps.steps:Negated"})
    assert train(config, tmp_path / "run", device=CPU)
    for name in [name for name in sys.modules if name.startswith("mysteps")]:
        del sys.modules[name]
    load_learner(Run.open(tmp_path / "run"), CPU)
    assert not any(name.startswith("mysteps") for name in sys.modules)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("nowhere.steps:Uphill", {}, "cannot be imported .*set PYTHONPATH"),
        ("mysteps.steps:Missing", {}, "has no class 'Missing'"),
        ("mysteps.steps:function", {}, "has no class 'function'"),
        ("mysteps.steps:Wrong", {}, r"define __call__\(self, features, moved, models, generator\)"),
        ("collections:OrderedDict", {}, "is not a perturbation"),
        ("mysteps.steps:Uphill", {"speed": 2}, "does not take {'speed': 2}"),
    ],
)
def test_what_cannot_be_used_is_one_line(package, name, options, words):
    with pytest.raises(UserError, match=words) as caught:
        make_own(name, 1.0, options)
    assert "\n" not in str(caught.value)


def test_it_is_checked_before_work_starts(package, benchmark, tmp_path, capsys):
    method = tmp_path / "mine.yaml"
    method.write_text("perturbation: mysteps.steps:Wrong\n")
    words = ["train", str(benchmark), "--method", str(method), "--out", str(tmp_path / "run")]
    assert run(lambda: app(words, standalone_mode=False)) == 2
    assert "is not a perturbation" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_density_that_is_not_learned_is_named(package, tiny_config, tmp_path):
    config = tiny_config("ddfp", method={"perturbation": "mysteps.steps:Uphill"})
    with pytest.raises(
        UserError, match=r"method\.perturbation: .*set method\.learns_density to true"
    ):
        train(config, tmp_path / "run", device=CPU)
