"""What programs put around a user's words before they send them: tags, and templates of text.

The names are those that the programs themselves use: Claude Code, Codex CLI, Cline, Roo, OpenHands,
Cursor, Copilot, Aider, Open WebUI, and the prompts of LangChain and LlamaIndex for retrieval.
"""

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

# In a list of settings: what is shipped, at this place.
DEFAULTS = "defaults"
# In a template: what the user asked, and any text.
QUESTION, ANYTHING = "{question}", "{}"
_MOST = 500

# With what is in them, these are not the user's.
LEFT_OUT = (
    *("system-reminder", "system_reminder", "command-name", "command-message", "ide_selection"),
    *("local-command-stdout", "local-command-stderr", "local-command-caveat", "bash-stdout"),
    *("bash-stderr", "task-notification", "ide_opened_file", "user-prompt-submit-hook"),
    *("environment_context", "user_instructions", "INSTRUCTIONS", "turn_aborted"),
    *("user_shell_command", "skills_instructions", "recommended_plugins"),
    *("environment_details", "file_content", "folder_content", "url_content"),
    *("explicit_instructions", "workspace_diagnostics", "RUNTIME_INFORMATION", "EXTRA_INFO"),
    *("REPOSITORY_INFO", "REPOSITORY_INSTRUCTIONS", "CONVERSATION_INSTRUCTIONS"),
    *("additional_data", "attached_files", "file_contents", "user_info", "user_rules"),
    *("open_and_recently_viewed_files", "git_status", "project_layout", "linter_errors"),
    *("custom_instructions", "cursor_commands", "agent_transcripts", "agent_skills", "image_files"),
    *("rules", "timestamp", "attachments", "attachment", "context", "editorContext"),
    *("reminderInstructions", "environment_info", "workspace_info", "repoContext"),
    *("instructions", "documents", "document", "source", "search_results", "chat_history"),
    *("tool_result", "tool_results", "tool_response", "tool_output", "function_results"),
)
# What is in these is the user's, and nothing else.
ASKED = (
    *("user_query", "userRequest", "user_request", "user_message", "user_input", "command-args"),
    *("task", "feedback", "answer", "question", "query"),
)
TEMPLATES = (
    "{}The user provided the following feedback:{question}",
    "{}The user denied this operation and provided the following feedback:{question}",
    "[{}] Result:{}",
    "# Context from my IDE setup:{}## My request for Codex:{question}",
    "# AGENTS.md instructions for {}</INSTRUCTIONS>{question}",
    "I have *added these files to the chat*{}",
    "Here are summaries of some files present in my git repository.{}",
    "{question}# *SEARCH/REPLACE block* Rules:{}",
    "### Task: Respond to the user query using the provided context{}</context>{question}",
    "Use the following pieces of context to answer{}Question:{question}Helpful Answer:",
    "Use the following context to answer{}Question:{question}Answer:",
    "You are an assistant for question-answering tasks.{}Question:{question}Context:{}",
    "You are an assistant for question-answering tasks.{}Question:{question}Answer:",
    "Context information is below.{}Query:{question}Answer:",
    "Context information is below.{}Question:{question}Answer:",
)


def _with(shipped: tuple[str, ...]) -> AfterValidator:
    def resolved(entries: tuple[str, ...]) -> tuple[str, ...]:
        listed = ((entry,) if entry != DEFAULTS else shipped for entry in entries)
        return tuple(dict.fromkeys(entry for part in listed for entry in part))

    return AfterValidator(resolved)


def _is_template(written: str) -> str:
    if written == DEFAULTS:
        return written
    if written.count(QUESTION) > 1:
        raise ValueError(f"{written!r} has {QUESTION} more than once")
    if not written.replace(QUESTION, "").replace(ANYTHING, "").strip():
        raise ValueError(f"{written!r} has no words to know it by")
    before, mark, after = written.partition(QUESTION)
    if mark and (before.endswith(ANYTHING) or after.startswith(ANYTHING)):
        raise ValueError(f"{written!r}: words must tell where {QUESTION} begins and ends")
    return written


Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")]
LeftOut = Annotated[tuple[Tag, ...], Field(max_length=_MOST), _with(LEFT_OUT)]
Asked = Annotated[tuple[Tag, ...], Field(max_length=_MOST), _with(ASKED)]
Template = Annotated[
    str, StringConstraints(min_length=1, max_length=500), AfterValidator(_is_template)
]
Templates = Annotated[tuple[Template, ...], Field(max_length=_MOST), _with(TEMPLATES)]
