"""Models in numpy and torch against sae-eval encode, and what a torch module must do."""

import numpy as np
import pytest
from conftest import MODELS
from safetensors.numpy import load_file

import dynamic_sae
from dynamic_sae import model as models
from dynamic_sae import saved

CLOSE = 1e-5  # the contract, in x_hat; rows have length 1


def reconstruction(directory):
    """What sae-eval wrote, ``[rows, d]``."""
    files = sorted((directory / "reconstruction").glob("*.safetensors"))
    return np.concatenate([load_file(file)["activations"] for file in files])


def numpy_model(path):
    return models.NumpySae(*saved.read(path))


@pytest.mark.parametrize("name", MODELS)
def test_numpy_is_exact_to_the_program(name, runs, encoded, held_out):
    sae, codes = numpy_model(runs[name]), dynamic_sae.codes(encoded[name]).toarray()
    latents = sae.encode(held_out)
    assert np.abs(sae.decode(latents) - reconstruction(encoded[name])).max() <= CLOSE
    assert ((latents != 0) == (codes != 0)).all()
    assert np.abs(latents / sae.row_norms(held_out) - codes).max() <= CLOSE * np.abs(codes).max()


@pytest.mark.parametrize("name", MODELS)
def test_torch_is_exact_to_the_program(name, runs, encoded, held_out):
    torch = pytest.importorskip("torch")
    sae, codes = dynamic_sae.load(runs[name]), dynamic_sae.codes(encoded[name]).toarray()
    assert isinstance(sae, torch.nn.Module)
    with torch.no_grad():
        x = torch.from_numpy(held_out)
        latents, x_hat, n = sae.encode(x), sae(x), sae.row_norms(x)
    assert np.abs(x_hat.numpy() - reconstruction(encoded[name])).max() <= CLOSE
    assert ((latents.numpy() != 0) == (codes != 0)).all()
    assert np.abs((latents / n).numpy() - codes).max() <= CLOSE * np.abs(codes).max()


@pytest.mark.parametrize("name", MODELS)
def test_float64(name, runs, held_out):
    """float64 is another rounding of the same model; numpy and torch agree to its precision."""
    x, sae = held_out[:300].astype(np.float64), numpy_model(runs[name])
    x_hat = sae(x)
    assert x_hat.dtype == np.float64
    assert np.abs(x_hat - sae(held_out[:300])).max() <= CLOSE
    torch = pytest.importorskip("torch")
    module = dynamic_sae.load(runs[name]).double()
    with torch.no_grad():
        assert np.abs(module(torch.from_numpy(x)).numpy() - x_hat).max() <= 1e-12


def test_float16_rows_are_summed_in_float32(runs, held_out):
    sae, half = numpy_model(runs["attention"]), held_out.astype(np.float16)
    assert np.array_equal(sae(half), sae(half.astype(np.float32)))
    assert np.array_equal(sae.row_norms(half), sae.row_norms(half.astype(np.float32)))


@pytest.mark.parametrize("name", ["attention", "topk", "gated"])
def test_leading_dimensions(name, runs, held_out):
    sae, x = numpy_model(runs[name]), held_out[:24]
    whole = sae(x)
    assert np.abs(sae(x.reshape(2, 3, 4, -1)).reshape(24, -1) - whole).max() <= 1e-6
    assert np.abs(sae(x[5]) - whole[5]).max() <= 1e-6
    torch = pytest.importorskip("torch")
    module = dynamic_sae.load(runs[name])
    with torch.no_grad():
        shaped = torch.from_numpy(x.reshape(2, 3, 4, -1))
        assert module.encode(shaped).shape == (2, 3, 4, 256)
        assert np.abs(module(shaped).numpy().reshape(24, -1) - whole).max() <= CLOSE
        assert np.abs(module(torch.from_numpy(x[5])).numpy() - whole[5]).max() <= CLOSE


def test_decoding_is_linear_and_directions_are_its_columns(runs):
    torch = pytest.importorskip("torch")
    sae = dynamic_sae.load(runs["paper"])
    with torch.no_grad():
        nothing = sae.decode(torch.zeros(256))
        one = torch.zeros(256).index_fill(0, torch.tensor([17]), 3.0)
        assert torch.allclose(sae.decode(one) - nothing, 3 * sae.directions[17], atol=1e-6)


def small(architecture, **options):
    """A random model of width 5 with 12 latents, and every tensor that its architecture can have."""
    rng = np.random.default_rng(1)
    sizes = {"M": 12, "d": 5, "1": 1}
    shapes = saved.COMMON | saved.OWN[architecture]
    weights = {name: 0.6 * rng.standard_normal([sizes[axis] for axis in shape]) for name, shape in shapes.items()}
    weights |= {"threshold": np.abs(weights["threshold"])} if "threshold" in weights else {}
    config = saved.Config(d_in=5, n_latents=12, architecture=architecture, options=options, scale=0.9, norm_exponent=2.0,
                          input_scale=1.5, norm_range=4.0, encoder_bias=True, seed=0)
    return config, {name: values.astype(np.float32) for name, values in weights.items()}


SMALL = [
    ("attention", {"value": "score", "refinement": 2}), ("attention", {"value": "probability"}), ("attention_relu", {}),
    ("mlp_sparsemax", {"value": "score"}), ("relu", {}), ("topk", {"k": 3, "refinement": 1}), ("batch_topk", {"k": 3}),
    ("jumprelu", {}), ("gated", {}), ("matryoshka", {"k": 3}),
]


@pytest.mark.parametrize(("architecture", "options"), SMALL)
def test_gradients(architecture, options):
    """Those of autograd are those of differences, for the rows and for all parameters that rows reach."""
    torch = pytest.importorskip("torch")
    from dynamic_sae.torch_model import TorchSae

    sae = TorchSae(*small(architecture, **options)).double()
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    names, values = zip(*sae.named_parameters(), strict=True)

    def forward(x, *values):
        return torch.func.functional_call(sae, dict(zip(names, values, strict=True)), (x,))

    with torch.no_grad():
        assert (sae.encode(x) != 0).any()
    assert torch.autograd.gradcheck(forward, (x, *values))
    sae(x).square().sum().backward()
    flat = {name for name, value in sae.named_parameters() if value.grad is None or not value.grad.any()}
    # A gate or a threshold decides which latents are selected, and selection has no gradient.
    assert flat == {"jumprelu": {"threshold"}, "gated": {"b_gate"}}.get(architecture, set())


@pytest.mark.parametrize(("architecture", "options"), SMALL)
def test_state_dict_round_trip(architecture, options):
    torch = pytest.importorskip("torch")
    from dynamic_sae.torch_model import TorchSae

    config, weights = small(architecture, **options)
    sae = TorchSae(config, weights)
    assert set(sae.state_dict()) == set(weights)
    other = TorchSae(config, {name: values * 0 for name, values in weights.items()})
    other.load_state_dict(sae.state_dict())
    x = torch.randn(6, 5)
    with torch.no_grad():
        assert torch.equal(sae(x), other(x))


def test_all_parameters_move(runs):
    """The meta device is on every machine; a tensor that stays behind would be found there, too."""
    torch = pytest.importorskip("torch")
    for name in ("gated", "jumprelu", "batch_topk"):
        sae = dynamic_sae.load(runs[name], device="meta")
        assert all(tensor.device.type == "meta" for tensor in sae.state_dict().values())
        assert set(sae.to(torch.float64).state_dict()) == set(sae.weights)


def test_on_the_accelerator(runs, held_out):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = torch.from_numpy(held_out)
    for name in MODELS:
        here, there = dynamic_sae.load(runs[name]), dynamic_sae.load(runs[name], device="cuda")
        with torch.no_grad():
            assert (there(x.cuda()).cpu() - here(x)).abs().max() <= 1e-4, name


def test_without_torch_a_device_is_refused(runs, monkeypatch):
    def missing():
        raise ImportError("no torch here")

    monkeypatch.setattr(models, "torch_class", missing)
    assert isinstance(dynamic_sae.load(runs["topk"]), dynamic_sae.NumpySae)
    with pytest.raises(ImportError, match="no torch here"):
        dynamic_sae.load(runs["topk"], device="cuda")
