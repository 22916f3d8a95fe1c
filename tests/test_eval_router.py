"""`roundhouse eval-router`, by its files and what it prints."""

import json

import pytest
from typer.testing import CliRunner

from cluster.errors import ConfigError
from deployments.command.cli import app
from tests.test_prompt_router import CARDS

ASKED = [
    ("each friday at ten in the morning", "cron"),
    ("total value of orders from Paris", "sql"),
    ("merge main into my branch", "git"),
    ("tell me a joke about elephants", None),
    ("who wrote War and Peace?", None),
]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def files(tmp_path):
    cards = [{"name": name, "examples": examples} for name, examples in CARDS.items()]
    cards.append({"name": "Haiku & Co", "description": "Writes haiku poems about the seasons"})
    prompts = [{"input": text, "adapter": name} for text, name in ASKED]
    return {
        "--cards": write(tmp_path / "cards.jsonl", cards),
        "--prompts": write(tmp_path / "prompts.jsonl", prompts),
    }


def test_line_separators_inside_a_string_are_not_the_ends_of_lines(files, tmp_path):
    line = json.dumps({"input": "every monday\u2028at 7", "adapter": "cron"}, ensure_ascii=False)
    (tmp_path / "separators.jsonl").write_text(line + "\n", encoding="utf-8-sig")
    report = run(files | {"--prompts": str(tmp_path / "separators.jsonl")}, "--json")
    assert report["top1"] == 1.0


@pytest.mark.parametrize("option", ["--out", "--pareto"])
def test_where_nothing_can_be_written_is_said_before_the_work(files, tmp_path, option):
    assert option in run(files | {option: str(tmp_path / "no" / "file.png")})


def run(options: dict[str, str], *flags: str):
    words = [word for pair in ({"--reader": "none"} | options).items() for word in pair]
    result = CliRunner().invoke(app, ["eval-router", *words, *flags])
    if isinstance(result.exception, ConfigError):
        return result.exception.message
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_it_prints_one_object_and_writes_a_line_per_prompt(files, tmp_path):
    out = tmp_path / "out.jsonl"
    report = run(files | {"--out": str(out)}, "--json")
    assert report["top1"] == report["top3"] == 1.0
    assert report["oos_auroc"] == 1.0
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p99"]
    assert report["cards"] == 4
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["chosen"] for line in lines] == [name for _, name in ASKED]
    assert all(0 <= line["confidence"] <= 1 for line in lines)


def test_without_prompts_out_of_scope_there_is_no_area(files, tmp_path):
    prompts = [{"input": text, "adapter": name} for text, name in ASKED if name]
    report = run(files | {"--prompts": write(tmp_path / "p.jsonl", prompts)}, "--json")
    assert report["oos_auroc"] is None
    assert report["abstained"] == {"in_scope": 0.0, "out_of_scope": None}


@pytest.mark.parametrize(
    ("option", "lines", "said"),
    [
        ("--cards", [{"examples": ["x"]}], "cards.jsonl:1: name"),
        ("--cards", [{"name": "a", "examples": "x"}], "cards.jsonl:1: examples"),
        ("--cards", [{"name": "a"}], "neither a description nor examples"),
        ("--cards", [{"name": "a", "examples": ["x"]}] * 2, "'a' is there 2 times"),
        ("--cards", [], "has no lines"),
        ("--prompts", [{"input": "x"}], "prompts.jsonl:1: adapter"),
        ("--prompts", [{"input": "x", "adapter": "b"}], "no card is named 'b'"),
        (
            "--prompts",
            [{"input": "", "adapter": None}, {"input": 5, "adapter": None}],
            "l:2: input",
        ),
        ("--prompts", [{"input": "", "adapter": None}, ["x"]], "prompts.jsonl:2: a JSON object"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(files, tmp_path, option, lines, said):
    write(tmp_path / f"{option[2:]}.jsonl", lines)
    assert said in run(files, "--json")


def test_bytes_that_are_no_text_are_named_by_their_line(files, tmp_path):
    path = tmp_path / "bytes.jsonl"
    path.write_bytes(b'{"input": "", "adapter": null}\n{"input": "\xff", "adapter": null}\n')
    assert "bytes.jsonl:2: not UTF-8" in run(files | {"--prompts": str(path)}, "--json")


UNREADABLE = ["", " \t\n", "\u200b", "!?"]
HALVES = "every day at \ud83d nine \u0000 o'clock"


def test_any_text_is_chosen_for(files, tmp_path):
    """What has nothing to read goes to the base model, and is no reason to count it as a hit."""
    texts = [*UNREADABLE, HALVES, "every day at nine " * 20_000]
    prompts = [{"input": text, "adapter": None} for text in texts]
    out = tmp_path / "out.jsonl"
    options = {"--prompts": write(tmp_path / "odd.jsonl", prompts), "--out": str(out)}
    report = run(files | options, "--json")
    chosen = [json.loads(line)["chosen"] for line in out.read_text().splitlines()]
    assert chosen == [None] * len(UNREADABLE) + ["cron", "cron"]
    assert report["right"] == round(len(UNREADABLE) / len(texts), 4)
    assert report["top1"] is report["oos_auroc"] is None


def test_outcomes_of_any_text_are_learnt_from(tmp_path):
    rows = [
        {"input": text, "scores": {"a": 1.0, "b": float(i % 2)}}
        for i, text in enumerate([*UNREADABLE, HALVES] * 8)
    ]
    path = write(tmp_path / "o.jsonl", rows)
    assert run({"--outcomes": path, "--test": path}, "--json")["oracle"] == 1.0


def test_options_that_do_not_go_together_are_refused(files):
    assert "--outcomes" in run({"--cards": files["--cards"]}, "--json")


def outcomes(prompts):
    for i, prompt in enumerate(prompts):
        is_hard = i % 2
        text = f"{'prove the theorem of' if is_hard else 'say hello to'} {prompt} {i}"
        yield {
            "input": text,
            "scores": {"small": 0.0 if is_hard else 1.0, "large": 1.0},
            "costs": {"small": 1, "large": 10},
        }


def test_expert_models_are_chosen_at_every_price_and_drawn(tmp_path):
    people = ("Ada", "Emmy", "Kurt", "Alan", "Grace", "David", "Sofia", "Carl") * 8
    rows = list(outcomes(people))
    picture = tmp_path / "front.png"
    report = run(
        {
            "--outcomes": write(tmp_path / "train.jsonl", rows[:40]),
            "--test": write(tmp_path / "test.jsonl", rows[40:]),
            "--pareto": str(picture),
        },
        "--json",
    )
    assert (report["weak"], report["strong"], report["oracle"]) == ("small", "large", 1.0)
    assert report["apgr"] > 0.7, "at random it would be 0.5, at best 0.75"
    costs = [point["cost"] for point in report["points"]]
    assert costs == sorted(costs)
    assert (costs[0], costs[-1]) == (1, 10)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_outcomes_that_share_no_two_candidates_are_refused(tmp_path):
    rows = [{"input": "x", "scores": {"a": 1}}, {"input": "y", "scores": {"b": 1}}]
    path = write(tmp_path / "o.jsonl", rows)
    assert "fewer than two candidates" in run({"--outcomes": path, "--test": path}, "--json")
    bad = write(tmp_path / "bad.jsonl", [{"input": "x", "scores": {"a": 7, "b": 1}}])
    assert "scores" in run({"--outcomes": bad, "--test": path}, "--json")
