"""A sweep's report on W&B: sketched from the store, drawn by a clerk, found again by its address."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.asked import reported
from harness.errors import UserError
from harness.planfile import SavedPlan
from harness.report.assemble import make_report
from harness.store import Store, read_json, write_whole
from harness.terminal import command
from harness.track.about import about_stages
from harness.track.desk import Desk, Stalled
from harness.track.ledger import read_turns
from harness.track.lives import lives_of
from harness.track.opening import Unreachable, find_target
from harness.track.page import run_id
from harness.track.sketch import Whereabouts, sketch
from harness.track.target import Target, Wish, plans_of, shards_of, wishes

PATIENCE = 300.0
"""Seconds that a server has to take a report and its views."""
KNOWN = "reports.json"


def write_spec(store: Store, given: str, data: Path | None, path: Path) -> None:
    """Write a sweep's sketch as JSON, with the runs as they are, or would be, named on a server."""
    saved = reported(given, store, data)
    wish = _wish(store, saved)
    folders = sorted((store.root / "wandb").glob("*"), key=lambda folder: folder.name.startswith("offline"))
    mine = [folder for folder in folders if folder.name.endswith(f"--{wish.project}")]
    folder = mine[0] if mine else Target("", "", wish.project).folder(store)
    made = sketch(make_report(store, [saved]), whereabouts(store, saved, wish, folder))
    try:
        write_whole(path, json.dumps(made, indent=1).encode())
    except OSError as error:
        raise UserError(f"--spec {path}: {error.strerror}; name a file in a folder that is there") from None


def save_report(store: Store, given: str, data: Path | None) -> list[str]:
    """Save a sweep's report and views; return their addresses. Raises UserError where no server takes them."""
    saved = reported(given, store, data)
    wish = _wish(store, saved)
    try:
        target = find_target(wish, "online")
    except Unreachable as error:
        raise UserError(
            f"wandb: a report needs its server: {error}. "
            f"`{command('report', saved.plan.name, store=store.root)}` writes one to browse here, "
            "--spec FILE what this one would show"
        ) from None
    folder = target.folder(store)
    made = sketch(make_report(store, [saved]), whereabouts(store, saved, wish, folder))
    known: dict[str, Any] = read_json(folder / KNOWN) or {}
    desk = Desk("online")
    try:
        answer = desk.ask(PATIENCE, do="draw", sketch=made, target=asdict(target), known=known.get(saved.plan.name, {}))
    except Stalled as error:
        raise UserError(f"wandb: {target}: {error}; the report is not saved, try again later") from None
    finally:
        desk.close()
    had = known.get(saved.plan.name, {}).get("views", {})
    drawn = {"report": answer.get("report", ""), "views": {**had, **answer.get("views", {})}}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / KNOWN, json.dumps({**known, saved.plan.name: drawn}, indent=1).encode())
    if why := answer.get("error") or answer.get("failed"):
        publish = command("wandb", "publish", saved.plan.name, store=store.root)
        first = f"`{publish}` comes first, then this again"
        raise UserError(
            f"wandb: {target}: {why}; the report is not saved, or not all of it ({first}); the same command tries again"
        )
    return [answer["report"], *answer["views"].values()]


def _wish(store: Store, saved: SavedPlan) -> Wish:
    for wish in wishes(store):
        if saved.plan.name in wish.names:
            return wish
    name = saved.plan.name
    wanted = "write wandb: {project: NAME} and run the sweep command"
    raise UserError(f"{name} has no `wandb:` in its newest plan; {wanted}")


def whereabouts(store: Store, saved: SavedPlan, wish: Wish, folder: Path) -> Whereabouts:
    """Return a function from a stage to its newest run: project, run and group."""
    abouts = about_stages([*plans_of(store, wish), saved])
    shards = shards_of(folder, wish.project, wish.shard_by, list(abouts.values()))
    turns = read_turns(folder)
    found: dict[str, Mapping[str, str] | None] = {}

    def where(key: str) -> Mapping[str, str] | None:
        if key not in found:
            about = abouts[key]
            lives = [life for life in lives_of(store.folder(about.stage.kind, key)) if life.current]
            found[key] = None
            for life in lives:
                run = run_id(key, life.first, turns.get(run_id(key, life.first), 0))
                found[key] = {"project": shards.of(about), "run": run, "group": about.group}
        return found[key]

    return where
