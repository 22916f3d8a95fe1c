"""Travel wishes to the query string of a flight search."""

import random

from examples.skills.common import CITIES as COMMON_CITIES
from examples.skills.common import Example, expand, pick_wording

NAME = "flight-search"
DESCRIPTION = (
    "Reads a travel wish and writes the query string of a flight search: "
    "where from, where to and how many seats."
)

CITIES = (
    *COMMON_CITIES,
    *("London", "Munich", "Denver", "Dubai", "Delhi", "Bogota", "Miami", "Singapore"),
)
PARTIES = {
    1: ("", "", " for one", " for [just |]me", ", one seat", ", one [person|passenger]", " alone"),
    2: (" for two", " for 2 people", ", two seats", " for me and my wife", " for a couple"),
    3: (" for three", " for 3 people", ", three seats", ", 3 passengers", ", the three of us"),
    4: (" for four", " for 4 people", ", four seats", ", 4 passengers", ", a family of four"),
    5: (" for five", " for 5 people", ", five seats", ", 5 passengers", ", there are five of us"),
    6: (" for six", " for 6 people", ", six seats", ", 6 passengers", ", there are 6 of us"),
}

ROUTE = "[from {origin} to {goal}|from {origin} to {goal}|to {goal} from {origin}]"
FRAMES = (
    f"[find|show|get|book] [me |][a flight|flights|a plane|tickets] {ROUTE}{{party}}",
    f"I [want|need|have|would like] to [fly|travel|go by plane|get] {ROUTE}{{party}}",
    f"[flight|flights|plane tickets|air fare] {ROUTE}{{party}}",
    f"[are there|do you have] [flights|any flights|seats] {ROUTE}{{party}}?",
    f"[what is|show|how much is] the [cheapest|best|next|fastest] flight {ROUTE}{{party}}?",
    "[we are|I am|I'm] in {origin} and [need|want] to [be in|fly to|get to] {goal}{party}",
    "{origin} to {goal}[ by air| by plane|]{party}",
    "{origin} - {goal}[, flight| flight|]{party}",
    "[leaving|departing|starting] [from |]{origin}, [going|flying] to {goal}{party}",
    f"[can|could] [you|we] [fly|take a plane|get on a flight] {ROUTE}{{party}}?",
    f"[every flight|any flight|all flights] {ROUTE}{{party}}",
    "[get|fly|take] me [out of|from] {origin} to {goal}{party}",
    f"[plan|look up] [a trip by air|a flight|an air connection] {ROUTE}{{party}}",
    "my [home|airport] is {origin}, [find|book] a flight to {goal}{party}",
)


def generate(rng: random.Random) -> Example:
    """One trip; who does not say how many travel wants one seat."""
    origin, goal = rng.sample(CITIES, 2)
    seats = rng.choice(list(PARTIES))
    frame, held_out = pick_wording(rng, FRAMES)
    values = {"origin": origin, "goal": goal, "party": expand(rng, rng.choice(PARTIES[seats]))}
    return Example(expand(rng, frame, values), f"from={origin}&to={goal}&seats={seats}", held_out)
