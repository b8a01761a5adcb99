"""The report: one HTML file that any browser shows, offline, on a phone too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from streamsplit.lab.charts import Bar, bars, embedding_map, lane, mixes, strip
from streamsplit.lab.page import Child, Html, document, join, table, tag
from streamsplit.lab.results import Seed, read_all
from streamsplit.lab.rows import Row
from streamsplit.lab.systems import BEST_FIXED, LEARNED, ORACLE, STREAMED
from streamsplit.lab.verdicts import claims, verdicts
from streamsplit.lab.wording import mean_return, number, small_interval
from streamsplit.whole_file import write_whole

REPORT_FILE: Final = "report.html"
DISTURBED: Final = 0.1

ADAPTIVE: Final = (LEARNED, "greedy_profile", "heuristic", "linucb")


def write_report(out: Path, summary: Mapping[str, Any]) -> Path:
    """Writes DIR/report.html from a results folder and its summary.

    Raises:
        StorageError: it cannot be written.
    """
    path = out / REPORT_FILE
    write_whole(path, render(summary, read_all(out)).encode())
    return path


def render(summary: Mapping[str, Any], results: Mapping[str, Mapping[int, Seed]]) -> str:
    """The page."""
    scenarios: Mapping[str, Any] = summary["scenarios"]
    about = next(iter(next(iter(results.values())).values())).about
    windows = sum(
        len(rows) for seeds in results.values() for seed in seeds.values() for rows in seed.rows.values()
    )
    runs = sum(len(seed.rows) for seeds in results.values() for seed in seeds.values())
    return document(
        "StreamSplit lab",
        tag("h1", "StreamSplit lab"),
        tag(
            "p",
            f"{len(scenarios)} scenario{'s' if len(scenarios) != 1 else ''}, {runs} runs, {windows:,} windows; {about['made_by']} on "
            f"{about['machine']}. Client and server were real processes, the link a shaped proxy; what is modelled says so.",
            class_="soft",
        ),
        tag("nav", [tag("a", name, href=f"#{name}") for name in scenarios]),
        verdicts(scenarios),
        claims(summary["paper"], scenarios),
        [_scenario(name, found, results[name]) for name, found in scenarios.items()],
        _method(about),
    )


def _scenario(name: str, found: Mapping[str, Any], seeds: Mapping[int, Seed]) -> Html:
    about = next(iter(seeds.values())).about
    systems = found["systems"]
    return tag(
        "section",
        tag("h2", name, id=name),
        tag("p", found["title"], "" if found["complete"] else tag("b", " Not every seed has every system.")),
        _facts(seeds),
        _disturbance(systems),
        None if found["trained"] else _untrained(found["encoder"]),
        tag("h3", "Figures"),
        _table(systems),
        tag("div", _charts(systems), class_="charts"),
        mixes(
            "Share of windows per split",
            {
                each["label"]: {int(split): part for split, part in each["splits"].items()}
                for key, each in systems.items()
                if key in ADAPTIVE
            },
            about["last_split"],
        )
        if any(key in systems for key in ADAPTIVE)
        else None,
        _timelines(systems, seeds),
        _map(about),
        _simulated(found),
    )


def _facts(seeds: Mapping[int, Seed]) -> Html:
    about = next(iter(seeds.values())).about
    scenario, quota = about["scenario"], about["quota"]
    device, link = scenario["device"], scenario["link"]
    longer = ", ".join(
        f"{work} of work {factor:g} times" for work, factor in (quota.get("longer") or {}).items()
    )
    slow = f"{device['slowdown']:g} times slower than this machine's core: {device['source']}"
    facts = [
        ("sound", f"{scenario['sound']['seconds']:g} s, {scenario['sound']['kind']}, at {about['speed']:g} times its speed; seeds "
                  f"{', '.join(map(str, sorted(seeds)))}"),
        ("uplink", "; ".join(sorted({seed.about["uplink"] for seed in seeds.values()}))
                   + f"; {link['delay_ms']:g} ms each way, up to {link['jitter_ms']:g} ms more"),
        ("outages", "; ".join(f"{begin:g} to {end:g} s ({mode})" for begin, end, mode in about["outages"]) or "none"),
        ("load", "; ".join(sorted({seed.about["load"] for seed in seeds.values()}))),
        ("device", device["name"] + ("" if device["slowdown"] == 1 else f", {slow}")
                   + (f"; embeddings made here wait for {held} later ones" if (held := device.get("hold_windows")) else "")),
        ("quota", "the whole core" if quota["share"] >= 1 else
                  f"{quota['share']:.0%} of a core by {quota['method']}; measured: {longer} longer"),
    ]  # fmt: skip
    software_ms = about.get("software_ms")
    if software_ms:
        facts.append(
            (
                "software",
                f"{software_ms:.1f} ms between the sockets without any link: counted once, not {about['speed']:g} times",
            )
        )
    sources = [
        ("encoder", f"{about['encoder']}, version {about['version']}" + ("" if about["trained"] else ", NOT TRAINED")),
        ("quality", about["quality"]["source"]),
        ("power", f"{about['power']['name']} (modelled): {about['power']['source']}"),
        ("probe", f"learned from {about['probe_windows']} windows of other sound" if about["probe_windows"] else "none"),
        ("uncertainty", ", ".join(f"{key} {value:.3f}" for key, value in about["uncertainty"].items())),
    ]  # fmt: skip
    assumed = "" if about["quality"]["measured"] else "; the table of qualities is assumed"
    return join([
        _pairs(facts),
        tag("details", tag("summary", f"Where the figures come from{assumed}; energy is modelled"), _pairs(sources)),
    ])  # fmt: skip


def _disturbance(systems: Mapping[str, Any]) -> Html | None:
    """A warning where this machine had other work to do."""
    shares = [each["disturbed"] for each in systems.values() if each.get("disturbed") is not None]
    if not shares or max(shares) < DISTURBED:
        return None
    return tag(
        "p",
        tag("b", "This machine was not idle: ", class_="bad"),
        f"work that has nothing to do with these runs took up to {max(shares):.0%} of the device's core. Latencies are "
        "too long by as much as the client had to wait for it.",
    )


def _untrained(encoder: str) -> Html:
    """A warning where weights are random."""
    return tag(
        "p",
        tag("b", "The weights are random: ", class_="bad"),
        f"no weights of {encoder} come with the project. Latency, bytes and energy are what they would be with trained ones; accuracy "
        "and uncertainty say nothing. Returns compare where an encoder has one path: its embedding is the same wherever it is cut.",
    )


def _pairs(facts: Sequence[tuple[str, str]]) -> Html:
    return tag("dl", [[tag("dt", key), tag("dd", value)] for key, value in facts])


def _table(systems: Mapping[str, Any]) -> Html:
    rows, best, most = [], None, float("-inf")
    for place, (key, each) in enumerate(systems.items()):
        value = mean_return(each)
        if key not in (ORACLE, STREAMED, BEST_FIXED) and value is not None and value > most:
            best, most = place, value
        latency, energy = each["latency_ms"], each["energy_mj"]
        accuracy = each.get("accuracy") or {}
        rows.append([
            [each["label"], tag("small", "; ".join(each.get("notes") or [])) if each.get("notes") else None],
            [number(value, 3), small_interval((each["return"] or {}).get("interval") if isinstance(each["return"], dict) else None, 2)],
            [number(latency["p50"], 1), small_interval(latency.get("interval"), 1)],
            number(latency["p95"], 1),
            number(latency["p99"], 1),
            number(each["uplink_bytes_per_s"], 0),
            number(each.get("downlink_bytes_per_s"), 0),
            [number(energy["mean"], 0), small_interval(energy.get("interval"), 0)],
            number(each.get("compute_mj"), 1),
            number(each.get("radio_mj"), 0),
            [number(None if not accuracy else 100 * accuracy["mean"], 1),
             small_interval([None if end is None else 100 * end for end in accuracy.get("interval", [None, None])], 1)],
            number(100 * each["quality"] if each.get("quality") is not None else None, 1),
            number(each.get("lost"), 0),
            number(each.get("regret_to_modelled_oracle"), 3),
        ])  # fmt: skip
    heading = (
        "system", "return", "latency p50, ms", "p95", "p99", "bytes/s up", "down", "energy, mJ", "of it compute", "radio",
        "accuracy, %", "quality, %", "lost", "regret",
    )  # fmt: skip
    return table(heading, rows, best=() if best is None else (best,))


def _charts(systems: Mapping[str, Any]) -> list[Html]:
    def items(value: Any, interval: Any = None, tick: Any = None) -> list[Bar]:
        return [
            Bar(
                each["label"],
                value(each),
                tuple(interval(each) or (None, None)) if interval else (None, None),
                tick(each) if tick else None,
                other=key in (ORACLE, STREAMED) or key.startswith("server_"),
            )
            for key, each in systems.items()
            if key != BEST_FIXED
        ]

    returns = [value for each in systems.values() if (value := mean_return(each)) is not None]
    least = min(returns) - 0.15 * ((max(returns) - min(returns)) or 1.0) if returns else None
    return [
        bars(
            "Return per window; whiskers: 95 % interval",
            items(mean_return, lambda each: each["return"].get("interval") if isinstance(each["return"], dict) else None),
            2,
            least=None if least is None else round(least, 1),
        ),
        bars(
            "Latency, ms: median with its 95 % interval; tick: p95",
            items(lambda each: each["latency_ms"]["p50"], lambda each: each["latency_ms"].get("interval"),
                  lambda each: each["latency_ms"]["p95"]),
            1,
            log=True,
        ),
        bars("Uplink, bytes per second of sound", items(lambda each: each["uplink_bytes_per_s"]), log=True),
        bars(
            "Energy beyond idle, mJ per window (modelled)",
            items(lambda each: each["energy_mj"]["mean"], lambda each: each["energy_mj"].get("interval")),
        ),
    ]  # fmt: skip


def _timelines(systems: Mapping[str, Any], seeds: Mapping[int, Seed]) -> Html | None:
    """Of the first seed: what the adaptive systems did while link and load changed."""
    first = min(seeds)
    seed = seeds[first]
    shown = [key for key in (*ADAPTIVE, systems.get(BEST_FIXED, {}).get("system")) if key in seed.rows]
    if not shown:
        return None
    rows = seed.rows[shown[0]]
    window_ms, last_split = 1e3 * seed.about["window_s"], seed.about["last_split"]
    rates = [row.link_bps / 1e6 for row in rows]
    end_s = rows[-1].start_s + seed.about["window_s"]
    parts: list[Child] = [
        lane(
            "link, Mbit/s (log)",
            f"{min(rates):.2f} to {max(rates):.2f}",
            [rate or None for rate in rates],
            log=True,
        )
    ]
    if any(row.load_percent for row in rows):
        loads = [row.load_percent for row in rows]
        parts.append(lane("others' load, %", f"{min(loads):.0f} to {max(loads):.0f}", list(loads)))
    parts.append(
        lane(
            "uncertainty",
            f"up to {max(row.uncertainty for row in rows):.2f}",
            [row.uncertainty for row in rows],
        )
    )
    for key in shown:
        parts += _lanes(systems[key]["label"], seed.rows[key], window_ms, last_split)
    axis = tag(
        "div",
        tag("span", "0 s"),
        tag("span", f"{end_s / 2:.0f} s"),
        tag("span", f"{end_s:.0f} s of sound"),
        class_="axis",
    )
    return join([tag("h3", f"Over time, seed {first}"), parts, axis])


def _lanes(label: str, rows: list[Row], window_ms: float, last_split: int) -> list[Html]:
    latency = [row.latency_ms for row in rows]
    known = [value for value in latency if value is not None]
    note = f"{min(known):.0f} to {max(known):.0f} ms; dashed: one window" if known else "nothing came"
    rule = window_ms if known and max(known) > 0.5 * window_ms else None
    return [
        strip(f"{label}: split", [row.split for row in rows], last_split),
        lane(
            f"{label}: latency (log)",
            note if rule else note.split(";")[0],
            latency,
            log=True,
            rule=rule,
            area=False,
        ),
    ]


def _map(about: Mapping[str, Any]) -> Html | None:
    drawn = about["map"]
    if not drawn["x"]:
        return None
    title = f"Embeddings of the server's path, {drawn['method']}, coloured by what is heard"
    return tag(
        "details",
        tag("summary", "Embedding map"),
        embedding_map(drawn["x"], drawn["y"], drawn["labels"], title),
    )


def _simulated(found: Mapping[str, Any]) -> Html | None:
    """What the simulator says beside what was measured."""
    if not found["simulated"]:
        return None
    rows = []
    for key, each in found["simulated"].items():
        system = found["systems"].get(key) or {}
        measured = mean_return(system) if key != ORACLE else None
        rows.append([
            system.get("label") or key,
            number(each["return"], 3),
            number(measured, 3),
            number(each["latency_ms"]["p50"], 1),
            number(system["latency_ms"]["p50"] if key != ORACLE and system else None, 1),
            number(each["energy_mj"]["mean"], 0),
            number(system["energy_mj"]["mean"] if key != ORACLE and system else None, 0),
        ])  # fmt: skip
    error = found["simulator_error"]
    note = (
        f"Over {error['systems']} systems the simulated return is {error['median_error']} away from the measured one (median), at most "
        f"{error['largest_error']}; the oracle's deserves no more trust than that."
        if error["systems"]
        else "No system was both run and simulated."
    )
    heading = (
        "system",
        "return, simulated",
        "measured",
        "latency p50, simulated",
        "measured",
        "energy, simulated",
        "from measured",
    )
    summary = tag("summary", "Simulated and predicted beside measured")
    return tag("details", summary, tag("p", note), table(heading, rows), _predicted(found))


def _predicted(found: Mapping[str, Any]) -> Html | None:
    """How far the cost model was from each window that came."""
    error = found["prediction_error"]
    if error is None:
        return None
    return tag(
        "p",
        f"The cost model's prediction from what the device saw just before, over {error['windows']} windows of all systems that were run: in the "
        f"median {100 * error['latency_error']:.1f} % ({error['latency_error_ms']:.1f} ms) off in latency, {100 * error['bytes_error']:.1f} % in "
        "bytes, of which it counts TLS and TCP/IP headers that a socket does not see.",
    )


def _method(about: Mapping[str, Any]) -> Html:
    return join([
        tag("h2", "How this was measured"),
        tag(
            "p",
            "One system after another, each a fresh client on the same sound, trace and load; the order is rotated from seed to seed. "
            "Latency runs from a window's last sample to its usable embedding at the client, by the client's journal, plus how much later than "
            "due the sound could be taken. Sound, link and load run faster than life by the stated speed: a measured millisecond of the "
            "link counts that often, one of the client's own work and of the software between the sockets as often as the device is "
            "slower (less what the quota took), one of the server's once.",
        ),
        tag(
            "p",
            "Windows that were lost count as late as the reward's bound, and as worth nothing. PCM streamed during capture is modelled from PCM "
            "per window: the client sends whole windows. LinUCB is only as good as what the client teaches it.",
        ),
        tag("p", "Energy: no meter was involved. Power models and the table of qualities are named in each scenario, with their sources.",
            class_="soft"),
        tag("p", "Files beside this one: ", tag("code", "summary.json"), ", ", tag("code", "windows.parquet"), " (a row per window), ",
            tag("code", "SCENARIO/seed-N/SYSTEM.json"), f". Machine: {about['machine']}.", class_="soft"),
    ])  # fmt: skip
