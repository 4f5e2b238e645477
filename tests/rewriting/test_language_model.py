"""A rewriter by a language model: small ones that transformers loads as it loads any other.

The weights are by hand, so that what is said is known: each word has one that follows it, and the
model goes on from the last word of the prompt.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nova_jax.errors import NovaError
from nova_jax.rewriting import chat
from nova_jax.rewriting.instructions import PICTURE, VIDEO
from nova_jax.rewriting.language_model import LanguageModelRewriter

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
END = "<end>"
NUMBERS = (" one", " two", " three", " four")
#: What follows a token; of several each is as probable.
NEXT = {
    "seven": ["Rewritten"], "Rewritten": [" prompt:"], " prompt:": [' "A'], ' "A': [" digit"],
    " digit": [' glides."'], ' glides."': [END], "nothing": [END], "forever": [" and"],
    " and": [" on"], " on": [" and"], "dice": NUMBERS, **{one: (*NUMBERS, END) for one in NUMBERS},
}  # fmt: skip
SAID = "A digit glides."
#: A token whose number the model has no row for.
BEYOND = "beyond"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def build(directory: Path, template: str = TEMPLATE) -> str:
    """Writes the model, whose last layer has the tokens that follow in a token's column."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({END: 0} | {c: i for i, c in enumerate(alphabet, 1)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=END)
    words = dict.fromkeys([*NEXT, *(word for words in NEXT.values() for word in words)])
    tokenizer.add_tokens([word for word in words if word != END])
    size = len(tokenizer)
    tokenizer.add_tokens([BEYOND])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=size, hidden_size=4 * size, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, eos_token_id=0, bos_token_id=None,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        model.model.embed_tokens.weight.copy_(torch.eye(size, 4 * size))
        for word, following in NEXT.items():
            for other in following:
                row, column = tokenizer.convert_tokens_to_ids([other, word])
                model.lm_head.weight[row, column] = 10.0
    model.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return build(tmp_path_factory.mktemp("model"))


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache.jsonl"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(chat, "MOST_TOKENS", 40)


def test_prompts_become_what_the_model_says(model, cache, caplog):
    rewriter = LanguageModelRewriter(model, cache=cache)
    assert rewriter(["a red seven", "seven"]) == [SAID] * 2
    assert not caplog.text and not rewriter.kept


def test_what_fails_stays_as_it_is_and_is_counted(model, cache, caplog):
    prompts = ["a seven", "nothing", "go on forever", BEYOND, "say nothing"]
    rewriter = LanguageModelRewriter(model, cache=cache)
    assert rewriter(prompts) == [SAID, *prompts[1:]]
    assert "4 of 5 prompts stay as they are: 2 empty, 1 longer than 512 tokens, 1 failed (" in (
        caplog.text
    )
    assert rewriter.kept.total() == 4
    entries = [json.loads(line) for line in cache.read_text().splitlines()]
    assert [entry["prompt"] for entry in entries] == [p for p in prompts if p != BEYOND]


def test_answers_are_kept_and_need_neither_model_nor_torch(model, cache, monkeypatch):
    LanguageModelRewriter(model, cache=cache)(["seven"])
    monkeypatch.setitem(sys.modules, "torch", None)
    assert LanguageModelRewriter(model, cache=cache)(["seven"]) == [SAID]
    with pytest.raises(NovaError, match="needs torch; pip install 'nova_jax.torch.'"):
        LanguageModelRewriter(model, cache=cache)(["a seven"])


def test_an_answer_belongs_to_model_instructions_and_seed(model, cache, tmp_path):
    """Files of a model tell it from others, wherever they lie."""
    other = shutil.copytree(model, tmp_path / "other")
    same = [LanguageModelRewriter(place, cache=cache) for place in (model, str(other))]
    assert same[0].model == same[1].model
    changed = json.loads((other / "generation_config.json").read_text()) | {"top_k": 3}
    (other / "generation_config.json").write_text(json.dumps(changed))
    rewriters = [
        *same,
        LanguageModelRewriter(model, cache=cache, instructions=PICTURE),
        LanguageModelRewriter(model, cache=cache, seed=0),
        LanguageModelRewriter(model, cache=cache, seed=1),
        LanguageModelRewriter(str(other), cache=cache),
    ]
    for rewriter in rewriters:
        rewriter(["seven"])
    assert len(cache.read_text().splitlines()) == 5
    assert VIDEO != PICTURE


def test_sampled_answers_are_those_of_their_seed(model, tmp_path):
    """Whatever was drawn before, and whatever else is asked; torch's own numbers stay."""
    import torch

    def said(seed, prompts):
        torch.rand(len(prompts))
        before = torch.get_rng_state()
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        asked = {"seed": seed, "cache": folder / "cache.jsonl", "instructions": "Write."}
        answers = LanguageModelRewriter(model, **asked)(prompts)
        assert torch.equal(torch.get_rng_state(), before)
        return answers

    prompts = [f"{n} dice" for n in range(5)]
    seven = said(7, prompts)
    assert said(7, prompts[::-1]) == seven[::-1]
    assert said(7, prompts[:1]) == seven[:1]
    assert said(8, prompts) != seven
    assert len(set(seven)) > 1 and seven != prompts


def test_a_template_without_instructions_has_them_in_the_message(cache, tmp_path):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    model = build(tmp_path / "refusing", refusing + TEMPLATE)
    assert LanguageModelRewriter(model, cache=cache)(["seven"]) == [SAID]


def test_a_model_is_freed_and_loaded_again(model, cache):
    rewriter = LanguageModelRewriter(model, cache=cache)
    for prompt in ("seven", "a seven"):
        assert rewriter([prompt]) == [SAID]
        assert rewriter._chat is not None
        rewriter.close()
        assert rewriter._chat is None


def test_what_is_no_instruct_model_is_one_line(model, cache, tmp_path):
    def refused(source, message):
        with pytest.raises(NovaError, match=message) as raised:
            LanguageModelRewriter(str(source), cache=cache)(["seven"])
        assert "\n" not in str(raised.value)

    refused(tmp_path / "nowhere", "there is no directory")
    refused(build(tmp_path / "base", ""), "no instruct model .* no chat template.*; give another")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no instruct model that transformers can load")
    foreign = shutil.copytree(model, tmp_path / "foreign")
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = json.loads((foreign / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": code}
    (foreign / "config.json").write_text(json.dumps(config))
    (foreign / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(foreign, "no instruct model that transformers can load")
    assert not (tmp_path / "ran").exists()
    pickled = shutil.copytree(model, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, "no instruct model that transformers can load")


def test_generate_rewrites_names_by_the_prompt_and_replays(model, untrained, tmp_path):
    """A second run with what the first one wrote makes the same picture without the model."""
    command = [sys.executable, "-m", "nova_jax.generate", f"--checkpoint={untrained}", "--frames=1"]
    command += ["--prompt=a red seven"]

    def run(*flags):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done

    first = run(f"--rewrite={model}", f"--out={tmp_path / 'first'}")
    said, picture = map(Path, first.stdout.splitlines())
    assert "rewriting: 100%" in first.stderr
    assert picture.name == "a-red-seven_seed0.png"
    assert said.read_text() == '{"prompt": "a red seven", "rewritten": "A digit glides."}\n'
    assert (Path(os.environ["XDG_CACHE_HOME"]) / "nova_jax" / "rewritten.jsonl").exists()
    second = run(f"--rewritten={said}", f"--out={tmp_path / 'second'}")
    again = Path(second.stdout.splitlines()[1])
    assert again.name == picture.name and again.read_bytes() == picture.read_bytes()
