"""What a person says of releases: look, promote, roll back, hold. All of it is recorded with the version."""

from __future__ import annotations

import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ip2p.errors import ParamsError
from ip2p.params import Params
from ip2p.release.registry import champion_number, crown, hold_of, version_numbers
from ip2p.track import give_up_soon, mlflow_in_reach, point_mlflow

_PARENTS = {"start": "from", "dataset": "dataset", "training_run": "trained by run", "code": "code", "champion_then": "champion then"}


@contextmanager
def registry_in_reach() -> Iterator[None]:
    """Raises `UserError` if the registry cannot be used, and soon: a person waits."""
    give_up_soon()
    with mlflow_in_reach():
        yield


def status(params: Params) -> list[str]:
    """A line a version, newest first, with aliases, score, and why it is or is not champion."""
    client, name = point_mlflow(params.track), params.register_.name
    known = version_numbers(params)
    if not known:
        return [f"{name}: no versions; `ip2p register` makes the first"]
    held = hold_of(params)
    lines = [f"{name}" + (f": promotions are held ({held})" if held else "")]
    for number, aliases in known.items():
        tags = client.get_model_version(name, number).tags
        head: dict[str, Any] = json.loads(tags.get("report", "{}"))
        score = f"  success {head['success']:.3f}" if "success" in head else ""
        by = f"  promoted by {tags['promoted_by']}: {tags['promotion_reason']}" if "promoted_by" in tags else ""
        lines.append(f"{number:>4}  {', '.join(aliases) or '-'}{score}{by}")
        if came := [f"{told} {tags[key]}" for key, told in _PARENTS.items() if key in tags]:
            lines.append(f"        {', '.join(came)}")
        lines += [f"        {reason}" for reason in tags.get("gate", "").split(" | ") if reason]
    return lines


def promote(params: Params, number: str, reason: str | None) -> str:
    """Make a version champion, whatever the gate says. Raises `ParamsError` if there is no such version, or no reason."""
    known = version_numbers(params)
    if not known:
        raise ParamsError("release promote: there are no versions yet; `ip2p register` makes the first")
    if number not in known:
        raise ParamsError(f"release promote: name a version, one of {', '.join(known)}")
    if not reason:
        raise ParamsError("release promote: say why with --reason; it is recorded with the version")
    crown(point_mlflow(params.track), params.register_.name, number, by=getpass.getuser(), reason=reason)
    return f"version {number} is champion"


def rollback(params: Params, reason: str | None) -> str:
    """Make the champion before this one champion again. Raises `ParamsError` if there was none."""
    client, name, now = point_mlflow(params.track), params.register_.name, champion_number(params)
    before = "" if now is None else client.get_model_version(name, now).tags.get("previous", "")
    if not before:
        raise ParamsError("release rollback: there was no champion before; `ip2p release status` lists the versions")
    why = f"rolled back from version {now}: {reason or 'no reason given'}"
    crown(client, name, before, by=getpass.getuser(), reason=why, back=True)
    return f"version {before} is champion again, in place of {now}"


def hold(params: Params, reason: str | None) -> str:
    """Let the gate promote nothing until `hold` without a reason."""
    client, name = point_mlflow(params.track), params.register_.name
    if not version_numbers(params):
        raise ParamsError(f"release hold: {name} has no versions yet")
    if reason is None:
        client.delete_registered_model_tag(name, "hold")
        return "promotions are no longer held"
    client.set_registered_model_tag(name, "hold", f"{reason} ({getpass.getuser()})")
    return "promotions are held; `ip2p release hold` without a reason ends it"
