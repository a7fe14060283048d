"""What is recorded is what the layers put out, whatever happens downstream; and nothing chosen is silently missing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.activations import Layers, layer_statistics, record_outputs, select_layers
from medic_core.errors import LayerNotFoundError


class Net(nn.Module):
    """One normalisation, then a ReLU of the given kind, then a linear layer."""

    def __init__(self, relu: object) -> None:
        super().__init__()
        self.norm, self.fc, self.unused = nn.BatchNorm2d(2), nn.Linear(2, 3), nn.Linear(2, 3)
        self.relu = relu

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.relu(self.norm(images)).mean(dim=(2, 3)))


RELUS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "function in place": lambda x: F.relu(x, inplace=True),
    "torch": torch.relu,
    "torch in place": torch.relu_,
    "method": Tensor.relu,
    "method in place": Tensor.relu_,
}


def frozen(net: nn.Module) -> nn.Module:
    return net.eval().requires_grad_(requires_grad=False)


def layers(*names: str, rewritten: tuple[str, ...] = ()) -> Layers:
    return Layers(names, frozenset(rewritten), last=names[-1])


def selected(net: nn.Module, *names: str, images: Tensor) -> Layers:
    return select_layers(frozen(net), names, authors=(), images=images)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def test_the_last_layer_is_the_last_to_run_and_not_the_last_by_name() -> None:
    inner = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU())
    net, images = nn.Sequential(inner, nn.Flatten(), nn.Linear(48, 2)), torch.randn(2, 2, 4, 4)
    assert selected(net, "0", "0.0", images=images).last == "0"  # a container is named before what is in it
    assert selected(net, "0.0", "2", images=images).last == "2"
    assert selected(net, "0", "0.0", images=images).last_alone().names == ("0",)


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS.keys())
def test_no_relu_rewrites_the_record_and_each_is_noticed(relu: object, images: Tensor) -> None:
    net = Net(relu).eval()
    chosen = selected(net, "norm", "fc", images=images)
    images.requires_grad_()
    with record_outputs(net, chosen) as records:
        logits = net(images)
    torch.testing.assert_close(records["norm"].output, net.norm(images))
    assert (records["norm"].output < 0).any()
    assert records["norm"].rectified is not None
    torch.testing.assert_close(records["norm"].rectified, records["norm"].output.clamp(min=0))
    torch.testing.assert_close(records["fc"].output, logits)
    assert records["fc"].rectified is None
    before, after = torch.autograd.grad(
        logits.sum(), [records["norm"].output, records["norm"].rectified], materialize_grads=True
    )
    torch.testing.assert_close(before, after * (records["norm"].output > 0))
    assert after.abs().sum() > before.abs().sum()  # the gradient behind the ReLU also sees what it cut off


def test_a_relu_of_something_else_is_not_the_layers_own(images: Tensor) -> None:
    net = Net(lambda x: F.relu(x + 1)).eval()
    with torch.no_grad(), record_outputs(net, layers("norm")) as records:
        net(images)
    assert records["norm"].rectified is None


def test_an_in_place_sum_cannot_rewrite_the_record(images: Tensor) -> None:
    net = Net(lambda x: x.add_(100.0)).eval()
    chosen = selected(net, "norm", images=images)
    assert chosen.rewritten == {"norm"}
    with torch.no_grad(), record_outputs(net, chosen) as records:
        logits = net(images)
    torch.testing.assert_close(records["norm"].output, net.norm(images))
    torch.testing.assert_close(logits, net(images))


def test_recording_leaves_no_hook_behind(images: Tensor) -> None:
    net = Net(F.relu).eval()
    with record_outputs(net, layers("norm", "fc")):
        net(images)
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("names", [["unused"], ["norm", "unused"], ["nowhere"]])
def test_a_layer_that_is_not_seen_is_an_error(names: list[str], images: Tensor) -> None:
    with pytest.raises(LayerNotFoundError, match=names[-1]), record_outputs(Net(F.relu), layers(*names)):
        Net(F.relu)(images)


def test_only_what_is_rewritten_is_copied_and_a_record_that_was_rewritten_is_an_error(images: Tensor) -> None:
    net = frozen(Net(torch.relu_))
    assert selected(net, "norm", "fc", images=images) == layers("norm", "fc", rewritten=("norm",))
    assert selected(Net(F.relu), "norm", "fc", images=images) == layers("norm", "fc")
    with torch.no_grad(), pytest.raises(LayerNotFoundError, match="rewritten"), record_outputs(net, layers("norm")):
        net(images)


def test_a_layer_that_runs_twice_is_an_error(images: Tensor) -> None:
    net = Net(F.relu).eval()
    both = nn.Sequential(net.norm, net.norm)
    with pytest.raises(LayerNotFoundError, match="more than once"), record_outputs(both, layers("0")):
        both(images)


class Attention(nn.Module):
    """``out_proj`` holds parameters, but its forward is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention, self.fc = nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.stem(tokens)
        return self.fc(self.attention(tokens, tokens, tokens)[0].mean(dim=1))


def test_a_kind_stands_for_the_layers_that_run_and_a_name_must_run() -> None:
    net, tokens = frozen(Attention()), torch.randn(2, 3, 4)
    assert selected(net, "linear", images=tokens) == layers("stem", "fc")
    with pytest.raises(LayerNotFoundError, match=r"attention\.out_proj"):
        select_layers(net, ["attention.out_proj"], authors=(), images=tokens)


def test_layers_are_chosen_by_kind_by_name_and_as_the_authors_did(images: Tensor) -> None:
    net = frozen(Net(F.relu))
    chosen = {
        ("normalization",): ("norm",),
        ("linear",): ("fc",),
        ("fc", "normalization"): ("norm", "fc"),
        ("authors",): ("norm",),
    }
    for choice, names in chosen.items():
        assert select_layers(net, choice, authors=("norm", "unused"), images=images).names == names


def test_every_wrong_choice_is_named(images: Tensor) -> None:
    with pytest.raises(LayerNotFoundError) as caught:
        select_layers(Net(F.relu).eval(), ["nowhere", "neither", "fc"], authors=(), images=images)
    assert len(caught.value.problems) == 2


def test_a_kind_that_a_model_lacks_is_left_out_unless_nothing_remains(images: Tensor) -> None:
    net = frozen(Net(F.relu))
    assert selected(net, "convolution", "linear", images=images).names == ("fc",)
    with pytest.raises(LayerNotFoundError, match="convolution"):
        select_layers(net, ["convolution"], authors=(), images=images)


class Biased(nn.Module):
    """``bias`` is computed from positions alone, as in Swin v2."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.fc = nn.Linear(1, 3), nn.Linear(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(images.mean(dim=(2, 3))) + self.bias(torch.ones(1, 1))


def test_a_layer_that_does_not_look_at_the_image_is_not_cloned_and_refused_by_name(images: Tensor) -> None:
    net = frozen(Biased())
    assert selected(net, "linear", images=images).names == ("fc",)
    with pytest.raises(LayerNotFoundError, match="'bias'"):
        select_layers(net, ["fc", "bias"], authors=(), images=images)


def test_statistics_per_channel_are_the_authors_formula() -> None:
    layer = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 1))
    generator = torch.Generator().manual_seed(3)
    batches = [(torch.randn(size, 3, 5, 5, generator=generator), torch.zeros(size)) for size in (6, 6, 3)]
    found = layer_statistics(layer, layers("1"), batches, kind="per_channel")["1"]
    outputs = [layer(images).detach().double() for images, _ in batches]
    for channel in range(4):
        mean = sum(len(out) * out[:, channel].mean() for out in outputs) / (1e-5 + 15)
        variance = (1 + sum(len(out) * out[:, channel].var() for out in outputs)) / (1e-5 + 15)
        torch.testing.assert_close(found.mean[0, channel, 0, 0].double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.std[0, channel, 0, 0].double(), variance.sqrt(), rtol=1e-5, atol=1e-6)


def test_statistics_per_channel_end_after_101_batches() -> None:
    layer = nn.Sequential(nn.BatchNorm2d(1).eval())
    batches = [(torch.full((2, 1, 2, 2), float(number > 100)), torch.zeros(2)) for number in range(150)]
    assert float(layer_statistics(layer, layers("0"), batches, kind="per_channel")["0"].mean) == 0.0


def test_statistics_per_neuron_are_the_populations() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 4, 1))
    images = torch.randn(15, 3, 5, 5, generator=torch.Generator().manual_seed(4))
    batches = [(images[:6], None), (images[6:12], None), (images[12:], None)]
    found = layer_statistics(layer, layers("0"), batches, kind="per_neuron")["0"]
    outputs = layer(images).detach()
    torch.testing.assert_close(found.mean, outputs.mean(dim=0, keepdim=True))
    torch.testing.assert_close(found.std, (outputs.var(dim=0, keepdim=True, correction=0) + 1e-5).sqrt())


def test_tokens_are_counted_per_feature_of_a_linear_layer() -> None:
    layer = nn.Sequential(nn.Linear(3, 4))
    tokens = torch.randn(8, 7, 3, generator=torch.Generator().manual_seed(5))
    found = layer_statistics(layer, layers("0"), [(tokens, None)], kind="per_channel")["0"]
    assert found.mean.shape == (1, 1, 4)
    torch.testing.assert_close(found.mean[0, 0], layer(tokens).detach().mean(dim=(0, 1)), rtol=1e-4, atol=1e-5)


class Bare(nn.Module):
    """A network without normalisation, with a module whose name is a common one."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).relu().mean(dim=(2, 3)))


def test_feature_maps_are_the_normalisations_and_without_any_all_other_layers(images: Tensor) -> None:
    assert selected(Net(nn.ReLU()), "feature_maps", images=images).names == ("norm",)
    assert selected(Bare(), "feature_maps", images=images).names == ("features", "fc")
    assert selected(Bare(), "features", images=images).names == ("features",)


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS.keys())
def test_an_output_can_be_forgotten_for_what_a_relu_made_of_it(relu: object, images: Tensor) -> None:
    net = Net(relu).eval()
    chosen = selected(net, "norm", "fc", images=images)
    with record_outputs(net, chosen) as expected:
        logits = net(images)
    with record_outputs(net, chosen, forget_rectified=True) as records:
        torch.testing.assert_close(net(images), logits)
    for name in chosen.names:
        rectified = expected[name].rectified
        kept = expected[name].output if rectified is None else rectified
        torch.testing.assert_close(records[name].output, kept)
    assert records["norm"].output is records["norm"].rectified
