"""Several processes train as one would: the same losses, gradients, parameters and scores."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
import yaml

import ddfp_lib.training.distributed as distributed
import ddfp_lib.training.loop as loop
from ddfp_lib.constants import IGNORE_INDEX
from ddfp_lib.data.loaders import training_batches
from ddfp_lib.data.splits import make_split
from ddfp_lib.data.workers import LostWorkerError
from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.scores import evaluate
from ddfp_lib.method.config import DensityConfig
from ddfp_lib.method.density import DensityEstimator
from ddfp_lib.method.rows import draw_counted_of_all
from ddfp_lib.models.norms import SharedBatchNorm2d
from ddfp_lib.ranks import (
    differentiable_total,
    first_of_next,
    rank,
    sum_gradients,
    together,
    total,
    world_size,
)
from ddfp_lib.training.data import data_of
from ddfp_lib.training.distributed import launch, process_group
from ddfp_lib.training.learner import Learner
from ddfp_lib.training.loop import train
from ddfp_lib.training.losses import PixelCounts, PseudoLabels
from ddfp_lib.training.memory import batch_division
from ddfp_lib.training.step import training_step
from tests.conftest import TINY
from tests.fixtures.ranks import run_ranks
from tests.fixtures.server import start_ddfp, status_of
from tests.test_evaluation import Painted, Reader
from tests.test_loop import assert_same_run
from tests.test_training import dataset_of, make_learner, snapshot

CPU = torch.device("cpu")
SAME = {"rtol": 1e-5, "atol": 1e-5}
# what ranks draw for their own features: without it only rounding is left
STILL = {"network": {"dropout": 0.0}, "density": {"noise": 0.0, "samples": 10**6}}
WHOLE = {"consistency_from": 0.0, "perturb_from": 0.0}


# Words between ranks ------------------------------------------------------------------------------


def test_alone_everything_is_its_own_total():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert total(value) is value
    assert differentiable_total(value).equal(value)
    assert first_of_next(torch.arange(6).view(3, 2)).tolist() == [[0, 1]]
    with process_group(CPU) as device:
        assert device == CPU
        assert not torch.distributed.is_initialized()


def talk():
    """Everything that ranks can say, in one group."""
    mine = torch.tensor([1.0, 10.0]) * (rank() + 1)
    leaf = mine.clone().requires_grad_()
    # rank r multiplies the sum by r + 1: each summand's gradient is the sum of these
    (differentiable_total(leaf) * (rank() + 1)).sum().backward()
    with_gradient, without = torch.nn.Parameter(mine.clone()), torch.nn.Parameter(mine.clone())
    with_gradient.grad = mine.clone()
    sum_gradients([with_gradient, without])
    said = {
        "total": total(mine),
        "unchanged": mine,
        "gradient": leaf.grad,
        "summed": with_gradient.grad,
        "without": without.grad,
        "next": first_of_next(torch.tensor([[rank()], [9]])),
        "bool": first_of_next(torch.tensor([rank() == 0])),
    }
    try:
        with together():
            if rank() == 1:
                raise UserError("rank 1 has no data")
    except UserError as error:
        said["error"] = str(error)
    with together():
        pass
    return said


def test_ranks_add_up_and_share_their_errors():
    first, second = run_ranks(2, talk)
    for said in (first, second):
        assert said["total"].tolist() == [3.0, 30.0]
        assert said["gradient"].tolist() == [3.0, 3.0]
        assert said["summed"].tolist() == [3.0, 30.0]
        assert said["without"] is None
        assert said["error"] == "rank 1 has no data"
    assert second["unchanged"].tolist() == [2.0, 20.0]
    assert (first["next"].tolist(), second["next"].tolist()) == ([[1]], [[0]])
    assert (first["bool"].tolist(), second["bool"].tolist()) == ([False], [True])


def leave(how):
    if rank() == 1:
        if how == "killed":
            os._exit(9)
        time.sleep(6)
    total(torch.ones(3))


@pytest.mark.fault(
    "a lost process",
    "one of two processes is killed or hangs, and no launcher starts it again: an error",
)
@pytest.mark.parametrize("how", ["killed", "stuck"])
def test_a_lost_rank_is_an_error_and_no_hang(how):
    error, _ = run_ranks(2, leave, how, timeout=2.0)
    assert isinstance(error, ConnectionError)
    assert "rank 0 lost another process" in str(error)
    assert "start the same command again" in str(error)


# Statistics, losses and gradients -----------------------------------------------------------------


def normalise(x, weight, bias, direction):
    norm = SharedBatchNorm2d(x.shape[1])
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    share = x.chunk(world_size())[rank()].clone().requires_grad_()
    y = norm(share)
    (y * direction.chunk(world_size())[rank()]).sum().backward()
    sum_gradients(norm.parameters())
    statistics = {name: value.clone() for name, value in norm.named_buffers()}
    return y.detach(), share.grad, norm.weight.grad, norm.bias.grad, statistics


def test_shared_batchnorm_is_batchnorm_of_the_whole_batch():
    rng = torch.Generator().manual_seed(0)
    x = 50 + torch.randn(4, 3, 5, 7, generator=rng)  # far from 0: a naive variance would fail
    weight, bias = torch.randn(2, 3, generator=rng)
    direction = torch.randn(x.shape, generator=rng)
    ranks = run_ranks(2, normalise, x, weight, bias, direction)
    norm = torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(weight)
        norm.bias.copy_(bias)
    leaf = x.clone().requires_grad_()
    y = norm(leaf)
    (y * direction).sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([r[0] for r in ranks]), y.detach(), **close)
    torch.testing.assert_close(torch.cat([r[1] for r in ranks]), leaf.grad, **close)
    for result in ranks:
        torch.testing.assert_close(result[2], norm.weight.grad, **close)
        torch.testing.assert_close(result[3], norm.bias.grad, **close)
        for name, value in norm.named_buffers():
            torch.testing.assert_close(result[4][name], value)


def take(config, state, steps, accumulate=1, mode=True, spoil=False):
    """Take steps as one of the ranks, from this state; say what came out."""
    dataset = dataset_of(config.data)
    labeled, unlabeled = make_split(dataset, config.data.labeled, config.data.split_seed)
    learner = Learner(config, config.data.digits.classes + 1, CPU, accumulate)
    learner.load_state_dict(state)
    learner.student.train(mode)
    batches = training_batches(
        dataset,
        labeled,
        unlabeled,
        config.data.augment,
        batch_labeled=config.training.batch_labeled,
        batch_unlabeled=config.training.batch_unlabeled if config.method.consistency else 0,
        seed=config.seed,
        start_step=0,
        stop_step=steps,
        rank=rank(),
        world=world_size(),
    )
    losses, gradients = [], {}
    for step, batch in enumerate(batches):
        if spoil and rank() == 1:
            batch.labels.fill_(IGNORE_INDEX)
            batch.valid.fill_(False)
        losses.append(training_step(learner, batch, step))
        if step == 0:
            named = learner.student.named_parameters()
            gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
    parts = {name: snapshot(part) for name, part in learner._parts().items() if name != "optimizer"}
    return {"losses": losses, "gradients": gradients, "parts": parts}


def assert_same_step(ours, theirs, **close):
    assert ours["gradients"].keys() == theirs["gradients"].keys()
    for name, gradient in theirs["gradients"].items():
        torch.testing.assert_close(ours["gradients"][name], gradient, **close)
    for values, others in zip(ours["losses"], theirs["losses"], strict=True):
        assert values.keys() == others.keys()
        for name, value in others.items():
            torch.testing.assert_close(values[name], value, **close, msg=name)


@pytest.mark.parametrize("method", ["supervised", "ddfp", "ddfp_released"])
def test_two_processes_take_the_step_of_one(tiny_config, method):
    """CutMix across ranks, means over all pixels, statistics over all images, the flow too."""
    # the supervised step of ddfp_released is compared too: every second image, by its own norm
    config = tiny_config(method, **STILL, training=WHOLE)
    if method == "supervised":
        config = tiny_config(method, **STILL, method={"warmup_norm": "split"})
    state = make_learner(config).state_dict()
    alone = take(config, state, steps=2)
    ranks = run_ranks(2, take, config, state, 2)
    for result in ranks:
        assert_same_step(result, alone, **SAME)
    for name, part in ranks[0]["parts"].items():
        for key, value in part.items():
            assert value.equal(ranks[1]["parts"][name][key]), (name, key)
            torch.testing.assert_close(value, alone["parts"][name][key], rtol=1e-3, atol=1e-4)
    if method != "supervised":
        assert alone["losses"][0]["perturbed"] > 0


@pytest.mark.parametrize("method", ["noise", "dropout", "vat", "ddfp"])
def test_random_features_differ_but_ranks_stay_equal(tiny_config, method):
    """Every rank draws for itself, and all of them end with one set of parameters."""
    config = tiny_config(method, training=WHOLE)
    state = make_learner(config).state_dict()
    first, second = run_ranks(2, take, config, state, 2)
    for name, part in first["parts"].items():
        assert all(value.equal(second["parts"][name][key]) for key, value in part.items()), name
    alone = take(config, state, steps=2)
    for values, others in zip(first["losses"], alone["losses"], strict=True):
        assert float(values["supervised"]) == pytest.approx(float(others["supervised"]), rel=0.5)
        assert float(values["coverage"]) == pytest.approx(float(others["coverage"]), abs=0.1)


def test_each_rank_draws_its_own_features(tiny_config):
    ours, theirs = run_ranks(2, streams, tiny_config("ddfp"))
    assert ours[0] == theirs[0]  # views: drawn for the whole batch
    assert ours[1] != theirs[1]
    assert ours == streams(tiny_config("ddfp"))


def streams(config):
    learner = Learner(config, 4, CPU)
    return [each.initial_seed() for each in learner.generators(3)]


@pytest.mark.parametrize("method", ["ddfp", "supervised"])
def test_a_share_in_parts_is_the_share_in_one(tiny_config, method):
    """In evaluation mode: training statistics are those of one micro-batch, and differ."""
    config = tiny_config(method, **STILL, training=WHOLE)
    state = make_learner(config).state_dict()
    whole = take(config, state, steps=2, mode=False)
    for accumulate in (2, 4):
        parts = take(config, state, steps=2, accumulate=accumulate, mode=False)
        assert_same_step(parts, whole, **SAME)
    trained = take(config, state, steps=1)
    assert take(config, state, steps=1, accumulate=2)["losses"] != trained["losses"]


def test_a_rank_with_nothing_to_learn_goes_along(tiny_config):
    """No label, no confident pixel and no row for the flow on one of the ranks."""
    config = tiny_config("ddfp", training=WHOLE)
    state = make_learner(config).state_dict()
    first, second = run_ranks(2, take, config, state, 2, 1, True, True)
    assert first["losses"][0]["supervised"] > 0
    assert first["losses"][0]["bits_per_dim"].isfinite()
    for name, part in first["parts"].items():
        for key, value in part.items():
            assert value.equal(second["parts"][name][key]), (name, key)
            assert not value.is_floating_point() or value.isfinite().all()


def test_cutmix_changes_no_count():
    """Why the losses' means can be known before views are mixed."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (3, 8, 9), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.4] = IGNORE_INDEX
    pseudo = PseudoLabels(labels, torch.rand(labels.shape, generator=rng) < 0.7)
    box = torch.zeros(8, 9).bool()
    box[2:6, 1:8] = True
    before, after = (PixelCounts.of(labels, each) for each in (pseudo, pseudo.mixed(box)))
    assert before == after
    assert 0 < before.confident < before.valid


def fit(rows, labels, samples):
    """Two steps on rows dealt out unevenly: a fifth to the first rank, or all of them."""
    config = DensityConfig(hidden=8, noise=0.0, samples=samples)
    estimator = DensityEstimator(4, 3, config, total_steps=10)
    cut = [0, len(rows) // 5, len(rows)] if world_size() == 2 else [0, len(rows)]
    mine = slice(cut[rank()], cut[rank() + 1])
    rng = torch.Generator().manual_seed(rank())
    fits = [estimator.fit_step(rows[mine], labels[mine], generator=rng) for _ in range(2)]
    nothing = estimator.fit_step(rows[:0], generator=rng)
    return fits, snapshot(estimator), nothing.nll.isnan().item(), estimator.steps


def test_the_flow_learns_from_the_rows_of_all_ranks():
    rng = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(50, 4, generator=rng), torch.randint(-1, 3, (50,), generator=rng)
    alone, expected, _, _ = fit(rows, labels, samples=50)
    for fits, state, nothing, steps in run_ranks(2, fit, rows, labels, 50):
        for ours, theirs in zip(fits, alone, strict=True):
            torch.testing.assert_close(vars(ours), vars(theirs), **SAME)
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, **SAME)
        assert nothing
        assert steps == 2
    # a choice of rows: each rank its own, and still one set of parameters
    (_, first, _, _), (_, second, _, _) = run_ranks(2, fit, rows, labels, 20)
    assert all(value.equal(second[key]) for key, value in first.items())


def fit_counted(rows, labels, counted, samples):
    """As :func:`fit`, with rows that do not count, as on a GPU; also how many were drawn."""
    config = DensityConfig(hidden=8, noise=0.0, samples=samples)
    estimator = DensityEstimator(4, 3, config, total_steps=10)
    cut = [0, len(rows) // 3, len(rows)] if world_size() == 2 else [0, len(rows)]
    mine = slice(cut[rank()], cut[rank() + 1])
    rng = torch.Generator().manual_seed(rank())
    drawn = draw_counted_of_all(counted[mine], samples, rng)[1].sum()
    fitted = estimator.fit_step(rows[mine], labels[mine], generator=rng, counted=counted[mine])
    return fitted, snapshot(estimator), int(drawn)


def test_ranks_share_rows_that_only_their_devices_count():
    rng = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(60, 4, generator=rng), torch.randint(-1, 3, (60,), generator=rng)
    counted = torch.arange(60) % 4 > 0
    alone, expected, _ = fit_counted(rows, labels, counted, 45)
    ranks = run_ranks(2, fit_counted, rows, labels, counted, 60)
    for fitted, state, _ in ranks:
        torch.testing.assert_close(vars(fitted), vars(alone), **SAME)
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, **SAME)
    assert [drawn for *_, drawn in ranks] == [15, 30]
    ranks = run_ranks(2, fit_counted, rows, labels, counted, 15)
    assert [drawn for *_, drawn in ranks] == [5, 10]
    assert all(value.equal(ranks[1][1][key]) for key, value in ranks[0][1].items())


# Scores -------------------------------------------------------------------------------------------


def score(protocol, config=None, state=None):
    if config is None:
        network, dataset = Reader(), Painted()
    else:
        learner = Learner(config, 4, CPU)
        learner.load_state_dict(state)
        network, dataset = learner.teacher, data_of(config, "val")
    return evaluate(network, dataset, device=CPU, protocol=protocol, confidence=0.705)


@pytest.mark.parametrize("protocol", ["whole", "slide5", "crop6"])
def test_every_image_counts_once_on_any_number_of_processes(tiny_config, protocol):
    """7 images on 2 and on 3 ranks: padding to equal shares would count some twice."""
    alone = score(protocol)
    for count in (2, 3):
        for ours in run_ranks(count, score, protocol):
            assert ours.confusion.equal(alone.confusion)
            assert (ours.confident, ours.confident_right) == (
                alone.confident,
                alone.confident_right,
            )


def test_a_real_network_scores_the_same_on_two_processes(tiny_config):
    config = tiny_config("ddfp")
    state = make_learner(config).state_dict()
    alone = score("slide20", config, state)
    for ours in run_ranks(2, score, "slide20", config, state):
        assert ours.confusion.equal(alone.confusion)


# The launcher -------------------------------------------------------------------------------------


@pytest.fixture
def handlers():
    """The launcher takes signals to itself; give them back."""
    kept = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    kept |= {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGQUIT)}
    yield
    for each, handler in kept.items():
        signal.signal(each, handler)


def mortal(config, out, victim):
    """Train; the first time, one of the ranks is killed as it begins step 5."""
    step = loop.training_step

    def last(learner, batch, number):
        if number == 5 and rank() == victim and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return step(learner, batch, number)

    with process_group(CPU) as device:
        loop.training_step = last
        return train(config, out, device=device)


@pytest.mark.fault("`kill -9`", "one of two processes that train together")
@pytest.mark.usefixtures("handlers")
def test_a_killed_process_is_started_again_and_the_run_ends_as_if_it_never_was(
    tiny_config, tmp_path
):
    config = tiny_config("ddfp")
    undisturbed, _ = run_ranks(2, train_rank, config, tmp_path / "undisturbed")
    result = launch(mortal, 2, config, tmp_path / "killed", 1)
    assert result.processes == 2
    assert result.test_iou == undisturbed[0].test_iou
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")


def fail(how):
    with process_group(CPU):
        if how == "diverged":
            raise FloatingPointError("step 3: the loss is nan")
        if how == "wrong":
            with together():
                raise UserError("the data is not there")
        if rank() == 1:
            if how == "lost":
                raise LostWorkerError("no room left")
            raise UserError("image 7 cannot be read")  # found by one rank, amid a step
        total(torch.ones(1))


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    ("how", "kind", "named"),
    [
        ("diverged", FloatingPointError, "step 3: the loss is nan"),
        ("wrong", UserError, "the data is not there"),
        ("alone", UserError, "^image 7 cannot be read$"),
        ("lost", ConnectionError, "no room left.*start the same command again"),
    ],
)
def test_the_launcher_says_what_was_wrong(how, kind, named, monkeypatch, capfd):
    """What one rank finds ends all of them at once, with one line; a lost worker is tried again."""
    if how == "lost":
        monkeypatch.setattr(distributed, "RESTARTS", 0)
    with pytest.raises(kind, match=named):
        launch(fail, 2, how)
    if how != "lost":
        told = capfd.readouterr().err
        assert "failed" not in told and "Traceback" not in told


def test_the_command_line_starts_processes_and_speaks_once(tmp_path):
    benchmark = tmp_path / "tiny.yaml"
    benchmark.write_text(yaml.safe_dump(TINY))
    words = ["train", benchmark, "--processes", "2", "--accumulate", "2", "--out", tmp_path / "run"]
    # a process of its own: ranks write to where the first launcher of a process wrote
    out = tmp_path / "told.txt"
    assert status_of(start_ddfp(*words, out=out)) == 0
    told = out.read_text()
    assert told.count("global batch 4+4 = 2 processes x 2 x 1+1") == 1
    assert told.count("on test images") == 1
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (environment["processes"], environment["protocol"]) == (2, "whole")
    assert (environment["gpu"], environment["precision"]) == (None, "float32")
    assert environment["micro_batches"] == [2]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["processes"], result["gpus"], result["protocol"]) == (2, 0, "whole")
    assert result["peak_memory"] > 0.1


# Whole runs ---------------------------------------------------------------------------------------


def train_rank(config, out, stop_at=None):
    told = []
    result = train(
        config,
        out,
        device=CPU,
        stop_at=stop_at,
        progress=lambda done, steps, text: told.append(text),
    )
    return result, [text for text in told if text], sorted(p.name for p in out.iterdir())


def test_a_run_of_two_goes_on_alone_and_ends_as_one(tiny_config, tmp_path):
    config = tiny_config("ddfp", **STILL)
    alone = train(config, tmp_path / "alone", device=CPU)
    ours, theirs = run_ranks(2, train_rank, config, tmp_path / "run", 4)
    assert ours[:2] == (None, ["global batch 4+4 = 2 processes x 1 x 2+2", *ours[1][1:]])
    assert theirs[:2] == (None, [])  # one rank speaks
    shutil.copytree(tmp_path / "run", tmp_path / "run2")
    resumed = train(config, tmp_path / "run", device=CPU)
    (both, told, _), (silent, _, _) = run_ranks(2, train_rank, config, tmp_path / "run2")
    assert silent is None
    assert told
    assert (alone.processes, resumed.processes, both.processes) == (1, 1, 2)
    for result in (resumed, both):
        assert result.config_hash == alone.config_hash
        assert result.test_miou == pytest.approx(alone.test_miou, abs=2)
        assert result.teacher_miou_last == pytest.approx(alone.teacher_miou_last, abs=2)
    again, _ = run_ranks(2, train_rank, config, tmp_path / "run")
    assert again[0] == resumed  # finished: all ranks return


def test_what_one_rank_finds_wrong_stops_both(tiny_config, tmp_path):
    config = tiny_config("supervised")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "index.json").write_text("not json")
    for error in run_ranks(2, train_rank, config, tmp_path / "run"):
        assert isinstance(error, UserError)
        assert "index.json: is damaged" in str(error)


@pytest.mark.parametrize(
    ("accumulate", "sizes", "named"),
    [
        (3, {}, "training.batch_labeled: 4 images .* 1 process with 3 micro"),
        (4, {"batch_unlabeled": 6}, "training.batch_unlabeled: 6 images"),
        (-1, {}, "--accumulate -1"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(tiny_config, accumulate, sizes, named):
    with pytest.raises(UserError, match=named):
        batch_division(tiny_config("ddfp", training=sizes), accumulate, CPU)


def test_three_processes_cannot_share_four_images(tiny_config, tmp_path):
    for error in run_ranks(3, train_rank, tiny_config("ddfp"), tmp_path / "run"):
        assert isinstance(error, UserError)
        assert "4 images cannot be divided among 3 processes" in str(error)
    assert not (tmp_path / "run").exists()


def test_memory_that_is_too_small_is_told_with_the_option(tiny_config, tmp_path, monkeypatch):
    def too_much(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "training_step", too_much)
    with pytest.raises(UserError, match=r"out of GPU memory.* --accumulate 4"):
        train(tiny_config("ddfp"), tmp_path, device=CPU, accumulate=2)


def test_memory_that_is_too_small_for_scores_is_reported_too(tiny_config, tmp_path, monkeypatch):
    def too_much(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "evaluate_all", too_much)
    with pytest.raises(UserError, match=r"out of GPU memory while .* data.protocol=slide513"):
        train(tiny_config("supervised"), tmp_path, device=CPU)


def test_shares_are_told(tiny_config):
    config = tiny_config("ddfp", training={"batch_labeled": 16, "batch_unlabeled": 24})
    assert batch_division(config, 2, CPU) == "global batch 16+24 = 1 process x 2 x 8+12"
    assert batch_division(tiny_config("supervised"), 1, CPU) == "global batch 4 = 1 process x 1 x 4"
