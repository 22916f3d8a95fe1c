"""Descriptions of text patterns to regular expressions."""

import random

from examples.skills.common import Example, from_phrasebook

NAME = "regex"
DESCRIPTION = (
    "Writes a short regular expression from a description of the text it should match: "
    "digits, letters, prefixes, alternatives, simple formats."
)

WORDS = (
    *("cat", "dog", "error", "http", "foo", "bar", "test", "warning", "total", "id", "user"),
    *("red", "blue", "yes", "no", "temp", "draft", "img", "log", "admin", "fail", "debug"),
)
SLOTS = {
    "n": tuple(str(n) for n in range(2, 13)),
    "m": tuple(str(n) for n in range(13, 25)),
    "word": WORDS,
    "other": ("apple", "pear", "green", "stop", "left", "right", "up", "down", "open", "closed"),
    "ext": ("txt", "csv", "png", "json", "pdf", "log", "xml", "md"),
}

STRINGS = "[lines|strings|texts|values]"
THAT = "[match|find|a regex for|a pattern for|I need a pattern for|regex:|pattern for]"

PHRASEBOOK = {
    r"^\d{{{n}}}$": (
        f"{THAT} [exactly |]{{n}} digits[, nothing else|]",
        "[the field|the code|the pin] must [be|have] [exactly |]{n} digits, [which pattern|regex]?",
        "[just|only] {n} digits [in a row|and no more], as a pattern",
        "how do I match a number with {n} digits?",
    ),
    r"^\d{{{n},{m}}}$": (
        f"{THAT} {{n}} to {{m}} digits",
        f"{THAT} between {{n}} and {{m}} digits",
        "at least {n} and at most {m} digits, as a pattern",
    ),
    r"^[a-z]{{{n}}}$": (
        f"{THAT} [exactly |]{{n}} [lowercase|lower case|small] letters",
        "[the code|the name] must be {n} lowercase letters, [which pattern|regex]?",
        "[just|only] {n} lowercase letters [in a row|and no more], as a pattern",
        "how do I match {n} lowercase letters?",
    ),
    r"^[A-Z]{{{n}}}$": (
        f"{THAT} [exactly |]{{n}} [uppercase|upper case|capital] letters",
        "[the code|the name] must be {n} capital letters, [which pattern|regex]?",
        "[just|only] {n} capital letters [in a row|and no more], as a pattern",
        "how do I match {n} capital letters?",
    ),
    r"^[A-Z]{{2}}\d{{{n}}}$": (
        f"{THAT} two [capital|uppercase] letters [followed by|then|and then] {{n}} digits",
        "[the code|the plate] is two capital letters plus {n} digits, [which pattern|regex]?",
        "how do I match two capital letters with {n} digits after them?",
    ),
    "^{word}": (
        f"{THAT} {STRINGS} [starting|that start|that begin] with {{word}}",
        "does [the line|the text] [start|begin] with {word}? [as a pattern|regex]",
        "{word} at the [start|beginning] of the line, [regex|as a pattern]",
        "every line beginning with {word}, as a pattern",
    ),
    "{word}$": (
        f"{THAT} {STRINGS} [ending|that end] [with|in] {{word}}",
        "does [the line|the text] end [with|in] {word}? [as a pattern|regex]",
        "{word} at the end of the line, [regex|as a pattern]",
        "every line with {word} at its end, as a pattern",
    ),
    r"\b{word}\b": (
        f"{THAT} [the whole word|the word] {{word}}[, not as part of another word| anywhere|]",
        "{word} as a [separate|whole] word, [regex|as a pattern]",
        "how do I match {word} only when it stands as a word of its own?",
    ),
    "^({word}|{other})$": (
        f"{THAT} either {{word}} or {{other}}",
        "[the value|the answer] [must|may only] be {word} or {other}, [regex|which pattern]?",
        "[only|just] {word} or {other} and nothing else, [regex|as a pattern]",
        "how do I match only {word} or {other}?",
    ),
    r"\.{ext}$": (
        f"{THAT} [file names|names|files] [ending in|with the extension|that end in] .{{ext}}",
        "does the [file name|name] end in .{ext}? [as a pattern|regex]",
        "the extension .{ext} at the end[ of a name|], [regex|as a pattern]",
        "how do I match names of {ext} files?",
    ),
    "^.{{{n},}}$": (
        f"{THAT} {STRINGS} [of at least|with at least] {{n}} characters",
        "a password [must have|needs] at least {n} characters, [which pattern|regex]?",
        "how do I match text of {n} or more characters?",
    ),
    "^.{{0,{n}}}$": (
        f"{THAT} {STRINGS} [of at most|with at most|up to] {{n}} characters",
        "a nickname [must have|may have] at most {n} characters, [which pattern|regex]?",
        "how do I match text no longer than {n} characters?",
    ),
    r"^#[0-9a-f]{{6}}$": (
        f"{THAT} [hex colors|a hex color|html color codes] like #[ff8800|00aaff|c0ffee|1e90ff]",
        "[is it|how do I check for|validate] a hex color [such as|like] #[a1b2c3|ff0000|00ff7f]",
        "a # followed by six hex digits, as a pattern",
    ),
    r"^\d{{2}}:\d{{2}}$": (
        f"{THAT} [times|clock times|a time] like [09:30|17:45|23:59|08:15|12:00|06:05]",
        "two digits, a colon, two [more |]digits[, as a pattern|, regex| - which regex]",
        "how do I match a clock time such as [10:20|21:10|05:55|14:40]?",
    ),
    r"^-?\d+$": (
        f"{THAT} [integers|whole numbers], [also negative|negative ones too|maybe with a minus]",
        "a [whole number|number|integer] with an optional minus[ sign|][, regex|, as a pattern|]",
        "how do I match positive or negative whole numbers?",
    ),
    r"^\s*$": (
        f"{THAT} [empty|blank] lines[, spaces allowed|]",
        "[is|how do I check if] the line [is |]blank[, maybe with spaces|][, regex|, pattern|]",
        "how do I match lines with only white space?",
    ),
}


def generate(rng: random.Random) -> Example:
    """One description and its pattern."""
    return from_phrasebook(rng, PHRASEBOOK, SLOTS)
