"""Backbones by name: the small stem, networks of timm, and that each loads strictly into its own library with the same features."""

import sys
from functools import partial

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from engine.planning.activations import Activations, without_memory
from engine.results.exports import backbone_of, export_backbone
from engine.trunk.backbones import described, make_backbone
from engine.trunk.network import check_sides, make_network

SIDE = 32
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def make(name, stem="imagenet", side=SIDE, seed=0):
    return make_network(name, None, 1, 8, 4, seed, stem=stem, side=side)


def moved(network):
    """Statistics and weights that are not those of a fresh network, so that one that is left out is noticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in network.backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(
                    0.02 * torch.rand(tensor.shape, generator=generator) * (1 if tensor.dim() < 2 else tensor.std())
                )
    return network.eval()


def assert_loads_with_the_same_features(network, theirs, path, about):
    export_backbone(path, backbone_of(network.state_dict()), about)
    theirs.load_state_dict(load_file(path), strict=True)
    images = torch.randint(256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, other = (
            network.features([images]),
            theirs.eval()(((images / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)),
        )
    assert ours.std() > 0
    assert float((ours - other).norm() / other.norm()) <= 1e-6
    with safe_open(path, "pt") as file:
        assert file.metadata() == about


def with_small_stem(model):
    """As engine/RUNS.md tells people to do it."""
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_a_resnet_of_torchvision_loads_with_either_stem(stem, tmp_path):
    network, theirs = moved(make("resnet18", stem)), torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    theirs = with_small_stem(theirs) if stem == "small" else theirs
    about = {"torchvision": "resnet18"} | ({"stem": "small"} if stem == "small" else {})
    assert described("resnet18", stem, SIDE) == about
    assert_loads_with_the_same_features(network, theirs, tmp_path / "backbone.safetensors", about)


def test_behind_the_small_stem_an_image_has_all_its_pixels():
    seen = {}
    for stem in ("imagenet", "small"):
        network = make("resnet18", stem)
        network.backbone.layer1.register_forward_hook(
            lambda _, inputs, output, stem=stem: seen.update({stem: tuple(inputs[0].shape[2:])})
        )
        network.features([torch.zeros(2, 3, SIDE, SIDE)])
    assert seen == {"imagenet": (8, 8), "small": (32, 32)}


def test_the_small_stem_changes_the_stem_alone_and_the_default_changes_no_bit():
    plain, small = make("resnet18").state_dict(), make("resnet18", "small").state_dict()
    assert plain.keys() == small.keys()
    assert [name for name in plain if plain[name].shape != small[name].shape] == ["backbone.conv1.weight"]
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(zero_init_residual=True)
    for name, tensor in theirs.state_dict().items():
        assert name.startswith("fc.") or torch.equal(plain[f"backbone.{name}"], tensor), name
    deviation = small["backbone.conv1.weight"].std()
    assert float(deviation) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["densenet121", "googlenet", "mobilenet_v3_small"])
def test_the_small_stem_is_refused_for_what_is_no_resnet(name):
    with pytest.raises(
        ValueError, match=f"backbone.stem small is for networks that begin as ResNets do .* and {name} does not"
    ):
        make_backbone(name, stem="small")


def test_where_timm_is_missing_it_is_said_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "engine.trunk.timm_models", raising=False)
    monkeypatch.delattr("engine.trunk.timm_models", raising=False)
    with pytest.raises(ValueError, match=r"backbone\.name timm/resnet50d needs timm, .*: pip install timm"):
        make_backbone("timm/resnet50d")


class TestTimm:
    """What needs timm, which the extra `dev` brings."""

    @pytest.fixture(autouse=True)
    def _timm(self):
        self.timm = pytest.importorskip("timm")

    @pytest.mark.parametrize("name", ["resnet50d", "vit_small_patch16_224"])
    def test_a_network_loads_strictly_with_the_same_features(self, name, tmp_path):
        is_transformer = name.startswith("vit")
        network = moved(make(f"timm/{name}"))
        about = {"timm": name} | ({"img_size": str(SIDE)} if is_transformer else {})
        assert described(f"timm/{name}", "imagenet", SIDE) == about
        options = {"img_size": SIDE} if is_transformer else {}
        theirs = self.timm.create_model(name, num_classes=0, **options)
        assert_loads_with_the_same_features(network, theirs, tmp_path / "backbone.safetensors", about)

    def test_a_resnet_of_timm_may_have_the_small_stem_and_a_deep_stem_may_not(self, tmp_path):
        network, theirs = moved(make("timm/resnet18", "small")), self.timm.create_model("resnet18", num_classes=0)
        about = {"timm": "resnet18", "stem": "small"}
        assert_loads_with_the_same_features(network, with_small_stem(theirs), tmp_path / "backbone.safetensors", about)
        with pytest.raises(ValueError, match="and timm/resnet18d does not; set it to imagenet"):
            make("timm/resnet18d", "small")

    def test_an_unknown_name_is_told_with_the_nearest_ones(self):
        with pytest.raises(
            ValueError, match=r"timm/resnet50dd is not a network of timm; the nearest ones are .*timm/resnet50d"
        ):
            make("timm/resnet50dd")
        with pytest.raises(ValueError, match="is not a network of timm"):
            make("timm/hf_hub:someone/something")

    def test_a_transformer_takes_images_of_one_side_alone(self):
        network = make("timm/vit_tiny_patch16_224")
        check_sides(network, {SIDE})
        for sides in ({SIDE, 48}, {224}):
            with pytest.raises(
                ValueError, match=r"the backbone cannot take images of side (48|224) \(.*\); change backbone or sizes"
            ):
                check_sides(network, sides)
        for side, nearest in ((40, 48), (20, 32)):
            said = f"patches of 16 pixels, .* their side {side}; set data.image_size to {nearest}"
            with pytest.raises(ValueError, match=said):
                make("timm/vit_tiny_patch16_224", side=side)
        said = r"timm cannot make vit_tiny_patch16_224 for images of side 8 \(.*\); change"
        with pytest.raises(ValueError, match=said):
            make("timm/vit_tiny_patch16_224", side=8)

    @pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
    def test_a_plan_counts_its_weights_and_what_it_makes_on_the_way(self, autocast):
        build = partial(make, "timm/vit_tiny_patch16_224")
        weights = sum(one.numel() for one in build().parameters())
        with without_memory(needs_devices=autocast is not None):
            assert sum(one.numel() for one in build().parameters()) == weights
        one, two = (Activations(build, autocast=autocast).training(places, 3, [SIDE]).all for places in (4, 8))
        copies = 0 if autocast is None else 2 * weights  # autocast has the weights once more, in two bytes each
        assert 1.5 * (one - copies) < two - copies < 2.5 * (one - copies)

    def test_a_run_trains_one_with_adamw_and_exports_what_timm_loads(self, run):
        words = ("backbone.name=timm/vit_tiny_patch16_224", "backbone.layers=null", f"data.image_size={SIDE}")
        assert run(*words, "optimizer.trunk=adamw", "optimizer.lr=0.001", "steps=2", "evaluate.limit=50") == 0
        theirs = self.timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIDE)
        theirs.load_state_dict(load_file(run.output / "backbone.safetensors"), strict=True)
