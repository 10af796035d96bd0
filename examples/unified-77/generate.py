#!/usr/bin/env python3
"""Writes razar.yaml from components.json: 77 components, each a real process that answers /health on its own port.

    ./generate.py            writes razar.yaml beside this file
    ./generate.py --check    says whether razar.yaml is what would be written (exit 1: it is not)
    ./generate.py --port-offset 20000 --output FILE    the same stack beside another one

Standard library only. The same facts give the same file, byte for byte.
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DEMO_SERVICE = "${RAZAR_DEMO_SERVICE:-../../bin/razar-demo-service}"
START_DELAY_MS = (100, 900)  # a boot of 77 then has a shape, and fits a minute even with few slots
START_DELAY_STEP_MS = 10

# Where kebab-case alone would not do.
NAMES = {
    "GoTToTAgent": "got-tot-agent",
    "ObservabilityHub_PC2": "observability-hub-pc2",
    "LazyLoader": "lazy-load-service",  # lazy-loader is an agent of the mesh
}

# root network and I/O, sacral GPU and media, solar learning, CPU and state, heart memory, throat speech and prompts,
# third_eye inference, crown orchestration.
CHAKRA_OF_GROUP = {
    "infrastructure_registry": "crown",
    "coordination_resource": "sacral",
    "memory_foundation": "heart",
    "speech_io": "throat",
    "pc2_core": "solar",
    "reasoning_services": "third_eye",
    "learning_services": "solar",
    "vision_services": "third_eye",
    "emotion_services": "heart",
    "language_services": "throat",
    "utility_services": "third_eye",
    "audio_services": "root",
    "core_services_optional": "crown",
    "dream_services": "sacral",
    "tutoring_services": "solar",
    "web_file_services": "root",
    "auth_security_services": "root",
    "pc2_utility_services": "solar",
    "pc2_infrastructure": "root",
}

HEADER = """\
# Written by generate.py from components.json: do not edit, run ./generate.py.
#
# The 77-component agent system with its dependencies and five profiles. Each component is a demo service that listens on its
# original port and answers /health on its original health port, after a start delay of its own.
name: unified-77
mesh: { parallel_starts: 8 }
defaults: { stop: { signal: SIGTERM, grace: 5s } }
"""


def kebab(name):
    if name in NAMES:
        return NAMES[name]
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1-\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", name).lower()


def start_delay_ms(name):
    low, high = START_DELAY_MS
    steps = (high - low) // START_DELAY_STEP_MS + 1
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return low + number % steps * START_DELAY_STEP_MS


def component_lines(name, group, facts, port_offset):
    own = kebab(name)
    port, health_port = (facts[key] + port_offset for key in ("port", "health_port"))
    yield f"  {own}:"
    yield f"    chakra: {CHAKRA_OF_GROUP[group]}"
    yield (
        f'    command: ["{DEMO_SERVICE}", --name={own}, --port={port}, --health-port={health_port},'
        f" --start-delay={start_delay_ms(name)}ms]"
    )
    metadata = {"agent": name, "group": group}
    if "vram_budget_percentage" in facts:
        metadata["vram_budget_percentage"] = facts["vram_budget_percentage"]
    yield "    metadata: { " + ", ".join(f"{key}: {value}" for key, value in metadata.items()) + " }"
    yield f"    ports: [{port}, {health_port}]"
    yield f"    readiness: {{ http: {{ port: {health_port}, path: /health }} }}"
    yield f"    liveness: {{ http: {{ port: {health_port}, path: /alive }} }}"
    yield f"    required: {str(facts['required']).lower()}"
    if facts["depends_on"]:
        yield "    depends_on:"
        for dependency in facts["depends_on"]:
            yield f"      {kebab(dependency)}: {{ condition: ready }}"


def members(profile, groups):
    """The original names of a profile, in the facts' order, and those that only their dependents bring in."""
    wanted = {name for group in profile["include_groups"] for name in groups[group]}
    wanted |= set(profile["include_components"])
    if isinstance(profile["optional"], dict):
        wanted |= set(profile["optional"]["include"])
    everything = {name: facts for group in groups.values() for name, facts in group.items()}
    closed, open_ = set(wanted), list(wanted)
    while open_:
        for dependency in everything[open_.pop()]["depends_on"]:
            if dependency not in closed:
                closed.add(dependency)
                open_.append(dependency)
    return [name for name in everything if name in closed], closed - wanted


def profile_lines(name, profile, groups, inherited):
    included, brought_in = members(profile, groups)
    limits, startup = profile["limits"], profile["startup"]
    if brought_in:
        yield f"  # {', '.join(kebab(n) for n in included if n in brought_in)}: needed by what is included"
    yield f"  {name}:"
    if inherited:
        yield "    extends: core"
    yield "    include:"
    for component in included:
        if component not in inherited:
            yield f"      - {kebab(component)}"
    if profile["autoload"]:
        yield f"    autoload: [{', '.join(kebab(n) for n in profile['autoload'])}]"
    yield f"    limits: {{ memory: {limits['memory_mb']}MiB, cpu: {limits['cpu_percent']}%, threads: {limits['max_threads']} }}"
    yield f"    parallel_starts: {startup['parallel_starts']}"
    yield f"    timeout: {startup['timeout_seconds']}s"


def check_facts(groups):
    """Refuses facts that would give a stack that cannot run: this says it with the original names."""
    everything = {name: facts for group in groups.values() for name, facts in group.items()}
    taken = {}
    for name, facts in everything.items():
        for key in ("port", "health_port"):
            other = taken.setdefault(facts[key], name)
            if other != name:
                sys.exit(f"components.json: {name}: {key} {facts[key]} is {other}'s")
        for dependency in facts["depends_on"]:
            if dependency not in everything:
                sys.exit(f"components.json: {name}: depends on {dependency}, which does not exist")
    names = {kebab(name) for name in everything}
    if len(names) != len(everything):
        sys.exit("components.json: two components have one kebab-case name")


def render(facts, port_offset):
    groups = facts["groups"]
    check_facts(groups)
    core, _ = members(facts["profiles"]["core"], groups)
    lines = [HEADER, "components:"]
    for group, components in groups.items():
        lines.append(f"  # {group}")
        for name, of_component in components.items():
            lines.extend(component_lines(name, group, of_component, port_offset))
            lines.append("")
    lines.append("profiles:")
    for name, profile in facts["profiles"].items():
        lines.extend(profile_lines(name, profile, groups, set() if name == "core" else set(core)))
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file would change")
    parser.add_argument("--output", type=Path, default=HERE / "razar.yaml")
    parser.add_argument("--port-offset", type=int, default=0, help="added to every port")
    args = parser.parse_args()
    text = render(json.loads((HERE / "components.json").read_text()), args.port_offset)
    if args.check:
        if not args.output.exists() or args.output.read_text() != text:
            sys.exit(f"{args.output} is not what components.json says; run {Path(__file__).name}")
        return
    args.output.write_text(text)


if __name__ == "__main__":
    main()
