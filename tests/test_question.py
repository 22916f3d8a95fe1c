"""What of a turn the user asked: wrappers of programs, templates, pasted matter, turns of tools."""

import time

import pytest

from cluster.errors import ConfigError
from cluster.settings import WrapperSettings, parse_settings
from router.adapters.prompts import prompt_of
from router.adapters.question.templates import Template
from router.adapters.question.wrappers import wrappers_of
from router.rules.matching import Asked

ASKED = "Undo my last commit but keep the changes"
LOGS = "\n".join(f"2026-03-02 09:14:{s:02d} ERROR connection refused" for s in range(30))
CODE = "```python\n" + "total = sum(order.total for order in orders)\n" * 12 + "```"
MAIL = "\n".join(f"> line {i} of a mail that somebody has sent to us" for i in range(20))
ARTICLE = "\n\n".join(
    "The harbour of the town has been dredged twice since. " * 9 for _ in range(4)
)


def user(content) -> dict:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    "sent",
    [
        f"{ASKED}\n<system-reminder>\nToday is Monday.\n</system-reminder>",
        f"{ASKED} <system-reminder>note</system-reminder>",
        f"<system-reminder>a <context> b</system-reminder>\n<git_status>M</git_status>\n{ASKED}",
        f"<context>a<context>b</context>c</context>\n{ASKED}",
        f'<attachment id="1" />\n{ASKED}',
        f"<task>\n{ASKED}\n</task>\n\n<environment_details>\na.py\n</environment_details>",
        f"<task>{ASKED}<file_content path='a'>x = 1</file_content></task>",
        f"<context>\n<user_query>no</user_query>\n</context>\n<user_query>{ASKED}</user_query>",
        f"# Context from my IDE setup:\n\n## Open tabs:\n- a\n\n## My request for Codex:\n{ASKED}",
        f"{ASKED}\n\n# *SEARCH/REPLACE block* Rules:\n\nUse tabs.",
        f"Context information is below.\n--\nQuery: old\n--\nanswer.\nQuery: {ASKED}\nAnswer: ",
        f"Read this\n\nThe user provided the following feedback:\n<feedback>{ASKED}</feedback>",
        f"{ASKED}\n\n{LOGS}",
        f"{CODE}\n\n{ASKED}",
        f"{ASKED}\n{MAIL}",
        f"{ARTICLE}\n\n{ASKED}?",
        f"{CODE[10:-3]}\n\n{ASKED}",
    ],
)
def test_what_is_not_the_users_is_left_out(sent):
    prompt = prompt_of([user(sent)])
    assert prompt.text.rstrip("?") == ASKED
    assert prompt.left_out
    assert prompt_of(sent).text == prompt.text, "a text as well as a message"


@pytest.mark.parametrize(
    "sent",
    [
        "what does <task> mean in this XML?",
        "What does <context>foo</context> mean in my prompt?",
        "Explain this XML:\n<task>\n<id>5</id>\n</task>",
        "<task>x</task> is what, in XML?",
        "<system-reminder>be nice</system-reminder>",
        f"{ASKED}\n<system-reminder>\nnever closed",
        f"</system-reminder>{ASKED}",
        "<SYSTEM-REMINDER>not a name that is used</SYSTEM-REMINDER>",
        "```sql\nSELECT 1\n```\nwhat does it do?",
        LOGS,
        "Context information is below.",
        "Do these:\n" + "\n".join(f"- step {i} of the plan that we made" for i in range(20)),
    ],
)
def test_what_is_the_users_stays(sent):
    assert prompt_of(sent).text == sent
    assert not prompt_of(sent).left_out


def test_turns_of_tools_and_of_programs_are_not_the_users():
    result = [{"type": "tool_result", "tool_use_id": "1", "content": "orders from Paris"}]
    reminder = {"type": "text", "text": "<system-reminder>go on</system-reminder>"}
    call = {"role": "assistant", "content": "let me see"}
    turns = [
        user([*result]),
        user([*result, reminder]),
        user("[read_file for 'a.py'] Result:\nimport this"),
        {"role": "tool", "content": "7"},
    ]
    asked = prompt_of([user(ASKED)])
    for turn in turns:
        prompt = prompt_of([user(ASKED), call, turn])
        assert prompt.text == ASKED
        assert prompt.marks == (asked.mark,), "it goes on with what answered"
    before = prompt_of([user("<environment_context>x</environment_context>"), user(ASKED)])
    assert (before.text, before.context) == (ASKED, "")


def test_a_conversation_is_found_again_whatever_is_put_around_its_turns():
    first = prompt_of([user(f"<context>\nparis\n</context>\n{ASKED}")])
    later = [user(ASKED), {"role": "assistant", "content": "git reset"}, user("and then?")]
    assert prompt_of(later).marks == (first.mark,)
    assert prompt_of([user(ASKED + "?"), *later[1:]]).marks != (first.mark,)


def test_what_is_pasted_and_what_was_said_is_the_context():
    prompt = prompt_of([user("first"), user(f"what is this?\n\n{CODE}")])
    assert prompt.text == "what is this?"
    assert prompt.context.startswith("first\nwhat is this?\n\n```python")
    assert prompt.left_out == ("code",)


def test_the_system_says_what_is_wanted_where_it_is_short():
    said = [{"role": "system", "content": "You write SQL."}, user(ASKED)]
    assert (prompt_of(said).setting, prompt_of(said).context) == ("You write SQL.", "")
    said[0]["content"] *= 100
    assert prompt_of(said).setting == "", "a manual of a program"


def test_the_lists_are_settings():
    own = WrapperSettings(left_out=("defaults", "memo"), asked=(), templates=("Q:{question}A:",))
    wrappers = wrappers_of(own)
    sent = f"<memo>\nx\n</memo>\n<git_status>M</git_status>\n<user_query>{ASKED}</user_query>"
    found = prompt_of(sent, wrappers)
    assert found.text == f"<user_query>{ASKED}</user_query>"
    assert found.left_out == ("memo", "git_status")
    assert prompt_of(f"Q: {ASKED}\nA:", wrappers).text == ASKED
    for field, value in {
        "left_out": ["no tag"],
        "templates": ["{question} and {question}"],
    }.items():
        tree = {"models": [{"id": "m", "path": "p"}], "router": {"wrappers": {field: value}}}
        with pytest.raises(ConfigError, match=rf"router\.wrappers\.{field}"):
            parse_settings(tree)


def test_a_rule_reads_all_of_the_turn_or_only_what_was_asked():
    asked = Asked(f"{ASKED}\n<system-reminder>secret</system-reminder>", {})
    assert "secret" in asked.turn.searched
    assert asked.question.searched == ASKED


def test_where_a_question_stands_among_what_is_alike():
    last = Template("Context:{}Question:{question}Answer:")
    assert last.question_in("Context:\na\nQuestion: b\nAnswer: c\nQuestion: d\nAnswer:") == "d"
    first = Template("You help.{}Question:{question}Context:{}")
    assert first.question_in("You help.\nQuestion: a\nContext: b\nQuestion: c\nContext: d") == "a"
    assert first.question_in("You help.\nQuestion: a") is None
    assert last.question_in("In context:\nQuestion: a\nAnswer:") is None
    assert Template("[{}] Result:{}").question_in("[ls] Result:\na") == ""


@pytest.mark.parametrize(
    "piece",
    [
        *("<system-reminder>", "</system-reminder>", "<task><context></context></task>", "<"),
        *(" ", "\n", "a; ", "Query:\n", "```\n", "| a |\n", "> a\n", "<a " + "x" * 499),
        *("<user_query>x<git_status>y</git_status></user_query>", "<context>\n", "a,b,", "]})"),
    ],
)
def test_time_grows_with_the_text_and_with_it_alone(piece):
    """Ten times the text: quadratic time would be a hundred times as long."""

    def took_s(chars: int) -> float:
        text = "Context information is below.\n" + piece * (chars // len(piece))
        tries = []
        for _ in range(3):
            began = time.process_time()
            prompt_of(text)
            tries.append(time.process_time() - began)
        return min(tries)

    assert took_s(400_000) < 40 * max(took_s(40_000), 0.001)
