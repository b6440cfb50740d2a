"""Tables, views and comments of the store, and the steps from one schema version to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from chexgenbench.errors import UserError
from chexgenbench.store.records import ADDED, SCHEMAS
from chexgenbench.types import FINDINGS, OVERALL

if TYPE_CHECKING:
    import pandas as pd

REBUILD = "Run `chexgenbench store rebuild` to make it again from the run directories."

PUBLISHED = Path(__file__).resolve().parent.parent / "published"


@dataclass(frozen=True)
class Table:
    """A table: its comment, its columns as (name, type, comment), and its key."""

    comment: str
    columns: tuple[tuple[str, str, str], ...]
    key: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()


_SCORE = (
    ("run_id", "VARCHAR NOT NULL", "The run, as in runs."),
    ("model", "VARCHAR NOT NULL", "What results call the model."),
    ("suite", "VARCHAR NOT NULL", "Name of the suite."),
    ("metric", "VARCHAR NOT NULL", "Name of the score, such as fid."),
    ("plugin", "VARCHAR NOT NULL", "Metric plugin that gave the score."),
    ("encoder", "VARCHAR NOT NULL", "Encoder whose features were compared."),
    (
        "subset",
        "VARCHAR NOT NULL",
        "overall, a finding, macro (mean over the findings), or a subset that the user named.",
    ),
    ("value", "DOUBLE", "The score; null unless status is ok."),
    ("standard_error", "DOUBLE", "Standard error of value, where the metric gives one."),
    ("ci_low", "DOUBLE", "Lower end of the 95 % interval."),
    ("ci_high", "DOUBLE", "Upper end of the 95 % interval."),
    ("n_real", "BIGINT", "Real images used; 0 for a score of single images."),
    ("n_fake", "BIGINT", "Generated images used."),
    ("higher_is_better", "BOOLEAN NOT NULL", "Direction of the score."),
    ("status", "VARCHAR NOT NULL", "ok, skipped or failed."),
    ("reason", "VARCHAR", "Why there is no value or no interval."),
    ("warning", "VARCHAR", "What a reader of the value must know."),
    (
        "warning_level",
        "BIGINT",
        "0 none; 1 the interval is wider than the value; 2 fewer than 50 images a side; "
        "3 the statistic itself is unsound here, such as a covariance of n <= d images.",
    ),
    ("floor", "DOUBLE", "The score of real against real images: halves of the subset by patient."),
    ("matched", "DOUBLE", "The score of real against generated images at those same sizes."),
    ("excess", "DOUBLE", "matched less floor: what is left when the size is accounted for."),
    ("excess_low", "DOUBLE", "Lower end of the 95 % interval of excess."),
    ("excess_high", "DOUBLE", "Upper end of the 95 % interval of excess."),
    ("n_floor", "BIGINT", "Images a side of floor and matched."),
    ("encoder_id", "VARCHAR", "Identity of the encoder: its code, weights and preprocessing."),
    (
        "basis",
        "VARCHAR",
        "Hash of real side, subset, encoder, metric, protocol and code: scores of one basis and "
        "equal n_fake compare.",
    ),
    ("protocol", "VARCHAR NOT NULL", "Protocol of the run."),
    ("seed", "BIGINT NOT NULL", "Seed of the run."),
    ("extra_info", "VARCHAR", "The user's label of the run."),
    ("created_at", "TIMESTAMP", "When the run began (UTC)."),
)

_FINDING_COLUMNS = tuple(
    (finding, "DOUBLE", f"{finding}: 1 present, 0 absent, -1 uncertain, null not mentioned.")
    for finding in FINDINGS
)

TABLES: dict[str, Table] = {
    "schema_info": Table(
        "Schema versions applied to this file; the largest one holds.",
        (
            ("version", "INTEGER NOT NULL", "Schema version."),
            ("applied_at", "TIMESTAMP NOT NULL", "When it was applied (UTC)."),
        ),
        ("version",),
    ),
    "runs": Table(
        "One model under one suite.",
        (
            ("run_id", "VARCHAR NOT NULL", "Identity of the run; its directory has this name."),
            ("suite", "VARCHAR NOT NULL", "Name of the suite."),
            ("model", "VARCHAR NOT NULL", "What results call the model: its name, or a label."),
            (
                "model_plugin",
                "VARCHAR",
                "Name of the model plugin; null where the images were there.",
            ),
            ("model_id", "VARCHAR NOT NULL", "Model with its parameters and weights, in models."),
            ("split", "VARCHAR NOT NULL", "Name of the split."),
            ("protocol", "VARCHAR NOT NULL", "Protocol: standard or legacy."),
            ("subsets", "VARCHAR", "SQL conditions of the user's subsets by name, as JSON."),
            ("uncertain", "VARCHAR", "What an uncertain label counts as."),
            ("reference", "VARCHAR", "Bundle that stood for the real images, if one did."),
            ("seed", "BIGINT NOT NULL", "Seed that all image seeds are hashed from."),
            ("status", "VARCHAR NOT NULL", "running, finished or failed."),
            ("reason", "VARCHAR", "Why the run failed."),
            ("generation_id", "VARCHAR", "Images that the run scored; runs may share them."),
            ("model_parameters", "VARCHAR NOT NULL", "Parameters of the model, as JSON."),
            ("repeats", "BIGINT NOT NULL", "Images a prompt."),
            ("batch_size", "BIGINT", "Requests a call of the model."),
            ("exact", "BOOLEAN NOT NULL", "Whether images are independent of the batch size."),
            ("device", "VARCHAR NOT NULL", "Device that generated."),
            ("dtype", "VARCHAR NOT NULL", "Floating-point type of the model."),
            ("limit", "BIGINT", "Prompts asked for; null is all of them."),
            ("n_prompts", "BIGINT NOT NULL", "Prompts of the run."),
            ("n_images", "BIGINT NOT NULL", "Images generated."),
            ("n_skipped_images", "BIGINT NOT NULL", "Images left out because unreadable."),
            ("n_flagged", "BIGINT NOT NULL", "Images with a flag, see images."),
            ("seconds_generating", "DOUBLE", "Time that the calls of the model took together."),
            ("images_per_second", "DOUBLE", "Images a second of a worker's calls."),
            ("workers", "BIGINT", "Processes that generated."),
            ("threads", "BIGINT", "Threads of each of them."),
            (
                "peak_memory",
                "BIGINT",
                "Most bytes that the model took in a process: tensors on a GPU, else the rise of "
                "its memory, first imports included.",
            ),
            ("n_cut_batches", "BIGINT", "Batches that were cut because memory ran out."),
            ("remarks", "VARCHAR", "What was noticed about the model and its prompts, as JSON."),
            ("created_at", "TIMESTAMP NOT NULL", "When the run began (UTC)."),
            ("finished_at", "TIMESTAMP", "When the run ended (UTC)."),
            ("used_at", "TIMESTAMP", "When the same command last found it finished (UTC)."),
            ("extra_info", "VARCHAR NOT NULL", "The user's label of the run."),
            ("caption_type", "VARCHAR NOT NULL", "Kind of text used as the prompt."),
            ("credentialed", "BOOLEAN NOT NULL", "Whether the split needs credentials."),
            ("images_root", "VARCHAR", "Folder of the real images."),
            (
                "versions",
                "VARCHAR NOT NULL",
                "Versions of the software that scored and, under generation, of the software that "
                "made the images, as JSON.",
            ),
            ("weights", "VARCHAR NOT NULL", "Hashes of the weights, as JSON."),
            (
                "hardware",
                "VARCHAR NOT NULL",
                "Machine, and the seconds of each stage of the run, as JSON.",
            ),
            ("encoders", "VARCHAR NOT NULL", "Encoders with their identities, as JSON."),
            ("metrics", "VARCHAR NOT NULL", "Metrics with their parameters, as JSON."),
            (
                "pools",
                "VARCHAR",
                "Images made beyond the test prompts by the name of their pool, as JSON.",
            ),
            ("commit", "VARCHAR", "Commit of the project, where known."),
        ),
        ("run_id",),
        ("status IN ('running', 'finished', 'failed')",),
    ),
    "models": Table(
        "A model plugin with given parameters and weights, used by at least one run.",
        (
            ("model_id", "VARCHAR NOT NULL", "SHA-256 of name, parameters and weights."),
            ("model", "VARCHAR NOT NULL", "What results call the model."),
            ("parameters", "VARCHAR NOT NULL", "Parameters, as JSON."),
            ("weights", "VARCHAR NOT NULL", "Hashes of the weights, as JSON."),
        ),
        ("model_id",),
    ),
    "prompts": Table(
        "The prompts of a run: rows of its split.",
        (
            ("run_id", "VARCHAR NOT NULL", "The run, as in runs."),
            ("split", "VARCHAR NOT NULL", "Name of the split."),
            ("prompt_id", "VARCHAR NOT NULL", "Row of the split."),
            ("prompt", "VARCHAR NOT NULL", "The text."),
            ("patient_id", "VARCHAR", "Patient, where the split knows it."),
            ("view", "VARCHAR", "Projection, where the split knows it."),
            ("image_path", "VARCHAR", "The real image, relative to the images root."),
            ("line", "BIGINT", "Line of the CSV that the row came from."),
            *_FINDING_COLUMNS,
        ),
        ("run_id", "prompt_id"),
    ),
    "images": Table(
        "The generated images of a run.",
        (
            ("run_id", "VARCHAR NOT NULL", "The run, as in runs."),
            ("generation_id", "VARCHAR", "The generation that holds the file."),
            ("image_id", "VARCHAR NOT NULL", "Identity of the image in the run."),
            ("prompt_id", "VARCHAR NOT NULL", "The prompt it answers."),
            ("repeat", "BIGINT", "0 for the first image of a prompt."),
            ("seed", "BIGINT", "Seed of the image."),
            ("path", "VARCHAR", "The file."),
            ("sha256", "VARCHAR", "SHA-256 of the file."),
            ("width", "BIGINT", "Width in pixels."),
            ("height", "BIGINT", "Height in pixels."),
            ("seconds", "DOUBLE", "Time it took, in seconds."),
            ("batch", "BIGINT", "Its batch: calls of the model are cut by the list of requests."),
            ("call", "BIGINT", "Requests in its call; fewer than in the batch: memory ran out."),
            (
                "flags",
                "VARCHAR[]",
                "What is suspect about the image: nan, black, constant, duplicate (as good as the "
                "image of another prompt), truncated (the model did not read the whole prompt), "
                "safety_blank, or a flag of the model.",
            ),
            ("status", "VARCHAR", "ok, or why the image does not count."),
            ("reason", "VARCHAR", "What was wrong with it."),
        ),
        ("run_id", "image_id"),
    ),
    "scores": Table(
        "A metric on an encoder over a subset of a run, or why there is none.",
        _SCORE,
        ("run_id", "plugin", "metric", "encoder", "subset"),
        ("status IN ('ok', 'skipped', 'failed')",),
    ),
    "differences": Table(
        "Scores of a run less those of an earlier one on the same basis, with paired errors: both "
        "answer the same prompts against the same real images.",
        (
            ("run_id", "VARCHAR NOT NULL", "The run, as in runs."),
            ("other_run", "VARCHAR NOT NULL", "The earlier run."),
            ("metric", "VARCHAR NOT NULL", "Name of the score."),
            ("plugin", "VARCHAR NOT NULL", "Metric plugin that gave the score."),
            ("encoder", "VARCHAR NOT NULL", "Encoder whose features were compared."),
            ("subset", "VARCHAR NOT NULL", "As in scores."),
            ("difference", "DOUBLE", "Score of run_id less score of other_run."),
            ("standard_error", "DOUBLE", "Paired standard error of difference."),
            ("ci_low", "DOUBLE", "Lower end of the 95 % interval."),
            ("ci_high", "DOUBLE", "Upper end of the 95 % interval."),
            ("p_value", "DOUBLE", "Two-sided p value of no difference."),
            ("p_holm", "DOUBLE", "The same, corrected by Holm over the subsets of the score."),
            (
                "images_needed",
                "DOUBLE",
                "Images that would settle a difference of this size; null where it is settled.",
            ),
            ("reason", "VARCHAR", "Why there is no interval."),
        ),
        ("run_id", "other_run", "plugin", "metric", "encoder", "subset"),
    ),
    "sample_scores": Table(
        "Scores of single images.",
        (
            ("run_id", "VARCHAR NOT NULL", "The run, as in runs."),
            ("image_id", "VARCHAR NOT NULL", "The image, as in images."),
            ("prompt_id", "VARCHAR", "The prompt, as in prompts."),
            ("metric", "VARCHAR NOT NULL", "Name of the score."),
            ("encoder", "VARCHAR NOT NULL", "Encoder it was taken on."),
            ("value", "DOUBLE", "The score; null where the image was not readable."),
        ),
        ("run_id", "image_id", "metric", "encoder"),
    ),
    "pool_prompts": Table(
        "The rows of the split that images were made for beyond the run's own prompts: of its "
        "training side, or of its test side with more seeds.",
        (
            ("run_id", "VARCHAR NOT NULL", "The run, as in runs."),
            ("side", "VARCHAR NOT NULL", "training or test."),
            ("prompt_id", "VARCHAR NOT NULL", "Row of that side."),
            ("prompt", "VARCHAR NOT NULL", "The text."),
            ("patient_id", "VARCHAR", "Patient, where the split knows it."),
            ("view", "VARCHAR", "Projection, where the split knows it."),
            ("image_path", "VARCHAR", "The real image, relative to the images root."),
            ("line", "BIGINT", "Line of the CSV that the row came from."),
            *_FINDING_COLUMNS,
        ),
        ("run_id", "side", "prompt_id"),
    ),
    "pool_images": Table(
        "The images that were made for pool_prompts, for privacy and utility.",
        (
            ("run_id", "VARCHAR NOT NULL", "The run, as in runs."),
            ("pool", "VARCHAR NOT NULL", "Side, rows and images a row, such as training-2000x10."),
            ("side", "VARCHAR NOT NULL", "training or test."),
            ("generation_id", "VARCHAR", "The generation that holds the file."),
            ("image_id", "VARCHAR NOT NULL", "POOL/IMAGE, as in sample_scores."),
            ("prompt_id", "VARCHAR NOT NULL", "The prompt it answers, as in pool_prompts."),
            ("repeat", "BIGINT", "0 for the first image of a prompt."),
            ("seed", "BIGINT", "Seed of the image."),
            ("path", "VARCHAR", "The file."),
            ("sha256", "VARCHAR", "SHA-256 of the file."),
            ("flags", "VARCHAR[]", "What is suspect about the image, as in images."),
            ("status", "VARCHAR", "ok, or why the image does not count."),
        ),
        ("run_id", "image_id"),
    ),
    "neighbours": Table(
        "Pairs of images that a person should see side by side, such as a generated image and the "
        "training image nearest to it.",
        (
            ("run_id", "VARCHAR NOT NULL", "The run, as in runs."),
            ("plugin", "VARCHAR NOT NULL", "Metric plugin that found the pair."),
            ("encoder", "VARCHAR NOT NULL", "Encoder it was found on; empty for none."),
            ("kind", "VARCHAR NOT NULL", "Such as nearest_training."),
            ("rank", "BIGINT NOT NULL", "1 for the most telling pair of its kind."),
            ("value", "DOUBLE", "Distance or score of the pair."),
            ("flagged", "BOOLEAN", "Whether it is taken for a copy, or for one patient."),
            ("image_id", "VARCHAR", "The image, as in images or pool_images."),
            ("prompt_id", "VARCHAR", "The row that it answers."),
            ("pool", "VARCHAR", "The pool of the image; null for the run's own images."),
            ("path", "VARCHAR", "Its file."),
            ("sha256", "VARCHAR", "SHA-256 of it."),
            ("other_id", "VARCHAR", "The other image: a row of the split, or a generated image."),
            ("other_side", "VARCHAR", "training or test."),
            ("other_real", "BOOLEAN", "Whether the other image is a real one."),
            ("other_path", "VARCHAR", "Its file."),
            ("other_sha256", "VARCHAR", "SHA-256 of it."),
        ),
        ("run_id", "plugin", "encoder", "kind", "rank"),
    ),
    "published": Table(
        "Numbers of the CheXGenBench paper, as published; not comparable with other splits.",
        (
            ("model", "VARCHAR NOT NULL", "Model of the paper."),
            ("metric", "VARCHAR NOT NULL", "Name of the score."),
            ("encoder", "VARCHAR NOT NULL", "Encoder; empty where the paper uses none of ours."),
            ("subset", "VARCHAR NOT NULL", "overall, or one of the findings."),
            ("value", "DOUBLE", "The number as published."),
            ("higher_is_better", "BOOLEAN NOT NULL", "Direction of the score."),
            ("size_b", "DOUBLE", "Parameters of the model, in thousand millions."),
            ("resolution", "BIGINT", "Width and height of its images, in pixels."),
            ("fine_tuning", "VARCHAR", "How the model was tuned."),
            ("split", "VARCHAR", "Split it was taken on."),
            ("protocol", "VARCHAR", "Protocol it was taken by."),
            ("source", "VARCHAR NOT NULL", "File the number stands in."),
            ("note", "VARCHAR", "What must be shown with the number."),
        ),
        ("model", "metric", "encoder", "subset"),
    ),
}

_LATEST = """
SELECT run_id FROM runs WHERE status = 'finished'
QUALIFY row_number() OVER (
    PARTITION BY model, suite ORDER BY coalesce(used_at, finished_at, created_at) DESC, run_id DESC
) = 1
"""

_FINDINGS = ", ".join(f"'{finding}'" for finding in FINDINGS)

_KEY = "plugin, metric, encoder, subset"
_KEY_A = "a.plugin, a.metric, a.encoder, a.subset"

_RANKED = f"""
WITH board AS (SELECT s.* FROM scores AS s WHERE s.run_id IN ({_LATEST})),
-- Each pair of runs of the board once, and Holm's correction over the pairs of a score.
pairs AS (
    SELECT least(d.run_id, d.other_run) AS one, greatest(d.run_id, d.other_run) AS two,
           {_KEY}, any_value(d.p_value) AS p_value
    FROM differences AS d
    WHERE d.run_id IN ({_LATEST}) AND d.other_run IN ({_LATEST}) AND d.p_value IS NOT NULL
    GROUP BY ALL
),
counted AS (
    SELECT pairs.*, runs.suite,
           row_number() OVER (PARTITION BY runs.suite, {_KEY} ORDER BY p_value, one, two) AS place,
           count(*) OVER (PARTITION BY runs.suite, {_KEY}) AS size
    FROM pairs JOIN runs ON runs.run_id = pairs.one
),
holm AS (
    SELECT one, two, {_KEY},
           max(p_value * (size - place + 1)) OVER (
               PARTITION BY suite, {_KEY} ORDER BY place
           ) AS p
    FROM counted
),
-- For each run the poorest of those that are better by more than chance.
beaten AS (
    SELECT a.run_id, {_KEY_A},
           max(CASE WHEN a.higher_is_better THEN -b.value ELSE b.value END) AS poorest
    FROM board AS a
    JOIN board AS b
      ON a.suite = b.suite AND a.plugin = b.plugin AND a.metric = b.metric
     AND a.encoder = b.encoder AND a.subset = b.subset AND a.basis = b.basis
     AND a.n_fake = b.n_fake AND a.run_id <> b.run_id AND a.status = 'ok' AND b.status = 'ok'
    LEFT JOIN holm
      ON holm.one = least(a.run_id, b.run_id) AND holm.two = greatest(a.run_id, b.run_id)
     AND holm.plugin = a.plugin AND holm.metric = a.metric AND holm.encoder = a.encoder
     AND holm.subset = a.subset
    WHERE CASE WHEN a.higher_is_better THEN b.value > a.value ELSE b.value < a.value END
      AND CASE
            WHEN holm.p IS NOT NULL THEN holm.p < 0.05
            -- Without a paired error: apart if the intervals are. Beside a value without one (a
            -- share of 0 or 1 shows no variation) the gap must exceed the other's whole interval.
            WHEN a.ci_low IS NOT NULL AND b.ci_low IS NOT NULL
                THEN greatest(a.ci_low, b.ci_low) > least(a.ci_high, b.ci_high)
            ELSE coalesce(
                abs(a.value - b.value)
                > coalesce(a.ci_high - a.ci_low, b.ci_high - b.ci_low),
                false)
          END
    GROUP BY ALL
),
above AS (
    SELECT a.run_id, {_KEY_A}, count(*) AS models
    FROM board AS a
    JOIN beaten USING (run_id, {_KEY})
    JOIN board AS b
      ON a.suite = b.suite AND a.plugin = b.plugin AND a.metric = b.metric
     AND a.encoder = b.encoder AND a.subset = b.subset AND a.basis = b.basis
     AND a.n_fake = b.n_fake AND b.status = 'ok'
    WHERE CASE WHEN a.higher_is_better THEN -b.value ELSE b.value END <= beaten.poorest
    GROUP BY ALL
)
SELECT board.*,
       CASE WHEN board.status = 'ok' AND board.basis IS NOT NULL
            THEN 1 + coalesce(above.models, 0) END AS rank
FROM board LEFT JOIN above USING (run_id, {_KEY})
"""  # noqa: S608

VIEWS: dict[str, tuple[str, str]] = {
    "leaderboard": (
        "Scores of the run of each model under each suite that was finished or asked for last, "
        "ranked within their basis.",
        _RANKED,
    ),
    "by_finding": (
        "The leaderboard by finding, beside the same score overall. Scores of subsets of "
        "different size do not compare; excess accounts for the size.",
        f"""
        SELECT f.suite, f.model, f.metric, f.encoder, f.subset AS finding,
               f.value, f.standard_error, f.ci_low, f.ci_high, f.rank,
               o.value AS overall_value, f.floor, f.matched, f.excess, f.excess_low,
               f.excess_high, f.n_real, f.n_fake, f.higher_is_better,
               f.status, f.reason, f.warning, f.warning_level, f.run_id
        FROM leaderboard AS f
        LEFT JOIN leaderboard AS o
          ON o.run_id = f.run_id AND o.plugin = f.plugin AND o.metric = f.metric
         AND o.encoder = f.encoder AND o.subset = 'overall'
        WHERE f.subset IN ({_FINDINGS})
        """,  # noqa: S608
    ),
    "compare": (
        "Two finished runs score by score: filter by run_a and run_b. The interval of the "
        "difference is paired, where the runs share their basis and were on the leaderboard "
        "together; `chexgenbench compare` takes it for any two runs.",
        """
        WITH once AS (  -- two processes may have taken one pair each
            FROM differences
            QUALIFY row_number() OVER (
                PARTITION BY least(run_id, other_run), greatest(run_id, other_run),
                             plugin, metric, encoder, subset
                ORDER BY run_id
            ) = 1
        ),
        paired AS (
            SELECT run_id AS run_a, other_run AS run_b, plugin, metric, encoder, subset,
                   standard_error, -ci_high AS ci_low, -ci_low AS ci_high, p_value, p_holm,
                   images_needed
            FROM once
            UNION ALL
            SELECT other_run, run_id, plugin, metric, encoder, subset,
                   standard_error, ci_low, ci_high, p_value, p_holm, images_needed
            FROM once
        )
        SELECT a.run_id AS run_a, b.run_id AS run_b, a.model AS model_a, b.model AS model_b,
               a.plugin, a.metric, a.encoder, a.subset,
               a.value AS value_a, a.ci_low AS ci_low_a, a.ci_high AS ci_high_a,
               b.value AS value_b, b.ci_low AS ci_low_b, b.ci_high AS ci_high_b,
               b.value - a.value AS difference, p.standard_error, p.ci_low, p.ci_high,
               p.p_value, p.p_holm, p.images_needed,
               CASE WHEN a.value IS NULL OR b.value IS NULL THEN NULL
                    WHEN a.value = b.value THEN 'equal'
                    WHEN (b.value > a.value) = a.higher_is_better THEN 'b' ELSE 'a' END AS better,
               p.p_holm < 0.05 AS settled,
               coalesce(a.basis = b.basis AND a.n_fake = b.n_fake, false) AS comparable,
               a.higher_is_better, a.status AS status_a, b.status AS status_b
        FROM scores AS a
        JOIN scores AS b
          ON a.plugin = b.plugin AND a.metric = b.metric AND a.encoder = b.encoder
         AND a.subset = b.subset AND a.run_id <> b.run_id
        JOIN runs AS ra ON ra.run_id = a.run_id AND ra.status = 'finished'
        JOIN runs AS rb ON rb.run_id = b.run_id AND rb.status = 'finished'
        LEFT JOIN paired AS p
          ON p.run_a = a.run_id AND p.run_b = b.run_id AND p.plugin = a.plugin
         AND p.metric = a.metric AND p.encoder = a.encoder AND p.subset = a.subset
        """,
    ),
    "flagged": (
        "How many images of each run of the leaderboard have which flag.",
        f"""
        SELECT runs.suite, runs.model, flag, count(*) AS n, any_value(runs.n_images) AS n_images,
               runs.run_id
        FROM (SELECT run_id, unnest(flags) AS flag FROM images) AS marked
        JOIN runs USING (run_id)
        WHERE runs.run_id IN ({_LATEST})
        GROUP BY runs.suite, runs.model, flag, runs.run_id
        """,  # noqa: S608
    ),
    "best": (
        "The best value for each suite, metric, encoder and subset of the leaderboard, and each "
        "basis where there are several; tied says how many models share its rank.",
        """
        SELECT suite, metric, encoder, subset, model, value, standard_error, ci_low, ci_high,
               count(*) FILTER (WHERE rank = 1) OVER (
                   PARTITION BY suite, plugin, metric, encoder, subset, basis, n_fake
               ) AS tied,
               n_real, n_fake, higher_is_better, warning, protocol, basis, run_id
        FROM leaderboard WHERE status = 'ok'
        QUALIFY row_number() OVER (
            PARTITION BY suite, plugin, metric, encoder, subset, basis, n_fake
            ORDER BY CASE WHEN higher_is_better THEN -value ELSE value END, model
        ) = 1
        """,
    ),
}

_VIEW_COLUMNS = {
    "flag": "A flag, as in images.",
    "n": "Images that have it.",
    "n_images": "Images generated.",
    "finding": "One of the findings.",
    "overall_value": "The same score over all rows.",
    "run_a": "The first run.",
    "run_b": "The second run.",
    "model_a": "Model of the first run.",
    "model_b": "Model of the second run.",
    "value_a": "Score of the first run.",
    "value_b": "Score of the second run.",
    "ci_low_a": "Lower end of the 95 % interval of value_a.",
    "ci_high_a": "Upper end of the 95 % interval of value_a.",
    "ci_low_b": "Lower end of the 95 % interval of value_b.",
    "ci_high_b": "Upper end of the 95 % interval of value_b.",
    "difference": "value_b less value_a.",
    "better": "a, b or equal, by the direction of the score.",
    "settled": "Whether p_holm is below 0.05; null where there is no paired error.",
    "comparable": "Whether both scores have one basis and as many generated images.",
    "rank": "1 plus the number of models at least as good as the poorest one that is better by "
    "more than chance (paired differences, Holm over the pairs of models): what nothing sets "
    "apart shares a rank.",
    "tied": "Models of rank 1.",
    "status_a": "Status of value_a.",
    "status_b": "Status of value_b.",
}


def quoted(text: object) -> str:
    """A string of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def _name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _create(connection: duckdb.DuckDBPyConnection) -> None:
    """Version 1, where it is created now, with all that came later."""
    for name, table in TABLES.items():
        parts = [f"{_name(column)} {kind}" for column, kind, _ in table.columns]
        # Rows of run directories are refused where they repeat a key. An index of them all would
        # take two thirds of the file and most of the time of taking them in.
        if name not in SCHEMAS:
            parts.append(f"PRIMARY KEY ({', '.join(_name(column) for column in table.key)})")
        parts.extend(f"CHECK ({check})" for check in table.checks)
        connection.execute(f"CREATE TABLE IF NOT EXISTS {_name(name)} ({', '.join(parts)})")


def _widen(connection: duckdb.DuckDBPyConnection) -> None:
    """Version 2: the table of differences, and columns that older rows have as null."""
    _create(connection)
    _add(connection, "scores", ADDED[2]["scores"])
    _add(connection, "runs", ("subsets", "uncertain", "reference"))
    _add(connection, "published", ("split", "protocol"))


def _engine(connection: duckdb.DuckDBPyConnection) -> None:
    """Version 3: what is known of how the images were made."""
    new = ("model_plugin", "workers", "threads", "peak_memory", "n_cut_batches", "remarks")
    _add(connection, "runs", new)
    _add(connection, "images", ADDED[3]["images"])


def _add(connection: duckdb.DuckDBPyConnection, table: str, columns: Sequence[str]) -> None:
    kinds = {column: kind for column, kind, _ in TABLES[table].columns}
    for column in columns:
        connection.execute(
            f"ALTER TABLE {_name(table)} ADD COLUMN IF NOT EXISTS {_name(column)} "
            f"{kinds[column].removesuffix(' NOT NULL')}"
        )


def _pools(connection: duckdb.DuckDBPyConnection) -> None:
    """Version 4: images beyond the test prompts, and pairs of images."""
    _create(connection)
    _add(connection, "runs", ("pools",))


def _unindex(connection: duckdb.DuckDBPyConnection) -> None:
    """Version 5: no index over the rows of run directories."""
    found = connection.execute(
        "SELECT table_name FROM duckdb_constraints() "
        "WHERE constraint_type = 'PRIMARY KEY' AND database_name = current_database()"
    ).fetchall()
    for name in sorted({str(row[0]) for row in found} & set(SCHEMAS)):
        indexed = _name(f"indexed_{name}")
        connection.execute(f"ALTER TABLE {_name(name)} RENAME TO {indexed}")
        _create(connection)
        connection.execute(f"INSERT INTO {_name(name)} BY NAME FROM {indexed}")
        connection.execute(f"DROP TABLE {indexed}")


MIGRATIONS: list[Callable[[duckdb.DuckDBPyConnection], None]] = [
    _create,
    _widen,
    _engine,
    _pools,
    _unindex,
]
"""The step at index i leads from schema version i to i + 1."""

SCHEMA_VERSION = len(MIGRATIONS)


def version_of(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """The schema version of a store; 0 when it is empty.

    Raises:
        UserError: when the file is a database of something else, or of a newer release.
    """
    tables = {
        str(row[0])
        for row in connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE NOT internal"
        ).fetchall()
    }
    if not tables:
        return 0
    row: tuple[int | None] | None = None
    if {"schema_info", "runs", "scores"} <= tables:
        try:
            row = connection.execute("SELECT max(version) FROM schema_info").fetchone()
        except duckdb.Error:
            row = None
    if row is None or row[0] is None:
        raise UserError(f"{path} is not a chexgenbench store.", hint=REBUILD)
    if row[0] > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {row[0]}; this release reads up to {SCHEMA_VERSION}.",
            hint="Update chexgenbench, or run `chexgenbench store rebuild` to make the store anew.",
        )
    return row[0]


def migrate(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Brings a store, perhaps an empty one, to this release's schema."""
    version = version_of(connection, path)
    if version == SCHEMA_VERSION:
        return
    # One transaction: hundreds of statements would each sync the log.
    connection.begin()
    for step, apply in enumerate(MIGRATIONS[version:], start=version + 1):
        apply(connection)
        connection.execute(
            "INSERT INTO schema_info VALUES (?, (now() AT TIME ZONE 'UTC')::TIMESTAMP)", [step]
        )
    for name, (_, sql) in VIEWS.items():
        connection.execute(f"CREATE OR REPLACE VIEW {_name(name)} AS {sql}")
    write_comments(connection)
    connection.execute("DELETE FROM published")
    frame = published_rows()
    connection.register("incoming_published", frame)
    connection.execute("INSERT INTO published BY NAME SELECT * FROM incoming_published")
    connection.unregister("incoming_published")
    connection.commit()


def write_comments(connection: duckdb.DuckDBPyConnection) -> None:
    """Says of every table, view and column of the database in use what it holds."""
    known = dict(_VIEW_COLUMNS)
    for part in ("differences", "scores"):
        known.update({column: text for column, _, text in TABLES[part].columns})
    for name, table in TABLES.items():
        connection.execute(f"COMMENT ON TABLE {_name(name)} IS {quoted(table.comment)}")
        for column, _, text in table.columns:
            connection.execute(f"COMMENT ON COLUMN {_name(name)}.{_name(column)} IS {quoted(text)}")
    for name, (comment, _) in VIEWS.items():
        connection.execute(f"COMMENT ON VIEW {_name(name)} IS {quoted(comment)}")
        for (column,) in connection.execute(
            "SELECT column_name FROM duckdb_columns() "
            "WHERE table_name = ? AND database_name = current_database()",
            [name],
        ).fetchall():
            connection.execute(
                f"COMMENT ON COLUMN {_name(name)}.{_name(column)} IS {quoted(known[column])}"
            )


_SHIFTED = (
    "As published; from Lung Lesion on, this row looks shifted by a column or two in the source."
)
_SMALL = "FID of a small subset is inflated by its size; do not compare across findings."
_PUBLISHED_METRICS: dict[str, tuple[str, str, bool]] = {
    "fid_rad_dino": ("fid", "rad-dino", False),
    "kid_rad_dino": ("kid", "rad-dino", False),
    "alignment_biovil_t": ("alignment", "biovil-t", True),
    "precision": ("precision", "rad-dino", True),
    "recall": ("recall", "rad-dino", True),
    "density": ("density", "rad-dino", True),
    "coverage": ("coverage", "rad-dino", True),
    "reid_mean": ("reid_mean", "", False),
    "latent_distance_mean": ("latent_distance_mean", "", True),
    "pixel_distance_mean": ("pixel_distance_mean", "", True),
    "reid_max": ("reid_max", "", False),
    "reid_count_above_threshold": ("reid_count_above_threshold", "", False),
}


def published_rows() -> pd.DataFrame:
    """The published numbers, one a row."""
    import pandas as pd

    facts = pd.read_csv(PUBLISHED / "fidelity.csv").set_index("model")
    rows: list[dict[str, object]] = []

    def add(model: str, column: str, subset: str, value: float, source: str, note: object) -> None:
        metric, encoder, higher = _PUBLISHED_METRICS[column]
        fact = facts.loc[model]
        rows.append(
            {
                "model": model,
                "metric": metric,
                "encoder": encoder,
                "subset": subset,
                "value": float(value),
                "higher_is_better": higher,
                "size_b": float(str(fact["size_b"])),
                "resolution": int(str(fact["resolution"])),
                "fine_tuning": str(fact["fine_tuning"]),
                "split": "mimic-cxr",
                "protocol": "legacy",
                "source": source,
                "note": note,
            }
        )

    for source in ("fidelity.csv", "privacy.csv"):
        for record in pd.read_csv(PUBLISHED / source).to_dict("records"):
            for column in _PUBLISHED_METRICS:
                if column in record:
                    add(record["model"], column, OVERALL, record[column], source, None)
    source = "fid_rad_dino_by_pathology.csv"
    for record in pd.read_csv(PUBLISHED / source).to_dict("records"):
        for finding in FINDINGS:
            shifted = record["model"] in {"sd-v1-5", "sd-v2"} and finding >= "Lung Lesion"
            note = f"{_SHIFTED} {_SMALL}" if shifted else _SMALL
            add(record["model"], "fid_rad_dino", finding, record[finding], source, note)
    return pd.DataFrame(rows)
