"""Sparse attention in SAELens. To import this module registers architecture ``sparsemax``; SAELens has no other way to learn it.

    import dynamic_sae.saelens
    sae = sae_lens.SAE.load_from_disk(DIR)      # what ``sae-eval export --to saelens RUN DIR`` wrote

With W_enc ``[d, M]`` (the scale t is in it), W_dec ``[M, d]`` of rows of length one, and act_scale ``[M]``, their lengths before:

    x0    = x - b_dec
    n     = s (||x0|| / s)^p                    p = 1 where ||x0|| / s leaves [1/R, R]
    z     = (x0 / n) W_enc + b_enc
    a     = refined(sparsemax(z), or z / t where it is above zero)
    acts  = n a act_scale                       in units of x, as those of SAELens' other classes
    x_hat = acts W_dec + b_dec

n is in the activations, so decode is linear and needs no memory of encode: tools that steer, patch or probe call the two apart.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import registry
from sae_lens.saes.sae import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig, TrainStepInput

from . import equations
from .errors import DynamicSaeError

ARCHITECTURE = "sparsemax"
VALUES = ("score", "probability")


@dataclass
class SparsemaxSAEConfig(SAEConfig):
    """What a sparsemax SAE computes, beside what every SAE of SAELens has."""

    value: str = "score"
    """Value of a selected latent: its ``"score"``, or its ``"probability"``."""
    scale: float = 1.0
    """t, which W_enc has been multiplied by."""
    norm_exponent: float = 0.0
    """p."""
    norm_range: float | None = None
    """R; None: p holds everywhere."""
    input_scale: float = 1.0
    """s."""
    refinement: int = 0
    """Steps by which inference refines the values of the selected latents."""

    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)


@dataclass(kw_only=True)
class SparsemaxTrainingSAEConfig(TrainingSAEConfig):
    """What SAELens trains. The defaults are those of our default preset; there is no sparsity penalty, and no k."""

    value: str = "score"
    scale: float = 0.7
    """t: larger is sparser."""
    norm_exponent: float = 2.0
    norm_range: float | None = 4.0
    input_scale: float | None = None
    """s, the typical norm of a row. None: sqrt(d_in), which ``normalize_activations="expected_average_only_in"`` makes it."""
    refinement: int = 2
    decoder_init_norm: float | None = 1.0

    @classmethod
    def architecture(cls) -> str:
        return ARCHITECTURE

    def __post_init__(self) -> None:
        if self.normalize_activations == "covariance_whitening":
            raise DynamicSaeError('SparsemaxTrainingSAEConfig: normalize_activations="covariance_whitening" cannot be folded '
                                  'into a sparsemax SAE, which divides rows by their norm; use "expected_average_only_in"')
        if self.input_scale is None:
            if self.normalize_activations == "none":
                raise DynamicSaeError("SparsemaxTrainingSAEConfig: input_scale is missing; set it to the mean norm of your "
                                      'activations, or set normalize_activations="expected_average_only_in"')
            self.input_scale = math.sqrt(self.d_in)
        check(self)
        super().__post_init__()


def check(cfg: Any) -> None:
    """Raises if a sparsemax SAE cannot have these numbers."""
    name = type(cfg).__name__
    if cfg.value not in VALUES:
        raise DynamicSaeError(f"{name}: value is {cfg.value!r}; use one of {', '.join(VALUES)}")
    for key in ("scale", "input_scale"):
        number = getattr(cfg, key)
        if not (math.isfinite(number) and number > 0):
            raise DynamicSaeError(f"{name}: {key} is {number}; use a number above 0")
    if not math.isfinite(cfg.norm_exponent):
        raise DynamicSaeError(f"{name}: norm_exponent is {cfg.norm_exponent}; use a finite number")
    if cfg.norm_range is not None and not (math.isfinite(cfg.norm_range) and cfg.norm_range >= 1):
        raise DynamicSaeError(f"{name}: norm_range is {cfg.norm_range}; use a number from 1, or None")
    if cfg.refinement != int(cfg.refinement) or cfg.refinement < 0:
        raise DynamicSaeError(f"{name}: refinement is {cfg.refinement}; use a number of steps from 0")


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in float32 or wider: squares of norms overflow float16, and sums of M scores lose too much in bfloat16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Sparsemax(SAE[Any]):
    """What the class for inference and the class for training share."""

    b_enc: torch.nn.Parameter
    """``[M]``"""
    act_scale: torch.nn.Parameter
    """``[M]``: what an activation of one adds to x_hat has this length, were it not for W_dec's rows of length one."""

    def initialize_weights(self) -> None:
        super().initialize_weights()
        for name, make in (("b_enc", torch.zeros), ("act_scale", torch.ones)):
            setattr(self, name, torch.nn.Parameter(make(self.cfg.d_sae, dtype=self.dtype, device=self.device)))

    def selected(self, x: torch.Tensor, refinement: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations and scores of rows.

        Args:
            x: rows ``[..., d]``, or ``[..., heads, d_head]`` if they are those of hook_z.
            refinement: steps of refinement.

        Returns:
            activations ``[..., M]`` in units of x, before hook_sae_acts_post, and scores ``[..., M]`` after hook_sae_acts_pre.
        """
        x0 = self.process_sae_in(x)
        n = equations.row_norms(wide(x0), self.cfg)
        u = wide(x0) / n
        z = self.hook_sae_acts_pre(u.to(self.dtype) @ self.W_enc + self.b_enc)
        p = equations.sparsemax(wide(z), equations.Torch())
        a = p if self.cfg.value == "probability" else wide(z) / self.cfg.scale * (p > 0)
        if refinement:
            written = wide(self.act_scale)[:, None] * wide(self.W_dec)
            a = equations.refined(a, u, {"W_dec": written}, refinement)
        return (n * a * self.act_scale).to(self.dtype), z

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Activations ``[..., M]`` of rows ``x [..., d]``, refined, in units of x."""
        acts, _ = self.selected(x, self.cfg.refinement)
        return self.hook_sae_acts_post(acts)

    def decode(self, feature_acts: torch.Tensor) -> torch.Tensor:
        """``x_hat [..., d]`` of activations ``[..., M]``; linear, but for b_dec."""
        x_hat = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(x_hat), self.d_head)

    @torch.no_grad()
    def fold_and_get_W_dec_norm(self) -> torch.Tensor:
        """Makes rows of W_dec of length one; their lengths go into act_scale.

        SAELens' own version multiplies W_enc and b_enc, which would change what sparsemax selects.

        Returns:
            the lengths before, ``[M]``.
        """
        lengths = self.get_W_dec_norm()
        self.W_dec.data.div_(lengths[:, None])
        self.act_scale.data.mul_(lengths)
        return lengths

    def fold_W_dec_norm(self) -> None:
        """See :meth:`fold_and_get_W_dec_norm`."""
        self.fold_and_get_W_dec_norm()

    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Makes an SAE of ``scaling_factor x`` one of x. The norm of rows scales with them: only s and b_dec change."""
        self.b_dec.data.div_(scaling_factor)
        self.cfg.input_scale /= scaling_factor
        self.cfg.normalize_activations = "none"

    def fold_activation_whitening(self, *_: Any, **__: Any) -> None:
        """Always raises: the norm of a whitened row is not that of the row."""
        raise DynamicSaeError("a sparsemax SAE divides rows by their norm, so whitening cannot be folded into it; train it with "
                              'normalize_activations="expected_average_only_in"')


class SparsemaxSAE(Sparsemax):
    """A sparsemax SAE to use."""

    cfg: SparsemaxSAEConfig


class SparsemaxTrainingSAE(Sparsemax, TrainingSAE[SparsemaxTrainingSAEConfig]):
    """A sparsemax SAE to train. act_scale stays at one until the model is saved for inference."""

    cfg: SparsemaxTrainingSAEConfig

    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.act_scale.requires_grad_(False)
        with torch.no_grad():  # whatever decoder_init_norm is, scores are t times a cosine, so to say
            self.W_enc.data.copy_(self.cfg.scale * (self.W_dec / self.get_W_dec_norm()[:, None]).T)

    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations ``[..., M]`` and scores ``[..., M]``, as training sees them: without refinement."""
        acts, z = self.selected(x, refinement=0)
        return self.hook_sae_acts_post(acts), z

    def get_coefficients(self) -> dict[str, Any]:
        """No coefficient: sparsemax makes activations sparse, no term of the loss does."""
        return {}

    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: torch.Tensor, hidden_pre: torch.Tensor, sae_out: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """No term beside the squared error."""
        return {}

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Rows of W_dec at length one, their lengths in act_scale; the model itself stays as it is."""
        super().process_state_dict_for_saving_inference(state_dict)
        lengths = self.get_W_dec_norm()
        state_dict["W_dec"] = state_dict["W_dec"] / lengths[:, None]
        state_dict["act_scale"] = state_dict["act_scale"] * lengths


def register() -> None:
    """Makes SAELens know ``sparsemax``. Harmless if it already does.

    Raises:
        DynamicSaeError: if the name belongs to a class of somebody else.
    """
    known = registry.SAE_CLASS_REGISTRY.get(ARCHITECTURE)
    if known is not None and known[0].__module__ != __name__:
        raise DynamicSaeError(f'SAELens already has a class for architecture "{ARCHITECTURE}", of module {known[0].__module__}; '
                              "import only one of the two")
    # A module that is loaded again has new classes, and the last ones count; the registry's own functions would refuse them.
    registry.SAE_CLASS_REGISTRY[ARCHITECTURE] = (SparsemaxSAE, SparsemaxSAEConfig)
    registry.SAE_TRAINING_CLASS_REGISTRY[ARCHITECTURE] = (SparsemaxTrainingSAE, SparsemaxTrainingSAEConfig)


register()
