"""Holds a load test against the server's own account of it: counts, rates, TTFT, ICL, arrivals.

Usage: scripts/truth [--streams 200 | --rate 50] [--seconds 20] [--chunks 100] [--gap-ms 20] [--stall-at-s 9] …

A server in a process of its own notes when every request came and when every chunk was written; `python -m runner load`
runs against it. Printed beside each other: how many requests there were and the window's rates by both, the percentiles
of both, their difference, the client's verdict, and for an open loop the Kolmogorov–Smirnov distance of the gaps
between arrivals, as the server saw them, from an exponential.

A request on its way through the loopback takes some 0.1 ms that is the kernel's. On a busy machine the server writes
late, too: its own lateness is printed, and the verdict says whether the client kept up.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("_truth_server.py")
KS_1_PERCENT = 1.628
"""Critical distance × √n (Kolmogorov's distribution, α = 0.01)."""


def at(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] if ordered else math.nan


def ks_exponential(gaps: list[float]) -> float:
    """Distance of the gaps' distribution from an exponential one with their mean."""
    mean, n = sum(gaps) / len(gaps), len(gaps)
    values = [1 - math.exp(-gap / mean) for gap in sorted(gaps)]
    return max(max((k + 1) / n - value, value - k / n) for k, value in enumerate(values))


def measured(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """load.json's first level, the server's truth, and the requests' own records."""
    server = [sys.executable, str(SERVER), "--chunks", str(options.chunks), "--gap-ms", str(options.gap_ms)]
    server += ["--ttft-ms", str(options.ttft_ms), "--stall-at-s", str(options.stall_at_s)]
    server += ["--stall-s", str(options.stall_s)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        level = ["--rate", str(options.rate)] if options.rate else ["--concurrency", str(options.streams)]
        command = [sys.executable, "-m", "runner", "load", "--synthetic", "--model", "truth", *level, "--out", folder]
        command += [
            "--base-url",
            f"http://127.0.0.1:{port}/v1",
            "--duration",
            f"{options.seconds}s",
            "--warmup",
            f"{options.seconds / 5:g}s",
        ]
        command += ["--input-tokens", "64", "--seed", str(options.seed), "--progress", "none", *options.more]
        sys.stdout.write(f"{shlex.join(command[1:])}\n")
        subprocess.run(command, check=True)
        process.terminate()
        truth = json.loads(process.stdout.read())
        result = json.loads((Path(folder) / "load.json").read_bytes())
        records = [json.loads(line) for line in (Path(folder) / "results.jsonl").read_bytes().splitlines()]
    return result["levels"][0], truth, records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--rate", type=float, help="an open loop instead")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--gap-ms", type=float, default=20.0)
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--stall-at-s", type=float, default=0.0, help="the server stands still then; 0 is never")
    parser.add_argument("--stall-s", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("more", nargs="*", help="options of `load`, behind --")
    options = parser.parse_args()
    level, truth, records = measured(options)
    show(options, level, truth, records)


def show(options: argparse.Namespace, level: dict[str, Any], truth: dict[str, Any], records: list[Any]) -> None:
    stamps = [record["runner"]["load"] for record in records if "first_content_s" in record["runner"]["load"]]
    client = {
        "TTFT": [each["first_content_s"] - each["sent_s"] for each in stamps],
        "E2E": [each["last_content_s"] - each["sent_s"] for each in stamps],
    }
    server = {
        "TTFT": [first - came for came, first, _ in truth["requests"]],
        "E2E": [last - came for came, _, last in truth["requests"]],
    }
    out = sys.stdout.write
    out(
        f"{len(records)} requests, {len(truth['gaps']):,} gaps; the server wrote {at(truth['late'], 0.99) * 1e3:.2f} ms"
    )
    out(f" late at p99\nclient: {json.dumps(level['client'])}\n")
    show_counts(level, truth, [each["sent_s"] for each in stamps])
    for name in ("TTFT", "E2E"):
        for q in (0.5, 0.9, 0.99):
            row(f"{name} p{q * 100:g}", at(client[name], q), at(server[name], q))
    for key, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        row(f"ICL {key} (sketch, 1 %)", level["metrics"]["icl"][key], at(truth["gaps"], q))
    if options.rate:
        came = sorted(each[0] for each in truth["requests"])
        gaps = [b - a for a, b in pairwise(came)]
        out(f"arrivals at the server: {len(came)}, KS distance {ks_exponential(gaps):.4f}, ")
        out(f"critical at 1 %: {KS_1_PERCENT / math.sqrt(len(gaps)):.4f}\n")
        for key in ("ttft", "ttft_from_schedule", "send_lag"):
            found = level["metrics"][key]
            out(f"{key}: p50 {found['p50']}, p99 {found['p99']}, max {found['max']}\n")


def show_counts(level: dict[str, Any], truth: dict[str, Any], sent: list[float]) -> None:
    """Requests, and what happened within the window, by the client and by the server."""
    came = sorted(each[0] for each in truth["requests"])
    # Both clocks are the machine's; the level's start is where the fastest request took no time at all.
    zero = min((a - b for a, b in zip(came, sorted(sent), strict=False)), default=0.0)
    start, end = level["window_s"]
    inside = {"achieved": 0, "succeeded": 0, "output_tokens": 0.0}
    for arrived, first, last in truth["requests"]:
        inside["achieved"] += start <= arrived - zero < end
        inside["succeeded"] += start <= last - zero < end
        length = last - first
        part = min(last - zero, end) - max(first - zero, start)
        share = max(0.0, part) / length if length else float(start <= first - zero < end)
        inside["output_tokens"] += truth["chunks"] * share
    requests = level["requests"]
    sys.stdout.write(
        f"requests: client sent {requests['sent']}, succeeded {requests['succeeded']}; server {len(came)}\n"
    )
    for name, count in inside.items():
        by_client, by_server = level["rates"][f"{name}_per_s"], count / (end - start)
        sys.stdout.write(f"{name}/s: client {by_client:,.2f}, server {by_server:,.2f}\n")


def row(name: str, client: float | None, server: float) -> None:
    if client is None:
        sys.stdout.write(f"{name:24} client –\n")
        return
    difference = f"{(client - server) * 1e3:+.2f} ms ({(client / server - 1) * 100:+.2f} %)"
    sys.stdout.write(f"{name:24} client {client * 1e3:9.2f} ms  server {server * 1e3:9.2f} ms  {difference}\n")


if __name__ == "__main__":
    main()
