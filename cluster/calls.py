"""The calls that models answer, in one table: what is asked where, and who can answer it.

All else derives from it: the gateway's routes and what it says of others, which models may be
chosen, what engines are asked, and the docs. In `deployments/ingress/calls/`, `reading.py` reads
each shape of body, and `answers.py` counts each shape of answer.
"""

from dataclasses import dataclass
from enum import StrEnum


class Task(StrEnum):
    """What an engine can do, as a replica reports it: vLLM's names, and three of ours."""

    # OpenAI's chats and completions, which endpoints elsewhere speak, too.
    CHAT = "chat"
    GENERATE = "generate"
    TOKENIZE = "tokenize"
    EMBED = "embed"
    # By embeddings, or by a classifier with one class.
    SCORE = "score"
    CLASSIFY = "classify"
    POOL = "pool"
    TRANSCRIBE = "transcription"


# Of a model that generates; what a replica has that does not tell its tasks.
GENERATES = (str(Task.CHAT), str(Task.GENERATE), str(Task.TOKENIZE))


class Shape(StrEnum):
    """How a call is worded: its body, its answer, the events of its stream."""

    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSE = "response"
    MESSAGE = "message"
    MESSAGE_COUNT = "message count"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"
    # A text, texts or a conversation: one number or vector each.
    INPUT = "input"
    SCORE = "score"
    RERANK = "rerank"
    # A form with a file.
    AUDIO = "audio"


@dataclass(frozen=True)
class CallKind:
    """One call.

    Attributes:
        says: what it is, in a few words.
        task: that a model must be able to do.
        by_prompt: whether `auto` goes by the prompt; else it is the first base model that can.
        adapters: whether an adapter changes the answer. Where it does not, its base model answers.
        spends: fields of the body that bound the tokens of an answer; none: nothing is generated.
    """

    path: str
    shape: Shape
    task: Task
    says: str
    by_prompt: bool = True
    adapters: bool = True
    spends: tuple[str, ...] = ()

    @property
    def is_cached(self) -> bool:
        """Whether it takes `cache_salt`, because its prompt comes into an engine's cache."""
        return self.adapters and self.shape is not Shape.AUDIO

    @property
    def is_anthropic(self) -> bool:
        """Whether its errors are worded as Anthropic's are, not as OpenAI's."""
        return self.shape in (Shape.MESSAGE, Shape.MESSAGE_COUNT)


CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
RESPONSES_PATH = "/v1/responses"
MESSAGES_PATH = "/v1/messages"
_CHAT_SPENDS = ("max_completion_tokens", "max_tokens")

_SCORE = "how alike texts are, or how well they answer"
_RERANK = "documents in the order in which they answer a query"
_TABLE = (
    CallKind(CHAT_PATH, Shape.CHAT, Task.CHAT, "the next message of a chat", spends=_CHAT_SPENDS),
    CallKind(
        COMPLETIONS_PATH, Shape.COMPLETION, Task.CHAT, "how a text goes on", spends=_CHAT_SPENDS
    ),
    CallKind(
        RESPONSES_PATH,
        Shape.RESPONSE,
        Task.GENERATE,
        "OpenAI's responses; nothing is kept of them",
        spends=("max_output_tokens",),
    ),
    CallKind(
        MESSAGES_PATH, Shape.MESSAGE, Task.GENERATE, "Anthropic's messages", spends=("max_tokens",)
    ),
    CallKind(
        "/v1/messages/count_tokens",
        Shape.MESSAGE_COUNT,
        Task.GENERATE,
        "how many tokens Anthropic's messages have",
        adapters=False,
    ),
    CallKind("/tokenize", Shape.TOKENIZE, Task.TOKENIZE, "a prompt's tokens", adapters=False),
    CallKind(
        "/detokenize",
        Shape.DETOKENIZE,
        Task.TOKENIZE,
        "the text of tokens",
        by_prompt=False,
        adapters=False,
    ),
    CallKind("/v1/embeddings", Shape.INPUT, Task.EMBED, "vectors of texts", by_prompt=False),
    *(
        CallKind(path, Shape.SCORE, Task.SCORE, _SCORE, by_prompt=False)
        for path in ("/v1/score", "/score")
    ),
    *(
        CallKind(path, Shape.RERANK, Task.SCORE, _RERANK, by_prompt=False)
        for path in ("/v1/rerank", "/v2/rerank", "/rerank")
    ),
    CallKind("/classify", Shape.INPUT, Task.CLASSIFY, "classes of texts", by_prompt=False),
    CallKind(
        "/pooling", Shape.INPUT, Task.POOL, "what a pooling model makes of texts", by_prompt=False
    ),
    *(
        CallKind(f"/v1/audio/{name}", Shape.AUDIO, Task.TRANSCRIBE, says, by_prompt=False)
        for name, says in (
            ("transcriptions", "what is said in a recording"),
            ("translations", "what is said in a recording, in English"),
        )
    ),
)
CALLS = {kind.path: kind for kind in _TABLE}
