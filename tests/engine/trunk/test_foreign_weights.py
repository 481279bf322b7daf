"""Files of weights that others wrote: the right tensors under the right names, what does not fit refused by name, and no code run."""

import argparse
import json
import os
import pickle
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from configs.schema import Config
from engine.jobs.parts import network_of, network_of_file
from engine.results.exports import export_backbone
from engine.trunk.foreign_weights import load_backbone
from tests.conftest import TINY


class Tiny(nn.Module):
    """As a ResNet names its parts, without its classifier; `classifier` brings it back, as libraries have it."""

    def __init__(self, seed, **classifier):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv1 = nn.Conv2d(3, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(2)
            self.layer1 = nn.Sequential(nn.Conv2d(2, 4, 1))
            for name, module in classifier.items():
                self.add_module(name, module)
            self.bn1.running_mean.normal_()


def trained(**classifier):
    """What the files below hold of a network."""
    return Tiny(1, **classifier).state_dict()


def below(prefix, state):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


HEAD = {"fc1": nn.Linear(4, 4), "fc2": nn.Linear(4, 2)}
OPTIONS = argparse.Namespace(arch="resnet50", batch_size=64, crops=[1, 3], amp_opt_level="O1", resume=None)


def published(**more):
    """As the published repository's pre-training saves it, with what a schedule of steps and a window leave there."""
    model = {**below("module.encoder.", trained(**HEAD)), "module.sim_matrix": torch.randn(50, 2), **more}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5])
    assert isinstance(schedule.state_dict()["milestones"], Counter)
    scheduler = {"warmup_epoch": 5, "after_scheduler": schedule.state_dict()}
    return {"opt": OPTIONS, "model": model, "optimizer": optimizer.state_dict(), "scheduler": scheduler, "epoch": 200,
            "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 7}}, "sampler": {"start_index": 16384}}  # fmt: skip


def moco():
    keys = below("module.encoder_k.", Tiny(2, fc=nn.Linear(4, 2)).state_dict())
    model = {
        **below("module.encoder_q.", trained(fc=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))),
        **keys,
    }
    model["module.queue"], model["module.queue_ptr"] = torch.randn(2, 8), torch.zeros(1, dtype=torch.long)
    return {"epoch": 200, "arch": "resnet50", "state_dict": model, "optimizer": {}}


LAYOUTS = {
    "published PIC": (published, "a checkpoint of the published PIC repository, of which fc1.weight, "),
    "published MoCo": (
        lambda: published(**below("module.encoder_k.", Tiny(2).state_dict())),
        "a checkpoint of the published PIC repository",
    ),
    "published linear probe": (
        lambda: {"args": OPTIONS, "epoch": 3, "model": below("module.", trained(fc=nn.Linear(4, 10))), "best_acc1": 60.0},
        "a model inside DataParallel, of which fc.weight, fc.bias were left out",
    ),
    "MoCo": (moco, "a checkpoint of MoCo, of which fc.0.weight, fc.0.bias, fc.2.weight and 13 more were left out"),
    "torchvision": (lambda: trained(fc=nn.Linear(4, 10)), "a model alone, of which fc.weight, fc.bias were left out"),
    "torchvision, old": (
        lambda: {name: tensor for name, tensor in trained().items() if "num_batches" not in name},
        "a model alone",
    ),
    "timm": (
        lambda: {"state_dict": trained(head=nn.Sequential(OrderedDict(fc=nn.Linear(4, 10))))},
        "a model alone, of which head.fc.weight, head.fc.bias were left out",
    ),
    "DataParallel": (lambda: {"state_dict": below("module.", trained())}, "a model inside DataParallel"),
    "half precision": (lambda: {k: v.half() if v.is_floating_point() else v for k, v in trained().items()}, "a model alone"),
    "a trunk of this engine": (
        lambda: {**below("backbone.", trained()), "head.0.weight": torch.zeros(2, 4)},
        "a network with its head, of which head.0.weight were left out",
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_backbone_and_says_what_it_left_out(layout, is_zip, tmp_path):
    content, said = LAYOUTS[layout]
    torch.save(content(), tmp_path / "weights.pth", _use_new_zipfile_serialization=is_zip)
    backbone = Tiny(5)
    found = load_backbone(tmp_path / "weights.pth", backbone, "tiny")
    assert found.what.startswith(said) and found.statistics is None
    assert found.is_of_library == found.what.startswith("a model ")
    assert_is_trained(backbone, exactly=layout != "half precision")


def assert_is_trained(backbone, exactly=True):
    state, true = backbone.state_dict(), trained()
    for name, tensor in state.items():
        assert "num_batches" in name or torch.allclose(tensor, true[name], rtol=0, atol=0 if exactly else 2e-3), name
    assert not torch.equal(state["conv1.weight"], Tiny(5).conv1.weight)


@pytest.mark.parametrize("layout", ["torchvision", "DataParallel"])
def test_safetensors_are_read_by_the_same_names(layout, tmp_path):
    content = LAYOUTS[layout][0]()
    save_file(dict(content.get("state_dict", content)), tmp_path / "model.safetensors", {"format": "pt"})
    backbone = Tiny(5)
    assert load_backbone(tmp_path / "model.safetensors", backbone, "tiny").is_of_library
    assert_is_trained(backbone)


def test_a_file_of_this_engine_is_known_and_keeps_the_statistics_that_it_was_made_with(tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_file(trained(), path, {"timm": "tiny", "mean": "[0.5, 0.5, 0.5]", "std": "[0.25, 0.5, 0.5]"})
    found = load_backbone(path, Tiny(5), "tiny")
    assert not found.is_of_library and found.statistics == ([0.5, 0.5, 0.5], [0.25, 0.5, 0.5])
    for mean in ("[0.5]", "[NaN, 0, 0]", "nothing", '["a", 1, 2]', "7"):
        save_file(trained(), path, {"timm": "tiny", "mean": mean, "std": "[0.25, 0.5, 0.5]"})
        with pytest.raises(ValueError, match=r"metadata whose mean and std are not three numbers each"):
            load_backbone(path, Tiny(5), "tiny")


def test_parts_that_are_called_encoder_are_not_taken_for_the_published_repository(tmp_path):
    """As torchvision's transformers inside DataParallel, beside whose encoder are other weights."""
    torch.manual_seed(1)
    theirs = nn.ModuleDict({"encoder": Tiny(1), "conv_proj": nn.Linear(2, 2), "heads": nn.Linear(2, 3)})
    torch.save({"state_dict": below("module.", theirs.state_dict())}, tmp_path / "weights.pth")
    backbone = nn.ModuleDict({"encoder": Tiny(5), "conv_proj": nn.Linear(2, 2)})
    found = load_backbone(tmp_path / "weights.pth", backbone, "tiny")
    assert found.what == "a model inside DataParallel, of which heads.weight, heads.bias were left out"
    assert_is_trained(backbone["encoder"])
    assert torch.equal(backbone["conv_proj"].weight, theirs["conv_proj"].weight)


def config_of(**sections):
    return Config.model_validate_json(json.dumps({**TINY, **sections}))


def test_images_are_normalised_as_asked_else_as_the_file_says_and_the_words_tell_it(tmp_path):
    plain = {"name": "vgg", "layers": [4, "M", 8], "grid": 1, "hidden": 8}
    network, _ = network_of_file(config_of(backbone=plain), _saved(tmp_path, config_of(backbone=plain)))
    assert network.own_statistics == {}
    asked = {"backbone": str(tmp_path / "weights.pth"), "statistics": [[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]}
    network, words = network_of_file(config_of(backbone=plain, evaluate=asked), tmp_path / "weights.pth")
    assert words.endswith("a model alone; images are normalised by mean 0.1, 0.2, 0.3 and deviation 0.5, 0.6, 0.7")
    assert torch.allclose(network.std.flatten(), torch.tensor([0.5, 0.6, 0.7]))
    with pytest.raises(ValueError, match=r"evaluate\.statistics is for evaluate\.backbone, which is null"):
        config_of(backbone=plain, evaluate={"statistics": asked["statistics"]})


def _saved(directory, config):
    torch.save(network_of(config).backbone.state_dict(), directory / "weights.pth")
    return directory / "weights.pth"


def test_weights_of_torchvision_from_tensorflow_see_images_as_they_do_there(tmp_path):
    import torchvision

    theirs = torchvision.models.googlenet(weights=None, init_weights=True, aux_logits=False, transform_input=True)
    theirs.fc = nn.Identity()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    network, _ = network_of_file(config_of(backbone={"name": "googlenet", "hidden": 8}), tmp_path / "weights.pth")
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    of_imagenet = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        true = theirs.eval()(of_imagenet(images / 255))
        assert float((network.eval().features([images]) - true).abs().max()) < 1e-5 * float(true.abs().max())


def changed(**changes):
    return {name: tensor for name, tensor in {**trained(), **changes}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed(**{"layer1.0.weight": None}), "it lacks layer1.0.weight; set backbone.name"),
        (changed(**{"layer2.0.weight": torch.zeros(1)}), "it has layer2.0.weight; set backbone.name"),
        (changed(**{"bn1.weight": None, "bn.weight": torch.zeros(2)}), "it lacks bn1.weight and it has bn.weight;"),
        (changed(**{"conv1.weight": torch.zeros(2, 3, 7, 7)}), "conv1.weight is [2, 3, 7, 7] in the file and [2, 3, 3, 3]"),
        (changed(**{"bn1.bias": torch.full((2,), torch.nan)}), "bn1.bias has numbers that are not finite"),
        (changed(**{"bn1.bias": torch.zeros(2, dtype=torch.int8)}), "bn1.bias is of torch.int8"),
        (below("module.encoder.", changed(**{"conv1.weight": None})), "the published PIC repository, and its network is not"),
        (below("encoder.", trained()), "and it has encoder.conv1.weight, encoder.bn1.weight, encoder.bn1.bias and 5 more"),
        ({}, "has no tensors by name, neither directly nor under model or state_dict; it holds "),
        ({"weights": trained(), "a\x1b[31m\nb": 1}, "it holds weights, a\\x1b[31m\\nb"),
        ([torch.zeros(2)], "it holds a list"),
        (torch.zeros(2), "it holds a Tensor"),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_name_and_leaves_the_network_as_it_was(content, said, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    backbone = Tiny(5)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is what is looked at
        load_backbone(tmp_path / "weights.pth", backbone, "tiny")
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1, str(caught.value)
    before = Tiny(5).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


class Command:
    """Unpickled, it makes a directory."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Options(argparse.Namespace):
    """No Namespace, though it is made of one."""


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["opt", "inside the options", "a name of a tensor", "alone"])
def test_a_file_that_wants_to_run_code_is_refused_with_what_it_asks_for(where, is_zip, tmp_path):
    bomb = Command(tmp_path / "done")
    content = {
        "opt": {**published(), "opt": bomb},
        "inside the options": {**published(), "opt": argparse.Namespace(arch=bomb)},
        "a name of a tensor": {"model": {bomb: torch.zeros(1), **trained()}},
        "alone": bomb,
    }[where]
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"would run code: it asks for (posix|os)\.mkdir, which no weights need"):
        load_backbone(tmp_path / "weights.pth", Tiny(5), "tiny")
    assert not (tmp_path / "done").exists()
    if is_zip and where == "opt":  # what is claimed is not that nothing would happen
        torch.load(tmp_path / "weights.pth", weights_only=False)
        assert (tmp_path / "done").exists()


def test_only_the_namespace_itself_is_allowed_and_only_here(tmp_path):
    torch.save({**published(), "opt": Options(a=1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"it asks for [\w.]+\.Options, which no weights need"):
        load_backbone(tmp_path / "weights.pth", Tiny(5), "tiny")
    torch.save(published(), tmp_path / "weights.pth")
    load_backbone(tmp_path / "weights.pth", Tiny(5), "tiny")
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "weights.pth", weights_only=True)


def test_a_broken_file_is_refused_in_a_line_whatever_is_wrong_with_it(tmp_path):
    path, generator = tmp_path / "weights.pth", np.random.default_rng(0)
    torch.save(published(), path)
    whole = path.read_bytes()
    torch.save(trained(), path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes()
    save_file(trained(), path)
    safe = path.read_bytes()
    broken = [
        b"",
        b"x",
        b"\x80\x02.",
        b"PK\x03\x04" + bytes(100),
        pickle.dumps(np.zeros(2)),
        bytes(8) + b"{" + bytes(50),
    ]
    broken += [content[: len(content) // 2] for content in (whole, legacy, safe)]
    for content in (whole, legacy, safe) * 8:
        noisy = bytearray(content)
        for place in generator.integers(0, min(len(noisy), 900), 6):
            noisy[place] = generator.integers(256)
        broken.append(bytes(noisy))
    refused = []
    for content in broken:
        path.write_bytes(content)
        try:
            load_backbone(path, Tiny(5), "tiny")
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) >= len(broken) // 2
    assert all(len(message.splitlines()) == 1 and len(message) < 600 for message in refused), refused


class TestTimm:
    @pytest.fixture(autouse=True)
    def _timm(self):
        self.timm = pytest.importorskip("timm")

    def test_the_published_deep_stem_becomes_that_of_timm(self, tmp_path):
        """The names that the published resnet18_d gives to the tensors of timm's resnet18d."""
        theirs = {
            "conv1.0": "conv1.0.0",
            "conv1.1": "conv1.0.1",
            "conv1.3": "conv1.1.0",
            "conv1.4": "conv1.1.1",
            "conv1.6": "conv1.2",
        }
        network = self.timm.create_model("resnet18d", num_classes=0)
        state = {}
        for name, tensor in network.state_dict().items():
            module, _, last = name.rpartition(".")
            state[f"module.encoder.{theirs.get(module, module)}.{last}"] = torch.full_like(tensor, len(state))
        torch.save({"model": state}, tmp_path / "weights.pth")
        load_backbone(tmp_path / "weights.pth", network, "timm/resnet18d")
        for number, (name, tensor) in enumerate(network.state_dict().items()):
            assert (tensor == number).all(), name

    def test_weights_of_timm_see_images_as_they_did_there_and_an_export_remembers_it(self, tmp_path):
        config = Config.model_validate_json(
            json.dumps({**TINY, "data": {"source": "digits", "image_size": 160}, "backbone": {"name": "timm/test_vit"}})
        )
        torch.manual_seed(3)
        theirs = self.timm.create_model("test_vit", num_classes=7).eval()
        mean, std = (torch.tensor(theirs.default_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        torch.save(theirs.state_dict(), tmp_path / "weights.pth")
        network, words = network_of_file(config, tmp_path / "weights.pth")
        assert (
            "a model alone, of which head.weight, head.bias were left out; images are normalised by mean 0.5, " in words
        )
        images = torch.randint(256, (2, 3, 160, 160), dtype=torch.uint8)
        with torch.no_grad():
            true = theirs.forward_head(theirs.forward_features((images / 255 - mean) / std), pre_logits=True)
            assert float((network.eval().features([images]) - true).abs().max()) < 1e-4
        assert network.own_statistics == {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}
        about = {"timm": "test_vit"} | network.own_statistics
        export_backbone(tmp_path / "backbone.safetensors", network.backbone.state_dict(), about)
        again, _ = network_of_file(config, tmp_path / "backbone.safetensors")
        assert torch.equal(again.mean, network.mean) and torch.equal(again.std, network.std)
        export_backbone(tmp_path / "backbone.safetensors", network.backbone.state_dict(), {"timm": "test_vit"})
        save_file(below("backbone.", theirs.state_dict()), tmp_path / "trunk.safetensors")
        of_checkpoint, _ = network_of_file(config, tmp_path / "trunk.safetensors")
        assert of_checkpoint.own_statistics == {}  # it was trained here, by ImageNet's
        trained_here, _ = network_of_file(config, tmp_path / "backbone.safetensors")
        assert trained_here.own_statistics == {} and not torch.equal(trained_here.mean, network.mean)

    def test_a_classifier_may_have_any_name_that_timm_knows(self, tmp_path):
        theirs = self.timm.create_model("legacy_seresnet18", num_classes=3)
        torch.save(theirs.state_dict(), tmp_path / "weights.pth")
        network = self.timm.create_model("legacy_seresnet18", num_classes=0)
        found = load_backbone(tmp_path / "weights.pth", network, "timm/legacy_seresnet18")
        assert found.what == "a model alone, of which last_linear.weight, last_linear.bias were left out"
