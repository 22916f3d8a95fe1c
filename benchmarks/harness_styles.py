"""A prompt as ten programs send it, and as people do who paste: the shapes of their requests, with
matter that is made up. See `harness.py`."""

from collections.abc import Callable
from typing import Any

import numpy as np

Messages = list[dict[str, Any]]
Style = Callable[[str, np.random.Generator], Messages]

_FILES = (
    *("src/app/main.py", "src/app/orders.sql", "deploy/cron.yaml", "README.md", "web/style.css"),
    *("docs/flights.md", "scripts/convert_video.sh", "k8s/reports.yaml", "tests/test_dates.py"),
    *(
        "package.json",
        "src/api/status_codes.ts",
        "src/forms/contact.json",
        "Makefile",
        ".gitignore",
    ),
)
_CODE = (
    "def total(orders: list[Order]) -> float:\n"
    '    """Sum of all orders that are paid."""\n'
    "    return sum(o.total for o in orders if o.status == 'paid')\n",
    "SELECT c.name, COUNT(*) AS n\nFROM customers c JOIN orders o ON o.customer_id = c.id\n"
    "GROUP BY c.name\nHAVING COUNT(*) > 3;\n",
    ".sidebar {\n  display: grid;\n  gap: 8px;\n  color: #333;\n}\n.sidebar a:hover {\n"
    "  text-decoration: underline;\n}\n",
    "apiVersion: batch/v1\nkind: CronJob\nmetadata:\n  name: backup\nspec:\n"
    '  schedule: "0 3 * * *"\n  concurrencyPolicy: Forbid\n',
    "export async function load(id) {\n  const answer = await fetch(`/api/items/${id}`);\n"
    "  if (answer.status === 404) {\n    return null;\n  }\n  return answer.json();\n}\n",
)
_LOGS = (
    "2026-03-02 09:14:{s:02d},120 INFO  worker-{n} job {n}4 took {s} ms",
    "2026-03-02 09:14:{s:02d},381 ERROR worker-{n} connection to db-{n} refused, trying again",
    "    at com.shop.Orders.load(Orders.java:{s})",
    "2026-03-02 09:14:{s:02d},400 WARN  worker-{n} queue has {s}{n} entries",
)
_PROSE = (
    "The harbour of the town was built in 1862 and has been dredged twice since. Most of the "
    "boats that lie there now belong to people who come for the weekend.",
    "Our quarterly figures show that the northern region grew by four per cent, while the number "
    "of returned parcels fell for the third time in a row.",
    "Glaciers move because ice deforms under its own weight. Near the ground the temperature is "
    "close to the melting point, and a thin film of water lets the ice slide.",
    "When the committee met in May it agreed that the library should stay open until nine, that "
    "the reading room be painted, and that the cat may remain.",
    "A good dough wants time. Leave it in the cold overnight, fold it twice, and let it come back "
    "to room temperature before it goes into the oven.",
)
_MANUAL = (
    "You are an expert assistant that helps with software work. You have tools to read and write "
    "files, to run commands and to search. Think before you act, keep your answers short, never "
    "invent file names, and ask where something is unclear. "
)
_RULES = (
    "Use tabs for indentation. Write tests before code. Commit messages have at most 50 letters. "
    "Dates are written as year, month, day. Never run migrations on the production database."
)


def claude_code(prompt: str, rng: np.random.Generator) -> Messages:
    reminder = f"<system-reminder>\n# claudeMd\n{_RULES}\n\n{_listing(rng)}\n</system-reminder>"
    later = "<system-reminder>\nThe todo list is empty. Do not tell the user.\n</system-reminder>"
    turn = [_text(reminder), _text(prompt), _text(later)]
    messages = [*_manual(), {"role": "user", "content": turn}]
    if rng.random() < 0.5:
        result = {"type": "tool_result", "tool_use_id": "t1", "content": _code(rng)}
        messages += [_said("Let me look."), {"role": "user", "content": [result, _text(later)]}]
    return messages


def codex(prompt: str, rng: np.random.Generator) -> Messages:
    if rng.random() < 0.5:
        tabs = "\n".join(f"- {name}: {name}" for name in _some(rng, _FILES, 3))
        active = f"# Context from my IDE setup:\n\n## Active file: {_some(rng, _FILES, 1)[0]}\n\n"
        prompt = f"{active}## Open tabs:\n{tabs}\n\n## My request for Codex:\n{prompt}\n"
    rules = f"# AGENTS.md instructions for /repo\n\n<INSTRUCTIONS>\n{_RULES}\n</INSTRUCTIONS>"
    place = (
        "<environment_context>\n  <cwd>/repo</cwd>\n  <shell>bash</shell>\n</environment_context>"
    )
    return [*_manual(), *(_asked(text) for text in (rules, place, prompt))]


def cline(prompt: str, rng: np.random.Generator) -> Messages:
    place = f"<environment_details>\n# Visible Files\n{_listing(rng)}\n\n# Current Mode\nACT MODE\n"
    place += "</environment_details>"
    first = [_text(f"<task>\n{prompt}\n</task>"), _text(place)]
    messages = [*_manual(), {"role": "user", "content": first}]
    if rng.random() < 0.5:
        head = f"[read_file for '{_some(rng, _FILES, 1)[0]}'] Result:"
        result = [_text(head), _text(_code(rng)), _text(place)]
        messages += [_said("<read_file></read_file>"), {"role": "user", "content": result}]
    return messages


def roo_feedback(prompt: str, rng: np.random.Generator) -> Messages:
    head = (
        f"[execute_command for 'ls'] Result:\n{_listing(rng)}\n\nThe user provided the following "
    )
    turn = [_text(f"{head}feedback:\n<feedback>\n{prompt}\n</feedback>")]
    turn += [_text(f"<environment_details>\n{_listing(rng)}\n</environment_details>")]
    task = [_text("<task>\nhave a look around\n</task>")]
    first = {"role": "user", "content": task}
    return [*_manual(), first, _said("<execute_command/>"), {"role": "user", "content": turn}]


def cursor(prompt: str, rng: np.random.Generator) -> Messages:
    code = f"```path={_some(rng, _FILES, 1)[0]}, lines=1-9\n{_code(rng)}```"
    data = "<additional_data>\nBelow are some potentially helpful pieces of information\n"
    data += f"<attached_files>\n<file_contents>\n{code}\n</file_contents>\n</attached_files>\n"
    data += "</additional_data>"
    rules = f"<rules>\n<user_rules>\n{_RULES}\n</user_rules>\n</rules>"
    return [*_manual(), _asked(rules), _asked(f"{data}\n\n<user_query>\n{prompt}\n</user_query>")]


def copilot(prompt: str, rng: np.random.Generator) -> Messages:
    place = f"<environment_info>\nLinux\n</environment_info>\n<workspace_info>\n{_listing(rng)}\n"
    parts = (
        f'<attachments>\n<attachment id="a">\n{_code(rng)}</attachment>\n</attachments>',
        "<context>\nThe current date is March 2, 2026.\nTerminals: bash\n</context>",
        f"<reminderInstructions>\n{_RULES}\n</reminderInstructions>",
        f"<userRequest>\n{prompt}\n</userRequest>",
    )
    return [*_manual(), _asked(f"{place}</workspace_info>"), _asked("\n".join(parts))]


def aider(prompt: str, rng: np.random.Generator) -> Messages:
    name = _some(rng, _FILES, 1)[0]
    files = "I have *added these files to the chat* so you can go ahead and edit them.\n\n"
    files += f"*Trust this message as the true contents of these files!*\n\n{name}\n"
    rules = f"# *SEARCH/REPLACE block* Rules:\n\nEvery block must use this format:\n{_RULES}"
    added = _asked(f"{files}```\n{_code(rng)}```")
    return [*_manual(), added, _said("Ok."), _asked(f"{prompt}\n\n{rules}")]


def openhands(prompt: str, rng: np.random.Generator) -> Messages:
    place = "<RUNTIME_INFORMATION>\nThe user has access to the following hosts for a web "
    place += "application:\n* http://localhost:50943 (port 50943)\n</RUNTIME_INFORMATION>"
    repo = f"<REPOSITORY_INFO>\nThe repository is in /workspace.\n{_listing(rng)}</REPOSITORY_INFO>"
    turn = [_text(prompt), _text(f"\n\n{repo}\n\n{place}")]
    call = {"id": "c", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
    return [
        *_manual(),
        {"role": "user", "content": turn},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": _logs(rng)},
    ]


def open_webui(prompt: str, rng: np.random.Generator) -> Messages:
    sources = "\n".join(f'<source id="{i}">{p}</source>' for i, p in enumerate(_prose(rng)))
    head = "### Task:\nRespond to the user query using the provided context, incorporating inline "
    head += "citations in the format [id].\n\n### Guidelines:\n- If you don't know the answer, "
    head += "clearly state that.\n- Respond in the same language as the user's query.\n\n"
    query = f"<user_query>\n{prompt}\n</user_query>" if rng.random() < 0.5 else prompt
    return [_asked(f"{head}<context>\n{sources}\n</context>\n\n{query}")]


def retrieval(prompt: str, rng: np.random.Generator) -> Messages:
    found = "\n\n".join(_prose(rng))
    shapes = (
        "Use the following pieces of context to answer the question at the end. If you don't know "
        f"the answer, just say that you don't know.\n\n{found}\n\nQuestion: {prompt}\n"
        "Helpful Answer:",
        f"Context information is below.\n---------------------\n{found}\n---------------------\n"
        "Given the context information and not prior knowledge, answer the query.\n"
        f"Query: {prompt}\nAnswer: ",
        "You are an assistant for question-answering tasks. Use the following pieces of retrieved "
        f"context to answer the question.\nQuestion: {prompt} \nContext: {found} \nAnswer:",
    )
    return [_asked(shapes[int(rng.integers(len(shapes)))])]


def pasted(prompt: str, rng: np.random.Generator) -> Messages:
    matter = (
        "\n".join(_logs(rng).splitlines() * 2),
        f"```\n{_code(rng)}{_code(rng)}{_code(rng)}```",
        "\n".join(f"> {line}" for part in _prose(rng) for line in (*part.split(". "), "")),
        "| id | name | city | total |\n|---|---|---|---|\n"
        + "\n".join(f"| {i} | Ada {i} | Porto | {i * 7} |" for i in range(30)),
    )[int(rng.integers(4))]
    is_first = rng.random() < 0.5
    return [_asked(f"{prompt}\n\n{matter}" if is_first else f"{matter}\n\n{prompt}")]


def says_little(prompt: str, rng: np.random.Generator) -> Messages:
    more = ("continue", "yes", "go on", "yes please", "and then?", "ok, go ahead")
    return [_asked(prompt), _said("Shall I?"), _asked(more[int(rng.integers(len(more)))])]


STYLES: dict[str, Style] = {
    "Claude Code": claude_code,
    "Codex CLI": codex,
    "Cline": cline,
    "Roo Code, feedback": roo_feedback,
    "Cursor": cursor,
    "Copilot": copilot,
    "Aider": aider,
    "OpenHands": openhands,
    "Open WebUI, documents": open_webui,
    "LangChain, LlamaIndex": retrieval,
    "pasted matter": pasted,
    "a last turn that says little": says_little,
}


def _manual() -> Messages:
    return [{"role": "system", "content": _MANUAL * 12}]


def _asked(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _some(rng: np.random.Generator, of: tuple[str, ...], count: int) -> list[str]:
    return [str(one) for one in rng.choice(of, count, replace=False)]


def _listing(rng: np.random.Generator) -> str:
    return "\n".join(_some(rng, _FILES, 9))


def _code(rng: np.random.Generator) -> str:
    return _some(rng, _CODE, 1)[0]


def _prose(rng: np.random.Generator) -> list[str]:
    return _some(rng, _PROSE, 3)


def _logs(rng: np.random.Generator) -> str:
    rows = rng.integers(0, [len(_LOGS), 60, 9], (12, 3))
    return "\n".join(_LOGS[kind].format(s=s, n=n) for kind, s, n in rows)
