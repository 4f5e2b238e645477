"""An instruct model, as transformers runs it: instructions and a message in, its answer out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from nova_jax.errors import NovaError

#: Tokens of an answer: more than twice of what the instructions ask for.
MOST_TOKENS = 512
# What a model needs beside its weights: activations and the cache of so many tokens, in bytes.
_ROOM = 2 << 30


class Chat:
    """A causal language model with a chat template, in the type that its files have.

    No code that comes with a model is run, and no file is unpickled.

    Args:
        directory: of the model and its tokenizer.
        device: as torch calls it, such as "cuda:1"; None for the GPU if the model finds room on it
            beside what is there already, and the CPU otherwise.

    Raises:
        NovaError: torch is not installed, or transformers cannot load a model that chats from
            there.
    """

    def __init__(self, directory: Path, device: str | None = None) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise NovaError(
                "rewriting by a language model needs torch; pip install 'nova_jax[torch]', or give "
                "rewritten prompts in a file"
            ) from error
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(directory), **options)
            if not self.tokenizer.chat_template:
                raise ValueError("its tokenizer has no chat template")
            model = AutoModelForCausalLM.from_pretrained(
                str(directory), use_safetensors=True, **options
            )
        except Exception as error:  # transformers has no one exception for it
            reason = " ".join(str(error).split())[:200]
            raise NovaError(
                f"{directory} is no instruct model that transformers can load ({reason}); give "
                "another one"
            ) from error
        self._torch = torch
        self.model = model.to(device or self._free_device(model.get_memory_footprint())).eval()

    def _free_device(self, size: int) -> str:
        cuda = self._torch.cuda
        return "cuda" if cuda.is_available() and cuda.mem_get_info()[0] > size + _ROOM else "cpu"

    def answer(self, instructions: str, message: str, seed: int | None) -> str | None:
        """What the model answers; None if it does not come to an end within `MOST_TOKENS`.

        Args:
            instructions, message: what it is told, and what it is asked.
            seed: None for the most probable token at each step; a number for tokens drawn, as the
                model's generation_config.json says, the same for the same number.
        """
        torch, config = self._torch, copy.deepcopy(self.model.generation_config)
        config.update(max_new_tokens=MOST_TOKENS, max_length=None, do_sample=seed is not None)
        if seed is None:
            config.update(temperature=None, top_p=None, top_k=None)
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.eos_token_id
        inputs = self._inputs(instructions, message).to(self.model.device)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed or 0)
            tokens = self.model.generate(**inputs, generation_config=config)
        said = tokens[0, inputs["input_ids"].shape[1] :]
        return None if len(said) >= MOST_TOKENS else self.tokenizer.decode(said, True)

    def _inputs(self, instructions: str, message: str) -> Any:
        """Tokens of a chat; a template that knows no instructions has them in the message."""
        one = {"role": "user", "content": message}
        both = {"role": "user", "content": f"{instructions}\n\n{message}"}
        # Models that think first are asked not to; templates pass over what they do not know.
        options: dict[str, Any] = {"add_generation_prompt": True, "enable_thinking": False}
        options |= {"return_tensors": "pt", "return_dict": True}
        try:
            chat = [{"role": "system", "content": instructions}, one]
            return self.tokenizer.apply_chat_template(chat, **options)
        except Exception:  # whatever a template raises
            return self.tokenizer.apply_chat_template([both], **options)
