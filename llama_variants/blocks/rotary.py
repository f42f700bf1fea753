"""Position encodings applied to queries and keys.

Axes: b batch, h heads, t time, k size of a head, r rotated part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from llama_variants.config import ModelConfig
from llama_variants.errors import Problem
from llama_variants.registry import ROTARY, FreeConfig
from llama_variants.types import Neutral, Ratio, to_fraction

Rotation = tuple[Float[Tensor, "#b t r"], Float[Tensor, "#b t r"]]
"""Cosines of every position, and sines, negative in the first half, in float32."""


class RopeConfig(FreeConfig):
    """What every rotary encoding declares: ``theta``, the base of its wavelengths."""

    theta: PositiveFloat

    def problems(self, model: ModelConfig) -> Iterable[Problem]:
        """Rotation needs pairs."""
        yield from super().problems(model)
        if model.attention_head_dim % 2:
            received = f"{self.type} with head_dim {model.attention_head_dim}"
            yield Problem(path=("type",), received=received, allowed="an even head_dim")


@ROTARY.register("rope")
class LlamaRotaryEmbedding(nn.Module):
    """Rotary position embedding, the control.

    Pairs (i, i + k/2) of each head turn by position · theta^(-2i/k), so that scores depend on distance only.
    Source: RoFormer (arXiv:2104.09864), in the half-split layout of Llama and transformers.

    Args:
        dim: size k of a head, even.
        theta: base of the geometric series of wavelengths (10,000 in pre-training, 100,000 as released).
    """

    class Config(RopeConfig):
        """No further fields."""

    def __init__(self, dim: int, theta: float = 10_000.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"rotary dim must be even, received {dim}")
        if not theta > 0:
            raise ValueError(f"rotary theta must be positive, received {theta}")
        self.dim = dim
        self.theta = theta

    @classmethod
    def from_config(cls, config: RopeConfig, dim: int) -> LlamaRotaryEmbedding:
        """Built from its YAML fields for heads of size ``dim``."""
        return cls(dim, **config.model_dump())

    def inverse_frequencies(self, device: torch.device | None = None) -> Float[Tensor, " half"]:
        """Angle by which each pair turns from one position to the next, in radians, (r/2,) in float32."""
        exponents = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim
        return 1.0 / self.theta**exponents

    def rotation(self, positions: Int[Tensor, "#b t"]) -> Rotation | None:
        """Cosines, and sines with the sign of each half, for ``positions``; once a forward pass for all layers.

        Nothing is kept in a buffer: a table that is rebuilt cannot be left stale by meta-device construction.
        """
        return self.turns(positions, self.inverse_frequencies(positions.device))

    @staticmethod
    def turns(positions: Int[Tensor, "#b t"], frequencies: Float[Tensor, " half"]) -> Rotation:
        """Cosines and signed sines of each position at each frequency."""
        angles = positions[..., None].float() * frequencies  # (b, t, r/2)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)  # (b, t, r)

    def rotate(self, x: Float[Tensor, "b h t k"], rotation: Rotation | None) -> Float[Tensor, "b h t k"]:
        """``x`` (b, h, t, k) turned by ``rotation``; computed in at least float32, returned in x's dtype."""
        assert rotation is not None
        cos, sin = (part.unsqueeze(-3) for part in rotation)  # (b, 1, t, k)
        # The first half turns with minus the second, the second with the first: the sign is in the sines.
        return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)

    def forward(self, x: Float[Tensor, "*axes t k"], positions: Int[Tensor, "#b t"] | None = None) -> Tensor:
        """``x`` (b, t, k) or (b, h, t, k) turned by its positions (0 … t-1 unless given); same shape."""
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)[None]  # (1, t)
        rotation = self.rotation(positions)
        return self.rotate(x, rotation) if x.dim() == 4 else self.rotate(x[:, None], rotation)[:, 0]

    def extra_repr(self) -> str:
        """Fields shown by print(model)."""
        return f"dim={self.dim}, theta={self.theta:g}"


@ROTARY.register("rope_partial")
class PartialRotaryEmbedding(LlamaRotaryEmbedding):
    """Rotation of the first part of each head only; the rest carries no position.

    Differs from the control by ``fraction``: the first r = fraction · k channels turn, with the wavelengths of a head
    of that size. Source: GPT-J and GPT-NeoX (arXiv:2204.06745). No stock Llama does this.

    Args:
        dim: size k of a head.
        theta: as for the control.
        fraction: share of channels that turn; fraction · k is even.
    """

    class Config(RopeConfig):
        """``fraction``: share of a head's channels that turn."""

        example: ClassVar = {"fraction": 0.5}

        fraction: Ratio

        def resolved(self, model: ModelConfig) -> dict[str, Any]:
            """The fraction as a number."""
            return {**self.to_dict(), "fraction": float(to_fraction(self.fraction))}

        def problems(self, model: ModelConfig) -> Iterable[Problem]:
            """A whole number of pairs turns."""
            dim = model.attention_head_dim
            rotated = to_fraction(self.fraction) * dim
            if rotated.denominator != 1 or rotated % 2 or not 0 < rotated <= dim:
                allowed = f"a share of the {dim} channels of a head that is an even number of them"
                yield Problem(path=("fraction",), received=str(self.fraction), allowed=allowed)

    def __init__(self, dim: int, theta: float = 10_000.0, fraction: float | str = 0.5) -> None:
        super().__init__(int(to_fraction(fraction) * dim), theta)

    def rotate(self, x: Float[Tensor, "b h t k"], rotation: Rotation | None) -> Float[Tensor, "b h t k"]:
        """``x`` (b, h, t, k) with its first r channels turned."""
        turned = super().rotate(x[..., : self.dim], rotation)  # (b, h, t, r)
        return torch.cat((turned, x[..., self.dim :]), dim=-1)


@ROTARY.register("rope_linear")
class LinearScaledRotaryEmbedding(LlamaRotaryEmbedding):
    """Position interpolation: every angle divided by ``factor``.

    Differs from the control by squeezing ``factor`` times as long a context into the angles of the old one.
    Source: arXiv:2306.15595.
    """

    class Config(RopeConfig):
        """``factor``: by how much positions are squeezed."""

        example: ClassVar = {"factor": 4.0}

        factor: PositiveFloat

    def __init__(self, dim: int, theta: float = 10_000.0, factor: float = 1.0) -> None:
        super().__init__(dim, theta)
        self.factor = factor

    def inverse_frequencies(self, device: torch.device | None = None) -> Float[Tensor, " half"]:
        """The control's, divided by ``factor``."""
        return super().inverse_frequencies(device) / self.factor

    def extra_repr(self) -> str:
        """Fields shown by print(model)."""
        return f"{super().extra_repr()}, factor={self.factor:g}"


@ROTARY.register("rope_ntk")
class NTKScaledRotaryEmbedding(LlamaRotaryEmbedding):
    """NTK-aware scaling: theta · factor^(k/(k-2)), which divides the slowest angle by ``factor`` and keeps the fastest.

    Differs from the control by its theta alone. Source: arXiv:2309.00071, section 3.1. The factor is fixed; it does
    not grow with the sequence as in the dynamic form.
    """

    class Config(RopeConfig):
        """``factor``: by how much the longest wavelength grows."""

        example: ClassVar = {"factor": 4.0}

        factor: PositiveFloat

        def resolved(self, model: ModelConfig) -> dict[str, Any]:
            """As the control with the theta that it comes to."""
            dim = model.attention_head_dim
            return {"type": "rope", "theta": _ntk_theta(self.theta, self.factor, dim)}

        def problems(self, model: ModelConfig) -> Iterable[Problem]:
            """The exponent needs more than one pair."""
            yield from super().problems(model)
            if model.attention_head_dim == 2:
                yield Problem(path=("type",), received="rope_ntk with head_dim 2", allowed="a head_dim of at least 4")
            elif self.factor > 1e6:
                yield Problem(path=("factor",), received=str(self.factor), allowed="at most a million")

    def __init__(self, dim: int, theta: float = 10_000.0, factor: float = 1.0) -> None:
        super().__init__(dim, _ntk_theta(theta, factor, dim))


def _ntk_theta(theta: float, factor: float, dim: int) -> float:
    return theta * factor ** (dim / (dim - 2)) if dim > 2 else theta


class StretchedConfig(RopeConfig):
    """What encodings declare that know their original context in tokens, and the ``factor`` by which it grows."""

    example: ClassVar = {"factor": 4.0, "original_max_position_embeddings": 512}

    factor: PositiveFloat
    original_max_position_embeddings: PositiveInt

    def problems(self, model: ModelConfig) -> Iterable[Problem]:
        """A scaling stretches, and it takes wavelengths of several lengths."""
        yield from super().problems(model)
        if self.factor < 1:
            yield Problem(path=("factor",), received=str(self.factor), allowed="at least 1")
        if self.theta <= 1:
            allowed = "more than 1, or no wavelength is longer than another"
            yield Problem(path=("theta",), received=str(self.theta), allowed=allowed)


class StretchedRotaryEmbedding(LlamaRotaryEmbedding):
    """A rotary embedding whose angles depend on an original context; subclasses say how."""

    def __init__(
        self, dim: int, theta: float = 10_000.0, factor: float = 1.0, original_max_position_embeddings: int = 2048
    ) -> None:
        super().__init__(dim, theta)
        self.factor, self.context = factor, original_max_position_embeddings

    def extra_repr(self) -> str:
        """Fields shown by print(model)."""
        return f"{super().extra_repr()}, factor={self.factor:g}, original_max_position_embeddings={self.context}"


@ROTARY.register("rope_dynamic")
class DynamicScaledRotaryEmbedding(StretchedRotaryEmbedding):
    """NTK-aware scaling that grows with the sequence: theta · (factor · n/c - factor + 1)^(k/(k-2)) beyond c tokens.

    Differs from the control only where a sequence of n tokens is longer than ``original_max_position_embeddings`` (c):
    then all of its angles depend on its length, those of earlier tokens too, and what a cache holds was turned by the
    angles of its time. Source: the dynamic form in arXiv:2309.00071, section 3.3, as in transformers.
    """

    class Config(StretchedConfig):
        """``factor``, and the context in tokens up to which nothing is scaled."""

        def problems(self, model: ModelConfig) -> Iterable[Problem]:
            """The exponent needs more than one pair."""
            yield from super().problems(model)
            if model.attention_head_dim == 2:
                yield Problem(path=("type",), received="rope_dynamic, head_dim 2", allowed="a head_dim of at least 4")

    def rotation(self, positions: Int[Tensor, "#b t"]) -> Rotation | None:
        """By the angles of the longest sequence in the batch; without a branch, so that it compiles."""
        length = (positions.max() + 1).clamp(min=self.context)
        growth = self.factor * length / self.context - (self.factor - 1)
        exponents = torch.arange(0, self.dim, 2, device=positions.device, dtype=torch.float32) / self.dim
        grown = 1.0 / (self.theta * growth ** (self.dim / (self.dim - 2))) ** exponents
        plain = self.inverse_frequencies(positions.device)
        return self.turns(positions, torch.where(length > self.context, grown, plain))


@ROTARY.register("rope_llama3")
class Llama3RotaryEmbedding(StretchedRotaryEmbedding):
    """Llama 3.1's scaling: slow pairs have their angles divided by ``factor``, fast ones keep them; a blend between.

    Differs from the control by its angles. A pair that turns more than ``high_freq_factor`` times over
    ``original_max_position_embeddings`` tokens keeps its angle, one that turns less than ``low_freq_factor`` times has
    it divided; between them the two are mixed, linearly in the turns. Source: arXiv:2407.21783, as in transformers.
    """

    class Config(StretchedConfig):
        """``factor``, the original context in tokens, and the ends of the blend in turns."""

        low_freq_factor: PositiveFloat = 1.0
        high_freq_factor: PositiveFloat = 4.0

        def problems(self, model: ModelConfig) -> Iterable[Problem]:
            """A blend has two ends."""
            yield from super().problems(model)
            if self.high_freq_factor <= self.low_freq_factor:
                allowed = f"more than low_freq_factor ({self.low_freq_factor:g})"
                yield Problem(path=("high_freq_factor",), received=str(self.high_freq_factor), allowed=allowed)

    def __init__(self, dim: int, *, low_freq_factor: float = 1.0, high_freq_factor: float = 4.0, **fields: Any) -> None:
        super().__init__(dim, **fields)
        self.ends = (low_freq_factor, high_freq_factor)

    def inverse_frequencies(self, device: torch.device | None = None) -> Float[Tensor, " half"]:
        """The control's, those divided by ``factor``, or a mixture of both."""
        plain, (low, high) = super().inverse_frequencies(device), self.ends
        periods = 2 * math.pi / plain  # in positions
        share = (self.context / periods - low) / (high - low)  # of the control's angle in the mixture
        # In transformers' order of operations, so that the last bit agrees.
        mixed = (1 - share) * plain / self.factor + share * plain
        slow, fast = periods > self.context / low, periods < self.context / high
        return torch.where(slow, plain / self.factor, torch.where(fast, plain, mixed))


@ROTARY.register("rope_yarn")
class YarnRotaryEmbedding(StretchedRotaryEmbedding):
    """YaRN: fast pairs keep their angles, slow ones are interpolated, with a ramp between; attention is sharpened.

    Differs from the control by its angles. A pair that turns more than ``beta_fast`` times over the original context
    keeps its angle, one that turns less than ``beta_slow`` times has it divided by ``factor``. Cosines
    and sines are multiplied by 0.1 · ln(factor) + 1. Source: arXiv:2309.00071, with the ramp's ends rounded outwards as
    in transformers.
    """

    class Config(StretchedConfig):
        """``factor``, the original context in tokens, and the ends of the ramp in turns, rounded if ``truncate``.

        ``attention_factor``: what cosines and sines are multiplied by, in place of 0.1 · ln(factor) + 1.
        """

        beta_fast: PositiveFloat = 32.0
        beta_slow: PositiveFloat = 1.0
        attention_factor: Annotated[PositiveFloat | None, Neutral(None)] = None
        truncate: Annotated[bool, Neutral(True)] = True

        def problems(self, model: ModelConfig) -> Iterable[Problem]:
            """A ramp has two ends."""
            yield from super().problems(model)
            if self.beta_fast <= self.beta_slow:
                allowed = f"more than beta_slow ({self.beta_slow:g})"
                yield Problem(path=("beta_fast",), received=str(self.beta_fast), allowed=allowed)

    def __init__(
        self,
        dim: int,
        *,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
        attention_factor: float | None = None,
        truncate: bool = True,
        **fields: Any,
    ) -> None:
        super().__init__(dim, **fields)
        self.betas, self.truncate = (beta_fast, beta_slow), truncate
        self.sharpened = 0.1 * math.log(self.factor) + 1.0 if attention_factor is None else attention_factor

    def inverse_frequencies(self, device: torch.device | None = None) -> Float[Tensor, " half"]:
        """Between the control's and the interpolated ones."""
        exponents = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim
        periods = self.theta**exponents  # of the control's angles, in positions a radian

        def pair(turns: float) -> float:  # that turns so often over the original context
            return self.dim * math.log(self.context / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = pair(self.betas[0]), pair(self.betas[1])
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        steps = torch.arange(self.dim // 2, device=device, dtype=torch.float32)
        kept = 1 - ((steps - low) / (high - low if high != low else 0.001)).clamp(0, 1)  # 1: as it was
        # In transformers' order of operations, so that the last bit agrees.
        return 1.0 / (self.factor * periods) * (1 - kept) + 1.0 / periods * kept

    def rotation(self, positions: Int[Tensor, "#b t"]) -> Rotation | None:
        """The control's, times the factor that sharpens attention."""
        rotation = super().rotation(positions)
        assert rotation is not None
        return rotation[0] * self.sharpened, rotation[1] * self.sharpened


@ROTARY.register("nope")
class NoPositionEmbedding(nn.Module):
    """No position encoding at all: order reaches the model only through the causal mask.

    Differs from the control by leaving queries and keys as they are. The known-bad control of every base; in every
    fourth layer only (``layers: {every 4: {rotary: {type: nope}}}``) it is that of SmolLM3.
    Source: NoPE (arXiv:2305.19466).
    """

    class Config(FreeConfig):
        """No fields."""

    @classmethod
    def from_config(cls, config: Config, dim: int) -> NoPositionEmbedding:
        """Built from its (absent) YAML fields."""
        return cls()

    def rotation(self, positions: Int[Tensor, "#b t"]) -> None:
        """There is none."""

    def rotate(self, x: Float[Tensor, "b h t k"], rotation: None) -> Float[Tensor, "b h t k"]:
        """``x`` itself."""
        return x

    def forward(self, x: Float[Tensor, "*axes t k"], positions: Int[Tensor, "#b t"] | None = None) -> Tensor:
        """``x`` itself."""
        return x
