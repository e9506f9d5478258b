"""The colours of every page and figure: Python, style sheets and the page's script take them here.

Lines and marks have the colours of Okabe and Ito, which people with any colour vision tell apart;
no yellow on white.
"""

from __future__ import annotations

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, BLACK = "#56B4E9", "#E69F00", "#000000"

ARMS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE, BLACK)
ARMS_DARK = ("#3B95D6", "#F0803C", "#1FBF93", "#E2A3C8", "#A3DBFA", "#F2B63A", "#ECEEF0")

DASHES = ("solid", "dash", "dot", "dashdot")
"""Of lines that may lie on one another; with the colours, 28 arms are distinct."""

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1c1f23",
    "quiet": "#5b636d",
    "line": "#d9dde2",
    "grid": "#e6e9ed",
    "axis": "#9aa2ab",
    "tint": "#f5f6f8",
    "accent": BLUE,
    "training": ORANGE,
    "training-text": "#946200",  # the same hue, dark enough to be read
    "validation": BLUE,
    "onset": VERMILION,
    "survived": BLUE,
    "transient_collapse": ORANGE,
    "permanent_collapse": VERMILION,
    "never_learned": "#7d858e",
    "non_finite": PURPLE,
    "incomplete": "#b3b9c1",
    "liquid": BLUE,
    "glass": VERMILION,
    "map-low": "#f2f6fa",
    "map-middle": "#6aaed6",
    "map-high": "#08306b",
    **{f"arm-{i}": tone for i, tone in enumerate(ARMS)},
}
"""Use -> colour, on white."""

DARK = LIGHT | {
    "paper": "#15181c",
    "ink": "#e6e8eb",
    "quiet": "#a2abb5",
    "line": "#353b43",
    "grid": "#2a2f36",
    "axis": "#6d7681",
    "tint": "#1e2228",
    "accent": "#6cb8ee",
    "training-text": "#F2B63A",
    "validation": ARMS_DARK[0],
    "onset": ARMS_DARK[1],
    "survived": ARMS_DARK[0],
    "permanent_collapse": ARMS_DARK[1],
    "incomplete": "#5b636d",
    "liquid": ARMS_DARK[0],
    "glass": ARMS_DARK[1],
    "map-low": "#1e2a36",
    "map-high": "#b9defa",
    **{f"arm-{i}": tone for i, tone in enumerate(ARMS_DARK)},
}
"""The same on a dark screen."""


def arm(index: int) -> str:
    """Key, in LIGHT and DARK, of the colour of arm number `index`."""
    return f"arm-{index % len(ARMS)}"


def dash(index: int) -> str:
    """Dash of arm number `index`."""
    return DASHES[index % len(DASHES)]


def variables() -> str:
    """All colours as variables of a style sheet; what is printed stays on white."""
    light, dark = ("".join(f"--{k}:{v};" for k, v in tones.items()) for tones in (LIGHT, DARK))
    scheme = "color-scheme:light dark;"
    return (
        f":root{{{scheme}{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-paper]){{{dark}}}}}"
    )
