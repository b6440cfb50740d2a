"""`verify`, `repair`, `cache`: whether what is kept is whole, and how much of it there is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chexgenbench.cli.output import (
    AsJson,
    HomeFolder,
    Quiet,
    print_json,
    print_listing,
    print_text,
    remark,
)

if TYPE_CHECKING:
    from chexgenbench.home import Home
    from chexgenbench.workflow.integrity import Fault, Verified
    from chexgenbench.workflow.leftovers import Leftover

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only say what would be done.", show_default="off"),
]

cache = typer.Typer(help="The feature cache: what it holds, and removing it.")

_SHOWN = 20
"""Lines of a kind on the screen; ``--json`` has them all."""


def verify(home: HomeFolder = None, json: AsJson = False, quiet: Quiet = False) -> None:
    """Read everything that is kept, and name what is damaged.

    Images, features, run directories, the store, and the weights that runs used are compared with
    the hashes that were taken when they were written. Ends with 1 where something is damaged.
    """
    from chexgenbench.home import Home
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.integrity import verify as look

    place = Home.find(home)
    found = look(place, Progress(quiet))
    if json:
        print_json({"ok": not found.faults, **_facts(found)})
    else:
        _tell(found, place, quiet=quiet)
        if found.faults:
            remark(f"Make it again: chexgenbench repair{place.option} (--dry-run says how)")
    if found.faults:
        raise typer.Exit(1)


def repair(
    dry_run: DryRun = False,
    home: HomeFolder = None,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Verify everything, and make again what is damaged from what is left.

    Run directories are written again from the store, the store from the run directories, features
    from the images, and images by their model. What cannot be made again is left as it is and
    named; then it ends with 1.
    """
    from chexgenbench.home import Home
    from chexgenbench.progress import Progress
    from chexgenbench.workflow.integrity import repair as mend

    place = Home.find(home)
    result = mend(place, Progress(quiet), dry_run=dry_run)
    failed = [{**_as_json(fault), "why": why} for fault, why in result.failed.items()]
    if json:
        print_json(
            {
                "ok": not (failed or (dry_run and result.found.faults)),
                **_facts(result.found),
                "done": result.done,
                "failed": failed,
            }
        )
    else:
        _tell(result.found, place, quiet=quiet, remedies=dry_run)
        for text in result.done:
            print_text(f"Done: {text}.")
        for why, faults in _grouped(result.failed).items():
            names = ", ".join(place.shown(fault.place) for fault in faults[:3])
            more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
            print_text(f"Not made again: {names}{more}: {why}.")
    if failed or (dry_run and result.found.faults):
        raise typer.Exit(1)


def _grouped(failed: Mapping[Fault, str]) -> dict[str, list[Fault]]:
    groups: dict[str, list[Fault]] = {}
    for fault, why in failed.items():
        groups.setdefault(why, []).append(fault)
    return groups


def _facts(found: Verified) -> dict[str, Any]:
    return {
        "checked": dict(found.checked),
        "unchecked": dict(found.unchecked),
        "damaged": [_as_json(fault) for fault in found.faults],
        "notes": found.notes,
    }


def _as_json(fault: Fault) -> dict[str, str]:
    return {
        "kind": fault.kind,
        "name": fault.name,
        "place": str(fault.place),
        "wrong": fault.wrong,
        "repair": fault.remedy,
    }


def _tell(found: Verified, home: Home, *, quiet: bool, remedies: bool = True) -> None:
    counts: Counter[str] = Counter()
    rows: list[Sequence[object]] = []
    for fault in found.faults:
        counts[fault.kind] += 1
        if counts[fault.kind] <= _SHOWN:
            rows.append((fault.kind, home.shown(fault.place), fault.wrong))
    if rows:
        print_listing(("kind", "damaged", "what is wrong"), rows)
    for kind, count in counts.items():
        if count > _SHOWN:
            print(f"... and {count - _SHOWN} more of the kind {kind}; --json has them all")
    if remedies and found.faults:
        for kind in counts:
            remedy = next(fault.remedy for fault in found.faults if fault.kind == kind)
            print_text(f"repair would, for {kind}: {remedy}")
    if not quiet:
        for note in found.notes:
            remark(f"Note: {note}.")
    checked = ", ".join(f"{count:,} {what}" for what, count in sorted(found.checked.items()))
    old = ", ".join(f"{count:,} {what}" for what, count in sorted(found.unchecked.items()))
    if old:
        remark(f"Unchecked, because an older release wrote no hash of them: {old}.")
    damaged = sum(counts.values())
    print_text(f"{f'{damaged:,} damaged' if damaged else 'Sound'}: {checked or 'nothing is there'}")


@cache.command("list")
def list_(json: AsJson = False) -> None:
    """What is kept of each encoder and task metric, the most bytes first."""
    import time

    from chexgenbench.downloads import size_text
    from chexgenbench.features import cache as kept
    from chexgenbench.home import Home

    place = Home.find()
    found = sorted(kept.entries(place.cache), key=lambda entry: -entry.bytes)
    if json:
        keys = ("name", "kind", "rows", "parts", "bytes", "last_used", "in_use")
        print_json([{key: getattr(entry, key) for key in keys} for entry in found])
        return
    rows = [
        (
            entry.name,
            entry.kind,
            "" if entry.rows is None else f"{entry.rows:,}",
            size_text(entry.bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
            "in use" if entry.in_use else "",
        )
        for entry in found
    ]
    if rows:
        print_listing(("name", "kind", "rows", "size", "last used", ""), rows)
    most = kept.limit()
    total = size_text(sum(entry.bytes for entry in found)) if found else "nothing"
    limit = "no limit" if most is None else f"at most {size_text(most)}"
    print_text(f"{total} in {place.shown(place.cache)}, {limit} ({kept.LIMIT})")


@cache.command("prune")
def prune(
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="SIZE",
            help="Remove until no more is left, such as 10GB.",
            show_default="off",
        ),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than",
            metavar="AGE",
            help="Remove what was not used for so long: 30d, 12h, 2w.",
            show_default="off",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="NAME",
            help="Only of that encoder or task metric; alone: all of it.",
            show_default="all",
        ),
    ] = None,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Remove features and work of task metrics, the least recently used first.

    A run makes again what it needs. Nothing is removed that a living process uses.
    """
    from chexgenbench.downloads import parse_size, size_text
    from chexgenbench.errors import UserError
    from chexgenbench.features import cache as kept
    from chexgenbench.home import Home

    if to is None and older_than is None and encoder is None:
        raise UserError(
            "Nothing says what to remove.",
            hint="Say --to 10GB, --older-than 30d or --encoder NAME.",
        )
    pruned = kept.prune(
        Home.find().cache,
        to=None if to is None else parse_size(to),
        older_than=None if older_than is None else kept.parse_age(older_than),
        name=encoder,
        dry_run=dry_run,
    )
    if json:
        print_json(
            {
                "parts": pruned.parts,
                "bytes": pruned.bytes,
                "left": pruned.left,
                "in_use": pruned.in_use,
                "dry_run": dry_run,
            }
        )
        return
    for name, count in pruned.parts.items():
        print_text(f"{name}: {count} parts")
    for name in pruned.in_use:
        remark(f"In use, and left as it is: {name}")
    verb = "would be removed" if dry_run else "removed"
    removed, left = (size_text(size) if size else "nothing" for size in (pruned.bytes, pruned.left))
    print(f"{removed} {verb}, {left} left")


def tell_leftovers(found: Sequence[Leftover], home: Home, *, json: bool, all_: bool) -> None:
    """Lists leftovers, removes them, and says how much that freed.

    Args:
        all_: also unfinished work.
    """
    from chexgenbench.downloads import size_text
    from chexgenbench.workflow.leftovers import clean

    if not json:
        for left in found:
            verb = "remove" if all_ or not left.unfinished else "keep  "
            size = size_text(left.bytes)
            print_text(f"{verb} {left.kind} {home.shown(left.path)}, {size}: {left.why}", hanging=7)
    freed = clean(home, found, unfinished=all_)
    if json:
        keys = ("kind", "path", "why", "bytes", "unfinished")
        rows = [{key: getattr(left, key) for key in keys} for left in found]
        removed = [not left.path.exists() for left in found]
        rows = [{**row, "removed": gone} for row, gone in zip(rows, removed, strict=True)]
        print_json({"leftovers": rows, "freed": freed})
        return
    print(f"{size_text(freed) if freed else 'Nothing'} freed")
