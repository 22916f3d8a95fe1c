"""The page at the size of a large fleet: `make bench-page` writes `results/page.json`.

A real Chromium shows 2,000 adapters on 64 replicas; every answer of the endpoint differs from the
one before. Measured are the page's own code for an update, and the longest task of the browser's
main thread, which has all of it: reading the answer, the code, the charts, layout.
"""

import json
import os
import platform
import random
import shutil
import statistics
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from threading import Thread
from typing import Any

from playwright.sync_api import Browser, Route, sync_playwright
from rich.console import Console

from cluster.members import ClusterSnapshot, Replica, Residency
from cluster.plans import ModelPlan, PlacementPlan

HERE = Path(__file__).parent
RESULT = HERE / "results" / "page.json"
PAGE = HERE.parent / "deployments" / "page"
ADAPTERS, REPLICAS, SLOTS, ENTRIES = 2000, 64, 8, 32
VIEWS = {"overview": "", "placement": "map", "traffic": "traffic", "events": "events"}
SECONDS = 20

_COLLECT = """
() => {
  window.took = [];
  window.tasks = [];
  const note = (list, found) => found.push(...list.map((entry) => entry.duration));
  new PerformanceObserver((list) => note(list.getEntriesByName("update"), took))
    .observe({ entryTypes: ["measure"] });
  new PerformanceObserver((list) => note(list.getEntries(), tasks))
    .observe({ entryTypes: ["longtask"] });
}
"""


def main() -> None:
    console = Console(stderr=True)
    found: dict[str, Any] = {
        "command": "python -m benchmarks.page",
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {"playwright": version("playwright"), "plotly": version("plotly")},
        "adapters": ADAPTERS,
        "replicas": REPLICAS,
        "views": {},
    }
    with sync_playwright() as playwright, _Files() as url:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        found["versions"]["chromium"] = browser.version
        for name, view in VIEWS.items():
            found["views"][name] = _measure(browser, f"{url}/#/{view}")
            console.print(name, found["views"][name])
        browser.close()
    RESULT.write_text(json.dumps(found, indent=2) + "\n")


def _measure(browser: Browser, url: str) -> dict[str, float]:
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.route("**/v1/dashboard*", _answer)
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_function("performance.getEntriesByType('paint').length > 0")
    paint_ms = page.evaluate("performance.getEntriesByType('paint')[0].startTime")
    page.wait_for_selector("#health.ok")
    ready_ms = 1000 * (time.perf_counter() - began)
    page.evaluate(_COLLECT)
    page.wait_for_timeout(1000 * SECONDS)
    took, tasks = page.evaluate("took"), page.evaluate("tasks")
    page.close()
    return {
        "first_paint_ms": round(paint_ms, 1),
        "first_data_ms": round(ready_ms, 1),
        "updates": len(took),
        "update_p50_ms": round(statistics.median(took), 1),
        "update_max_ms": round(max(took), 1),
        # The browser tells those of 50 ms and more.
        "longest_task_ms": round(max(tasks), 1) if tasks else "under 50",
    }


def _answer(route: Route) -> None:
    wants_adapters = "adapters_at=&" in route.request.url
    route.fulfill(json=fleet(random.Random(time.time_ns()), with_adapters=wants_adapters))


def fleet(rng: random.Random, *, with_adapters: bool) -> dict[str, Any]:
    """An answer of `/v1/dashboard` for a large fleet, drawn anew each time."""
    names = [f"tenant-{i % 40}-adapter-{i}" for i in range(ADAPTERS)]
    members, holders = [], {}
    for r in range(REPLICAS):
        held = rng.sample(names, ENTRIES)
        keys = [f"{name}@1" for name in held]
        demand = {name: rng.random() for name in names} if r == 0 else {}
        residency = Residency(
            slots=tuple(keys[:SLOTS]),
            host=tuple(keys[SLOTS:]),
            slot_capacity=SLOTS,
            host_capacity=ENTRIES,
        )
        members.append(
            Replica(
                id=f"replica-{r:02}",
                model="base",
                node=f"node-{r // 8}",
                residency=residency,
                ongoing=rng.randrange(16),
                max_ongoing=16,
                loads=rng.randrange(1000),
                demand=demand,
            )
        )
        for name in held[: ENTRIES // 2]:
            holders.setdefault(name, []).append(f"replica-{(r + rng.randrange(2)) % REPLICAS:02}")
    plan = PlacementPlan(
        models={"base": ModelPlan(holders={n: tuple(r) for n, r in holders.items()})}
    )
    cluster = ClusterSnapshot(
        models=("base",),
        adapters=ADAPTERS,
        members=tuple(members),
        store="ok",
        position="1-0",
        plan=plan,
    )
    row = {"base_model": "base", "description": "x" * 100, "tags": ["a"], "owner": "", "stable": 1}
    point = {
        **dict.fromkeys(("requests", "rate", "errors", "tokens", "loads", "failed_loads"), 3),
        **dict.fromkeys(("evictions", "load_s", "hit_ratio"), 0.5),
        **dict.fromkeys(("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s"), 0.1),
        "tiers": {"slot": 5, "host": 2, "node": 1, "remote": 0},
        "decisions": {"adapter": 3},
    }
    now = time.time()
    event = {"kind": "load", "is_bad": False, "subject": names[0]}
    return {
        "at": now,
        "may_change": True,
        "health": {"state": "ok", "reasons": []},
        "cluster": cluster.model_dump(mode="json"),
        "adapters": [row | {"name": name, "rollout": None} for name in names]
        if with_adapters
        else None,
        "history": [point | {"at": int(now // 5) * 5 - 5 * i} for i in range(720)],
        "traffic": {name: point for name in names[:200]},
        "decisions": [],
        "events": [
            event | {"id": str(i), "at": now - i, "text": f"{rng.choice(names)} was loaded"}
            for i in range(150)
        ],
    }


class _Files:
    """The page's files, as the endpoint has them."""

    def __enter__(self) -> str:
        handler = partial(_Handler, directory=str(PAGE))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def translate_path(self, path: str) -> str:
        plotly = "/plotly/"
        if path.startswith(plotly):
            return str(files("plotly") / "package_data" / path.removeprefix(plotly))
        return super().translate_path(path.removeprefix("/page"))

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


if __name__ == "__main__":
    main()
