"""The recipes of docs/PYTHON.md, as they stand there, on small random models."""

import json
import re

import numpy as np
import pytest
from conftest import REPOSITORY
from test_writer import index_of, read

import dynamic_sae

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = [["the cat sat", "a cat", "the the cat sat on the mat"], ["on a mat", "sat"]]
WORDS = ["<pad>", "<bos>", "<unk>", "the", "a", "cat", "mat", "sat", "on"]


def recipe(name):
    """A block of code of docs/PYTHON.md."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "PYTHON.md").read_text(encoding="utf-8"), re.S)
    (block,) = [block for block in blocks if block.startswith(f"# recipe: {name}\n")]
    return block


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict(pad_token="<pad>", bos_token="<bos>", eos_token="<bos>", unk_token="<unk>")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32, **special)
    fast.save_pretrained(tmp_path / "tokenizer")
    return transformers.AutoTokenizer.from_pretrained(tmp_path / "tokenizer")  # TransformerLens asks where it came from


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(WORDS), n_positions=32, n_embd=8, n_layer=3, n_head=2)
    return transformers.GPT2LMHeadModel(config).eval()


def checked(tmp_path, expected, first):
    """The rows of each text are those that the model gives for it alone, and tokens, positions and texts are theirs."""
    found = read(tmp_path / "activations")
    texts = [text for batch in TEXTS for text in batch]
    tokens = [[*first, *(WORDS.index(word) for word in text.split())] for text in texts]
    assert found["tokens"].tolist() == sum(tokens, [])
    assert found["positions"].tolist() == [position for own in tokens for position in range(len(own))]
    assert found["doc"].tolist() == [number for number, own in enumerate(tokens) for _ in own]
    wanted = np.concatenate([expected(torch.tensor([own])).detach().numpy()[0] for own in tokens])
    assert np.abs(found["activations"] - wanted).max() <= 2e-3 * np.abs(wanted).max()  # they are stored as f16
    assert np.abs(wanted).max() > 0
    lines = (tmp_path / "activations" / "texts.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts
    assert len(json.loads((tmp_path / "activations" / "vocab.json").read_text())) == len(WORDS)
    assert index_of(tmp_path / "activations")["metadata"]["model"] == "gpt2"


def execute(name, **names):
    exec(compile(recipe(name), name, "exec"), {"dynamic_sae": dynamic_sae, "torch": torch, "texts": TEXTS, **names})  # noqa: S102


def test_transformers(gpt2, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute("transformers", model=gpt2, tokenizer=tokenizer)
    checked(tmp_path, lambda ids: gpt2(ids, output_hidden_states=True).hidden_states[1], [])


def test_transformers_hook(gpt2, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute("transformers hook", model=gpt2, tokenizer=tokenizer)

    def mlp(ids):
        block = gpt2.transformer.h[1]
        hidden = gpt2(ids, output_hidden_states=True).hidden_states[1]
        after = hidden + block.attn(block.ln_1(hidden))[0]
        return block.mlp(block.ln_2(after))

    assert not gpt2.transformer.h[1].mlp._forward_hooks
    checked(tmp_path, mlp, [])


def test_transformer_lens(tokenizer, tmp_path, monkeypatch):
    lens = pytest.importorskip("transformer_lens")
    monkeypatch.chdir(tmp_path)
    config = lens.HookedTransformerConfig(
        n_layers=3, d_model=8, n_ctx=32, d_head=4, n_heads=2, d_vocab=len(WORDS), act_fn="gelu", seed=0, default_prepend_bos=True
    )
    model = lens.HookedTransformer(config, tokenizer=tokenizer).eval()
    execute("TransformerLens", model=model)
    checked(tmp_path, lambda ids: model.run_with_cache(ids)[1]["blocks.0.hook_resid_post"], [WORDS.index("<bos>")])


def test_the_bridge_of_transformer_lens(gpt2, tokenizer, tmp_path, monkeypatch):
    bridge = pytest.importorskip("transformer_lens.model_bridge").TransformerBridge
    monkeypatch.chdir(tmp_path)
    gpt2.save_pretrained(tmp_path / "gpt2")
    model = bridge.boot_transformers(str(tmp_path / "gpt2"), hf_model=gpt2, tokenizer=tokenizer)
    execute("TransformerLens", model=model)
    checked(tmp_path, lambda ids: gpt2(ids, output_hidden_states=True).hidden_states[1], [WORDS.index("<bos>")])


def test_nnsight(gpt2, tokenizer, tmp_path, monkeypatch):
    nnsight = pytest.importorskip("nnsight")
    monkeypatch.chdir(tmp_path)
    execute("nnsight", model=nnsight.LanguageModel(gpt2, tokenizer=tokenizer))
    checked(tmp_path, lambda ids: gpt2(ids, output_hidden_states=True).hidden_states[1], [])
