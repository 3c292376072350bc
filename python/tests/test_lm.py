"""evaluate_lm on tiny random language models, against an independent computation."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from dynamic_sae import DynamicSaeError, evaluate_lm  # noqa: E402
from dynamic_sae.lm import DRAWS, markdown  # noqa: E402
from dynamic_sae.lm_place import Place  # noqa: E402

WIDTH, VOCABULARY, LAYER = 16, 50, 2
HOOK = f"model.layers.{LAYER}"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # a model that is sure of something
    return model


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(VOCABULARY, size=length).tolist() for length in (7, 12, 3, 9, 20, 5)]


class Linear:
    """A dictionary of 2d latents, so that L0 is known to the test."""

    def __init__(self, noise: float, seed: int = 0):
        self.noise = noise * torch.from_numpy(np.random.default_rng(seed).standard_normal((WIDTH, WIDTH))).float()

    def encode(self, x):
        return torch.cat([x.clamp(min=0), -x.clamp(max=0)], dim=1)

    def decode(self, latents):
        x = latents[:, :WIDTH] - latents[:, WIDTH:]
        return x + x @ self.noise


def value(entry):
    return entry["value"]


def test_its_own_rows_recover_all_of_the_loss_and_zeros_none(model, texts):
    found = evaluate_lm(model, None, texts, HOOK, {"itself": lambda x: x, "zeros": torch.zeros_like}, context=32, batch=2)
    itself, zeros = found["saes"]["itself"], found["saes"]["zeros"]
    assert value(itself["loss_recovered"]) == pytest.approx(1, abs=1e-6)
    assert value(itself["loss_recovered_mean"]) == pytest.approx(1, abs=1e-6)
    assert value(itself["kl"]) == pytest.approx(0, abs=1e-6)
    assert value(itself["fvu"]) == 0
    assert value(zeros["loss_recovered"]) == pytest.approx(0, abs=1e-9)
    assert value(zeros["ce"]) == value(found["zero"]["ce"])
    assert itself["l0"] is None
    assert value(found["zero"]["kl"]) > 0.01  # there was something to lose
    assert found["documents"] == 6 and found["predictions"] == sum(len(own) - 2 for own in texts)
    assert found["replaced_rows"] == sum(len(own) - 1 for own in texts)


def states_of(model, document):
    """Hidden state LAYER of a document, [tokens, d]."""
    return model(input_ids=torch.tensor([document]), output_hidden_states=True).hidden_states[LAYER][0]


def by_hand(model, document, x_hat_of):
    """CE and KL of each prediction of a document, by a hook of the test's own on a single unpadded input."""
    ids = torch.tensor([document])
    with torch.no_grad():
        clean = model(input_ids=ids).logits[0].log_softmax(-1)

        def hook(_module, positional, named):
            hidden = (positional[0] if positional else named["hidden_states"]).clone()
            hidden[0, 1:] = x_hat_of(hidden[0, 1:])
            return ((hidden, *positional[1:]), named) if positional else (positional, named | {"hidden_states": hidden})

        handle = model.model.layers[LAYER].register_forward_pre_hook(hook, with_kwargs=True)
        other = model(input_ids=ids).logits[0].log_softmax(-1)
        handle.remove()
    ce, kl = [], []
    for at in range(1, len(document) - 1):
        ce.append(-float(other[at, document[at + 1]]))
        kl.append(sum(float(clean[at, v].exp() * (clean[at, v] - other[at, v])) for v in range(VOCABULARY)))
    return ce, kl


@pytest.mark.parametrize("batch", [1, 4])
def test_equals_a_loop_over_documents(model, texts, batch):
    sae = Linear(0.2)
    found = evaluate_lm(model, None, texts, HOOK, sae, context=32, batch=batch)
    with torch.no_grad():
        rows = torch.cat([states_of(model, own)[1:] for own in texts])
        x_hat = sae.decode(sae.encode(rows))
    mean = rows.mean(0)
    ways = {"clean": lambda x: x, "zero": torch.zeros_like, "mean": lambda x: mean.expand_as(x)}
    ways["sae"] = lambda x: sae.decode(sae.encode(x))
    expected = {}
    for name, way in ways.items():
        ce, kl = zip(*(by_hand(model, own, way) for own in texts), strict=True)
        expected[name] = np.mean(np.concatenate(ce)), np.mean(np.concatenate(kl))
        got = found["saes"]["sae"] if name == "sae" else found[name]
        assert value(got["ce"]) == pytest.approx(expected[name][0], abs=2e-5)
        assert value(got["kl"]) == pytest.approx(expected[name][1], abs=2e-5)
    own = found["saes"]["sae"]
    for key, base in (("loss_recovered", "zero"), ("loss_recovered_mean", "mean")):
        lost = expected[base][0] - expected["clean"][0]
        assert value(own[key]) == pytest.approx((expected[base][0] - expected["sae"][0]) / lost, rel=1e-3)
    assert value(own["fvu"]) == pytest.approx(float((rows - x_hat).pow(2).sum() / (rows - mean).pow(2).sum()), rel=1e-5)
    assert value(own["l0"]) == WIDTH


def test_position_0_and_rows_beyond_max_norm_are_left_alone(model, texts, monkeypatch):
    seen = []
    logits = Place.logits

    def spy(self, inputs, hidden=None):
        if hidden is not None:
            seen.append(hidden.clone())
        return logits(self, inputs, hidden)

    monkeypatch.setattr(Place, "logits", spy)
    with torch.no_grad():
        states = [states_of(model, own) for own in texts]
    limit = float(np.median(torch.cat([own[1:] for own in states]).norm(dim=1)))
    found = evaluate_lm(model, None, texts, HOOK, lambda x: x + 1, context=32, batch=6, max_norm=limit)
    _, clean, zero, mean, sae = seen  # the first is that of the check
    beyond = 0
    for row, own in enumerate(sorted(states, key=len)):
        for replaced in (zero, mean, sae):
            assert torch.equal(replaced[row, 0], clean[row, 0])
        kept = own[1:].norm(dim=1) > limit
        beyond += int(kept.sum())
        assert torch.equal(zero[row, 1 : len(own)].eq(0).all(1), ~kept)
        torch.testing.assert_close(sae[row, 1 : len(own)] - clean[row, 1 : len(own)], (~kept).float()[:, None].expand(-1, WIDTH))
    assert found["rows_beyond_max_norm"] == beyond > 0
    same = evaluate_lm(model, None, texts, HOOK, lambda x: x + 1, context=32, batch=6, max_norm="1x median")
    assert same["max_norm"] == pytest.approx(limit) and same["rows_beyond_max_norm"] == beyond


def test_several_dictionaries_are_each_as_if_alone(model, texts):
    saes = {"a": Linear(0.1), "b": Linear(0.3, seed=1)}
    together = evaluate_lm(model, None, texts, HOOK, saes, context=32)
    for name, sae in saes.items():
        alone = evaluate_lm(model, None, texts, LAYER, sae, context=32)  # by the block's number
        assert alone["saes"]["sae"] == together["saes"][name]
        assert {key: alone[key] for key in alone if key != "saes"} == {key: together[key] for key in together if key != "saes"}
    assert "| a |" in markdown(together) and "| b |" in markdown(together)


def test_intervals_are_those_of_documents_drawn_with_replacement(model, texts):
    sae = Linear(0.2)
    found = evaluate_lm(model, None, texts, HOOK, sae, context=32, seed=3)["saes"]["sae"]
    documents = sorted(texts, key=len)
    ce, zero, clean, error, total = [], [], [], [], []
    with torch.no_grad():
        for own in documents:
            ce.append(by_hand(model, own, lambda x: sae.decode(sae.encode(x)))[0])
            zero.append(by_hand(model, own, torch.zeros_like)[0])
            clean.append(by_hand(model, own, lambda x: x)[0])
            x = states_of(model, own)[1:].double().numpy()
            error.append(((x - sae.decode(sae.encode(torch.from_numpy(x).float())).double().numpy()) ** 2).sum())
            total.append(x)
    rng = np.random.default_rng(3)
    recovered, fvu = [], []
    for counts in rng.multinomial(len(documents), np.full(len(documents), 1 / len(documents)), size=DRAWS):
        drawn = np.repeat(np.arange(len(documents)), counts)
        means = [np.mean(np.concatenate([values[d] for d in drawn])) for values in (ce, zero, clean)]
        recovered.append((means[1] - means[0]) / (means[1] - means[2]))
        x = np.concatenate([total[d] for d in drawn])
        fvu.append(sum(error[d] for d in drawn) / ((x - x.mean(0)) ** 2).sum())
    for key, values in (("loss_recovered", recovered), ("fvu", fvu)):
        low, high = np.percentile(values, [2.5, 97.5])
        assert found[key]["low"] == pytest.approx(low, rel=1e-3) and found[key]["high"] == pytest.approx(high, rel=1e-3)
        assert found[key]["low"] <= value(found[key]) <= found[key]["high"]


def test_the_model_is_left_as_it_was(model, texts):
    model.train()
    model.config.use_cache = True
    before = [len(block._forward_pre_hooks) for block in model.model.layers]
    with pytest.raises(DynamicSaeError):
        evaluate_lm(model, None, texts, HOOK, lambda x: x[:, :3], context=32)
    assert model.training and model.config.use_cache
    assert [len(block._forward_pre_hooks) for block in model.model.layers] == before
    assert all("forward" not in block.__dict__ for block in model.model.layers)
    model.eval()


def test_a_place_within_a_block(model, texts):
    found = evaluate_lm(model, None, texts, f"{HOOK}.mlp", {"itself": lambda x: x, "off": Linear(0.5)}, context=32)
    assert value(found["saes"]["itself"]["kl"]) == pytest.approx(0, abs=1e-6)
    assert value(found["saes"]["off"]["kl"]) > 1e-4


def test_gpt2_and_a_tokenizer(texts):
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=WIDTH, n_layer=3, n_head=2)
    gpt2 = transformers.GPT2LMHeadModel(config)

    def tokenizer(some, truncation, max_length):
        assert truncation
        return {"input_ids": [[int(word) for word in text.split()][:max_length] for text in some]}

    words = [" ".join(map(str, own)) for own in texts]
    found = evaluate_lm(gpt2, tokenizer, words, "transformer.h.1", Linear(0.1), context=10)
    assert found == evaluate_lm(gpt2, None, texts, 1, Linear(0.1), context=10)
    assert found["predictions"] == sum(min(len(own), 10) - 2 for own in texts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hook": "model.layer.2"}, ["model.layer.2", "close", "model.layers"]),
        ({"hook": 4}, ["hook 4", "0 to 3"]),
        ({"context": 33}, ["context 33", "1 to 32"]),
        ({"texts": [[1, 2, 3], [4]]}, ["fewer than two documents"]),
        ({"max_norm": "huge"}, ["max_norm huge", "10x median"]),
        ({"max_norm": 1e-9}, ["all rows are beyond"]),
        ({"sae": 3}, ["sae sae", "dynamic_sae.load"]),
        ({"sae": lambda x: x @ torch.ones(WIDTH + 1, 3)}, [f"width {WIDTH}", "trained at this place"]),
        ({"sae": lambda x: x * torch.nan}, ["not finite"]),
        ({"hook": "model.embed_tokens"}, ["model.embed_tokens", "block"]),
        ({"hook": "lm_head.nothing"}, ["no such module"]),
    ],
)
def test_errors_name_what_is_wrong(model, texts, change, words):
    given = {"texts": texts, "hook": HOOK, "sae": lambda x: x, "context": 32} | change
    with pytest.raises(DynamicSaeError) as error:
        evaluate_lm(model, None, given.pop("texts"), given.pop("hook"), given.pop("sae"), **given)
    for word in words:
        assert word in str(error.value)


def test_transformer_lens(texts):
    lens = pytest.importorskip("transformer_lens")
    torch.manual_seed(2)
    config = lens.HookedTransformerConfig(
        n_layers=3, d_model=WIDTH, n_ctx=32, d_head=8, n_heads=2, d_vocab=VOCABULARY, act_fn="gelu", seed=2, device="cpu"
    )
    model = lens.HookedTransformer(config)
    sae = Linear(0.3)
    found = evaluate_lm(model, None, texts, "blocks.1.hook_resid_pre", sae, context=32)

    def replace(x, hook):
        return torch.cat([x[:, :1], sae.decode(sae.encode(x[0, 1:]))[None]], dim=1)

    ce = []
    with torch.no_grad():
        for own in texts:
            ids = torch.tensor([own])
            logits = model.run_with_hooks(ids, return_type="logits", fwd_hooks=[("blocks.1.hook_resid_pre", replace)])
            logits = logits[0].log_softmax(-1)
            ce += [-float(logits[at, own[at + 1]]) for at in range(1, len(own) - 1)]
    assert value(found["saes"]["sae"]["ce"]) == pytest.approx(np.mean(ce), abs=2e-5)
    assert abs(value(found["saes"]["sae"]["ce"]) - value(found["clean"]["ce"])) > 1e-4
