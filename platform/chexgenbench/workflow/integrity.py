"""Whether all that a project keeps is what was written, and how what is damaged is made again."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from chexgenbench.errors import ChexGenBenchError, UserError, first_line, is_disk_fault
from chexgenbench.features import EncoderPlan, HashCache, extract, plan_encoder
from chexgenbench.features.extract import text_key
from chexgenbench.features.store import PARTS, seal_of
from chexgenbench.files import alone, atomic_path, digest, inside, read_json, sha256_file
from chexgenbench.generation import Generation, is_concluded, make_requests, plan_generation
from chexgenbench.home import Home
from chexgenbench.jobs.generate import hold_if_quiet
from chexgenbench.jobs.manifest import (
    IDENTITY,
    IMAGES,
    MANIFEST,
    SUMMARY,
    ManifestRow,
    manifest_row,
    parts,
    rewrite,
)
from chexgenbench.progress import Progress
from chexgenbench.registry import Registry
from chexgenbench.splits.prompts import PromptTable
from chexgenbench.store.image_files import generated_image, real_image
from chexgenbench.store.records import RUN_TABLES, RunRecord
from chexgenbench.store.run_directory import (
    RECORD_NAME,
    read_record,
    read_table,
    write_run,
)
from chexgenbench.store.store import Store
from chexgenbench.types import Context, Request
from chexgenbench.workflow.options import Options
from chexgenbench.workflow.plan import (
    hash_weights,
    load_plugins,
    open_split,
    resolve_devices,
    weight_paths,
)

Kind = Literal["image", "manifest", "features", "run", "store", "weights"]

_REMEDIES: Mapping[Kind, str] = {
    "image": "make the image again with its model",
    "manifest": "make the images of the damaged lines again with their model",
    "features": "remove the part, and encode again what runs have of it",
    "run": "write it again from the store",
    "store": "make the store again from the run directories",
    "weights": "none: fetch or copy the file again",
}


@dataclass(frozen=True)
class Fault:
    """Something that is not what was written.

    Attributes:
        place: the file or folder that is damaged.
        name: what it is: the image's id, the run's, the encoder's, the table's.
        wrong: what was found.
    """

    kind: Kind
    place: Path
    name: str
    wrong: str

    @property
    def remedy(self) -> str:
        """What `repair` would do."""
        return _REMEDIES[self.kind]


@dataclass
class Verified:
    """What `verify` found.

    Attributes:
        checked: how many of each kind were compared with a hash or read as a whole.
        unchecked: how many of each kind have no hash: an older release wrote them.
        notes: what was not looked at, and what is missing by itself without being damage.
    """

    faults: list[Fault] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    unchecked: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@dataclass
class Repaired:
    """What `repair` did, or would do.

    Attributes:
        done: what was made again, in words.
        failed: faults that stand, with why.
    """

    found: Verified
    done: list[str] = field(default_factory=list)
    failed: dict[Fault, str] = field(default_factory=dict)


# --- verify -----------------------------------------------------------------------------------


def verify(home: Home, progress: Progress) -> Verified:
    """Reads all that the project keeps, and the feature cache, and compares it with its hashes.

    Nothing that was remembered of a file counts: each is read. What another command is at work on
    is left out, with a note.
    """
    found = Verified()
    for folder in _generations(home):
        _verify_generation(folder, found, progress)
    _verify_features(home, found, progress)
    sound = _verify_runs(home, found, progress)
    _verify_store(home, sound, found, progress)
    _verify_weights(home, sound.values(), found, progress)
    return found


def _generations(home: Home) -> list[Path]:
    root = home.generations
    return sorted(path.parent for path in root.glob(f"*/{IDENTITY}")) if root.is_dir() else []


def _verify_generation(folder: Path, found: Verified, progress: Progress) -> None:
    if not _is_quiet(folder):
        found.notes.append(f"generation {folder.name} is being made: not looked at")
        return
    try:
        if digest(read_json(folder / IDENTITY))[:16] != folder.name:
            raise UserError("its content is not what the folder's name says")
    except UserError as error:
        place = folder / IDENTITY
        found.faults.append(Fault("manifest", place, folder.name, _plain(error)))
    rows: dict[str, tuple[str, str]] = {}
    damaged = 0
    for row in _lines(folder):
        if row is None:
            damaged += 1
        else:
            rows[row.id] = (row.path, row.sha256)
    if damaged:
        wrong = f"{damaged} lines cannot be read"
        found.faults.append(Fault("manifest", folder / MANIFEST, folder.name, wrong))
    expected = _wanted(folder)
    if is_concluded(folder):
        if expected is not None and len(rows) + damaged < expected:
            wrong = f"{expected - len(rows) - damaged} of {expected} images have no line"
            found.faults.append(Fault("manifest", folder / MANIFEST, folder.name, wrong))
    else:
        found.notes.append(
            f"generation {folder.name} is unfinished ({len(rows)} of {expected or '?'} images): "
            "the command that began it goes on with it"
        )
    with progress.stage(f"verify images of {folder.name}", len(rows)) as advance:
        for name, (path, sha256) in rows.items():
            other = _wrong_image(folder, path, sha256)
            if other is None:
                found.checked["images"] += 1
            else:
                found.faults.append(Fault("image", _place(folder, path), name, other))
            advance(1)


def _place(folder: Path, relative: str) -> Path:
    """The image of a line, or the manifest where the line leads out of the folder."""
    try:
        inside(folder, relative)
    except ValueError:
        return folder / MANIFEST
    return folder / relative


def _is_quiet(folder: Path) -> bool:
    try:
        with hold_if_quiet(folder) as mine:
            return mine
    except OSError:  # a project that may only be read is not worked on
        return True


def _wanted(folder: Path) -> int | None:
    """How many images a generation is to have; None where its file does not say."""
    try:
        count = read_json(folder / IDENTITY)["n_requests"]
    except (UserError, KeyError, TypeError):
        return None
    return count if isinstance(count, int) else None


def _lines(folder: Path) -> Iterator[ManifestRow | None]:
    """The rows of a manifest; None for each whole line that is none."""
    for path in parts(folder, MANIFEST):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):  # a line that was cut by a kill is no damage
                    try:
                        yield manifest_row(json.loads(line))
                    except (ValueError, TypeError, KeyError, RecursionError):
                        yield None


def _wrong_image(folder: Path, relative: str, sha256: str) -> str | None:
    try:
        path = inside(folder, relative)
        if not path.is_file():
            return "missing"
        size = path.stat().st_size
        if sha256_file(path) != sha256:
            return "empty" if not size else f"its {size:,} bytes are not those that were written"
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _verify_features(home: Home, found: Verified, progress: Progress) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(home.features.glob(f"*/*/{PARTS}"))
    with progress.stage("verify features", len(files), unit="parts") as advance:
        for path in files:
            name, seal = f"{path.parent.parent.name}/{path.parent.name}", seal_of(path)
            wrong = None
            try:
                if seal is None:
                    pq.read_table(path, page_checksum_verification=True)
                elif sha256_file(path) != seal:
                    wrong = "its content is not what its name says"
            except FileNotFoundError:  # pruned, or found damaged by another process
                continue
            except (OSError, ValueError, pa.ArrowException) as error:
                wrong = f"cannot be read: {first_line(error)}"
            if wrong:
                found.faults.append(Fault("features", path, name, wrong))
            elif seal is None:
                found.unchecked["parts of features"] += 1
            else:
                found.checked["parts of features"] += 1
            advance(1)


def _verify_runs(home: Home, found: Verified, progress: Progress) -> dict[Path, RunRecord]:
    """The run directories that can be read."""
    sound: dict[Path, RunRecord] = {}
    folders = _run_folders(home)
    with progress.stage("verify runs", len(folders), unit="runs") as advance:
        for folder in folders:
            advance(1)
            try:
                record = read_record(folder)
            except UserError as error:
                place = folder / RECORD_NAME
                found.faults.append(Fault("run", place, folder.name, _plain(error)))
                continue
            if record.schema_version < 5:
                found.unchecked["records of runs"] += 1
            well = True
            for name in RUN_TABLES:
                try:
                    read_table(folder, name, record)
                except UserError as error:
                    well = False
                    place = folder / f"{name}.parquet"
                    found.faults.append(Fault("run", place, folder.name, _plain(error)))
            if well:
                sound[folder] = record
                found.checked["runs"] += 1
                _verify_own(folder, record, found)
    return sound


def _run_folders(home: Home) -> list[Path]:
    """Those that hold a record or a table of a run: either may be what is damaged."""
    if not home.runs.is_dir():
        return []
    names = {RECORD_NAME, *(f"{name}.parquet" for name in RUN_TABLES)}
    return sorted(
        folder
        for folder in home.runs.iterdir()
        if folder != home.generations and any((folder / name).is_file() for name in names)
    )


def _verify_own(folder: Path, record: RunRecord, found: Verified) -> None:
    """The images of a run that lie nowhere in the project: the user's own."""
    if record.model_plugin is not None or record.status != "finished":
        return
    table = read_table(folder, "images", record).select(["image_id", "path", "sha256"])
    gone = 0
    for batch in table.to_batches(1000):
        for row in batch.to_pylist():
            path = Path(row["path"])
            try:
                same = sha256_file(path) == row["sha256"]
            except FileNotFoundError:
                gone += 1
            except OSError as error:
                found.notes.append(f"{path} cannot be read: {error.strerror or error}")
            else:
                if same:
                    found.checked["images"] += 1
                else:
                    found.notes.append(f"{path} was changed since run {record.run_id} scored it")
    if gone:
        found.notes.append(f"{gone} images that run {record.run_id} scored are not there any more")


def _verify_store(
    home: Home, runs: Mapping[Path, RunRecord], found: Verified, progress: Progress
) -> None:
    store = Store(home.store)
    if not home.store.is_file():
        if runs:
            wrong = f"missing, though there are {len(runs)} runs"
            found.faults.append(Fault("store", home.store, "store", wrong))
        return
    try:
        store.check()
        there = set(store.run_ids())
        # What is under way is taken in at its end.
        folders = [
            folder
            for folder, record in runs.items()
            if record.status != "running" or record.run_id in there
        ]
        with progress.stage("verify the store", len(folders), unit="runs") as advance:
            for folder, unequal in store.differing(folders):
                advance(1)
                run = folder.name
                if isinstance(unequal, UserError):
                    found.faults.append(Fault("run", folder, run, _plain(unequal)))
                elif unequal:
                    wrong = f"other rows of run {run} in {', '.join(unequal)}"
                    if run not in there:
                        wrong = f"the run {run} is missing"
                    found.faults.append(Fault("store", home.store, run, wrong))
        known = {folder.name for folder in _run_folders(home)}
        for run in sorted(there - known):
            wrong = "its directory is missing, though the store has it"
            found.faults.append(Fault("run", home.runs / run, run, wrong))
        found.checked["stores"] += 1
    except UserError as error:
        found.faults.append(Fault("store", home.store, "store", _plain(error)))


def _verify_weights(
    home: Home, runs: Iterable[RunRecord], found: Verified, progress: Progress
) -> None:
    """The weight files of the runs' models and encoders, each read once."""
    used: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {}
    for record in runs:
        entries = [("encoders", name, facts) for name, facts in record.encoders.items()]
        if record.model_plugin and record.weights:
            facts = {"parameters": record.model_parameters, "weights": record.weights}
            entries.append(("models", record.model_plugin, facts))
        for kind, name, facts in entries:
            weights = facts.get("weights") or {}
            if weights:
                key = digest([kind, name, facts.get("parameters"), weights])
                used[key] = (kind, name, dict(facts.get("parameters") or {}), dict(weights))
    if not used:
        return
    registry = load_plugins(Options(home=home))
    sha256 = lru_cache(maxsize=None)(sha256_file)  # of a file that several have
    with progress.stage("verify weights", len(used), unit="models and encoders") as advance:
        for kind, name, values, weights in used.values():
            advance(1)
            try:
                plugin = registry.find(kind, name)
                context = Context(home=home.root, cache=home.cache, allow_pickle=True)
                paths = weight_paths(plugin, plugin.parse(values), context)
                hashes = {part: sha256(path) for part, path in paths.items()}
            except (ChexGenBenchError, OSError) as error:
                # Weights that were moved or deleted are not damaged; the results stand.
                found.notes.append(f"weights of {name}: not looked at: {first_line(error)}")
                continue
            if len(weights) == 1 and next(iter(weights)) == f"{len(hashes)} files":
                if digest(hashes) != next(iter(weights.values())):
                    place = next(iter(paths.values())).parent
                    wrong = "other content than when a run used it"
                    found.faults.append(Fault("weights", place, name, wrong))
                else:
                    found.checked["files of weights"] += len(hashes)
                continue
            for part, value in weights.items():
                if part not in hashes:
                    found.notes.append(f"weights of {name}: {part} is not there")
                elif hashes[part] != value:
                    wrong = "other content than when a run used it"
                    found.faults.append(Fault("weights", paths[part], name, wrong))
                else:
                    found.checked["files of weights"] += 1


def _plain(error: ChexGenBenchError) -> str:
    return error.message.rstrip(".")


# --- repair -----------------------------------------------------------------------------------


def repair(home: Home, progress: Progress, *, dry_run: bool = False) -> Repaired:
    """Makes again what `verify` finds damaged, from what is left.

    Run directories come from the store, the store from the run directories, features from the
    images, and images from their model, which is said. Nothing that cannot be made again is
    removed.
    """
    found = verify(home, progress)
    result = Repaired(found)
    if dry_run or not found.faults:
        return result
    work = _Repair(home, progress, result)
    # Each from what comes before it.
    for step in (work.runs, work.generations, work.features, work.store, work.weights):
        step()
    return result


class _Repair:
    """Works on the faults of a kind together."""

    def __init__(self, home: Home, progress: Progress, result: Repaired) -> None:
        self._home, self._progress, self._result = home, progress, result
        self._store = Store(home.store)

    @cached_property
    def _registry(self) -> Registry:
        return load_plugins(Options(home=self._home))

    def _faults(self, *kinds: Kind) -> list[Fault]:
        return [fault for fault in self._result.found.faults if fault.kind in kinds]

    def _fail(self, faults: Iterable[Fault], why: str) -> None:
        self._result.failed.update(dict.fromkeys(faults, why.rstrip(".")))

    def _done(self, text: str) -> None:
        self._progress.say(text)
        self._result.done.append(text)

    def _records(self) -> Iterator[tuple[Path, RunRecord]]:
        for folder in _run_folders(self._home):
            try:
                yield folder, read_record(folder)
            except UserError:
                continue  # a fault that stands

    def runs(self) -> None:
        for name, faults in _by(self._faults("run"), lambda fault: fault.name).items():
            folder = self._home.runs / name
            try:
                if name not in self._store.run_ids():
                    raise UserError(
                        "the store does not have it either: delete the directory and run again"
                    )
                record, tables = self._store.run(name)
                damaged = {fault.place for fault in faults}
                influences = folder / "influences.parquet"
                lost = influences in damaged or not influences.is_file()
                if not damaged & {folder, folder / RECORD_NAME}:
                    record = read_record(folder)
                    tables = {
                        key: table
                        for key, table in tables.items()
                        if folder / f"{key}.parquet" in damaged
                    }
                if lost:
                    influences.unlink(missing_ok=True)
                    # Records of the first version say nothing of what each patient contributed.
                    record = record.model_copy(update={"schema_version": 1})
                if record.status == "running":
                    tables = {}
                write_run(folder, record, tables)
                for table in RUN_TABLES:
                    read_table(folder, table, record)
            except UserError as error:
                self._fail(faults, _plain(error))
                continue
            less = (
                "; what each patient contributed to its scores is lost, so that it has no "
                "differences with later runs: run it again with --new for those"
                if lost and record.status == "finished"
                else ""
            )
            self._done(f"run {name} written again from the store{less}")

    def generations(self) -> None:
        root = self._home.generations
        faults = self._faults("image", "manifest")
        owner = lambda fault: root / fault.place.relative_to(root).parts[0]  # noqa: E731
        for folder, each in _by(faults, owner).items():
            try:
                self._make_again(folder, each)
            except (ChexGenBenchError, OSError) as error:
                if is_disk_fault(error):
                    raise
                self._fail(each, first_line(error))

    def _make_again(self, folder: Path, faults: Sequence[Fault]) -> None:
        generation, model = self._generation(folder)
        doomed = {fault.name for fault in faults if fault.kind == "image"}
        rows: dict[str, ManifestRow] = {}
        with hold_if_quiet(folder) as mine:
            if not mine:
                raise UserError("another command is at work on it")
            rows = {row.id: row for row in _lines(folder) if row is not None}
            kept = [row for name, row in rows.items() if name not in doomed]
            named = {folder / row.path for row in kept}
            for name in doomed & rows.keys():
                image = _place(folder, rows[name].path)
                # A damaged line may lead anywhere.
                if image.parent == folder / IMAGES and image not in named:
                    image.unlink(missing_ok=True)
            (folder / SUMMARY).unlink(missing_ok=True)
            rewrite(folder, MANIFEST, kept)
        missing = len(generation.requests) - generation.made()
        self._progress.say(f"making {missing} images of {model} again, generation {folder.name}")
        with ExitStack() as stack:
            advance = stack.enter_context(
                self._progress.stage(f"generate {model}", len(generation.requests))
            )
            made = generation.run(advance, say=self._progress.say)
        other = [name for name, row in rows.items() if made[name].sha256 != row.sha256]
        if other:
            self._fail(
                faults,
                f"{len(other)} images that were made again are not the same as before, such as "
                f"{other[0]}: scores of the old ones no longer belong to the files; score them "
                "with run --new",
            )
        self._done(
            f"{missing} images of {model} made again in {folder.name}, "
            + (f"{len(other)} of them other than before" if other else "the same to the bit")
        )

    def _generation(self, folder: Path) -> tuple[Generation, str]:
        """The plan of a generation, from what a run says of it, and what results call its model.

        Raises:
            ChexGenBenchError: no run says how its images were made, or they would be others now.
        """
        reason = "no run says how its images were made"
        for place, record in self._records():
            pools = [
                name for name, pool in record.pools.items() if pool.get("generation") == folder.name
            ]
            if not record.model_plugin or not (record.generation_id == folder.name or pools):
                continue
            try:
                requests = _requests(place, record, pools[0] if pools else None)
                planned = self._plan(record, requests, folder)
            except ChexGenBenchError as error:
                reason = _plain(error)
                continue
            if planned.id == folder.name:
                return planned, record.model
            reason = (
                f"the model {record.model} would make other images now: its code, weights or "
                "device, or the prompts, are not those of then"
            )
        raise UserError(
            f"{reason}. Delete what is damaged, and the command that made the images makes it again"
        )

    def _plan(self, record: RunRecord, requests: Sequence[Request], folder: Path) -> Generation:
        assert record.model_plugin is not None
        plugin = self._registry.find("models", record.model_plugin)
        parameters = plugin.parse(record.model_parameters)
        device = record.device if record.device == "cpu" else resolve_devices("auto")[0]
        options = Options(home=self._home, suite=record.suite)
        training = open_split(options).training if plugin.spec.uses_training else None
        context = Context(
            device=device,
            dtype=record.dtype,
            home=self._home.root,
            cache=self._home.cache,
            training=training,
        )
        hashes = HashCache(self._home.hashes)
        try:
            identity = read_json(folder / IDENTITY)
            nonce = identity.get("nonce") if isinstance(identity, dict) else None
        except UserError:
            nonce = None
        plugin.load()
        return plan_generation(
            plugin,
            parameters,
            context,
            requests,
            batch_size=record.batch_size,
            exact=record.exact,
            root=self._home.generations,
            weights=hash_weights(plugin, parameters, context, hashes),
            nonce=nonce,
        )

    def features(self) -> None:
        for name, faults in _by(self._faults("features"), lambda fault: fault.name).items():
            folder = faults[0].place.parent
            with ExitStack() as stack:
                if not stack.enter_context(alone(folder)):
                    self._fail(
                        faults, "a process uses them; it encodes again what it needs of them"
                    )
                    continue
                lost = {key for fault in faults for key in _keys(fault.place)}
                for fault in faults:
                    fault.place.unlink(missing_ok=True)
            count, why = 0, ""
            try:
                count = self._encode_again(folder, lost)
            except ChexGenBenchError as error:
                why = f" ({first_line(error)})"
            removed = f"{len(faults)} parts" if len(faults) > 1 else "a part"
            self._done(
                f"{removed} of {name} removed, {count} vectors of it made again; a run encodes "
                f"what else it needs{why}"
            )

    def _encode_again(self, folder: Path, lost: set[str]) -> int:
        """Encodes what runs have, of a pool's images those whose keys were lost; a key in a damaged
        part may be a wrong one."""
        encoder, texts = folder.parent.name, folder.name == "texts"
        wanted: dict[str, str] = {}
        plan: EncoderPlan | None = None
        for place, record in self._records():
            for name, facts in record.encoders.items():
                if f"{name}-{facts.get('id')}" != encoder or record.status != "finished":
                    continue
                plan = plan or self._encoder(name, facts)
                items = self._texts(place, record) if texts else self._images(place, record, lost)
                wanted.update(items)
        if plan is None:
            return 0
        try:
            missing = (plan.texts if texts else plan.images).without(wanted)
            done = extract(
                [] if texts else [(key, Path(wanted[key])) for key in missing],
                [wanted[key] for key in missing] if texts else [],
                [plan],
                batch_size=32,
                text_encoders=frozenset({plan.name} if texts else ()),
                stage=partial(self._progress.stage, f"encode {plan.name}"),
                text_stage=partial(self._progress.stage, f"encode {plan.name}", unit="prompts"),
                say=self._progress.say,
            )
        finally:
            plan.close()
        return len(missing) - len(done.bad)

    def _encoder(self, name: str, facts: Mapping[str, Any]) -> EncoderPlan:
        plugin = self._registry.find("encoders", name)
        parameters = plugin.parse(dict(facts.get("parameters") or {}))
        device = "cpu" if facts.get("device") == "cpu" else resolve_devices("auto")[0]
        context = Context(
            device=device,
            dtype=str(facts.get("dtype")),
            home=self._home.root,
            cache=self._home.cache,
        )
        hashes = HashCache(self._home.hashes)
        plan = plan_encoder(
            plugin,
            parameters,
            context,
            root=self._home.features,
            weights=hash_weights(plugin, parameters, context, hashes),
        )
        if plan.id != facts.get("id"):
            plan.close()
            raise UserError(f"the encoder {name} is another one now")
        return plan

    def _images(self, folder: Path, record: RunRecord, lost: set[str]) -> Iterator[tuple[str, str]]:
        """Content and file of the images of a run, real and generated, that are there."""
        for table in ("images", "pool_images"):
            columns = ["generation_id", "path", "sha256"]
            for row in _each(read_table(folder, table, record).select(columns)):
                own = record.model_plugin is None
                try:
                    path = generated_image(
                        self._home.generations, row["generation_id"], row["path"], own=own
                    )
                except ValueError:
                    continue
                if path.is_file() and (table == "images" or row["sha256"] in lost):
                    yield row["sha256"], str(path)
        names = read_table(folder, "prompts", record).column("image_path").drop_null()
        paths = []
        for name in names.to_pylist():
            with suppress(ValueError):
                paths.append(real_image(record.images_root, name))
        hashes = HashCache(self._home.hashes)
        for path, key in zip(paths, hashes.sha256(paths), strict=True):
            if key is not None:
                yield key, str(path)

    def _texts(self, folder: Path, record: RunRecord) -> Iterator[tuple[str, str]]:
        for text in read_table(folder, "prompts", record).column("prompt").to_pylist():
            yield text_key(text), text

    def store(self) -> None:
        faults = self._faults("store")
        if not faults:
            return
        standing = {fault.name for fault in self._result.failed if fault.kind == "run"}
        stored: set[str] = set()
        try:
            self._store.check()
            stored = set(self._store.run_ids())
            readable = all(fault.name != "store" for fault in faults)
        except UserError:
            readable = False
        try:
            if readable:
                # What it has of a run whose directory is damaged is in no other place.
                names = sorted({fault.name for fault in faults} - standing)
                self._store.ingest([self._home.runs / name for name in names])
                self._done(f"{len(names)} runs taken into the store again")
                return
            readable_runs = {folder.name for folder, _ in self._records()} - standing
            if only_here := sorted(stored - readable_runs):
                raise UserError(
                    f"it has runs whose directories cannot be read: {', '.join(only_here)}"
                )
            if not readable and self._home.store.is_file():
                # It may be of a newer release, and have what no directory has.
                kept = self._home.store.with_name(f"{self._home.store.stem}-unreadable.duckdb")
                with atomic_path(kept) as temporary:
                    shutil.copyfile(self._home.store, temporary)
                self._done(f"the store as it was is kept as {kept.name}")
            rebuilt = self._store.rebuild(self._home.runs)
        except UserError as error:
            self._fail(faults, _plain(error))
            return
        self._done(f"store made again from {len(rebuilt.run_ids)} run directories")
        for folder, why in rebuilt.skipped.items():
            if folder.name not in standing:
                wrong = "not in the store that was made again"
                self._fail([Fault("run", folder, folder.name, wrong)], why)

    def weights(self) -> None:
        for fault in self._faults("weights"):
            self._fail(
                [fault],
                f"it cannot be made: fetch it again, chexgenbench models fetch {fault.name} or "
                f"encoders fetch {fault.name}, or copy it from where it came from",
            )


def _requests(folder: Path, record: RunRecord, pool: str | None) -> list[Request]:
    """The requests that a run's images, or those of a pool, answer."""
    repeats = record.repeats
    table = read_table(folder, "prompts", record).to_pandas()
    if pool is not None:
        images = read_table(folder, "pool_images", record).to_pandas()
        images = images[images["pool"] == pool]
        rows = read_table(folder, "pool_prompts", record).to_pandas()
        rows = rows[rows["side"].isin(images["side"])].set_index("prompt_id", drop=False)
        table = rows.loc[images["prompt_id"].drop_duplicates()].reset_index(drop=True)
        repeats = int(images["repeat"].max()) + 1
    prompts = PromptTable(
        name=record.split,
        table=table,
        source_file=folder,
        images_root=None,
        rows_read=len(table),
    )
    return make_requests(prompts, seed=record.seed, repeats=repeats, size=None)


def _keys(path: Path) -> list[str]:
    """The keys of a part of features as far as they can be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        keys: list[str] = pq.read_table(path, columns=["key"]).column("key").to_pylist()
    except (OSError, ValueError, pa.ArrowException):
        return []
    return keys


def _each(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(1000):
        yield from batch.to_pylist()


def _by(faults: Iterable[Fault], key: Callable[[Fault], Any]) -> dict[Any, list[Fault]]:
    groups: dict[Any, list[Fault]] = {}
    for fault in faults:
        groups.setdefault(key(fault), []).append(fault)
    return groups
