"""Flags that several commands have: the model that generates, other words for prompts, tuning."""

import hashlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from nova_jax.arguments import DType, ParamDType
from nova_jax.cli import define
from nova_jax.config import Count, Seed
from nova_jax.errors import NovaError
from nova_jax.kernels.diffusion_sampler import tuning
from nova_jax.pipeline import SHIPPED, NovaPipeline
from nova_jax.rewriting import instructions
from nova_jax.rewriting.interface import Rewriter
from nova_jax.rewriting.language_model import LanguageModelRewriter
from nova_jax.rewriting.replay import Replay


def define_tune() -> None:
    """Defines --tune, for commands that draw."""
    flags.DEFINE_enum(
        "tune",
        None,
        ["on", "off"],
        f'Whether sampler "auto" times both samplers once on a GPU or TPU; else {tuning.VARIABLE}.',
    )


class ModelFlags:
    """Defines --checkpoint, --weights, --dtype, --size, --param_dtype, --unroll, --offload and
    --tune: what generates."""

    def __init__(self) -> None:
        self._checkpoint = flags.DEFINE_string(
            "checkpoint",
            str(SHIPPED),
            "Model directory, --workdir of a training run, a released model (its directory or its "
            "id on the Hugging Face hub), or one that comes with the package: digits_t2v, "
            "digits_t2i.",
        )
        self._weights = flags.DEFINE_enum(
            "weights", "ema", ["ema", "raw"], "Of a training run: averaged or raw parameters."
        )
        self._dtype = define(
            "dtype",
            DType,
            "float32",
            "Type of the computation and of the parameters; bfloat16 takes half the memory.",
        )
        self._param_dtype = define(
            "param_dtype",
            ParamDType,
            None,
            "Type that the transformer is kept in, by default --dtype; int8 takes least memory.",
        )
        self._size = flags.DEFINE_string(
            "size", None, "HEIGHTxWIDTH in pixels; the model's own by default."
        )
        self._unroll = define(
            "unroll",
            Count,
            1,
            "Blocks per iteration over depth; on a CPU 16 is faster and compiles longer.",
        )
        self._offload = flags.DEFINE_bool(
            "offload",
            False,
            "Keep text encoder and autoencoder in the host's memory while they are not used.",
        )
        define_tune()
        self._loading = (
            *(self._weights, self._dtype, self._param_dtype, self._unroll),
            self._offload,
        )
        self._all = (self._checkpoint, *self._loading, self._size)

    @property
    def named(self) -> dict[str, Any]:
        """Those that are given, by name."""
        return {flag.name: flag.value for flag in self._all if flag.present}

    def load(self) -> NovaPipeline:
        """Loads the model.

        Raises:
          NovaError: The size is none, or see `NovaPipeline.from_pretrained` and `resized`.
        """
        options = {flag.name: flag.value for flag in self._loading}
        pipeline = NovaPipeline.from_pretrained(self._checkpoint.value, **options)
        if self._size.value is None:
            return pipeline
        height, x, width = self._size.value.partition("x")
        if not (x and height.isdecimal() and width.isdecimal()):
            raise NovaError(f"--size={self._size.value} is not HEIGHTxWIDTH, such as 480x768")
        return pipeline.resized(int(height), int(width))


class RewriterFlags:
    """Defines --rewrite, --rewrite_seed and --rewritten: what prompts become before they are drawn.

    Attributes:
      all: The flags.
    """

    def __init__(self) -> None:
        self._model = flags.DEFINE_string(
            "rewrite",
            None,
            "Instruct model that writes prompts anew before they are drawn: its directory, or its "
            "id on the Hugging Face hub; files keep the names of the prompts.",
        )
        self._seed = define("rewrite_seed", Seed, None, "Sample its answers; greedy by default.")
        self._file = flags.DEFINE_string(
            "rewritten", None, "File of rewritten prompts, or PROMPTS.txt,REWRITTEN.txt."
        )
        self.all = (self._model, self._seed, self._file)

    def make(self, *, video: bool) -> Rewriter | None:
        """The rewriter that is asked for, for videos or for pictures; None for none.

        Raises:
          NovaError: Both a model and a file are given, or a seed alone; or they cannot be read.
        """
        model, file = self._model.value, self._file.value
        if model is not None and file is not None:
            raise NovaError("--rewrite and --rewritten are given; give one of them")
        if self._seed.value is not None and model is None:
            raise NovaError("--rewrite_seed is of --rewrite, which is not given; leave it away")
        if file is not None:
            return Replay.read(file)
        told = instructions.VIDEO if video else instructions.PICTURE
        asked: Any = {"instructions": told, "seed": self._seed.value}
        return None if model is None else LanguageModelRewriter(model, **asked)

    def rewrite(self, prompts: Sequence[str], *, video: bool) -> Replay | None:
        """What prompts become, all of them now; the model's memory is free again after it.

        Its `source` says what made them: the model and its commit or checksum, or the file and the
        checksum of what it says of these prompts.

        Raises:
          NovaError: As `make`, or there are no other words for a prompt.
        """
        rewriter = self.make(video=video)
        if rewriter is None:
            return None
        if isinstance(rewriter, LanguageModelRewriter):
            seed = "greedy" if rewriter.seed is None else f"seed {rewriter.seed}"
            said = Replay.of(rewriter, prompts, f"{self._model.value} ({rewriter.model}, {seed})")
            rewriter.close()
            return said
        said = Replay.of(rewriter, prompts, "")
        checksum = hashlib.sha256(said.lines()).hexdigest()
        return Replay(said.texts, f"{self._file.value} ({checksum})")
