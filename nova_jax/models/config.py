"""The size and options of one NOVA transformer, as a typed, validated dataclass."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from nova_jax.config import Checked, Count, Positive, Range, from_dict, to_plain
from nova_jax.errors import NovaError

# Attention heads of the released widths; every other width uses heads of 32 channels.
_RELEASED_HEADS = {768: 12, 1024: 16, 1536: 16}


@dataclasses.dataclass(frozen=True)
class StageSize:
    """Depth and width of one stage, which a name such as ``vit_d16w1024`` gives."""

    depth: int
    width: int

    @classmethod
    def parse(cls, name: str, family: Literal["vit", "mlp"]) -> "StageSize":
        """Reads ``{family}_d{depth}w{width}``.

        Raises:
            NovaError: if the name has another form or a number is zero.
        """
        match = re.fullmatch(rf"{family}_d(\d+)w(\d+)", str(name))
        if match is None or "0" in match.groups():
            raise NovaError(f"{name!r} is not a stage size; write it as {family}_d<depth>w<width>")
        return cls(int(match[1]), int(match[2]))

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return _RELEASED_HEADS.get(self.width, self.width // 32)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class NovaConfig(Checked):
    """Size and options of one NOVA transformer.

    Attributes:
        latent_channels: C, channels of a latent frame.
        latent_size: (h, w), rows and columns of a latent frame.
        patch_size: p, side of a spatial token in latent pixels.
        temporal_patch: side of a temporal token in spatial tokens. The released models have 2. With
            1 each spatial token has an indicator feature of its own, which a small grid needs.
        temporal_encoder: size of the temporal encoder, ``vit_d{depth}w{width}``.
        spatial_decoder: size of the spatial decoder, ``vit_d{depth}w{width}``, whose width is the
            temporal encoder's.
        diffusion_head: size of the diffusion head, ``mlp_d{depth}w{width}``.
        frames: base number T of latent frames. With 1 it is an image model, which has no motion
            tokens.
        text_dim: channels of the text encoder's features; None for a class-conditional model.
        text_length: number of text tokens that a text model sees, 1 to 512.
        num_classes: number of classes of a class-conditional model, whose label ``num_classes``
            means "no class"; None for a text model.
        mixer_rank: rank of the scaling-and-shift layer; a negative rank is full rank, and with
            None or 0 the model has no such layer.
        rotary: whether positions are 3D rotary; else they are sine-cosine.
        mask_ratio_min: least share of a frame's tokens that training hides (MAR, section 4: 0.7).
            Generation in many AR steps shows its last ones more than 1 - mask_ratio_min.
        mask_ratio_std: how training draws that share: from a normal of mean 1 and this deviation,
            cut to [mask_ratio_min, 1]. A large one draws evenly.
    """

    latent_channels: Count = 4
    latent_size: tuple[int, int]
    patch_size: Count = 2
    temporal_patch: Count = 2
    temporal_encoder: str
    spatial_decoder: str
    diffusion_head: str
    frames: Count = 1
    text_dim: Count | None = None
    text_length: Annotated[int, Range(1, 512)] | None = None
    num_classes: Count | None = None
    mixer_rank: int | None = None
    rotary: bool = False
    mask_ratio_min: Annotated[float, Range(0, below=1)] = 0.7
    mask_ratio_std: Positive = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fits(self.latent_size):
            h, w = self.latent_size
            raise NovaError(
                f"latent_size {h}x{w} is not divisible by patch_size {self.patch_size}, or less "
                f"than the temporal encoder's patch, {self.temporal_patch} times that; change "
                "one of them"
            )
        for name in ("temporal_encoder", "spatial_decoder"):
            stage: StageSize = getattr(self, f"{name}_size")
            if stage.width < 32 or stage.width % stage.heads or stage.width % 32:
                raise NovaError(
                    f"{name} {getattr(self, name)!r}: the width must be a multiple of 32, "
                    "the channels of an attention head"
                )
        if self.temporal_encoder_size.width != self.spatial_decoder_size.width:
            raise NovaError(
                f"temporal_encoder {self.temporal_encoder!r} and spatial_decoder "
                f"{self.spatial_decoder!r} must have the same width"
            )
        if self.spatial_decoder_size.depth < 2:
            raise NovaError(
                f"spatial_decoder {self.spatial_decoder!r} must have a depth of at least 2"
            )
        self.diffusion_head_size  # noqa: B018  parses, or raises
        if (self.text_dim is None) == (self.num_classes is None):
            raise NovaError(
                "set text_dim (text model) or num_classes (class model), one of the two"
            )
        if self.text_dim is not None and self.text_length is None:
            raise NovaError("text_length is None; a text model needs 1 to 512")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NovaConfig":
        """Builds a config from plain values; lists stand for tuples.

        Raises:
            NovaError: on an unknown or missing key, a wrong type or an impossible size.
        """
        return from_dict(cls, values, "model")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``from_dict`` reads back, ready for JSON."""
        return to_plain(self)

    def fits(self, latent_size: tuple[int, ...]) -> bool:
        """Whether tokens of both transformers fit a frame of this size."""
        patch = self.patch_size
        least = self.temporal_patch * patch
        return all(side % patch == 0 and side >= least for side in latent_size)

    @property
    def temporal_encoder_size(self) -> StageSize:
        """Depth and width of the temporal encoder."""
        return StageSize.parse(self.temporal_encoder, "vit")

    @property
    def spatial_decoder_size(self) -> StageSize:
        """Depth and width of the spatial decoder."""
        return StageSize.parse(self.spatial_decoder, "vit")

    @property
    def diffusion_head_size(self) -> StageSize:
        """Depth and width of the diffusion head."""
        return StageSize.parse(self.diffusion_head, "mlp")

    @property
    def width(self) -> int:
        """D, width of both transformers."""
        return self.spatial_decoder_size.width

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W), spatial tokens of a frame by row and column."""
        return self.latent_size[0] // self.patch_size, self.latent_size[1] // self.patch_size

    @property
    def temporal_grid(self) -> tuple[int, int]:
        """Temporal tokens of a frame by row and column."""
        return self.grid[0] // self.temporal_patch, self.grid[1] // self.temporal_patch

    @property
    def num_tokens(self) -> int:
        """N, spatial tokens of a frame."""
        return self.grid[0] * self.grid[1]

    @property
    def condition_tokens(self) -> int:
        """Tokens before those of the first frame: text or class, then a video's motion and fps."""
        return (self.text_length or 1) + 2 * self.is_video

    @property
    def indicator_tokens(self) -> int:
        """M, temporal tokens (indicator features) of a frame."""
        return self.temporal_grid[0] * self.temporal_grid[1]

    @property
    def token_dim(self) -> int:
        """Latent values of a spatial token, C·p·p."""
        return self.latent_channels * self.patch_size**2

    @property
    def max_visible_tokens(self) -> int:
        """Most visible tokens of a frame in training, by default 30 % of N: the static length."""
        # Rounded, as 1 - 0.7 is a little more than 0.3.
        share = round(1 - self.mask_ratio_min, 6)
        return min(math.ceil(share * self.num_tokens), self.num_tokens - 1)

    @property
    def is_video(self) -> bool:
        """Whether the model has motion tokens and was meant for more than one frame."""
        return self.frames > 1
