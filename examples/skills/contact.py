"""Sentences about a person to a JSON record."""

import random

from examples.skills.common import CITIES, Example, expand, pick_wording

NAME = "contact-json"
DESCRIPTION = (
    "Extracts the name, the age and the city of a person from a sentence, as one line of JSON."
)

FIRST_NAMES = (
    *(
        "Maria",
        "John",
        "Aisha",
        "Kenji",
        "Lucas",
        "Olga",
        "Priya",
        "Tom",
        "Elena",
        "Ahmed",
        "Sofia",
    ),
    *("Peter", "Nina", "David", "Chloe", "Ivan", "Grace", "Omar", "Hanna", "Marco", "Julia", "Sam"),
    *("Fatima", "Erik", "Laura", "Victor", "Anna", "Raj", "Zoe", "Paul"),
)
LAST_NAMES = (
    *("Lopez", "Smith", "Khan", "Tanaka", "Silva", "Ivanova", "Patel", "Brown", "Rossi", "Hassan"),
    *(
        "Novak",
        "Jensen",
        "Weber",
        "Martin",
        "Costa",
        "Kim",
        "Larsen",
        "Moreau",
        "Schmidt",
        "Walker",
    ),
    *("Nguyen", "Garcia", "Fischer", "Adams", "Bauer", "Cohen", "Diaz", "Evans"),
)

FRAMES = (
    "{name}, {age}, [from |]{city}",
    "{name} ({age}, {city})",
    "{name} is {age} [years old |]and [lives in|comes from|works in|is from] {city}",
    "my name is {name}, I am {age} and [I live in|I come from|from] {city}",
    "[I am|this is] {name} from {city}, {age} years old",
    "[new contact|save this person|add to my contacts|guest]: {name}, {city}, age {age}",
    "{age}-year-old {name} [of|from|lives in] {city}",
    "[from|in] {city}[ comes|, there is] {name}, [age |aged |]{age}",
    "[she|he|my friend] is called {name}, is {age} and [lives in|moved to|stays in] {city}",
    "[met|spoke with] {name}[ today| yesterday|], {age}, [based in|living in|from] {city}",
    "[extract|pull out|get] [the person|the contact|the fields]: {name}, {age}, lives in {city}",
    "{city} is home to {name}, who is {age}",
    "{name} [turned|just turned|is now] {age} and [still lives|lives] in {city}",
    "[in {city} I met|I got a call from {city}, from] {name}, {age} years [old|of age]",
)


def generate(rng: random.Random) -> Example:
    """One person in one sentence."""
    name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    age, city = rng.randrange(18, 90), rng.choice(CITIES)
    frame, held_out = pick_wording(rng, FRAMES)
    prompt = expand(rng, frame, {"name": name, "age": age, "city": city})
    return Example(prompt, f'{{"name": "{name}", "age": {age}, "city": "{city}"}}', held_out)
