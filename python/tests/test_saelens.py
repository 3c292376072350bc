"""Our models in SAELens' own classes and in class sparsemax, SAELens' dictionaries as runs of ours, and sparsify's."""

import importlib
import json
import types
import warnings

import pytest
from doors_helper import (
    HELD_OUT,
    PLAIN,
    REFINED,
    SPARSEMAX,
    TRAIN,
    door_runs,
    fvu,
    ours,
    program,
    refused,
    rows,
    sae_eval,
    same,
    theirs,
    tied,
)

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sae_lens", reason="sae_lens is not installed (python/tests/requirements-doors.txt)")

from safetensors.torch import load_file, save_file  # noqa: E402
from sae_lens import SAE  # noqa: E402
from sae_lens.config import SAETrainerConfig  # noqa: E402
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig  # noqa: E402
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402
from sae_lens.training.sae_trainer import SAETrainer  # noqa: E402

from dynamic_sae import saelens  # noqa: E402
from dynamic_sae.errors import DynamicSaeError  # noqa: E402

__all__ = ["door_runs"]
WIDTH, LATENTS, STEPS, BATCH = 384, 256, 200, 256
CLASSES = {
    "attention_relu": "StandardSAE", "relu": "StandardSAE", "topk": "TopKSAE", "topk_projected": "TopKSAE",
    "batch_topk": "JumpReLUSAE", "matryoshka": "JumpReLUSAE", "jumprelu": "JumpReLUSAE", "jumprelu_uncentred": "JumpReLUSAE",
    "gated": "GatedSAE",
}


def sparsemax(**changes):
    """A sparsemax SAE of random weights, with every part switched on."""
    torch.manual_seed(0)
    cfg = {"d_in": 24, "d_sae": 96, "value": "score", "scale": 0.7, "norm_exponent": 2.0, "norm_range": 4.0, "input_scale": 5.0}
    sae = saelens.SparsemaxSAE(saelens.SparsemaxSAEConfig(**(cfg | {"refinement": 2} | changes)))
    with torch.no_grad():
        sae.W_enc.copy_(0.7 * torch.randn(sae.W_enc.shape) / 24**0.5)
        sae.b_enc.copy_(0.1 * torch.randn(sae.b_enc.shape))
        sae.b_dec.copy_(torch.randn(sae.b_dec.shape))
        sae.act_scale.copy_(torch.rand(sae.act_scale.shape) + 0.5)
    return sae


@pytest.mark.parametrize("name", SPARSEMAX + PLAIN)
def test_every_architecture_there_and_back(name, door_runs, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    sae_eval("export", "--to", "saelens", door_runs[name], out)
    sae = SAE.load_from_disk(out)
    assert type(sae).__name__ == CLASSES.get(name, "SparsemaxSAE")
    ties = tied(door_runs[name])
    same(name, type(sae).__name__, ours(door_runs[name]), theirs(sae), ties)
    sae_eval("import", out, back)
    same(name, "sae-eval import", ours(door_runs[name]), ours(back), ties)


def test_sparsity_is_that_of_the_latents(door_runs, tmp_path):
    sae_eval("export", "--to", "saelens", door_runs["attention"], tmp_path / "out")
    sparsity = load_file(tmp_path / "out" / "sparsity.safetensors")["sparsity"]
    frequencies = (ours(door_runs["attention"])[0] != 0).double().mean(0)
    assert torch.allclose(sparsity.double(), (frequencies + 1e-10).log10(), atol=1e-5)


def test_refined_topk_is_refused_or_approximated(door_runs, tmp_path):
    message = refused(program("sae-eval"), "export", "--to", "saelens", door_runs[REFINED], tmp_path / "out")
    assert "refines the latents" in message and "--approximate" in message
    sae_eval("export", "--to", "saelens", "--approximate", "topk", door_runs[REFINED], tmp_path / "out")
    sae = SAE.load_from_disk(tmp_path / "out")
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    (a, x_hat), (b, y_hat) = ours(door_runs[REFINED]), theirs(sae)
    assert certificate["rows"] == len(rows())
    assert certificate["fvu"]["model"] == pytest.approx(fvu(rows(), x_hat), abs=1e-5)
    assert certificate["fvu"]["written"] == pytest.approx(fvu(rows(), y_hat), abs=1e-5)
    assert certificate["l0"]["written"] == pytest.approx((b != 0).sum(-1).double().mean().item())
    assert certificate["support"]["equal_rows"] == pytest.approx(((a != 0) == (b != 0)).all(-1).double().mean().item(), abs=1e-3)


def test_importing_twice_is_harmless():
    importlib.reload(saelens)
    saelens.register()
    assert saelens.registry.get_sae_class("sparsemax") == (saelens.SparsemaxSAE, saelens.SparsemaxSAEConfig)


def test_a_class_of_somebody_else_is_not_replaced(monkeypatch):
    other = type("SparsemaxSAE", (), {"__module__": "other_package"})
    monkeypatch.setitem(saelens.registry.SAE_CLASS_REGISTRY, "sparsemax", (other, object))
    with pytest.raises(DynamicSaeError, match="other_package"):
        saelens.register()


@pytest.mark.parametrize("value", ["score", "probability"])
def test_folding_norms_changes_nothing_but_the_unit(value):
    sae, x = sparsemax(value=value), 5 * torch.randn(200, 24)
    a, x_hat = theirs(sae, x)
    lengths = sae.W_dec.detach().norm(dim=1)
    assert (lengths - 1).abs().max() > 0.1
    sae.fold_W_dec_norm()
    b, y_hat = theirs(sae, x)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(96), atol=1e-6)
    assert ((a != 0) == (b != 0)).all()
    assert torch.allclose(a * lengths, b, rtol=1e-4, atol=1e-5) and torch.allclose(x_hat, y_hat, rtol=1e-4, atol=1e-5)
    SAE.fold_and_get_W_dec_norm(changed := sparsemax(value=value))
    assert ((theirs(changed, x)[0] != 0) != (a != 0)).any(), "the base class' version would do as well"


def test_scaled_rows_fold_into_the_model():
    sae, x = sparsemax(), 5 * torch.randn(200, 24)
    with torch.no_grad():
        scaled = sae(3 * x) / 3
        sae.fold_activation_norm_scaling_factor(3.0)
        assert torch.allclose(sae(x), scaled, rtol=1e-4, atol=1e-4)
    with pytest.raises(DynamicSaeError, match="whitening"):
        sae.fold_activation_whitening(torch.zeros(24), torch.eye(24), torch.eye(24))


def test_decoding_is_linear_and_needs_no_memory():
    sae, x = sparsemax(), 5 * torch.randn(2, 24)
    with torch.no_grad():
        a, b = sae.encode(x)
        both = sae.decode(a + b) + sae.b_dec
        assert torch.allclose(both, sae.decode(a) + sae.decode(b), atol=1e-4)
        assert torch.allclose(sae(x)[:1], sae.decode(a[None]), atol=1e-5)


def test_hooks_and_error_term():
    sae, x = sparsemax(), 5 * torch.randn(3, 7, 24)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        out, cache = sae.run_with_cache(x)
        seen = ["hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons", "hook_sae_output"]
        assert [name for name in seen if name in cache] == seen
        assert cache["hook_sae_acts_post"].shape == cache["hook_sae_acts_pre"].shape == (3, 7, 96)
        assert torch.equal(out, cache["hook_sae_output"])
        latent = int(cache["hook_sae_acts_post"].abs().sum((0, 1)).argmax())

        def off(acts, hook):
            acts[..., latent] = 0
            return acts

        removed = out - sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", off)])
        expected = cache["hook_sae_acts_post"][..., latent, None] * sae.W_dec[latent]
        assert removed.abs().max() > 0.1 and torch.allclose(removed, expected, atol=1e-4)
        sae.use_error_term = True
        assert torch.allclose(sae(x), x, atol=1e-5)
        steered = sae.run_with_hooks(x, fwd_hooks=[("hook_sae_acts_post", off)])
        assert torch.allclose(x - steered, expected, atol=1e-4)


def test_heads_are_flattened():
    flat, x = sparsemax(), 5 * torch.randn(5, 4, 6)
    metadata = saelens.SAEConfig.__dataclass_fields__["metadata"].default_factory()
    metadata.hook_name = "blocks.0.attn.hook_z"
    heads = sparsemax(reshape_activations="hook_z", metadata=metadata)
    with torch.no_grad():
        assert torch.equal(heads(x), flat(x.reshape(5, 24)).reshape(5, 4, 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype):
    exact, x = sparsemax().to(torch.float64), 1000 * torch.randn(50, 24)  # squares of norms overflow float16
    sae = sparsemax().to(dtype)
    a, x_hat = theirs(sae, x.to(dtype))
    _, expected = theirs(exact, x.to(dtype).double())
    assert a.dtype == x_hat.dtype == sae.dtype == dtype and torch.isfinite(x_hat).all()
    error = (x_hat.double() - expected).norm() / expected.norm()
    assert error < {torch.float16: 0.01, torch.bfloat16: 0.1, torch.float64: 1e-12}[dtype]


@pytest.mark.parametrize("wrong", [
    {"value": "sum"}, {"scale": 0.0}, {"input_scale": float("nan")}, {"norm_range": 0.5}, {"refinement": -1},
    {"norm_exponent": float("inf")},
])
def test_numbers_that_cannot_be(wrong):
    with pytest.raises(DynamicSaeError, match=f"SparsemaxSAEConfig: {next(iter(wrong))} is"):
        saelens.SparsemaxSAEConfig(d_in=4, d_sae=8, **wrong)


def test_training_asks_for_a_scale():
    with pytest.raises(DynamicSaeError, match="input_scale is missing"):
        saelens.SparsemaxTrainingSAEConfig(d_in=4, d_sae=8)
    with pytest.raises(DynamicSaeError, match="covariance_whitening"):
        saelens.SparsemaxTrainingSAEConfig(d_in=4, d_sae=8, normalize_activations="covariance_whitening")


def batches(x):
    """Batches without end, in a random order."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            if len(index) == BATCH:
                yield x[index]


def train_in_saelens(sae, lr, checkpoints=None):
    """200 steps of SAELens' own trainer."""
    config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH, train_batch_size_samples=BATCH, lr=lr, lr_end=lr / 10, lr_warm_up_steps=20,
        lr_decay_steps=STEPS // 2, n_batches_for_norm_estimate=20, save_final_checkpoint=checkpoints is not None,
        checkpoint_path=None if checkpoints is None else str(checkpoints),
    )
    return SAETrainer(config, sae, batches(rows(TRAIN))).fit().eval()


@pytest.mark.parametrize("scale", [{"normalize_activations": "expected_average_only_in"}, {"input_scale": 1.0}])
def test_sparsemax_is_trained_by_saelens(scale, tmp_path):
    torch.manual_seed(0)
    sae = saelens.SparsemaxTrainingSAE(saelens.SparsemaxTrainingSAEConfig(d_in=WIDTH, d_sae=LATENTS, **scale))
    before = fvu(rows(), theirs(sae)[1])
    train_in_saelens(sae, 3e-3, tmp_path / "checkpoints")
    trained = theirs(sae)
    assert fvu(rows(), trained[1]) < 0.6 * before
    assert 5 < (trained[0] != 0).sum(-1).float().mean() < 100
    sae.save_inference_model(tmp_path / "model")
    loaded = SAE.load_from_disk(tmp_path / "model")
    assert type(loaded).__name__ == "SparsemaxSAE" and torch.allclose(loaded.W_dec.norm(dim=1), torch.ones(LATENTS), atol=1e-5)
    same("trained by SAELens", "SparsemaxSAE", trained, theirs(loaded))
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    resumed = saelens.SparsemaxTrainingSAE.load_from_disk(checkpoint)
    assert not resumed.act_scale.requires_grad and torch.equal(theirs(resumed)[1], trained[1])
    sae_eval("import", tmp_path / "model", tmp_path / "run")
    same("trained by SAELens", "sae-eval import", ours(tmp_path / "run"), trained)


def metrics_of_saelens(sae):
    """What SAELens' own evaluation says of the held-out rows, as one batch."""
    from sae_lens.evals import get_sparsity_and_variance_metrics

    hook = "blocks.0.hook_resid_post"
    sae.cfg.metadata.hook_name = hook
    model = types.SimpleNamespace(run_with_cache=lambda *_, **__: (None, {hook: rows()[None]}))
    store = types.SimpleNamespace(get_batch_tokens=lambda _: torch.zeros(1, len(rows()), dtype=torch.long))
    with torch.no_grad():
        metrics, _ = get_sparsity_and_variance_metrics(
            sae, model, store, ActivationScaler(), n_batches=1, compute_l2_norms=False, compute_sparsity_metrics=True,
            compute_variance_metrics=True, compute_featurewise_density_statistics=True, eval_batch_size_prompts=1,
            model_kwargs={},
        )
    return metrics


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
@pytest.mark.parametrize("scaled", ["none", "expected_average_only_in"])
def test_dictionaries_of_saelens_are_imported_and_measured_alike(kind, scaled, tmp_path):
    torch.manual_seed(0)
    own, config = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig), "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig)
    }[kind]
    sae = train_in_saelens(own(config(d_in=WIDTH, d_sae=LATENTS, k=16, normalize_activations=scaled)), 3e-3)
    sae.save_inference_model(tmp_path / "model")
    loaded = SAE.load_from_disk(tmp_path / "model")
    sae_eval("import", tmp_path / "model", tmp_path / "run", "--train", TRAIN, "--held-out", HELD_OUT)
    same(f"SAELens' {kind}, {scaled}", "sae-eval import", ours(tmp_path / "run"), theirs(loaded))
    sae_eval(tmp_path / "run", "--no-html")
    report = json.loads((tmp_path / "run" / "reports" / "report.json").read_text())
    found = {entry["name"]: entry["value"] for entry in report["toolkits"] if entry["owner"].startswith("SAELens")}
    expected = metrics_of_saelens(loaded)
    assert 0 < expected["explained_variance"] < 1
    for name in ("l0", "mse", "explained_variance"):
        assert found[name] == pytest.approx(expected[name], rel=2e-5), name


def test_steering_a_language_model():
    """A latent of a sparsemax SAE in HookedSAETransformer: random weights, so only the arithmetic is tested."""
    from sae_lens import HookedSAETransformer
    from transformer_lens import HookedTransformerConfig

    torch.manual_seed(0)
    model = HookedSAETransformer(HookedTransformerConfig(
        n_layers=2, d_model=24, n_ctx=16, d_head=6, n_heads=4, d_mlp=48, d_vocab=50, act_fn="gelu", seed=0
    ))
    sae, tokens = sparsemax(input_scale=1.0), torch.arange(10)[None]
    sae.cfg.metadata.hook_name = place = "blocks.1.hook_resid_pre"
    with torch.no_grad():
        plain, cache = model.run_with_cache(tokens)
        with model.saes([sae], use_error_term=True):
            assert torch.allclose(model(tokens), plain, atol=1e-4)

            def more(acts, hook):
                acts[..., 5] += 2.0
                return acts

            steered = model.run_with_hooks(tokens, fwd_hooks=[(f"{place}.hook_sae_acts_post", more)])
        pushed = model.run_with_hooks(tokens, fwd_hooks=[(place, lambda x, hook: x + 2.0 * sae.W_dec[5])])
    assert (steered - plain).abs().max() > 1e-3 and torch.allclose(steered, pushed, atol=1e-4)


def changed(source, target, cfg=None, **tensors):
    """A copy of a dictionary with other keys and tensors; None takes a tensor away."""
    target.mkdir()
    (target / "cfg.json").write_text(json.dumps(json.loads((source / "cfg.json").read_text()) | (cfg or {})))
    kept = load_file(source / "sae_weights.safetensors") | tensors
    save_file({name: values for name, values in kept.items() if values is not None}, target / "sae_weights.safetensors")
    return target


@pytest.mark.parametrize(("cfg", "tensors", "said"), [
    ({}, {"W_dec": None}, ['"W_dec"', "missing"]),
    ({}, {"act_scale": torch.ones(3)}, ['"act_scale"', "[3]", "[256]"]),
    ({}, {"b_gate": torch.ones(256)}, ['"b_gate"', "not part"]),
    ({}, {"b_enc": torch.full((256,), float("nan"))}, ['"b_enc"', "NaN"]),
    ({"metadata": {"sae_lens_version": "7.0.0"}}, {}, ["metadata.sae_lens_version", "7.0.0"]),
    ({"architecture": "temporal"}, {}, ["architecture", "temporal"]),
    ({"value": "sum"}, {}, ["value", "sum"]),
    ({"normalize_activations": "layer_norm"}, {}, ["normalize_activations", "layer_norm"]),
])
def test_bad_dictionaries_are_named(cfg, tensors, said, door_runs, tmp_path):
    sae_eval("export", "--to", "saelens", door_runs["attention"], tmp_path / "out")
    bad = changed(tmp_path / "out", tmp_path / "bad", cfg, **tensors)
    message = refused(program("sae-eval"), "import", bad, tmp_path / "run")
    assert all(part in message for part in [str(bad), *said]), message
    assert not (tmp_path / "run").exists()


def test_a_directory_of_another_kind(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    message = refused(program("sae-eval"), "import", tmp_path / "photos", tmp_path / "run")
    assert "cat.jpg" in message and "SAELens" in message


@pytest.mark.parametrize("name", ["topk", "topk_projected"])
def test_sparsify_there_and_back(name, door_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")  # else it decodes on a GPU, if triton is there
    sparsify = pytest.importorskip("sparsify", reason="eai-sparsify is not installed")
    out, back, again = tmp_path / "layers.8", tmp_path / "back", tmp_path / "again"
    sae_eval("export", "--to", "sparsify", door_runs[name], out)
    for directory in (out, again):
        coder = sparsify.SparseCoder.load_from_disk(directory)
        with torch.no_grad():
            values, indices, _ = coder.encode(rows())
            latents = torch.zeros(len(rows()), coder.num_latents).scatter(1, indices, values)
            same(name, "SparseCoder", ours(door_runs[name]), (latents, coder.decode(values, indices)), tied(door_runs[name]))
        coder.save_to_disk(again)  # what sparsify itself writes
    sae_eval("import", again, back)
    same(name, "sae-eval import", ours(door_runs[name]), ours(back), tied(door_runs[name]))


@pytest.mark.parametrize("name", ["attention", "batch_topk", "relu"])
def test_sparsify_holds_topk_alone(name, door_runs, tmp_path):
    message = refused(program("sae-eval"), "export", "--to", "sparsify", door_runs[name], tmp_path / "out")
    assert "sparsify" in message and "--approximate topk" in message and not (tmp_path / "out").exists()
