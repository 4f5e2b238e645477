"""Sessions: videos that are made frame by frame, and steered while they are.

    session = pipeline.start("a red seven moves to the left", seed=1)
    for frames in session.stream(16): ...       # pixels as they come
    session.prompt("a blue seven moves up")     # from the next frame on
    other = session.fork().reseed(7)            # two futures of one past
    session.save("cut.npz")                     # pipeline.resume("cut.npz") in another process

A session is a value, `nova_jax.sampling.state.VideoState`, and what its pixels still need; each
frame replaces it by the next one. Nothing in it grows with the video.

Letters: B samples, F pixel frames, H×W pixels, S slots, C latent channels.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Float, UInt8

from nova_jax import session_file
from nova_jax.arguments import check_prompts, check_seeds
from nova_jax.autoencoders.interface import Array, VideoCodec
from nova_jax.autoencoders.pixels import to_uint8
from nova_jax.autoencoders.streaming import StreamDecoder
from nova_jax.config import Natural, convert, from_dict
from nova_jax.distributed.mesh import batch_sharding
from nova_jax.errors import NovaError
from nova_jax.files import new_output
from nova_jax.models.config import NovaConfig
from nova_jax.models.nova import Conditions
from nova_jax.placement import Placement
from nova_jax.request import Batch, Prompt, Request
from nova_jax.rewriting.interface import Rewriter, in_other_words
from nova_jax.sampling.keys import sample_key
from nova_jax.sampling.options import SamplingConfig
from nova_jax.sampling.schedules import Schedule
from nova_jax.sampling.state import VideoState, begin, draws
from nova_jax.sampling.steps import OnStep
from nova_jax.sampling.video import frame_by_frame
from nova_jax.session_file import array_of, conditions_of
from nova_jax.text.interface import TextEncoder

Latents = Float[jax.Array, "b h w c"]
Pixels = UInt8[np.ndarray, "b F H W 3"]


class Maker(Protocol):
    """What a session needs of a `nova_jax.pipeline.NovaPipeline`."""

    config: NovaConfig
    schedule: Schedule
    codec: VideoCodec
    text_encoder: TextEncoder | None
    placement: Placement

    @property
    def fingerprint(self) -> str:
        """What tells the model from others."""

    def encode(self, request: Request, batch: Batch) -> dict[str, Any]:
        """What the samples of a batch are made from."""

    def conditions(self, prompts: Sequence[Prompt], flow: float) -> Conditions:
        """Conditions of prompts."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A prompt that goes over into another one.

    Attributes:
        old: what the frames before it were made from.
        new: what they become.
        over: frames from the one to the other.
        done: of them, those that were made.
    """

    old: Conditions
    new: Conditions
    over: int
    done: int = 0

    def conditions(self) -> Conditions:
        """Of the next frame: text features between those of both prompts."""
        share = (self.done + 1) / (self.over + 1)
        assert self.old.text is not None and self.new.text is not None
        assert self.old.text_length is not None and self.new.text_length is not None
        return dataclasses.replace(
            self.new,
            text=(1 - share) * self.old.text + share * self.new.text,
            text_length=jnp.maximum(self.old.text_length, self.new.text_length),
        )


class Session:
    """Videos that go on for as long as they are asked to; `NovaPipeline.start` makes one.

    Attributes:
        state: all that the next frame is made from.
        sampling: how frames are drawn.
        flow: motion score.
        prompts: one for each sample.
        frames: latent frames that were asked for, those among them that the videos begin with; it
            may go on beyond them. None after `resume`.
        on_step: called after each AR step, see `nova_jax.sampling.steps`; it is not saved.
        rewriter: what gives prompts in other words, those that come later too; it is not saved.
    """

    def __init__(
        self,
        pipeline: Maker,
        state: VideoState,
        sampling: SamplingConfig,
        flow: float,
        prompts: Sequence[Prompt],
        *,
        decoder: StreamDecoder | None = None,
        given: Float[jax.Array, "b g h w c"] | None = None,
        change: Change | None = None,
        frames: int | None = None,
        on_step: OnStep | None = None,
        rewriter: Rewriter | None = None,
    ) -> None:
        self.state, self.sampling, self.flow, self.prompts = state, sampling, flow, list(prompts)
        self._pipeline, self._decoder = pipeline, decoder or StreamDecoder()
        # Frames that the videos begin with, which nobody saw yet.
        self._given, self._change = given, change
        self.frames, self.on_step, self.rewriter = frames, on_step, rewriter

    @classmethod
    def of_request(cls, pipeline: Maker, request: Request) -> Session:
        """The session of all samples of a request, before anything is drawn.

        Raises:
            NovaError: the pipeline's devices cannot share so many samples, or there is a mask.
        """
        if request.edit is not None:
            raise NovaError(
                "a session begins with frames as they are; paint them by a call, and give what it "
                "makes as video="
            )
        batch = request.batches(1, all_take_part=False)[0]
        inputs = pipeline.encode(request, batch)
        state = begin(
            pipeline.config,
            inputs["conditions"],
            inputs["negative"],
            inputs["keys"],
            inputs["given"],
            request.order,
            request.noise,
            slots=request.sampling.slots(request.frames),
            context_noise=request.sampling.context_noise,
        )
        prompts = [request.prompts[prompt] for prompt in batch.prompts]
        return cls(
            pipeline,
            jax.device_put(state, _sharding(pipeline, len(prompts), request.sampling)),
            request.sampling,
            request.flow,
            prompts,
            given=inputs["given"],
            frames=request.frames,
            on_step=request.on_step,
            rewriter=request.rewriter,
        )

    def __len__(self) -> int:
        return len(self.state)

    @property
    def takes_text(self) -> bool:
        """Whether prompts are texts, and not class labels."""
        return self._pipeline.text_encoder is not None

    @property
    def pipeline(self) -> Maker:
        """What makes its frames."""
        return self._pipeline

    @property
    def frame(self) -> int:
        """Number of the next latent frame, from 0."""
        return int(self.state.frame[0])

    def latents(
        self, max_latent_frames: int | None = None
    ) -> Iterator[Float[jax.Array, "b h w c"]]:
        """As `stream`, but gives latent frames, and those alone that are drawn.

        Raises:
            NovaError: see `stream`.
        """
        left = max_latent_frames
        left = left if left is None else convert(Natural, left, "max_latent_frames")
        pipeline = self._pipeline
        mesh, model = pipeline.placement.shared(len(self), self.sampling.sampler)
        step = frame_by_frame(
            model,
            self.state,
            pipeline.schedule,
            self.sampling,
            self.on_step,
            parallelism=pipeline.placement.parallelism(mesh),
        )
        while left is None or left > 0:
            state, latents = step(self.ready(), None)
            self.advanced(state)
            left = left if left is None else left - 1
            yield latents

    def ready(self) -> VideoState:
        """The state that the next frame is made from; its conditions may lie between two prompts.

        Raises:
            NovaError: there is no place for more frames.
        """
        if self.state.slots < 3 and self.frame >= self.state.slots:
            raise NovaError(
                f"a session of {self.state.slots} latent frames has no place for more; start "
                "it with max_latent_length (num_frames) of at least 3"
            )
        if self._change is not None:
            self.state = dataclasses.replace(self.state, conditions=self._change.conditions())
        return self.state

    def advanced(self, state: VideoState) -> None:
        """Takes the state after the next frame."""
        self.state = state
        if self._change is None:
            return
        change = dataclasses.replace(self._change, done=self._change.done + 1)
        self._change = change if change.done < change.over else None
        if self._change is None:
            self.state = dataclasses.replace(state, conditions=change.new)

    def show(
        self, latents: Float[jax.Array, "b h w c"] | None
    ) -> Iterator[UInt8[np.ndarray, "b F H W 3"]]:
        """The pixels that come with a latent frame; with None, those of a window that is not full.

        What the videos begin with comes first.
        """
        codec = self._pipeline.codec
        if self._given is not None:
            given, self._given = self._given, None
            self._decoder, ready = self._decoder.push(codec, given)
            yield from map(_pixels, ready)
        if latents is None:
            self._decoder, ready = self._decoder.flush(codec)
        else:
            self._decoder, ready = self._decoder.push(codec, latents[:, None])
        yield from map(_pixels, ready)

    def stream(
        self, max_latent_frames: int | None = None
    ) -> Iterator[UInt8[np.ndarray, "b F H W 3"]]:
        """Goes on, and gives pixels as they come; the caller may stop at any frame and go on later.

        A codec with windows in time gives the pixels of a window when it is full, the same as at
        once of the whole video. What the videos begin with comes first.

        Args:
            max_latent_frames: latent frames to draw; without an end by default.

        Raises:
            NovaError: there is no place for more frames, or the sampler does not run here.
        """
        for latents in self.latents(max_latent_frames):
            yield from self.show(latents)
        yield from self.show(None)

    def prompt(self, prompt: str | int | Sequence[str] | Sequence[int], over: int = 0) -> Session:
        """Changes what is shown, from the next frame on; those before it stay as they are.

        What is looked back at is described anew under the new prompt (LongLive, arXiv 2509.22622,
        section 3.2, keeps a cache that has to be recomputed for it).

        Args:
            prompt: one for all samples, or one for each.
            over: frames that lie between the prompts: their text features go over from one to the
                other.

        Returns:
            The session itself.

        Raises:
            NovaError: there are as many prompts neither as one nor as samples, or they are none.
        """
        config, encoder = self._pipeline.config, self._pipeline.text_encoder
        given = check_prompts(prompt, None, "prompt", config)
        if len(given) not in (1, len(self)):
            raise NovaError(f"{len(given)} prompts for {len(self)} samples; give one, or one each")
        over = convert(Natural, over, "over")
        if over and encoder is None:
            raise NovaError("classes do not go over into each other; leave over out")
        given = given * len(self) if len(given) == 1 else given
        read = in_other_words(given, self.rewriter, encoder, config) or given
        self.prompts, new = given, self._pipeline.conditions(read, self.flow)
        new = jax.device_put(new, _sharding(self._pipeline, len(self), self.sampling))
        self._change = Change(self.state.conditions, new, over) if over else None
        if not over:
            self.state = dataclasses.replace(self.state, conditions=new)
        return self

    def fork(self) -> Session:
        """Another session with the same past; from here on both go their own way."""
        return copy.copy(self)

    def reseed(self, seed: int | Sequence[int]) -> Session:
        """Draws what follows with another seed, one for all samples or one for each.

        Returns:
            The session itself.

        Raises:
            NovaError: a seed is none, or there are as many neither as one nor as samples.
        """
        keys = jnp.stack([sample_key(key, 0) for key in check_seeds(seed, None, len(self))])
        keys = jax.device_put(keys, _sharding(self._pipeline, len(self), self.sampling))
        order, noise = draws(self._pipeline.config, keys)
        self.state = dataclasses.replace(self.state, keys=keys, order=order, noise=noise)
        return self

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes the session, to be gone on with by `NovaPipeline.resume`.

        Raises:
            NovaError: the file exists, or cannot be written.
        """
        path = new_output(file)
        parts = {
            "state": self.state,
            "waiting": self._decoder.waiting,
            "given": self._given,
            "old": self._change and self._change.old,
            "new": self._change and self._change.new,
        }
        about = {
            "model": self._pipeline.fingerprint,
            "sampling": dataclasses.asdict(self.sampling),
            "flow": self.flow,
            "prompts": [p if isinstance(p, str | int) else None for p in self.prompts],
            "decoder": [self._decoder.shown, self._decoder.first],
            "change": [self._change.over, self._change.done] if self._change else None,
        }
        session_file.write(path, about, parts)

    @classmethod
    def resume(cls, pipeline: Maker, file: str | os.PathLike[str]) -> Session:
        """The session that `save` wrote, on this pipeline's devices.

        Raises:
            NovaError: the file is none of a session, is damaged, or is of another model.
        """
        about, arrays = session_file.read(file)
        if about["model"] != pipeline.fingerprint:
            raise NovaError(
                f"{file} is a session of another model, or of the same one in another dtype; "
                "load the one that it was saved with"
            )

        def part(name: str, kind: Callable[[Mapping[str, np.ndarray]], Any]) -> Any:
            fields = {k[len(name) :]: v for k, v in arrays.items() if k.startswith(name)}
            return jax.device_put(kind(fields), sharding) if fields else None

        try:
            sampling = from_dict(SamplingConfig, about["sampling"], "sampling")
            samples = len(arrays["state.frame"])
            sharding = _sharding(pipeline, samples, sampling)
            state = part("state", partial(session_file.state_of, pipeline.config))
            change, old, new = (
                about["change"],
                part("old", conditions_of),
                part("new", conditions_of),
            )
            return cls(
                pipeline,
                state,
                sampling,
                float(about["flow"]),
                about["prompts"],
                decoder=StreamDecoder(part("waiting", array_of), *about["decoder"]),
                given=part("given", array_of),
                change=None if change is None else Change(old, new, *change),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise NovaError(f"{file} is damaged ({error}); restore it from a copy") from error


def _sharding(pipeline: Maker, samples: int, sampling: SamplingConfig) -> NamedSharding:
    """Where so many samples lie."""
    return batch_sharding(pipeline.placement.shared(samples, sampling.sampler)[0])


@jax.jit
def _to_pixels(frames: Float[Array, "b F H W 3"]) -> UInt8[Array, "b F H W 3"]:
    return to_uint8(frames)


def _pixels(frames: Float[Array, "b F H W 3"]) -> Pixels:
    """Frames for people.

    Raises:
        NovaError: some number in them is not finite.
    """
    if not bool(jnp.isfinite(frames).all()):
        raise NovaError("pixels are not finite; compute in float32, or with less guidance")
    return np.asarray(_to_pixels(frames))
