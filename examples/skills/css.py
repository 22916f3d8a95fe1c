"""Wishes about looks to CSS declarations."""

import random

from examples.skills.common import Example, expand, pick_wording

NAME = "css"
DESCRIPTION = (
    "Turns a wish about how something on a web page should look into one or two CSS declarations."
)

COLORS = (
    *("red", "blue", "green", "white", "black", "orange", "purple", "gray", "navy", "teal", "gold"),
    *("pink", "tomato", "silver"),
)
SIZES = ("2", "4", "6", "8", "10", "12", "14", "16", "18", "20", "24", "28", "32", "40", "48")

WISHES = {
    "color: {color};": ("[in |]{color} text", "{color} letters", "[a |]text color of {color}"),
    "background-color: {color};": (
        "[a |]{color} background",
        "{color} behind the text",
        "[filled|painted] {color} in the background",
    ),
    "font-size: {n}px;": (
        "[text|letters] {n} pixels [big|tall]",
        "[a |]font size of {n}[px| pixels]",
    ),
    "font-weight: bold;": ("bold[ text|]", "[thick|fat|heavy] [letters|type]"),
    "font-style: italic;": ("italic[s| text|]", "slanted [letters|text]"),
    "text-decoration: underline;": ("underlined[ text|]", "a line [under|below] the text"),
    "text-align: center;": ("centered text", "text in the [middle|center]"),
    "text-align: right;": ("right-aligned text", "text [on|aligned to] the right"),
    "text-transform: uppercase;": ("all caps", "[only |]capital letters", "uppercase text"),
    "padding: {n}px;": (
        "{n}[px| pixels] of padding",
        "{n}[px| pixels] of [space|room|air] inside",
    ),
    "margin: {n}px;": (
        "[a margin of {n}[px| pixels]|{n}px margin]",
        "{n}[px| pixels] of space around",
    ),
    "border-radius: {n}px;": (
        "rounded corners of {n}[px| pixels]",
        "corners rounded by {n}[px| pixels]",
    ),
    "border: 1px solid {color};": ("a thin {color} [border|frame|outline]", "a {color} border"),
    "opacity: 0.5;": ("half transparent", "[50 percent|50%] opacity", "half see-through"),
    "width: 100%;": ("[the full|full] width", "as wide as [possible|its parent]"),
    "box-shadow: 0 2px 8px gray;": ("a [soft|light|drop] shadow", "a shadow [under|below] it"),
}

ELEMENT = (
    "[the button|my heading|the title|this box|the link|the card|the menu|the footer|the paragraph|"
    "the header|the table|the sidebar|my form|the quote]"
)
FRAMES = (
    f"[make|style|give] {ELEMENT}: {{wish}}",
    f"{ELEMENT} [should|must|needs to] [have|get] {{wish}}",
    f"[I want|I would like|we need|I need] {{wish}} [for|on] {ELEMENT}",
    f"[how do I|how can I] [get|give] {ELEMENT} {{wish}}?",
    f"{ELEMENT} with {{wish}}",
    f"{{wish}} [for|on] {ELEMENT}[, how|, css|]",
    f"[can you|could you] [style|do] {ELEMENT} with {{wish}}?",
    f"[show|render|display|style] {ELEMENT} with {{wish}}",
    f"{ELEMENT} looks [dull|boring|wrong], I want {{wish}}",
)


def generate(rng: random.Random) -> Example:
    """One or two wishes, and their declarations in the same order."""
    chosen = rng.sample(list(WISHES), rng.choice((1, 1, 2)))
    texts, declarations = [], []
    for declaration in chosen:
        values = {"color": rng.choice(COLORS), "n": rng.choice(SIZES)}
        texts.append(expand(rng, rng.choice(WISHES[declaration]), values))
        declarations.append(declaration.format_map(values))
    frame, held_out = pick_wording(rng, FRAMES)
    prompt = expand(rng, frame, {"wish": " and ".join(texts)})
    return Example(prompt, " ".join(declarations), held_out)
