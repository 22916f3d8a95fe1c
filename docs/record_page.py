"""Take the pictures of the page for the README: `python -m docs.record_page` beside `make demo`.

It asks the demo's adapters for two minutes, by name and by `auto`, and looks with Chromium.
"""

import itertools
import json
import random
import shutil
import threading
from pathlib import Path

import httpx
from playwright.sync_api import Page, sync_playwright

URL = "http://127.0.0.1:8000"
HERE = Path(__file__).parent
ADAPTERS = HERE.parent / "examples" / "adapters"
WARM_UP_S, CLIENTS = 120, 3
ANSWER_TOKENS = 24


def main() -> None:
    ended = threading.Event()
    clients = [threading.Thread(target=ask, args=(ended, n)) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            for scheme, view in (("light", "#/"), ("dark", "#/map")):
                page = browser.new_page(
                    viewport={"width": 1280, "height": 1100}, color_scheme=scheme
                )
                page.goto(f"{URL}/{view}")
                page.wait_for_timeout(1000 * (WARM_UP_S if scheme == "light" else 5))
                take(page, HERE / f"page-{scheme}.png")
            browser.close()
    finally:
        ended.set()
        for client in clients:
            client.join()


def take(page: Page, path: Path) -> None:
    page.wait_for_selector("#health.ok")
    page.screenshot(path=path)


def ask(ended: threading.Event, seed: int) -> None:
    """Adapters that are asked for more and less, half of the time by `auto`."""
    there = {model["id"] for model in httpx.get(f"{URL}/v1/models").json()["data"]}
    files = sorted(ADAPTERS.glob("*/card.json"))
    cards = [card for file in files if (card := json.loads(file.read_text()))["name"] in there]
    rng = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(len(cards))]
    with httpx.Client(base_url=URL, timeout=60) as client:
        for number in itertools.count():
            if ended.wait(rng.expovariate(1.0)):
                return
            (card,) = rng.choices(cards, weights)
            body = {
                "model": "auto" if number % 2 else card["name"],
                "messages": [{"role": "user", "content": rng.choice(card["examples"])}],
                "max_tokens": ANSWER_TOKENS,
                "stream": True,
            }
            client.post("/v1/chat/completions", json=body)


if __name__ == "__main__":
    main()
