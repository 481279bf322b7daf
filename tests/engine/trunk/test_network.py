"""Which sizes a network takes is found out from shapes alone, with the words that the network itself would use."""

import resource

import pytest
import torch

from engine.trunk.network import Network, check_sides, embed, make_network

# A family each: convolutions alone, residual, dense, dropout, attention of one size, windows, no linear layer, odd strides.
FAMILIES = (
    "vgg11_bn",
    "resnet18",
    "densenet121",
    "mobilenet_v3_small",
    "vit_b_16",
    "swin_t",
    "squeezenet1_0",
    "inception_v3",
)
SIDES = (1, 8, 17, 32, 96)


def plain(layers: tuple[int | str, ...] = (8, "M", 16)) -> Network:
    return make_network("vgg", layers, 2, 8, 4, seed=0)


def said(network: Network, side: int) -> str | None:
    try:
        check_sides(network, {side})
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_sides_are_refused_as_by_the_network_itself_in_the_same_words(name: str) -> None:
    network = make_network(name, None, 1, 8, 4, seed=0).eval()
    refused = 0
    # 224 is the one side that attention of one size takes; the others show nothing there that they do not show at 96.
    for side in (*SIDES, *([224] if name == "vit_b_16" else [])):
        expected = None
        try:
            with torch.no_grad():
                network([torch.zeros(1, 3, side, side)])
        except (RuntimeError, AssertionError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            expected = f"the backbone cannot take images of side {side} ({reason}); change backbone or sizes"
            refused += 1
        assert said(network, side) == expected
        network.eval()
    assert name in ("resnet18", "mobilenet_v3_small", "swin_t") or refused


def test_images_of_20_000_pixels_are_looked_at_without_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    network = plain()
    looked_at: list[torch.device] = []
    network.backbone.register_forward_hook(
        lambda _, inputs, output: looked_at.extend(x.device for x in (*inputs, output))
    )
    # 5 GB of pixels, and 100 GB of what the first convolution makes of them
    check_sides(network, {20_000, 200_000})
    assert {device.type for device in looked_at} == {"meta"} and len(looked_at) == 4


def test_pictures_of_bytes_are_what_their_shares_of_255_are_to_the_bit() -> None:
    network = plain().eval()
    views = [torch.randint(256, (3, channels, 16, 16), dtype=torch.uint8) for channels in (1, 3)]
    for view in views:
        assert torch.equal(network([view]), network([view.float() / 255]))
        assert torch.equal(embed(network, view, "backbone"), embed(network, view.float() / 255, "backbone"))


def test_looking_changes_neither_weights_nor_statistics_nor_generators() -> None:
    network = plain()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator = torch.get_rng_state()
    check_sides(network, {16, 32})
    assert network.training and torch.equal(torch.get_rng_state(), generator)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) and after[name].device.type == "cpu" for name, tensor in before.items())
    network([torch.zeros(2, 3, 16, 16)])  # and it still runs on the device where it was


def test_the_smallest_side_that_does_not_fit_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"^the backbone cannot take images of side 1 \(.*\); change backbone or sizes$"
    ):
        check_sides(plain(), {1, 32})


def test_a_dry_run_with_images_of_20_000_pixels_takes_none_of_their_memory(run, capsys) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert run("data.image_size=20000", flags=("--dry-run",)) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 1 << 20  # an image alone is 4.5 of these
    assert "batches ready" in capsys.readouterr().out
