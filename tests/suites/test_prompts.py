"""Prompts of the suites become files as their scorers read them; other versions are refused."""

import json
import re

import pytest
import small_suites

from nova_jax.errors import NovaError
from nova_jax.suites import dpg, geneval, t2i_compbench, vbench
from nova_jax.suites.interface import sample_seed
from nova_jax.suites.registry import SUITES

#: Suites whose prompts are in a clone of their repository.
OF_CLONES = [name for name in SUITES if name != "digits"]


@pytest.fixture
def clones(tmp_path):
    return small_suites.write_clones(tmp_path / "clones")


def paths(items):
    return [target.path for item in items for target in item.targets]


def test_geneval_has_a_folder_a_prompt_with_its_line(clones):
    read = SUITES["geneval"].prompts(clones, list(geneval.TASKS), verify=False)
    bench, clocks, cow = read.items
    assert bench.prompt == "a photo of a bench"
    assert [target.path for target in clocks.targets] == [
        f"images/00001/samples/0000{i}.png" for i in range(4)
    ]
    assert cow.metadata == {"images/00002/metadata.jsonl": f"{small_suites.GENEVAL[2]}\n".encode()}
    assert json.loads(cow.metadata["images/00002/metadata.jsonl"])["tag"] == "colors"
    (alone,) = SUITES["geneval"].prompts(clones, ["colors"], verify=False).items
    assert alone == cow  # it keeps its number


def test_compbench_numbers_the_samples_of_a_category(clones):
    read = SUITES["t2i_compbench"].prompts(clones, ["color", "shape"], verify=False)
    names = paths(read.items)
    assert len(names) == len(set(names)) == 2 * 2 * 10
    assert names[0] == "color/samples/a green bench and a blue bowl_000000.png"
    assert names[19] == "color/samples/a red cup_000019.png"
    assert names[20] == "shape/samples/a green bench and a blue bowl_000000.png"
    # As its scorers read names: BLIP_vqa.py.
    for category in ("color", "shape"):
        files = sorted(
            (name.rpartition("/")[2] for name in names if name.startswith(category)),
            key=lambda name: int(name.split("_")[-1].split(".")[0]),
        )
        assert [file.split("_")[0] for file in files] == [
            prompt for prompt in small_suites.COMPBENCH for _ in range(10)
        ]


def test_dpg_has_one_grid_a_prompt(clones):
    items = {item.targets[0].path: item for item in SUITES["dpg"].prompts(
        clones, ["all"], verify=False).items}  # fmt: skip
    assert items.keys() == {"images/7.png", "images/whoops3.png"}
    assert items["images/whoops3.png"].prompt == "Another one, with a dog."
    assert items["images/7.png"].targets[0].samples == (0, 1, 2, 3)


def test_vbench_draws_a_prompt_once_and_25_times_for_flicker(clones):
    suite = SUITES["vbench"]
    sign, cat = suite.prompts(clones, suite.parts, verify=False).items
    assert paths([sign]) == [f"videos/In a still frame, a stop sign-{i}.mp4" for i in range(25)]
    assert paths([cat]) == [f"videos/a cat, oil painting-{i}.mp4" for i in range(5)]
    assert suite.prompts(clones, ["imaging_quality"], verify=False).items == [cat]
    # As its scorer reads names: vbench/utils.py.
    assert {re.sub(r"-\d+$", "", path[len("videos/") : -4]) for path in paths([sign, cat])} == {
        entry["prompt_en"] for entry in small_suites.VBENCH
    }


def test_counts_are_those_of_the_papers():
    assert sum(geneval.TASKS.values()) == geneval.PROMPTS.count == 553
    assert geneval.PROMPTS.count * geneval.SAMPLES == 2212
    # Eleven files, of which some dimensions share one.
    shared = ("background_consistency", "motion_smoothness", "dynamic_degree", "aesthetic_quality",
              "imaging_quality")  # fmt: skip
    assert sum(n for d, n in vbench.COUNTS.items() if d not in shared) == vbench.PROMPTS.count
    assert tuple(vbench.COUNTS) == SUITES["vbench"].parts
    assert len(t2i_compbench.CATEGORIES) == 8 and dpg.PROMPTS.count == 1065


@pytest.mark.parametrize("name", OF_CLONES)
def test_other_versions_are_refused_with_what_was_found_and_expected(clones, name):
    suite = SUITES[name]
    parts = ["color"] if name == "t2i_compbench" else suite.parts
    with pytest.raises(NovaError) as error:
        suite.prompts(clones, parts, verify=True)
    found = {"geneval": 3, "t2i_compbench": 2, "dpg": 2, "vbench": 3}[name]
    expected = {"geneval": 553, "t2i_compbench": 300, "dpg": 1065, "vbench": 946}[name]
    message = str(error.value)
    assert str(clones) in message and f"another version: {found} prompts with SHA-256" in message
    assert f"expected {expected} with" in message and suite.source in message
    assert "--other_prompts" in message


def test_checksums_are_those_of_sha256sum(clones):
    read = SUITES["geneval"].prompts(clones, list(geneval.TASKS), verify=False)
    # sha256sum prompts/evaluation_metadata.jsonl; LC_ALL=C sha256sum *.txt | sha256sum
    assert read.sha256 == "0e6bfbb052cfabec665261caa06666a23ecea16e68ead6ba4088f539a71bd1d0"
    assert (
        SUITES["dpg"].prompts(clones, ["all"], verify=False).sha256
        == "72b569e76a522c948e42cadf187b0637d81b43556d33272411fe8278581b38e6"
    )


@pytest.mark.parametrize("name", OF_CLONES)
@pytest.mark.parametrize("verify", [True, False])
def test_prompts_that_are_not_there_are_named(tmp_path, name, verify):
    suite = SUITES[name]
    with pytest.raises(NovaError, match="--prompts is missing; give a clone of github.com/"):
        suite.prompts(None, suite.parts, verify=verify)
    with pytest.raises(NovaError, match=f"{tmp_path} has no .*; --prompts is a clone of github"):
        suite.prompts(tmp_path, suite.parts, verify=verify)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("geneval", "prompts/evaluation_metadata.jsonl", "a photo of a bench\n"),
        ("geneval", "prompts/evaluation_metadata.jsonl", '{"tag": "new", "prompt": "x"}'),
        ("geneval", "prompts/evaluation_metadata.jsonl", '{"tag": "colors"}'),
        ("geneval", "prompts/evaluation_metadata.jsonl", "\n"),
        ("t2i_compbench", "examples/dataset/color_val.txt", "a_b\n"),
        ("t2i_compbench", "examples/dataset/color_val.txt", ""),
        ("dpg", "dpg_bench/prompts/7.txt", "  \n"),
        ("vbench", "vbench/VBench_full_info.json", "[1]"),
        ("vbench", "vbench/VBench_full_info.json", '[{"prompt_en": "x", "dimension": ["y"]}]'),
    ],
)
def test_files_that_hold_something_else_are_named(clones, name, file, content):
    (clones / file).write_text(content)
    parts = ["color"] if name == "t2i_compbench" else SUITES[name].parts
    with pytest.raises(NovaError, match=f"{clones}.* holds no prompt") as error:
        SUITES[name].prompts(clones, parts, verify=False)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_named(clones):
    (clones / "vbench" / "VBench_full_info.json").write_bytes(b"\xff\xfe\0")
    with pytest.raises(NovaError, match="VBench_full_info.json holds no prompts of this suite"):
        SUITES["vbench"].prompts(clones, ["scene"], verify=False)


def test_the_folder_of_the_file_will_do(clones):
    inner = SUITES["geneval"].prompts(clones / "prompts", ["colors"], verify=False)
    assert inner == SUITES["geneval"].prompts(clones, ["colors"], verify=False)


def test_seeds_are_of_the_prompt_and_the_number_alone():
    """The first eight digits of: printf 'SEED\\nSAMPLE\\nPROMPT' | sha256sum"""
    assert sample_seed("a photo of a bench", 0) == 0xED739B9F
    assert sample_seed("a photo of a bench", 3, seed=7) == 0x4E647091
    seeds = {sample_seed(f"prompt {p}", s) for p in range(500) for s in range(4)}
    assert len(seeds) > 1995 and 0 <= min(seeds) and max(seeds) < 2**32
