"""Studies: files that parse, folders that are shared, and what is said of them."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from ddfp_lib.config import load_config
from ddfp_lib.data.digits import DigitScenes, DigitScenesConfig
from ddfp_lib.errors import UserError
from ddfp_lib.evaluation.mechanism import (
    COLUMNS,
    Embeddings,
    IndependentDensity,
    boundary_density,
    embeddings,
    percentiles,
)
from ddfp_lib.experiments import study as module
from ddfp_lib.experiments.ledger import LEDGER
from ddfp_lib.experiments.mechanism import measure_run
from ddfp_lib.experiments.reproduction import run_study
from ddfp_lib.experiments.study import find_study, read_study, record, studies
from ddfp_lib.models.network import SegmentationNetwork
from ddfp_lib.reports.studies import filled, inside, page, section
from ddfp_lib.runs.folder import Run
from ddfp_lib.training.loop import train
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]

MINIMAL = """
number: 1
question: Which?
benchmark: digits
seeds: [0, 1]
baseline: consistency
variants:
  consistency: {preset: consistency}
  noise, eps 3: {preset: noise, set: [eps=3]}
"""


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL)
    return read_study(path)


def runs_of(variants, seeds, score=lambda variant, seed: 50.0):
    rows = [
        dict.fromkeys(LEDGER)
        | {"benchmark": "digits", "split": "85", "method": name, "seed": seed, "seconds": 60.0}
        | {"test_miou": score(name, seed), "teacher_miou_last": score(name, seed), "commit": "abc"}
        for name in variants
        for seed in seeds
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("study", studies(), ids=lambda study: study.name)
def test_every_study_of_the_repository_plans_its_runs(study, tmp_path):
    cells = study.cells(tmp_path)
    splits = len(study.splits) or 1
    runs = sum(len(study.seeds) + len(variant.seeds) for variant in study.variants.values())
    assert len(cells) == splits * runs
    assert len({cell.folder for cell in cells}) == len(cells)
    assert {cell.config.method.name for cell in cells} == set(study.variants)


FIX = "8c74a5a"
"""Since then the flow learns no padding of labeled images."""


def git(*words):
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, check=False).returncode


@pytest.mark.skipif(git("cat-file", "-e", FIX) != 0, reason="the history is not here")
@pytest.mark.parametrize("study", studies(), ids=lambda study: study.name)
def test_a_study_of_before_the_fix_of_padding_says_so(study):
    before = {
        git("merge-base", "--is-ancestor", commit, FIX) == 0
        for commit in study.stored()["commit"].unique()
    }
    assert before == {bool(study.measured_before)}


def test_the_page_says_which_studies_learned_padding():
    sections = re.split(r"^## ", page(), flags=re.MULTILINE)[1:]
    said = [
        re.findall(r"Runs with a flow have an error that commit 8c74a5a fixed later: (.*)", text)
        for text in sections
    ]
    digits, camvid = (
        f"the flow was also trained on the padding of labeled images ({share} batch)."
        for share in ("2 % of the features of a digits", "0.2 % of the features of a camvid")
    )
    assert said == [[digits], [], *[[digits]] * 4, [camvid], [], [], [], [], []]


def test_studies_have_places_of_their_own():
    assert [study.number for study in studies()] == list(range(1, len(studies()) + 1))


def test_variants_of_one_name_are_one_everywhere(tmp_path):
    """Studies of a benchmark share its runs: one name must not mean two configurations."""
    hashes = {}
    for study in studies():
        for cell in study.cells(tmp_path):
            known = hashes.setdefault(cell.folder, cell.config.config_hash)
            assert known == cell.config.config_hash, cell.folder


def test_studies_with_other_settings_share_no_runs(minimal, tmp_path):
    """The same variant under other settings is another run."""
    changed = replace(minimal, settings=["density.samples=2048", "data.split_seed={seed}"])
    folder = changed.cells(tmp_path)[0].folder
    assert folder.parent.name == "runs-density.samples-2048-data.split_seed-seed"
    assert folder.name == minimal.cells(tmp_path)[0].folder.name


def test_a_variant_is_its_preset_with_its_settings(minimal, tmp_path):
    plain, changed = minimal.cells(tmp_path)[:2]
    assert changed.folder == tmp_path / "digits" / "runs" / "noise-eps-3-0"
    assert changed.config.eps == 3
    assert changed.config.method.perturbation == "noise"
    benchmark = Path(__file__).parents[1] / "reproduce" / "configs" / "digits.yaml"
    assert plain.config == load_config(benchmark, "consistency", 0)


def test_settings_root_and_kept_checkpoints_reach_the_runs(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(MINIMAL + "settings: [training.steps=7]\nmechanism: [consistency]\n")
    cells = read_study(path).cells(tmp_path, tmp_path / "data")
    assert {cell.config.training.steps for cell in cells} == {7}
    assert {cell.config.data.root for cell in cells} == {str(tmp_path / "data")}
    assert cells[0].keep > 100 > cells[1].keep


def test_a_setting_may_follow_the_seed(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(MINIMAL + 'settings: ["data.split_seed={seed}"]\n')
    configs = read_study(path).configs()
    assert [config.data.split_seed for config in configs] == [config.seed for config in configs]
    assert {config.seed for config in configs} == {0, 1}


def test_the_old_name_of_the_baseline_is_read(minimal, tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(MINIMAL.replace("baseline:", "rival:"))
    assert read_study(path) == minimal


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            ("baseline: consistency", "baseline: ddfp"),
            r"wrong\.yaml: baseline: 'ddfp' is no",
        ),
        (
            ("baseline:", "mechanism: [vat]\nbaseline:"),
            r"wrong\.yaml: mechanism: 'vat' is no",
        ),
        (("seeds: [0, 1]", "seed: [0, 1]"), "seed"),
        (("number: 1", ""), "number"),
        (("preset: noise", "preset: noises"), "'noises' is unknown"),
        (("eps=3", "epss=3"), "epss"),
        (("benchmark: digits", "benchmark: digit"), "'digit' is unknown"),
        (("number: 1", 'number: "1\\n2"'), 'value "1 2"'),
    ],
)
def test_a_wrong_study_is_refused(change, named, tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(MINIMAL.replace(*change))
    with pytest.raises(UserError, match=named):
        read_study(path).cells(tmp_path)


def test_an_unknown_study_is_refused():
    with pytest.raises(UserError, match=r"study: 'nothing' is unknown; choose one of eps"):
        find_study("nothing")


def test_recording_keeps_tables_beside_the_study(minimal, tmp_path, monkeypatch):
    monkeypatch.setattr(module.Study, "folder", tmp_path / "kept")
    with pytest.raises(UserError, match=r"minimal.csv: is not there"):
        record(minimal, tmp_path)
    runs_of(minimal.variants, [0, 1]).to_csv(tmp_path / "minimal.csv", index=False)
    assert minimal.stored() is None
    assert record(minimal, tmp_path) == [tmp_path / "kept" / "minimal.csv"]
    assert len(minimal.stored()) == 4


def test_a_section_says_what_the_interval_allows(minimal):
    def score(name, seed):
        return 50 + 3 * (name != "consistency") + 0.1 * seed * (name != "consistency")

    text = section(minimal, runs_of(minimal.variants, [0, 1, 2], score))
    assert "| `noise, eps 3` | **53.1** ± 0.1 | 53.0 | 53.1 | 53.2 | +3.1 (+2.9 to +3.3) |" in text
    assert "There is 1 comparison with `consistency`: it is significant." in text


def test_a_reading_takes_its_numbers_from_the_table(minimal):
    def score(name, seed):
        return 50 + 3 * (name != "consistency") + 0.1 * seed * (name != "consistency")

    runs = runs_of(minimal.variants, [0, 1, 2], score)
    text = "noise gains {{noise, eps 3 | consistency}}, the other way {{consistency|noise, eps 3}}"
    assert (
        filled(minimal, runs, text)
        == "noise gains +3.1 (+2.9 to +3.3), the other way -3.1 (-3.3 to -2.9)"
    )
    wide = filled(minimal, runs, "{{noise, eps 3 | consistency | 99.9 %}}")
    assert wide == "+3.1 (+1.3 to +4.9)"  # 0.1 / sqrt(3) times 31.6, Student's t of 2
    two = runs[runs["seed"] < 2]
    assert filled(minimal, two, "{{noise, eps 3 | consistency}}") == "+3.1"  # no interval of two
    apart = runs[(runs["method"] == "noise, eps 3") == (runs["seed"] > 0)]
    assert "nan" not in section(minimal, apart)  # no seed in common
    with pytest.raises(UserError, match=r"{{vat \| consistency}} has no runs"):
        filled(minimal, runs, "{{vat | consistency}}")


def test_a_reading_compares_what_was_measured_of_a_density(minimal):
    runs = runs_of(minimal.variants, [0, 1, 2])
    rows = [
        ("ddfp", seed, step, "density", name, value + noise)
        for seed, noise in enumerate((0.0, 0.1, 0.2))
        for step in (1, 2)
        for name, value in (("flow", 10 * step + noise), ("Gaussian", 5.0))
    ]
    mechanism = pd.DataFrame(rows, columns=COLUMNS)
    text = filled(minimal, runs, "{{density of ddfp | flow | Gaussian}} nats", mechanism)
    assert text == "+15.1 (+14.9 to +15.3) nats"  # step 2, gaps of 15, 15.1 and 15.2
    with pytest.raises(UserError, match=r"{{density of vat \| flow \| Gaussian}} has no runs"):
        filled(minimal, runs, "{{density of vat | flow | Gaussian}}", mechanism)


def test_a_reading_compares_groups_of_classes(minimal, tmp_path):
    path = tmp_path / "grouped.yaml"
    path.write_text(MINIMAL + GROUPS)
    study, runs = read_study(path), runs_of(minimal.variants, [0, 1, 2])
    text = "{{group alike | noise, eps 3 | consistency}}"
    assert filled(study, runs, text, None, ious(6.0)) == "+6.0 (+6.0 to +6.0)"
    with pytest.raises(UserError, match=r"{{group other \| noise, eps 3 \| consistency}} has no"):
        filled(study, runs, "{{group other | noise, eps 3 | consistency}}", None, ious(6.0))


def test_a_study_is_found_by_its_former_name():
    assert find_study("rivals") == find_study("perturbations")


def test_a_variant_may_have_more_seeds(minimal, tmp_path):
    path = tmp_path / "close.yaml"
    more = "{preset: consistency, seeds: [2, 3]}"
    path.write_text(MINIMAL.replace("{preset: consistency}", more))
    named = [(c.method.name, c.seed) for c in read_study(path).configs()]
    assert named == [
        ("consistency", 0),
        ("noise, eps 3", 0),
        ("consistency", 1),
        ("noise, eps 3", 1),
        ("consistency", 2),
        ("consistency", 3),
    ]
    variants = {**minimal.variants, "vat, eps 3": module.Variant("vat")}
    runs = runs_of(variants, [0, 1, 2])
    text = section(minimal, runs[(runs["method"] != "vat, eps 3") | (runs["seed"] < 2)])
    assert "+0.0; with 3 seeds +0.0 (+0.0 to +0.0) |" in text  # two seeds have no interval
    assert "| +0.0 |" in text


GROUPS = "groups: {alike: [cow, horse], others: [cat]}\n"


def ious(gain):
    """IoUs of two methods, three seeds; the second gains ``gain`` where classes are alike."""
    rows = [
        ("85", method, seed, name, 40 + seed + added * (name != "cat"))
        for method, added in (("consistency", 0), ("noise, eps 3", gain))
        for seed in (0, 1, 2)
        for name in ("cow", "horse", "cat")
    ]
    return pd.DataFrame(rows, columns=["split", "method", "seed", "class", "iou"])


def test_groups_of_classes_are_compared(minimal, tmp_path):
    path = tmp_path / "grouped.yaml"
    path.write_text(MINIMAL + GROUPS)
    text = section(read_study(path), runs_of(minimal.variants, [0, 1, 2]), classes=ious(6.0))
    assert "alike (cow, horse) | others (cat) | alike minus others |" in text
    gains = "+6.0 (+6.0 to +6.0) | 41.0, +0.0 (+0.0 to +0.0) | 6.0, +6.0 (+6.0 to +6.0) |"
    assert f"| `noise, eps 3` | 47.0, {gains}" in text
    assert "alike" not in section(read_study(path), runs_of(minimal.variants, [0, 1, 2]))


def test_a_group_of_an_unknown_class_is_refused(minimal, tmp_path):
    path = tmp_path / "grouped.yaml"
    path.write_text(MINIMAL + GROUPS.replace("horse", "zebra"))
    with pytest.raises(UserError, match=r"groups.alike names 'zebra', .* choose from cat, cow, ho"):
        module.group_scores(read_study(path), ious(0.0))


def test_one_seed_has_no_spread(minimal):
    assert "| **50.0** | 50.0 |  | 60 |" in section(minimal, runs_of(minimal.variants, [0]))


def test_a_choice_is_made_on_validation_images(minimal):
    variants = {
        **minimal.variants,
        "noise, eps 9": module.Variant("noise", ["eps=9"]),
    }
    chooser = module.Study(**{**vars(minimal), "variants": variants, "score": "teacher_miou_last"})
    scores = {"consistency": 50, "noise, eps 3": 51, "noise, eps 9": 52}
    runs = runs_of(variants, [0, 1], lambda name, seed: scores[name] + seed)
    runs["test_miou"] = 0.0
    best = (
        "Some presets have several variants. For each of these presets, this list names the "
        "variants with the highest mean validation mIoU (%)"
    )
    assert f"{best}: `noise, eps 9` (52.5)." in section(chooser, runs)
    scores["noise, eps 3"] = 52  # both are best, and both are named
    runs = runs_of(variants, [0, 1], lambda name, seed: scores[name] + seed).assign(test_miou=0.0)
    assert f"{best}: `noise, eps 3` (52.5), `noise, eps 9` (52.5)." in section(chooser, runs)


def test_the_notebook_answers_a_study(tmp_path):
    benchmark = tmp_path / "tiny.yaml"
    benchmark.write_text(yaml.safe_dump(TINY))
    study = tmp_path / "two.yaml"
    study.write_text(
        MINIMAL.replace("benchmark: digits", f"benchmark: {benchmark}").replace("[0, 1]", "[0]")
        + "mechanism: [consistency]\ngroups: {digits: ['0', '1']}\n"
    )
    # one is left to the notebook: a run takes a second, a process for it many
    _, second = read_study(study).cells(tmp_path / "out")
    train(second.config, second.folder, device=torch.device("cpu"))
    run_study(str(study), tmp_path / "out", root=None, jobs=2, device="cpu")
    runs = pd.read_csv(tmp_path / "out" / "two.csv")
    assert list(runs["method"]) == ["consistency", "noise, eps 3"]
    classes = pd.read_csv(tmp_path / "out" / "two-classes.csv")
    assert list(classes.groupby("method")["iou"].mean().round(1)) == list(
        runs["test_miou"].round(1)
    )
    inside = pd.read_csv(tmp_path / "out" / "two-mechanism.csv")
    assert set(inside["method"]) == {"consistency"}
    assert set(inside["step"]) == {2, 4, 6}  # every checkpoint was kept
    text = (tmp_path / "out" / "two.html").read_text()
    assert "can be tested for significance" in text


# Mechanism ---------------------------------------------------------------------------------------


def test_percentiles_run_from_0_to_100_in_order():
    values = torch.tensor([5.0, -1.0, 2.0])
    assert percentiles(values, values).tolist() == [100, 0, 50]
    assert percentiles(torch.tensor([-9.0, 9.0]), values).tolist() == [0, 100]


def test_the_independent_density_finds_the_gap_between_two_clusters():
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(3000, 4, generator=rng)
    rows[:1500, 0] += 8
    mixture = IndependentDensity(rows)
    gap = torch.zeros(50, 4)
    gap[:, 0] = 4
    assert mixture.log_prob(gap).mean() < mixture.log_prob(rows).quantile(0.1)
    assert torch.equal(IndependentDensity(rows).log_prob(gap), mixture.log_prob(gap))


def test_the_boundary_is_where_two_classes_are_nearly_as_probable():
    sure, torn = [0.9, 0.05, 0.05], [0.5, 0.45, 0.05]
    there = Embeddings(
        torch.zeros(4, 2), torch.tensor([sure, sure, torn, sure]), torch.tensor([0, 1, 0, 0])
    )
    found = boundary_density(there, torch.tensor([3.0, 2.0, 0.0, 1.0]))
    assert found["boundary share"] == 25
    assert found["boundary percentile"] == 0  # the third feature is the sparsest
    assert found["error percentile"] == pytest.approx(200 / 3)  # the second


def test_looking_into_a_run_tells_of_boundary_pseudo_labels_and_steps(tiny_config, tmp_path):
    config = tiny_config("ddfp")
    train(config, tmp_path, device=torch.device("cpu"))
    found = measure_run(Run.open(tmp_path), device=torch.device("cpu"), images=6)
    assert list(found.columns) == COLUMNS
    last = found[found["step"] == found["step"].max()]
    last = last.set_index(["features", "quantity"])["value"]
    assert {"boundary share", "pseudo-label coverage"} <= set(last["all"].index)
    assert {"percentile", "true class", "KL", "flipped class"} < set(last["density descent"].index)
    assert set(last["at rest"].index) == {"percentile", "true class"}
    assert "log-likelihood, flow" in last["density"].index
    free = last.index.get_level_values("quantity").str.contains("log|relative length")
    assert last[~free].dropna().between(0, 100).all()
    text = "\n".join(inside(found))
    assert "| unperturbed | - |" in text and "| adversarial (VAT) |" in text
    assert "AUROC (%), both" in text


def test_embedding_leaves_the_network_in_its_mode(tiny_config):
    config = tiny_config("consistency")
    small = DigitScenesConfig(
        size=32, classes=3, digits=(1, 2), digit_size=(12, 20), train=6, val=4
    )
    network = SegmentationNetwork(config.network, 4, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    there = embeddings(network, DigitScenes(small, "val"), images=4)
    assert len(there.rows) == len(there.labels) == len(there.probability)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
