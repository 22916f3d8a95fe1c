"""Messages of customers to a support queue and a priority."""

import random

from examples.skills.common import Example, expand, pick_wording

NAME = "triage"
DESCRIPTION = (
    "Sorts a customer's message into a support queue (billing, account, bug, shipping, feature) "
    "with a priority (high, normal, low)."
)

PROBLEMS = {
    "billing": (
        "I was charged [twice|two times|double] [this month|for my order|for one order]",
        "my [invoice|bill] [is wrong|shows the wrong amount|has a mistake]",
        "I [want|need|am waiting for] [a refund|my money back]",
        "my [credit card|payment|card] was [declined|refused|rejected]",
        "[you charged me|I paid] for a [plan|subscription] I [cancelled|do not have]",
        "[the discount|my coupon] was not [applied|taken off] [the bill|at checkout]",
        "I [need|am missing] [an invoice|a receipt] for my [payment|last payment]",
    ),
    "account": (
        "I [cannot|can't] [log in|sign in|get into my account]",
        "I [forgot|lost] my password",
        "my account [is locked|was blocked|has been suspended]",
        "the [password reset|confirmation|verification] [mail|email|code] never [arrived|came]",
        "I [want|need|would like] to change [my email address|my user name|the phone number]",
        "[please close|I want to delete|how do I delete] my account",
        "[someone else|a stranger] [is using|got into] my account",
    ),
    "bug": (
        "the app [crashes|freezes|closes] when I [open it|tap save|upload a photo|scroll]",
        "the [search|export|save button|upload|dark mode] [does not work|is broken|does nothing]",
        "I [get|see] [an error|a blank page|error 500] [on the dashboard|when I save|after login]",
        "the [page|website|screen] [loads forever|stays white|looks broken]",
        "since the [update|last release] the app [is very slow|hangs|crashes]",
        "[the numbers|the totals] [on my dashboard|in the report] are [calculated wrong|wrong]",
    ),
    "shipping": (
        "my [package|parcel|order] [has not arrived|never came|is late|is lost]",
        "[where is|when will I get] my [package|parcel|delivery]?",
        "the [box|parcel|item] arrived [damaged|broken|open]",
        "you sent [me the wrong item|me the wrong size|it to the wrong address]",
        "the [tracking number|tracking page] [does not move|shows nothing|says lost]",
        "[an item|one thing|half of it] is missing [from|in] [my parcel|the box|the delivery]",
        "the courier [left it with a neighbour|did not ring|never showed up]",
    ),
    "feature": (
        "[could you add|please add|I would love] [dark mode|a calendar view|an export to excel]",
        "it would be [nice|great] [to have|if you had] [an offline mode|a mobile app|filters]",
        "[do you plan|are you planning] [to support|on] [more languages|apple pay|two users]?",
        "I [miss|wish there was] [a way to sort|a shortcut for search|an undo button]",
        "[my idea|a suggestion]: [let me rename files|allow bigger uploads|show a weekly summary]",
        "[can you make|I wish you would make] [the font bigger|it faster|it work offline]",
    ),
}
URGENCY = {
    "high": (
        "[this is|it is] [urgent|very urgent|an emergency]",
        "I need [this|help] [today|right now|immediately|within the hour]",
        "[as soon as possible|asap]",
        "[my business|our whole team|the shop] [is blocked|stands still]",
        "fix it now",
        "[it cannot wait|this can't wait]",
    ),
    "normal": ("",),
    "low": (
        "no [rush|hurry]",
        "[not urgent|it is not urgent|nothing urgent]",
        "[whenever you have time|when you get to it|take your time]",
        "it can wait[ a few days| until next week|]",
        "just a small thing",
    ),
}

FRAMES = (
    "{problem}[.|,| -] {urgency}",
    "{problem}. {urgency}.",
    "{urgency}: {problem}",
    "{urgency}, [but |]{problem}",
    "[new ticket|ticket|customer writes|message from a customer]: {problem}. {urgency}",
    "[dear support|hello team|hi support|dear team], {problem}. {urgency}",
    "{problem}, [can you help|please help|what now]? {urgency}",
    "[a user says|a client reports|we got this mail]: {problem}, {urgency}",
)


def generate(rng: random.Random) -> Example:
    """One message; without a word on urgency its priority is normal."""
    queue, priority = rng.choice(list(PROBLEMS)), rng.choice(list(URGENCY))
    problem, _ = pick_wording(rng, PROBLEMS[queue])
    frame, held_out = pick_wording(rng, FRAMES)
    text = frame.replace("{problem}", problem)
    text = expand(rng, text.replace("{urgency}", rng.choice(URGENCY[priority])))
    return Example(text.strip(" ,:.-").replace("?.", "?"), f"{queue}/{priority}", held_out)
