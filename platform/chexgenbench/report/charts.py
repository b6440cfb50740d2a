"""The charts of the page as Vega-Lite, and the program that draws them.

A specification holds no data and no titles: the page's script puts in what the reader chooses.
Text and lines take the colour of the page, so that they are read on light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chexgenbench.files import write_text

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"

_COLOURS = ("#2f7fc1", "#c9570c", "#00926b", "#b8659a", "#947600", "#8264b8", "#777c85", "#b0433f")
"""After Okabe and Ito, darkened or lightened until each has a contrast of 3 on white and on the
page's dark ground."""
_SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
    "cross",
    "triangle-right",
)
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4])

_LINE, _GRID = "#88888880", "#88888833"
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": _LINE, "continuousHeight": 300},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "domainColor": _LINE,
        "tickColor": _LINE,
        "gridColor": _GRID,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": 600,
        "labelLimit": 220,
        "labelSeparation": 6,
        "titleLimit": 600,
    },
    # A title along the axis would be cut where it is longer than the axis is high.
    "axisY": {
        "titleAngle": 0,
        "titleAnchor": "end",
        "titleAlign": "left",
        "titleX": 0,
        "titleY": -14,
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "orient": "bottom",
        "labelFontSize": 12,
        "labelLimit": 220,
        "symbolSize": 80,
    },
    "text": {"color": "currentColor"},
}
_ZERO = "#888888"
"""The grid's line at 0, which an axis has where its values or intervals lie on both sides."""
_POINT = {"type": "point", "filled": True, "size": 90, "opacity": 1}


def looks(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour, a shape and a dash for each model; no two of the first 56 have both alike.

    >>> looks(["a", "b"])["b"]
    {'colour': '#c9570c', 'shape': 'square', 'dash': [6, 3]}
    """
    return {
        model: {
            "colour": _COLOURS[place % len(_COLOURS)],
            "shape": _SHAPES[place % len(_SHAPES)],
            "dash": _DASHES[place % len(_DASHES)],
        }
        for place, model in enumerate(models)
    }


def charts() -> dict[str, dict[str, Any]]:
    """Name to Vega-Lite specification, without data. The fields of each row of the data:

    - ``scatter``: model, x, x_low, x_high, y, y_low, y_high, text, label, published.
    - ``parallel``: model, score, order, good (1 the best, 0 the worst, null missing), at (good, or
      where a missing one is marked), text.
    - ``regimes``: model, regime, value, low, high, text.
    - ``ratios``: model, ratio, value, low, high, text.
    """
    return {
        "scatter": _scatter(),
        "parallel": _parallel(),
        "regimes": _regimes(),
        "ratios": _ratios(),
    }


def _chart(height: int, encoding: dict[str, Any], layer: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": []},
        "encoding": {**encoding, "color": _by("model")},
        "layer": layer,
        "config": _CONFIG,
    }


def _by(field: str) -> dict[str, Any]:
    return {"field": field, "type": "nominal", "legend": {"title": None}}


def _number(field: str, **more: Any) -> dict[str, Any]:
    at_zero = {"test": "datum.value === 0"}
    axis = {
        "gridColor": {"condition": {**at_zero, "value": _ZERO}, "value": _GRID},
        "gridWidth": {"condition": {**at_zero, "value": 1.5}, "value": 1},
    }
    scale = {"zero": False}
    return {"field": field, "type": "quantitative", "scale": scale, "axis": axis, **more}


_SHAPE = {"shape": _by("model")}
_SAID = {"description": {"field": "text"}, "tooltip": {"field": "text"}}


def _bar(axis: str, low: str, high: str, **other: Any) -> dict[str, Any]:
    """The line of an interval."""
    ends = {axis: _number(low), f"{axis}2": {"field": high}}
    return {
        "transform": [{"filter": f"isValid(datum.{low}) && isValid(datum.{high})"}],
        "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 1, "aria": False},
        "encoding": {**ends, **other},
    }


def _scatter() -> dict[str, Any]:
    hollow = {"condition": {"test": "datum.published", "value": 0}, "value": 1}
    at = {"x": _number("x"), "y": _number("y")}
    return _chart(
        340,
        {},
        [
            _bar("x", "x_low", "x_high", y=_number("y")),
            _bar("y", "y_low", "y_high", x=_number("x")),
            {
                "mark": {**_POINT, "stroke": "currentColor", "strokeWidth": 1},
                "encoding": {
                    **at,
                    **_SHAPE,
                    **_SAID,
                    "fill": _by("model"),
                    "stroke": _by("model"),
                    "fillOpacity": hollow,
                },
            },
            {
                "mark": {
                    "type": "text",
                    "align": "left",
                    "dx": 8,
                    "dy": -8,
                    "limit": 320,
                    "aria": False,
                },
                "encoding": {**at, "text": {"field": "label"}, "color": {"value": "currentColor"}},
            },
        ],
    )


def _parallel() -> dict[str, Any]:
    names = "datum.value < 0 ? 'not taken' : datum.value == 0 ? 'worst' : 'best'"
    score = {
        "field": "score",
        "type": "nominal",
        "sort": {"field": "order"},
        "axis": {"title": None, "labelAngle": -40, "grid": True},
    }
    axis = {"title": None, "values": [-0.15, 0, 1], "labelExpr": names}
    scale = {"domain": [-0.15, 1]}
    return _chart(
        300,
        {"x": score},
        [
            {
                "mark": {
                    "type": "line",
                    "strokeWidth": 2,
                    "opacity": 0.8,
                    "invalid": "break-paths-show-path-domains",
                    "aria": False,
                },
                "encoding": {
                    "y": {"field": "good", "type": "quantitative", "axis": axis, "scale": scale},
                    "strokeDash": _by("model"),
                    "order": {"field": "order", "type": "quantitative"},
                },
            },
            {
                "mark": _POINT,
                "encoding": {
                    "y": {"field": "at", "type": "quantitative", "axis": axis, "scale": scale},
                    **_SHAPE,
                    **_SAID,
                },
            },
        ],
    )


def _regimes() -> dict[str, Any]:
    beside = {"xOffset": {"field": "model", "type": "nominal"}}
    regime = {
        "field": "regime",
        "type": "nominal",
        "sort": None,
        "axis": {"title": "trained on", "labelAngle": 0, "labelOverlap": False},
    }
    return _chart(
        300,
        {"x": regime, **beside},
        [
            _bar("y", "low", "high"),
            {"mark": _POINT, "encoding": {"y": _number("value"), **_SHAPE, **_SAID}},
        ],
    )


def _ratios() -> dict[str, Any]:
    ratio = _number(
        "ratio", title="generated images for each real one", scale={"nice": False, "padding": 12}
    )
    line = {"type": "line", "strokeWidth": 2, "opacity": 0.8, "aria": False}
    return _chart(
        300,
        {"x": ratio},
        [
            _bar("y", "low", "high"),
            {"mark": line, "encoding": {"y": _number("value"), "strokeDash": _by("model")}},
            {"mark": _POINT, "encoding": {"y": _number("value"), **_SHAPE, **_SAID}},
        ],
    )


NOTICE = (
    "Charts are drawn by Vega, Vega-Lite and Vega-Embed, (c) University of Washington Interactive "
    "Data Lab and contributors, BSD-3-Clause licence."
)


def program(cache: Path) -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed, about 0.9 MB; it sets ``vegaEmbed``.

    vl-convert takes one to three seconds to bundle it, so it is kept in `cache` by its version.
    """
    path = cache / "vega" / f"vl-convert-{version('vl-convert-python')}.js"
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        import vl_convert

        text: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        with suppress(OSError):  # a cache that cannot be written costs the next page those seconds
            write_text(path, text)
        return text
