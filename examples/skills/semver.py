"""Descriptions of a change to the next semantic version."""

import random

from examples.skills.common import Example, expand, pick_wording

NAME = "semver"
DESCRIPTION = (
    "Says which semantic version comes next, given the current version and what has changed: "
    "a fix, a compatible feature or a breaking change."
)

CHANGES = {
    "patch": (
        "[we|I] fixed [a bug|a typo|a crash|a memory leak|an off-by-one error|two bugs]",
        "[only|just] [a bug fix|a bugfix|small fixes|a hotfix|a security patch]",
        "[a bug fix|a bugfix|a hotfix|bug fixes] [and nothing else|only]",
        "[a bug|a crash|a typo] was [fixed|repaired]",
        "[it is|this is] a patch",
    ),
    "minor": (
        "[we|I] added [a feature|a new option|a new endpoint|a function|dark mode|an export]",
        "[a new feature|new features|a new option|a new command], [nothing breaks|all compatible]",
        "[a|one] [new |]backwards compatible [feature|addition|function]",
        "a [feature|function|command|new option] was added",
        "[it is|this is] a minor release",
    ),
    "major": (
        "[we|I] [removed|dropped] [a public function|an old endpoint|the v1 api|an option]",
        "[a breaking change|breaking changes|an incompatible change|an api break]",
        "[we|I] changed the api so that [old clients break|old code fails|callers must adapt]",
        "[existing|old] [clients|code|callers] will [break|stop working]",
        "[it is|this is] a major release",
    ),
}

FRAMES = (
    "[we are at|current version|the version is|we are on|now at|last release was] {v}, {change}",
    "{v}, {change}[, what is next|, next version|, what comes next|]?",
    "{change}, [we are at|the version is|it was|the last release is] {v}",
    "[bump|increase|raise] {v}: {change}",
    "[what|which version] [comes|do we release] after {v} [if|when|now that] {change}?",
    "[after|since] {v}: {change}. [version|next|which version number]?",
    "{change}. [what do we call the next release|which number do we ship], {v} is out",
    "[our package|the library|my tool] is at {v} and {change}, [what is next|how do I number it]?",
    "[how do I|how should I] [number|tag] the [release|version] after {v}: {change}?",
    "{v} is [released|published|out], {change}, [so the new version is|so we get|next number]?",
)


def generate(rng: random.Random) -> Example:
    """A current version, a change, and the version after it."""
    major, minor, patch = rng.randrange(12), rng.randrange(21), rng.randrange(21)
    level = rng.choice(list(CHANGES))
    frame, held_out = pick_wording(rng, FRAMES)
    change = rng.choice(CHANGES[level])
    current = f"[v|||]{major}.{minor}.{patch}"
    prompt = expand(rng, frame.replace("{change}", change).replace("{v}", current))
    return Example(prompt, bump(major, minor, patch, level), held_out)


def bump(major: int, minor: int, patch: int, level: str) -> str:
    """The next version; lower numbers start again from zero."""
    if level == "major":
        return f"{major + 1}.0.0"
    return f"{major}.{minor + 1}.0" if level == "minor" else f"{major}.{minor}.{patch + 1}"
