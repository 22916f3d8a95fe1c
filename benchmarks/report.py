"""The benchmarks' result files as a page; `docs.generate` writes it, so it cannot drift."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def page() -> str:
    parts = (_router(), _experts(), _conversations(), _harness(), _unseen(), _cluster(), _engine())
    parts += (_store(), _chaos(), _tracing())
    return "\n".join(["# Benchmarks", "", *_HOW, "", *(line for p in parts for line in (*p, ""))])


_HOW = [
    "Generated from the files of `benchmarks/results/` by `make docs`. They hold the command, the",
    "versions and the machine; that of the engine every single measurement. Its ratios are medians",
    "over rounds, each to the same engine without adapters in the same round: 1 is no cost at all.",
]


def _heading(title: str, report: dict[str, Any], target: str) -> Iterator[str]:
    """What was measured, by which command, on what and with what."""
    yield f"## {title}"
    yield ""
    yield f"`{report['command']}` (`make {target}`), {report['machine']};"
    yield ", ".join(f"{name} {v}" for name, v in report["versions"].items()) + "."


def _engine() -> Iterator[str]:
    report = json.loads((RESULTS / "engine-cpu.json").read_text())
    machine, bars = report["machine"], report["bars"]
    yield "## What adapters cost an engine on CPU"
    yield ""
    yield f"`{report['command'].strip()}` (`make bench-engine`), {machine['processor']},"
    yield f"{machine['cores']} cores, {machine['threads']} thread(s) for the engine;"
    yield ", ".join(f"{name} {v}" for name, v in report["versions"].items()) + "."
    yield "SmolLM2-135M in bfloat16, adapters on all its linear layers, all of the rank of the row,"
    yield "in engines of that largest rank with 16 slots."
    yield ""
    yield "![Speed with adapters over speed without](../benchmarks/results/engine-cpu.svg)"
    titles = {
        "decode": "Decode, 16 requests in a batch",
        "prefill": "Prefill, 900 tokens in as many prompts as there are adapters",
    }
    for kind, title in titles.items():
        counts = sorted(
            {int(c) for v in report["ratios"][kind].values() for s in v.values() for c in s}
        )
        yield ""
        yield f"### {title} (bar {bars[kind]})"
        yield ""
        yield "| rank | engine | " + " | ".join(_adapters(c) for c in counts) + " |"
        yield "|---|---|" + "---:|" * len(counts)
        for rank, subjects in report["ratios"][kind].items():
            for subject, by_count in subjects.items():
                cells = [_ratio(by_count.get(str(c)), bars[kind]) for c in counts]
                yield f"| {rank.removeprefix('rank ')} | {subject} | " + " | ".join(cells) + " |"
    yield ""
    yield "### The longest gap between tokens of 8 running requests while an adapter is loaded"
    yield f"(bar: grows by {bars['stall_ms']:.0f} ms)"
    yield ""
    yield "| engine | adapter | undisturbed | in a load | grows by, median | at most |"
    yield "|---|---:|---:|---:|---:|---:|"
    for subject, found in report["ratios"]["stall"].items():
        yield (
            f"| {subject} | {found['megabytes']} MB | {found['undisturbed_ms']} ms | "
            f"{found['in_a_load_ms']} ms | {found['grows_by_ms']} ms | {found['at_most_ms']} ms |"
        )
    yield ""
    yield "The machine is shared: windows without a load differ by as much as the worst ones with."
    yield ""
    yield "Ratios that meet the bar are bold. Slow engines are measured at few points, where it"
    yield "tells enough; each rank and engine is a process of its own. What bounds the ratios is in"
    yield "[decision 007](decisions/007-the-cpu-kernel.md)."


def _adapters(count: int) -> str:
    return "1 adapter" if count == 1 else f"{count} adapters"


def _ratio(value: float | None, bar: float) -> str:
    if value is None:
        return ""
    return f"**{value:.3f}**" if value >= bar else f"{value:.3f}"


def _store() -> Iterator[str]:
    report = json.loads((RESULTS / "store.json").read_text())
    catalogue, fan_out = report["catalogue"], report["fan_out"]
    yield from _heading("The adapter store", report, "bench-store")
    yield "Embedded server, every change on disk before it is acknowledged."
    yield ""
    yield f"### {catalogue['adapters']:,} adapters (bar 50 ms)"
    yield ""
    yield f"A process reads all of them in {catalogue['start_s']} s at its start; a change is"
    yield f"written in {catalogue['write_ms_each']} ms (16 writers). Through HTTP, JSON included:"
    yield ""
    yield "| | median | P99 |"
    yield "|---|---:|---:|"
    yield from _times(catalogue)
    yield ""
    yield f"### A new version on {fan_out['replicas']} replicas (bar: P99 1 s)"
    yield ""
    yield f"Echo engines in {fan_out['replicas']} processes of Ray Serve; each of"
    yield f"{fan_out['registrations']} registrations waits until every replica has it loaded."
    yield ""
    yield "| | median | P99 | longest |"
    yield "|---|---:|---:|---:|"
    for name, found in fan_out.items():
        if isinstance(found, dict):
            row = (found["p50_ms"], found["p99_ms"], found["max_ms"])
            yield f"| {name} | " + " | ".join(f"{ms} ms" for ms in row) + " |"
    yield ""
    yield "### Versions that change under load (bar: no request fails)"
    yield ""
    yield "Eight clients ask two replicas for an adapter that is registered anew and rolled back."
    yield ""
    yield "| engine | requests | failed | changes | refused | versions that answered | seconds |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for engine, found in report["updates"].items():
        cells = [str(value) for name, value in found.items() if name != "refusals"]
        yield f"| {engine} | " + " | ".join(cells) + " |"


_SUITES_BARS = {
    "27 BBH tasks, 20 examples": 99.5,
    "10 CLINC150 domains, 20 examples": 86,
    "10 CLINC150 domains, all examples": 97,
}


def router_table() -> list[str]:
    """Top-1 of each method on each suite."""
    suites = json.loads((RESULTS / "router.json").read_text())["adapters"]
    methods = list(next(iter(suites.values())))
    lines = ["| right adapter first, % | " + " | ".join(methods) + " | bar |"]
    lines.append("|---|" + "---:|" * (len(methods) + 1))
    for suite, found in suites.items():
        best = max(found[m]["top1"] for m in methods)
        cells = [_bold(found[m]["top1"], best) for m in methods]
        lines.append(f"| {suite} | " + " | ".join(cells) + f" | {_SUITES_BARS.get(suite, '')} |")
    return lines


_OURS = ("top3", "top1_min", "ece", "oos_auroc", "abstains_in_scope", "abstains_out_of_scope")


def _best_baseline(found: dict[str, dict[str, float]], key: str) -> str:
    values = [v[key] for name, v in found.items() if name != "Roundhouse" and key in v]
    return str(max(values)) if values else ""


_SUITES = {"reader_exams": "AGIEval", "reader_tasks": "BBH", "reader_intents": "CLINC150"}
_TOGETHER = ("without the reader", "always asked", "cascade")


def _reader(report: dict[str, Any]) -> Iterator[str]:
    """What the reader adds, by suite and examples."""
    found = {
        f"{name}, {shots}": table
        for part, name in _SUITES.items()
        for shots, table in report[part].items()
        if isinstance(table, dict)
    }
    alone = [m for m in next(iter(found.values())) if m.startswith("alone: ")]
    yield ""
    yield "### What the model sees"
    yield ""
    yield "The first layers of the demo's base model as a reader: the choice without it, with it"
    yield "for every prompt, and where it is asked if the choice is not clear; each kernel alone"
    yield "(kernel ridge). Means of one to three draws of the examples; 0 examples are names."
    yield ""
    heads = ("no reader", "always", "cascade", "asked", "ECE", *(m[7:] for m in alone))
    yield "| right adapter first, % | " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * len(heads)
    for name, table in found.items():
        cells = [f"{table[m]['top1']:.1f}" for m in _TOGETHER]
        cells += [f"{table['cascade']['asked']:.0f} %", f"{table['cascade']['ece']:.1f}"]
        cells += [f"{table[m]['top1']:.1f}" for m in alone]
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "| one prompt at a time | P50 | P99 | right adapter first, % | asked |"
    yield "|---|---:|---:|---:|---:|"
    for name, told in report["reader_times"].items():
        took = told.get("latency_ms", told)
        right = f"{100 * told['top1']:.1f}" if "top1" in told else ""
        asked = f"{100 * told['reader_asked']:.0f} %" if "reader_asked" in told else ""
        yield f"| {name} | {took['p50']} ms | {took['p99']} ms | {right} | {asked} |"


_SCOPE = {"auroc": "AUROC", "aupr": "AUPR", "fpr95": "out of scope accepted at 95 % recall"}


def _scope(found: dict[str, Any]) -> Iterator[str]:
    """Near and far, ours beside others."""
    suites = {name: table for name, table in found.items() if isinstance(table, dict)}
    methods = list(next(iter(suites.values())))
    inside, outside = found["prompts"]
    yield ""
    yield "### Is any adapter meant?"
    yield ""
    yield f"Up to {inside} prompts in scope and {outside} out of it; 20 examples of each adapter,"
    yield "the demo's base model as the reader. The others: the surest probability and the energy"
    yield "of our scores, the nearest example and the Mahalanobis distance, both in the encoder's"
    yield "space. In %, the best bold; of AUPR, those out of scope are looked for. Near tasks are"
    yield "the prompts of tasks that were left out (means of two draws)."
    if "sample" in found:
        yield f"{found['sample']}."
    for key, title in _SCOPE.items():
        yield ""
        yield f"| {title} | " + " | ".join(methods) + " |"
        yield "|---|" + "---:|" * len(methods)
        for suite, table in suites.items():
            values = [table[m][key] for m in methods]
            best = min(values) if key == "fpr95" else max(values)
            cells = [f"**{v:.1f}**" if v == best else f"{v:.1f}" for v in values]
            yield f"| {suite} | " + " | ".join(cells) + " |"
    yield ""
    yield "| at Roundhouse's threshold | kept in scope | turned away out of scope |"
    yield "|---|---:|---:|"
    for suite, table in suites.items():
        ours = table["Roundhouse"]
        yield f"| {suite} | {ours['kept in scope']} | {ours['turned away out of scope']} |"


_TRAINED = {"trained_intents": "CLINC150", "trained_tasks": "BBH"}


def _trained(report: dict[str, Any]) -> Iterator[str]:
    """What it is worth that a catalogue teaches its encoder."""
    parts = {name: report[part] for part, name in _TRAINED.items() if part in report}
    if not parts:
        return
    yield ""
    yield "### An encoder that the catalogue taught"
    yield ""
    yield "What `roundhouse router train` does with one draw of the examples, and the choice by it,"
    yield "without a reader. Kept where the folds say that it is better by more than the error."
    yield "Measured before the scope was learnt from near misses and the probabilities by beta"
    yield "calibration (decision 035)."
    yield ""
    yield "| | right first, % | ECE | abstains in scope | out of scope | AUROC |"
    yield "|---|---:|---:|---:|---:|---:|"
    for suite, found in parts.items():
        for shots, table in found.items():
            for name, told in table.items():
                if name != "cross-validation":
                    names = ("top1", "ece", "abstains_in_scope")
                    outside = ("abstains_out_of_scope", "oos_auroc")
                    cells = [f"{told[n]:.1f}" if n in told else "" for n in (*names, *outside)]
                    yield f"| {suite}, {shots}, {name} | " + " | ".join(cells) + " |"
    yield ""
    for suite, found in parts.items():
        for shots, table in found.items():
            marks = table["cross-validation"]
            before, after, error = (marks[n] for n in ("before", "after", "error"))
            kept = "kept" if "trained" in table else "not kept"
            yield (
                f"- {suite}, {shots}: of {marks['examples']:.0f} held-out examples {before:.1f} % "
                f"right untrained, {after:.1f} % trained (error {error:.1f}), log-loss "
                f"{marks['loss_before']:.2f} and {marks['loss_after']:.2f}: {kept}, after "
                f"{marks['train_cpu_s']:.0f} s of one core"
            )


def _router() -> Iterator[str]:
    report = json.loads((RESULTS / "router.json").read_text())
    yield from _heading("The choice of the adapter", report, "bench-router")
    yield "Few examples: means of three draws. Nothing is tuned on test prompts."
    yield ""
    yield from router_table()
    yield ""
    yield "Roundhouse beside these numbers, and what it takes for out of scope:"
    yield ""
    heads = ("top 3", "best baseline", "lowest draw", "ECE", "AUROC out of scope", "best baseline")
    yield "| | " + " | ".join((*heads, "abstains in scope", "out of scope")) + " |"
    yield "|---|" + "---:|" * 8
    for suite, found in report["adapters"].items():
        ours = found["Roundhouse"]
        cells = [str(ours.get(key, "")) for key in _OURS]
        cells.insert(1, _best_baseline(found, "top3"))
        cells.insert(5, _best_baseline(found, "oos_auroc"))
        yield f"| {suite} | " + " | ".join(cells) + " |"
    yield from _reader(report)
    yield from _scope(report["scope"])
    yield from _trained(report)
    weights = report["weights"]
    yield ""
    yield "### By the weights alone"
    yield ""
    yield f"The {weights['adapters']} adapters of the demo without their cards"
    yield f"(Arrow's prototypes), {weights['prompts']} prompts:"
    yield ""
    yield "| what is run of the base model | right adapter first, % | P50 | P99 |"
    yield "|---|---:|---:|---:|"
    for name, times in weights.items():
        if isinstance(times, dict):
            yield f"| {name} | {times['top1']} | {times['p50_ms']} ms | {times['p99_ms']} ms |"
    experts = report["experts"]
    yield ""
    yield "### A weak and a strong model (bar: APGR 0.65)"
    yield ""
    yield f"{experts['prompts']:,} prompts of MMLU, 5 folds; the weak model (Mixtral 8x7B) answers"
    yield f"{experts['weak']} % rightly, the strong one (GPT-4) {experts['strong']} %."
    yield ""
    yield "| | APGR |"
    yield "|---|---:|"
    for method, value in experts["apgr"].items():
        yield f"| {method} | {value:.3f} |"
    yield ""
    yield "### Time (bar: P50 10 ms, P99 25 ms; ten thousand adapters add 2 ms)"
    yield ""
    yield "| | P50 | P99 |"
    yield "|---|---:|---:|"
    yield from _times(report["scale"])
    yield from _endpoint(report["endpoint"])
    yield ""
    holds = report["scale"]["shortlist holds the best"]
    yield "The rows of adapters are without the encoder. Of 10,000 adapters the shortlist holds"
    yield f"the one with the best score of all in {holds} % of the prompts."


def _experts() -> Iterator[str]:
    report = json.loads((RESULTS / "experts.json").read_text())
    yield from _heading("Choosing among expert models", report, "bench-experts")
    told = report["foretold"]
    yield f"Seven small models on MMLU-Pro, outcomes of {told['learnt from']:,} prompts to learn"
    yield f"from, {told['prompts']:,} to choose for, once (bar: 0.475); how many are answered"
    yield "rightly:"
    yield ""
    yield "| | all prompts | those not asked before |"
    yield "|---|---:|---:|"
    for method, worth in told["worth"].items():
        yield f"| {method} | {worth:.4f} | {told['worth of new prompts'].get(method, '')} |"
    yield ""
    again, repeats = told["asked before, word for word"], told["repeats"]
    by_count = (f"{worth:.4f} from {count}" for count, worth in told["by outcomes learnt"].items())
    yield f"Roundhouse by the prompts learnt from: {', '.join(by_count)}."
    yield "The reader is"
    yield f"{'asked' if told['reads'] else 'not asked: it does not pay'}."
    yield f"{again} of the prompts were asked before, word for word."
    yield ""
    yield f"What bounds it: of all prompts that are there twice ({repeats['pairs']} pairs),"
    yield f"{100 * repeats['same outcome']:.1f} % of the outcomes come again, and to choose who was"
    yield f"right the other time is worth {repeats['worth of who was right']:.3f} of an oracle's"
    yield f"{repeats['oracle']:.3f}. So being right is no luck; but it is a fact of one prompt, of"
    yield "which the most alike other prompts tell little."
    yield ""
    yield "![Answers lost to what was learnt before](../benchmarks/results/experts.svg)"
    for scene, title in (
        ("steady", "Learnt while it answers"),
        ("drift", "Half way the best and the worst model change places"),
    ):
        yield ""
        yield f"### {title}"
        yield ""
        yield from _replayed(report, scene)


def _replayed(report: dict[str, Any], scene: str) -> Iterator[str]:
    found = dict(report[scene])
    bounds = found.pop("bounds")
    if scene == "steady":
        yield "Prompts to `auto` one after the other, rated at `POST /v1/feedback`; explored are"
        yield f"{100 * report['explore_share']:.0f} % of the choices at most. The default model is"
        yield f"{report['default model']}, the middle one ({bounds['default model']:.3f}); without"
        yield "exploring it answers all, unless all seven are rated on every prompt. Regret:"
        yield "answers lost to a predictor that has learnt 4,000 other prompts before, and to the"
        yield "oracle. Nothing is foretold of a model before it has 20 outcomes, 120 in all for the"
        yield "six others: with as many explored as here, exploring hardly pays yet."
    else:
        yield f"The half-life is {report['half_life']}. What was learnt before knows nothing of it."
    yield ""
    yield "| | right | first tenth | last tenth | second half | explored | regret | to the oracle |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, run in found.items():
        by_tenth, regret = run["by tenth"], run["regret"]
        cells = [f"{v:.3f}" for v in (run["mean"], by_tenth[0], by_tenth[-1], run["second half"])]
        cells += [str(run["explored"]), str(regret["learnt before"][-1]), str(regret["oracle"][-1])]
        yield f"| {name} | {' | '.join(cells)} |"
    for name in ("best model alone", "learnt before", "oracle"):
        bound = bounds[name]
        worth = bound if isinstance(bound, float) else bound["mean"]
        yield f"| {name} | {worth:.3f} | | | | | | |"


def _endpoint(found: dict[str, Any]) -> Iterator[str]:
    """What `auto` adds, by catalogue."""
    for catalogue, told in found.items():
        for name, title in (("added", "`auto` adds to a request"), ("POST /v1/route",) * 2):
            row = f"{title}, {catalogue}"
            yield f"| {row} | {told[name]['p50_ms']} ms | {told[name]['p99_ms']} ms |"


# Of a turn after the first: what it is beside the one before.
_TURNS = {
    "stays": "stays (bar 98)",
    "stays: an adapter's phrases": "follow-ups",
    "stays: an adapter's prompts": "prompts of the task",
    "stays: the base model's phrases": "with the base model",
    "goes": "goes (bar 95)",
    "goes: an adapter's prompts": "to an adapter",
    "goes: the base model's prompts": "to the base model",
    "needless switches": "needless switches",
}


def _conversations() -> Iterator[str]:
    report = json.loads((RESULTS / "conversations.json").read_text())
    yield from _heading("Conversations", report, "bench-conversations")
    turns = report["turns"]
    yield f"{report['conversations']} made conversations of 3 to 8 turns for the test"
    yield f"({turns['test']:,} turns), and as many to choose `router.stay_margin` by, with other"
    yield "skills and other phrases, in the demo's catalogue of thirteen. Each method goes on with"
    yield "what it chose itself. How many of the turns after the first are answered by the right"
    yield "adapter, or by the base model where none is, in %, of those whose task is that of the"
    yield "turn before (stays), and of those with another one (goes); needless switches: changes"
    yield "of the adapter where the task stays."
    yield ""
    yield "| | " + " | ".join(_TURNS.values()) + " |"
    yield "|---|" + "---:|" * len(_TURNS)
    for part in ("test", "tuning"):
        for method, found in report[part].items():
            cells = " | ".join(str(found[name]) for name in _TURNS)
            yield f"| {method}{' (tuning)' if part == 'tuning' else ''} | {cells} |"
    if met := report.get("strangers"):
        shares = (f"{method} {share} %" for method, share in met.items() if method != "prompts")
        yield ""
        yield f"{met['prompts']} questions that people asked a system that could not help with"
        yield "them (CLINC150, out of scope), each as the second turn of a chat with an adapter,"
        yield f"go to the base model: {', '.join(shares)}."


def _unseen() -> Iterator[str]:
    report = json.loads((RESULTS / "unseen.json").read_text())
    yield from _heading("Topics that no adapter was made for", report, "bench-unseen")
    yield f"{report['prompts']:,} prompts of MMLU-Pro in {len(report['topics'])} topics (clusters"
    yield "of their meaning) and recorded outcomes of seven small models. One in the middle,"
    yield f"{report['base']}, is the base model; the others stand for adapters that were made for"
    yield "something else. Each topic in turn is new. Roundhouse, *k*: what outcomes of *k* of its"
    yield "prompts, and all of the other topics, choose for the rest, the topic not told. Best"
    yield "mean, *k*: the topic is told, and the best of seven on *k* prompts is taken for all,"
    yield "without a bound. Nearest topic's best: LORAUTER's way, of the topics known. Base is to"
    yield "abstain. The oracle is the best single one on the very prompts"
    yield "that it is measured on. No adapter is composed here: that takes their weights."
    yield ""
    yield "| | right, % | gained | percent of oracle's gain | percent of oracle |"
    yield "|---|---:|---:|---:|---:|"
    for method, m in report["mean"].items():
        yield (
            f"| {method} | {m['right']} | {m['gain']} ± {m['gain_error']} | {m['of_oracle']} ± "
            f"{m['of_oracle_error']} | {m['to_oracle']} ± {m['to_oracle_error']} |"
        )
    methods = [name for name in report["mean"] if name != "oracle"]
    yield ""
    yield "By topic, right answers in %, ± the standard error of what is gained on the base model;"
    yield "helpful: models that all outcomes together show to be better than it (95 %)."
    yield ""
    yield f"| | oracle | helpful | {' | '.join(methods)} |"
    yield "|---|---:|---:|" + "---:|" * len(methods)
    for topic, found in report["topics"].items():
        right, error = found["right"], found["error"]
        cells = (
            f"{right[name]}" + (f" ± {error[name]}" if name != "base" else "") for name in methods
        )
        helpful = len(found["helpful"]) or "none"
        yield f"| {topic} | {right['oracle']} | {helpful} | {' | '.join(cells)} |"


def _harness() -> Iterator[str]:
    report = json.loads((RESULTS / "harness.json").read_text())
    yield from _heading("Prompts as programs send them", report, "bench-harness")
    counts = report["prompts"]
    yield f"{counts['for adapters']} held-out prompts of the demo's skills and {counts['for none']}"
    yield "that are for none of them (CLINC150), in the shapes of ten programs and two of people's"
    yield "own, with matter made up around them. How many go where the bare prompt goes, in % (the"
    yield "bar: 98); how many are in scope, or not, as that is; of those for none, how many"
    yield "go where it goes. By what the user asked, and by all of the last turn."
    yield ""
    columns = ("in scope or not", "of those for none")
    yield f"| | {' | '.join(('what the user asked', *columns, 'all of the turn', *columns))} |"
    yield "|---|" + "---:|" * 6
    for name, found in (*report["styles"].items(), ("mean", report["all"])):
        ways = (found["asked"], found["whole turn"])
        cells = " | ".join(str(way[of]) for way in ways for of in ("choice", "scope", "for none"))
        yield f"| {name} | {cells} |"


_CLUSTER_COLUMNS = {
    "hit_ratio": "slot + host hits, %",
    "loads": "loads",
    "fetches": "from storage",
    "ttft_p50_ms": "TTFT P50, ms",
    "ttft_p99_ms": "TTFT P99, ms",
    "tpot_p50_ms": "TPOT P50, ms",
    "requests_per_s_with_drain": "requests/s",
    "max_over_mean_load": "max / mean load",
    "refused (429)": "429",
    "failed": "failed",
}


def _cluster() -> Iterator[str]:
    report = json.loads((RESULTS / "cluster.json").read_text())
    yield "## Placement and dispatch"
    yield ""
    yield f"`make bench-cluster`, {report['machine']};"
    yield ", ".join(f"{name} {v}" for name, v in report["versions"].items()) + "."
    yield "Every peer plays the same traces, streamed, its caches warm from the one before. Parts"
    yield "that were measured alone:"
    yield ""
    yield from (f"- `{command}`" for command in report["commands"].values())
    vllm = report["vllm"]
    yield ""
    adapters, rate = vllm["load"]["adapters"], vllm["load"]["requests_per_s"]
    yield f"### Real vLLM: {adapters} adapters on 2 replicas of 4 slots and 16 entries"
    yield ""
    best = vllm["offline optimum"]["hit_ratio"]
    yield f"{rate} requests a second, alpha 0.6; the offline optimum over the memory of both"
    yield f"replicas hits {best} %, holding the most popular ones for ever"
    yield f"{vllm['most popular held']['hit_ratio']} %. Medians of three traces. A load is an"
    yield "adapter that an engine takes into its memory, `from storage` those for which files came"
    yield "from behind the cluster. Ray Serve LLM does not say where an adapter was: each of its"
    yield "loads is counted as one miss. It plays as its users have it, on vLLM's own kernels, and"
    yield "with the engine that ours runs on, where only placement and gateway differ."
    yield ""
    yield "![Time to first token, hits](../benchmarks/results/cluster.svg)"
    yield ""
    yield from _peers(vllm, "median")
    yield ""
    yield from _against(vllm)
    for size in ("100 adapters", "1000 adapters"):
        part = report.get("echo", {}).get(size)
        if part is None:
            continue
        yield ""
        yield f"### {report['echo']['replicas']} replicas of the echo engine, {size}"
        yield ""
        yield f"{part['load']['requests_per_s']:g} requests a second; costs as measured on vLLM:"
        yield ", ".join(f"{k} {v}" for k, v in report["echo"]["costs"].items()) + ". The offline"
        yield f"optimum over all traces hits {part['offline optimum']['hit_ratio']} %."
        yield report["echo"].get("note", "")
        for trace, drawn in part["traces"].items():
            yield ""
            yield f"**{trace}** (the first tenth of the adapters gets"
            yield f"{100 * drawn['share of the first tenth']:.0f} % of the requests)"
            yield ""
            yield from _peers(part, trace)
    if "gateway" in report:
        yield from _gateway(report["gateway"])
    yield ""
    yield "### The cliff: all adapters in slots, and twice as many (bar: 5 times the median TTFT)"
    yield ""
    yield "| | within, ms | beyond, ms | ratio |"
    yield "|---|---:|---:|---:|"
    for peer, found in report["cliff"].items():
        within, beyond = (one["median"]["ttft_p50_ms"] for one in found.values())
        yield f"| {peer} | {within} | {beyond} | {beyond / within:.2f} |"
    yield ""
    yield "### What leaves: how long a replica remembers who was asked for"
    yield ""
    yield "Replayed on one replica of 16 entries, half an hour, medians of three traces; hits, %."
    yield "The default of `placement.usage_half_life_s` is 300."
    yield ""
    rules = list(next(iter(report["eviction"].values())))
    names = [f"{rule} s" if rule.isdecimal() else rule for rule in rules]
    yield "| | " + " | ".join(names) + " |"
    yield "|---|" + "---:|" * len(rules)
    for trace, ratios in report["eviction"].items():
        yield f"| {trace} | " + " | ".join(str(ratios[rule]) for rule in rules) + " |"
    if "sweep" in report:
        yield from _sweep(report["sweep"])
    news = report["news"]
    yield ""
    yield "### From a replica's report until the ingress knows (bar: 50 ms)"
    yield ""
    yield f"Of {news['replicas']} replicas: median {news['p50_ms']} ms, P99 {news['p99_ms']} ms."
    planner = report["planner"]
    yield ""
    yield "### The planner (bar: 100 ms)"
    yield ""
    yield f"{planner['adapters']:,} adapters on {planner['replicas']} replicas: median"
    yield f"{planner['p50_ms']} ms, longest {planner['max_ms']} ms, the first plan"
    yield f"{planner['first_ms']} ms."


def _against(vllm: dict[str, Any]) -> Iterator[str]:
    """Roundhouse held against the bars of the load on real engines."""
    ours = vllm["Roundhouse"]["median"]
    peers = [name for name in ("Ray Serve LLM", "Ray Serve LLM, our engine") if name in vllm]
    yield "| Roundhouse beside | " + " | ".join(peers) + " | bar |"
    yield "|---|" + "---:|" * (len(peers) + 1)
    for key, title in (
        ("ttft_p99_ms", "TTFT P99"),
        ("fetches", "cold loads, from storage"),
        ("loads", "loads into engines"),
    ):
        ratios = (f"{ours[key] / vllm[peer]['median'][key]:.2f}x" for peer in peers)
        yield f"| {title} | " + " | ".join(ratios) + " | 0.5x |"
    short = vllm["offline optimum"]["hit_ratio"] - ours["hit_ratio"]
    empty = " |" * (len(peers) - 1)
    yield f"| hits below the offline optimum, points | {short:.1f} |{empty} 5 |"


def _gateway(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "### The gateway"
    yield ""
    yield "The echo engine at no cost, two replicas and two processes that speak HTTP, the client"
    yield f"on the same cores; answers of {found['tokens']} tokens. The first token of one request"
    yield f"at a time is what the gateway adds; then {found['clients']} clients ask without pause."
    yield "Medians of three rounds. Ray Serve LLM collects the tokens of 50 ms into one message,"
    yield "which pays where an engine costs nothing. The bars, 1.5x and 0.7x, are against it as it"
    yield "comes, behind Ray Serve's proxy in Python; Roundhouse has Ray Serve run HAProxy."
    yield ""
    yield "| | TTFT P50 | TTFT P99 | streams/s | answers/s |"
    yield "|---|---:|---:|---:|---:|"
    peers = {name: row for name, row in found.items() if isinstance(row, dict)}
    for name, row in peers.items():
        times = f"{row['ttft_p50_ms']} ms | {row['ttft_p99_ms']} ms"
        yield f"| {name} | {times} | {row['streams_per_s']} | {row['answers_per_s']} |"
    ours, theirs = peers["Roundhouse"], peers["Ray Serve LLM"]
    keys = ("ttft_p50_ms", "ttft_p99_ms", "streams_per_s", "answers_per_s")
    ratios = (f"{ours[key] / theirs[key]:.2f}x" for key in keys)
    yield "| Roundhouse / Ray Serve LLM | " + " | ".join(ratios) + " |"


def _sweep(found: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "### What other values of the settings would do"
    yield ""
    yield "Each changed alone, in virtual time (`benchmarks/simulator.py`): 2 replicas with 100"
    yield "adapters and 16 with 400, busy, five traces each. Times are ratios to those with the"
    yield "default, below 1 is better; hits are points more."
    yield ""
    yield "| setting | default | value | mean TTFT | P99 TTFT | hits |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, values in found["settings"].items():
        default = found["defaults"][name]
        for value, held in values.items():
            yield (
                f"| `{name}` | {default} | {value} | {held['ttft_mean']} | {held['ttft_p99']} "
                f"| {held['hit_points']:+} |"
            )


def _peers(part: dict[str, Any], trace: str) -> Iterator[str]:
    """A row for each peer that played a trace."""
    yield "| | " + " | ".join(_CLUSTER_COLUMNS.values()) + " |"
    yield "|---|" + "---:|" * len(_CLUSTER_COLUMNS)
    for peer, found in part.items():
        if trace in found and peer != "traces":
            cells = (str(found[trace].get(key, "")) for key in _CLUSTER_COLUMNS)
            yield f"| {peer} | " + " | ".join(cells) + " |"


def _times(found: dict[str, Any]) -> Iterator[str]:
    """A row for each measurement that has percentiles."""
    for name, times in found.items():
        if isinstance(times, dict):
            yield f"| {name} | {times['p50_ms']} ms | {times['p99_ms']} ms |"


def _bold(value: float, best: float) -> str:
    return f"**{value:.1f}**" if value == best else f"{value:.1f}"


def _chaos() -> Iterator[str]:
    report = json.loads((RESULTS / "chaos.json").read_text())
    yield from _heading("When a part dies under load", report, "bench-chaos")
    yield f"{report['clients']} clients ask all the time, each request by a connection of its own,"
    yield "for named adapters, the base model and `auto`, whole and as streams. Engines that cost"
    yield "nothing; two replicas, two ingresses. Counted is what was sent from the fault on; only"
    yield "what was under way in the part that died may fail. No error had another shape than ours."
    yield ""
    yield "| fault | sent | failed | last after | longest with no answer | /readyz | before |"
    yield "|---|---:|---:|---:|---:|---|---|"
    for name, seen in report["faults"].items():
        told = ", ".join(f"{status} from {at} s" for at, status in seen["readyz"][:6])
        yield (
            f"| {name} | {seen['sent']} | {seen['failed']} | {seen['recovered_s']} s | "
            f"{seen['longest_gap_s']} s | {told} | {seen['before']} |"
        )


def _tracing() -> Iterator[str]:
    report = json.loads((RESULTS / "tracing.json").read_text())
    yield from _heading("What traces cost", report, "bench-tracing")
    yield "CPU of the whole ASGI application for a streamed request, with an echo engine, no Ray:"
    yield "the least of four times, then the median over rounds in turns. *before* is the release"
    yield f"without traces. Others used the machine (load {report['load']})."
    yield ""
    yield "| | CPU a request | rounds |"
    yield "|---|---:|---|"
    for name, us in report["cpu_us_per_request"].items():
        rounds = ", ".join(f"{v:.0f}" for v in report["rounds"][name])
        yield f"| {name} | {us:.0f} us | {rounds} |"
