"""Verbs of operation: release, serve, feedback, doctor."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def _release_options(parser: argparse.ArgumentParser) -> None:
    whats = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    actions = {
        "status": "all versions, and why each is what it is",
        "promote": "make a version the champion by hand",
        "rollback": "make the champion before this one champion again",
        "hold": "have the gate promote nothing; without a reason it may again",
    }
    for name, text in actions.items():
        action = whats.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == "promote":
            action.add_argument("version", help="number of the version; `ip2p release status` lists them")
        if name != "status":
            action.add_argument("--reason", required=name == "promote", help="why; it is recorded")
        action.set_defaults(run=_release)


def _release(options: argparse.Namespace) -> int:
    from ip2p.params import load_params
    from ip2p.release import people

    params = load_params(options.params)
    with people.registry_in_reach():
        if options.what == "status":
            print("\n".join(people.status(params)))
        elif options.what == "promote":
            print(people.promote(params, options.version, options.reason))
        else:
            print({"rollback": people.rollback, "hold": people.hold}[options.what](params, options.reason))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from ip2p.params import load_params
    from ip2p.serve.app import serve

    params = load_params(options.params)
    given: dict[str, Any] = {n: v for n in ("host", "port", "editor") if (v := getattr(options, n)) is not None}
    given |= {"hosts": (*params.serve.hosts, *options.hosts)} if options.hosts else {}
    serve(params.changed("serve", **given))
    return 0


def _feedback(options: argparse.Namespace) -> int:
    from ip2p.params import load_params
    from ip2p.serve.preferences import export
    from ip2p.store import read_json

    pairs, votes = export(load_params(options.params), options.output)
    print(f"{pairs} preference pairs and {votes} votes in {options.output}")
    if pairs:
        version = read_json(options.output / "dataset.json")["version"]
        print(f"the next training learns from them with `train.preferences: {options.output}@{version[:12]}` in params.yaml")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from ip2p.doctor import diagnose

    lines, healthy = diagnose(options.params)
    print("\n".join(lines))
    return 0 if healthy else 2


def add_verbs(verbs: Any) -> None:
    """Verbs that use what the stages made."""
    release = verbs.add_parser("release", help="registered versions: look, promote by hand, roll back, hold")
    _release_options(release)
    serving = verbs.add_parser("serve", help="serve the champion over HTTP: page, OpenAI's and AUTOMATIC1111's interfaces, /api/v1")
    serving.add_argument("--host", help="address to listen on; any but a loopback address needs IP2P_API_KEYS (default: params)")
    serving.add_argument("--port", type=int, help="0 takes a free one (default: params)")
    serving.add_argument("--name", action="append", dest="hosts", help="a name under which it is reached too; may be repeated")
    serving.add_argument("--editor", help="an editor folder in place of the registry's champion")
    serving.set_defaults(run=_serve)
    feedback = verbs.add_parser("feedback", help="what people thought of served edits, as a dataset")
    feedback.add_argument("what", choices=("export",), help="export: preference pairs in Pick-a-Pic's columns, and all votes")
    feedback.add_argument("-o", "--output", type=Path, default=Path("data/preferences"), help="folder to write (default: %(default)s)")
    feedback.set_defaults(run=_feedback)
    verbs.add_parser("doctor", help="versions, device, disk, offline state").set_defaults(run=_doctor)
