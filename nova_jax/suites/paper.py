"""Tables of scores: what is published of NOVA, and the columns that a report has.

The rows are those of NOVA (Deng et al., ICLR 2025, arXiv:2412.14169), section 4 and, of DPG-Bench's
categories, its appendix; of VBench's row with rewritten prompts the dynamic degree, imaging quality
and color are from URSA (arXiv:2510.24717), table 1, which has one digit. Values are as printed:
T2I-CompBench, DPG-Bench and VBench times 100, GenEval as shares, latency in seconds a video (batch
24, one A100 of 40 GB). The paper prints 77.52 for multiple objects and for spatial relationship.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: a name in `Scores.values`, a heading, and digits behind the point."""

    key: str
    heading: str
    digits: int = 2


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: whose scores, and they by column; what was not published is not in it."""

    label: str
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: above it.
        columns: from left to right.
        rows: what is published, or known otherwise.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]


def _rows(keys: Sequence[str], printed: str) -> list[Row]:
    """Rows of "LABEL | value value ...", where "-" stands for none."""
    rows = []
    for line in printed.strip().splitlines():
        label, _, values = line.partition("|")
        pairs = zip(keys, values.split(), strict=True)
        rows.append(Row(label.strip(), {key: float(v) for key, v in pairs if v != "-"}))
    return rows


def _columns(suite: str, headings: Mapping[str, str], digits: int = 2) -> list[Column]:
    return [Column(f"{suite}.{name}", heading, digits) for name, heading in headings.items()]


_PICTURES = [
    *_columns("t2i_compbench", {"color": "Color", "shape": "Shape", "texture": "Texture"}),
    *_columns(
        "geneval",
        {
            "overall": "GenEval",
            "single_object": "Single",
            "two_object": "Two",
            "counting": "Counting",
            "colors": "Colors",
            "position": "Position",
            "color_attr": "ColorAttr",
        },
    ),
    Column("dpg.overall", "DPG"),
]
_CATEGORIES = _columns(
    "t2i_compbench",
    {
        "spatial": "Spatial",
        "non_spatial": "Non-spatial",
        "complex": "Complex",
        "numeracy": "Numeracy",
        "3d_spatial": "3D spatial",
    },
)
_DPG = _columns(
    "dpg",
    {
        "overall": "Overall",
        "global": "Global",
        "entity": "Entity",
        "attribute": "Attribute",
        "relation": "Relation",
        "other": "Other",
    },
)
_VIDEOS = [
    *_columns(
        "vbench",
        {
            "total": "Total",
            "quality": "Quality",
            "semantic": "Semantic",
            "aesthetic_quality": "Aesthetic",
            "object_class": "Object",
            "multiple_objects": "Multiple",
            "human_action": "Human",
            "spatial_relationship": "Spatial",
            "scene": "Scene",
        },
    ),
    Column("vbench.latency", "Seconds", 1),
]
_VIDEO_QUALITY = _columns(
    "vbench",
    {
        "subject_consistency": "Subject",
        "background_consistency": "Background",
        "temporal_flickering": "Flicker",
        "motion_smoothness": "Smooth",
        "dynamic_degree": "Dynamic",
        "imaging_quality": "Imaging",
        "color": "Color",
        "appearance_style": "Appearance",
        "temporal_style": "Temporal",
        "overall_consistency": "Overall",
    },
)


def _keys(columns: Sequence[Column]) -> list[str]:
    return [column.key for column in columns]


_SCENES = _columns(
    "digits",
    {
        "overall": "Digits",
        "single_object": "Single",
        "two_object": "Two",
        "counting": "Counting",
        "colors": "Colors",
        "position": "Position",
        "color_attr": "ColorAttr",
        "seen": "Seen",
        "unseen": "Unseen",
    },
    digits=3,
)

TABLES: Sequence[Table] = (
    Table(
        "Text to image",
        _PICTURES,
        _rows(
            _keys(_PICTURES),
            """
            NOVA 0.6B, 512                     | 70.75 55.98 69.79 .66 .98 .85 .58 .83 .20 .48 81.76
            NOVA 0.6B, 512 + Rewriter          | 83.02 61.47 75.80 .75 .98 .88 .62 .82 .62 .58 -
            NOVA 0.6B, 512 + Videos            | 71.80 47.86 65.31 .55 .98 .56 .48 .75 .15 .41 81.77
            NOVA 0.6B, 512 + Videos + Rewriter | 81.36 59.16 72.45 .71 .98 .83 .52 .81 .58 .51 -
            NOVA 0.3B, 1024                    | 73.35 57.28 70.09 .67 .98 .86 .53 .84 .32 .52 80.60
            NOVA 0.6B, 1024                    | 74.72 56.99 69.50 .69 .98 .89 .56 .84 .32 .56 82.25
            NOVA 1.4B, 1024                    | 74.30 57.14 70.00 .71 .99 .91 .62 .85 .33 .56 83.01
            """,
        ),
    ),
    Table("T2I-CompBench, other categories", _CATEGORIES, ()),
    Table(
        "DPG-Bench by category",
        _DPG,
        _rows(
            _keys(_DPG),
            """
            NOVA 0.3B, 1024 | 80.60 85.41 86.97 85.16 92.05 71.20
            NOVA 0.6B, 1024 | 82.25 87.65 87.65 85.62 90.90 74.80
            NOVA 1.4B, 1024 | 83.01 86.32 88.69 86.35 91.94 74.80
            """,
        ),
    ),
    Table(
        "VBench",
        _VIDEOS,
        _rows(
            _keys(_VIDEOS),
            """
            NOVA 0.6B            | 78.48 78.96 76.57 54.52 91.36 73.46 91.20 66.37 50.16 12
            NOVA 0.6B + Rewriter | 80.12 80.39 79.05 59.42 92.00 77.52 95.20 77.52 54.06 12
            """,
        ),
    ),
    Table(
        "VBench, other dimensions",
        _VIDEO_QUALITY,
        _rows(_keys(_VIDEO_QUALITY), "NOVA 0.6B + Rewriter | - - - - 20.1 59.4 87.7 - - -"),
    ),
    Table("Digits: GenEval's tasks, nothing besides allowed", _SCENES, []),
)
