"""Scores out of what scorers write: their own aggregates, published rows, and partial tables."""

import json
import random

import pytest
from small_suites import SIXTHS, geneval_lines

from nova_jax.errors import NovaError
from nova_jax.suites import dpg, geneval, report, t2i_compbench, vbench
from nova_jax.suites.dpg import Question
from nova_jax.suites.paper import TABLES
from nova_jax.suites.registry import SUITES


def vbench_results(scores, less=()):
    """As `VBench.evaluate` writes them; one video less of some dimensions."""
    return {
        name: [score, [{"video_path": "x", "video_results": score}] * (5 * count - (name in less))]
        for name, score in scores.items()
        for count in [vbench.COUNTS[name]]
    }


@pytest.fixture
def read(tmp_path):
    def read(name, content, *more, folder=""):
        files = []
        for index, text in enumerate((content, *more)):
            file = tmp_path / folder / str(index or "") / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text if isinstance(text, str) else json.dumps(text))
            files.append(str(file))
        return report.read(files, SUITES, None)

    return read


def only(found):
    ((_, suites),) = found.scores.items()
    ((_, scores),) = suites.items()
    return scores


def test_geneval_is_the_mean_of_its_tasks(read):
    scores = only(read("results.jsonl", "\n".join(geneval_lines(SIXTHS))))
    assert scores.missing == []
    for task, share in SIXTHS.items():
        assert scores.values[f"geneval.{task}"] == pytest.approx(share, abs=0.003)
    assert scores.values["geneval.overall"] == pytest.approx(2.7 / 6, abs=0.002)
    # Tasks differ in size: the mean over pictures is another.
    weights = geneval.TASKS
    pictures = sum(SIXTHS[t] * n for t, n in weights.items()) / 553
    assert scores.values["geneval.pictures"] == pytest.approx(pictures, abs=0.002)


@pytest.mark.parametrize("row", TABLES[0].rows, ids=lambda row: row.label)
def test_published_geneval_rows_are_means_of_their_tasks(row):
    """All numbers have two digits: six of 0.005 at most, and the mean's own."""
    tasks = {task: row.values[f"geneval.{task}"] for task in geneval.TASKS}
    assert geneval.overall(tasks) == pytest.approx(row.values["geneval.overall"], abs=0.01)


@pytest.mark.parametrize("row", TABLES[3].rows, ids=lambda row: row.label)
def test_published_vbench_totals_follow_from_quality_and_semantics(row):
    quality, semantic = row.values["vbench.quality"], row.values["vbench.semantic"]
    assert vbench.total(quality, semantic) == pytest.approx(row.values["vbench.total"], abs=0.005)


#: Scores drawn at random, and what scripts/cal_final_score.py of VBench at 45e79ec prints of them.
DIMENSIONS = {
    "subject_consistency": 0.678, "background_consistency": 0.8093, "temporal_flickering": 0.9241,
    "motion_smoothness": 0.9807, "dynamic_degree": 0.7399, "aesthetic_quality": 0.9223,
    "imaging_quality": 0.029, "object_class": 0.4656, "multiple_objects": 0.9434,
    "human_action": 0.649, "color": 0.9009, "spatial_relationship": 0.1132, "scene": 0.3857,
    "appearance_style": 0.0711, "temporal_style": 0.1979, "overall_consistency": 0.2089,
}  # fmt: skip
OFFICIAL = {"quality": 68.05393316047774, "semantic": 54.50501858311895, "total": 65.34415024500598}


def test_vbench_totals_are_those_of_its_own_script(read):
    half = dict(list(DIMENSIONS.items())[:7]), dict(list(DIMENSIONS.items())[7:])
    scores = only(read("m_eval_results.json", *map(vbench_results, half)))
    for name, value in OFFICIAL.items():
        assert scores.values[f"vbench.{name}"] == pytest.approx(value, abs=1e-9)
    assert scores.values["vbench.scene"] == pytest.approx(38.57)


def test_a_partial_vbench_is_not_totalled(read):
    scores = only(read("m_eval_results.json", vbench_results(DIMENSIONS, less=["scene"])))
    assert scores.missing == ["VBench scene: 429 of 430 videos"]
    assert "vbench.quality" in scores.values
    assert not {"vbench.scene", "vbench.semantic", "vbench.total"} & scores.values.keys()


def test_dimensions_of_vbench_that_are_not_there_are_named(read):
    some = {name: DIMENSIONS[name] for name in DIMENSIONS if name != "dynamic_degree"}
    scores = only(read("m_eval_results.json", vbench_results(some)))
    assert scores.missing == ["VBench dynamic_degree"]
    assert "vbench.semantic" in scores.values and "vbench.total" not in scores.values


def test_vbench_scorers_that_leave_videos_out_do_not_make_a_table_partial(read):
    scores = only(
        read("m_eval_results.json", vbench_results(DIMENSIONS, ["temporal_flickering", "color"]))
    )
    assert not scores.missing and "vbench.total" in scores.values
    assert scores.notes == [
        "VBench temporal_flickering: the scorer took 374 of 375 videos",
        "VBench color: the scorer took 424 of 425 videos",
    ]


def test_a_partial_geneval_is_not_totalled(read):
    scores = only(read("results.jsonl", "\n".join(geneval_lines(SIXTHS)[:-1])))
    assert scores.missing == ["GenEval color_attr: 399 of 400 pictures"]
    assert "geneval.position" in scores.values and "geneval.overall" not in scores.values


def test_compbench_is_a_mean_over_3000_pictures(read):
    answers = [{"question_id": i, "answer": f"{i / 2999:.4f}"} for i in range(3000)]
    scores = only(read("vqa_result.json", answers, folder="color/annotation_blip"))
    assert scores.values == {"t2i_compbench.color": pytest.approx(50, abs=0.01)}
    partial = only(read("vqa_result.json", answers[:-1], folder="shape/annotation_blip"))
    assert partial.missing == ["T2I-CompBench shape: 2999 of 3000 pictures"]
    text = only(read("blip_vqa_score.txt", "BLIP-VQA score:0.7075", folder="texture"))
    assert text.values == {"t2i_compbench.texture": pytest.approx(70.75)}
    assert text.notes and not text.missing


def dpg_lines(count, skip=(dpg.LEFT_OUT,)):
    names = [name for name in (*(f"x{i}" for i in range(count)), *skip)][:count]
    rng, lines = random.Random(0), []
    for name in names:
        scores = [rng.random() for _ in range(4)]
        values = ", ".join(map(str, [*scores, sum(scores) / 4]))
        lines.append(f"/a, b/{name}.png, {values}")
    return lines


SUMMARY = [
    "Model: images", "L1 category scores:", "\tentity: 80.5", "\tglobal: 70.25",
    "L2 category scores:", "\tentity - whole: 80.0", "DPG-Bench score: 1",
]  # fmt: skip


def test_dpg_is_a_mean_over_the_prompts_that_its_scorer_takes(read):
    lines = dpg_lines(1064, skip=())
    scores = only(read("dpg-bench_1_results.txt", "\n".join([*lines, *SUMMARY])))
    expected = sum(float(line.rpartition(", ")[2]) for line in lines) / 1064
    assert scores.values["dpg.overall"] == pytest.approx(100 * expected)
    assert scores.values["dpg.entity"] == 80.5 and scores.values["dpg.global"] == 70.25
    assert any("without partiprompts97" in note for note in scores.notes)
    partial = only(read("dpg-bench_1_results.txt", "\n".join([*lines[1:], *SUMMARY])))
    assert partial.missing == ["DPG-Bench: 1063 of 1065 prompts"] and not partial.values


QUESTIONS = {
    "boat": {
        1: Question("Is there a boat?", (), "entity - whole"),
        2: Question("Is it red?", (1,), "attribute - color"),
        3: Question("Is its sail torn?", (1, 2), "entity - part"),
        4: Question("Is it a photo?", (), "global"),
    }
}


def test_a_yes_counts_only_below_a_yes():
    """By hand: 1 no: 2 and 3 count for nothing; then 2 no: 3 counts for nothing."""
    first = {1: False, 2: True, 3: True, 4: True}
    second = {1: True, 2: False, 3: True, 4: False}
    third = {1: True, 2: True, 3: True, 4: True}
    overall, categories = dpg.tree(QUESTIONS, {"boat": [first, second, third, second]})
    assert overall == pytest.approx((1 / 4 + 1 / 4 + 1 + 1 / 4) / 4)
    # Of the last picture, and of answers as they were given: that the sail is torn is a yes.
    assert categories == {"entity": 1.0, "attribute": 0.0, "global": 0.0}


def test_dpg_is_computed_from_questions_and_answers(tmp_path):
    """The first row of the table is passed over, as the scorer does, and so is its prompt."""
    table = ["item_id,proposition_id,dependency,tuple,question_natural_language"]
    table += ["gone,1,0,entity - whole (x),Is there an x?", "gone,2,1,global (),Is it big?"]
    table += [
        f'boat,{number},"{", ".join(map(str, q.parents or (0,)))}",{q.category} (boat),{q.text}'
        for number, q in QUESTIONS["boat"].items()
    ]
    (tmp_path / "q.csv").write_text("\n".join(table))
    questions = dpg.read_questions(tmp_path / "q.csv")
    assert questions == QUESTIONS
    tiles = ["0, 0, 8, 8", "8, 0, 16, 8"]
    lines = [
        f"/some, where/boat.png, ({tile}), {question.text}, {answer}"
        for tile, answer in zip(tiles, ("yes", "no"), strict=True)
        for question in QUESTIONS["boat"].values()
    ]
    answers = tmp_path / "detail.txt"
    answers.write_text("\n".join([*lines, "/x/gone.png, (0, 0, 8, 8), Is it big?, yes"]))
    found = dpg.read_answers(answers, questions)
    assert found == {"boat": [dict.fromkeys(range(1, 5), True), dict.fromkeys(range(1, 5), False)]}
    answers.write_text("\n".join(lines[1:]))
    with pytest.raises(NovaError, match="no answer of boat to 'Is there a boat\\?'"):
        dpg.read_answers(answers, questions)


BROKEN = {
    "no json": ("results.jsonl", "nothing", "line 1, is no result of GenEval"),
    "no task": ("results.jsonl", '{"tag": "x", "correct": true}', "line 1, is no result"),
    "a number for a verdict": (
        "results.jsonl", '{"tag": "colors", "correct": 1, "prompt": "", "filename": ""}', "line 1"),
    "a picture twice": ("results.jsonl", "\n".join(geneval_lines(SIXTHS)[:1] * 2), "twice"),
    "no list": ("color/vqa_result.json", "{}", "is no result of T2I-CompBench"),
    "no category": ("vqa_result.json", "[]", "does not say its category"),
    "an answer twice": (
        "color/vqa_result.json", json.dumps([{"question_id": 1, "answer": 0}] * 2),
        "a question_id is there twice"),
    "another scorer's": (
        "color/annotation_clip/vqa_result.json", "[]", "that is in annotation_blip"),
    "no number": ("color/score.txt", "score avg:nan", "holds no score"),
    "no dimension": ("a_eval_results.json", '{"beauty": [1, []]}', "no dimension 'beauty'"),
    "not finite": ("a_eval_results.json", '{"scene": [NaN, []]}', "a score is not finite"),
    "not of videos": ("a_eval_results.json", '{"scene": 3}', "is no result of VBench"),
    "stopped": ("dpg-bench_1_results.txt", "x.png, 1, 1, 1, 1, 1", "has no summary at its end"),
    "one picture a prompt": ("dpg-bench_1_results.txt", "x.png, 1.0, 1.0", "with PIC_NUM=4"),
    "a grid twice": (
        "dpg-bench_1_results.txt", "x.png, 1, 1, 1, 1, 1\nx.png, 1, 1, 1, 1, 1", "has x twice"),
    "no result": ("notes.md", "", "is or has no result of a scorer of geneval, t2i_compbench"),
    "an empty folder": ("", "", "is or has no result of a scorer"),
    "no text": ("results.jsonl", b"\xff\xfe", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_result_is_named_in_one_line(tmp_path, name):
    file, content, said = BROKEN[name]
    path = tmp_path / file
    if file:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(NovaError, match=said) as error:
        report.read([str(path)], SUITES, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "folder"),
    [
        ("results.jsonl", "\n".join(geneval_lines(SIXTHS)), ""),
        ("x_eval_results.json", json.dumps(vbench_results({"scene": 0.5})), ""),
        ("vqa_result.json", '[{"question_id": 1, "answer": 0}]', "color"),
        ("dpg-bench_1_results.txt", "\n".join(SUMMARY), ""),
    ],
)
def test_two_results_of_one_thing_are_refused(read, name, content, folder):
    with pytest.raises(NovaError, match="both (of|have) .*; give one"):
        read(name, content, content, folder=folder)


def test_published_rows_have_what_the_paper_prints():
    """Every table has a value under every heading that was published, and no other."""
    counts = [[len(row.values) for row in table.rows] for table in TABLES]
    assert counts == [[11, 10, 11, 10, 11, 11, 11], [], [6] * 3, [10, 10], [3], []]
    for table in TABLES:
        keys = [column.key for column in table.columns]
        assert len(set(keys)) == len(keys)
        assert all(row.values.keys() <= set(keys) for row in table.rows)


@pytest.fixture
def runs(tmp_path):
    """Folders of two runs of one model, one with rewritten prompts, with their results."""
    for name, suite, rewriter in (("a", "geneval", None), ("b", "geneval", "Qwen"),
                                  ("c", "vbench", None)):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        record = {"suite": suite, "checkpoint": "mine", "preset": "paper", "rewriter": rewriter}
        (folder / "run.json").write_text(json.dumps(record))
    (tmp_path / "a" / "results.jsonl").write_text("\n".join(geneval_lines(SIXTHS)))
    better = SIXTHS | {"colors": 1.0}
    (tmp_path / "b" / "results.jsonl").write_text("\n".join(geneval_lines(better)[:-1]))
    (tmp_path / "c" / "scores").mkdir()
    results = tmp_path / "c" / "scores" / "m_eval_results.json"
    results.write_text(json.dumps(vbench_results(DIMENSIONS)))
    for shard, seconds in ((0, 10.0), (1, 30.0)):
        speed = {"samples": 4, "seconds": seconds, "batch_size": 2, "device": "X", "devices": 1}
        (tmp_path / "c" / f"speed-{shard}-of-2.json").write_text(json.dumps(speed))
    return tmp_path


def test_a_report_has_a_row_a_model_beside_the_papers(runs):
    found = report.read([str(runs)], SUITES, None)
    text = found.text().splitlines()
    assert text[0] == "Text to image"
    heading = text[1].split()
    assert heading == ["Color", "Shape", "Texture", "GenEval", "Single", "Two", "Counting",
                       "Colors", "Position", "ColorAttr", "DPG"]  # fmt: skip
    assert "NOVA 0.6B, 512 + Rewriter" in text[3] and "83.02" in text[3]
    (own,) = [line.split() for line in text if line.startswith("* mine, paper  ")][:1]
    assert own[:3] == ["*", "mine,", "paper"]
    assert own[3:] == ["–", "–", "–", "0.45", "0.50", "0.25", "1.00", "0.00", "0.75", "0.20", "–"]
    rewritten = next(line.split() for line in text if line.startswith("* mine, paper + Rewriter"))
    assert rewritten[5:] == ["–", "–", "–", "–", "0.50", "0.25", "1.00", "1.00", "0.75", "–", "–"]
    assert (
        "- mine, paper + Rewriter: no total without GenEval color_attr: 399 of 400 pictures" in text
    )
    videos = text[text.index("VBench") :]
    assert videos[2].split()[-10:] == ["78.48", "78.96", "76.57", "54.52", "91.36", "73.46",
                                       "91.20", "66.37", "50.16", "12.0"]  # fmt: skip
    assert videos[4].split()[3:6] == ["65.34", "68.05", "54.51"] and videos[4].endswith(" 5.0")
    assert any("measured while drawing: 5 on 1 x X, batch 2" in line for line in text)
    assert "DPG-Bench by category" not in text  # nothing was found of it


def test_a_report_is_the_same_in_markdown_and_json(runs):
    found = report.read([str(runs / "a"), str(runs / "c")], SUITES, None)
    files = report.as_files(found)
    lines = files["report.md"].decode().splitlines()
    assert lines[0] == "## Text to image" and lines[3] == f"|{'---|' * 12}"
    assert all(line.count("|") == 13 for line in lines[2:11])
    assert "| * mine, paper | – | – | – | 0.45 | 0.50 |" in files["report.md"].decode()
    data = json.loads(files["report.json"])
    pictures = data["tables"][0]
    assert pictures["published"]["NOVA 0.6B, 512"]["dpg.overall"] == 81.76
    assert pictures["found"]["mine, paper"]["geneval.position"] == 0.75
    assert data["scores"]["mine, paper"]["vbench"]["values"]["vbench.total"] == pytest.approx(
        OFFICIAL["total"]
    )


def test_results_in_the_folder_of_another_suite_are_refused(runs):
    (runs / "c" / "results.jsonl").write_text((runs / "a" / "results.jsonl").read_text())
    with pytest.raises(NovaError, match="is of geneval, and .*c was drawn for vbench"):
        report.read([str(runs / "c")], SUITES, None)


def test_results_that_are_not_there_are_named(tmp_path):
    with pytest.raises(NovaError, match="nowhere does not exist; check the path of the results"):
        report.read([str(tmp_path / "nowhere")], SUITES, None)


def test_folders_have_the_results_of_scorers_and_not_what_they_were_made_from(tmp_path):
    suite = SUITES["t2i_compbench"]
    for place in ("color/annotation1_blip/VQA/result", "color/annotation_blip",
                  "complex/annotation_blip", "complex/annotation_3_in_1"):  # fmt: skip
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / t2i_compbench.RESULTS).write_text("[]")
    found = [str(file.parent.relative_to(tmp_path)) for file in suite.results(tmp_path)]
    assert found == ["color/annotation_blip", "complex/annotation_3_in_1"]
