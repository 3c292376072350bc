#!/usr/bin/env python3
"""Measures a run over several processes on this machine, with networks of several speeds, and writes the tables of docs/SCALE.md.

    cargo build -p sae-train --features mpi
    tools/scale.py measure target/debug/sae-train     # as root, on Linux with `ip` and `tc` (iproute2) and `mpirun`
    tools/scale.py render

`measure` gives each process a network namespace of its own, joined by a bridge, and limits what each may send with `tc` (tbf). It
writes docs/scale.json, from which `render` writes the tables: what was measured, what the model says, and what it says of machines that
nobody has tried.
"""

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "docs" / "scale.json"
DOCUMENT = ROOT / "docs" / "SCALE.md"
SHARDS = 4
RATES = {"1 Gbit/s": 1e9, "250 Mbit/s": 2.5e8, "100 Mbit/s": 1e8}
SHAPE = {"data.train": "data/wordnet_minilm/train.safetensors", "training.batch_size": 2048, "model.n_latents": 8192}
STEPS, WARM, RUNS = 14, 4, 2
PATIENCE = 60  # seconds
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def sh(*words, **more):
    return subprocess.run(words, check=True, **more)


@contextmanager
def hosts(number):
    """Network namespaces with addresses 10.77.0.1 ... on a bridge; yields the options of mpirun that use them."""
    names = [f"10.77.0.{i + 1}" for i in range(number)]
    switch = "sae-switch"
    with tempfile.TemporaryDirectory() as directory:
        agent = Path(directory) / "agent"
        agent.write_text('#!/bin/sh\nhost=$1; shift\nexec ip netns exec "$host" sh -c "$*"\n')
        agent.chmod(0o755)
        for name in [*names, switch]:  # of a measurement that was killed
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
        try:
            sh("ip", "netns", "add", switch)
            sh("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
            sh("ip", "-n", switch, "link", "set", "br0", "up")
            for i, name in enumerate(names):
                sh("ip", "netns", "add", name)
                sh("ip", "link", "add", f"sae{i}", "netns", name, "type", "veth", "peer", "name", f"port{i}", "netns", switch)
                sh("ip", "-n", switch, "link", "set", f"port{i}", "master", "br0", "up")
                sh("ip", "-n", name, "addr", "add", f"{name}/24", "dev", f"sae{i}")
                sh("ip", "-n", name, "link", "set", f"sae{i}", "up")
                sh("ip", "-n", name, "link", "set", "lo", "up")
            net = "10.77.0.0/24"
            slots = ",".join(f"{name}:1" for name in names)
            options = ["--bind-to", "none", "--host", slots, "--mca", "plm_rsh_agent", str(agent), "--mca", "btl", "self,tcp"]
            options += ["--mca", "plm_rsh_no_tree_spawn", "1", "--mca", "routed", "direct"]
            options += ["--mca", "btl_tcp_if_include", net, "--mca", "oob_tcp_if_include", net]
            yield names, options
        finally:
            for name in [*names, switch]:
                subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def limit(names, rate):
    for i, name in enumerate(names):
        device = ["tc", "-n", name, "qdisc"]
        subprocess.run([*device, "del", "dev", f"sae{i}", "root"], stderr=subprocess.DEVNULL)
        if rate:
            tbf = ["rate", f"{int(rate)}bit", "burst", "256k", "latency", "50ms"]
            sh(*device, "add", "dev", f"sae{i}", "root", "tbf", *tbf)


def run(command):
    """What a command of mpirun prints; raises TimeoutExpired if it hangs, as its start over namespaces sometimes does."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | MPI, **pipes) as process:
        try:
            out, error = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        sys.exit(f"{' '.join(command)}\n{error}")
    return out


def patiently(measured, *arguments):
    for _ in range(3):
        try:
            return measured(*arguments)
        except subprocess.TimeoutExpired as error:
            print(f"hangs: {' '.join(error.cmd)}", flush=True)
    sys.exit("three hung one after the other")


def step(program, share, ranks, launcher, where):
    """Seconds per step and megabytes that process 0 sends per step, of one run."""
    with tempfile.TemporaryDirectory() as runs:
        settings = SHAPE | {"training.steps": STEPS, "training.validate_every": 1000, "run": "run"}
        settings |= {"runs_dir": runs, "training.validate_rows": 64, "training.checkpoint_minutes": 0}
        words = [str(program), str(ROOT / "configs" / "quickstart.toml"), "--plain", "--distributed", "--threads", "1"]
        if share == "latents" and ranks > 1:
            words += ["--shard", "latents"]
        else:
            settings["training.shards"] = SHARDS if share == "rows" else 1
        for key, value in settings.items():
            words += ["--set", f"{key}={value}"]
        command = [*where, "mpirun", "-n", str(ranks), *launcher, *words]
        output = run(command)
        records = map(json.loads, (Path(runs) / "run" / "metrics.jsonl").read_text().splitlines())
        times = [record["seconds"] for record in records if record["split"] == "train"]
        sent = re.search(r"sent ([0-9.]+) MB per step", output)
        seconds = statistics.median(b - a for a, b in zip(times[WARM:], times[WARM + 1:]))
        return {"seconds": seconds, "megabytes": float(sent.group(1)) if sent else 0.0}


def measure(program):
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    machine = {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release(), "revision": revision}
    rows = []

    def add(network, rate, share, ranks, launcher, where=()):
        runs = [patiently(step, program, share, ranks, launcher, where) for _ in range(RUNS)]
        best = min(runs, key=lambda run: run["seconds"])
        spread = [run["seconds"] for run in runs]
        rows.append({"network": network, "rate": rate, "share": share, "ranks": ranks, **best, "of": spread})
        print(rows[-1], flush=True)
        content = {"machine": machine, "shape": SHAPE, "shards": SHARDS, "rows": rows}
        MEASURED.write_text(json.dumps(content, indent=1) + "\n")

    for share in ("rows", "latents"):
        for ranks in (1, 2, 4):
            add("shared memory", None, share, ranks, ["--oversubscribe", "--bind-to", "core" if ranks < 3 else "none"])
        for ranks in (2, 4):
            with hosts(ranks) as (names, options):
                where = ["ip", "netns", "exec", names[0]]
                add("TCP", None, share, ranks, options, where)
                for network, rate in RATES.items():
                    limit(names, rate)
                    add(network, rate, share, ranks, options, where)
                limit(names, None)


def sent(numbers, ranks):
    """Bytes that a process sends per step: the slices of its gradients, and its slice of the parameters."""
    return 4 * 2 * numbers * (ranks - 1) / ranks


def sent_for_latents(rows, candidates, ranks):
    """The same where processes share the latents, of the default preset: y, and the candidates there and back."""
    return 8 * rows * (WIDTH + candidates + 1) * (ranks - 1) / ranks


def measured_table(measured, share):
    rows, cores = [row for row in measured["rows"] if row["share"] == share], measured["machine"]["cores"]
    alone = next(row for row in rows if row["ranks"] == 1)["seconds"]
    free = {row["ranks"]: row["seconds"] for row in rows if row["network"] == "TCP"}
    lines = ["| network | processes | MB sent per step | ms per step | model | of one process |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        model = ""
        if row["rate"]:
            model = f"{1e3 * (free[row['ranks']] + 8e6 * row['megabytes'] / row['rate']):.0f}"
        speed = f"{alone / row['seconds']:.2f}x"
        lines.append(
            f"| {row['network']} | {row['ranks']} | {row['megabytes']:.1f} | {1e3 * row['seconds']:.0f} | {model} | {speed} |"
        )
    shape = measured["shape"]
    parts = f" in {measured['shards']} parts" if share == "rows" else ""
    lines += [
        "",
        f"{measured['machine']['cpu']}, {cores} hardware threads, Linux {measured['machine']['kernel']}, revision "
        f"{measured['machine']['revision']}; d = 384, M = {shape['model.n_latents']:,}, batches of {shape['training.batch_size']:,} "
        f"rows{parts}, one thread per process, the least median of two runs.",
    ]
    return "\n".join(lines)


# Seconds per step of 4,096 rows, d = 768, M = 24,576, of one node; its price per hour in dollars, an assumption.
NODES = [
    ("two CPU cores (measured, docs/PERFORMANCE.md)", 0.77, 0.10),
    ("GPU (expected, not measured)", 1.5e-3, 3.00),
]
ROWS, WIDTH = 4096, 768
# Per row and process; the quickstart's mean in two processes is about as many.
CANDIDATES = 100
WIRES = [("10 Gbit/s", 10e9), ("100 Gbit/s", 100e9), ("400 Gbit/s", 400e9)]
LATENCY = 50e-6
# The dictionary, what training counts of latents, and W_V.
NUMBERS = 24576 * (WIDTH + 2) + WIDTH * WIDTH


def exchange(ranks, rate):
    """Seconds of the exchange of a step, by the model."""
    return 8 * sent(NUMBERS, ranks) / rate


def model_table():
    lines = ["| one node takes | wire | " + " | ".join(str(ranks) for ranks in (2, 4, 8, 16, 32, 64)) + " |"]
    lines.append("|---|---|" + "---:|" * 6)
    for name, alone, _ in NODES:
        for wire, rate in WIRES:
            cells = []
            for ranks in (2, 4, 8, 16, 32, 64):
                wait = exchange(ranks, rate) + 4 * LATENCY
                cells.append(f"{100 * alone / (alone + wait):.0f} %")
            lines.append(f"| {name} | {wire} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def modes_table():
    """What both ways send and hold, of a dictionary and its counters, by 8 processes with batches of ROWS rows."""
    ranks, gib = 8, 2**30
    lines = ["| M | rows: MB sent | latents: MB sent | rows: GiB held | latents: GiB held |", "|---:|---:|---:|---:|---:|"]
    for latents in (4096, 24576, 131072, 1048576):
        numbers = latents * (WIDTH + 2) + WIDTH * WIDTH
        by_rows, by_latents = sent(numbers, ranks), sent_for_latents(ROWS, CANDIDATES, ranks)
        spread = latents * (WIDTH + 2) / ranks + WIDTH * WIDTH
        held = [4 * numbers * (3 + 2 / ranks) / gib, 4 * spread * 5 / gib]
        lines.append(f"| {latents:,} | {by_rows / 1e6:,.0f} | {by_latents / 1e6:,.0f} | {held[0]:.2g} | {held[1]:.2g} |")
    return "\n".join(lines)


def pass_table():
    rows = 10e12 / (2 * WIDTH)
    lines = ["| one node | rows/s | reads | a pass by one node | nodes for a day | dollars per billion rows |", "|---|---:|---:|---:|---:|---:|"]
    for name, alone, price in NODES:
        speed = ROWS / alone
        days = rows / speed / 86400
        nodes = next(n for n in range(1, 4096) if days / n * (1 + exchange(n, 100e9) / alone) <= 1)
        lines.append(
            f"| {name} | {speed:,.0f} | {speed * 2 * WIDTH / 1e9:.3g} GB/s | {days:.2g} days | {nodes} | "
            f"{1e9 / speed / 3600 * price:.2g} |"
        )
    return "\n".join(lines)


def render():
    measured = json.loads(MEASURED.read_text())
    text = DOCUMENT.read_text()
    tables = {
        "measured": measured_table(measured, "rows"),
        "measured latents": measured_table(measured, "latents"),
        "model": model_table(),
        "modes": modes_table(),
        "pass": pass_table(),
    }
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        text, found = re.subn(pattern, lambda match: f"{match[1]}{table}\n{match[2]}", text, flags=re.S)
        if found != 1:
            sys.exit(f"{DOCUMENT}: no place for the table {name}")
    DOCUMENT.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("measure").add_argument("program", type=Path)
    commands.add_parser("render")
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments.program.resolve())
    else:
        render()


if __name__ == "__main__":
    main()
