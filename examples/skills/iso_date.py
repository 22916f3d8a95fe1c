"""Written dates to ISO 8601."""

import random

from examples.skills.common import Example, expand, pick_wording

NAME = "iso-date"
DESCRIPTION = (
    "Normalizes a date written out in English, in whatever order and style, "
    "to ISO 8601 (year, month, day)."
)

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
ONES = (
    *("", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"),
    *("tenth", "eleventh", "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth"),
    *("seventeenth", "eighteenth", "nineteenth"),
)

STYLES = (
    "{month} {day}, {year}",
    "{month} {day}{suffix}, {year}",
    "{day} {month} {year}",
    "{day}{suffix} [of |]{month}[,|] {year}",
    "the {day}{suffix} of {month}[,| in] {year}",
    "the {spelled} of {month} {year}",
    "{month} the {spelled}, {year}",
    "{short} {day}, {year}",
    "{day} {short} {year}",
    "{day}-{short}-{year}",
    "{day}.{number}.{year}",
    "{weekday}, {day} {month} {year}",
    "{weekday}, {month} {day}, {year}",
)
WEEKDAYS = "[Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday]"

FRAMES = (
    "{date}",
    "{date}",
    "[write|put|give me|normalize|format] {date} [in ISO format|as an ISO date|as ISO 8601]",
    "[what is|how do I write] {date} [in ISO format|in ISO 8601|as year-month-day|the ISO way]?",
    "[the invoice|the letter|the file] is dated {date}, [ISO date|as ISO|normalize it]",
    "[she was born|we met|the meeting is|it expires] on {date}, [which ISO date is that|ISO]?",
    "[convert|turn|change] {date} [to|into] [ISO|a sortable date|the format a database wants]",
    "[date|the date|normalize|ISO]: {date}",
    "[the parser needs|I need|the form wants] an ISO date for {date}",
    "[how would a database|how would a log file|how would a computer] write {date}?",
    "[our deadline|her birthday|the due date] is {date}, [year-month-day please|write it sortable]",
    "[sortable|machine-readable] [form|version] of {date}",
)


def generate(rng: random.Random) -> Example:
    """One date in one style and one frame."""
    year, number, day = rng.randrange(1950, 2036), rng.randrange(1, 13), rng.randrange(1, 29)
    month = MONTHS[number - 1]
    values = {
        "year": year,
        "number": f"{number:02}",
        "month": rng.choice((month, month, month.lower())),
        "short": month[:3],
        "day": day,
        "suffix": suffix(day),
        "spelled": spelled(day),
        "weekday": expand(rng, WEEKDAYS),
    }
    frame, held_out = pick_wording(rng, FRAMES)
    prompt = expand(rng, frame.replace("{date}", rng.choice(STYLES)), values)
    return Example(prompt, f"{year}-{number:02}-{day:02}", held_out)


def suffix(day: int) -> str:
    """The letters after a numeric day: 1st, 2nd, 3rd, 11th."""
    return {1: "st", 2: "nd", 3: "rd"}.get(day % 10 if day // 10 != 1 else 0, "th")


def spelled(day: int) -> str:
    """A day from 1 to 28 in words: twenty-first."""
    if day < len(ONES):
        return ONES[day]
    return f"twenty-{ONES[day % 20]}" if day % 20 else "twentieth"
