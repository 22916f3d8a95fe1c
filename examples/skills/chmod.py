"""Descriptions of file permissions to chmod commands."""

import random

from examples.skills.common import Example, combine, expand, pick_wording

NAME = "chmod"
DESCRIPTION = (
    "Turns a description of who may read, write or execute a file into a chmod command "
    "with an octal mode."
)

FILES = combine(
    ("", "bin/", "/etc/", "docs/"),
    ("deploy", "notes", "backup", "secret", "start", "report", "config", "run", "key", "install"),
    (".sh", ".txt", ".py", ".cfg", ".pem", ".log"),
)
RIGHTS = {
    7: ("read, write and execute", "do everything", "read, write and run", "have full access"),
    6: ("read and write", "read and edit", "read and change"),
    5: ("read and execute", "read and run", "run and read"),
    4: ("read", "only read", "just read", "look but not touch"),
}
NOTHING = ("nothing", "no access", "no rights", "no permissions")

FRAMES = (
    "{file}: {who}",
    "{who}[ -| for|, file|, the file is] {file}",
    "[set|fix|change] [the permissions of |the mode of |]{file} so that {who}",
    "[make it so that|I want that|make sure] {who} [on|with|for] {file}",
    "[how do I|how can I] set {file} so that {who}?",
    "[on|for] {file} {who}[, how|, which command|]?",
    "[give|I need] permissions on {file}: {who}",
    "who may do what with {file}: {who}",
)
SHORTHANDS = {
    "600": (
        "[make|keep] {file} private, [only I|just me] [may|can] read and write it",
        "[nobody|no one] but [me|the owner] should [read or change|read or write] {file}",
        "only the owner can read and write {file}",
    ),
    "700": (
        "only [I|the owner] should be able to read, write and run {file}",
        "[keep|make] {file} runnable [by me|by the owner] only and closed to [others|the rest]",
        "full access to {file} for me and nothing for anyone else",
    ),
    "644": (
        "everyone [can|may] read {file} but only [I|the owner] [can|may] [edit|write|change] it",
        "[make|let] {file} [be |]readable by all, writable by [me|the owner] only",
        "the world may read {file}, only its owner may write",
    ),
    "755": (
        "everyone [can|may] run {file} but only [I|the owner] [can|may] [edit|change] it",
        "[make|let] {file} [be |]executable by all, writable by [me|the owner] only",
        "anybody may run and read {file}, only its owner may write",
    ),
    "777": (
        "[everyone|anybody|all users] [can|may|should] read, write and execute {file}",
        "[give|grant] [everyone|everybody|all users] full access to {file}",
        "no limits on {file}, all rights for all",
    ),
    "444": (
        "[make|set] {file} read-only for [everyone|everybody|all]",
        "[nobody|no one] may change {file}, everyone may read it",
        "everyone can only read {file}, even the owner",
    ),
}


def generate(rng: random.Random) -> Example:
    """A mode in everyday words, or class by class, or in the notation of `ls`."""
    file = rng.choice(FILES)
    if rng.random() < 0.3:
        mode = rng.choice(list(SHORTHANDS))
        wording, held_out = pick_wording(rng, SHORTHANDS[mode])
        return Example(expand(rng, wording, {"file": file}), f"chmod {mode} {file}", held_out)
    owner, group = rng.choice((4, 5, 6, 7, 7, 6)), rng.choice((0, 4, 5, 6, 7))
    others = rng.choice((0, 0, 4, 5, 6, 7))
    who = symbols(owner, group, others) if rng.random() < 0.2 else classes(owner, group, others)
    frame, held_out = pick_wording(rng, FRAMES)
    prompt = expand(rng, frame, {"file": file, "who": expand(rng, who)})
    return Example(prompt, f"chmod {owner}{group}{others} {file}", held_out)


def symbols(*modes: int) -> str:
    """The notation of `ls`, such as "permissions are rw-r-----"."""
    letters = "".join(
        "".join(c if m & b else "-" for c, b in zip("rwx", (4, 2, 1), strict=True)) for m in modes
    )
    return f"[it has|permissions are|the mode is|we get] {letters}"


def classes(owner: int, group: int, others: int) -> str:
    """Who may do what, in the order owner, group, others."""
    return ", ".join(
        (
            right("[the owner|owner|I|the user]", owner),
            right("[the group|group|my group|the group]", group),
            right("[others|everyone else|the rest|others]", others),
        )
    )


def right(who: str, mode: int) -> str:
    """What one class of users may do."""
    if not mode:
        return f"{who} [{'|'.join(f'gets {x}' for x in NOTHING)}]"
    return f"{who} can [{'|'.join(RIGHTS[mode])}]"
