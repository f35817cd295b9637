"""What the benches claim exactly: memory that grows linearly, goals, and that all of them run."""

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from bench import (
    density,
    equal_effect,
    gpu,
    gpu_check,
    growth,
    photo_evaluation,
    photo_shares,
    photo_steps,
    photos,
    pseudo_labels,
)
from bench.__main__ import ABOUT, COMMANDS, by, goals, gpu_page, plot
from bench.alone import alone
from bench.equal_effect import length_of
from bench.goals import Goal
from bench.growth import count, fit, gradient, step
from ddfp_lib.config import find_benchmark, load_config
from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.prediction import segment
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.learner import load_learner
from ddfp_lib.training.loop import train
from tests.fixtures.trees import make_voc


@pytest.mark.parametrize("work", [fit, gradient])
def test_the_density_grows_linearly_in_rows_and_has_no_rows_by_classes_by_features(work):
    rows, features, classes, hidden = 1024, 32, 30, 64
    once, twice = (count(work(n, features, classes)) for n in (rows, 2 * rows))
    assert twice.written < 2.05 * once.written
    assert twice.written > 1.5 * once.written  # the parameters' part does not grow
    assert once.largest <= rows * max(hidden, features, classes)
    many = count(work(rows, features, 2 * classes))
    assert many.written - once.written < 20 * rows * classes


def test_a_step_has_no_term_in_squared_pixels():
    learned = step(side=32, images=2)
    learned()  # the optimizer makes its state
    small, large = count(learned), count(step(side=64, images=2))
    pixels = 64 * 64 * 4
    assert large.written < 4.3 * small.written
    assert large.largest <= 64 * pixels  # widest maps: channels of features at full size


def test_the_bench_for_gpus_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "PAGE", tmp_path / "GPU.md")
    options = ["--toy", "--device", "cpu", "--repeats", "1", "--accumulate", "2"]
    monkeypatch.setattr("sys.argv", ["gpu", *options])
    divisions, make = [], gpu.Learner
    monkeypatch.setattr(gpu, "Learner", lambda *given: divisions.append(given[3:]) or make(*given))
    gpu.main()
    assert divisions == [(2,)] * len(gpu.METHODS) + [()]  # the released step has no micro-batches
    page = capsys.readouterr().out
    assert "steps of ours with float32, micro-batches: 2\n" in page
    rows = [line.split("|")[1:-1] for line in page.splitlines() if "|" in line]
    first = [row[0].strip() for row in rows]
    assert [*gpu.METHODS, "released step"] == first[-5:]
    assert first.count("fit") == first.count("gradient") == 3
    assert sum(row[-1].strip() in ("met", "missed") for row in rows) == 2 + 3
    assert not gpu.PAGE.exists()


def test_settings_are_values_of_yaml():
    config = gpu.configuration("ddfp", gpu.TOY, ["training.compile=true", "precision=bfloat16"])
    assert config.training.compile is True
    assert config.training.precision == "bfloat16"


def test_the_first_check_of_a_gpu_runs_on_a_cpu(monkeypatch, capsys):
    """All of it but what PyTorch counts on GPUs alone; then with a device that computes wrongly."""
    before = gpu_check.PAGE.read_text()
    monkeypatch.setattr("sys.argv", ["gpu_check", "--toy", "--device", "cpu"])
    with pytest.raises(SystemExit, match=r"^0$"):
        gpu_check.main()
    page = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    met = {row[0]: row[1] for row in rows if row and row[-1] == "met"}
    assert len(met) == 2 + 1 + 1 + 3
    assert met["a resumed run has the same weights to 0.001"] == "the same bits"
    assert [row[0] for row in rows if len(row) == 6][2:] == list(gpu_check.PRECISIONS)
    assert gpu_check.PAGE.read_text() == before  # of a toy nothing is kept
    wrong = iter([[2.004] + [2.0] * 39, [2.0] * 40])  # of the device, of the CPU
    monkeypatch.setattr(gpu_check, "losses", lambda *arguments: next(wrong))
    goals, _ = gpu_check.agree(torch.device("cpu"), True)
    assert [goal.met for goal in goals] == [False, True]


@pytest.mark.parametrize("met", [True, False])
def test_the_first_check_of_a_gpu_replaces_its_page(tmp_path, monkeypatch, met):
    """The page that is kept before is the sentence of the page of speed; all of it goes."""
    kept = gpu_check.PAGE.read_text()
    if kept.startswith("Not run"):
        assert kept.strip() == gpu_page(tmp_path / "nothing.md", "make gpu-check")
    monkeypatch.setattr(gpu_check, "PAGE", tmp_path / "GPU.md")
    gpu_check.PAGE.write_text(kept)
    parts = {
        "agree": ([Goal("as on the CPU", "1e-5", met)], ""),
        "steps": ([], "| precision |\n|---|\n| float32 |"),
    }
    checks = {name: lambda *_, part=part: part for name, part in parts.items()}
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    monkeypatch.setattr("sys.argv", ["gpu_check", "--device", "cpu"])
    with pytest.raises(SystemExit, match=f"^{0 if met else 1}$"):
        gpu_check.main()
    page = gpu_check.PAGE.read_text()
    assert page.startswith("CPU, torch ") and "Not run" not in page
    assert f"| as on the CPU | 1e-5 | {'met' if met else 'missed'} |" in page
    assert "## steps\n\n| precision |" in page


@pytest.mark.parametrize("gradient", [False, True])
def test_estimators_agree_before_they_are_timed(gradient):
    case = density.Case(60, 6, 3, gradient, hidden=8)
    answers = {name: density.prepare(name, case)() for name in density.ESTIMATORS}
    if gradient:
        torch.testing.assert_close(answers["ddfp"], answers["reference"], rtol=1e-4, atol=1e-4)
    assert all(answer.isfinite().all() for answer in answers.values())


def test_operations_are_those_of_the_matrix_products():
    """Counted by hand for one row, 4 features, 2 classes, layers of 3."""
    forward = 4 * (2 * 3 + 3 * 3 + 3 * 4) + 4 * 2  # four subnets and the mixture
    assert density.Case(1, 4, 2, gradient=True, hidden=3).flops == 2 * 2 * forward
    assert density.Case(1, 4, 2, gradient=False, hidden=3).flops == 2 * (3 * forward - 2 * 3)


def test_the_stored_page_explains_its_names_and_names_its_commands():
    page = (Path(density.__file__).parent / "RESULTS.md").read_text(encoding="utf-8")
    assert ABOUT in page
    assert f"\n{photos.PAGE.read_text(encoding='utf-8').strip()}\n" in page
    for title in COMMANDS:
        assert f"\n## {title}\n\n{by(title)}" in page
    for name in (*density.ESTIMATORS, *density.CASES):
        assert name in ABOUT or name == "gradient, 20,480 rows"  # says it itself


def measured(times, memory=10.0, machine=0.8):
    return density.Measured(
        {"ddfp": 1.0, "reference": times, "zuko": 2.0},
        {"ddfp": 0.0, "reference": 0.5, "zuko": 0.0},
        {"ddfp": 10.0, "reference": 10 * memory, "zuko": 20.0},
        80.0,
        machine,
    )


def test_goals_are_met_or_missed_by_what_was_measured(tmp_path):
    densities = dict.fromkeys(density.CASES, measured(5.0))
    densities["fit, VOC"] = measured(3.9, memory=7.0, machine=0.6)
    seconds = {"noise": 1.0, "consistency": 0.8, "ddfp": 1.22}
    verdicts = [line.split("|")[1:4] for line in goals(densities, seconds).splitlines()[2:]]
    assert verdicts[0][1].strip() == "3.9 (a ratio of 4 needs 62 % of the machine's rate)"
    missed = [goal.strip() for goal, _, verdict in verdicts if verdict.strip() == "missed"]
    assert missed == [
        "fit, VOC: time of reference / ddfp at least 4",
        "fit, VOC: extra memory at most 1/8 of the reference's",
        "fit, VOC: at least 70 % of the machine's rate of matrix products",
        "training step: time of ddfp / consistency at most 1.5",
    ]
    assert len(verdicts) == 11
    plot(densities, seconds, tmp_path / "results.png")
    assert density.table(densities).count("\n") == 1 + 3 * len(density.CASES)


def test_memory_too_small_to_be_told_makes_no_ratio():
    seconds, kernel = (dict.fromkeys(density.ESTIMATORS, value) for value in (2.0, 0.25))
    megabytes = {"ddfp": 0.0, "reference": 6.0, "zuko": 11.0}
    found = density.Measured(seconds, kernel, megabytes, 80.0, 0.5)
    rows = density.table({"digits": found}).splitlines()
    assert rows[2].endswith("| 50 % of 80 |")
    assert rows[3] == "| digits | reference | 2000.0 | 25 % | 6 | 1.0 |  |  |"


def test_growth_is_told_relative_to_the_start(tmp_path):
    grown = growth.Grown([1.0, 2.0, 4.0, 9.0], [10, 20, 40, 80], [5, 10, 20, 40])
    last = growth.table({"rows": grown}).splitlines()[-1]
    assert last == "| rows | 2.00 | 4.00 | 9.00 | 2.00 | 4.00 | 8.00 | 40 |"
    growth.plot({"rows": grown}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_memory_is_of_a_fresh_process():
    """However much the process that asks has used before."""
    held = torch.ones(100_000_000)  # 400 MB
    extra = alone(density.memory, "ddfp", "fit, VOC")
    assert held.sum() > 0
    assert 50 < extra < 300


def test_photographs_give_batches_and_steps():
    batch = photo_steps.make_batches(1)[0]
    assert batch.labeled_images.shape == batch.weak_images.shape == (6, 3, 160, 160)
    assert set(batch.labels.unique().tolist()) <= {*range(photo_steps.CLASSES), 255}
    assert batch.valid.float().mean() > 0.3
    learner, step = photo_steps.prepare("supervised")
    assert type(learner.student).__module__ == "ddfp_lib.models.network"
    assert photo_steps.found("training_step").__module__ == "ddfp_lib.training.step"
    assert step(0)["loss"].isfinite()


@pytest.mark.soak
def test_steps_on_digit_scenes_are_those_of_a_run():
    learner, step = photo_steps.prepare("consistency", digits=True)
    config = load_config(find_benchmark("digits"), "consistency", 0)
    assert learner.config == config
    batch = photo_steps.scene_batches(config, 1)[0]
    assert len(batch.labeled_images) == config.training.batch_labeled
    assert len(batch.weak_images) == config.training.batch_unlabeled
    assert step(0)["loss"].isfinite()


def test_steps_on_photographs_are_compared_with_another_checkouts():
    seconds = {"supervised": [0.6, 1.0], "noise": [1.0, 1.3], "ddfp": [1.12, 1.5]}
    rows = [line.split("|")[1:-1] for line in photos.table(seconds).splitlines()]
    assert {len(row) for row in rows} == {4}
    assert [cell.strip() for cell in rows[2]] == ["supervised", "600", "1000", "0.60"]
    verdicts = {goal.text: goal.met for goal in photos.goals(seconds, [80, 100], 1e-6, 1e-6)}
    assert [name for name, met in verdicts.items() if not met] == [
        "ddfp: CPU time at most 0.7 of the other's"
    ]
    assert len(verdicts) == 5
    alone = {method: times[:1] for method, times in seconds.items()}
    assert photos.table(alone).splitlines()[2] == "| supervised | 600 |"
    assert [goal.text for goal in photos.goals(alone)] == ["ddfp / noise at most 1.12"]


def test_the_kinds_of_work_add_up_and_no_operation_counts_twice():
    """Two operations inside a measured call, three outside: one of an unknown kind."""

    def event(name, start, end, own):
        return SimpleNamespace(
            name=name,
            time_range=SimpleNamespace(start=start, end=end),
            self_cpu_time_total=own,
            cpu_time_total=end - start,
        )

    parts = photo_shares.split(
        [
            event("EMA update", 0, 10, 3),
            event("aten::lerp", 1, 4, 3),
            event("aten::copy_", 5, 9, 4),
            event("aten::native_batch_norm_backward", 11, 20, 9),
            event("aten::mm", 20, 22, 2),
            event("aten::sort", 22, 27, 5),
        ]
    )
    assert sum(parts.values()) == 10 + 9 + 2 + 5
    assert {kind: time for kind, time in parts.items() if time} == {
        "EMA update": 10,
        "BatchNorm": 9,
        "matrix products (flow, 1x1 convolutions)": 2,
        "all else": 5,
    }
    rows = photo_shares.table({"BatchNorm": 0.75, "all else": 0.25}).splitlines()
    assert rows[2:] == ["| BatchNorm | 75.0 % |", "| all else | 25.0 % |"]


def test_the_calls_that_are_measured_as_a_whole_are_the_steps_own():
    for module, name in photo_shares.WHOLE.values():
        assert callable(getattr(module, name))


def test_a_checkout_that_is_none_is_refused(tmp_path):
    with pytest.raises(SystemExit):
        photos.main(["--against", str(tmp_path)])
    with pytest.raises(SystemExit):
        photos.main(["--evaluate", str(tmp_path)])
    with pytest.raises(SystemExit):
        photos.main(["--repeats", "0"])


class InThisProcess:
    """What a checkout's process answers, without the process."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, do, **request):
        if do == "evaluate":
            assert photo_steps.evaluation(**request) > 0
            return {"here": 0.5, "there": 1.0}[self.folder.name]
        labels = photo_steps.labels(request["stored"])
        labels[:3] += self.folder.name == "there"
        return torch.save(labels, request["path"])


def test_evaluations_of_photographs_are_compared(tmp_path, tiny_config):
    """Student and teacher of a run, the same photographs, and two checkouts that differ."""
    lists = {"train": ["a", "b"], "val": ["v1", "v0", "v2"]}
    root = make_voc(tmp_path / "data", lists, classes=["ground", "cell", "rim"])
    images = {"dataset": "voc", "root": str(root), "labeled": 1, "test": "val", "long_side": 32}
    train(tiny_config("ddfp", data=images), tmp_path / "run", device=torch.device("cpu"))
    stored = tmp_path / "networks.pt"
    assert photo_evaluation.store(tmp_path / "run", root, 2, stored) == 2
    saved = torch.load(stored)
    photographs = photo_steps.stored_photographs(saved)
    assert photographs.names == ["v1", "v0"]
    sizes = [tuple(photographs.image(i).shape[1:]) for i in range(2)]
    assert sizes == [tuple(photographs.mask(i).shape) for i in range(2)]
    assert all(max(size) == 32 for size in sizes)
    run = Run.open(tmp_path / "run")
    teacher = load_learner(run, torch.device("cpu")).teacher
    expected = segment(teacher, photographs.image(0), torch.device("cpu"))
    count = sum(height * width for height, width in sizes)
    labels = photo_steps.labels(str(stored))
    assert torch.equal(labels[count : count + expected.numel()], expected.flatten())
    folders = [Path("here"), Path("there")]
    compared = photo_evaluation.compare(InThisProcess, folders, stored, 1)
    assert (compared.different, compared.pixels) == (3, 2 * count)
    verdicts = [(goal.measured, goal.met) for goal in photo_evaluation.goals(compared)]
    assert verdicts == [("0.50 (0.5 of 1.0 CPU s)", True), (f"3 of {2 * count:,}", False)]


@pytest.mark.soak
def test_the_bench_on_photographs_runs_against_a_checkout(capsys):
    here = str(Path(photos.__file__).parent.parent)
    photos.main(["--against", here, "--repeats", "1", "--methods", "supervised"])
    printed = capsys.readouterr().out
    assert "| gradient: difference at most 1e-5 | 0.0e+00" in printed
    assert "| supervised |" in printed


def test_the_length_of_equal_effect():
    lengths = [0.1, 1.0, 10.0, 100.0]
    values = [0.0, *(3 * eps**2 for eps in lengths[1:])]
    for eps in (1.0, 1.7, 10.0, 42.0, 100.0):
        assert length_of(3 * eps**2, lengths, values) == pytest.approx(eps)
    assert math.isnan(length_of(1.0, lengths, values))  # below what was measured
    assert math.isnan(length_of(4e4, lengths, values))


def test_descent_has_the_effect_of_its_own_length():
    kinds = {"density descent": 2.0, "random": 0.5}
    table = pd.DataFrame(
        [
            {"eps": eps, "step": kind, "KL (nats)": slope * eps, "flips (%)": slope * eps**3}
            for eps in (2.0, *equal_effect.GRID)
            for kind, slope in kinds.items()
        ]
    )
    lengths = equal_effect.equal_lengths([table, table])
    assert lengths.loc["density descent"].tolist() == pytest.approx([2.0, 2.0])
    assert lengths.loc["random"].tolist() == pytest.approx([8.0, 2 * 4 ** (1 / 3)])


class Certain(torch.nn.Module):
    """Answers with the image's red channel as the class, as sure as the green channel says."""

    precision = torch.float32

    def forward(self, images):
        red, sure = (255 * images[:, 0]).round().long(), images[:, 1]
        odds = sure.logit()[:, None]
        return torch.nn.functional.one_hot(red, 2).movedim(-1, 1) * odds


class Drawn:
    """Four pixels: true classes 0, 0, 1 and ignored, labeled 0, 1, 1 and 1; one is not sure."""

    classes = ("ground", "cell")

    def image(self, index):
        red = torch.tensor([[0, 1], [1, 1]])
        green = torch.tensor([[250, 250], [200, 250]])
        return torch.stack([red, green, green]).to(torch.uint8)

    def mask(self, index):
        return torch.tensor([[0, 0], [1, 255]], dtype=torch.uint8)


def test_pseudo_labels_are_counted_by_class():
    """By hand: the pixel of class 1 is at 200 / 255, below the threshold of 0.9."""
    pixels, pairs = pseudo_labels.count(Certain(), Drawn(), [0, 0], 0.9)
    assert pixels.tolist() == [4, 2]
    assert pairs.tolist() == [[2, 2], [0, 0]]
    found = pseudo_labels.table(pixels, pairs, Drawn.classes)
    assert found.loc["ground"].tolist() == pytest.approx([200 / 3, 50, 100, 50])
    assert found.loc["cell"].tolist() == pytest.approx([100 / 3, 50, 0, 0])


def test_pseudo_labels_of_a_run_are_those_of_its_unlabeled_images(tiny_config, tmp_path):
    train(tiny_config("consistency"), tmp_path / "run", device=torch.device("cpu"))
    found = pseudo_labels.measure(tmp_path / "run", None, 8)
    assert found["pixels"].sum() == pytest.approx(100)
    assert len(found) == 4
    train(
        tiny_config("supervised", data={"labeled": 40}),
        tmp_path / "all",
        device=torch.device("cpu"),
    )
    with pytest.raises(UserError, match="labeled; give another run"):
        pseudo_labels.measure(tmp_path / "all", None, 8)
