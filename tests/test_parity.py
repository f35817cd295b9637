"""docs/parity.md says nothing that the configurations and tests do not hold."""

import re
from pathlib import Path

import pytest
import yaml

from ddfp_lib.config import find_benchmark, load_config, load_method, read_yaml, to_dict
from ddfp_lib.config.methods import PRESETS
from ddfp_lib.config.schema import NetworkConfig

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "parity.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| piece")
]
KEY = re.compile(r"`((?:method|network)\.\w+): (\w+)`")
REASON = re.compile(r"\b(because|since|so that|no effect)\b", re.IGNORECASE)

OURS, THEIRS = to_dict(load_method("ddfp")), to_dict(load_method("ddfp_released"))
RELEASED = sorted(key for key in OURS if OURS[key] != THEIRS[key] and key != "name")
"""Keys of the method in which ddfp_released differs from ddfp."""

NETWORK = sorted(
    read_yaml(find_benchmark("voc"))["network"].keys() - {"encoder", "encoder_options", "weights"}
)
"""Keys of the network in which voc.yaml follows the release's decoder."""


def by_option():
    return {pair for row in ROWS if row[1] == "by option" for pair in KEY.findall(row[2])}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_row_has_a_verdict_with_evidence(row):
    piece, verdict, release, here = row
    assert piece and release and here
    assert verdict in ("equal", "by option", "differs")
    if verdict == "by option":
        assert KEY.search(release), "name the key and the value of the release"
    if verdict == "equal":
        assert "::" in here or "measured once" in here
    if verdict == "differs":
        assert REASON.search(here), "say why, or why it has no effect"


def test_the_counts_at_the_top_are_those_of_the_tables():
    equal, option, differs = (
        sum(row[1] == verdict for row in ROWS) for verdict in ("equal", "by option", "differs")
    )
    verdicts = f'"equal" for {equal} pieces, "by option" for {option} pieces, and "differs" for '
    counts = f"The tables compare {len(ROWS)} pieces. The verdict is {verdicts}{differs} pieces."
    assert counts in " ".join(PAGE.split())


def test_the_named_tests_exist():
    for file, name in re.findall(r"(test_\w+\.py)::(test_\w+)", PAGE):
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


def test_the_release_has_the_values_of_the_table():
    """Each key that the table names, at this value, in ddfp_released on VOC."""
    values = to_dict(load_config(find_benchmark("voc"), "ddfp_released"))
    for key, value in by_option():
        section, name = key.split(".")
        assert values[section][name] == yaml.safe_load(value), key


def test_no_key_of_the_release_is_missing():
    """All that ddfp_released and voc.yaml set otherwise than ddfp and our decoder."""
    differing = {f"method.{key}" for key in RELEASED} | {f"network.{key}" for key in NETWORK}
    assert differing == {key for key, _ in by_option()}


LINE = re.compile(r"release[^\]]*?\w\.py:\d+", re.DOTALL)


@pytest.mark.parametrize("key", RELEASED)
def test_each_choice_of_the_release_names_its_line(key):
    """In the comment above the key in base.yaml."""
    (comment,) = re.findall(rf"((?:^# .*\n)+){key}: ", (PRESETS / "base.yaml").read_text(), re.M)
    assert LINE.search(comment), comment


@pytest.mark.parametrize("key", NETWORK)
def test_each_option_of_the_network_names_its_line(key):
    """In the documentation of the configuration."""
    about = NetworkConfig.__doc__.split(f"        {key}: ")[1]
    assert LINE.search(re.split(r"\n {8}\w+: ", about)[0]), about


def test_line_numbers_of_the_base_file_are_those_of_the_page():
    """Each file:line of base.yaml is on the page, so that a correction reaches both."""
    base = (PRESETS / "base.yaml").read_text()
    cited = set(re.findall(r"train_ddfp_pascal\.py:(\d+(?:-\d+)?)", base))
    page = set(re.findall(r"train_ddfp_pascal\.py:(\d+(?:-\d+)?)", PAGE))
    # 372: where the density's features are taken, the same in all methods
    assert cited - page <= {"372"}
